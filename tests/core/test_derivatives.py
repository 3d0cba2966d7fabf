"""Derivatives of every order, in every mode, under every transformation: in float64, against the obvious formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbn
from jaxbn._xla import program
from tests.forced_platform import forced

EPSILON = 1e-5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def obvious(params, x, mask, activation=None, residual=None):
    """The formula, for autodiff to go through step by step; output and moments."""
    weights = jnp.broadcast_to(1.0 if mask is None else mask, x.shape)
    count = weights.sum(0)
    mean = (weights.astype(x.dtype) * x).sum(0) / count.astype(x.dtype)
    var = (weights * jnp.abs(x - mean[None]) ** 2).sum(0) / count
    y = (x - mean[None]) / jnp.sqrt(var + EPSILON)[None].astype(x.dtype)
    y = y * params["scale"][None] if "scale" in params else y
    y = y + params["bias"][None] if "bias" in params else y
    y = y if residual is None else y + residual
    return (y if activation is None else activation(y)), mean, var


def ours(params, x, mask, activation=None, residual=None, **options):
    stats = {"mean": jnp.zeros_like(x[0]), "var": jnp.ones_like(x[0].real)}
    y, moments = jaxbn.normalize_batch(
        params, stats, x, mask=mask, epsilon=EPSILON, activation=activation, residual=residual, **options
    )
    return y, moments.mean, moments.var


def batch(dtype=np.float64, keys=("scale", "bias")):
    rng = np.random.default_rng(0)

    def normal(*shape):
        values = rng.normal(size=shape)
        return jnp.asarray(values if dtype == np.float64 else values + 1j * rng.normal(size=shape), dtype)

    return {k: normal(2) for k in keys}, normal(5, 2), normal(5, 2)


WEIGHTS = np.array([[0.5], [2], [0], [1], [1.5]])


def scalar(layer, weights, *arguments):
    """A real number of everything the layer returns, nonlinear in all of it."""
    y, mean, var = layer(*arguments)
    total = jnp.sum(weights * jnp.sin(y)) + jnp.sum(mean**3)
    return total.real + total.imag + jnp.sum(jnp.log(1 + var))


def along(gradient, direction):
    """The real inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b).real, gradient, direction)))


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, want)


@pytest.mark.parametrize(("dtype", "mask"), [(np.float64, None), (np.float64, WEIGHTS), (np.complex128, WEIGHTS)])
def test_every_derivative_is_that_of_the_obvious_formula(dtype, mask):
    params, x, dy = batch(dtype)

    def derivatives(layer, **compiler_options):
        @functools.partial(jax.jit, compiler_options=compiler_options)
        def all_of_them(params, x, dy):
            # Holomorphic inputs are pairs of real ones here: forward mode needs no more than a direction.
            loss = functools.partial(scalar, lambda p, x: layer(p, x, mask), dy)
            gradient = jax.grad(loss, (0, 1))
            primals, directions = (params, x), ({k: v[::-1] for k, v in params.items()}, x[::-1] ** 2)
            return {
                "reverse": gradient(*primals),
                "forward": jax.jvp(loss, primals, directions),
                "forward over reverse": jax.jvp(gradient, primals, directions),
                "reverse over forward": jax.grad(lambda *p: jax.jvp(loss, p, directions)[1], (0, 1))(*primals),
                "reverse over reverse": jax.grad(lambda *p: along(gradient(*p), directions), (0, 1))(*primals),
                "vmap of reverse": jax.vmap(gradient, (None, 0))(params, jnp.stack([x, 2 * x + dy])),
                "checkpoint": jax.grad(jax.checkpoint(loss), (0, 1))(*primals),
                "frozen": jax.grad(lambda x: loss(jax.lax.stop_gradient(params), x))(x),
                "scan": jax.lax.scan(lambda x, _: (x - 0.1 * gradient(params, x)[1], loss(params, x)), x, length=2),
            }  # fmt: skip

        return all_of_them(params, x, dy)

    # Only ours need be compiled as users have it.
    got, want = derivatives(ours), derivatives(obvious, xla_backend_optimization_level=0)
    for name in want:
        jax.tree.map(
            functools.partial(
                np.testing.assert_allclose, rtol=1e-9, atol=1e-8 if "over" in name else 1e-9, err_msg=name
            ),
            got[name],
            want[name],
        )


def test_finite_differences_of_the_gradient_agree_in_both_modes():
    params, x, dy = batch()
    gradient = jax.jit(jax.grad(lambda p, x: scalar(ours, dy, p, x, None), (0, 1)))
    check_grads(gradient, (params, x), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("keys", [("scale",), ("bias",), ()])
def test_missing_parameters_change_no_other_derivative(keys):
    params, x, dy = batch(keys=keys)

    @jax.jit
    def gradients(params, x):
        return [jax.grad(functools.partial(scalar, f, dy), (0, 1))(params, x, None) for f in (ours, obvious)]

    close(*gradients(params, x))


def test_activations_and_residuals_have_the_derivatives_of_their_formula():
    params, x, residual = batch()
    by_name = {
        "relu": jax.nn.relu, "leaky_relu": jax.nn.leaky_relu, "relu6": jax.nn.relu6, "silu": jax.nn.silu,
        "gelu": jax.nn.gelu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid,
    }  # fmt: skip

    @jax.jit
    def gradients(params, x, residual):
        def of(layer, activation):
            def loss(params, x, residual):
                return scalar(layer, x, params, 3 * x, WEIGHTS, activation, residual)

            return jax.value_and_grad(loss, (0, 1, 2))(params, x, residual)

        return [
            (of(ours, given), of(obvious, function))
            for given, function in [*by_name.items(), (jnp.sin, jnp.sin), (None, None)]
        ]

    for got, want in gradients(params, x, residual):
        close(got, want)


@pytest.mark.parametrize(
    ("dtype", "narrow"),
    [
        (np.float64, lambda z: jnp.tanh(z.astype(jnp.float32))),
        (np.complex128, lambda z: jnp.sin(z.astype(jnp.complex64))),
        (np.complex128, lambda z: jnp.abs(z)),
    ],
    ids=["float32", "complex64", "real"],
)
@pytest.mark.parametrize("with_residual", [False, True])
def test_an_activation_may_compute_in_fewer_digits(with_residual, dtype, narrow):
    params, x, dy = batch(dtype)

    @jax.jit
    def gradients(params, x):
        residual = 2 * dy if with_residual else None
        pairs = [(ours, narrow), (obvious, lambda z: narrow(z).astype(z.dtype))]
        return [jax.grad(functools.partial(scalar, f, dy), (0, 1))(params, x, WEIGHTS, a, residual) for f, a in pairs]

    got, want = gradients(params, x)
    assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_a_complex_activation_that_is_not_holomorphic_has_the_derivatives_of_its_formula():
    params, x, dy = batch(np.complex128)

    @jax.jit
    def gradients(params, x):
        def of(layer, residual):
            loss = functools.partial(scalar, layer, dy)
            return jax.grad(loss, (0, 1))(params, x, WEIGHTS, lambda z: z / (1 + jnp.abs(z)).astype(z.dtype), residual)

        return [of(layer, residual) for residual in (None, 2 * dy) for layer in (ours, obvious)]

    for got, want in zip(*[iter(gradients(params, x))] * 2, strict=True):
        close(got, want)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_slopes_are_those_of_the_formula_on_other_platforms(platform, monkeypatch):
    """Where a slope is read off the output, or a sum is taken beside it. What runs is on this CPU."""
    monkeypatch.setattr(program, "program_of", forced(program.program_of, platform))
    params, x, residual = batch()

    @jax.jit
    def gradients(params, x, residual):
        def of(layer, activation):
            def loss(params, x, residual):
                return scalar(layer, x, params, 3 * x, WEIGHTS, activation, residual)

            return jax.grad(loss, (0, 1, 2))(params, x, residual)

        return [[of(layer, activation) for layer in (ours, obvious)] for activation in (jax.nn.relu, jax.nn.silu)]

    for got, want in gradients(params, x, residual):
        close(got, want)


def test_a_mask_is_a_constant_for_derivatives():
    params, x, dy = batch()
    gradient = jax.jit(jax.grad(lambda m: scalar(ours, dy, params, x, m)))(jnp.asarray(WEIGHTS))
    np.testing.assert_array_equal(gradient, 0)
