"""The fields of a batch norm in Flax or jaxbn, and the arguments in PyTorch and Keras that mean the same."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxbn._core import checks

PYTORCH: Mapping[str, Any] = MappingProxyType({"momentum": 0.9, "epsilon": 1e-5, "unbiased": True})
"""The fields of a batch norm that behaves like `torch.nn.BatchNorm2d()`."""
KERAS: Mapping[str, Any] = MappingProxyType({"momentum": 0.99, "epsilon": 1e-3, "unbiased": False})
"""The fields of a batch norm that behaves like `keras.layers.BatchNormalization()`."""


def from_torch_options(momentum: float | None = 0.1, eps: float = 1e-5, affine: bool = True) -> dict[str, Any]:
    """The fields of a batch norm that behaves like `torch.nn.BatchNorm2d(momentum=..., eps=..., affine=...)`.

    Raises:
      ValueError, TypeError: `torch.nn.BatchNorm2d` does not accept an argument.

    Example:
      >>> from jaxbn import interop
      >>> interop.from_torch_options(momentum=0.03)["momentum"]
      0.97
    """
    checks.check_static_bool(affine, "affine")
    eps = checks.check_epsilon(eps, "eps")
    return {"momentum": _one_minus(momentum), "epsilon": eps, "unbiased": True, "use_scale": affine, "use_bias": affine}


def to_torch_options(
    momentum: float | None = 0.99,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
) -> dict[str, Any]:
    """The arguments of `torch.nn.BatchNorm2d` for a batch norm with these fields.

    Raises:
      ValueError: PyTorch has no such batch norm: it always divides by n - 1, and has both scale and bias or neither.
      TypeError: an argument has the wrong type.

    Example:
      >>> from jaxbn import interop
      >>> interop.to_torch_options(**interop.PYTORCH)
      {'momentum': 0.1, 'eps': 1e-05, 'affine': True}
    """
    for name, value in (("unbiased", unbiased), ("use_scale", use_scale), ("use_bias", use_bias)):
        checks.check_static_bool(value, name)
    if not unbiased:
        raise ValueError("`unbiased` must be True: the running variance of PyTorch is divided by n - 1, got False.")
    if use_scale != use_bias:
        raise ValueError(
            f"`use_scale` and `use_bias` must be equal: PyTorch has both or neither, got {use_scale} and {use_bias}."
        )
    if callable(momentum):
        raise ValueError(f"`momentum` must be a number or None: PyTorch has no schedule of it, got {momentum!r}.")
    return {"momentum": _one_minus(momentum), "eps": checks.check_epsilon(epsilon), "affine": use_scale}


def _one_minus(momentum: float | None) -> float | None:
    """The weight of the new value from that of the old one, or the other way round."""
    if momentum is None:
        return None
    number = checks.check_number(momentum, "momentum")
    if not 0 <= number <= 1:
        raise ValueError(f"`momentum` must be in [0, 1] or None, got {momentum!r}.")
    return round(1 - number, 15)
