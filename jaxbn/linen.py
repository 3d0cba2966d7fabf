"""`jaxbn.linen.BatchNorm`: the drop-in for `flax.linen.BatchNorm`."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxbn._core import checks, rules
from jaxbn._core.axes import feature_axes, feature_shape
from jaxbn._core.merge import Accumulated, zeros_of_layer
from jaxbn._core.numbers import as_complex_as, promote, real_dtype
from jaxbn._core.options import fields_of
from jaxbn._core.renorm import Renorm, needs_count
from jaxbn._core.step import step
from jaxbn._core.types import Activation, Axes, AxisIndexGroups, AxisName, Domain, Momentum
from jaxbn._models.linen_scopes import check_moments_reach


class BatchNorm(nn.Module):
    """Batch norm as a Flax module, with every field, default and variable of `flax.linen.BatchNorm`, and a few more.

    Like Flax's it keeps `scale` and `bias` [C] in the collection 'params' and the running `mean` and `var` [C] in
    'batch_stats', so that checkpoints of either load into the other; training applies it with
    `mutable=['batch_stats']`. Initialization leaves the statistics at 0 and 1 and needs no `axis_name`.

    Where it differs from `flax.linen.BatchNorm`:
      - Accuracy: the variance is taken about a pivot, in one pass too, and always in at least float32. Flax's default
        loses it where the mean is large (23 % at 1000 standard deviations), and `force_float32_reductions=False` sums
        in half precision; here the field decides the dtype of the running statistics and nothing else.
      - Devices: masked batches merge by their counts; a device without any valid example changes nothing.
      - `mask` may hold weights. What it leaves out (NaN too) reaches no other output, no statistic and no gradient.
      - State: a channel that is not finite, or has no example, keeps its running statistics, and they keep their dtype
        (Flax's become float64 under a float64 input). For complex inputs the running mean is complex from the start.
      - Errors: integer inputs, masks that do not broadcast, repeated axes, missing `batch_stats`, which Flax silently
        starts anew, and `axis_index_groups` without `axis_name` each raise an error that says what is wrong.
      - Strict dtype promotion accepts half-precision inputs: all casts are explicit.

    Gradient accumulation: if `apply` receives a mutable collection 'batch_moments', or may write that collection but
    not 'batch_stats', the layer merges the moments of its batch into it and leaves 'batch_stats' alone.
    `jaxbn.zero_moments` starts such a collection, and `jaxbn.commit_moments` moves the statistics once per step.

    Args:
      use_running_average: False in training, True in evaluation; here or in the call.
      axis: the feature axis or axes.
      momentum: weight of the old statistics, in [0, 1]; or `None` for the exact cumulative average, or a callable of
        the number of updates, which 'batch_stats' then counts in `count` [C] int32.
      epsilon: added to the variance, >= 0, in the unit of the variance.
      dtype: dtype of the result. None means the promoted dtype of input, scale and bias: bfloat16 with float32
        parameters gives float32, as in Flax.
      param_dtype: dtype of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias; may be partitioned (`nn.with_partitioning`).
      scale_init: initializer of the scale; may be partitioned too.
      axis_name: mapped axis or axes (of `vmap`, `pmap`, `shard_map`) that hold the rest of the batch.
      axis_index_groups: a partition of the indices of that axis; each group is a batch of its own.
      use_fast_variance: False reads the input once more: first the exact mean is taken, then the variance about it.
      force_float32_reductions: False keeps the running statistics in `param_dtype` instead of float32.
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
      >>> import jax, jax.numpy as jnp
      >>> from jaxbn.linen import BatchNorm
      >>> model = BatchNorm(momentum=0.9)
      >>> x = jnp.array([[0.0, 5.0], [2.0, 5.0]])
      >>> variables = model.init(jax.random.key(0), x, use_running_average=False)
      >>> y, updates = model.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
      >>> y.round(3).tolist(), updates["batch_stats"]["mean"].round(3).tolist()
      ([[-1.0, 0.0], [1.0, 0.0]], [0.10000000149011612, 0.5])
      >>> model.apply(variables | updates, x, use_running_average=True).shape
      (2, 2)
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: Momentum = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: AxisIndexGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    virtual_batch_size: int | None = None
    unbiased: bool = False
    activation: Activation | None = None
    renorm: Renorm | None = None
    num_domains: int | None = None
    affine_per_domain: bool = False

    @nn.compact
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
          use_running_average: as the field; exactly one of the two is given. A boolean array [], traced or not, leaves
            the choice to the program.
          mask: boolean (True counts) or non-negative weights, broadcasts to `x`.
          residual: of the shape of `x` and the dtype of the result, added before the activation.
          domain: in [0, num_domains), an integer or an integer array [], traced or not; or a tuple of K different
            integers, known at trace time, for a batch of K equal parts; with `axis_name`, for what each device holds.
            Needed where there are `num_domains`.

        Returns:
          [..., C], of the shape of `x`.

        Raises:
          ValueError, TypeError: an argument breaks a rule of `jaxbn.batch_norm`, or `batch_stats` is missing.
        """
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        training = checks.check_choice(use_running_average, "use_running_average") is not True
        rules.check_module(self)
        rules.check_domain_of_module(self, domain)
        x = rules.check_input(x)
        variables = self._batch_stats(x)
        batch_stats = {name: variable.value for name, variable in variables.items()}
        batch_stats["mean"] = as_complex_as(x, batch_stats["mean"])
        shape = batch_stats["mean"].shape
        is_shared = self.num_domains is not None and not self.affine_per_domain
        params = self._params(shape[1:] if is_shared else shape)
        with jax.numpy_dtype_promotion("standard"):
            dtype = canonicalize_dtype(x, *params.values(), dtype=self.dtype)
        options = fields_of(self) | {"dtype": dtype, "mask": mask, "residual": residual, "domain": domain}
        if self.is_initializing():  # nothing is mapped yet, and the statistics stay
            options |= {"axis_name": None, "axis_index_groups": None, "virtual_batch_size": None}
            options |= {"domain": domain[0] if isinstance(domain, tuple | list) and domain else domain}
        training = training and not self.is_initializing()
        moments = self._batch_moments(batch_stats["mean"]) if training and self._accumulates() else {}
        so_far = Accumulated(**{name: v.value for name, v in moments.items()}) if moments else None
        y, so_far, batch_stats = step(
            params, batch_stats, x, options, use_running_average=use_running_average, batch_moments=so_far
        )
        if training:
            if so_far is None:
                check_moments_reach(self)
            written = variables if so_far is None else moments
            for name, value in (batch_stats if so_far is None else so_far._asdict()).items():
                written[name].value = value
        return y

    @nn.nowrap
    def _params(self, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        first = {"scale": (self.use_scale, self.scale_init), "bias": (self.use_bias, self.bias_init)}
        params = {k: self.param(k, init, shape, self.param_dtype) for k, (used, init) in first.items() if used}
        return params if self.force_float32_reductions else {k: v.astype(self.param_dtype) for k, v in params.items()}

    @nn.nowrap
    def _batch_moments(self, mean: jax.Array) -> dict[str, nn.Variable]:
        """The variables 'count', 'mean' and 'var' of the microbatches so far, and what rounding has dropped."""
        zeros = zeros_of_layer(mean)._asdict()
        return {name: self.variable("batch_moments", name, lambda zero=zero: zero) for name, zero in zeros.items()}

    @nn.nowrap
    def _batch_stats(self, x: jax.Array) -> dict[str, nn.Variable]:
        """The variables 'mean', 'var' and, where the average needs it, 'count'; only initialization creates them."""
        shape, is_complex = feature_shape(x, feature_axes(self.axis, x.ndim)), jnp.iscomplexobj(x)
        shape = shape if self.num_domains is None else (self.num_domains, *shape)
        dtype = jnp.dtype(jnp.float32 if self.force_float32_reductions else self.param_dtype)
        first = {
            "mean": lambda: jnp.zeros(shape, promote(dtype, jnp.complex64) if is_complex else dtype),
            "var": lambda: jnp.ones(shape, real_dtype(dtype)),
        }
        if needs_count(self.momentum, self.renorm):
            first["count"] = lambda: jnp.zeros(shape, jnp.int32)
        if not self.is_initializing():
            missing = [name for name in first if not self.has_variable("batch_stats", name)]
            if missing:
                raise ValueError(
                    f"collection 'batch_stats' must hold {missing} of the module /{'/'.join(self.path)}, got the "
                    f"collections {sorted(self.variables)} without them. Apply the model with what `init` returned, or "
                    "with a checkpoint: model.apply({'params': params, 'batch_stats': batch_stats}, ...)."
                )
        return {name: self.variable("batch_stats", name, init) for name, init in first.items()}

    @nn.nowrap
    def _accumulates(self) -> bool:
        """Whether this apply writes 'batch_moments' and not 'batch_stats'; `mutable=True` alone asks for the latter."""
        given = self.has_variable("batch_moments", "count")
        return self.is_mutable_collection("batch_moments") and (given or not self.is_mutable_collection("batch_stats"))
