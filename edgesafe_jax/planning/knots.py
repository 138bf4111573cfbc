"""Plans given by fewer numbers than actions: splines through equidistant knots."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.planner import PlanningError, checked_count
from edgesafe_jax.typing import Array


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
    horizon, num_knots = checked_count(horizon, "horizon"), checked_count(num_knots, "num_knots")
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
