"""Planners that average all candidates, by cost: MPPI with white or coloured noise, and its annealed form."""

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.noise import Convention, clipped_noise
from edgesafe_jax.planning.planner import (
    Knots,
    Outcomes,
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


def path_integral_weights(outcomes: Outcomes, temperature: float) -> Array:
    r"""Weights of trajectories: softmax of -cost / (temperature * std of the costs).

    The std over the finite trajectories makes the temperature independent of the scale of the costs. Where some
    trajectories keep the constraints, the others weigh nothing; where none does, the violation stands for the cost.

    Args:
      outcomes: of N trajectories.
      temperature: above 0; towards 0 the best takes all.

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
    number = jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32)
    centre = jnp.sum(cost) / number
    scale = jnp.sqrt(jnp.sum(jnp.where(counted, (cost - centre) ** 2, 0.0)) / number)
    best = jnp.min(jnp.where(counted, cost, jnp.inf))
    logits = jnp.where(counted, -(cost - best) / (temperature * jnp.maximum(scale, 1e-9)), -jnp.inf)
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
    temperature: float = 0.1,
    noise_beta: ArrayLike = 0.0,
    noise_convention: Convention = "classic",
    std: float = 0.5,
    iteration_decay: float = 1.0,
    horizon_decay: float = 1.0,
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
      temperature: of the weights, in units of the costs' std.
      noise_beta: exponent of the noise, 0 for white; a number or one per action dimension `[A]`.
      noise_convention: its normalisation, see `colored_noise`.
      std: of the noise, in units of half the range.
      iteration_decay: by which the noise shrinks from one iteration to the next.
      horizon_decay: by which it is smaller one step nearer to the present.
      knots: searches a spline instead of single actions.

    Returns:
      The planner; its state is mu `[K, A]`.

    Raises:
      PlanningError: if a number is out of its range, or the bounds are reversed or not finite.

    Reference: Williams et al., Information theoretic MPC, ICRA 2017; coloured noise as in Vlahov et al.,
      arXiv 2404.03094.
    """
    lower, upper = checked_bounds(low, high)
    horizon = checked_count(horizon, "horizon")
    num_iterations = checked_count(num_iterations, "num_iterations")
    num_samples = checked_count(num_samples, "num_samples", least=2)
    for name, value in (("temperature", temperature), ("std", std)):
        if not value > 0:
            raise PlanningError(f"{name}={value}: expected above 0")
    for name, value in (("iteration_decay", iteration_decay), ("horizon_decay", horizon_decay)):
        if not 0 < value <= 1:
            raise PlanningError(f"{name}={value}: expected above 0 and at most 1")
    if knots is not None and knots.expand.shape[0] != horizon:
        raise PlanningError(f"knots for a horizon of {knots.expand.shape[0]}: expected {horizon}")
    maps = make_knots(horizon, horizon) if knots is None else knots
    size = maps.num_knots
    sampler = clipped_noise(noise_beta, convention=noise_convention)
    over_time = horizon_decay ** np.arange(size - 1, -1, -1.0)
    start_std = jnp.asarray(std * over_time[:, None] * (upper - lower)[None] / 2, jnp.float32)

    def to_actions(candidates: Array) -> Array:
        return candidates if knots is None else clipped(maps.actions(candidates), lower, upper)

    def init() -> Array:
        return jnp.broadcast_to(jnp.asarray((lower + upper) / 2, jnp.float32), (size, len(lower)))

    def plan(key: PRNGKey, state: Array, env_state: PyTree) -> tuple[Array, Array, Plan]:
        def update(mean: Array, inputs: tuple[PRNGKey, Array]) -> tuple[Array, tuple[Array, Array, Array, Array]]:
            keys, scale = inputs
            noise = jax.vmap(lambda each: sampler.draw(each, mean.shape))(keys)  # type: ignore[arg-type]
            candidates = sampler.place(noise, mean, scale * start_std, lower, upper).at[0].set(mean)
            outcomes = checked_outcomes(simulator(env_state, to_actions(candidates)), num_samples)
            weight = path_integral_weights(outcomes, temperature)[:, None, None]
            moved = jnp.sum(weight * candidates, axis=0) + (1 - jnp.sum(weight)) * mean
            spread = jnp.sqrt(jnp.sum(weight * (candidates - moved[None]) ** 2, axis=0))
            best = outcomes.cost[rank(outcomes)[0]]
            best = jnp.where(jnp.isfinite(best), best, jnp.inf)
            told = counts(outcomes, jnp.ones((num_samples,), bool))
            return moved, (best, jnp.mean(spread / jnp.asarray((upper - lower) / 2)[None]), *told)

        scales = jnp.asarray(iteration_decay ** np.arange(float(num_iterations)), jnp.float32)
        mean, (best, spread, nonfinite, infeasible) = jax.lax.scan(
            update, state, (jax.random.split(key, (num_iterations, num_samples)), scales)
        )
        actions = to_actions(mean)
        return actions[0], maps.shifted(mean), Plan(actions, best[-1], spread[-1], nonfinite.sum(), infeasible.sum())

    return Planner(init, plan, num_samples * num_iterations)


def make_dial(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 3,
    num_samples: int = 33,
    num_knots: int = 6,
    temperature: float = 0.1,
    std: float = 0.5,
    iteration_decay: float = 0.5,
    horizon_decay: float = 0.9,
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
      temperature: of the weights, in units of the costs' std.
      std: of the noise of the first stage at the last knot, in units of half the range.
      iteration_decay: by which it shrinks from stage to stage.
      horizon_decay: by which it is smaller one knot nearer to the present.

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
        temperature=temperature,
        std=std,
        iteration_decay=iteration_decay,
        horizon_decay=horizon_decay,
        knots=make_knots(horizon, min(num_knots, horizon)),
    )
