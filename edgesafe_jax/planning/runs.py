"""Episodes stored in a folder, and their summary."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import metrics
from edgesafe_jax.planning import mpc
from edgesafe_jax.planning.mpc import Episode
from edgesafe_jax.planning.physics import MujocoState
from edgesafe_jax.planning.planner import Planner
from edgesafe_jax.planning.tasks import JaxTask, MujocoTask
from edgesafe_jax.typing import ProgressFn


def kept_episode(
    file: str | os.PathLike[str],
    make: Callable[[], Planner],
    task: JaxTask | MujocoTask,
    *,
    seed: int,
    num_steps: int | None = None,
    on_step: ProgressFn | None = None,
) -> dict[str, np.ndarray]:
    """Returns an episode from its file, running it first where there is none.

    Args:
      file: an npz.
      make: makes the planner, where it is needed.
      task: the true environment.
      seed: of the episode.
      num_steps: plans; None for the task's episode.
      on_step: called with (steps done, steps in all).

    Returns:
      Arrays by name, one entry per plan: reward, cost, violation, success, actions, best_cost, num_nonfinite,
      plan_seconds and, with C MuJoCo, physics and mocap, which draw the poses.
    """
    file = Path(file)
    if not file.exists():
        episode = mpc.run_episode(make(), task, seed=seed, num_steps=num_steps, on_step=on_step)
        save_episode(file, episode)
    with np.load(file) as kept:
        return dict(kept)


def save_episode(file: Path, episode: Episode) -> None:
    """Writes an episode as an npz; of the states only what draws them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {
        "reward": episode.results.reward,
        "cost": episode.results.cost,
        "violation": episode.results.violation,
        "success": episode.results.success,
        "actions": episode.actions,
        "best_cost": episode.best_cost,
        "num_nonfinite": episode.num_nonfinite,
        "plan_seconds": episode.plan_seconds,
    }
    if isinstance(episode.states, MujocoState):
        kept |= {"physics": episode.states.physics, "mocap": episode.states.mocap}
    part = file.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, **kept)
    part.replace(file)


def episode_row(episode: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the row of an episode in a table."""
    plan = episode["plan_seconds"][1:]
    return {
        "return": float(episode["reward"].sum()),
        "cost": float(episode["cost"].sum()),
        "success": float(episode["success"].any()),
        "steps": len(episode["reward"]),
        "plan (ms)": 1000 * float(np.median(plan)) if plan.any() else None,
        "not finite": int(episode["num_nonfinite"].sum()),
    }


def summarize(
    episodes: Sequence[Mapping[str, np.ndarray]], *, num_trajectories: int, control_step: float
) -> dict[str, float]:
    """Returns the numbers of some episodes by name.

    Args:
      episodes: of one planner on one task.
      num_trajectories: that one plan simulates.
      control_step: seconds of simulated time for one action.

    Returns:
      Flat numbers; ``return`` has a bootstrap interval over episodes where there are more than one.
    """
    returns = np.array([episode["reward"].sum() for episode in episodes], np.float64)
    values = {"return": float(returns.mean()), "num_episodes": len(episodes)}
    if len(episodes) > 1:
        values |= metrics.bootstrap_interval(returns).named("return")
    values["success"] = float(np.mean([episode["success"].any() for episode in episodes]))
    values["trajectories_per_plan"] = num_trajectories
    plans = np.concatenate([episode["plan_seconds"][1:] for episode in episodes])
    if plans.any():
        values["plan_ms_median"] = 1000 * float(np.median(plans))
        values["plan_ms_p95"] = 1000 * float(np.quantile(plans, 0.95))
        values["real_time_factor"] = control_step / float(np.median(plans))
    return values
