"""The closed loop: plan, take one action in the true environment, plan again."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.planner import Planner, PlanningError, checked_count
from edgesafe_jax.planning.simulators import Step, StepResult, make_ending_step
from edgesafe_jax.planning.tasks import JaxTask, MujocoTask
from edgesafe_jax.typing import Array, PRNGKey, ProgressFn, PyTree


class DivergedError(PlanningError):
    """An episode whose true environment did not stay finite."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode in the true environment, one entry per plan.

    Of `scan_episode` it has as many entries as plans were asked for; after the end of the episode (`StepResult.done`)
    they cost and pay 0 and the state stays. Of `run_episode` and `loop_episode` it ends with the end.

    Attributes:
      results: of the steps `[T]`, summed over the repeats of an action; success is that of the last repeat.
      actions: that were taken `[T, A]`.
      best_cost: that of the `Plan` `[T]`.
      num_nonfinite: simulated trajectories that were not finite `[T]`.
      states: of the environment after each action, leading axis T.
      plan_seconds: wall time of each plan `[T]`; zeros where the whole episode is one compiled loop.
      missed: whether the action is one of an earlier plan, because none was ready in time `[T]`; None where the
        environment waits for the planner.
      num_iterations: of the search for each plan `[T]`, fewer where the deadline came first; None likewise.
    """

    results: StepResult
    actions: Array
    best_cost: Array
    num_nonfinite: Array
    states: PyTree
    plan_seconds: Array
    missed: Array | None = None
    num_iterations: Array | None = None


def scan_episode(
    key: PRNGKey, planner: Planner, step: Step, env_state: PyTree, *, num_steps: int, action_repeat: int = 1
) -> Episode:
    """Runs an episode as one `jax.lax.scan`, where the environment is JAX; jit and vmap it as a whole.

    Args:
      key: random key of the planner.
      planner: the planner.
      step: the true environment.
      env_state: where the episode starts.
      num_steps: plans.
      action_repeat: steps of the environment for one action, see `repeat_actions`.

    Returns:
      The episode.

    Raises:
      PlanningError: if a number is below 1.
    """
    num_steps = checked_count(num_steps, "num_steps")
    action_repeat = checked_count(action_repeat, "action_repeat")

    ending = make_ending_step(step)

    def body(carry: tuple[PyTree, PyTree], step_key: PRNGKey) -> tuple[tuple[PyTree, PyTree], Episode]:
        state, current = carry
        action, state, plan = planner.plan(step_key, state, current[0])
        current, results = jax.lax.scan(lambda now, _: ending(now, action), current, length=action_repeat)
        none = jnp.zeros((), jnp.float32)
        episode = Episode(_joined(results), action, plan.best_cost, plan.num_nonfinite, current[0], none)
        return (state, current), episode

    start = (env_state, jnp.zeros((), bool))
    return jax.lax.scan(body, (planner.init(), start), jax.random.split(key, num_steps))[1]


def loop_episode(
    key: PRNGKey,
    planner: Planner,
    task: MujocoTask,
    env_state: PyTree,
    *,
    num_steps: int,
    action_repeat: int = 1,
    on_step: ProgressFn | None = None,
) -> Episode:
    """Runs an episode step by step, where the true environment is C MuJoCo.

    Args:
      key: random key of the planner.
      planner: the planner; its `plan` may be jitted already.
      task: the true environment.
      env_state: where the episode starts, from `task.reset`.
      num_steps: plans.
      action_repeat: steps of the environment for one action, see `repeat_actions`.
      on_step: called with (steps done, steps in all).

    Returns:
      The episode, in NumPy. The first of `plan_seconds` holds the compilation.

    Raises:
      PlanningError: if a number is below 1, or the state is not one of this task.
      DivergedError: if the true environment does not stay finite.
    """
    num_steps = checked_count(num_steps, "num_steps")
    action_repeat = checked_count(action_repeat, "action_repeat")
    task.world.check(env_state)
    plan = jax.jit(planner.plan)
    state = planner.init()
    steps = []
    for number, step_key in enumerate(jax.random.split(key, num_steps)):
        begun = time.perf_counter()
        action, state, made = jax.block_until_ready(plan(step_key, state, env_state))
        seconds = time.perf_counter() - begun
        results = []
        for _ in range(action_repeat):
            env_state, result = task.step(env_state, np.asarray(action))
            if not np.isfinite(result.cost):  # MuJoCo would go on from another state
                raise _diverged(task, number, num_steps)
            results.append(result)
            if result.done:
                break
        joined = _joined(jax.tree.map(lambda *leaves: np.stack(leaves), *results))
        steps.append(Episode(joined, action, made.best_cost, made.num_nonfinite, env_state, np.float32(seconds)))  # type: ignore[arg-type]
        if on_step is not None:
            on_step(number + 1, num_steps)
        if joined.done:
            break
    return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)


def run_episode(
    planner: Planner,
    task: JaxTask | MujocoTask,
    *,
    seed: int,
    num_steps: int | None = None,
    action_repeat: int = 1,
    on_step: ProgressFn | None = None,
) -> Episode:
    """Runs an episode of a task from a seed, which gives the start and the planner's random numbers.

    Args:
      planner: the planner.
      task: the true environment.
      seed: of the episode.
      num_steps: plans; None for the task's episode.
      action_repeat: steps of the environment for one action, see `repeat_actions`.
      on_step: called with (steps done, steps in all); never called where the episode is one compiled loop.

    Returns:
      The episode, in NumPy.

    Raises:
      PlanningError: if a number is below 1.
      DivergedError: if the true environment does not stay finite.

    Example:
      >>> from edgesafe_jax.planning import double_integrator, make_icem
      >>> task = double_integrator()
      >>> planner = make_icem(task.simulator(), low=task.low, high=task.high, horizon=20)
      >>> episode = run_episode(planner, task, seed=0, num_steps=40)
      >>> bool(episode.results.cost[-1] < 0.1 * episode.results.cost[0])
      True
    """
    action_repeat = checked_count(action_repeat, "action_repeat")
    start_key, plan_key = jax.random.split(jax.random.key(seed))
    num_steps = task.episode_length // action_repeat if num_steps is None else num_steps
    if isinstance(task, MujocoTask):
        return loop_episode(
            plan_key,
            planner,
            task,
            task.reset(start_key),
            num_steps=num_steps,
            action_repeat=action_repeat,
            on_step=on_step,
        )
    start = jax.jit(task.reset)(start_key)
    episode = _compiled_episode(plan_key, planner, task.step, start, num_steps=num_steps, action_repeat=action_repeat)
    episode = jax.tree.map(np.asarray, episode)
    if episode.results.done.any():
        episode = jax.tree.map(lambda leaf: leaf[: np.argmax(episode.results.done) + 1], episode)
    bad = np.flatnonzero(~np.isfinite(episode.results.cost))
    if len(bad):
        raise _diverged(task, int(bad[0]), num_steps)
    return episode


def _diverged(task: JaxTask | MujocoTask, number: int, num_steps: int) -> DivergedError:
    where = f"step {number + 1} of {num_steps}"
    return DivergedError(f"{task.name}: the cost of {where} in the true environment is not finite")


# Compiled once for a planner and an environment, however many episodes there are.
_compiled_episode = jax.jit(scan_episode, static_argnames=("planner", "step", "num_steps", "action_repeat"))


def _joined(results: StepResult) -> StepResult:
    """The results of the repeats of one action as those of one step."""
    done: Any = results.done
    last = (~done[:-1]).sum(dtype=np.int32)  # the last repeat, or the one with which the episode ended
    return StepResult(
        cost=results.cost.sum(0),
        violation=results.violation.sum(0),
        success=results.success[last],
        reward=results.reward.sum(0),
        done=done[-1],
    )
