"""`jaxbn.nnx.BatchNorm`: the drop-in for `flax.nnx.BatchNorm`."""

import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers
from flax.typing import Dtype, Initializer, PromoteDtypeFn
from jax.typing import ArrayLike

from jaxbn._core import checks, rules
from jaxbn._core.merge import Accumulated, zeros_of_layer
from jaxbn._core.numbers import as_complex_as
from jaxbn._core.options import fields_of
from jaxbn._core.renorm import Renorm, needs_count
from jaxbn._core.state import init
from jaxbn._core.step import step
from jaxbn._core.types import Activation, Axes, AxisIndexGroups, AxisName, Domain, Momentum
from jaxbn._tools import accumulate


class BatchMoments(nnx.BatchStat[jax.Array]):
    """The count, mean or variance, [C], of the microbatches of a step so far, on a layer that accumulates."""


class BatchNorm(nnx.BatchNorm):
    """Batch norm as a Flax NNX module, with every field, default and variable of `flax.nnx.BatchNorm`, and a few more.

    A subclass of Flax's, it keeps `scale` and `bias` [C] as `nnx.Param` and the running `mean` and `var` [C] as
    `nnx.BatchStat`, and follows `train()`, `eval()`, `nnx.view` and `nnx.set_attributes`.

    Where it differs from `flax.nnx.BatchNorm`:
      - Accuracy: the variance is taken about a pivot, in one pass too, and always in at least float32. Flax's default
        loses it where the mean is large (23 % at 1000 standard deviations).
      - `promote_dtype` at its default decides the dtype of the result and rounds nothing before it. Flax rounds the
        running mean and variance to a half-precision `dtype` before it normalizes with them, and drops the imaginary
        part of a complex running mean. A function of your own is applied to (x, mean, var, scale, bias), as in Flax.
      - Devices: masked batches merge by their counts; a device without any valid example changes nothing.
      - `mask` may hold weights. What it leaves out (NaN too) reaches no other output, no statistic and no gradient.
      - A channel that is not finite, or has no example, keeps its running statistics.
      - `num_features` may be a tuple, with several feature axes.
      - Errors: integer inputs, masks that do not broadcast, repeated axes, a wrong number of features, and
        `axis_index_groups` without `axis_name` each raise an error that says what is wrong.
      - Strict dtype promotion accepts half-precision inputs: all casts are explicit.

    Args:
      num_features: C; or one size for each feature axis, in the order of the axes.
      use_running_average: False in training, True in evaluation; that of the call takes precedence.
      axis: the feature axis or axes.
      momentum: weight of the old statistics, in [0, 1]; or `None` for the exact cumulative average, or a callable of
        the number of updates, which the module then counts in `count`, an `nnx.BatchStat` [C] int32.
      epsilon: added to the variance, >= 0, in the unit of the variance.
      dtype: dtype of the result. None means the promoted dtype of input, statistics, scale and bias, at least float32.
      param_dtype: dtype of scale and bias. If it is complex, so is the running mean.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: mapped axis or axes (of `vmap`, `pmap`, `shard_map`) that hold the rest of the batch.
      axis_index_groups: a partition of the indices of that axis; each group is a batch of its own.
      use_fast_variance: False reads the input once more: first the exact mean is taken, then the variance about it.
      promote_dtype: a function of (x, mean, var, scale, bias) and the keyword `dtype` that returns what is computed
        with.
      rngs: for the initializers; one key of the stream 'params' for the scale, then one for the bias.
      bias_metadata: metadata of the variable `bias`.
      scale_metadata: metadata of the variable `scale`.
      virtual_batch_size: consecutive chunks of that many examples are normalized separately.
      renorm: `jaxbn.Renorm(r_max, d_max)`, batch renormalization. With a limit that is a schedule, the updates are
        counted in `count` too.
      unbiased: whether the running variance is divided by `count - 1`, PyTorch's convention.
      activation: applied in the same pass: 'relu', 'leaky_relu', 'relu6', 'silu', 'gelu', 'tanh', 'sigmoid', or an
        elementwise callable.
      num_domains: D, for running statistics of D domains, [D, C] each. The call then says which, in `domain`.
      affine_per_domain: whether `scale` and `bias` are [D, C] as well.

    References:
      Ioffe & Szegedy 2015, "Batch normalization".

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxbn.nnx import BatchNorm
      >>> layer = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
      >>> layer(jnp.array([[0.0, 5.0], [2.0, 5.0]])).round(3).tolist()
      [[-1.0, 0.0], [1.0, 0.0]]
      >>> layer.mean[...].round(3).tolist()
      [0.10000000149011612, 0.5]
      >>> layer.eval()
      >>> abs(layer(jnp.array([[0.1, 0.5]]))).round(3).tolist()
      [[0.0, 0.0]]
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: Momentum = 0.99,
        epsilon: float = 1e-5,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = initializers.zeros_init(),  # noqa: B008 (Flax's default, a plain function)
        scale_init: Initializer = initializers.ones_init(),  # noqa: B008
        axis_name: AxisName | None = None,
        axis_index_groups: AxisIndexGroups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        virtual_batch_size: int | None = None,
        unbiased: bool = False,
        activation: Activation | None = None,
        renorm: Renorm | None = None,
        num_domains: int | None = None,
        affine_per_domain: bool = False,
    ) -> None:
        shape = num_features if isinstance(num_features, tuple) else (num_features,)
        given = types.SimpleNamespace(
            dtype=dtype, param_dtype=param_dtype, use_bias=use_bias, use_scale=use_scale, momentum=momentum,
            num_domains=num_domains, affine_per_domain=affine_per_domain,
        )  # fmt: skip
        rules.check_module(given)
        is_complex = jnp.issubdtype(param_dtype, jnp.complexfloating)
        _, batch_stats = init(
            shape, False, False, jnp.complex64 if is_complex else jnp.float32,
            use_count=needs_count(momentum, renorm), num_domains=num_domains,
        )  # fmt: skip
        if affine_per_domain:
            shape = batch_stats["mean"].shape
        self.mean: nnx.BatchStat[jax.Array] = nnx.BatchStat(batch_stats["mean"])
        self.var: nnx.BatchStat[jax.Array] = nnx.BatchStat(batch_stats["var"])
        self.count: nnx.BatchStat[jax.Array] | None = nnx.data(None)
        if "count" in batch_stats:
            self.count = nnx.BatchStat(batch_stats["count"])
        self.batch_moments: dict[str, BatchMoments] | None = nnx.data(None)
        self.scale: nnx.Param[jax.Array] | None = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata)
        self.bias: nnx.Param[jax.Array] | None = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.virtual_batch_size = virtual_batch_size
        self.unbiased = unbiased
        self.activation = activation
        self.renorm = renorm
        self.num_domains = num_domains
        self.affine_per_domain = affine_per_domain

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | jax.Array | None = None,
        *,
        mask: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        domain: Domain | None = None,
    ) -> jax.Array:
        """Normalizes `x` with the statistics of the batch, or with the running ones.

        Args:
          x: [..., C] float or complex, the feature axis or axes anywhere.
          use_running_average: that of the module where None. A boolean array [], traced or not, leaves the choice to
            the program.
          mask: boolean (True counts) or non-negative weights, broadcasts to `x`.
          residual: of the shape of `x` and the dtype of the result, added before the activation.
          domain: in [0, num_domains), an integer or an integer array [], traced or not; or a tuple of K different
            integers, known at trace time, for a batch of K equal parts; with `axis_name`, for what each device holds.
            Needed where there are `num_domains`.

        Returns:
          [..., C], of the shape of `x`.

        Raises:
          ValueError, TypeError: an argument breaks a rule of `jaxbn.batch_norm`, or `use_running_average` is None in
            both places.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "No `use_running_average` argument was provided to BatchNorm: pass it to the constructor or to the "
                "call, or set it with nnx.view(model, use_running_average=...)."
            )
        training = checks.check_choice(use_running_average, "use_running_average") is not True
        rules.check_domain_of_module(self, domain)
        x = rules.check_input(x)
        x, batch_stats, params, dtype = self._promote(x, training)
        options = fields_of(self) | {"dtype": dtype, "mask": mask, "residual": residual, "domain": domain}
        collected = self.batch_moments if training else None
        so_far = None if collected is None else _values(collected)
        y, so_far, batch_stats = step(
            params, batch_stats, x, options, use_running_average=use_running_average, batch_moments=so_far
        )
        if training:
            for name, value in (batch_stats if so_far is None else so_far._asdict()).items():
                _assign(getattr(self, name) if collected is None else collected[name], value)
        return y

    def _promote(self, x: jax.Array, training: bool):
        """x, the running statistics, the parameters, and the dtype of the result."""
        stats = _batch_stats(self, x)
        mean, var = self.mean[...], self.var[...]
        scale, bias = (None if v is None else v[...] for v in (self.scale, self.bias))
        inputs = (x, mean, var, scale, bias)
        if self.promote_dtype is not dtypes.promote_dtype:
            x, mean, var, scale, bias = self.promote_dtype(inputs, dtype=self.dtype)
            inputs = (x, scale, bias)
            if not training:
                stats |= {"mean": as_complex_as(x, mean), "var": var}
        with jax.numpy_dtype_promotion("standard"):
            dtype = dtypes.canonicalize_dtype(*inputs, dtype=self.dtype)
        params = {name: value for name, value in (("scale", scale), ("bias", bias)) if value is not None}
        return x, stats, params, dtype


def _assign(variable: nnx.Variable, value: jax.Array) -> None:
    value = jax.lax.stop_gradient(value)
    if variable[...].dtype == value.dtype:
        variable[...] = value
    else:  # the first complex mean, which the line above would cast to real
        variable.set_value(value)


def _values(batch_moments: dict[str, BatchMoments]) -> Accumulated:
    return Accumulated(**{name: variable[...] for name, variable in batch_moments.items()})


def zero_moments(model: nnx.Module) -> None:
    """Begins a step of several microbatches: from here on the batch norms of `model` collect moments.

    Each `jaxbn.nnx.BatchNorm` gets `batch_moments`, a `count`, `mean` and `var` of no example, of the type
    `BatchMoments`, an `nnx.BatchStat`. While they are there, training merges the moments of each batch into them and
    leaves the running statistics alone, until `commit_moments`. So does a module of your own that has `mean` and `var`,
    both `nnx.BatchStat`, and a `momentum`, if it calls `jaxbn.report_moments`.

    Args:
      model: a module with at least one `jaxbn.nnx.BatchNorm`, or module of your own as above, at any depth.

    Raises:
      ValueError: there is none.
    """
    for layer in _layers(model):
        zeros = zeros_of_layer(layer.mean[...])._asdict()
        layer.batch_moments = nnx.data({name: BatchMoments(value) for name, value in zeros.items()})


def commit_moments(model: nnx.Module) -> None:
    """Ends the step: moves the running statistics of each batch norm once, and removes its `batch_moments`.

    Each layer uses its own `momentum` and, if it has one, `unbiased`. Both functions may stand inside `nnx.jit`.

    Args:
      model: the module that was given to `zero_moments`.

    Raises:
      ValueError: `zero_moments(model)` did not come before.

    Example:
      >>> import jax.numpy as jnp, jaxbn.nnx
      >>> from flax import nnx
      >>> model = jaxbn.nnx.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
      >>> jaxbn.nnx.zero_moments(model)
      >>> for x in jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]]):
      ...     y = model(x)
      >>> jaxbn.nnx.commit_moments(model)
      >>> model.mean[...].tolist(), model.var[...].tolist()
      ([2.0], [3.0])
    """
    for layer in _layers(model):
        if getattr(layer, "batch_moments", None) is None:
            raise ValueError(
                "`commit_moments` ends what `jaxbn.nnx.zero_moments(model)` begins, got a model without moments."
            )
        moments = _values(layer.batch_moments)
        new = accumulate.commit_moments(
            _batch_stats(layer, moments.mean), moments._asdict(),
            momentum=layer.momentum, unbiased=getattr(layer, "unbiased", False),
        )  # fmt: skip
        for name, value in new.items():
            _assign(getattr(layer, name), value)
        if isinstance(layer, BatchNorm):
            layer.batch_moments = None
        else:  # a module of one's own is again what it was
            del layer.batch_moments


def _batch_stats(layer: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The running statistics as they are kept, the mean complex where x is."""
    stats = {"mean": as_complex_as(x, layer.mean[...]), "var": layer.var[...]}
    count = getattr(layer, "count", None)
    return stats if count is None else stats | {"count": count[...]}


def _layers(model: nnx.Module) -> list[Any]:
    def accumulates(module: Any) -> bool:
        if isinstance(module, nnx.BatchNorm):
            return isinstance(module, BatchNorm)
        keeps = all(isinstance(getattr(module, name, None), nnx.BatchStat) for name in ("mean", "var"))
        return keeps and hasattr(module, "momentum")

    layers = [module for _, module in nnx.iter_modules(model) if accumulates(module)]
    if not layers:
        raise ValueError(f"`model` must have a jaxbn.nnx.BatchNorm, got a {type(model).__name__} without one.")
    return layers
