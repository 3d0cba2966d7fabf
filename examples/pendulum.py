"""Pendulum swing-up, the environment of `rl_critic.py`: the equations of Gymnasium's Pendulum-v1 in JAX.

A rod hangs from a motor that is too weak to lift it, so it has to be swung back and forth. An episode lasts 200 steps.
From a random start a good policy returns about -120 on average, and a pendulum that just hangs about -1200.
"""

import jax
import jax.numpy as jnp

EPISODE = 200
TIME_STEP, GRAVITY, LARGEST_TORQUE, LARGEST_SPEED = 0.05, 10.0, 2.0, 8.0


def reset(key: jax.Array) -> jax.Array:
    """A random state [2]: the angle in radians, 0 being upright, and the angular speed in radians per second."""
    largest = jnp.array([jnp.pi, 1.0])
    return jax.random.uniform(key, (2,), minval=-largest, maxval=largest)


def observe(state: jax.Array) -> jax.Array:
    """What the policy sees of a state [2]: the cosine and sine of the angle and the speed, [3]."""
    angle, speed = state
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])


def step(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The state [2] that follows an action [1], a torque in [-1, 1] times the largest, and the reward [] <= 0."""
    angle, speed = state
    torque = LARGEST_TORQUE * action[0]
    from_upright = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    reward = -(from_upright**2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = speed + TIME_STEP * (1.5 * GRAVITY * jnp.sin(angle) + 3 * torque)
    speed = jnp.clip(speed, -LARGEST_SPEED, LARGEST_SPEED)
    return jnp.stack([angle + TIME_STEP * speed, speed]), reward
