"""Cross-entropy planners as baselines of iCEM: CEM as in model-predictive control, PETS and PlaNet."""

from typing import Any

from edgesafe_jax.planning.budgets import divide_budget
from edgesafe_jax.planning.icem import IcemSettings, make_elite_search
from edgesafe_jax.planning.knots import Knots
from edgesafe_jax.planning.noise import clipped_noise, half_distance_normal, truncated_normal
from edgesafe_jax.planning.planner import Planner, Simulator
from edgesafe_jax.planning.search import make_space
from edgesafe_jax.typing import ArrayLike


def _settings(num_elites: int, init_std: float, momentum: float) -> IcemSettings:
    """CEM as iCEM without its additions."""
    return IcemSettings(
        num_elites=num_elites,
        init_std=init_std,
        momentum=momentum,
        decay=1.0,
        elite_fraction=0.0,
        keep_elites=False,
        shift_elites=False,
        mean_in_last_iteration=False,
        execute="mean",
    )


def make_cem(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 3,
    num_samples: int = 33,
    num_elites: int = 10,
    init_std: float = 0.5,
    momentum: float = 0.1,
    knots: Knots | None = None,
) -> Planner:
    """Makes CEM for model-predictive control: white noise from a normal truncated at the bounds.

    Mean and std are those of the elites of each iteration, the population stays the same, nothing but the mean is
    remembered (moved one step on), and the first action of the mean is executed.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: iterations at each step of the environment.
      num_samples: sequences of each iteration.
      num_elites: elites at most; fewer where that is more than half of `num_samples`.
      init_std: std at the start of each step, in units of half the range.
      momentum: the fraction of mean and std that stays in an iteration.
      knots: searches a spline instead of single actions.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.

    Reference: the baseline CEM_MPC of arXiv 2008.06389.
    """
    return make_elite_search(
        simulator,
        make_space(low, high, horizon, knots),
        truncated_normal(),
        _settings(num_elites, init_std, momentum),
        num_iterations=num_iterations,
        num_samples=num_samples,
    )


def make_pets_cem(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 3,
    num_samples: int = 33,
    num_elites: int = 10,
    init_std: float = 0.5,
    momentum: float = 0.1,
) -> Planner:
    """Makes CEM as in PETS: `make_cem` with another sampler, memory and average.

    The std is at most half the distance to the nearer bound and the noise lies within 2 std; momentum averages
    variances; of the mean that moves one step on the last entry is the middle between the bounds. An action at a bound
    has no spread there: it stays until it is executed, and the plan follows a new target from its end.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: iterations at each step of the environment.
      num_samples: sequences of each iteration.
      num_elites: elites at most; fewer where that is more than half of `num_samples`.
      init_std: std at the start of each step, in units of half the range.
      momentum: the fraction of mean and std that stays in an iteration.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.

    Reference: Chua et al., arXiv 1805.12114.
    """
    return make_elite_search(
        simulator,
        make_space(low, high, horizon),
        half_distance_normal(),
        _settings(num_elites, init_std, momentum),
        num_iterations=num_iterations,
        num_samples=num_samples,
        moved="middle_last",
        smooth_variance=True,
    )


def make_planet_cem(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 12,
    num_iterations: int = 10,
    num_samples: int = 1000,
    num_elites: int = 100,
    init_std: float = 1.0,
) -> Planner:
    """Makes CEM as in PlaNet: clipped white noise, no momentum, and each step starts afresh.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: iterations at each step of the environment.
      num_samples: sequences of each iteration.
      num_elites: elites at most; fewer where that is more than half of `num_samples`.
      init_std: std at the start of each step, in units of half the range.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.

    Reference: Hafner et al., arXiv 1811.04551, algorithm 2.
    """
    return make_elite_search(
        simulator,
        make_space(low, high, horizon),
        clipped_noise(0.0, convention="corrected"),
        _settings(num_elites, init_std, momentum=0.0),
        num_iterations=num_iterations,
        num_samples=num_samples,
        moved="middle",
    )


def cem_at_budget(simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any) -> Planner:
    """Makes CEM at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    sizes = divide_budget(budget)
    return make_cem(simulator, **common, **sizes, num_elites=min(10, sizes["num_samples"]))


def pets_at_budget(simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any) -> Planner:
    """Makes CEM as in PETS at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    sizes = divide_budget(budget)
    return make_pets_cem(simulator, **common, **sizes, num_elites=min(10, sizes["num_samples"]))


def planet_at_budget(simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any) -> Planner:
    """Makes CEM as in PlaNet at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    sizes = divide_budget(budget)
    return make_planet_cem(simulator, **common, **sizes, num_elites=max(2, sizes["num_samples"] // 10))
