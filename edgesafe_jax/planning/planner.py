"""The planner interface, a pair of pure functions over a simulator, and the ranking and checks of all planners."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError, EdgesafeError, Range, check_ranges
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree


class PlanningError(EdgesafeError, ValueError):
    """An invalid planner, simulator or task; the message names the value, what was expected and what to do."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Simulated outcomes of N action sequences.

    Attributes:
      cost: total cost of each trajectory `[N]`; what is not finite ranks last.
      violation: how far it leaves the state constraints, summed over time `[N]`; 0 where it keeps them.
    """

    cost: Array
    violation: Array


Simulator: TypeAlias = Callable[[PyTree, Array], Outcomes]
"""From the state of the environment and action sequences `[N, T, A]` to their `Outcomes` `[N]`.

It must be traceable by `jax.jit` and `jax.vmap`; one planner serves JAX step functions, learned ensembles and
C MuJoCo behind a callback, see `edgesafe_jax.planning.simulators` and `edgesafe_jax.planning.physics`.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan and its diagnostics.

    Attributes:
      actions: the sequence whose first action is returned `[T, A]`.
      best_cost: cost of the best trajectory of the last iteration, with the elites that it keeps from earlier ones
        where the planner keeps any `[]`; inf where none is finite.
      elite_spread: standard deviation of the elites' actions in units of half the range, averaged `[]`.
      num_nonfinite: simulated trajectories whose cost or violation is not finite `[]`.
      num_infeasible: simulated trajectories that leave the constraints `[]`.
    """

    actions: Array
    best_cost: Array
    elite_spread: Array
    num_nonfinite: Array
    num_infeasible: Array


class Stages(NamedTuple):
    """A plan in parts, between which a clock may be looked at.

    Attributes:
      begin: from a random key, the planner's state and the state of the environment to a search.
      iterations: each from a search and the state of the environment to the search after one iteration.
      finish: from a search after one iteration or more to what `Planner.plan` returns: the best so far.
      skip: the planner's state one step of the environment later, where no plan was made for that step.
    """

    begin: Callable[[PRNGKey, Any, PyTree], Any]
    iterations: tuple[Callable[[Any, PyTree], Any], ...]
    finish: Callable[[Any], tuple[Array, Any, Plan]]
    skip: Callable[[Any], Any]


class Planner(NamedTuple):
    """A planner as pure functions.

    Attributes:
      init: makes the state before the first step of an episode; what was remembered of another episode is gone.
      plan: from a random key, that state and the state of the environment to the action `[A]`, the next state and
        a `Plan`.
      num_trajectories: trajectories that one plan simulates, without those of a proposal.
      stages: the same plan in parts, for `make_realtime`; None where it has none.
    """

    init: Callable[[], Any]
    plan: Callable[[PRNGKey, Any, PyTree], tuple[Array, Any, Plan]]
    num_trajectories: int
    stages: Stages | None = None


def rank(outcomes: Outcomes) -> Array:
    """Orders trajectories, best first.

    Those within the constraints come first, by cost; then the others, by how far they leave them, then by cost. What
    is not finite comes last, in whatever order.

    Args:
      outcomes: of N trajectories.

    Returns:
      Indices `[N]`.

    Example:
      >>> rank(Outcomes(jnp.array([1.0, jnp.nan, 3.0, 0.0]), jnp.array([0.0, 0.0, 0.0, 2.0]))).tolist()
      [0, 2, 3, 1]
    """
    finite = is_finite(outcomes)
    violation = jnp.where(finite, jnp.maximum(outcomes.violation, 0.0), jnp.inf)
    return jnp.lexsort((jnp.where(finite, outcomes.cost, jnp.inf), violation))


def is_finite(outcomes: Outcomes) -> Array:
    """Says which trajectories `[N]` have a finite cost and a finite violation."""
    return jnp.isfinite(outcomes.cost) & jnp.isfinite(outcomes.violation)


def count_excluded(outcomes: Outcomes, simulated: Array) -> tuple[Array, Array]:
    """Counts, among the simulated trajectories `[N]`, those not finite and those that leave the constraints."""
    finite = is_finite(outcomes)
    return (
        jnp.sum(simulated & ~finite, dtype=jnp.int32),
        jnp.sum(simulated & finite & (outcomes.violation > 0), dtype=jnp.int32),
    )


def checked_bounds(low: ArrayLike, high: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounds of the actions as float32 `[A]`.

    Raises:
      PlanningError: if they are not vectors of one length, not finite, or reversed.
    """
    lower, upper = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if lower.ndim != 1 or lower.shape != upper.shape or not lower.size:
        raise PlanningError(f"low {lower.shape}, high {upper.shape}: expected two vectors, one number per action")
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        raise PlanningError(
            f"low={lower.tolist()}, high={upper.tolist()}: expected finite bounds; the search starts from their middle"
        )
    if not (lower < upper).all():
        raise PlanningError(f"low={lower.tolist()}, high={upper.tolist()}: expected low < high; are they reversed?")
    return lower, upper


def clipped(values: Array, low: ArrayLike, high: ArrayLike) -> Array:
    """Returns values `[..., A]` within the bounds `[A]`."""
    lead = (1,) * (values.ndim - 1)
    return jnp.clip(values, jnp.reshape(jnp.asarray(low), (*lead, -1)), jnp.reshape(jnp.asarray(high), (*lead, -1)))


def checked_count(value: int, name: str, *, least: int = 1) -> int:
    """Returns a whole number that is at least `least`.

    Raises:
      PlanningError: if it is not.
    """
    if value not in Range(least, integer=True):
        raise PlanningError(f"{name}={value!r}: expected a whole number of at least {least}")
    return int(value)


def check_numbers(ranges: Mapping[str, Range], values: Mapping[str, Any]) -> None:
    """Checks the numbers of a planner against their ranges.

    Raises:
      PlanningError: if one is out of its range; the message names it and says what was expected.
    """
    try:
        check_ranges(values, ranges, prefix="")
    except ConfigError as error:
        raise PlanningError(str(error)) from None


def checked_outcomes(outcomes: Outcomes, num: int) -> Outcomes:
    """Returns the outcomes of a simulator as float32.

    Raises:
      PlanningError: if they are of another kind, or there is not one for each of `num` trajectories.
    """
    if not isinstance(outcomes, Outcomes):
        raise PlanningError(
            f"the simulator returned a {type(outcomes).__name__}: expected simulator(env_state, actions [N, T, A]) -> "
            "Outcomes(cost [N], violation [N])"
        )
    for name in ("cost", "violation"):
        shape = jnp.shape(getattr(outcomes, name))
        if shape != (num,):
            raise PlanningError(
                f"the simulator returned {name} of shape {list(shape)} for {num} action sequences: expected [{num}]; "
                "reduce an ensemble with edgesafe_jax.planning.risk first"
            )
    return Outcomes(outcomes.cost.astype(jnp.float32), outcomes.violation.astype(jnp.float32))
