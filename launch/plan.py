r"""Plans in the closed loop: runs the experiment of a config in a work directory.

    python -m launch.plan --config=configs/plan_icem.py:halfcheetah --workdir=DIR [--config.field=value ...]

The same command continues a killed run.
"""

from . import errors, planning, planning_study, startup

TASKS: dict[str, startup.Task] = {
    "planning": planning.run,
    "planning_study": planning_study.study,
}
"""The tasks, by the names that `config.task` takes."""


define_flags = startup.define_config_flags


def main(argv: list[str]) -> None:
    """Runs the task of the config."""
    print(f"wrote {startup.run_task(TASKS)}")


if __name__ == "__main__":
    errors.start(define_flags, main)
