"""The tiny run of `linear_run` with the command line of a launcher, for the test of random kills.

`python -m tests.training.killed_run --config.num_steps=N --config.save_every=N --workdir=DIR`
"""

import sys
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from edgesafe_jax.training import open_workdir
from launch.errors import reported
from tests.training import linear_run


def slow_batch(step: int) -> np.ndarray:
    time.sleep(0.05)
    return linear_run.make_batch(step)


if __name__ == "__main__":
    given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
    with reported():
        workdir = open_workdir(Path(given["workdir"]), {"num_steps": given["config.num_steps"]})
        trained = linear_run.run(workdir, num_steps=int(given["config.num_steps"]), batches=slow_batch)
        (workdir / "adapter").mkdir(exist_ok=True)
        arrays = {name: np.asarray(leaf) for name, leaf in trained.state.params.items()}
        safetensors.numpy.save_file(arrays, workdir / "adapter" / "adapter.safetensors")
