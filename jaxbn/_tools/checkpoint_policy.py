"""Half the activations: a policy for `jax.checkpoint` that keeps a batch's moments and recomputes the rest.

In conv → batch norm → activation → conv the first convolution's output is kept for the derivative of batch norm, and
the activation's output for that of the second convolution. The second follows from the first by one multiply-add per
element, once the moments are known. So a checkpoint begins where a convolution's output meets its batch norm:

    x = conv(x)
    x = checkpoint(norm, activation, conv)(x)
    x = checkpoint(norm, activation, conv)(x)

and only one array of each pair is kept. No convolution runs twice, and no statistics are computed twice, so their
reads of the batch and their collective are not repeated. A boundary before the convolution, or around a
whole network, saves nothing.

References: Chen et al. 2016, "Training deep nets with sublinear memory cost", section 3; Rota Bulò, Porzi &
Kontschieder 2018, "In-place activated batch norm", section 3, who keep one of the two as well.

Example, with linen:
  >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxbn
  >>> from jaxbn.linen import BatchNorm
  >>> class NormConv(nn.Module):
  ...     @nn.compact
  ...     def __call__(self, x, train):
  ...         x = BatchNorm(use_running_average=not train, activation="relu")(x)
  ...         return nn.Conv(x.shape[-1], (3, 3), use_bias=False)(x)
  >>> Block = nn.remat(NormConv, policy=jaxbn.save_only_moments, static_argnums=2)
  >>> x = jnp.ones((2, 4, 4, 3))  # a convolution's output
  >>> variables = Block().init(jax.random.key(0), x, False)
  >>> y, updates = Block().apply(variables, x, True, mutable=["batch_stats"])

With nnx the block is a function of the modules:
  >>> from functools import partial
  >>> from flax import nnx
  >>> import jaxbn.nnx
  >>> @partial(nnx.remat, policy=jaxbn.save_only_moments)
  ... def block(norm, conv, x):
  ...     return conv(norm(x))
  >>> rngs = nnx.Rngs(0)
  >>> norm, conv = jaxbn.nnx.BatchNorm(3, activation="relu", rngs=rngs), nnx.Conv(3, 3, (3, 3), rngs=rngs)
  >>> y = block(norm, conv, x)
"""

from collections.abc import Callable

import jax

from jaxbn._core.moments import MOMENTS

save_only_moments: Callable[..., bool] = jax.checkpoint_policies.save_only_these_names(MOMENTS)
"""Policy for `jax.checkpoint`, `flax.linen.remat` and `flax.nnx.remat` that keeps nothing but each batch's moments.

To keep more, combine it with another policy using `jax.checkpoint_policies.save_from_both_policies`.
"""
