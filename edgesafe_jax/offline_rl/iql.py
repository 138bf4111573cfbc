r"""Implicit Q-learning: values by expectile regression on the data's own actions, a policy by weighted regression.

Reference:
  Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", 2021, equations 5 to 7.
"""

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
from edgesafe_jax.offline_rl.policies import GaussianPolicy, log_likelihood
from edgesafe_jax.offline_rl.relabelling import Batch
from edgesafe_jax.typing import Array, Params, PRNGKey


class IQLState(struct.PyTreeNode):
    """Policy, critics and state value, each with its optimiser, and the critics' slow copies."""

    policy: NetworkState
    critics: NetworkState
    value: NetworkState
    target_critics: tuple[Params, Params]


def expectile_loss(errors: Array, expectile: float) -> Array:
    r"""Asymmetric square :math:`|\tau - 1[u < 0]|\, u^2`, per element.

    Args:
      errors: u, any shape.
      expectile: tau, inside (0, 1); 0.5 gives half the square.

    Returns:
      The losses, of the same shape.

    Example:
      >>> expectile_loss(jnp.array([-1.0, 2.0]), 0.75).tolist()
      [0.25, 3.0]
    """
    return jnp.where(errors < 0, 1 - expectile, expectile) * errors**2


def make_iql(
    *,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    target_rate: float = 0.005,
    expectile: float = 0.7,
    temperature: float = 3.0,
    max_weight: float = 100.0,
) -> Learner:
    r"""Makes IQL; one update is one step of value, critics and policy on one batch.

    .. math:: L_V = L^\tau_2(\min_i \bar Q_i(s, a) - V(s)), \quad
              L_Q = (r + \gamma (1-d) V(s') - Q_i(s, a))^2, \quad
              L_\pi = -\min(e^{\beta (\min_i \bar Q_i - V)}, w)\, \log \pi(a | s)

    Args:
      hidden: widths of the hidden layers.
      learning_rate: of Adam.
      discount: gamma.
      target_rate: of the critics' slow copies.
      expectile: tau; towards 1 the best action that the data hold counts.
      temperature: beta.
      max_weight: w.

    Returns:
      The learner. Its metrics are ``critic_loss``, ``value_loss``, ``actor_loss`` and ``value``.

    Raises:
      LearningError: a setting is out of range.
    """
    check_learner(hidden=hidden, learning_rate=learning_rate, discount=discount, target_rate=target_rate)
    check_learner(expectile=expectile, temperature=temperature, max_weight=max_weight)
    network = MLP((*hidden, 1))
    optimizer = optax.adam(learning_rate)

    def policy(params: Params, observations: Array) -> tuple[Array, Array]:
        size = params["log_std"].shape[-1]
        return GaussianPolicy(hidden, size).apply({"params": params}, observations)  # type: ignore[return-value]

    def state_value(params: Params, observations: Array) -> Array:
        return network.apply({"params": params}, observations)[..., 0]  # type: ignore[index]

    def init(key: PRNGKey, observation: Array, action: Array) -> IQLState:
        key_policy, key_critics, key_value = jax.random.split(key, 3)
        actor = GaussianPolicy(hidden, action.shape[-1]).init(key_policy, observation)["params"]
        critics = init_critics(key_critics, network, observation, action)
        value = network.init(key_value, observation)["params"]
        starts = [start_training(params, optimizer) for params in (actor, critics, value)]  # type: ignore[arg-type]
        return IQLState(*starts, target_critics=critics)

    def update(key: PRNGKey, state: IQLState, batches: Batch) -> tuple[IQLState, dict[str, Array]]:
        del key
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        data_values = jnp.min(critic_values(network, state.target_critics, batch.observations, batch.actions), 0)

        def value_loss(params: Params) -> tuple[Array, Array]:
            advantages = data_values - state_value(params, batch.observations)
            return jnp.mean(expectile_loss(advantages, expectile)), advantages

        (v_loss, advantages), gradient = jax.value_and_grad(value_loss, has_aux=True)(state.value.params)
        value = descend(state.value, gradient, optimizer)

        def policy_loss(params: Params) -> Array:
            weights = jnp.minimum(jnp.exp(temperature * advantages), max_weight)
            return -jnp.mean(weights * log_likelihood(*policy(params, batch.observations), batch.actions))

        p_loss, gradient = jax.value_and_grad(policy_loss)(state.policy.params)
        actor = descend(state.policy, gradient, optimizer)
        target = batch.rewards + discount * (1 - batch.terminals) * state_value(value.params, batch.next_observations)

        def critic_loss(params: tuple[Params, Params]) -> Array:
            values = critic_values(network, params, batch.observations, batch.actions)
            return jnp.sum(jnp.mean((values - target[None]) ** 2, axis=1))

        c_loss, gradient = jax.value_and_grad(critic_loss)(state.critics.params)
        critics = descend(state.critics, gradient, optimizer)
        state = IQLState(actor, critics, value, polyak(state.target_critics, critics.params, target_rate))
        return state, {
            "critic_loss": c_loss,
            "value_loss": v_loss,
            "actor_loss": p_loss,
            "value": jnp.mean(data_values),
        }

    return Learner(init, update, lambda state, observation: policy(state.policy.params, observation)[0])
