"""The worlds that policies are trained in, by name, and worlds of one's own."""

from collections.abc import Callable, Mapping

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.offline_rl import ant, arm, grounds, maze, tasks
from edgesafe_jax.planning.own_tasks import import_named

WORLDS: Mapping[str, Callable[[], tasks.Task]] = {
    **tasks.TASKS,
    "river": grounds.make_river,
    "patches": grounds.make_patches,
    "arm": arm.make_arm,
    "point_maze": maze.make_point_maze,
    "ant": ant.make_ant,
}
"""The tasks by the name that configs use."""


def make_world(name: str, what: str = "config.world") -> tasks.Task:
    """Makes a task by its name, or by the callable that makes it.

    Args:
      name: one of `WORLDS`, or ``"module:callable"``, a callable without arguments that returns a `Task` (such as
        `make_data_task` makes of a world without a simulator); modules of the current directory are found too.
      what: what messages call the name.

    Returns:
      The task, checked.

    Raises:
      ConfigError: there is no such world, module or callable, or the callable returns no task.
      TaskError: a callable of the task returns another shape than it should.
    """
    if ":" not in name:
        return lookup(WORLDS, name, what)()
    expected = "expected module:callable, where the callable returns an edgesafe_jax.offline_rl.tasks.Task"
    try:
        make = import_named(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{what}={name!r} cannot be imported ({error}): {expected}") from error
    task = make() if callable(make) else make
    if not isinstance(task, tasks.Task):
        raise ConfigError(f"{what}={name!r} gives a {type(task).__name__}: {expected}")
    tasks.check_task(task)
    return task
