"""Which batch norms of a model are folded, and why the others are not."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._tools.folding.affine import Weights, fold_weights, overflow
from jaxbn._tools.folding.flow import Flow
from jaxbn._tools.folding.layers import check_evaluation
from jaxbn._tools.folding.region import Fold, Leaves, why_not

Pair = tuple[str, str]
_fold_weights = jax.jit(fold_weights, static_argnums=(2, 3))


class Plan:
    """The folds, made one after another, and the weights so far."""

    def __init__(self, side) -> None:
        self.flow: Flow
        self.leaves: Leaves
        self.flow, self.leaves = side.flow()
        self.weights: dict[str, Weights] = side.weights()
        self._known: dict[Any, str | None] = {}
        check_evaluation(self.flow.calls.values())

    def choose(self) -> tuple[list[Fold], dict[str, str]]:
        """Folds what can be folded, and says why each remaining batch norm is left."""
        folds, left = [], dict.fromkeys(self._norms_without_call(), "the model does not call it")
        for path, call in self.flow.calls.items():
            if not call.is_batch_norm:
                continue
            reasons = []
            for candidate in self._candidates(path):
                reason = self._fold(candidate)
                if reason is None:
                    folds.append(candidate)
                    break
                reasons.append(f"{candidate.pairs()[0]}: {reason}")
            else:
                left[path] = "; ".join(reasons) or call.obstacle or self._no_candidate(path)
        return folds, left

    def _no_candidate(self, norm: str) -> str:
        source = self.flow.source[norm]
        made = f"{source}, a batch norm too" if source in self.flow.calls else source
        return f"its input is made by {made}, and its output goes to {self.flow.others.get(norm, 'others')}"

    def take(self, pairs: list[Pair]) -> None:
        """Folds these pairs.

        Raises:
          ValueError: one of them cannot be folded.
        """
        done = set()
        for pair in pairs:
            reason = self._why_no_pair(*pair)
            if reason is None and pair not in done:
                first, second = pair
                backward = self.flow.calls[second].is_batch_norm
                fold = Fold(second, (first,), True) if backward else Fold(first, tuple(self.flow.targets[first]), False)
                missing = [p for p in fold.pairs() if p not in pairs]
                reason = f"the output of {first} is read by others than {second} too: {missing}" if missing else None
                reason = reason or self._fold(fold)
                done.update(fold.pairs())
            if reason is not None:
                raise ValueError(f"`pairs` must be exact to fold, got {pair}: {reason}; nothing was changed.")

    def _candidates(self, norm: str) -> list[Fold]:
        """The folds of a batch norm into what comes right before and right after it."""
        before, after = self.flow.source[norm], self.flow.targets.get(norm, [])
        layers = {path for path, call in self.flow.calls.items() if not call.is_batch_norm}
        folds = [Fold(norm, (before,), True)] if before in layers else []
        return [*folds, Fold(norm, tuple(after), False)] if after and layers.issuperset(after) else folds

    def _fold(self, fold: Fold) -> str | None:
        """Makes a fold, or says why it cannot."""
        for pair in fold.pairs():
            reason = self._why_no_pair(*pair)
            if reason is not None:
                return reason
        reason = why_not(self.flow, self.leaves, fold, self._known)
        if reason is not None:
            return reason
        norm, layers = self.weights[fold.norm], [self.weights[path] for path in fold.layers]
        if any(isinstance(v, jax.ShapeDtypeStruct) for v in jax.tree.leaves((norm, layers))):
            return None
        calls = tuple(self.flow.calls[path]._replace(path="") for path in (fold.norm, *fold.layers))
        norm, layers, is_finite = _fold_weights(norm, layers, calls, fold.backward)
        if not jax.device_get(is_finite):
            return overflow(layers[0]["kernel"].dtype)
        self.weights.update({fold.norm: norm, **dict(zip(fold.layers, layers, strict=True))})
        return None

    def _why_no_pair(self, first: str, second: str) -> str | None:
        """Why the pair cannot be folded, as far as its layers tell."""
        flow, calls = self.flow, self.flow.calls
        for path in (first, second):
            if path not in calls:
                return f"{path!r} is no convolution, dense layer or batch norm that the model calls: {list(calls)}"
        a, b = calls[first], calls[second]
        if a.is_batch_norm == b.is_batch_norm:
            return "one of them must be a batch norm, the other a convolution or dense layer"
        for call in (a, b):
            if call.obstacle is not None:
                return f"{call.path}: {call.obstacle}"
            needed = {"mean", "var"} if call.is_batch_norm else {"kernel"}
            if not needed <= set(self.leaves[call.path]):
                return f"{call.path}: its weights are not found in the model, or have other names"
            if call.is_batch_norm and jnp.ndim(self.weights[call.path]["mean"]) != 1:
                return f"{call.path}: its variables are stacked, as in a scan over layers"
        if flow.source[second] != first:
            return f"the input of {second} is not the output of {first}, it is made by {flow.source[second]}"
        if second not in flow.targets[first] or (b.is_batch_norm and flow.targets[first] != [second]):
            return f"the output of {first} is read by others than {second} too"
        if a.is_batch_norm and (a.obstacle_next or b.obstacle_next):
            call = a if a.obstacle_next else b
            return f"{call.path}: {call.obstacle_next}"
        return None

    def _norms_without_call(self) -> list[str]:
        return [p for p, w in self.weights.items() if {"mean", "var"} <= set(w) and p not in self.flow.calls]
