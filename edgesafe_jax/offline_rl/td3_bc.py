r"""TD3+BC: deterministic policy gradient with clipped double critics, tied to the data by a behaviour-cloning term.

Reference:
  Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", 2021, equations 3 and 4.
"""

import operator

import jax
import jax.numpy as jnp
import optax
from flax import struct

from edgesafe_jax.offline_rl.learning import (
    MLP,
    Learner,
    NetworkState,
    check_learner,
    critic_values,
    descend,
    init_critics,
    polyak,
    start_training,
)
from edgesafe_jax.offline_rl.relabelling import Batch
from edgesafe_jax.typing import Array, Params, PRNGKey


class TD3BCState(struct.PyTreeNode):
    """Actor and critics, each with its optimiser, and their slow copies."""

    actor: NetworkState
    critics: NetworkState
    target_actor: Params
    target_critics: tuple[Params, Params]


def make_td3_bc(
    *,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    target_rate: float = 0.005,
    policy_noise: float = 0.2,
    noise_clip: float = 0.5,
    policy_delay: int = 2,
    bc_weight: float = 2.5,
) -> Learner:
    r"""Makes TD3+BC; a call takes `policy_delay` batches: a critic step on each, then one actor step on the last.

    .. math:: y = r + \gamma (1 - d) \min_i \bar Q_i(s', \bar\pi(s') + \mathrm{clip}(\epsilon)), \qquad
              \max_\pi\; \lambda\, Q_1(s, \pi(s)) - (\pi(s) - a)^2, \quad \lambda = \alpha / \mathrm{mean} |Q_1|

    Args:
      hidden: widths of the hidden layers of actor and critics.
      learning_rate: of Adam, for both.
      discount: gamma.
      target_rate: of the slow copies, which move with the actor.
      policy_noise: standard deviation of the target policy's smoothing noise.
      noise_clip: its largest size.
      policy_delay: critic steps for one actor step.
      bc_weight: alpha; smaller keeps nearer to the data.

    Returns:
      The learner. Its metrics are ``critic_loss``, ``actor_loss`` and ``value``.

    Raises:
      LearningError: a setting is out of range.
    """
    check_learner(hidden=hidden, learning_rate=learning_rate, discount=discount, target_rate=target_rate)
    check_learner(policy_noise=policy_noise, noise_clip=noise_clip, policy_delay=policy_delay, bc_weight=bc_weight)
    critic = MLP((*hidden, 1))
    optimizer = optax.adam(learning_rate)

    def policy(params: Params, observations: Array) -> Array:
        size = params[f"Dense_{len(hidden)}"]["bias"].shape[-1]
        return jnp.tanh(MLP((*hidden, size)).apply({"params": params}, observations))  # type: ignore[arg-type]

    def init(key: PRNGKey, observation: Array, action: Array) -> TD3BCState:
        key_actor, key_critics = jax.random.split(key)
        actor = MLP((*hidden, action.shape[-1])).init(key_actor, observation)["params"]
        critics = init_critics(key_critics, critic, observation, action)
        return TD3BCState(start_training(actor, optimizer), start_training(critics, optimizer), actor, critics)  # type: ignore[arg-type]

    def critic_step(state: TD3BCState, batch: Batch, key: PRNGKey) -> tuple[TD3BCState, Array]:
        noise = jnp.clip(policy_noise * jax.random.normal(key, batch.actions.shape), -noise_clip, noise_clip)
        next_actions = jnp.clip(policy(state.target_actor, batch.next_observations) + noise, -1.0, 1.0)
        next_values = critic_values(critic, state.target_critics, batch.next_observations, next_actions)
        target = batch.rewards + discount * (1 - batch.terminals) * jnp.min(next_values, 0)

        def loss(params: tuple[Params, Params]) -> Array:
            values = critic_values(critic, params, batch.observations, batch.actions)
            return jnp.sum(jnp.mean((values - target[None]) ** 2, axis=1))

        value, gradient = jax.value_and_grad(loss)(state.critics.params)
        return state.replace(critics=descend(state.critics, gradient, optimizer)), value

    def actor_step(state: TD3BCState, batch: Batch) -> tuple[TD3BCState, tuple[Array, Array]]:
        def loss(params: Params) -> tuple[Array, Array]:
            actions = policy(params, batch.observations)
            inputs = jnp.concatenate([batch.observations, actions], -1)
            values = critic.apply({"params": state.critics.params[0]}, inputs)[..., 0]  # type: ignore[index]
            scale = bc_weight / jnp.maximum(jax.lax.stop_gradient(jnp.mean(jnp.abs(values))), 1e-6)
            cloning = jnp.mean((actions - batch.actions) ** 2)
            return cloning - scale * jnp.mean(values), jnp.mean(values)

        (value, mean_q), gradient = jax.value_and_grad(loss, has_aux=True)(state.actor.params)
        actor = descend(state.actor, gradient, optimizer)
        return state.replace(
            actor=actor,
            target_actor=polyak(state.target_actor, actor.params, target_rate),
            target_critics=polyak(state.target_critics, state.critics.params, target_rate),
        ), (value, mean_q)

    def update(key: PRNGKey, state: TD3BCState, batches: Batch) -> tuple[TD3BCState, dict[str, Array]]:
        each = [jax.tree.map(operator.itemgetter(number), batches) for number in range(policy_delay)]
        losses = []
        for batch, key_step in zip(each, jax.random.split(key, policy_delay), strict=True):
            state, value = critic_step(state, batch, key_step)
            losses.append(value)
        state, (actor_loss, mean_q) = actor_step(state, each[-1])
        return state, {"critic_loss": jnp.mean(jnp.stack(losses)), "actor_loss": actor_loss, "value": mean_q}

    return Learner(init, update, lambda state, observation: policy(state.actor.params, observation), policy_delay)
