"""From one set of running statistics to one for each domain, and back."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxbn._core.checks import check_integer, check_static_bool
from jaxbn._models.find import Found, find_batch_norms, is_nnx
from jaxbn._models.tree import Path, get_at, path_name, set_at

Model = TypeVar("Model")


def add_domains(
    model: Model,
    num_domains: int,
    *,
    affine_per_domain: bool = False,
    layers: str | Sequence[str] = "*",
    num_feature_axes: int = 1,
) -> Model:
    """Gives the batch norms of a trained model statistics of D domains, all equal at first to those that it has.

    The result belongs to a model whose batch norms have the same `num_domains` and `affine_per_domain`, or to functions
    that pass `domain`.

    Args:
      model: variables {'params': ..., 'batch_stats': ...}, an nnx module or its `nnx.State`. It is not changed.
      num_domains: D, at least 1.
      affine_per_domain: whether scale and bias become [D, C] too; otherwise the domains share them.
      layers: which batch norms: a pattern, or several, for paths such as 'encoder/0/bn'; `*` matches any characters.
      num_feature_axes: of the statistics; the axes before these are those of stacked layers.

    Returns:
      Variables, a module or a state as it came, with means, variances and counts [D, C]; of stacked layers [L, D, C].
      In a copy of an nnx module, the batch norms of jaxbn have their fields set.

    Raises:
      ValueError: no batch norm has such a path; one of an nnx module has domains already, or is Flax's own; or
        `num_domains` is not positive.
      TypeError: an argument is not of the types above.

    Example:
      >>> import jaxbn
      >>> params, batch_stats = jaxbn.init(3)
      >>> variables = jaxbn.add_domains({"params": params, "batch_stats": batch_stats}, 2)
      >>> variables["batch_stats"]["mean"].shape, variables["params"]["scale"].shape
      ((2, 3), (3,))
    """
    check_integer(num_domains, "num_domains", 1)
    check_static_bool(affine_per_domain, "affine_per_domain")
    num_features = check_integer(num_feature_axes, "num_feature_axes", 1)

    def with_rows(v):
        axis = v.ndim - num_features
        return jnp.repeat(jnp.expand_dims(v, axis), num_domains, axis)

    def change(found: Found) -> Found:
        mean, stats = found.batch_stats["mean"], dict(found.batch_stats)
        if "count" in stats:  # of old, one for all channels
            count = jnp.asarray(stats["count"])
            stats["count"] = jnp.broadcast_to(count.reshape(count.shape + (1,) * (mean.ndim - count.ndim)), mean.shape)
        return Found(jax.tree.map(with_rows, found.params) if affine_per_domain else {}, jax.tree.map(with_rows, stats))

    chosen = _chosen(model, layers)
    for path, module in _modules(model).items():
        if path in chosen and getattr(module, "num_domains", 0) is not None:
            raise ValueError(
                "`model` must have batch norms of jaxbn that do not have `num_domains` yet, or `layers` leave the "
                f"others out, got {type(module).__module__}.{type(module).__name__} at {path_name(path)}."
            )
    for path, found in chosen.items():
        shape = jnp.shape(found.batch_stats["mean"])
        if len(shape) < num_features:
            raise ValueError(
                f"`num_feature_axes` must be at most the rank of the statistics, got {num_features} for {list(shape)} "
                f"at {path_name(path)}."
            )
    return _changed(model, chosen, change, num_features, (num_domains, affine_per_domain))


def select_domain(model: Model, domain: int, *, layers: str | Sequence[str] = "*", num_feature_axes: int = 1) -> Model:
    """The model of one domain: what `add_domains` adds taken away, to evaluate, fold or export it.

    Args:
      model: variables {'params': ..., 'batch_stats': ...}, an nnx module or its `nnx.State`. It is not changed.
      domain: in [0, D).
      layers: which batch norms: a pattern, or several, for paths such as 'encoder/0/bn'; `*` matches any characters.
        Those whose statistics have no axis of domains stay as they are. Statistics of stacked layers without domains
        look alike in variables, [L, C], and must be left out.
      num_feature_axes: of the statistics; the axis before these is that of the domains.

    Returns:
      Variables, a module or a state as it came, with statistics [C]. In a copy of an nnx module, the batch norms of
      jaxbn have no `num_domains`.

    Raises:
      ValueError: no batch norm with such a path has domains; those that have do not have the same number; or `domain`
        is out of range.
      TypeError: an argument is not of the types above.

    Example:
      >>> import jaxbn
      >>> params, batch_stats = jaxbn.init(3, num_domains=2, affine_per_domain=True)
      >>> variables = jaxbn.select_domain({"params": params, "batch_stats": batch_stats}, 1)
      >>> variables["batch_stats"]["mean"].shape, variables["params"]["scale"].shape
      ((3,), (3,))
    """
    num_features = check_integer(num_feature_axes, "num_feature_axes", 1)
    without = {path for path, module in _modules(model).items() if getattr(module, "num_domains", None) is None}
    chosen = {
        path: f
        for path, f in _chosen(model, layers).items()
        if f.batch_stats["mean"].ndim > num_features and path not in without
    }
    numbers = {path_name(path): f.batch_stats["mean"].shape[-num_features - 1] for path, f in chosen.items()}
    if len(set(numbers.values())) != 1:
        raise ValueError(
            "`layers` must name batch norms with statistics [D, C] of the same number of domains, got "
            f"{numbers or f'none in {layers!r}'}."
        )
    num_domains = next(iter(numbers.values()))
    if check_integer(domain, "domain", 0) >= num_domains:
        raise ValueError(f"`domain` must be an integer in [0, {num_domains}), got {domain!r}.")

    def change(found: Found) -> Found:
        mean = found.batch_stats["mean"]

        def row(v):
            return jnp.take(jnp.asarray(v), int(domain), mean.ndim - num_features - 1) if v.ndim == mean.ndim else v

        return jax.tree.map(row, found)

    return _changed(model, chosen, change, num_features, (None, False))


def _chosen(model: Any, layers: str | Sequence[str]) -> dict[Path, Found]:
    """The batch norms whose paths match."""
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"`layers` must be a pattern of paths, such as 'encoder/*', or several, got {layers!r}.")
    found = find_batch_norms(model)
    chosen = {path: f for path, f in found.items() if any(fnmatchcase(path_name(path), p) for p in patterns)}
    if not chosen:
        raise ValueError(f"`layers` must match a batch norm, {', '.join(map(path_name, found))}, got {layers!r}.")
    return chosen


def _modules(model: Any) -> dict[Any, Any]:
    """The batch norms of an nnx module, jaxbn's and Flax's; of variables or a state there are none."""
    if not is_nnx(model):
        return {}
    from flax import nnx

    modules = nnx.iter_modules(model) if isinstance(model, nnx.Module) else ()
    return {path: module for path, module in modules if isinstance(module, nnx.BatchNorm)}


def _changed(model: Any, chosen: dict[Path, Found], change: Callable[[Found], Found], num_features: int, fields) -> Any:
    """The model with other arrays in the places of some of its batch norms."""
    of_layers = {path: change(found) for path, found in chosen.items()}

    def names_after(names, old, new):
        """The mesh axes of an array's axes: that of the domains, which comes or goes, is not split."""
        names, fewer = list(names), min(old.ndim, new.ndim)
        axis = fewer - num_features
        names += [None] * (axis - len(names))
        names[axis : axis + old.ndim - fewer] = [None] * (new.ndim - fewer)
        return tuple(names)

    if not is_nnx(model):
        for path, found in of_layers.items():
            for collection, arrays in found._asdict().items():
                layer = get_at(model, (collection, *path), {})
                for name, new in arrays.items():
                    box = layer[name]
                    if hasattr(box, "names"):
                        box = box.replace(names=names_after(box.names, box.unbox(), new))
                    new = box.replace_boxed(new) if hasattr(box, "replace_boxed") else new
                    layer = type(layer)({**layer, name: new})
                if arrays:
                    model = set_at(model, (collection, *path), layer)
        return model
    from flax import nnx

    from jaxbn.nnx import BatchNorm

    values = {
        (*path, name): value for path, found in of_layers.items() for arrays in found for name, value in arrays.items()
    }
    flat = dict(nnx.to_flat_state(model if isinstance(model, nnx.State) else nnx.state(model)))
    for path, value in values.items():
        variable = flat[path].replace(value)
        names = variable.get_metadata().get("out_sharding")
        if names:
            variable.set_metadata(out_sharding=names_after(names, flat[path].get_value(), value))
        flat[path] = variable
    if isinstance(model, nnx.State):
        return nnx.from_flat_state(flat)
    copy = nnx.clone(model)
    nnx.update(copy, nnx.from_flat_state(flat))
    for path, module in nnx.iter_modules(copy):
        if path in of_layers and isinstance(module, BatchNorm):
            module.num_domains, module.affine_per_domain = fields
    return copy
