"""One of several processes of a tiny training, for the tests of signals and of processes that end.

`python -m tests.training.multihost_run ADDRESS NUM_PROCESSES PROCESS_ID WORKDIR WHAT` where WHAT is `signals`, or
`KILL:NUMBER` or `FAIL:NUMBER` for a process that kills itself, or raises an error, in the middle of the run.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.parallel import initialize_multihost, make_data_mesh, replicate, shard_batch
from edgesafe_jax.training import Checkpoints, MetricWriter, Trained, TrainingStopped, read_metrics, train
from launch.errors import reported
from tests.training import linear_run

NUM_STEPS = 8


def run(workdir: Path, happens: Callable[[int], object], *, num_steps: int = NUM_STEPS) -> Trained:
    """Trains; nothing is fetched before the end of the run."""
    mesh = make_data_mesh()
    data = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

    def batches(step: int):
        happens(step)
        return shard_batch(data + np.float32(step), mesh)

    with (
        MetricWriter(workdir, tensorboard=False) as writer,
        Checkpoints(workdir / "checkpoints", save_interval=100) as checkpoints,
    ):
        return train(
            linear_run.step_fn,
            replicate(linear_run.start_state(), mesh),
            batches,
            num_steps=num_steps,
            writer=writer,
            checkpoints=checkpoints,
            log_every=1000,
            progress=False,
        )


def terminate_at(step: int) -> Callable[[int], object]:
    """SIGTERM to the last process alone."""
    is_last = jax.process_index() == jax.process_count() - 1
    return lambda now: os.kill(os.getpid(), signal.SIGTERM) if is_last and now == step else None


def stop_and_go_on(workdir: Path) -> None:
    """Stops at a signal in the middle and in the last step, and compares with a run that nothing stops."""
    stops = []
    for step in (3, NUM_STEPS - 1):
        try:
            run(workdir, terminate_at(step))
        except TrainingStopped as stopped:
            stops.append((stopped.code, Checkpoints(workdir / "checkpoints").steps()[-1]))
    trained, steady = run(workdir, lambda step: None), run(workdir / "steady", lambda step: None)
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), trained.params, steady.params)
    steps = [line["step"] for line in read_metrics(workdir)]
    print(json.dumps({"stops": stops, "same": all(jax.tree.leaves(same)), "steps": steps}))


if __name__ == "__main__":
    address, num_processes, process_id, folder, what = sys.argv[1:]
    initialize_multihost(address, int(num_processes), int(process_id))
    if what == "signals":
        stop_and_go_on(Path(folder))
        sys.exit()
    kind, number = what.split(":")

    def happens(step: int) -> None:
        if step == 5 and process_id == number:
            if kind == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise EdgesafeError("the disk is full")

    with reported():
        run(Path(folder), happens, num_steps=10_000)
