"""PyTorch as a peer, where it is installed: the same layer in its conventions."""

import jax
import numpy as np
import pytest

import jaxbn

torch = pytest.importorskip("torch")


def test_training_and_evaluation_are_those_of_pytorch():
    rng = np.random.default_rng(0)
    xs, dys = rng.normal(2, 3, size=(2, 3, 6, 4, 5)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 4)).astype(np.float32)

    peer = torch.nn.BatchNorm1d(4, momentum=0.3)
    with torch.no_grad():
        peer.weight.copy_(torch.from_numpy(scale))
        peer.bias.copy_(torch.from_numpy(bias))
    _, stats = jaxbn.init(4)
    params = {"scale": scale, "bias": bias}

    @jax.jit
    def step(params, stats, x, dy):
        def layer(params, x):
            return jaxbn.batch_norm(
                params, stats, x, use_running_average=False, axis=1, momentum=1 - 0.3, unbiased=True
            )

        y, vjp, new = jax.vjp(layer, params, x, has_aux=True)
        return y, new, vjp(dy)

    def close(got, want):
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-5)

    for x, dy in zip(xs, dys, strict=True):
        peer.zero_grad()
        given = torch.from_numpy(x).requires_grad_()
        want = peer(given)
        want.backward(torch.from_numpy(dy))
        y, stats, (gradients, dx) = step(params, stats, x, dy)
        close(y, want)
        close(dx, given.grad)
        close(gradients["scale"], peer.weight.grad)
        close(gradients["bias"], peer.bias.grad)
        close(stats["mean"], peer.running_mean)
        close(stats["var"], peer.running_var)
    y, _ = jaxbn.batch_norm(params, stats, xs[0], use_running_average=True, axis=1)
    close(y, peer.eval()(torch.from_numpy(xs[0])))
