"""Episodes stored in a folder, and their summary."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import metrics
from edgesafe_jax.assets import is_whole, write_checked
from edgesafe_jax.planning import mpc
from edgesafe_jax.planning.mpc import Episode
from edgesafe_jax.planning.physics import MujocoState
from edgesafe_jax.planning.planner import Planner
from edgesafe_jax.planning.realtime import run_realtime
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
    realtime: bool = False,
) -> dict[str, np.ndarray]:
    """Returns an episode from its file, running it first where there is none.

    Args:
      file: an npz.
      make: makes the planner, where it is needed.
      task: the true environment.
      seed: of the episode.
      num_steps: plans; None for the task's episode.
      on_step: called with (steps done, steps in all).
      realtime: whether the environment does not wait for the planner, see `run_realtime`.

    Returns:
      Arrays by name, one entry per plan: reward, cost, violation, success, actions, best_cost, num_nonfinite,
      plan_seconds, in real time missed and num_iterations and, with C MuJoCo, physics and mocap, which draw the poses.
    """
    file = Path(file)
    if not is_whole(file):
        run = run_realtime if realtime else mpc.run_episode
        episode = run(make(), task, seed=seed, num_steps=num_steps, on_step=on_step)
        save_episode(file, episode)
    with np.load(file) as kept:
        return dict(kept)


def save_episode(file: Path, episode: Episode) -> None:
    """Writes an episode as an npz; of the states only what draws them."""
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
    if episode.missed is not None:
        kept |= {"missed": episode.missed, "num_iterations": episode.num_iterations}
    if isinstance(episode.states, MujocoState):
        kept |= {"physics": episode.states.physics, "mocap": episode.states.mocap}
    write_checked(file, lambda part: np.savez(part, allow_pickle=False, **kept))


def episode_row(episode: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the row of an episode in a table."""
    plan = episode["plan_seconds"][1:]
    row = {
        "return": float(episode["reward"].sum()),
        "cost": float(episode["cost"].sum()),
        "success": float(episode["success"].any()),
        "steps": len(episode["reward"]),
        "plan (ms)": 1000 * float(np.median(plan)) if plan.any() else None,
        "not finite": int(episode["num_nonfinite"].sum()),
    }
    if "missed" in episode:
        row |= {"missed": int(episode["missed"].sum()), "iterations": float(episode["num_iterations"].mean())}
    return row


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
    if all("missed" in episode for episode in episodes):
        values["control_rate_hz"] = 1 / control_step
        for name, field in (("missed_fraction", "missed"), ("iterations_per_plan", "num_iterations")):
            values[name] = float(np.mean(np.concatenate([episode[field] for episode in episodes])))
    return values


def describe(values: Mapping[str, float], *, control_step: float) -> str:
    """Returns the numbers of `summarize` as a line of text."""
    about = f"{values['trajectories_per_plan']:.0f} trajectories a plan; mean return {values['return']:.1f}"
    if "plan_ms_median" in values:
        about += f"; a plan takes {values['plan_ms_median']:.1f} ms (median), the control step lasts "
        about += f"{1000 * control_step:.0f} ms"
    if "missed_fraction" in values:
        about += (
            f"; in real time at {values['control_rate_hz']:.0f} Hz, {100 * values['missed_fraction']:.1f} % of the "
        )
        about += f"deadlines missed, {values['iterations_per_plan']:.1f} iterations a plan"
    return about
