"""The example that swings up a pendulum: its equations, and the script from its command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pendulum
import rl_critic


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
