"""The agent of `rl_critic.py`: soft actor-critic (Haarnoja et al. 2018) with one critic, many runs in one program."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxbn
import pendulum
from jaxbn.linen import BatchNorm

WIDTH, BATCH, DISCOUNT, TEMPERATURE = 64, 128, 0.98, 0.02
REWARD_SCALE = 0.1
"""rewards are multiplied by this before the critic sees them"""
RANDOM_STEPS = 500
"""steps at the beginning in which torques are uniform and nothing is learned"""
FOLLOW = 0.01
"""the fraction of the way to the critic that a target network moves in each step"""
ADAM = optax.scale_by_adam(b1=0.5)
RENORM = jaxbn.Renorm(
    r_max=optax.linear_schedule(1.0, 3.0, 1000, transition_begin=500),
    d_max=optax.linear_schedule(0.0, 5.0, 1000, transition_begin=500),
)
"""batch norm for 500 updates of the critic, until the running statistics are of enough batches; then wider limits"""


class Arm(NamedTuple):
    """One way to train the critic."""

    norm: str
    """'batch', 'renorm' or 'none'"""
    target_network: bool


class Critic(nn.Module):
    """The values [n] of actions [n, 1] for observations [n, 3]."""

    norm: str

    @nn.compact
    def __call__(self, observations, actions, train: bool):
        x = jnp.concatenate([observations, actions], -1)
        x = self._norm(x, train)
        for _ in range(2):
            x = self._norm(nn.relu(nn.Dense(WIDTH)(x)), train)
        return nn.Dense(1)(x)[:, 0]

    @nn.nowrap
    def _norm(self, x, train):
        if self.norm == "none":
            return x
        renorm = RENORM if self.norm == "renorm" else None
        return BatchNorm(use_running_average=not train, momentum=0.99, renorm=renorm)(x)


class Actor(nn.Module):
    """The normal distributions of actions before tanh: means [n, 1] and logarithms of the deviations [n, 1]."""

    @nn.compact
    def __call__(self, observations):
        x = observations
        for _ in range(2):
            x = nn.relu(nn.Dense(WIDTH)(x))
        mean, log_std = jnp.split(nn.Dense(2)(x), 2, -1)
        return mean, jnp.clip(log_std, -5, 1)


ACTOR: Any = Actor()


def draw(actor, observations, key):
    """Actions [n, 1] in (-1, 1) and the logarithms of their densities [n]."""
    mean, log_std = ACTOR.apply(actor, observations)
    noise = jax.random.normal(key, mean.shape)
    before = mean + jnp.exp(log_std) * noise
    log_density = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    log_slope = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))  # of tanh
    return jnp.tanh(before), (log_density - log_slope)[:, 0]


class Transitions(NamedTuple):
    """Steps of the pendulum: [n, 3], [n, 1], [n] and [n, 3]."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array


class World(NamedTuple):
    """The pendulum, and all that has happened."""

    pendulum: jax.Array
    memory: Transitions


class Learner(NamedTuple):
    """All that learning changes, and the learning rate."""

    rate: jax.Array
    critic: Any
    target: Any
    """the variables of the target network, None where there is none"""
    actor: Any
    optimizers: Any


def begin(arm: Arm, steps: int, key: jax.Array, rate: jax.Array) -> tuple[World, Learner]:
    """A run before its first step, with room for `steps` transitions."""
    keys = jax.random.split(key, 3)
    critic = {"batch_stats": {}, **Critic(arm.norm).init(keys[0], jnp.zeros((1, 3)), jnp.zeros((1, 1)), train=False)}
    actor = ACTOR.init(keys[1], jnp.zeros((1, 3)))
    optimizers = ADAM.init(critic["params"]), ADAM.init(actor)
    memory = Transitions(*(jnp.zeros((steps, *shape)) for shape in ((3,), (1,), (), (3,))))
    learner = Learner(rate, critic, critic if arm.target_network else None, actor, optimizers)
    return World(pendulum.reset(keys[2]), memory), learner


def act(actor, world: World, i: jax.Array, key: jax.Array) -> World:
    """Step `i` of the pendulum, which is remembered."""
    uniform, noise, reset = jax.random.split(key, 3)
    observation = pendulum.observe(world.pendulum)
    action = jnp.where(
        i < RANDOM_STEPS,
        jax.random.uniform(uniform, (1,), minval=-1, maxval=1),
        draw(actor, observation[None], noise)[0][0],
    )
    state, reward = pendulum.step(world.pendulum, action)
    row = Transitions(observation, action, reward, pendulum.observe(state))
    memory = jax.tree.map(lambda rows, new: rows.at[i].set(new), world.memory, row)
    return World(jnp.where((i + 1) % pendulum.EPISODE == 0, pendulum.reset(reset), state), memory)


def learn(arm: Arm, learner: Learner, batch: Transitions, key: jax.Array) -> Learner:
    """One step of the critic and one of the actor."""
    critic: Any = Critic(arm.norm)
    next_key, actor_key = jax.random.split(key)
    next_action, next_log_density = draw(learner.actor, batch.next_observation, next_key)

    def critic_loss(params):
        apply = functools.partial(
            critic.apply, {**learner.critic, "params": params}, train=True, mutable=["batch_stats"]
        )
        if arm.target_network:
            value, written = apply(batch.observation, batch.action)
            next_value = critic.apply(learner.target, batch.next_observation, next_action, train=False)
        else:  # both in one batch, so that both are normalized with the same statistics
            both, written = apply(
                jnp.concatenate([batch.observation, batch.next_observation]),
                jnp.concatenate([batch.action, next_action]),
            )
            value, next_value = jnp.split(both, 2)
        next_value = jax.lax.stop_gradient(next_value) - TEMPERATURE * next_log_density
        error = value - (REWARD_SCALE * batch.reward + DISCOUNT * next_value)
        return (error**2).mean(), written.get("batch_stats", {})

    def actor_loss(actor):
        action, log_density = draw(actor, batch.observation, actor_key)
        value = critic.apply(variables, batch.observation, action, train=False)  # with the running statistics
        return (TEMPERATURE * log_density - value).mean()

    gradients, batch_stats = jax.grad(critic_loss, has_aux=True)(learner.critic["params"])
    params, of_critic = descend(learner.rate, learner.critic["params"], gradients, learner.optimizers[0])
    variables = {"params": params, "batch_stats": batch_stats}
    actor, of_actor = descend(learner.rate, learner.actor, jax.grad(actor_loss)(learner.actor), learner.optimizers[1])
    target = optax.incremental_update(variables, learner.target, FOLLOW) if arm.target_network else None
    return Learner(learner.rate, variables, target, actor, (of_critic, of_actor))


def descend(rate, params, gradients, optimizer):
    """One step of Adam; new parameters and state of the optimizer."""
    updates, optimizer = ADAM.update(gradients, optimizer)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), optimizer


@functools.partial(jax.jit, static_argnames=("arm", "length"), donate_argnames="runs")
def train(arm: Arm, length: int, runs: tuple[World, Learner], first: jax.Array, keys: jax.Array):
    """The runs [R], with keys [R], after `length` more steps, of which `first` is the number of the first."""

    def of_run(run, key):
        def step(run, i):
            act_key, learn_key, rows_key = jax.random.split(jax.random.fold_in(key, i), 3)
            world, learner = run
            world = act(learner.actor, world, i, act_key)
            rows = jax.random.randint(rows_key, (BATCH,), 0, i + 1)
            batch = jax.tree.map(lambda memory: memory[rows], world.memory)
            learner = jax.lax.cond(i < RANDOM_STEPS, lambda: learner, lambda: learn(arm, learner, batch, learn_key))
            return (world, learner), None

        return jax.lax.scan(step, run, first + jnp.arange(length))[0]

    return jax.vmap(of_run)(runs, keys)


@jax.jit
def returns(actors, keys: jax.Array) -> jax.Array:
    """The mean return [R] of each actor without noise, over the episodes that begin with `keys` [E]."""

    def of_episode(actor, key):
        def step(state, _):
            mean, _ = ACTOR.apply(actor, pendulum.observe(state)[None])
            return pendulum.step(state, jnp.tanh(mean[0]))

        return jax.lax.scan(step, pendulum.reset(key), length=pendulum.EPISODE)[1].sum()

    return jax.vmap(lambda actor: jax.vmap(functools.partial(of_episode, actor))(keys).mean())(actors)
