"""What a planner is: a pair of pure functions over a simulator, and the ranking that all planners share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree


class PlanningError(EdgesafeError, ValueError):
    """Something that cannot be planned; the message names the value, what was expected and what to do."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What a simulator says of N action sequences.

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
    """What a planner says of the plan that it made.

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


class Planner(NamedTuple):
    """A planner as pure functions.

    Attributes:
      init: makes the state before the first step of an episode; what was remembered of another episode is gone.
      plan: from a random key, that state and the state of the environment to the action `[A]`, the next state and
        a `Plan`.
      num_trajectories: trajectories that one plan simulates, without those of a proposal.
    """

    init: Callable[[], Any]
    plan: Callable[[PRNGKey, Any, PyTree], tuple[Array, Any, Plan]]
    num_trajectories: int


@dataclasses.dataclass(frozen=True)
class Knots:
    """A plan of T actions given by fewer numbers, both linear maps of them.

    Attributes:
      expand: from knots to actions, `[T, K]`.
      shift: from knots to the knots of the same plan one step later, `[K, K]`.
    """

    expand: np.ndarray
    shift: np.ndarray

    @property
    def num_knots(self) -> int:
        """K, how many knots there are."""
        return self.expand.shape[1]

    def actions(self, knots: Array) -> Array:
        """Returns actions `[..., T, A]` of knots `[..., K, A]`."""
        return jnp.einsum("tk,...ka->...ta", self.expand, knots, precision="highest")

    def shifted(self, knots: Array) -> Array:
        """Returns the knots `[..., K, A]` one step later."""
        return jnp.einsum("jk,...ka->...ja", self.shift, knots, precision="highest")


def make_knots(horizon: int, num_knots: int, *, order: int = 3) -> Knots:
    """Makes a spline through equidistant knots, the first at the first action, the last at the last.

    Args:
      horizon: T, actions of a plan.
      num_knots: K, numbers that are searched per action dimension; ``num_knots == horizon`` searches the actions.
      order: 0 holds each knot until the next, 1 interpolates linearly, 3 is the natural cubic spline. A cubic may leave
        the bounds between its knots; the planners clip the actions.

    Returns:
      The maps. A step later the plan is read from the same spline, held at its end.

    Raises:
      PlanningError: if the numbers do not fit.

    Example:
      >>> make_knots(4, 2, order=1).expand[:, 1].round(2)
      array([0.  , 0.33, 0.67, 1.  ], dtype=float32)
    """
    if order not in (0, 1, 3):
        raise PlanningError(f"order={order}: expected 0 (hold), 1 (linear) or 3 (cubic)")
    if not min(horizon, 2) <= num_knots <= horizon:
        raise PlanningError(f"num_knots={num_knots}: expected {min(horizon, 2)} to the horizon {horizon}")
    if num_knots == horizon:
        maps = np.eye(horizon), np.eye(horizon)[np.minimum(np.arange(horizon) + 1, horizon - 1)]
    else:
        times = np.linspace(0.0, horizon - 1.0, num_knots)
        steps = np.arange(float(horizon))
        later = np.minimum(times + 1.0, times[-1])
        maps = _interpolation(times, steps, order), _interpolation(times, later, order)
    return Knots(*(matrix.astype(np.float32) for matrix in maps))


def _interpolation(knots: np.ndarray, at: np.ndarray, order: int) -> np.ndarray:
    """Weights `[len(at), K]` of the knots at given times."""
    unit = np.eye(len(knots))
    if order == 0:
        return unit[np.searchsorted(knots, at + 1e-9, side="right") - 1]
    if order == 1:
        return np.stack([np.interp(at, knots, row) for row in unit], axis=1)
    from scipy.interpolate import CubicSpline

    return CubicSpline(knots, unit, bc_type="natural")(at)


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


def counts(outcomes: Outcomes, simulated: Array) -> tuple[Array, Array]:
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
    if isinstance(value, bool) or int(value) != value or value < least:
        raise PlanningError(f"{name}={value}: expected a whole number of at least {least}")
    return int(value)


def checked_outcomes(outcomes: Outcomes, num: int) -> Outcomes:
    """Returns the outcomes of a simulator as float32.

    Raises:
      PlanningError: if there is not one for each of `num` trajectories.
    """
    for name in ("cost", "violation"):
        shape = jnp.shape(getattr(outcomes, name))
        if shape != (num,):
            raise PlanningError(
                f"the simulator returned {name} of shape {list(shape)} for {num} action sequences: expected [{num}]; "
                "reduce an ensemble with edgesafe_jax.planning.risk first"
            )
    return Outcomes(outcomes.cost.astype(jnp.float32), outcomes.violation.astype(jnp.float32))
