r"""Trains what a config describes, or continues where it was interrupted.

    python -m launch.train --config=configs/align_soft_prompt.py --workdir=DIR [--config.FIELD=VALUE ...]

The run is its work directory: the same command resumes it, another config in it is refused.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from launch import alignment, consistency, errors, guards, offline, offline_runs, smolguard, startup

Task = Callable[[Mapping[str, Any], str | Path], Path]

TASKS: dict[str, Task] = {
    "alignment": alignment.train,
    "dynamics_equivariance": offline.train_dynamics,
    "guard_probe": guards.train_probe,
    "guard_judge": guards.train_judge,
    "guard_consistency": consistency.train,
    "guard_smol": smolguard.train,
    "offline_rl": offline_runs.train,
}
"""What `config.task` may name, and what runs it."""


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
        task(config, flags.FLAGS.workdir)


def run() -> None:
    """Parses the flags and runs."""
    define_flags()
    app.run(main, flags_parser=errors.parse_flags)


if __name__ == "__main__":
    run()
