"""The skeleton of every planner: sample candidates, evaluate them, update the search, select a plan.

A planner is a `Method`, which holds only its specific part; `make_search` does the rest: random keys, iterations,
simulation and counting of the candidates, and the plan that is returned. To add a planner, write a `Method` in its own
file and name its builder in `edgesafe_jax.planning.registry.PLANNERS`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.knots import Knots, make_knots
from edgesafe_jax.planning.noise import ActionSampler
from edgesafe_jax.planning.planner import (
    Outcomes,
    Plan,
    Planner,
    PlanningError,
    Simulator,
    Stages,
    checked_bounds,
    checked_count,
    checked_outcomes,
    clipped,
    count_excluded,
)
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree

Population: TypeAlias = Literal["unrolled", "padded"]
"""Compilation of the iterations: each at its own population size, or one loop body at the largest size."""


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The sequences that a planner searches: actions within bounds, or the knots of a spline through them.

    Attributes:
      low: lower bounds of the actions `[A]`.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      knots: the spline; None where each action is searched.
    """

    low: np.ndarray
    high: np.ndarray
    horizon: int
    knots: Knots | None

    @property
    def shape(self) -> tuple[int, int]:
        """`(K, A)`, the shape of a candidate."""
        return (self.knots.num_knots if self.knots else self.horizon), len(self.low)

    @property
    def half_range(self) -> np.ndarray:
        """Half the distance between the bounds `[A]`."""
        return (self.high - self.low) / 2

    def middle(self) -> Array:
        """Returns the candidate `[K, A]` in the middle between the bounds."""
        return jnp.asarray(np.full(self.shape, (self.low + self.high) / 2))

    def std(self, scale: ArrayLike) -> Array:
        """Returns standard deviations `[K, A]` of a scale in units of half the range, a number or one per knot."""
        return jnp.asarray(np.full(self.shape, scale * self.half_range, np.float32))

    def actions(self, candidates: Array) -> Array:
        """Returns the actions `[..., T, A]` of candidates `[..., K, A]`, within the bounds."""
        return candidates if self.knots is None else clipped(self.knots.actions(candidates), self.low, self.high)

    def shifted(self, candidates: Array) -> Array:
        """Returns candidates `[..., K, A]` one step later; the last entry is held."""
        return (make_knots(self.horizon, self.horizon) if self.knots is None else self.knots).shifted(candidates)

    def spread(self, std: Array) -> Array:
        """Returns the mean of standard deviations `[K, A]` in units of half the range `[]`."""
        return jnp.mean(std / jnp.asarray(self.half_range)[None])


def make_space(low: ArrayLike, high: ArrayLike, horizon: int, knots: Knots | None = None) -> SearchSpace:
    """Makes a search space.

    Args:
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      knots: searches a spline instead of single actions.

    Returns:
      The space.

    Raises:
      PlanningError: if the bounds are reversed or not finite, or the horizon is not a count or not that of the knots.
    """
    lower, upper = checked_bounds(low, high)
    horizon = checked_count(horizon, "horizon")
    if knots is not None and knots.expand.shape[0] != horizon:
        raise PlanningError(f"knots for a horizon of {knots.expand.shape[0]}: expected {horizon}")
    return SearchSpace(lower, upper, horizon, knots)


class Iteration(NamedTuple):
    """The position of a search.

    Attributes:
      number: of the iteration, from 0; an int where iterations are unrolled, an array `[]` in a loop.
      size: candidates of this iteration that count, of those that are drawn.
      is_last: whether it is the last one.
    """

    number: int | Array
    size: int | Array
    is_last: bool | Array


class Candidates(NamedTuple):
    """The sequences that one iteration simulates.

    Attributes:
      sequences: `[N, K, A]`.
      present: which of them count `[N]`; the others are simulated because shapes are fixed, and rank last.
    """

    sequences: Array
    present: Array


class Selection(NamedTuple):
    """The outcome of a search.

    Attributes:
      sequence: that is executed `[K, A]`.
      memory: of the planner for the next step of the environment.
      best_cost: see `Plan` `[]`.
      spread: see `Plan.elite_spread` `[]`.
    """

    sequence: Array
    memory: Any
    best_cost: Array
    spread: Array


class Method(Protocol):
    """The specific part of a planner: pure functions of its memory (between steps) and its search (within one).

    Attributes:
      num_extra: candidates that the first iteration has beside those that are drawn.
      num_keys: random keys that `begin` needs.
    """

    @property
    def num_extra(self) -> int:
        """Candidates that the first iteration has beside those that are drawn, without a proposal's."""
        ...

    @property
    def num_keys(self) -> int:
        """Random keys that `begin` needs."""
        ...

    def init(self) -> Any:
        """Returns the memory before the first step of an episode."""
        ...

    def begin(self, keys: PRNGKey, memory: Any, env_state: PyTree) -> Any:
        """Returns the search before its first iteration, from keys `[num_keys]`."""
        ...

    def sample(self, search: Any, noise: Array, iteration: Iteration) -> Candidates:
        """Returns the candidates of an iteration, from noise `[N, K, A]` as the sampler draws it."""
        ...

    def update(self, search: Any, candidates: Candidates, outcomes: Outcomes, iteration: Iteration) -> Any:
        """Returns the search after an iteration; what is not present has an infinite cost."""
        ...

    def select(self, search: Any) -> Selection:
        """Returns the plan."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlanSearch:
    """The search of a method that improves one plan.

    Attributes:
      plan: the best so far `[K, A]`.
      best_cost: lowest cost among the candidates of the last iteration `[]`.
      spread: see `Plan.elite_spread` `[]`.
    """

    plan: Array
    best_cost: Array
    spread: Array


@dataclasses.dataclass(frozen=True)
class PlanMethod:
    """The base of methods whose memory is one plan `[K, A]`, from the middle between the bounds on.

    Attributes:
      space: what is searched.
      sampler: draws the noise of the candidates.
    """

    space: SearchSpace
    sampler: ActionSampler

    num_extra = 0
    num_keys = 0

    def init(self) -> Array:
        """Returns the middle between the bounds."""
        return self.space.middle()

    def begin(self, keys: PRNGKey, memory: Array, env_state: PyTree) -> PlanSearch:
        """Returns the search around the remembered plan, with nothing evaluated."""
        del keys, env_state
        return PlanSearch(memory, jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.float32))


def make_search(
    simulator: Simulator,
    method: Method,
    space: SearchSpace,
    sampler: ActionSampler,
    *,
    sizes: Sequence[int],
    population: Population = "unrolled",
) -> Planner:
    """Makes a planner.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      method: what is the planner's own.
      space: what is searched.
      sampler: draws the noise of the candidates.
      sizes: candidates of each iteration.
      population: how the iterations are compiled; the plans are the same.

    Returns:
      The planner.
    """
    num_iterations, largest = len(sizes), max(sizes)
    num_draws = num_iterations * largest

    def iterate(
        carry: tuple[Any, Array, Array], env_state: PyTree, noise: Array, iteration: Iteration
    ) -> tuple[Any, Array, Array]:
        search, num_nonfinite, num_infeasible = carry
        candidates = method.sample(search, noise, iteration)
        actions = space.actions(candidates.sequences)
        outcomes = checked_outcomes(simulator(env_state, actions), actions.shape[0])
        nonfinite, infeasible = count_excluded(outcomes, candidates.present)
        outcomes = Outcomes(jnp.where(candidates.present, outcomes.cost, jnp.inf), outcomes.violation)
        search = method.update(search, candidates, outcomes, iteration)
        return search, num_nonfinite + nonfinite, num_infeasible + infeasible

    def begin(key: PRNGKey, state: Any, env_state: PyTree) -> tuple[Array, tuple[Any, Array, Array]]:
        # One key per candidate, so that the first n candidates do not depend on how many are drawn.
        keys = jax.random.split(key, num_draws + method.num_keys)
        noise = jax.vmap(lambda each: sampler.draw(each, space.shape))(keys[:num_draws])
        noise = jnp.reshape(noise, (num_iterations, largest, *space.shape))
        none = jnp.zeros((), jnp.int32)
        return noise, (method.begin(keys[num_draws:], state, env_state), none, none)

    def unrolled(index: int, search: tuple[Array, Any], env_state: PyTree) -> tuple[Array, Any]:
        noise, carry = search
        iteration = Iteration(index, sizes[index], index == num_iterations - 1)
        return noise, iterate(carry, env_state, noise[index, : sizes[index]], iteration)

    def finish(found: tuple[Array, tuple[Any, Array, Array]]) -> tuple[Array, Any, Plan]:
        search, num_nonfinite, num_infeasible = found[1]
        chosen = method.select(search)
        actions = space.actions(chosen.sequence)
        return actions[0], chosen.memory, Plan(actions, chosen.best_cost, chosen.spread, num_nonfinite, num_infeasible)

    def skip(memory: Any) -> Any:
        is_sequence = lambda leaf: leaf.shape[-2:] == space.shape  # noqa: E731
        return jax.tree.map(lambda leaf: space.shifted(leaf) if is_sequence(leaf) else leaf, memory)

    def plan(key: PRNGKey, state: Any, env_state: PyTree) -> tuple[Array, Any, Plan]:
        noise, carry = begin(key, state, env_state)
        if population == "unrolled":
            for index in range(num_iterations):
                noise, carry = unrolled(index, (noise, carry), env_state)
        else:

            def body(carry: Any, inputs: tuple[Array, Array, Array]) -> tuple[Any, None]:
                drawn, index, size = inputs
                iteration = Iteration(index, size, index == num_iterations - 1)
                return iterate(carry, env_state, drawn, iteration), None

            carry, _ = jax.lax.scan(body, carry, (noise, jnp.arange(num_iterations), jnp.asarray(sizes)))
        return finish((noise, carry))

    if population == "unrolled":
        num_trajectories = sum(sizes) + method.num_extra
    else:
        num_trajectories = num_iterations * (largest + method.num_extra)
    parts = tuple(functools.partial(unrolled, index) for index in range(num_iterations))
    return Planner(method.init, plan, num_trajectories, Stages(begin, parts, finish, skip))
