"""The cross-entropy planners that iCEM is compared with: CEM as in model-predictive control, PETS and PlaNet."""

from edgesafe_jax.planning.icem import make_elite_search
from edgesafe_jax.planning.noise import Sampler, clipped_noise, half_distance_normal, truncated_normal
from edgesafe_jax.planning.planner import Knots, Planner, Simulator
from edgesafe_jax.typing import ArrayLike


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
    sampler: Sampler | None = None,
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
      momentum: the share of mean and std that stays in an iteration.
      sampler: draws the candidates; None for `truncated_normal`.
      knots: searches a spline instead of single actions.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.

    Reference: the baseline CEM_MPC of arXiv 2008.06389.
    """
    return make_elite_search(
        simulator,
        sampler or truncated_normal(),
        low=low,
        high=high,
        horizon=horizon,
        num_iterations=num_iterations,
        num_samples=num_samples,
        num_elites=num_elites,
        init_std=init_std,
        momentum=momentum,
        decay=1.0,
        elite_share=0.0,
        keep_elites=False,
        shift_elites=False,
        mean_in_last_iteration=False,
        warm_start=True,
        execute="mean",
        population="unrolled",
        knots=knots,
        proposal=None,
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
    """Makes CEM as in PETS: `make_cem` with std at most half the distance to the bounds and noise within 2 std.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: iterations at each step of the environment.
      num_samples: sequences of each iteration.
      num_elites: elites at most; fewer where that is more than half of `num_samples`.
      init_std: std at the start of each step, in units of half the range.
      momentum: the share of mean and std that stays in an iteration.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.

    Reference: Chua et al., arXiv 1805.12114.
    """
    return make_cem(
        simulator,
        low=low,
        high=high,
        horizon=horizon,
        num_iterations=num_iterations,
        num_samples=num_samples,
        num_elites=num_elites,
        init_std=init_std,
        momentum=momentum,
        sampler=half_distance_normal(),
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
        clipped_noise(0.0, convention="corrected"),
        low=low,
        high=high,
        horizon=horizon,
        num_iterations=num_iterations,
        num_samples=num_samples,
        num_elites=num_elites,
        init_std=init_std,
        momentum=0.0,
        decay=1.0,
        elite_share=0.0,
        keep_elites=False,
        shift_elites=False,
        mean_in_last_iteration=False,
        warm_start=False,
        execute="mean",
        population="unrolled",
        knots=None,
        proposal=None,
    )
