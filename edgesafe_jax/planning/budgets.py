"""Budgets: trajectories that a planner simulates at each step, and their division over iterations."""

from typing import Any, Protocol

from edgesafe_jax.planning.planner import Planner, PlanningError, Simulator
from edgesafe_jax.typing import ArrayLike

BUDGETS = {
    50: (2, 25),
    70: (2, 40),
    100: (3, 40),
    150: (3, 60),
    200: (4, 65),
    250: (4, 85),
    300: (4, 100),
    400: (5, 120),
    500: (5, 150),
    1000: (6, 270),
    2000: (8, 480),
    4000: (10, 900),
}
"""The table of the iCEM paper: iterations and sequences of the first one, by trajectories at each step."""


def divide_budget(budget: int, *, shrinking: bool = False) -> dict[str, Any]:
    """Divides a budget over the iterations of the paper's table.

    Args:
      budget: trajectories at each step, a key of `BUDGETS`.
      shrinking: whether the population shrinks from one iteration to the next, as the table assumes; else each
        iteration has the same part of the budget.

    Returns:
      ``num_iterations`` and ``num_samples``, those of the first iteration.

    Raises:
      PlanningError: there is no such budget.
    """
    if budget not in BUDGETS:
        raise PlanningError(f"budget={budget!r}: expected one of {', '.join(map(str, BUDGETS))}")
    num_iterations, num_samples = BUDGETS[budget]
    return {
        "num_iterations": num_iterations,
        "num_samples": num_samples if shrinking else max(2, budget // num_iterations),
    }


class Builder(Protocol):
    """Makes a planner that simulates about `budget` trajectories at each step; the values of `PLANNERS`."""

    def __call__(
        self,
        simulator: Simulator,
        *,
        low: ArrayLike,
        high: ArrayLike,
        horizon: int,
        budget: int,
        noise_beta: ArrayLike,
        **settings: Any,
    ) -> Planner:
        """Makes the planner.

        Args:
          simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
          low: lower bounds of the actions `[A]`, finite.
          high: upper bounds `[A]`.
          horizon: T, actions of a plan.
          budget: trajectories at each step, a key of `BUDGETS`.
          noise_beta: exponent of coloured noise; planners with noise of their own ignore it.
          **settings: what the planner has besides, such as ``settings=IcemSettings(...)`` of iCEM.
        """
        ...
