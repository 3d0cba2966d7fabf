"""What JAX calls differently in the versions that jaxbn runs on, the newest name first."""

import jax
from jax import lax


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The axes of the `jax.shard_map` around us along which `x` may differ between devices; empty without its check."""
    aval = jax.typeof(x)
    if hasattr(aval, "manual_axis_type"):
        return frozenset(aval.manual_axis_type.varying)
    return frozenset(aval.vma)  # jax 0.8 and 0.9


def as_varying(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Marks `x` as different between the devices along `names`, along which it was the same."""
    if hasattr(lax, "pcast"):
        return lax.pcast(x, names, to="varying")
    return lax.pvary(x, names)  # jax 0.8.0  # pyright: ignore[reportAttributeAccessIssue]
