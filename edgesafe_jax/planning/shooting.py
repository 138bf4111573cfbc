"""The simplest planners: take the best of some random sequences, afresh or around the last plan."""

import jax
import jax.numpy as jnp

from edgesafe_jax.planning.noise import Sampler, clipped_noise, uniform
from edgesafe_jax.planning.planner import (
    Knots,
    Plan,
    Planner,
    PlanningError,
    Simulator,
    checked_bounds,
    checked_count,
    checked_outcomes,
    clipped,
    counts,
    is_finite,
    make_knots,
    rank,
)
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree


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
    return _best_of(uniform(), simulator, low, high, horizon, num_samples, std=1.0, warm_start=False, knots=None)


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
    sampler = clipped_noise(0.0, convention="corrected")
    return _best_of(sampler, simulator, low, high, horizon, num_samples, std=std, warm_start=True, knots=knots)


def _best_of(
    sampler: Sampler,
    simulator: Simulator,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int,
    num_samples: int,
    *,
    std: float,
    warm_start: bool,
    knots: Knots | None,
) -> Planner:
    """The best of N candidates; with `warm_start` they lie around the last plan, which is one of them."""
    lower, upper = checked_bounds(low, high)
    horizon = checked_count(horizon, "horizon")
    num_samples = checked_count(num_samples, "num_samples", least=2)
    if not std > 0:
        raise PlanningError(f"std={std}: expected above 0")
    if knots is not None and knots.expand.shape[0] != horizon:
        raise PlanningError(f"knots for a horizon of {knots.expand.shape[0]}: expected {horizon}")
    maps = make_knots(horizon, horizon) if knots is None else knots
    half_range = jnp.asarray((upper - lower) / 2, jnp.float32)

    def init() -> Array:
        return jnp.broadcast_to(jnp.asarray((lower + upper) / 2, jnp.float32), (maps.num_knots, len(lower)))

    def plan(key: PRNGKey, state: Array, env_state: PyTree) -> tuple[Array, Array, Plan]:
        scale = jnp.broadcast_to(std * half_range, state.shape)
        keys = jax.random.split(key, num_samples)
        noise = jax.vmap(lambda each: sampler.draw(each, (maps.num_knots, len(lower))))(keys)
        candidates = sampler.place(noise, state, scale, lower, upper)
        if warm_start:
            candidates = candidates.at[0].set(state)
        sequences = candidates if knots is None else clipped(maps.actions(candidates), lower, upper)
        outcomes = checked_outcomes(simulator(env_state, sequences), num_samples)
        order = rank(outcomes)
        found = is_finite(outcomes)[order[0]]
        best = jnp.where(found, candidates[order[0]], state)
        actions = jnp.where(found, sequences[order[0]], clipped(maps.actions(state), lower, upper))
        elites = candidates[order[: max(2, num_samples // 10)]]
        told = counts(outcomes, jnp.ones((num_samples,), bool))
        cost = jnp.where(found, outcomes.cost[order[0]], jnp.inf)
        spread = jnp.mean(jnp.std(elites, axis=0) / half_range[None])
        return actions[0], maps.shifted(best) if warm_start else init(), Plan(actions, cost, spread, *told)

    return Planner(init, plan, num_samples)
