"""What folding needs to know about a layer, read off its fields, which have the same names in linen and nnx."""

from collections.abc import Iterable

import jax
from jax import lax
from jax.core import Tracer

from jaxbn._core.axes import feature_axes
from jaxbn._core.checks import describe
from jaxbn._tools.folding.flow import Call


def describe_batch_norm(
    path: str, module, x: jax.Array, use_running_average=None, *, mask=None, residual=None, domain=None, **others
) -> Call:
    """A batch norm and the arguments that it is called with. In evaluation, a mask has no effect."""
    if use_running_average is None:
        use_running_average = module.use_running_average
    last = feature_axes(module.axis, x.ndim) == (x.ndim - 1,)
    obstacle = None if last else f"its feature axis is {module.axis} and not the last"
    if isinstance(use_running_average, Tracer):
        obstacle = f"{UNDECIDED}, got an array, {describe(use_running_average)}"
    elif not use_running_average:
        obstacle = f"{TRAINING}, got {use_running_average!r}"
    elif others:
        obstacle = f"it is called with {sorted(others)}"
    elif domain is not None:
        obstacle = "its statistics are of several domains; jaxbn.select_domain(model, domain) takes those of one"
    after = getattr(module, "activation", None) is not None or residual is not None
    return Call(
        path,
        True,
        obstacle,
        "its own activation or residual stands between" if after else None,
        epsilon=float(module.epsilon),
        kind="batch norm",
    )


EVALUATED = "it must be called with use_running_average=True"
TRAINING = f"it normalizes with the statistics of the batch: {EVALUATED}"
UNDECIDED = f"the program decides which statistics it normalizes with: {EVALUATED}"


def check_evaluation(calls: Iterable[Call]) -> None:
    """Checks that at least one of the batch norms among the calls normalizes with its running statistics for certain.

    Raises:
      ValueError: none does.
    """
    norms = [call for call in calls if call.is_batch_norm]
    if norms and all((call.obstacle or "").startswith((TRAINING, UNDECIDED)) for call in norms):
        raise ValueError(
            f"Folding is about evaluation: {norms[0].path}: {norms[0].obstacle}; give `fold` the arguments with which "
            "the model evaluates (train=False, say)."
        )


def describe_dense(path: str, module, x: jax.Array, *others, **options) -> Call:
    """A dense layer."""
    return Call(path, False, None, _no_bias(module), kind="dense")


def describe_dense_general(path: str, module, x: jax.Array, *others, **options) -> Call:
    """A dense layer over several axes, such as the projections of attention: kernel [*axes, *features]."""
    axes = _axes(module.axis, x.ndim)
    features = getattr(module, "out_features", None) or getattr(module, "features", ())
    num_out = 1 if isinstance(features, int) else len(features)
    batch = module.batch_dims if hasattr(module, "batch_dims") else module.batch_axis  # in linen it may be 0, an axis
    after, in_axis = None, -2
    if isinstance(batch, int) or batch:
        after = "it has other weights for each part of the batch"
    elif x.ndim - 1 not in axes:
        after = "it does not sum over the features of its input"
    else:
        in_axis = axes.index(x.ndim - 1) - len(axes) - num_out
    return Call(path, False, None, after or _no_bias(module), in_axis=in_axis, num_out_axes=num_out, kind="dense")


def describe_einsum(path: str, module, x: jax.Array, einsum_str: str | None = None, *others, **options) -> Call:
    """A product with a kernel of any axes: it absorbs a batch norm only if that comes after it."""
    subscripts = (einsum_str or module.einsum_str).replace(" ", "")
    inputs, _, output = subscripts.partition("->")
    of_x, _, of_kernel = inputs.partition(",")
    obstacle = None
    if not output or output[-1] not in of_kernel or output[-1] in of_x or "." in of_kernel:
        obstacle = f"the last axis of its output is no axis of its kernel alone ({subscripts})"
    out_axis = of_kernel.find(output[-1:]) - len(of_kernel)
    return Call(path, False, obstacle, "an einsum has no bias that could take up the mean", out_axis=out_axis)


def describe_conv(path: str, module, x: jax.Array, *others, **options) -> Call:
    """A convolution: a batch norm before it needs padding that copies values, or none."""
    rank = len(_tuple(module.kernel_size, 1))
    obstacle = None
    if _pads_with_zeros(module, x.shape[-rank - 1 : -1]):
        obstacle = (
            f"it pads its input with zeros (padding {module.padding!r}), which are no zeros before the batch norm"
        )
    elif _tuple(module.input_dilation, rank) != (1,) * rank:
        obstacle = "it puts zeros between its inputs (input_dilation)"
    elif module.mask is not None:
        obstacle = "its kernel is masked"
    obstacle = obstacle or _no_bias(module)
    return Call(path, False, None, obstacle, groups=module.feature_group_count, kind="convolution")


def describe_conv_transpose(path: str, module, x: jax.Array, *others, **options) -> Call:
    """A transposed convolution: it absorbs a batch norm only if that comes after it."""
    obstacle = "a transposed convolution puts zeros around its input"
    out_axis = -2 if module.transpose_kernel else -1
    return Call(path, False, None, obstacle, out_axis=out_axis, kind="transposed convolution")


def _pads_with_zeros(module, spatial: tuple[int, ...]) -> bool:
    rank = len(spatial)
    padding = module.padding
    dilation = _tuple(module.kernel_dilation, rank)
    window = [(k - 1) * d + 1 for k, d in zip(_tuple(module.kernel_size, rank), dilation, strict=True)]
    if padding in ("CIRCULAR", "REFLECT"):
        return False
    if padding == "CAUSAL":
        return window != [1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(spatial, window, _tuple(module.strides, rank), padding)
    return any(jax.tree.leaves(padding))


def _no_bias(module) -> str | None:
    return None if module.use_bias else "it has no bias to take up the mean"


def _axes(axis, ndim: int) -> list[int]:
    return [a % ndim for a in ((axis,) if isinstance(axis, int) else axis)]


def _tuple(value, rank: int) -> tuple[int, ...]:
    value = 1 if value is None else value
    return (value,) * rank if isinstance(value, int) else tuple(value)
