"""`jaxbn.linen.BatchNorm`: the drop-in for `flax.linen.BatchNorm`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Axes, Dtype, Initializer
from jax.nn import initializers

from jaxbn import batch_norm
from jaxbn.types import Activation, AxisName, Momentum


class BatchNorm(nn.Module):
    """TODO docstring."""

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
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    virtual_batch_size: int | None = None
    unbiased: bool = False
    activation: Activation | None = None

    @nn.compact
    def __call__(self, x, use_running_average: bool | None = None, *, mask: jax.Array | None = None, residual=None):
        use_running_average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
        shape = [x.shape[a] for a in sorted(a % x.ndim for a in axes)]
        stats = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
            "var": self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
        }
        params = {}
        if self.use_scale:
            params["scale"] = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, shape, self.param_dtype)
        initializing = self.is_initializing()
        y, new = batch_norm(
            params,
            {k: v.value for k, v in stats.items()},
            x,
            use_running_average=use_running_average,
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=canonicalize_dtype(x, *params.values(), dtype=self.dtype),
            mask=mask,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=None if initializing else self.axis_index_groups,
            virtual_batch_size=None if initializing else self.virtual_batch_size,
            use_fast_variance=self.use_fast_variance,
            unbiased=self.unbiased,
            activation=self.activation,
            residual=residual,
        )
        if not use_running_average and not initializing:
            for name, variable in stats.items():
                variable.value = new[name]
        return y
