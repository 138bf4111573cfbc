"""The fields of experiments: what each field of every config may hold, declared here and read by one checker.

A config is a file of `configs/` or a user's own; its `task` names the fields. To declare the field of a task, add a
line to the task's function; options of adapters, objectives and learners are declared where these are registered.
Launchers call `check_fields` before they write anything.
"""

from collections.abc import Callable, Mapping
from typing import Any

from edgesafe_jax.errors import lookup
from edgesafe_jax.fields.alignment import alignment_fields
from edgesafe_jax.fields.declared import Field, Fields, Name, check_declared
from edgesafe_jax.fields.guards import consistency_fields, head_fields, smolguard_fields, unseen_fields
from edgesafe_jax.fields.offline_rl import dynamics_fields, offline_rl_fields
from edgesafe_jax.fields.planning import planning_fields, planning_study_fields
from edgesafe_jax.fields.sweeps import sweep_fields

__all__ = ["FIELDS", "Field", "Fields", "check_fields", "fields_of"]

FIELDS: dict[str, Callable[[], Fields]] = {
    "alignment": alignment_fields,
    "dynamics_equivariance": dynamics_fields,
    "guard_consistency": consistency_fields,
    "guard_judge": lambda: head_fields("judge"),
    "guard_probe": lambda: head_fields("teacher"),
    "guard_smol": smolguard_fields,
    "guard_unseen": unseen_fields,
    "offline_rl": offline_rl_fields,
    "planning": planning_fields,
    "planning_study": planning_study_fields,
    "sweep": sweep_fields,
}
"""The fields of each task, read anew at each call: what a user registers counts."""


def fields_of(task: str) -> Fields:
    """Returns the fields of a task by dotted name, `task` among them.

    Raises:
      ConfigError: there is no such task.
    """
    return {"task": Name((task,)), **lookup(FIELDS, task, "config.task")()}


def check_fields(config: Mapping[str, Any], *, below: str = "") -> None:
    """Checks every field of a config.

    Args:
      config: of an experiment.
      below: only the fields of this part, such as "evaluation"; default all.

    Raises:
      ConfigError: a field is missing, undeclared, or holds what it may not.
    """
    fields = fields_of(config.get("task", ""))
    if below:
        fields = {
            name.removeprefix(f"{below}."): field for name, field in fields.items() if name.startswith(f"{below}.")
        }
        check_declared(config[below], fields, prefix=f"config.{below}.")
    else:
        check_declared(config, fields)
