"""The planners by name, each built with the same keywords."""

from typing import Any

from edgesafe_jax.errors import lookup
from edgesafe_jax.planning.budgets import Builder
from edgesafe_jax.planning.cem import cem_at_budget, pets_at_budget, planet_at_budget
from edgesafe_jax.planning.icem import ABLATIONS, icem_at_budget, make_ablation
from edgesafe_jax.planning.mppi import colored_mppi_at_budget, dial_at_budget, mppi_at_budget
from edgesafe_jax.planning.planner import Planner, Simulator
from edgesafe_jax.planning.shooting import predictive_sampling_at_budget, random_shooting_at_budget
from edgesafe_jax.planning.tasks import Task

PLANNERS: dict[str, Builder] = {
    "icem": icem_at_budget,
    "cem": cem_at_budget,
    "pets_cem": pets_at_budget,
    "planet_cem": planet_at_budget,
    "mppi": mppi_at_budget,
    "mppi_colored": colored_mppi_at_budget,
    "dial": dial_at_budget,
    "predictive_sampling": predictive_sampling_at_budget,
    "random_shooting": random_shooting_at_budget,
    **{name: make_ablation(changes) for name, changes in ABLATIONS.items()},
}
"""From a planner's name to what builds it, see `edgesafe_jax.planning.budgets.Builder`."""


def make_planner(
    name: str,
    simulator: Simulator,
    task: Task,
    *,
    budget: int,
    horizon: int | None = None,
    noise_beta: float | None = None,
    **settings: Any,
) -> Planner:
    """Makes a planner that simulates about `budget` trajectories at each step of a task.

    iCEM takes iterations and population from the paper's table, where they shrink to about the budget; the others
    divide the budget over the same number of iterations. Without decay, iCEM too.

    Args:
      name: a key of `PLANNERS`.
      simulator: what it plans with.
      task: whose bounds, horizon and noise it takes.
      budget: a key of `BUDGETS`.
      horizon: of a plan; None for the task's.
      noise_beta: exponent of coloured noise; None for the task's.
      **settings: more keywords of the builder, such as ``settings=IcemSettings(...)`` of iCEM.

    Returns:
      The planner.

    Raises:
      ConfigError: there is no such planner.
      PlanningError: there is no such budget, or a setting is out of its range.
    """
    return lookup(PLANNERS, name, "planner")(
        simulator,
        low=task.low,
        high=task.high,
        horizon=task.horizon if horizon is None else horizon,
        budget=budget,
        noise_beta=task.noise_beta if noise_beta is None else noise_beta,
        **settings,
    )
