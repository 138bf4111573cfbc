"""The update of the suite `offline_rl` in d3rlpy and in JAX-CORL; each function returns nothing where it is missing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.benchmarks import offline_rl
from edgesafe_jax.offline_rl import OfflineDataset


def d3rlpy_peer(dataset: OfflineDataset) -> Callable[[int], None] | None:
    """The same networks and batches in d3rlpy, or None where it is not installed."""
    try:
        import d3rlpy  # pyright: ignore[reportMissingImports]  # the peer only
    except ImportError:
        return None
    d3rlpy.logging.set_log_context(epoch=0)
    size = offline_rl.NUM_ROWS // offline_rl.EPISODE
    replay = d3rlpy.dataset.MDPDataset(
        observations=np.asarray(dataset.states),
        actions=np.asarray(dataset.actions),
        rewards=np.asarray(dataset.rewards)[:, None],
        terminals=np.zeros(offline_rl.NUM_ROWS, np.float32),
        timeouts=np.asarray(dataset.ends, np.float32),
    )
    assert replay.size() == size
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=list(offline_rl.HIDDEN))
    algorithm = d3rlpy.algos.TD3PlusBCConfig(
        batch_size=offline_rl.BATCH, actor_encoder_factory=encoder, critic_encoder_factory=encoder
    ).create(device="cpu")
    algorithm.build_with_dataset(replay)

    def measured(num_updates: int) -> None:
        for _ in range(num_updates):
            algorithm.update(replay.sample_transition_batch(offline_rl.BATCH))

    return measured


def jax_corl_peer(dataset: OfflineDataset) -> Callable[[int], None] | None:
    """The same in JAX-CORL, or None where its files or what they import are not on the path."""
    try:
        import td3bc  # pyright: ignore[reportMissingImports]  # the peer only
    except ImportError:
        return None
    config = td3bc.TD3BCConfig(batch_size=offline_rl.BATCH, hidden_dims=offline_rl.HIDDEN)
    data = td3bc.Transition(
        observations=jnp.asarray(dataset.states),
        actions=jnp.asarray(dataset.actions),
        rewards=jnp.asarray(dataset.rewards),
        next_observations=jnp.asarray(dataset.next_states),
        dones=jnp.zeros(offline_rl.NUM_ROWS),
    )
    key = jax.random.key(0)
    start = td3bc.create_td3bc_train_state(key, data.observations[0], data.actions[0], config)
    update = jax.jit(td3bc.TD3BC.update_n_times, static_argnums=3)

    def measured(num_updates: int) -> None:
        state = start
        for call in range(num_updates // config.n_jitted_updates):
            state, _ = update(state, data, jax.random.fold_in(key, call), config)
        jax.block_until_ready(state)

    return measured


PEERS: dict[str, offline_rl.Peer] = {"d3rlpy": d3rlpy_peer, "JAX-CORL": jax_corl_peer}
"""By name, what makes the same update in another library."""
