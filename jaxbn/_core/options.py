"""The options of a batch norm: named and given a default once, checked once, then one static value and one pytree."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import jax

from jaxbn._core import checks, rules
from jaxbn._core.activations import check_activation
from jaxbn._core.axes import expand_mask, feature_axes
from jaxbn._core.normalize import Affine, Inputs
from jaxbn._core.numbers import accumulator, promote
from jaxbn._core.renorm import Renorm
from jaxbn._core.types import Activation, Axes, AxisIndexGroups, AxisName, BatchStats, Domain, Momentum, Reduction
from jaxbn._sync.mapped_axes import check_axis_name, check_groups


class NormalizeOptions(TypedDict, total=False):
    """How to normalize with given statistics; see `jaxbn.normalize`."""

    axis: Axes
    epsilon: float
    dtype: Any
    activation: Activation | None
    residual: jax.typing.ArrayLike | None


class BatchOptions(TypedDict, total=False):
    """What a batch is; see `jaxbn.batch_moments`."""

    axis: Axes
    mask: jax.typing.ArrayLike | None
    axis_name: AxisName | None
    axis_index_groups: AxisIndexGroups | None
    use_fast_variance: bool


class TrainOptions(NormalizeOptions, BatchOptions, total=False):
    """How to normalize with the statistics of the batch; see `jaxbn.normalize_batch`."""

    virtual_batch_size: int | None
    renorm: Renorm | None
    domain: Domain | None


class Options(TrainOptions, total=False):
    """How to normalize, and how to move the running statistics; see `jaxbn.batch_norm`."""

    momentum: Momentum
    unbiased: bool


DEFAULTS: dict[str, Any] = {
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 1e-5,
    "dtype": None,
    "mask": None,
    "axis_name": None,
    "axis_index_groups": None,
    "virtual_batch_size": None,
    "renorm": None,
    "domain": None,
    "use_fast_variance": True,
    "unbiased": False,
    "activation": None,
    "residual": None,
}


OF_CALL = ("dtype", "mask", "residual", "domain")
"""What a module is given in its call, or decides in it; the other options are its fields."""


def fields_of(module: Any) -> Options:
    """The options that are fields of a module."""
    return {name: getattr(module, name) for name in DEFAULTS if name not in OF_CALL}  # pyright: ignore[reportReturnType]


Function = TypeVar("Function", bound=Callable)


def takes(options: type) -> Callable[[Function], Function]:
    """For a function of `**options`: its signature shows each with its default, and it accepts no other name."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    types = typing.get_type_hints(options)
    known = [inspect.Parameter(n, keyword, default=v, annotation=types[n]) for n, v in DEFAULTS.items() if n in types]

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        own = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = inspect.signature(function).replace(parameters=[*own, *known])

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            for name in kwargs:
                if name not in signature.parameters:
                    raise TypeError(
                        f"{function.__name__}() takes the options {', '.join(p.name for p in known)}, got an unknown "
                        f"one, `{name}`."
                    )
            return function(*args, **kwargs)

        wrapped.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        return cast(Function, wrapped)

    return decorate


class Static(NamedTuple):
    """What decides which program is traced."""

    affine: Affine
    reduction: Reduction
    chunk: int | None
    """virtual_batch_size"""
    momentum: float | Callable[[jax.Array], jax.typing.ArrayLike] | None
    """a number, None or a callable; `Arrays.momentum` comes first"""
    unbiased: bool
    renorm: Renorm | None


class Arrays(NamedTuple):
    """What flows through it."""

    scale: jax.Array | None
    bias: jax.Array | None
    batch_stats: BatchStats
    inputs: Inputs
    momentum: jax.Array | None
    frozen: jax.Array | None = None
    """[] bool: whether the running statistics normalize and stay, where the program decides it"""
    domain: jax.Array | None = None
    """[] int32, or [K] for K parts of the batch: the row of `batch_stats` [D, C], and of what else is [D, C]"""


def check(params, batch_stats, x, options: TrainOptions, *, training: bool) -> tuple[Static, Arrays]:
    """The options of a call as a static value and arrays, everything checked: the same in evaluation as in training.

    But for one thing: an axis name that no mapping binds is an error in training alone, for evaluation does not use it.
    """
    reduction, x, mask = check_batch(x, options, bound=training)
    get = {**DEFAULTS, **options}.__getitem__
    domains = get("domain") is not None
    batch_stats = rules.check_batch_stats(batch_stats, x, reduction.axes, domains=domains)
    if training:
        rules.warn_of_half_precision(batch_stats)
    num_domains = len(batch_stats["mean"]) if domains else None
    domain = rules.check_domain(get("domain"), num_domains, x, reduction.axes)
    num_parts = 1 if domain is None or not domain.ndim else len(domain)
    mean = () if training else (batch_stats["mean"],)
    affine, scale, bias, inputs = check_affine(params, x, mean, reduction.axes, options, num_domains)
    momentum = rules.check_momentum(get("momentum"), batch_stats)
    checks.check_static_bool(get("unbiased"), "unbiased")
    is_array = isinstance(momentum, jax.Array)
    static = Static(
        affine,
        reduction,
        rules.check_virtual_batch_size(get("virtual_batch_size"), reduction.names, x, reduction.axes, num_parts),
        None if is_array else momentum,
        bool(get("unbiased")),
        _check_renorm(get("renorm"), batch_stats),
    )
    inputs = inputs._replace(mask=mask)
    return static, Arrays(scale, bias, batch_stats, inputs, momentum if is_array else None, domain=domain)


def _check_renorm(renorm, batch_stats: BatchStats) -> Renorm | None:
    if renorm is not None and not isinstance(renorm, Renorm):
        raise TypeError(f"`renorm` must be None or a jaxbn.Renorm(r_max, d_max), got {renorm!r}.")
    if renorm is not None and renorm.counts and "count" not in batch_stats:
        raise ValueError(
            "`renorm` with a schedule of the count needs batch_stats['count']; jaxbn.init(..., use_count=True) makes "
            f"one. Got {sorted(batch_stats)}."
        )
    return renorm


def check_batch(x, options: BatchOptions, *, bound: bool = True) -> tuple[Reduction, jax.Array, jax.Array | None]:
    """Over what the moments are taken, x, and the mask in the rank of x."""
    get = {**DEFAULTS, **options}.__getitem__
    x = rules.check_input(x)
    axes = feature_axes(get("axis"), x.ndim)
    names = check_axis_name(get("axis_name"), bound=bound)
    checks.check_static_bool(get("use_fast_variance"), "use_fast_variance")
    groups = check_groups(get("axis_index_groups"), names, bound=bound)
    mask = rules.check_mask(get("mask"), x)
    mask = None if mask is None else expand_mask(mask, x.ndim)
    return Reduction(axes, names, groups, not get("use_fast_variance")), x, mask


def check_affine(params, x: jax.Array, also: tuple[jax.Array, ...], axes, options: NormalizeOptions, num_domains=None):
    """How to normalize, the scale and bias in the dtype of the computation, and x with its residual.

    `also` holds what else decides the dtype of the result.
    """
    get = {**DEFAULTS, **options}.__getitem__
    scale, bias = rules.check_params(params, x, axes, num_domains)
    dtype = rules.check_output_dtype(get("dtype"), x, scale, bias, *also)
    wide = promote(accumulator(x.dtype), dtype)
    scale, bias = (None if v is None else v.astype(wide) for v in (scale, bias))
    affine = Affine(axes, checks.check_epsilon(get("epsilon")), dtype, check_activation(get("activation"), dtype))
    return affine, scale, bias, Inputs(x, None, rules.check_residual(get("residual"), x, dtype))
