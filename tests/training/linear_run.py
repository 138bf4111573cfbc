"""A tiny run for the tests of resuming: a linear model, also started as a process that can be killed.

`python -m tests.training.linear_run WORKDIR NUM_STEPS SECONDS_PER_STEP`
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax.training import (
    Checkpoints,
    EvalSchedule,
    MetricWriter,
    Trained,
    TrainState,
    apply_gradients,
    init_state,
    make_data_order,
    train,
)

OPTIMIZER = optax.adam(0.05)
DATA = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
ORDER = make_data_order(24, 5, seed=1)


def make_batch(step: int) -> np.ndarray:
    return DATA[ORDER(step)]


def start_state() -> TrainState:
    return init_state({"w": jnp.zeros(3), "b": jnp.zeros(())}, OPTIMIZER, key=jax.random.key(7))


@jax.jit
def step_fn(state: TrainState, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    key, noise_key = jax.random.split(state.key)
    noise = 0.1 * jax.random.normal(noise_key, (batch.shape[0],))

    def loss_fn(params):
        error = batch @ params["w"] + params["b"][None] - batch.sum(1) - noise
        return jnp.mean(error**2)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    state = apply_gradients(state, gradients, OPTIMIZER).replace(key=key)
    return state, {"loss": loss, "norm": optax.tree.norm(gradients)}


@jax.jit
def _score(params) -> jax.Array:
    # The best parameters are reached on the way, so that the best and the last differ.
    return -jnp.abs(params["w"].sum() - 1.4)


def score(state: TrainState) -> float:
    return float(_score(state.params))


def run(
    workdir: Path,
    *,
    num_steps: int = 20,
    batches: Callable[[int], np.ndarray] = make_batch,
    patience: int | None = None,
) -> Trained:
    with (
        MetricWriter(workdir, tensorboard=False) as writer,
        Checkpoints(workdir / "checkpoints", keep=2, save_interval=6) as checkpoints,
    ):
        return train(
            step_fn,
            start_state(),
            batches,
            num_steps=num_steps,
            writer=writer,
            checkpoints=checkpoints,
            log_every=4,
            evaluation=EvalSchedule(score, every=5, patience=patience),
            progress=False,
        )


if __name__ == "__main__":

    def slow_batch(step: int) -> np.ndarray:
        time.sleep(float(sys.argv[3]))
        return make_batch(step)

    run(Path(sys.argv[1]), num_steps=int(sys.argv[2]), batches=slow_batch)
