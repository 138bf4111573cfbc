"""Sections of a report on planning: episodes with their poses, and studies of several planners."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.planning import JaxTask, MujocoTask, figure_segments
from edgesafe_jax.planning.study import Cells, interval_of, returns_by_seed
from edgesafe_jax.reporting.curves import curves, pose_animation, pose_strip
from edgesafe_jax.reporting.html import Section


def episode_section(
    heading: str, episodes: Mapping[str, Mapping[str, np.ndarray]], task: JaxTask | MujocoTask
) -> Section:
    """Curves of the reward so far and, for MuJoCo, poses along each of the named episodes."""
    section = Section(heading, order=1)
    section.figure(
        curves(
            {name: list(enumerate(np.cumsum(episode["reward"]), start=1)) for name, episode in episodes.items()},
            xlabel="step",
            ylabel="reward so far",
            markers=False,
        ),
        alt="Sum of the rewards against the step of the episode",
        caption="Reward so far, in the true environment",
    )
    if isinstance(task, MujocoTask):
        for name, episode in episodes.items():
            chosen = np.linspace(0, len(episode["physics"]) - 1, 8).astype(int)
            poses = [_pose(episode, index, task) for index in chosen]
            seconds = [f"{(index + 1) * task.control_step:.1f} s" for index in chosen]
            section.figure(
                pose_strip(poses, captions=seconds, title=name),
                alt=f"Eight poses along the episode of {name}, seen from the side",
                caption="Segments of the bodies, seen from the side; marks on the ground, if any, are one metre apart",
            )
    return section


def _pose(episode: Mapping[str, np.ndarray], index: int, task: MujocoTask) -> tuple[np.ndarray, np.ndarray]:
    mocap = episode["mocap"][index] if "mocap" in episode else None
    return figure_segments(task.world.model, episode["physics"][index], mocap=mocap)


def episode_animation(episode: Mapping[str, np.ndarray], task: MujocoTask) -> bytes:
    """An episode at its own speed as a GIF of at most 75 poses, whatever its length."""
    num_steps, step = len(episode["physics"]), task.control_step
    stride = max(math.ceil(num_steps / 75), math.ceil(0.04 / step))
    chosen = range(0, num_steps, stride)
    return pose_animation(
        [_pose(episode, index, task) for index in chosen],
        frame_seconds=stride * step,
        captions=[f"{(index + 1) * step:.1f} s" for index in chosen],
    )


def study_section(
    cells: Cells,
    rows: Sequence[Mapping[str, Any]],
    factors: Sequence[Mapping[str, Any]],
    *,
    num_done: int,
    num_wanted: int,
) -> Section:
    """Tables of a study and curves of the return against the budget.

    Args:
      cells: rows of the seeds by (environment, planner, budget).
      rows: from `edgesafe_jax.planning.study.study_results`.
      factors: from `edgesafe_jax.planning.study.samples_to_reach`.
      num_done: episodes that are done.
      num_wanted: episodes of the whole study.

    Returns:
      The section.
    """
    section = Section("Planning: planners over budgets", order=2)
    if num_done < num_wanted:
        section.notes([f"{num_done} of {num_wanted} episodes are done; the same command continues."])
    if rows:
        section.table(rows, caption="Return in the true environment: mean and 95 % bootstrap interval over seeds")
    if factors:
        section.table(factors, caption="Trajectories that iCEM needs for the return of the best rival")
    for environment in dict.fromkeys(where for where, _, _ in cells):
        series: dict[str, list[tuple[float, Any]]] = {}
        for (where, name, budget), seeds in cells.items():
            if where == environment and (returns := returns_by_seed(seeds)):
                series.setdefault(name, []).append((budget, interval_of(list(returns.values()))))
        if series:
            section.figure(
                curves(series, xlabel="trajectories a step", ylabel="return", title=environment, log_x=True),
                alt=f"Return against the budget of trajectories on {environment}",
            )
    return section
