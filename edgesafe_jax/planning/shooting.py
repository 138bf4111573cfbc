"""The simplest planners: take the best of some random sequences, afresh or around the last plan."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from edgesafe_jax.errors import POSITIVE
from edgesafe_jax.planning.budgets import divide_budget
from edgesafe_jax.planning.knots import Knots
from edgesafe_jax.planning.noise import ActionSampler, clipped_noise, uniform
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
    SearchSpace,
    Selection,
    make_search,
    make_space,
)
from edgesafe_jax.typing import Array, ArrayLike


def make_random_shooting(
    simulator: Simulator, *, low: ArrayLike, high: ArrayLike, horizon: int = 30, num_samples: int = 100
) -> Planner:
    """Makes random shooting: the best of N sequences of independent uniform actions.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_samples: N.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.
    """
    space = make_space(low, high, horizon)
    return _make_shooting(simulator, space, uniform(), num_samples=num_samples, std=1.0, warm_start=False)


def make_predictive_sampling(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_samples: int = 100,
    std: float = 0.3,
    knots: Knots | None = None,
) -> Planner:
    """Makes predictive sampling: the best of the last plan and N - 1 noisy copies of it becomes the plan.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_samples: N.
      std: of the white noise, in units of half the range.
      knots: searches a spline instead of single actions, as the method's authors do.

    Returns:
      The planner.

    Raises:
      PlanningError: as `edgesafe_jax.planning.make_icem`.

    Reference: Howell et al., arXiv 2212.00541, section 3.
    """
    space, sampler = make_space(low, high, horizon, knots), clipped_noise(0.0, convention="corrected")
    return _make_shooting(simulator, space, sampler, num_samples=num_samples, std=std, warm_start=True)


def _make_shooting(
    simulator: Simulator,
    space: SearchSpace,
    sampler: ActionSampler,
    *,
    num_samples: int,
    std: float,
    warm_start: bool,
) -> Planner:
    num_samples = checked_count(num_samples, "num_samples", least=2)
    check_numbers({"std": POSITIVE}, {"std": std})
    return make_search(simulator, _BestOf(space, sampler, std, warm_start), space, sampler, sizes=[num_samples])


@dataclasses.dataclass(frozen=True)
class _BestOf(PlanMethod):
    """The method of shooting: the best candidate; with `warm_start` they lie around the last plan, which is one."""

    std: float
    warm_start: bool

    def sample(self, search: PlanSearch, noise: Array, iteration: Iteration) -> Candidates:
        del iteration
        space = self.space
        candidates = self.sampler.place(noise, search.plan, space.std(self.std), space.low, space.high)
        if self.warm_start:
            candidates = candidates.at[0].set(search.plan)
        return Candidates(candidates, jnp.ones((len(candidates),), bool))

    def update(
        self, search: PlanSearch, candidates: Candidates, outcomes: Outcomes, iteration: Iteration
    ) -> PlanSearch:
        del iteration
        order, sequences = rank(outcomes), candidates.sequences
        found = is_finite(outcomes)[order[0]]
        best_tenth = sequences[order[: max(2, len(sequences) // 10)]]
        return PlanSearch(
            plan=jnp.where(found, sequences[order[0]], search.plan),
            best_cost=jnp.where(found, outcomes.cost[order[0]], jnp.inf),
            spread=self.space.spread(jnp.std(best_tenth, axis=0)),
        )

    def select(self, search: PlanSearch) -> Selection:
        memory = self.space.shifted(search.plan) if self.warm_start else self.init()
        return Selection(search.plan, memory, search.best_cost, search.spread)


def predictive_sampling_at_budget(
    simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any
) -> Planner:
    """Makes predictive sampling at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    divide_budget(budget)
    return make_predictive_sampling(simulator, **common, num_samples=budget)


def random_shooting_at_budget(simulator: Simulator, *, budget: int, noise_beta: ArrayLike, **common: Any) -> Planner:
    """Makes random shooting at a budget, see `edgesafe_jax.planning.budgets.Builder`."""
    del noise_beta
    divide_budget(budget)
    return make_random_shooting(simulator, **common, num_samples=budget)
