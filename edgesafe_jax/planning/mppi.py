"""Planners that average all candidates, by cost: MPPI with white or coloured noise, and its annealed form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import POSITIVE, Range
from edgesafe_jax.planning.budgets import divide_budget
from edgesafe_jax.planning.knots import Knots, make_knots
from edgesafe_jax.planning.noise import Convention, clipped_noise
from edgesafe_jax.planning.planner import (
    Outcomes,
    Planner,
    Simulator,
    check_numbers,
    checked_count,
    is_finite,
    rank,
)
from edgesafe_jax.planning.search import (
    Candidates,
    Iteration,
    PlanMethod,
    PlanSearch,
    Selection,
    make_search,
    make_space,
)
from edgesafe_jax.typing import Array, ArrayLike

_DECAY = Range(0, 1, above=True)
_RANGES = {"temperature": POSITIVE, "std": POSITIVE, "iteration_decay": _DECAY, "horizon_decay": _DECAY}


@dataclasses.dataclass(frozen=True)
class MppiSettings:
    """The settings of MPPI.

    Attributes:
      temperature: of the weights, in units of `cost_scale`.
      noise_convention: normalisation of the noise, see `colored_noise`.
      std: of the noise, in units of half the range.
      iteration_decay: by which the noise shrinks from one iteration to the next.
      horizon_decay: by which it is smaller one step nearer to the present.
    """

    temperature: float = 0.1
    noise_convention: Convention = "classic"
    std: float = 0.5
    iteration_decay: float = 1.0
    horizon_decay: float = 1.0


_HALF_NORMAL = (1 - 2 / np.pi) ** 0.5
"""Standard deviation of the better half of normally distributed costs, in units of their own."""
_MOST_GROWTH = 10.0
"""A half whose costs spread this many times more than those of its own better half holds outliers."""


def cost_scale(cost: Array, counted: Array) -> Array:
    r"""Returns the scale of costs that outliers do not move.

    It is the standard deviation of the better half divided by sqrt(1 - 2 / pi), which for normally distributed costs is
    their standard deviation. Where more than half of the costs are outliers, the better half of the better half is
    taken, and so on: a half counts where its standard deviation is at most 10 times that of its own better half.

    Args:
      cost: of N trajectories `[N]`.
      counted: which of them count `[N]`.

    Returns:
      The scale `[]`; 0 where no two costs differ.
    """
    number = jnp.sum(counted, dtype=jnp.int32)
    away = jnp.sort(jnp.where(counted, cost, jnp.inf))
    away = jnp.where(jnp.arange(len(cost)) < number, away - away[0], 0.0)
    halvings = 2 ** np.arange(1, max(2, len(cost).bit_length() - 1))
    sizes = jnp.minimum(jnp.maximum(-(-number // jnp.asarray(halvings, jnp.int32)), 4), number)  # of the halves

    def std(size: Array) -> Array:
        inside = jnp.arange(len(cost)) < size
        largest = jnp.maximum(away[jnp.maximum(size - 1, 0)], 1e-30)  # squares of costs may be too large for float32
        part = jnp.where(inside, away / largest, 0.0)
        count = jnp.maximum(size, 1).astype(jnp.float32)
        mean = jnp.sum(part) / count
        return largest * jnp.sqrt(jnp.sum(jnp.where(inside, (part - mean) ** 2, 0.0)) / count)

    stds = jax.vmap(std)(sizes)
    scale = stds[-1]
    for larger in stds[-2::-1]:
        scale = jnp.where((larger <= _MOST_GROWTH * scale) | (scale == 0), larger, scale)
    return scale / _HALF_NORMAL


def path_integral_weights(outcomes: Outcomes, temperature: float) -> Array:
    r"""Weights of trajectories: softmax of -cost / (temperature * scale of the costs).

    The scale is `cost_scale` of the finite trajectories: a collision that costs 1e20 weighs as one that costs infinity.
    Where some trajectories keep the constraints, the others weigh nothing; where none does, the violation stands for
    the cost.

    Args:
      outcomes: of N trajectories.
      temperature: above 0; towards 0 all weight goes to the best.

    Returns:
      Weights `[N]` with sum 1; all zero where no trajectory is finite.

    Example:
      >>> path_integral_weights(Outcomes(jnp.array([0.0, 0.0, jnp.nan]), jnp.zeros(3)), 0.1).tolist()
      [0.5, 0.5, 0.0]
    """
    finite = is_finite(outcomes)
    feasible = finite & (outcomes.violation <= 0)
    some = jnp.any(feasible)
    counted = jnp.where(some, feasible, finite)
    cost = jnp.where(counted, jnp.where(some, outcomes.cost, outcomes.violation), 0.0)
    best = jnp.min(jnp.where(counted, cost, jnp.inf))
    scale = jnp.maximum(cost_scale(cost, counted), 1e-9)
    logits = jnp.where(counted, -(cost - best) / scale / temperature, -jnp.inf)
    weight = jnp.where(counted, jnp.exp(logits), 0.0)
    return weight / jnp.maximum(jnp.sum(weight), 1e-30)


def make_mppi(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 1,
    num_samples: int = 100,
    noise_beta: ArrayLike = 0.0,
    settings: MppiSettings = MppiSettings(),
    knots: Knots | None = None,
) -> Planner:
    r"""Makes MPPI: the plan moves to the mean of its noisy copies, weighted by softmax(-cost / temperature).

    In iteration i (from 0) copy n is clip(mu + sigma_i noise, low, high) with, at time t of K,

        sigma_i[t] = std * iteration_decay^i * horizon_decay^(K - 1 - t) * (high - low) / 2 ,

    copy 0 is mu itself, and mu becomes sum_n w_n x_n with `path_integral_weights`. The first action of mu is executed
    and mu moves one step on, its last entry repeated. Decays below 1 give the annealing of DIAL-MPC, see `make_dial`.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: updates at each step of the environment.
      num_samples: N, sequences of each.
      noise_beta: exponent of the noise, 0 for white; a number or one per action dimension `[A]`.
      settings: everything else; the names above are its fields.
      knots: searches a spline instead of single actions.

    Returns:
      The planner; its state is mu `[K, A]`.

    Raises:
      PlanningError: if a number is out of its range, or the bounds are reversed or not finite.

    Reference: Williams et al., Information theoretic MPC, ICRA 2017; coloured noise as in Vlahov et al.,
      arXiv 2404.03094.
    """
    space = make_space(low, high, horizon, knots)
    num_iterations = checked_count(num_iterations, "num_iterations")
    num_samples = checked_count(num_samples, "num_samples", least=2)
    check_numbers(_RANGES, vars(settings))
    sampler = clipped_noise(noise_beta, convention=settings.noise_convention)
    method = _PathIntegral(space, sampler, settings, num_iterations)
    return make_search(simulator, method, space, sampler, sizes=[num_samples] * num_iterations, population="padded")


@dataclasses.dataclass(frozen=True)
class _PathIntegral(PlanMethod):
    """The method of MPPI: the plan moves to the weighted mean of its noisy copies."""

    settings: MppiSettings
    num_iterations: int

    def sample(self, search: PlanSearch, noise: Array, iteration: Iteration) -> Candidates:
        space, settings = self.space, self.settings
        over_time = settings.horizon_decay ** np.arange(space.shape[0] - 1, -1, -1.0)
        over_iterations = settings.iteration_decay ** np.arange(float(self.num_iterations))
        scale = jnp.asarray(over_iterations, jnp.float32)[iteration.number]
        std = scale * space.std(settings.std * over_time[:, None])
        candidates = self.sampler.place(noise, search.plan, std, space.low, space.high).at[0].set(search.plan)
        return Candidates(candidates, jnp.ones((len(candidates),), bool))

    def update(
        self, search: PlanSearch, candidates: Candidates, outcomes: Outcomes, iteration: Iteration
    ) -> PlanSearch:
        del iteration
        weight = path_integral_weights(outcomes, self.settings.temperature)[:, None, None]
        moved = jnp.sum(weight * candidates.sequences, axis=0) + (1 - jnp.sum(weight)) * search.plan
        std = jnp.sqrt(jnp.sum(weight * (candidates.sequences - moved[None]) ** 2, axis=0))
        best = outcomes.cost[rank(outcomes)[0]]
        return PlanSearch(moved, jnp.where(jnp.isfinite(best), best, jnp.inf), self.space.spread(std))

    def select(self, search: PlanSearch) -> Selection:
        return Selection(search.plan, self.space.shifted(search.plan), search.best_cost, search.spread)


def make_dial(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 3,
    num_samples: int = 33,
    num_knots: int = 6,
    settings: MppiSettings = MppiSettings(iteration_decay=0.5, horizon_decay=0.9),
) -> Planner:
    """Makes annealed MPPI over spline knots, after DIAL-MPC: less noise in later iterations and nearer actions.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: annealing stages at each step of the environment.
      num_samples: sequences of each.
      num_knots: knots of the cubic spline that is searched.
      settings: of MPPI; its decays are those of the annealing, per stage and per knot.

    Returns:
      The planner.

    Raises:
      PlanningError: as `make_mppi` and `make_knots`.

    Reference: Xue et al., arXiv 2409.15610, equation 9; this is its annealing, not its contact-rich tasks.
    """
    return make_mppi(
        simulator,
        low=low,
        high=high,
        horizon=horizon,
        num_iterations=num_iterations,
        num_samples=num_samples,
        settings=settings,
        knots=make_knots(horizon, min(num_knots, horizon)),
    )


def mppi_at_budget(simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any) -> Planner:
    """Makes MPPI with white noise at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    return make_mppi(simulator, **common, **divide_budget(budget))


def colored_mppi_at_budget(simulator: Simulator, *, budget: int, **common: Any) -> Planner:
    """Makes MPPI with coloured noise at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    return make_mppi(simulator, **common, **divide_budget(budget))


def dial_at_budget(simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any) -> Planner:
    """Makes annealed MPPI at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    return make_dial(simulator, **common, **divide_budget(budget))
