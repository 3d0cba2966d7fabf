"""What folding needs to know of a layer, read off its fields: those of linen and nnx have the same names."""

import jax
from jax import lax

from jaxbn._core.axes import feature_axes
from jaxbn._tools.folding.flow import Call


def describe_batch_norm(path: str, module, x: jax.Array, use_running_average=None, *, mask=None, residual=None) -> Call:
    """A batch norm and the arguments that it is called with.

    Raises:
      ValueError: it normalizes with the statistics of the batch.
    """
    if use_running_average is None:
        use_running_average = module.use_running_average
    if not use_running_average:
        raise ValueError(
            f"Folding is about evaluation: the batch norm {path!r} must be called with use_running_average=True, got "
            f"{use_running_average!r}; give `fold` the arguments with which the model evaluates (train=False, say)."
        )
    last = feature_axes(module.axis, x.ndim) == (x.ndim - 1,)
    after = getattr(module, "activation", None) is not None or residual is not None
    return Call(
        path,
        True,
        None if last else f"its feature axis is {module.axis} and not the last",
        "its own activation or residual stands between" if after else None,
        epsilon=module.epsilon,
    )


def describe_dense(path: str, module, x: jax.Array) -> Call:
    """A dense layer."""
    return Call(path, False, None, _no_bias(module))


def describe_conv(path: str, module, x: jax.Array) -> Call:
    """A convolution: a batch norm before it needs padding that copies, or none."""
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
    return Call(path, False, None, obstacle or _no_bias(module), groups=module.feature_group_count)


def describe_conv_transpose(path: str, module, x: jax.Array) -> Call:
    """A transposed convolution: it takes a batch norm from after it only."""
    obstacle = "a transposed convolution puts zeros around its input"
    return Call(path, False, None, obstacle, out_axis=-2 if module.transpose_kernel else -1)


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


def _tuple(value, rank: int) -> tuple[int, ...]:
    value = 1 if value is None else value
    return (value,) * rank if isinstance(value, int) else tuple(value)
