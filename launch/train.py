r"""Trains what a config describes, or continues where it was interrupted.

    python -m launch.train --config=configs/align_soft_prompt.py --workdir=DIR [--config.FIELD=VALUE ...]

The run is its work directory: the same command resumes it, another config in it is refused.

On several hosts the command is started once in each (under Slurm, Open MPI or on a TPU pod; elsewhere with
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), with a work directory that all of them see: the task
"alignment" then splits its batches over all devices. The other tasks run in one process.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from launch import alignment, errors, guards, offline, startup

Task = Callable[[Mapping[str, Any], str | Path], Path]

TASKS: dict[str, Task] = {
    "alignment": alignment.train,
    "dynamics_equivariance": offline.train_dynamics,
    "guard_probe": guards.train_probe,
    "guard_judge": guards.train_judge,
    "guard_consistency": guards.train_consistency,
    "guard_smol": guards.train_smolguard,
    "offline_rl": offline.train,
}
"""What `config.task` may name, and what runs it."""

MULTIHOST = ("alignment",)
"""Tasks that may run in several processes."""


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where everything about the run is written.")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the task of the config."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    startup.configure()
    with errors.reported():
        config = flags.FLAGS.config.to_dict()
        task = errors.lookup(TASKS, config.get("task"), "config.task")
        if jax.process_count() > 1 and config["task"] not in MULTIHOST:
            raise errors.ConfigError(
                f"config.task={config['task']!r} runs in one process and {jax.process_count()} were started: expected "
                f"one, or a task of {', '.join(MULTIHOST)}."
            )
        task(config, flags.FLAGS.workdir)


def run() -> None:
    """Parses the flags and runs."""
    define_flags()
    app.run(main, flags_parser=errors.parse_flags)


if __name__ == "__main__":
    run()
