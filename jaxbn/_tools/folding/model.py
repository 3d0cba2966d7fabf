"""Folding the batch norms of a whole linen or nnx model into the layers beside them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from jaxbn._tools.checks import check_iterable
from jaxbn._tools.folding.plan import Pair, Plan

if TYPE_CHECKING:
    from flax import nnx

Module = TypeVar("Module", bound="nnx.Module")


class Pairs(list[Pair]):
    """The pairs that can be folded: (path, path) each, in the order of the data."""

    left: dict[str, str]
    """path of a batch norm that stays -> why"""


@overload
def fold(model: Module, *args: Any, pairs: Sequence[Pair] | None = None, **kwargs: Any) -> Module: ...
@overload
def fold(model: Any, *args: Any, pairs: Sequence[Pair] | None = None, **kwargs: Any) -> Any: ...
def fold(model: Any, *args: Any, pairs: Sequence[Pair] | None = None, **kwargs: Any) -> Any:
    """Merges batch norms into the convolutions and dense layers beside them; the model evaluates to the same.

    A folded batch norm is left as the identity (mean 0, variance 1 - epsilon, scale 1, bias 0), so that the model stays
    as it is. Its bias keeps what a layer without a bias cannot take; if it has no bias either, its mean does. Each
    layer is computed in at least float32 and rounded once. What cannot be folded stays:
    `jaxbn.foldable_pairs(model, ...).left` says why.

    Whether a fold is exact is read off the model's program and tried on random weights, so that a kernel that is
    shared, normalized or adapted is detected whatever values the batch and the weights have.

    Args:
      model: a linen or nnx module.
      *args: for linen the variables and then the arguments of `model.apply`, for nnx those of the call: a small batch
        with which the model runs. Only the shapes of its arrays are used; anything else (a flag) is used as it is.
      pairs: (path, path) each, a layer and a batch norm in the order of the data: ('Conv_0', 'BatchNorm_0') folds into
        the layer before, ('BatchNorm_0', 'Dense_0') into the one after; if several layers read a batch norm, the pairs
        of all of them. None folds all of `jaxbn.foldable_pairs(model, ...)`.
      **kwargs: further arguments with which the model evaluates (`train=False`, say). An nnx model is not
        changed: a copy of it, in evaluation mode, is examined.

    Returns:
      New variables (linen) or a new model (nnx), of the same structure, shapes and dtypes.

    Raises:
      ValueError: one of the `pairs` cannot be folded exactly, or there is no pair. The arguments are unchanged.
      TypeError: `model` is not a module, or `pairs` does not consist of pairs of paths.

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
    pairs = None if pairs is None else _checked_pairs(pairs)
    side = side_of(model, args, kwargs)
    plan = Plan(side)
    if pairs is None:
        folds, left = plan.choose()
        if not folds:
            raise ValueError(f"`model` must have a pair to fold, got no batch norm that can be folded.{_lines(left)}")
    else:
        plan.take(pairs)
    return side.with_weights(plan.weights)


def foldable_pairs(model: Any, *args: Any, **kwargs: Any) -> Pairs:
    """The pairs of a layer and a batch norm that `jaxbn.fold` folds by itself, in the order of execution.

    A batch norm folds into the layer before it if its input is the output of that layer and nothing else reads it;
    otherwise into the layer or layers after it, if that is exact. Reshapes, slices and means may stand in between.

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
    folds, left = Plan(side_of(model, args, kwargs)).choose()
    pairs = Pairs(pair for fold in folds for pair in fold.pairs())
    pairs.left = left
    return pairs


def side_of(model, args, kwargs):
    """The model as linen's or nnx's folding sees it; Flax is imported here."""
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


def _checked_pairs(pairs: Any) -> list[Pair]:
    rule = "be None or a list of pairs of paths, (path, path) each"
    check_iterable(pairs, "pairs", rule)
    pairs = list(pairs)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
            raise TypeError(f"`pairs` must {rule}, got {pair!r}.")
    return [(first, second) for first, second in pairs]


def _lines(left: dict[str, str]) -> str:
    return "".join(f"\n  {path}: {reason}" for path, reason in left.items())
