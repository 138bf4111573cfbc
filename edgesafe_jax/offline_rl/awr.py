r"""Advantage-weighted regression on critics of the policy itself, in the manner of CRR.

Unlike the original AWR, whose values are Monte-Carlo returns, the critics are learned by temporal differences of the
policy's own actions; `exponential_weights` and `binary_weights` are the two filters of CRR.

Reference:
  Peng, Kumar, Zhang and Levine, "Advantage-Weighted Regression", 2019.
  Wang et al., "Critic Regularized Regression", 2020, equations 3 and 4.
"""

from collections.abc import Callable

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
from edgesafe_jax.offline_rl.policies import GaussianPolicy, draw_actions, log_likelihood
from edgesafe_jax.offline_rl.relabelling import Batch
from edgesafe_jax.typing import Array, Params, PRNGKey

Weights = Callable[[Array], Array]
"""From advantages to weights of the regression, per element."""


class AWRState(struct.PyTreeNode):
    """Policy and critics, each with its optimiser, and their slow copies."""

    policy: NetworkState
    critics: NetworkState
    target_policy: Params
    target_critics: tuple[Params, Params]


def exponential_weights(temperature: float = 1.0, max_weight: float = 20.0) -> Weights:
    r"""Returns :math:`\min(e^{A / \beta}, w)` as a function of advantages."""
    return lambda advantages: jnp.minimum(jnp.exp(advantages / temperature), max_weight)


def binary_weights() -> Weights:
    r"""Returns :math:`1[A > 0]` as a function of advantages."""
    return lambda advantages: (advantages > 0).astype(advantages.dtype)


def make_awr(
    *,
    weights: Weights | None = None,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 3e-4,
    discount: float = 0.99,
    target_rate: float = 0.005,
    num_actions: int = 4,
) -> Learner:
    r"""Makes advantage-weighted regression; one update is one step of critics and policy on one batch.

    .. math:: A(s, a) = \min_i Q_i(s, a) - \tfrac1m \sum_{j} \min_i Q_i(s, a_j),\ a_j \sim \pi; \qquad
              L_\pi = -f(A)\, \log \pi(a | s)

    Args:
      weights: f; None: `exponential_weights()`.
      hidden: widths of the hidden layers.
      learning_rate: of Adam.
      discount: gamma.
      target_rate: of the slow copies of policy and critics.
      num_actions: m.

    Returns:
      The learner. Its metrics are ``critic_loss``, ``actor_loss`` and ``value``.

    Raises:
      LearningError: a setting is out of range.
    """
    check_learner(hidden=hidden, learning_rate=learning_rate, discount=discount, target_rate=target_rate)
    check_learner(num_actions=num_actions)
    weigh = weights or exponential_weights()
    network = MLP((*hidden, 1))
    optimizer = optax.adam(learning_rate)

    def policy(params: Params, observations: Array) -> tuple[Array, Array]:
        size = params["log_std"].shape[-1]
        return GaussianPolicy(hidden, size).apply({"params": params}, observations)  # type: ignore[return-value]

    def init(key: PRNGKey, observation: Array, action: Array) -> AWRState:
        key_policy, key_critics = jax.random.split(key)
        actor = GaussianPolicy(hidden, action.shape[-1]).init(key_policy, observation)["params"]
        critics = init_critics(key_critics, network, observation, action)
        return AWRState(start_training(actor, optimizer), start_training(critics, optimizer), actor, critics)  # type: ignore[arg-type]

    def update(key: PRNGKey, state: AWRState, batches: Batch) -> tuple[AWRState, dict[str, Array]]:
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        key_next, key_baseline = jax.random.split(key)
        next_actions = draw_actions(key_next, *policy(state.target_policy, batch.next_observations))
        next_values = critic_values(network, state.target_critics, batch.next_observations, next_actions)
        target = batch.rewards + discount * (1 - batch.terminals) * jnp.min(next_values, 0)

        def critic_loss(params: tuple[Params, Params]) -> tuple[Array, Array]:
            values = critic_values(network, params, batch.observations, batch.actions)
            return jnp.sum(jnp.mean((values - target[None]) ** 2, axis=1)), jnp.min(values, 0)

        (c_loss, values), gradient = jax.value_and_grad(critic_loss, has_aux=True)(state.critics.params)
        mean, log_std = policy(state.policy.params, batch.observations)

        def baseline(key: PRNGKey) -> Array:
            actions = draw_actions(key, mean, log_std)
            return jnp.min(critic_values(network, state.critics.params, batch.observations, actions), 0)  # type: ignore[arg-type]

        advantages = values - jnp.mean(jax.vmap(baseline)(jax.random.split(key_baseline, num_actions)), 0)
        critics = descend(state.critics, gradient, optimizer)

        def policy_loss(params: Params) -> Array:
            return -jnp.mean(weigh(advantages) * log_likelihood(*policy(params, batch.observations), batch.actions))

        p_loss, gradient = jax.value_and_grad(policy_loss)(state.policy.params)
        actor = descend(state.policy, gradient, optimizer)
        state = AWRState(
            policy=actor,
            critics=critics,
            target_policy=polyak(state.target_policy, actor.params, target_rate),
            target_critics=polyak(state.target_critics, critics.params, target_rate),
        )
        return state, {"critic_loss": c_loss, "actor_loss": p_loss, "value": jnp.mean(values)}

    return Learner(init, update, lambda state, observation: policy(state.policy.params, observation)[0])
