"""Planning by sampling action sequences: iCEM and other planners, simulators and tasks.

There are four parts. A *simulator* is a callable from a state and action sequences `[N, T, A]` to their costs
(`make_simulator` for JAX functions, `MujocoWorld` for C MuJoCo); a *planner* is a pair of pure functions over a
simulator; a *risk* turns the costs under several models into one; a *task* is the true environment.

Beside the letters of `edgesafe_jax.typing`, shapes here use T for the horizon of a plan, A for the actions' dimension,
K for the knots of a plan (K = T where the search is over actions) and M for the models of an ensemble.

The callables that a user may write, all of them traceable by `jax.jit` unless said otherwise:

=============  ==========================================================  ==========================================
name           takes                                                       returns
=============  ==========================================================  ==========================================
`Simulator`    state of the environment, actions `[N, T, A]`               `Outcomes`: cost `[N]`, violation `[N]`
`Step`         state of one environment, action `[A]`                      next state, `StepResult` of `[]`
`Cost`         features before, action `[..., A]`, features after, goal    `StepResult` of `[...]`
               `[G]`; features map a name to `[..., k]`
`Control`      actions `[N, A]`, features of `[N, k]`; NumPy, on the host  controls of MuJoCo `[N, C]`
`Risk`         costs `[M, N]` of N trajectories under M models             risks `[N]`
`Proposal`     random key, state of the environment                        candidates `[N, K, A]`
terminal cost  `make_simulator`: last state of one sequence;               cost-to-go `[]`;
               `MujocoWorld.make_simulator`: last features `[N, k]`, goal  cost-to-go `[N]`
`Planner`      `init()`;                                                   memory of the planner;
               `plan(key, memory, state of the environment)`               action `[A]`, next memory, `Plan`
=============  ==========================================================  ==========================================

`step_result` makes a `StepResult` of a cost alone; after a step with `done` nothing counts any more. Costs that are not
finite rank last.
"""

from edgesafe_jax.planning.budgets import BUDGETS
from edgesafe_jax.planning.cem import make_cem, make_pets_cem, make_planet_cem
from edgesafe_jax.planning.environments import ENVIRONMENTS, TASKS, make_task
from edgesafe_jax.planning.icem import ElitesState, IcemSettings, Proposal, make_icem, population_sizes
from edgesafe_jax.planning.jax_tasks import BRAX_TASKS, brax_task, double_integrator, double_integrator_cost
from edgesafe_jax.planning.knots import Knots, make_knots
from edgesafe_jax.planning.mpc import DivergedError, Episode, loop_episode, run_episode, scan_episode
from edgesafe_jax.planning.mppi import MppiSettings, make_dial, make_mppi, path_integral_weights
from edgesafe_jax.planning.noise import colored_noise, colored_noise_std
from edgesafe_jax.planning.own_tasks import xml_task
from edgesafe_jax.planning.paper_tasks import door
from edgesafe_jax.planning.physics import Control, Cost, MujocoState, MujocoWorld, load_model
from edgesafe_jax.planning.planner import Outcomes, Plan, Planner, PlanningError, Simulator, Stages, rank
from edgesafe_jax.planning.poses import figure_segments
from edgesafe_jax.planning.realtime import RealtimePlanner, make_realtime, run_realtime
from edgesafe_jax.planning.registry import PLANNERS, make_planner
from edgesafe_jax.planning.risk import Risk, make_cvar, make_exponential, mean_cost, worst_cost
from edgesafe_jax.planning.shooting import make_predictive_sampling, make_random_shooting
from edgesafe_jax.planning.simulators import (
    Step,
    StepResult,
    combine_simulators,
    make_ensemble_simulator,
    make_simulator,
    repeat_actions,
    step_result,
)
from edgesafe_jax.planning.tasks import JaxTask, MujocoTask

__all__ = [
    "BRAX_TASKS",
    "BUDGETS",
    "ENVIRONMENTS",
    "PLANNERS",
    "TASKS",
    "Control",
    "Cost",
    "DivergedError",
    "ElitesState",
    "Episode",
    "IcemSettings",
    "JaxTask",
    "Knots",
    "MppiSettings",
    "MujocoState",
    "MujocoTask",
    "MujocoWorld",
    "Outcomes",
    "Plan",
    "Planner",
    "PlanningError",
    "Proposal",
    "RealtimePlanner",
    "Risk",
    "Simulator",
    "Stages",
    "Step",
    "StepResult",
    "brax_task",
    "colored_noise",
    "colored_noise_std",
    "combine_simulators",
    "door",
    "double_integrator",
    "double_integrator_cost",
    "figure_segments",
    "load_model",
    "loop_episode",
    "make_cem",
    "make_cvar",
    "make_dial",
    "make_ensemble_simulator",
    "make_exponential",
    "make_icem",
    "make_knots",
    "make_mppi",
    "make_pets_cem",
    "make_planet_cem",
    "make_planner",
    "make_predictive_sampling",
    "make_random_shooting",
    "make_realtime",
    "make_simulator",
    "make_task",
    "mean_cost",
    "path_integral_weights",
    "population_sizes",
    "rank",
    "repeat_actions",
    "run_episode",
    "run_realtime",
    "scan_episode",
    "step_result",
    "worst_cost",
    "xml_task",
]
