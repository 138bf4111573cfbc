r"""Plans in the closed loop: runs the experiment of a config in a work directory.

    python -m launch.plan --config=configs/plan_icem.py:halfcheetah --workdir=DIR [--config.field=value ...]

The same command continues a killed run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from launch import errors, planning, planning_study, startup

TASKS: dict[str, Callable[[dict[str, Any], str], Path]] = {
    "planning": planning.run,
    "planning_study": planning_study.study,
}
"""What `config.task` may name."""


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
        print(f"wrote {task(config, flags.FLAGS.workdir)}")


def run() -> None:
    """Parses the flags and runs."""
    define_flags()
    app.run(main, flags_parser=errors.parse_flags)


if __name__ == "__main__":
    run()
