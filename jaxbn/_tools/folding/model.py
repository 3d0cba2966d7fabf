"""Folding the batch norms of a whole linen or nnx model into the layers beside them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._tools.folding.flow import Flow
from jaxbn._tools.folding.pair import check_overflow, following, identity, previous

Pair = tuple[str, str]


def fold(model, *args, pairs: Sequence[Pair] | None = None, **kwargs):
    """Merges batch norms into the convolutions and dense layers beside them; the model evaluates to the same.

    A folded batch norm is left as the identity (mean 0, variance 1 - epsilon, scale 1, bias 0), so that the model stays
    as it is. Its bias keeps what a layer without a bias cannot take; where it has none either, its mean does. Each
    layer is computed in at least float32 and rounded once.

    Args:
      model: a linen or nnx module.
      *args: for linen the variables and then the arguments of `model.apply`, for nnx those of the call: a small batch
        with which the model runs, for what reads what and for a comparison of the outputs at the end.
      pairs: (path, path) each, a layer and a batch norm in the order of the data: ('Conv_0', 'BatchNorm_0') folds into
        the layer before, ('BatchNorm_0', 'Dense_0') into the one after. None folds all of
        `jaxbn.foldable_pairs(model, ...)`.
      **kwargs: further arguments with which the model evaluates (`train=False`, say). Of an nnx model, a copy in
        evaluation mode is looked at.

    Returns:
      New variables (linen) or a new model (nnx), of the same structure, shapes and dtypes.

    Raises:
      ValueError: a pair cannot be folded exactly; or there is none; or the outputs differ afterwards, because weights
        are used in another place too. What was given is unchanged.

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
    side = _side(model, args, kwargs)
    flow = side.flow()
    weights = side.weights(flow.calls)
    if pairs is None:
        chosen = _choose(flow, weights)
        if not chosen:
            raise ValueError(f"The model has no batch norm that can be folded.{_reasons(flow, weights)}")
    else:
        chosen = [(str(a), str(b)) for a, b in pairs]
        for a, b in chosen:
            obstacle = _obstacle(flow, weights, a, b)
            if obstacle is not None:
                raise ValueError(f"({a!r}, {b!r}) cannot be folded: {obstacle}; nothing was changed.")
    folded = side.with_weights(_fold_pairs(flow, weights, chosen))
    with jax.default_matmul_precision("float32"):
        _check_same(side.evaluate(side.subject), side.evaluate(folded))
    return folded


def foldable_pairs(model, *args, **kwargs) -> list[Pair]:
    """The pairs of a layer and a batch norm that `jaxbn.fold` folds by itself, in the order of execution.

    A batch norm folds into the layer before where its input is the output of that layer, read by nothing else, and
    else into the layer after, where that is exact.

    Args:
      model: as in `jaxbn.fold`; so are `*args` and `**kwargs`.

    Returns:
      (path, path) each, in the order of the data.

    Raises:
      ValueError: the model normalizes with batch statistics: it was not given the arguments of evaluation.

    Example:
      >>> import jax.numpy as jnp, jaxbn
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.relu)
      >>> jaxbn.foldable_pairs(model, jnp.ones((1, 2)))
      [('layers/0', 'layers/1')]
    """
    side = _side(model, args, kwargs)
    flow = side.flow()
    return _choose(flow, side.weights(flow.calls))


def _side(model, args, kwargs):
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


def _choose(flow: Flow, weights) -> list[Pair]:
    chosen = []
    for path, call in flow.calls.items():
        candidates = _candidates(flow, path) if call.is_batch_norm else []
        chosen += [pair for pair in candidates if _obstacle(flow, weights, *pair) is None][:1]
    return chosen


def _candidates(flow: Flow, path: str) -> list[Pair]:
    """The pairs of a batch norm with what stands right before and right after it."""
    before, after = flow.source[path], flow.reader.get(path)
    return [(a, b) for a, b in ((before, path), (path, after)) if a in flow.calls and b in flow.calls]


def _reasons(flow: Flow, weights) -> str:
    lines = []
    for path, call in flow.calls.items():
        if call.is_batch_norm:
            pairs = _candidates(flow, path)
            reasons = [f"{pair}: {_obstacle(flow, weights, *pair)}" for pair in pairs]
            lines.append(f"\n  {path}: {'; '.join(reasons) or f'its input is made by {flow.source[path]}'}")
    return "".join(lines)


def _obstacle(flow: Flow, weights, first: str, second: str) -> str | None:
    """Why the pair cannot be folded; None where it can."""
    for path in (first, second):
        if path not in flow.calls:
            return f"{path!r} is no convolution, dense layer or batch norm that the model calls: {list(flow.calls)}"
    a, b = flow.calls[first], flow.calls[second]
    if a.is_batch_norm == b.is_batch_norm:
        return "one of them must be a batch norm, the other a convolution or dense layer"
    for call in (a, b):
        if call.obstacle is not None:
            return f"{call.path}: {call.obstacle}"
        if call.is_batch_norm and jnp.ndim(weights[call.path]["mean"]) != 1:
            return f"{call.path}: its variables are stacked, as in a scan over layers"
    if flow.source[second] != first:
        return f"the input of {second} is not the output of {first}, it is made by {flow.source[second]}"
    if flow.reader.get(first) != second:
        return f"the output of {first} is read by others than {second} too"
    if a.is_batch_norm and (a.obstacle_next or b.obstacle_next):
        call = a if a.obstacle_next else b
        return f"{call.path}: {call.obstacle_next}"
    return None


def _fold_pairs(flow: Flow, weights, pairs: Sequence[Pair]):
    """The weights of all calls, with the pairs folded one after the other."""
    weights = {path: dict(w) for path, w in weights.items()}
    for first, second in pairs:
        backward = flow.calls[second].is_batch_norm
        layer, norm = (flow.calls[first], flow.calls[second]) if backward else (flow.calls[second], flow.calls[first])
        old, bias = weights[layer.path]["kernel"], weights[layer.path].get("bias")
        params = {k: v for k, v in weights[norm.path].items() if k in ("scale", "bias")}
        stats = {k: v for k, v in weights[norm.path].items() if k not in params}
        if backward:
            kernel, new_bias = previous(old, bias, params, stats, norm.epsilon, layer.out_axis)
        else:
            kernel, new_bias = following(old, bias, params, stats, norm.epsilon, layer.groups)
        new = {"kernel": kernel.astype(old.dtype)}
        if bias is not None:
            new["bias"] = new_bias.astype(bias.dtype)
        try:
            check_overflow(old, *new.values())
        except ValueError as error:
            raise ValueError(f"({first!r}, {second!r}): {error}") from None
        weights[layer.path].update(new)
        params, stats = identity(params, stats, norm.epsilon, None if bias is not None else new_bias)
        weights[norm.path] = {**params, **stats}
    return weights


def _check_same(before, after) -> None:
    """A net under the reading of the program: weights that are used in a second place, or normalized themselves."""
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            continue
        wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
        tolerance = 0.05 if jnp.finfo(x.dtype).bits < 32 else 0.01
        x, y = np.asarray(x).astype(wide), np.asarray(y).astype(wide)
        largest = np.max(np.abs(x), initial=0.0, where=np.isfinite(x))
        if not np.allclose(x, y, rtol=0.0, atol=tolerance * largest, equal_nan=True):
            raise ValueError(
                f"Folding would change the outputs by {np.nanmax(np.abs(x - y)):.3g} (they reach {largest:.3g}): "
                "weights of a folded layer are used in another place too, or computed from others; name the `pairs` "
                "without it. Nothing was changed."
            )
