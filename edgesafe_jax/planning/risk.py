"""Measures of risk: from the costs of one plan under M models to one number, by the cost of whole trajectories.

The sum over time comes first: the worst *trajectory* counts, not the worst model at each single step.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from edgesafe_jax.planning.planner import PlanningError
from edgesafe_jax.typing import Array

Risk: TypeAlias = Callable[[Array], Array]
"""From costs `[M, N]` of N trajectories under M models to risks `[N]`."""


def mean_cost(costs: Array) -> Array:
    """The mean over the models.

    Args:
      costs: `[M, N]`.

    Returns:
      `[N]`.
    """
    return jnp.mean(costs, axis=0)


def worst_cost(costs: Array) -> Array:
    """The highest cost over the models.

    Args:
      costs: `[M, N]`.

    Returns:
      `[N]`.
    """
    return jnp.max(costs, axis=0)


def make_cvar(fraction: float) -> Risk:
    r"""Makes the conditional value at risk: the mean over the worst fraction of the models.

        CVaR = (1 / fraction) int_0^fraction q(1 - u) du ,    q the quantile function of the M costs,

    so that a model at the edge of the fraction counts in part. fraction = 1 is the mean, fraction <= 1 / M the worst.

    Args:
      fraction: above 0, at most 1.

    Returns:
      The measure.

    Raises:
      PlanningError: if the fraction is out of its range.

    Example:
      >>> make_cvar(0.5)(jnp.array([[1.0], [2.0], [3.0], [4.0]])).tolist()
      [3.5]

    Reference: Rockafellar and Uryasev, Optimization of conditional value-at-risk, 2000.
    """
    if not 0 < fraction <= 1:
        raise PlanningError(f"fraction={fraction}: expected above 0 and at most 1")

    def cvar(costs: Array) -> Array:
        num = costs.shape[0]
        weight = jnp.clip(fraction * num - jnp.arange(num, dtype=costs.dtype), 0.0, 1.0)
        worst_first = -jnp.sort(-costs, axis=0)
        return jnp.sum(jnp.where(weight[:, None] > 0, weight[:, None] * worst_first, 0.0), axis=0) / (fraction * num)

    return cvar


def make_exponential(aversion: float) -> Risk:
    r"""Makes the entropic risk, (1 / a) log mean_m exp(a cost_m).

    It lies between the mean (a towards 0) and the worst (a towards infinity); a < 0 seeks risk.

    Args:
      aversion: a, in units of 1 / cost, not 0.

    Returns:
      The measure.

    Raises:
      PlanningError: if a is 0.

    Example:
      >>> make_exponential(2.0)(jnp.full((3, 1), 5.0)).tolist()
      [5.0]

    Reference: Jacobson, Optimal stochastic linear systems with exponential performance criteria, 1973.
    """
    if aversion == 0:
        raise PlanningError("aversion=0: expected another number; the limit at 0 is mean_cost")

    def entropic(costs: Array) -> Array:
        return (jax.nn.logsumexp(aversion * costs, axis=0) - jnp.log(float(costs.shape[0]))) / aversion

    return entropic
