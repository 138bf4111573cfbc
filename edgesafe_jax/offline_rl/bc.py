"""Behaviour cloning: regression on the actions of the data, the baseline of offline algorithms."""

import jax
import jax.numpy as jnp
import optax

from edgesafe_jax.offline_rl.learning import MLP, Learner, NetworkState, check_learner, descend, start_training
from edgesafe_jax.offline_rl.relabelling import Batch
from edgesafe_jax.typing import Array, Params, PRNGKey


def make_bc(*, hidden: tuple[int, ...] = (256, 256), learning_rate: float = 3e-4) -> Learner:
    r"""Makes behaviour cloning of a deterministic policy; one update is one step on one batch.

    .. math:: L_\pi = \mathrm{mean}\, (\pi(s) - a)^2

    Args:
      hidden: widths of the hidden layers.
      learning_rate: of Adam.

    Returns:
      The learner. Its metric is ``actor_loss``.

    Raises:
      LearningError: a setting is out of range.
    """
    check_learner(hidden=hidden, learning_rate=learning_rate)
    optimizer = optax.adam(learning_rate)

    def policy(params: Params, observations: Array) -> Array:
        size = params[f"Dense_{len(hidden)}"]["bias"].shape[-1]
        return jnp.tanh(MLP((*hidden, size)).apply({"params": params}, observations))  # type: ignore[arg-type]

    def init(key: PRNGKey, observation: Array, action: Array) -> NetworkState:
        return start_training(MLP((*hidden, action.shape[-1])).init(key, observation)["params"], optimizer)

    def update(key: PRNGKey, state: NetworkState, batches: Batch) -> tuple[NetworkState, dict[str, Array]]:
        del key
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        value, gradient = jax.value_and_grad(
            lambda params: jnp.mean((policy(params, batch.observations) - batch.actions) ** 2)
        )(state.params)
        return descend(state, gradient, optimizer), {"actor_loss": value}

    return Learner(init, update, lambda state, observation: policy(state.params, observation))
