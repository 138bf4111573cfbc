"""Goals reached by planning on a learned model of the world, in closed loop on the true one.

A plan of iCEM at each step, its trajectories simulated by the members of an ensemble (plain or symmetrised, see
`edgesafe_jax.dynamics.symmetrise`), with a risk over the members; the first action is taken in the true world.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import (
    Ensemble,
    SymmetrisedEnsemble,
    Transitions,
    Translation,
    WorldModel,
    symmetrise,
    verify_elements,
)
from edgesafe_jax.dynamics.transitions import check_settings
from edgesafe_jax.errors import FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_COUNT, check_counts
from edgesafe_jax.offline_rl.evaluation import Episodes
from edgesafe_jax.offline_rl.relabelling import LearningError
from edgesafe_jax.offline_rl.tasks import Stratum, Task, check_task, sample_goal, sample_start
from edgesafe_jax.planning import StepResult, make_cvar, make_ensemble_simulator, make_icem, make_simulator, step_result
from edgesafe_jax.planning.mpc import scan_episode
from edgesafe_jax.planning.planner import Planner
from edgesafe_jax.typing import Array, PRNGKey

_log = logging.getLogger(__name__)

Model = Ensemble | SymmetrisedEnsemble | None
"""What plans are simulated with; None: the true world."""
State = tuple[Array, Array]
"""A state `[S]` and the goal `[G]` of its episode."""


@dataclasses.dataclass(frozen=True)
class PlanSettings:
    """Settings of planning to goals.

    Attributes:
      horizon: actions of a plan.
      num_iterations: of iCEM at each step.
      num_samples: sequences of its first iteration.
      noise_beta: exponent of its noise.
      worst_fraction: of the members, whose mean cost counts: 1 the mean over all, 0 the worst alone.
      shift: length of the translations along each axis that are tested, in the units of the state.
      num_factors: most verified translations that are composed into one, see `symmetrise`.
      num_averaged: elements that a prediction averages at most.
      exceptions: fraction of the tested transitions that a verified translation may leave unverified: a model is not
        trusted where the law jumps, such as at the banks of a river, without a symmetry being false there.
      num_episodes: of each stratum.

    Raises:
      LearningError: if a number is out of range.
    """

    horizon: int = 12
    num_iterations: int = 3
    num_samples: int = 40
    noise_beta: float = 1.0
    worst_fraction: float = 0.5
    shift: float = 0.6
    num_factors: int = 6
    num_averaged: int = 2
    exceptions: float = 0.3
    num_episodes: int = 20

    def __post_init__(self):
        counted = ("horizon", "num_iterations", "num_samples", "num_factors", "num_averaged", "num_episodes")
        ranges = {"noise_beta": NON_NEGATIVE, "worst_fraction": FRACTION, "shift": POSITIVE, "exceptions": FRACTION}
        check_settings(self, {**dict.fromkeys(counted, POSITIVE_COUNT), **ranges}, LearningError)


def axis_shifts(group: Translation, length: float) -> Array:
    """Returns the translations by a length, forward and back, along each axis of a group, `[2K, K]`."""
    steps = length * np.eye(len(group.low), dtype=np.float32)
    return jnp.asarray(np.concatenate([steps, -steps]))


def checked_model(task: Task, model: WorldModel, data: Transitions, settings: PlanSettings) -> Model:
    """Tests translations along each axis of a task and averages its model over the verified ones.

    Args:
      task: the task.
      model: its world model.
      data: the transitions that the translations are tested on.
      settings: the translations, and how many are composed and averaged.

    Returns:
      The symmetrised ensemble; the plain one where nothing is verified.
    """
    shifts = axis_shifts(task.group, settings.shift)
    verdicts = verify_elements(model, task.group, shifts, data, exceptions=settings.exceptions)
    _log.info("verified translations: %d of %d", verdicts.num_verified, len(shifts))
    return symmetrise(
        model.ensemble,
        task.group,
        verdicts,
        num_factors=settings.num_factors,
        num_averaged=settings.num_averaged,
    )


PLANNED: dict[str, Callable[[Task, WorldModel, Transitions, PlanSettings], Model]] = {
    "icem_model": lambda task, model, data, settings: model.ensemble,
    "icem_symmetrised": checked_model,
    "icem_true": lambda task, model, data, settings: None,
}
"""What plans are simulated with, by name: the plain model, that averaged over verified elements, the true world."""


def goal_step(task: Task, world: Callable[[Array, Array], Array]) -> Callable[[State, Array], tuple[State, StepResult]]:
    """Makes the step that planners simulate of a world, a callable from state and action to the next state."""

    def step(current: State, action: Array) -> tuple[State, StepResult]:
        state, goal = current
        after = world(state, action)
        near = jnp.linalg.norm(task.achieved(after) - goal) < task.radius
        return (after, goal), step_result(-task.reward(after, goal), success=near, done=task.ends(after, goal))

    return step


def make_goal_planner(task: Task, model: Model, settings: PlanSettings) -> Planner:
    """Makes iCEM for a task, whose actions are in [-1, 1].

    Args:
      task: the task.
      model: what plans are simulated with; None: the true world.
      settings: of the planner.

    Returns:
      The planner; the state of its environment is a state and a goal.
    """
    if model is None:
        simulator = make_simulator(goal_step(task, task.step))
    else:
        simulator = make_ensemble_simulator(
            lambda member, current, action: goal_step(task, lambda s, a: member.predict(s, a).mean)(current, action),
            model,
            risk=make_cvar(max(settings.worst_fraction, 1e-6)),
        )
    bound = np.ones(task.sizes.action, np.float32)
    return make_icem(
        simulator,
        low=-bound,
        high=bound,
        horizon=settings.horizon,
        num_iterations=settings.num_iterations,
        num_samples=settings.num_samples,
        noise_beta=settings.noise_beta,
    )


def seconds_per_plan(task: Task, model: Model, settings: PlanSettings, *, num_plans: int = 30) -> float:
    """Measures how long one plan takes by itself, without its compilation.

    Args:
      task: the task.
      model: what plans are simulated with; None: the true world.
      settings: of the planner.
      num_plans: plans that are timed.

    Returns:
      Seconds, the median over the plans.
    """
    check_counts(num_plans=num_plans)
    key, planner = jax.random.key(0), make_goal_planner(task, model, settings)
    env_state = sample_start(key, task, task.data), sample_goal(key, task, task.data)
    plan, state = jax.jit(planner.plan), planner.init()
    jax.block_until_ready(plan(key, state, env_state))
    seconds = []
    for number in range(num_plans):
        begun = time.perf_counter()
        jax.block_until_ready(plan(jax.random.fold_in(key, number), state, env_state))
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def make_plan_evaluator(
    task: Task, settings: PlanSettings | None = None
) -> Callable[[PRNGKey, Model, Stratum], Episodes]:
    """Makes the evaluation of plans in one stratum, in the true world; `make_evaluator` is that of policies.

    Args:
      task: the task, whose true dynamics act.
      settings: of the planner, with the number N of episodes; None: `PlanSettings()`.

    Returns:
      From a key, a model (or None, the true world) and a stratum to episodes `[1, N]`, one planner. All models meet
      the same starts and goals under one key.
    """
    check_task(task)
    chosen = settings or PlanSettings()

    def episode(key: PRNGKey, model: Model, stratum: Stratum) -> Episodes:
        key_start, key_goal = jax.random.split(key)
        start, goal = sample_start(key_start, task, stratum), sample_goal(key_goal, task, stratum)
        found = scan_episode(
            jax.random.fold_in(key, 2),
            make_goal_planner(task, model, chosen),
            goal_step(task, task.step),
            (start, goal),
            num_steps=task.horizon,
        )
        distance = jnp.linalg.norm(task.achieved(found.states[0][-1]) - goal)
        return Episodes(distance < task.radius, distance, jnp.linalg.norm(task.achieved(start) - goal))

    @functools.partial(jax.jit, static_argnums=2)
    def evaluate(key: PRNGKey, model: Model, stratum: Stratum) -> Episodes:
        found = jax.vmap(episode, in_axes=(0, None, None))(jax.random.split(key, chosen.num_episodes), model, stratum)
        return jax.tree.map(lambda leaf: leaf[None], found)

    return evaluate
