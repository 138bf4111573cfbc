"""One update of TD3+BC: networks of two hidden layers of 256, batches of 256 from a data set of 17 + 6 dimensions.

An update is one gradient step of both critics on one batch, with one step of the actor and of the slow copies for every
two of them; drawing the batch counts. Updates per CPU-second divide by the processor time of all threads, so that a
library that uses more of them gains nothing. The peers, on the same data, each where it can be imported: d3rlpy's
`TD3PlusBC.update`, and `TD3BC.update_n_times` of JAX-CORL, single files of which `algos` has to be on the path, eight
updates a call as it has them; its critics have layer normalisation besides.

On an accelerator the figure that counts is updates per second, which rise with the number of seeds trained at once
until the device is full: 64 seeds are measured there besides.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from edgesafe_jax.benchmarks.harness import in_turn, key_of
from edgesafe_jax.offline_rl import (
    OfflineDataset,
    Sampling,
    make_dataset,
    make_sampler,
    make_sampler_data,
    make_td3_bc,
    make_trainer,
)

NUM_ROWS, STATE, ACTION, EPISODE, BATCH, HIDDEN = 20_000, 17, 6, 200, 256, (256, 256)
NUM_UPDATES, NUM_RUNS = 96, 5
Peer: TypeAlias = Callable[[OfflineDataset], Callable[[int], None] | None]
SEEDS_AT_ONCE, SEEDS_ON_ACCELERATOR = (8,), (8, 64)


def _dataset() -> OfflineDataset:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(NUM_ROWS, STATE))
    return make_dataset(
        states=states,
        actions=rng.uniform(-1, 1, (NUM_ROWS, ACTION)),
        rewards=rng.normal(size=NUM_ROWS),
        next_states=np.roll(states, -1, axis=0),
        ends=np.arange(NUM_ROWS) % EPISODE == EPISODE - 1,
    )


def _ours(dataset: OfflineDataset, *, num_seeds: int) -> Callable[[int], None]:
    sampler = make_sampler(Sampling(achieved=lambda state: state[:0], reward_fn=lambda state, goal: state[0]))
    trainer = make_trainer(make_td3_bc(hidden=HIDDEN), sampler, num_updates=NUM_UPDATES, batch_size=BATCH)
    data = make_sampler_data(dataset)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    if num_seeds == 1:
        agents, keys = trainer.init(keys[0], data), keys[0]
        run = jax.jit(trainer.run)
    else:
        agents = jax.vmap(trainer.init, in_axes=(0, None))(keys, data)
        run = jax.jit(jax.vmap(trainer.run, in_axes=(0, 0, None)))

    def measured(_: int) -> None:
        jax.block_until_ready(run(keys, agents, data))

    return measured


def run(peers: Mapping[str, Peer] | None = None) -> dict[str, Any]:
    """Measures the candidates in turn.

    Args:
      peers: by name, what makes the same update in another library: from the data set to a function of the number of
        updates, or None where it is not installed.

    Returns:
      Rows of a table and flat numbers.
    """
    dataset = _dataset()
    many = SEEDS_AT_ONCE if jax.default_backend() == "cpu" else SEEDS_ON_ACCELERATOR
    candidates = {
        "edgesafe_jax": (_ours(dataset, num_seeds=1), NUM_UPDATES, 1),
        **{f"edgesafe_jax, {num} seeds at once": (_ours(dataset, num_seeds=num), NUM_UPDATES, num) for num in many},
        **{name: (make(dataset), NUM_UPDATES, 1) for name, make in (peers or {}).items()},
    }
    present = {name: (step, count, seeds) for name, (step, count, seeds) in candidates.items() if step is not None}
    runs = {name: functools.partial(step, count) for name, (step, count, _) in present.items()}
    times = in_turn(runs, num_runs=NUM_RUNS)

    def rates(name: str) -> np.ndarray:
        """Updates of one seed per second of processor and of wall time `[2, N]`."""
        _, count, seeds = present[name]
        return count * seeds / np.array([times[name].processor, times[name].wall])

    ours_per_cpu, ours_per_wall = rates("edgesafe_jax")
    rows, values = [], {}
    for name, measured in times.items():
        per_cpu, per_wall = rates(name)
        ratio, best = float(np.median(ours_per_cpu / per_cpu)), float(ours_per_cpu.max() / per_cpu.max())
        rows.append(
            {
                "update": name,
                "first call (s)": measured.first,
                "per CPU-second": float(np.median(per_cpu)),
                "min": float(per_cpu.min()),
                "max": float(per_cpu.max()),
                "per second": float(np.median(per_wall)),
                "per second / edgesafe_jax": float(np.median(per_wall / ours_per_wall)),
                "edgesafe_jax / this": ratio,
                "best / best": best,
            }
        )
        values |= {
            f"{key_of(name)}/updates_per_cpu_second": float(np.median(per_cpu)),
            f"{key_of(name)}/updates_per_second": float(np.median(per_wall)),
            f"{key_of(name)}/ratio": ratio,
            f"{key_of(name)}/best_ratio": best,
        }
    return {"rows": rows, "values": values}
