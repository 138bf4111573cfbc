r"""Trains what a config describes, or continues where it was interrupted.

    python -m launch.train --config=configs/align_soft_prompt.py --workdir=DIR [--config.FIELD=VALUE ...]

The run is its work directory: the same command resumes it, another config in it is refused.

On several hosts the command is started once in each (under Slurm, Open MPI or on a TPU pod; elsewhere with
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID), with a work directory that all of them see: the task
"alignment" then splits its batches over all devices. The other tasks run in one process. config.parallel.fsdp and
config.parallel.tensor split each copy of its model over devices of one process.
"""

from . import alignment, errors, guards, offline, startup

TASKS: dict[str, startup.Task] = {
    "alignment": alignment.train,
    "dynamics_equivariance": offline.train_dynamics,
    "guard_probe": guards.train_probe,
    "guard_judge": guards.train_judge,
    "guard_consistency": guards.train_consistency,
    "guard_smol": guards.train_smolguard,
    "guard_unseen": guards.train_unseen,
    "offline_rl": offline.train,
}
"""The tasks, by the names that `config.task` takes."""

MULTIHOST = ("alignment",)
"""Tasks that may run in several processes."""


define_flags = startup.define_config_flags


def main(argv: list[str]) -> None:
    """Runs the task of the config."""
    startup.run_task(TASKS, multihost=MULTIHOST)


if __name__ == "__main__":
    errors.start(define_flags, main)
