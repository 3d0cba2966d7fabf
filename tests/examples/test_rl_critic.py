"""The example that swings up a pendulum: its equations, and the script from its command line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
import pendulum
import rl_agent
import rl_critic

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _compiled_quickly():
    jax.config.update("jax_disable_most_optimizations", True)  # half of the time, nearly all of which is compiling
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_pendulum_falls_as_the_equations_say_and_rests_upright():
    still = jnp.zeros(2)
    state, reward = pendulum.step(still, jnp.zeros(1))
    np.testing.assert_array_equal(state, still)
    assert reward == 0
    (angle, speed), reward = pendulum.step(jnp.array([jnp.pi / 2, 0.0]), jnp.ones(1))
    np.testing.assert_allclose(speed, 0.05 * (15 + 6), rtol=1e-6)
    np.testing.assert_allclose(angle, np.pi / 2 + 0.05 * speed, rtol=1e-6)
    np.testing.assert_allclose(reward, -((np.pi / 2) ** 2) - 0.004, rtol=1e-6)


def test_the_first_evaluation_above_the_mark_counts():
    curves = np.array([[-900, -150, -300, -120], [-900, -800, -700, -600]])
    np.testing.assert_array_equal(rl_critic.steps_to_solve(curves), [2 * rl_critic.EVERY, np.inf])


BATCH = rl_agent.Transitions(*(RNG.normal(size=(32, *shape)).astype(np.float32) for shape in ((3,), (1,), (), (3,))))


def critic(norm: str, variables, batch=BATCH, *, train: bool, mutable=("batch_stats",)):
    """The values [32], and what is written."""
    return rl_agent.Critic(norm).apply(variables, batch.observation, batch.action, train=train, mutable=list(mutable))


@functools.cache
def settled() -> rl_agent.Learner:
    """A critic with renorm whose running statistics are those of the batch, but wider."""
    learner = rl_agent.begin(rl_agent.Arm("renorm", target_network=False), 1, jax.random.key(0), jnp.array(1e-3))[1]
    forward = functools.partial(critic, "renorm", train=True, mutable=("batch_moments", "batch_stats"))
    variables = jaxbn.recalibrate(forward, learner.critic, [BATCH])
    wider = {name: layer | {"var": 1.5 * layer["var"]} for name, layer in variables["batch_stats"].items()}
    return learner._replace(critic=variables | {"batch_stats": wider})


def after(updates: int) -> rl_agent.Learner:
    """The same after so many updates."""
    variables = settled().critic
    layers = variables["batch_stats"].items()
    counted = {name: layer | {"count": jnp.full_like(layer["count"], updates)} for name, layer in layers}
    return settled()._replace(critic=variables | {"batch_stats": counted})


def test_a_critic_without_target_network_normalizes_what_is_and_what_follows_as_one_batch():
    """As in CrossQ: its first norm sees both observations and both actions, and moves by the statistics of all."""
    arm, key, old = rl_agent.Arm("renorm", target_network=False), jax.random.key(1), after(2000)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a number to the power of a count
        new = jax.jit(rl_agent.learn, static_argnums=0)(arm, old, BATCH, key)
    assert new.target is None
    next_action, _ = rl_agent.draw(old.actor, BATCH.next_observation, jax.random.split(key)[0])
    now = np.concatenate([BATCH.observation, BATCH.action], -1)
    following = np.concatenate([BATCH.next_observation, next_action], -1)
    both = np.concatenate([now, following])
    before, moved = (learner.critic["batch_stats"]["BatchNorm_0"] for learner in (old, new))
    np.testing.assert_allclose(moved["mean"], 0.99 * before["mean"] + 0.01 * both.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.99 * before["var"] + 0.01 * both.var(0), rtol=1e-5)


def test_renorm_begins_as_batch_norm_and_then_trains_on_the_values_of_evaluation():
    def values(norm: str, updates: int, train: bool):
        return critic(norm, after(updates).critic, train=train)[0]

    np.testing.assert_array_equal(values("renorm", 400, True), values("batch", 400, True))
    np.testing.assert_allclose(values("renorm", 2000, True), values("renorm", 2000, False), rtol=1e-4, atol=1e-5)
    assert abs(values("renorm", 2000, True) - values("batch", 2000, True)).max() > 0.1


def test_the_script_trains_each_critic_and_saves_a_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rl_critic, "EVERY", 520)  # one piece, past the random steps: each critic learns
    with jax.numpy_dtype_promotion("standard"):  # optax raises a number to the power of a count
        rl_critic.main(["--seeds", "2", "--steps", "520", "--output", str(tmp_path / "new")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "nan" not in printed
    assert "seed by seed" in printed
    assert (tmp_path / "new" / "returns.png").stat().st_size > 10_000


@pytest.mark.parametrize("flags", [["--seeds", "1"], ["--steps", "0"], ["--steps", "100"]])
def test_bad_input_is_one_line(flags, capsys):
    with pytest.raises(SystemExit):
        rl_critic.main(flags)
    assert f"{flags[0]} must be" in capsys.readouterr().err.splitlines()[-1]
