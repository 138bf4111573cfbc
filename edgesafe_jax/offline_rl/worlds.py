"""The worlds that policies are trained in, by name."""

from collections.abc import Callable, Mapping

from edgesafe_jax.offline_rl import ant, maze, tasks

WORLDS: Mapping[str, Callable[[], tasks.Task]] = {
    **tasks.TASKS,
    "point_maze": maze.make_point_maze,
    "ant": ant.make_ant,
}
"""The tasks by the name that configs use."""
