"""`jaxbn.nnx.BatchNorm`: the drop-in for `flax.nnx.BatchNorm`."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import batch_norm


class BatchNorm(nnx.BatchNorm):
    """TODO: placeholder until the real module; subclass only to have the fields."""

    def __call__(self, x, use_running_average=None, *, mask: jax.Array | None = None, residual=None):
        use_running_average = self.use_running_average if use_running_average is None else use_running_average
        params = {k: v[...] for k, v in (("scale", self.scale), ("bias", self.bias)) if v is not None}
        y, new = batch_norm(
            params,
            {"mean": self.mean[...], "var": self.var[...]},
            x,
            use_running_average=bool(use_running_average),
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=jnp.result_type(x, *params.values()) if self.dtype is None else self.dtype,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
            residual=residual,
        )
        if not use_running_average:
            self.mean[...], self.var[...] = new["mean"], new["var"]
        return y
