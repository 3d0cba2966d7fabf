"""Folding the batch norms of a whole linen or nnx model into the layers beside them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._tools.folding.affine import Weights, fold_weights, overflow
from jaxbn._tools.folding.flow import Flow
from jaxbn._tools.folding.layers import check_evaluation
from jaxbn._tools.folding.region import Fold, Leaves, why_not

Pair = tuple[str, str]
_fold_weights = jax.jit(fold_weights, static_argnums=(2, 3))


class Pairs(list[Pair]):
    """The pairs that can be folded: (path, path) each, in the order of the data."""

    left: dict[str, str]
    """path of a batch norm that stays -> why"""


def fold(model, *args, pairs: Sequence[Pair] | None = None, **kwargs):
    """Merges batch norms into the convolutions and dense layers beside them; the model evaluates to the same.

    A folded batch norm is left as the identity (mean 0, variance 1 - epsilon, scale 1, bias 0), so that the model stays
    as it is. Its bias keeps what a layer without a bias cannot take; where it has none either, its mean does. Each
    layer is computed in at least float32 and rounded once. What cannot be folded stays:
    `jaxbn.foldable_pairs(model, ...).left` says why.

    Whether a fold is exact is read off the model's program and tried on random weights, so that a kernel that is
    shared, normalized or adapted is found whatever the batch and the weights hold.

    Args:
      model: a linen or nnx module.
      *args: for linen the variables and then the arguments of `model.apply`, for nnx those of the call: a small batch
        with which the model runs. Arrays in it are looked at by their shapes, anything else (a flag) as it is.
      pairs: (path, path) each, a layer and a batch norm in the order of the data: ('Conv_0', 'BatchNorm_0') folds into
        the layer before, ('BatchNorm_0', 'Dense_0') into the one after; where several read a batch norm, the pairs of
        all of them. None folds all of `jaxbn.foldable_pairs(model, ...)`.
      **kwargs: further arguments with which the model evaluates (`train=False`, say). Of an nnx model, a copy in
        evaluation mode is looked at.

    Returns:
      New variables (linen) or a new model (nnx), of the same structure, shapes and dtypes.

    Raises:
      ValueError: one of the `pairs` cannot be folded exactly; or there is none. What was given is unchanged.

    References:
      Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
      section 3.2.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxbn
      >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.relu])
      >>> x = jnp.ones((2, 4))
      >>> variables = model.init(jax.random.key(0), x)
      >>> variables["params"]["layers_1"]["scale"] = jnp.array([1.0, 2.0, 3.0])
      >>> folded = jaxbn.fold(model, variables, x)
      >>> folded["params"]["layers_1"]["scale"].tolist()
      [1.0, 1.0, 1.0]
      >>> bool(jnp.allclose(model.apply(folded, x), model.apply(variables, x), atol=1e-6))
      True
    """
    side = side_of(model, args, kwargs)
    plan = _Plan(side)
    if pairs is None:
        folds, left = plan.choose()
        if not folds:
            raise ValueError(f"The model has no batch norm that can be folded.{_lines(left)}")
    else:
        plan.take([(str(a), str(b)) for a, b in pairs])
    return side.with_weights(plan.weights)


def foldable_pairs(model, *args, **kwargs) -> Pairs:
    """The pairs of a layer and a batch norm that `jaxbn.fold` folds by itself, in the order of execution.

    A batch norm folds into the layer before where its input is the output of that layer, read by nothing else, and
    else into the layer after, or all of them, where that is exact. Reshapes, slices and means may stand between.

    Args:
      model: as in `jaxbn.fold`; so are `*args` and `**kwargs`.

    Returns:
      A list of (path, path), in the order of the data. Its attribute `left` is a dict: path of a batch norm that stays
      -> why.

    Raises:
      ValueError: every batch norm normalizes with batch statistics: the model was not given the arguments of
        evaluation.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> norm, last = nnx.BatchNorm(3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), norm, nnx.relu, last)
      >>> pairs = jaxbn.foldable_pairs(model, jnp.ones((1, 2)))
      >>> pairs
      [('layers/0', 'layers/1')]
      >>> pairs.left
      {'layers/3': 'its input is made by `relu`, and its output goes to the end of the model'}
    """
    folds, left = _Plan(side_of(model, args, kwargs)).choose()
    pairs = Pairs(pair for fold in folds for pair in fold.pairs())
    pairs.left = left
    return pairs


def side_of(model, args, kwargs):
    """The front end of the model; Flax is imported here."""
    from flax import linen, nnx

    if isinstance(model, linen.Module):
        from jaxbn._tools.folding.linen import LinenModel

        if not args:
            raise TypeError("`fold` needs the variables of a linen model and its arguments: fold(model, variables, x).")
        return LinenModel(model, *args, **kwargs)
    if isinstance(model, nnx.Module):
        from jaxbn._tools.folding.nnx import NnxModel

        return NnxModel(model, *args, **kwargs)
    raise TypeError(f"`model` must be a linen or nnx module, got {type(model).__name__}.")


class _Plan:
    """What is folded, one after the other, and the weights so far."""

    def __init__(self, side):
        self.flow: Flow
        self.leaves: Leaves
        self.flow, self.leaves = side.flow()
        self.weights: dict[str, Weights] = side.weights()
        self._known: dict[Any, str | None] = {}
        check_evaluation(self.flow.calls.values())

    def choose(self) -> tuple[list[Fold], dict[str, str]]:
        """Folds what can be folded, and says why of each batch norm that is left."""
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
                raise ValueError(f"{pair} cannot be folded: {reason}; nothing was changed.")

    def _candidates(self, norm: str) -> list[Fold]:
        """The folds of a batch norm into what stands right before and right after it."""
        before, after = self.flow.source[norm], self.flow.targets.get(norm, [])
        layers = {path for path, call in self.flow.calls.items() if not call.is_batch_norm}
        folds = [Fold(norm, (before,), True)] if before in layers else []
        return [*folds, Fold(norm, tuple(after), False)] if after and layers.issuperset(after) else folds

    def _fold(self, fold: Fold) -> str | None:
        """Folds; or says why it cannot."""
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
        """Why the pair cannot be folded, as far as its layers say it."""
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


def _lines(left: dict[str, str]) -> str:
    return "".join(f"\n  {path}: {reason}" for path, reason in left.items())
