"""Planning in real time: the environment goes on at its own rate, and the planner stops at a deadline."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import POSITIVE
from edgesafe_jax.planning.mpc import DivergedError, Episode
from edgesafe_jax.planning.planner import Plan, Planner, PlanningError, check_numbers
from edgesafe_jax.planning.simulators import StepResult, as_result
from edgesafe_jax.planning.tasks import JaxTask, MujocoTask
from edgesafe_jax.typing import PRNGKey, ProgressFn, PyTree


@dataclasses.dataclass(frozen=True)
class RealtimePlanner:
    """A planner that returns the best plan it has found by a deadline; see `make_realtime`.

    Attributes:
      init: makes the state before the first step of an episode.
      plan: from a random key, that state, the state of the environment and the time of `clock` at which the action is
        needed to the action `[A]`, the next state, the `Plan` and the number of iterations. Without a deadline (None)
        it is the planner's whole plan.
      skip: from a state and a number of steps for which no plan was made to the state after them.
      seconds: of the parts of a plan as they were measured: begin, finish, each iteration.
    """

    init: Callable[[], Any]
    plan: Callable[[PRNGKey, Any, PyTree, float | None], tuple[Any, Any, Plan, int]]
    skip: Callable[[Any, int], Any]
    seconds: tuple[float, ...]


def make_realtime(
    planner: Planner,
    env_state: PyTree,
    *,
    control_step: float,
    num_measured: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> RealtimePlanner:
    """Makes an anytime planner: it looks at the clock between iterations and begins none that would end too late.

    The parts of a plan are compiled and measured here, before the episode; while it runs, the estimate of each part
    follows its last time where that is longer, and slowly where it is shorter.

    Args:
      planner: with C MuJoCo on threads or a JAX simulator; made by this package, or with `Planner.stages`.
      env_state: a state of the environment, for compilation and measurement.
      control_step: seconds for one action.
      num_measured: measurements of each part.
      clock: the time in seconds.

    Returns:
      The planner.

    Raises:
      PlanningError: the planner has no stages, the control step is not positive, or one iteration alone takes longer
        than it.
    """
    check_numbers({"control_step": POSITIVE}, {"control_step": control_step})
    if planner.stages is None:
        raise PlanningError(
            "the planner has no stages: expected one of edgesafe_jax.planning.PLANNERS, or Planner.stages"
        )
    begin, finish, skip = (jax.jit(part) for part in (planner.stages.begin, planner.stages.finish, planner.stages.skip))
    iterations = [jax.jit(part) for part in planner.stages.iterations]
    estimates = [math.inf] * (2 + len(iterations))  # of begin, finish and each iteration

    def timed(part: Callable[..., Any], *given: Any) -> tuple[Any, float]:
        begun = clock()
        return jax.block_until_ready(part(*given)), clock() - begun

    def follow(number: int, seconds: float) -> None:
        estimates[number] = max(seconds, 0.8 * estimates[number] + 0.2 * seconds)

    def plan(key: PRNGKey, state: Any, env_state: PyTree, until: float | None) -> tuple[Any, Any, Plan, int]:
        search, seconds = timed(begin, key, state, env_state)
        follow(0, seconds)
        done = 0
        for number, iterate in enumerate(iterations, start=2):
            if until is not None and done and clock() + estimates[number] + estimates[1] > until:
                break
            search, seconds = timed(iterate, search, env_state)
            follow(number, seconds)
            done += 1
        (action, state, made), seconds = timed(finish, search)
        follow(1, seconds)
        return action, state, made, done

    for number in range(1 + num_measured):
        estimates[:] = [0.0 if number < 2 else each for each in estimates]  # the first run compiles
        plan(jax.random.key(number), planner.init(), env_state, None)
    skip(planner.init())
    least = estimates[0] + estimates[1] + min(estimates[2:])
    if least > control_step:
        raise PlanningError(
            f"one iteration takes {1000 * least:.1f} ms and an action lasts {1000 * control_step:.1f} ms: no plan "
            "would be ready in time. Take a smaller budget or horizon, or hold actions for longer"
        )

    def skipped(state: Any, num: int) -> Any:
        for _ in range(num):
            state = skip(state)
        return state

    return RealtimePlanner(planner.init, plan, skipped, tuple(estimates))


def run_realtime(
    planner: Planner,
    task: JaxTask | MujocoTask,
    *,
    seed: int,
    num_steps: int | None = None,
    on_step: ProgressFn | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Episode:
    """Runs an episode in which the environment does not wait: an action lasts `task.control_step` seconds.

    While an action is executed the planner plans for the state at its end, which a simulation of one step predicts.
    Where the plan is not ready then, the actions of the plan before are executed until it is; the new plan is entered
    at the action for that time, and its warm start moves on as far.

    Args:
      planner: the planner.
      task: the true environment, which is also what predicts.
      seed: of the episode.
      num_steps: actions; None for the task's episode.
      on_step: called with (steps done, steps in all).
      clock: the time in seconds.
      sleep: waits for some seconds.

    Returns:
      The episode, in NumPy, with `Episode.missed` and `Episode.num_iterations`.

    Raises:
      PlanningError: see `make_realtime`.
      DivergedError: if the true environment does not stay finite.
    """
    start_key, plan_key = jax.random.split(jax.random.key(seed))
    num_steps = task.episode_length if num_steps is None else num_steps
    state: Any = task.reset(start_key) if isinstance(task, MujocoTask) else jax.jit(task.reset)(start_key)
    advance = _advance(task)
    jax.block_until_ready(advance(state, task.low))  # compiled before the clock runs
    period = task.control_step
    realtime = make_realtime(planner, state, control_step=period, clock=clock)
    keys = iter(jax.random.split(plan_key, num_steps))
    _, memory, plan, iterations = realtime.plan(next(keys), realtime.init(), state, None)
    steps: list[Episode] = []
    at, planned, begun = 0, 0.0, clock()

    def execute(missed: bool) -> bool:
        """Takes the action of the plan for this time; says whether the episode goes on."""
        nonlocal state
        action = np.asarray(plan.actions)[min(at, len(plan.actions) - 1)]
        state, result = advance(state, action)
        if not np.isfinite(result.cost):
            raise DivergedError(f"{task.name}: the cost of step {len(steps) + 1} of {num_steps} is not finite")
        facts = (plan.best_cost, plan.num_nonfinite, state, planned, missed, iterations)
        steps.append(Episode(result, action, *jax.tree.map(np.asarray, facts)))
        if on_step is not None:
            on_step(len(steps), num_steps)
        return len(steps) < num_steps and not result.done

    running = execute(False)
    while running:
        deadline, started = begun + len(steps) * period, clock()
        _, memory, made, used = realtime.plan(next(keys), memory, state, deadline)
        late = max(0, math.ceil((clock() - deadline) / period))
        for _ in range(late):
            at += 1
            if not (running := execute(True)):
                break
        if running:
            memory, plan, iterations, planned, at = realtime.skip(memory, late), made, used, clock() - started, late
            sleep(max(0.0, begun + len(steps) * period - clock()))
            running = execute(False)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *steps)


def _advance(task: JaxTask | MujocoTask) -> Callable[[PyTree, Any], tuple[PyTree, StepResult]]:
    """One step of the true environment, its result in NumPy."""
    if isinstance(task, MujocoTask):
        return task.step

    def step(state: PyTree, action: Any) -> tuple[PyTree, StepResult]:
        after, result = task.step(state, jnp.asarray(action))
        return after, as_result(result, ())

    compiled = jax.jit(step)
    return lambda state, action: jax.tree.map(np.asarray, compiled(state, action))
