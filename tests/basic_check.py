"""What must hold of the core under every switch of JAX: `python -m tests.basic_check` runs it in a process of its own.

Everything goes to the device and comes back explicitly, so that it runs where transfers are guarded.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from tests import oracle

RNG = np.random.default_rng(0)
X = RNG.normal((0, 10, -100), size=(9, 3)).astype(np.float32)
MASK = (np.arange(9) % 4 > 0)[:, None]
DY = (np.round(32 * RNG.normal(size=X.shape)) / 32).astype(np.float32)
PARAMS = {"scale": np.float32([1, 2, -0.5]), "bias": np.float32([0, 1, -2])}
STATS = {"mean": np.float32([1, 0, 0]), "var": np.float32([2, 1, 0.5])}
OPTIONS = {
    "plain": {},
    "masked": {"mask": MASK},
    "in two passes": {"use_fast_variance": False, "unbiased": True},
    "with momentum": {"momentum": 0.5, "epsilon": 0.1},
}


def check(name: str, *, jit: bool, poison: float | None = None) -> None:
    """A training step with its gradients, against float64."""
    options = dict(OPTIONS[name])
    mask = options.pop("mask", None)
    x = X if poison is None or mask is None else np.where(mask, X, np.float32(poison))
    program = partial(oracle.step, **options)
    given = jax.device_put((PARAMS, STATS, x, DY))
    keywords = {} if mask is None else {"mask": jax.device_put(mask)}
    found = jax.device_get((jax.jit(program) if jit else program)(*given, **keywords))
    same = {k: v for k, v in options.items() if k != "use_fast_variance"}
    oracle.assert_close(found, oracle.expected(PARAMS, STATS, x, DY, mask=mask, **same))


def check_layers() -> None:
    """The modules give what the function gives, in training and in evaluation."""
    x, params, stats = jax.device_put((X, PARAMS, STATS))
    module = jaxbn.linen.BatchNorm()
    with jax.transfer_guard("allow"):  # Flax makes its keys implicitly
        graphdef, state = nnx.split(jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)))

    def linen(running, params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        y, new = module.apply(variables, x, use_running_average=running, mutable=["batch_stats"])
        return y, new["batch_stats"]

    def of_nnx(running, params, stats, x):
        values = {**params, **stats}
        layer = nnx.merge(graphdef, jax.tree.map_with_path(lambda path, _: values[path[0].key], state))
        y = layer(x, use_running_average=running)
        return y, {name: getattr(layer, name)[...] for name in stats}

    def plain(running, params, stats, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=running)

    for running in (False, True):
        want, *others = (
            jax.device_get(jax.jit(f, static_argnums=0)(running, params, stats, x)) for f in (plain, linen, of_nnx)
        )
        for got in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)


def check_merging() -> None:
    """Moments of parts are those of the whole, and a state in a scan keeps its type."""
    whole, first, second = (jax.jit(jaxbn.batch_moments)(v) for v in jax.device_put((X, X[:4], X[4:])))
    merged = jax.device_get(jax.jit(jaxbn.merge_moments)(first, second))
    for got, want in zip(merged, jax.device_get(whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    params, stats, xs = jax.device_put((PARAMS, STATS, np.stack([X, 2 * X])))

    def step(stats, x):
        return jaxbn.batch_norm(params, stats, x, use_running_average=False, momentum=0.5)[1], None

    new, _ = jax.jit(lambda stats, xs: jax.lax.scan(step, stats, xs))(stats, xs)
    want = STATS["mean"] / 4 + X.mean(0) / 4 + 2 * X.mean(0) / 2
    np.testing.assert_allclose(jax.device_get(new)["mean"], want, rtol=1e-5)


def check_all(*, poison: float = np.nan) -> None:
    """All of it, under `jit`."""
    for name in ("masked", "in two passes"):
        check(name, jit=True, poison=poison)
    check_layers()
    check_merging()


if __name__ == "__main__":
    check_all()
    print("all holds", jnp.float32(0).dtype)
