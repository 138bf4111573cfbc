"""The tasks by name, by the simulator that runs them."""

import functools
from collections.abc import Callable

from edgesafe_jax.errors import lookup
from edgesafe_jax.planning.jax_tasks import BRAX_TASKS, brax_task, double_integrator
from edgesafe_jax.planning.own_tasks import xml_task
from edgesafe_jax.planning.paper_tasks import door, fetch_pick_and_place, half_cheetah, humanoid_standup, relocate
from edgesafe_jax.planning.suite_tasks import DEFINITIONS, suite_task
from edgesafe_jax.planning.tasks import JaxTask, MujocoTask

TASKS: dict[str, Callable[..., MujocoTask]] = {
    "halfcheetah": half_cheetah,
    "humanoidstandup": humanoid_standup,
    "fetch_pick_and_place": fetch_pick_and_place,
    "door": door,
    "relocate": relocate,
}
"""The five tasks of the iCEM paper, by name."""

ENVIRONMENTS: dict[str, dict[str, Callable[..., JaxTask | MujocoTask]]] = {
    "mujoco": {
        **TASKS,
        "door_no_velocity": functools.partial(door, velocity_weight=0.0),
        **{name: functools.partial(suite_task, name) for name in DEFINITIONS},
    },
    "brax": {name: functools.partial(brax_task, name) for name in BRAX_TASKS},
    "closed_form": {"double_integrator": double_integrator},
}
"""From the name of a simulator to its tasks by name."""


def make_task(simulator: str, name: str, *, cost: str = "", num_threads: int | None = None) -> JaxTask | MujocoTask:
    """Makes a task.

    Args:
      simulator: a key of `ENVIRONMENTS`: ``"mujoco"``, ``"brax"`` or ``"closed_form"``.
      name: one of its tasks; or, of C MuJoCo, the path of an XML.
      cost: of an XML, as `"module:function"`, see `xml_task`.
      num_threads: of C MuJoCo; None takes one per processor.

    Returns:
      The task.

    Raises:
      ConfigError: there is no such simulator, or it has no such task.
      PlanningError: see `xml_task`.
    """
    if simulator == "mujoco" and name.endswith(".xml"):
        return xml_task(name, cost, num_threads)
    make = lookup(lookup(ENVIRONMENTS, simulator, "simulator"), name, f"task of the simulator {simulator}")
    return make() if simulator != "mujoco" or num_threads is None else make(num_threads=num_threads)
