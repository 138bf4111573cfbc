"""iCEM: the cross-entropy method with coloured noise, memory and a shrinking population."""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from edgesafe_jax.planning.noise import Convention, Sampler, clipped_noise
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

Execute: TypeAlias = Literal["best", "mean"]
"""Which sequence is executed: the best of the last pool, or the mean of its elites."""

Population: TypeAlias = Literal["unrolled", "padded"]
"""How a shrinking population is compiled: each iteration at its size, or one loop body at the largest."""

Proposal: TypeAlias = Callable[[PRNGKey, PyTree], Array]
"""Candidates `[P, K, A]` (actions, or knots where the search is over knots) from the state of the environment."""

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
"""The paper's table: iterations and sequences of the first one, by the budget of trajectories at each step."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ElitesState:
    """What is remembered from one step to the next.

    Attributes:
      mean: centre of the search at the coming step `[K, A]`.
      elites: best sequences of the last step, best first, not yet shifted `[E, K, A]`.
      has_elites: whether there are any: not before the first step of an episode `[]`.
    """

    mean: Array
    elites: Array
    has_elites: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    """The distribution and the elites between two iterations."""

    mean: Array
    std: Array
    elites: Array
    outcomes: Outcomes
    num_nonfinite: Array
    num_infeasible: Array


def population_sizes(num_samples: int, num_iterations: int, *, decay: float = 1.25, least: int = 1) -> list[int]:
    """Returns how many sequences each iteration draws: N_0 = num_samples, N_i = max(least, int(N_{i-1} / decay)).

    Args:
      num_samples: sequences of the first iteration.
      num_iterations: iterations.
      decay: gamma; 1 keeps the size.
      least: smallest size, 2 K in iCEM.

    Returns:
      The sizes.

    Example:
      >>> population_sizes(40, 3, decay=1.25, least=20)
      [40, 32, 25]
    """
    sizes = [num_samples]
    for _ in range(num_iterations - 1):
        sizes.append(max(min(least, num_samples), int(sizes[-1] / decay)))
    return sizes


def make_icem(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 3,
    num_samples: int = 40,
    num_elites: int = 10,
    noise_beta: ArrayLike = 2.0,
    noise_convention: Convention = "classic",
    init_std: float = 0.5,
    momentum: float = 0.1,
    decay: float = 1.25,
    elite_share: float = 0.3,
    keep_elites: bool = True,
    shift_elites: bool = True,
    mean_in_last_iteration: bool = True,
    execute: Execute = "best",
    population: Population = "unrolled",
    knots: Knots | None = None,
    proposal: Proposal | None = None,
) -> Planner:
    r"""Makes the iCEM planner.

    At each step of the environment, from mean mu and std sigma = init_std (high - low) / 2, iteration i

    1. draws N_i = max(2 K, int(N_{i-1} / decay)) sequences clip(mu + sigma noise_beta, low, high), of which the last
       iteration replaces the first by mu;
    2. at i = 0 adds the best int(elite_share K) elites of the last step, one step later, each with a fresh last action;
    3. simulates them; at i > 0 adds the best int(elite_share K) elites of iteration i - 1, which are not simulated
       again;
    4. takes the best K = max(2, min(num_elites, N_0 / 2)) as elites and moves
       mu <- (1 - momentum) mean(elites) + momentum mu, and sigma likewise with their population std.

    The first action of the best sequence of the last pool is executed and mu moves one step on, its last entry
    repeated. Trajectories with a cost that is not finite never count among the elites; without a finite one mu and
    sigma stay.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: iterations at each step of the environment.
      num_samples: N_0, sequences of the first iteration.
      num_elites: K at most; fewer where that is more than half of `num_samples`.
      noise_beta: exponent of the coloured noise, a number or one per action dimension `[A]`.
      noise_convention: its normalisation, see `colored_noise`.
      init_std: sigma at the start of each step, in units of half the range.
      momentum: alpha, the share of mean and std that stays.
      decay: gamma, by which the population shrinks from one iteration to the next; 1 for not.
      elite_share: xi, the share of the elites that is carried over.
      keep_elites: whether elites are carried over from one iteration to the next.
      shift_elites: whether they are carried over from one step to the next.
      mean_in_last_iteration: whether mu is among the candidates of the last iteration.
      execute: ``"best"`` or ``"mean"``, which with a learned simulator exploits its errors less.
      population: ``"unrolled"`` simulates no more than needed and compiles every size; ``"padded"`` compiles one
        iteration at the largest size and leaves the surplus out of the ranking. The plans are the same.
      knots: searches a spline instead of single actions, see `make_knots`.
      proposal: adds candidates to the first iteration, such as the actions of a policy, clipped to the bounds.

    Returns:
      The planner.

    Raises:
      PlanningError: if a number is out of its range, the bounds are reversed or not finite, there are more elites
        than samples, or (at the first call, before anything is compiled) the simulator's outcomes have a wrong shape.

    Example:
      >>> def to_origin(position, actions):  # a point that moves by its actions
      ...     path = position + jnp.cumsum(actions, axis=1)
      ...     return Outcomes(jnp.sum(path**2, axis=(1, 2)), jnp.zeros(actions.shape[0]))
      >>> planner = make_icem(to_origin, low=[-1.0], high=[1.0], horizon=4)
      >>> action, state, plan = jax.jit(planner.plan)(jax.random.key(0), planner.init(), jnp.full((1, 1, 1), 0.5))
      >>> bool(abs(action[0] + 0.5) < 0.2)
      True

    Reference: Pinneri et al., Sample-efficient cross-entropy method for real-time planning, arXiv 2008.06389,
      algorithm 1; the details are those of the authors' code.
    """
    return make_elite_search(
        simulator,
        clipped_noise(noise_beta, convention=noise_convention),
        low=low,
        high=high,
        horizon=horizon,
        num_iterations=num_iterations,
        num_samples=num_samples,
        num_elites=num_elites,
        init_std=init_std,
        momentum=momentum,
        decay=decay,
        elite_share=elite_share,
        keep_elites=keep_elites,
        shift_elites=shift_elites,
        mean_in_last_iteration=mean_in_last_iteration,
        warm_start=True,
        execute=execute,
        population=population,
        knots=knots,
        proposal=proposal,
    )


def make_elite_search(
    simulator: Simulator,
    sampler: Sampler,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int,
    num_iterations: int,
    num_samples: int,
    num_elites: int,
    init_std: float,
    momentum: float,
    decay: float,
    elite_share: float,
    keep_elites: bool,
    shift_elites: bool,
    mean_in_last_iteration: bool,
    warm_start: bool,
    execute: Execute,
    population: Population,
    knots: Knots | None,
    proposal: Proposal | None,
) -> Planner:
    """Makes a planner of the CEM family; `make_icem` and `edgesafe_jax.planning.cem` choose its parts.

    Args:
      simulator: see `make_icem`, as all arguments that are not named here.
      sampler: draws the candidates.
      low: lower bounds `[A]`.
      high: upper bounds `[A]`.
      horizon: T.
      num_iterations: iterations.
      num_samples: N_0.
      num_elites: K at most.
      init_std: sigma at the start of each step, in units of half the range.
      momentum: alpha.
      decay: gamma.
      elite_share: xi.
      keep_elites: over iterations.
      shift_elites: over steps.
      mean_in_last_iteration: whether mu is a candidate.
      warm_start: whether mu moves on to the next step; else each step starts from the middle.
      execute: ``"best"`` or ``"mean"``.
      population: ``"unrolled"`` or ``"padded"``.
      knots: what is searched.
      proposal: more candidates.

    Returns:
      The planner.

    Raises:
      PlanningError: as `make_icem`.
    """
    lower, upper = checked_bounds(low, high)
    horizon = checked_count(horizon, "horizon")
    num_iterations = checked_count(num_iterations, "num_iterations")
    num_samples = checked_count(num_samples, "num_samples", least=2)
    num_elites = checked_count(num_elites, "num_elites", least=2)
    if num_elites > num_samples:
        raise PlanningError(f"num_elites={num_elites}: expected at most num_samples={num_samples}")
    if not init_std > 0:
        raise PlanningError(f"init_std={init_std}: expected above 0")
    if not 0 <= momentum < 1:
        raise PlanningError(f"momentum={momentum}: expected 0 or more and below 1")
    if not decay >= 1:
        raise PlanningError(f"decay={decay}: expected 1 or more")
    if not 0 <= elite_share <= 1:
        raise PlanningError(f"elite_share={elite_share}: expected 0 to 1")
    for name, value, choices in (("execute", execute, Execute), ("population", population, Population)):
        if value not in get_args(choices):
            raise PlanningError(f"{name}={value!r}: expected one of {', '.join(get_args(choices))}")
    if knots is not None and knots.expand.shape[0] != horizon:
        raise PlanningError(f"knots for a horizon of {knots.expand.shape[0]}: expected {horizon}")

    num_kept = max(2, min(num_elites, num_samples // 2))
    num_carried = int(elite_share * num_kept)
    shift_elites, keep_elites = shift_elites and num_carried > 0, keep_elites and num_carried > 0
    sizes = population_sizes(num_samples, num_iterations, decay=decay, least=2 * num_kept)
    dim = len(lower)
    num_knots = knots.num_knots if knots else horizon
    start_std = jnp.broadcast_to(jnp.asarray(init_std * (upper - lower) / 2, jnp.float32), (num_knots, dim))
    shifted = make_knots(horizon, horizon).shifted if knots is None else knots.shifted

    def middle() -> Array:
        return jnp.broadcast_to(jnp.asarray((lower + upper) / 2, jnp.float32), (num_knots, dim))

    def place(noise: Array, mean: Array, std: Array) -> Array:
        return sampler.place(noise, mean, std, lower, upper)

    def to_actions(candidates: Array) -> Array:
        if knots is None:
            return candidates
        return clipped(knots.actions(candidates), lower, upper)

    def extra_candidates(key: PRNGKey, noise: Array, state: ElitesState, env_state: PyTree) -> tuple[Array, Array]:
        """Candidates that only the first iteration has `[C, K, A]`, and which of them there are `[C]`."""
        found, present = [jnp.zeros((0, num_knots, dim))], [jnp.zeros((0,), bool)]
        if shift_elites:
            fresh = place(noise, state.mean, start_std)
            found.append(shifted(state.elites).at[:, -1].set(fresh[:, -1]))
            present.append(jnp.broadcast_to(state.has_elites, (num_carried,)))
        if proposal is not None:
            proposed = proposal(key, env_state)
            if proposed.ndim != 3 or proposed.shape[1:] != (num_knots, dim):
                raise PlanningError(f"the proposal has shape {list(proposed.shape)}: expected [P, {num_knots}, {dim}]")
            found.append(clipped(proposed, lower, upper))
            present.append(jnp.ones((proposed.shape[0],), bool))
        return jnp.concatenate(found), jnp.concatenate(present)

    def improve(search: _Search, env_state: PyTree, candidates: Array, present: Array, kept: Array | bool) -> _Search:
        """Simulates candidates, ranks those that are present with the kept elites, moves the distribution."""
        outcomes = checked_outcomes(simulator(env_state, to_actions(candidates)), candidates.shape[0])
        nonfinite, infeasible = counts(outcomes, present)
        pool, pooled = candidates, _without(outcomes, present)
        if kept is not False:
            last = jax.tree.map(lambda leaf: leaf[:num_carried], (search.elites, search.outcomes))
            pool = jnp.concatenate([pool, last[0]])
            remembered = _without(last[1], jnp.broadcast_to(kept, (num_carried,)))
            pooled = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), pooled, remembered)
        best = rank(pooled)[:num_kept]
        elites, elite_outcomes = pool[best], jax.tree.map(lambda leaf: leaf[best], pooled)
        weight = is_finite(elite_outcomes).astype(jnp.float32)[:, None, None]
        number = jnp.maximum(jnp.sum(weight), 1.0)
        elite_mean = jnp.sum(weight * elites, axis=0) / number
        elite_std = jnp.sqrt(jnp.sum(weight * (elites - elite_mean[None]) ** 2, axis=0) / number)
        stay = jnp.where(jnp.any(weight > 0), momentum, 1.0)
        return _Search(
            mean=(1 - stay) * elite_mean + stay * search.mean,
            std=(1 - stay) * elite_std + stay * search.std,
            elites=elites,
            outcomes=elite_outcomes,
            num_nonfinite=search.num_nonfinite + nonfinite,
            num_infeasible=search.num_infeasible + infeasible,
        )

    def with_mean(candidates: Array, mean: Array, last: Array | bool) -> Array:
        if not mean_in_last_iteration or last is False:
            return candidates
        return candidates.at[0].set(jnp.where(last, mean, candidates[0]))

    def unrolled(search: _Search, noise: Array, env_state: PyTree, extra: Array, extra_present: Array) -> _Search:
        for index, size in enumerate(sizes):
            candidates = place(noise[index, :size], search.mean, search.std)
            candidates = with_mean(candidates, search.mean, index == num_iterations - 1)
            present = jnp.ones((size,), bool)
            if index == 0:
                candidates = jnp.concatenate([candidates, extra])
                present = jnp.concatenate([present, extra_present])
            search = improve(search, env_state, candidates, present, keep_elites and index > 0)
        return search

    def padded(search: _Search, noise: Array, env_state: PyTree, extra: Array, extra_present: Array) -> _Search:
        def body(search: _Search, inputs: tuple[Array, Array, Array]) -> tuple[_Search, None]:
            drawn, index, size = inputs
            candidates = place(drawn, search.mean, search.std)
            candidates = with_mean(candidates, search.mean, index == num_iterations - 1)
            candidates = jnp.concatenate([candidates, extra])
            present = jnp.concatenate([jnp.arange(num_samples) < size, extra_present & (index == 0)])
            return improve(search, env_state, candidates, present, (index > 0) if keep_elites else False), None

        return jax.lax.scan(body, search, (noise, jnp.arange(num_iterations), jnp.asarray(sizes)))[0]

    def init() -> ElitesState:
        return ElitesState(middle(), jnp.broadcast_to(middle(), (num_carried, num_knots, dim)), jnp.zeros((), bool))

    def plan(key: PRNGKey, state: ElitesState, env_state: PyTree) -> tuple[Array, ElitesState, Plan]:
        # One key a candidate, so that the first n candidates do not depend on how many are drawn.
        total = num_iterations * num_samples
        keys = jax.random.split(key, total + num_carried + 1)
        noise = jax.vmap(lambda each: sampler.draw(each, (num_knots, dim)))(keys[:-1])
        extra, extra_present = extra_candidates(keys[-1], noise[total:], state, env_state)
        search = _Search(
            mean=state.mean,
            std=start_std,
            elites=jnp.broadcast_to(middle(), (num_kept, num_knots, dim)),
            outcomes=Outcomes(jnp.full((num_kept,), jnp.inf), jnp.zeros((num_kept,))),
            num_nonfinite=jnp.zeros((), jnp.int32),
            num_infeasible=jnp.zeros((), jnp.int32),
        )
        iterate = unrolled if population == "unrolled" else padded
        drawn = jnp.reshape(noise[:total], (num_iterations, num_samples, num_knots, dim))
        search = iterate(search, drawn, env_state, extra, extra_present)
        found = is_finite(search.outcomes)[0]
        chosen = jnp.where(found, search.elites[0], search.mean) if execute == "best" else search.mean
        actions = to_actions(chosen)
        spread = jnp.mean(jnp.std(search.elites, axis=0) / jnp.asarray((upper - lower) / 2)[None])
        next_state = ElitesState(
            mean=shifted(search.mean) if warm_start else middle(),
            elites=search.elites[:num_carried],
            has_elites=found,
        )
        best_cost = jnp.where(found, search.outcomes.cost[0], jnp.inf)
        described = Plan(actions, best_cost, spread, search.num_nonfinite, search.num_infeasible)
        return actions[0], next_state, described

    num_extra = num_carried if shift_elites else 0
    num_trajectories = sum(sizes) if population == "unrolled" else num_samples * num_iterations
    num_trajectories += num_extra * (1 if population == "unrolled" else num_iterations)
    return Planner(init, plan, num_trajectories)


def _without(outcomes: Outcomes, present: Array) -> Outcomes:
    """Outcomes that rank last where a trajectory is not present."""
    return Outcomes(jnp.where(present, outcomes.cost, jnp.inf), outcomes.violation)
