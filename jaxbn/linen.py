"""`jaxbn.linen.BatchNorm`: the drop-in for `flax.linen.BatchNorm`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax.nn import initializers

from jaxbn._core import checks
from jaxbn._core.axes import feature_axes, feature_shape
from jaxbn._core.batch_norm import batch_norm, normalize_batch
from jaxbn._core.merge import real_dtype
from jaxbn._core.state import update_batch_stats
from jaxbn._core.types import Activation, Axes, AxisIndexGroups, AxisName, Moments, Momentum, promote
from jaxbn._tools.accumulate import as_complex_as, merge_into, zeros_of_layer


class BatchNorm(nn.Module):
    """Batch norm as a Flax module: every field, default and variable of `flax.linen.BatchNorm`, and ours.

    Like Flax's it keeps `scale` and `bias` [C] in the collection 'params' and the running `mean` and `var` [C] in
    'batch_stats', so that checkpoints of either load into the other; training applies it with
    `mutable=['batch_stats']`. Initialization leaves the statistics at 0 and 1 and needs no `axis_name`.

    Where it differs from `flax.linen.BatchNorm`:
      - Accuracy: the variance is taken about a pivot, in one pass too, and always in at least float32. Flax's default
        loses it where the mean is large (20 % at 1000 standard deviations), and `force_float32_reductions=False` sums
        in half precision; here the field decides the dtype of the running statistics and nothing else.
      - Devices: masked batches merge by their counts; a device without an example changes nothing.
      - `mask` may be weights, and what stands under it (NaN too) reaches no output, statistic or gradient.
      - State: a channel that is not finite, or has no example, keeps its running statistics, and they keep their dtype
        (Flax's become float64 under a float64 input). A mean for a complex input is complex from the start on.
      - Errors: integer inputs, masks that do not broadcast, doubled axes, a missing `batch_stats` that Flax would
        silently start anew, `axis_index_groups` without `axis_name`: an error that says so.
      - Strict dtype promotion does not fail for half-precision inputs: the casts are meant.

    Gradient accumulation: an apply that is given a collection 'batch_moments' and may write it, or that may write it
    and not 'batch_stats', merges the moments of its batch into it and leaves 'batch_stats' alone;
    `jaxbn.zero_moments` starts such a collection and `jaxbn.commit_moments` moves the statistics once per step.

    Args:
      use_running_average: False in training, True in evaluation; here or in the call.
      axis: the feature axis or axes.
      momentum: weight of the old statistics, in [0, 1]; or `None` for the exact cumulative average, or a callable of
        the number of updates, which 'batch_stats' then counts in `count` [] int32.
      epsilon: added to the variance, > 0, in its unit.
      dtype: of the result; where None that of the input, scale and bias, promoted (bfloat16 with float32 parameters
        gives float32, as in Flax).
      param_dtype: of scale and bias.
      use_bias: whether there is a bias.
      use_scale: whether there is a scale.
      bias_init: initializer of the bias; may be partitioned (`nn.with_partitioning`).
      scale_init: initializer of the scale; likewise.
      axis_name: mapped axis or axes (of `vmap`, `pmap`, `shard_map`) that hold the rest of the batch.
      axis_index_groups: a partition of the indices of that axis; each group is a batch of its own.
      use_fast_variance: False reads the input once more, for its exact mean before the variance.
      force_float32_reductions: False keeps the running statistics in `param_dtype` instead of float32.
      virtual_batch_size: consecutive chunks of that many examples are normalized by themselves.
      unbiased: whether the running variance is divided by `count - 1`, PyTorch's convention.
      activation: applied in the same pass: 'relu', 'leaky_relu', 'relu6', 'silu', 'gelu', 'tanh', 'sigmoid', or an
        elementwise callable.

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

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        residual: jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes `x` with the statistics of the batch, or with the running ones.

        Args:
          x: [..., C] float or complex, the feature axis or axes anywhere.
          use_running_average: as the field; exactly one of the two is given.
          mask: boolean (True counts) or non-negative weights, broadcasts to `x`.
          residual: of the shape of `x` and the dtype of the result, added before the activation.

        Returns:
          [..., C], of the shape of `x`.

        Raises:
          ValueError, TypeError: an argument breaks a rule of `jaxbn.batch_norm`, or `batch_stats` is missing.
        """
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        checks.check_static_bool(use_running_average, "use_running_average")
        x = checks.check_input(x)
        axes = feature_axes(self.axis, x.ndim)
        shape = feature_shape(x, axes)
        initializing = self.is_initializing()
        variables = self._batch_stats(shape, jnp.iscomplexobj(x))
        batch_stats = {name: variable.value for name, variable in variables.items()}
        if not use_running_average:
            batch_stats["mean"] = as_complex_as(x, batch_stats["mean"])
        checks.check_vectors({name: batch_stats[name] for name in ("mean", "var")}, "batch_stats", x, axes)
        params = {}
        if self.use_scale:
            params["scale"] = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, shape, self.param_dtype)
        if not self.force_float32_reductions:
            params = {name: value.astype(self.param_dtype) for name, value in params.items()}
        with jax.numpy_dtype_promotion("standard"):
            dtype = canonicalize_dtype(x, *params.values(), dtype=self.dtype)
        options: dict[str, Any] = {
            "axis": self.axis,
            "epsilon": self.epsilon,
            "dtype": dtype,
            "mask": mask,
            "axis_name": None if initializing else self.axis_name,
            "axis_index_groups": None if initializing else self.axis_index_groups,
            "virtual_batch_size": None if initializing else self.virtual_batch_size,
            "use_fast_variance": self.use_fast_variance,
            "activation": self.activation,
            "residual": residual,
        }
        if use_running_average:
            return batch_norm(params, batch_stats, x, use_running_average=True, **options)[0]
        y, moments = normalize_batch(params, batch_stats, x, **options)
        if initializing:
            return y
        if self._accumulates():
            zeros = zeros_of_layer(batch_stats["mean"])._asdict()
            variables = {k: self.variable("batch_moments", k, lambda zero=v: zero) for k, v in zeros.items()}
            new = merge_into(Moments(**{k: v.value for k, v in variables.items()}), moments)._asdict()
        else:
            new = update_batch_stats(batch_stats, moments, momentum=self.momentum, unbiased=self.unbiased)
        for name, variable in variables.items():
            variable.value = new[name]
        return y

    @nn.nowrap
    def _batch_stats(self, shape: tuple[int, ...], is_complex: bool) -> dict[str, nn.Variable]:
        """The variables 'mean', 'var' and, where the average needs it, 'count'; only initialization creates them."""
        dtype = jnp.dtype(jnp.float32 if self.force_float32_reductions else self.param_dtype)
        first = {
            "mean": lambda: jnp.zeros(shape, promote(dtype, jnp.complex64) if is_complex else dtype),
            "var": lambda: jnp.ones(shape, real_dtype(dtype)),
        }
        if self.momentum is None or callable(self.momentum):
            first["count"] = lambda: jnp.zeros((), jnp.int32)
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
