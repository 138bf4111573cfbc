"""Reductions of per-element losses."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from edgesafe_jax.losses._checks import check_where, compute_dtype
from edgesafe_jax.typing import Array, ArrayLike

Normalization: TypeAlias = Literal["sum", "mean"]
"""Over the positions of a sequence: add up, or divide by how many there are."""


def masked_sum_and_count(
    values: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> tuple[Array, Array]:
    """Sum and number of the elements that the mask keeps.

    Add up the sums and the counts of shards or micro-batches, then divide once: the mean of means is
    not the mean.

    Args:
      values: Numbers to add up, any shape. Low precision is added up in float32.
      where: Boolean, shape of ``values``; True is kept. None keeps all.
      axis: Axis or axes to reduce. None reduces all.

    Returns:
      ``(total, count)``, both of the reduced shape and of the same floating dtype. Masked elements
      add nothing, whatever they hold (NaN included), and get gradient zero.

    Raises:
      ConfigError: If ``where`` has another shape than ``values`` or is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> total, count = masked_sum_and_count(jnp.array([1.0, 5.0]), where=jnp.array([True, False]))
      >>> float(total), float(count)
      (1.0, 1.0)
    """
    values = jnp.asarray(values)
    values = values.astype(compute_dtype(values))
    mask = check_where(where, values.shape)
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis)
    return total, jnp.sum(mask, axis=axis, dtype=values.dtype)


def masked_mean(
    values: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> Array:
    r"""Mean of the elements that the mask keeps; 0 where it keeps none.

    .. math:: \bar v = \frac{\sum_i w_i v_i}{\max(1, \sum_i w_i)}

    Args:
      values: Per-element losses, any shape. Low precision is added up in float32.
      where: Boolean, shape of ``values``; True is kept. None keeps all.
      axis: Axis or axes to reduce. None reduces all.

    Returns:
      Mean over ``axis``, at least float32. Masked elements add nothing, whatever they hold (NaN
      included), and get gradient zero. A slice without any kept element gives 0 with gradient 0.

    Raises:
      ConfigError: If ``where`` has another shape than ``values`` or is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> float(masked_mean(jnp.array([1.0, 3.0, 9.0]), where=jnp.array([True, True, False])))
      2.0
    """
    total, count = masked_sum_and_count(values, where=where, axis=axis)
    return total / jnp.maximum(count, 1.0)


def num_kept(mask: Array, dtype: jnp.dtype) -> Array:
    """How many positions a mask keeps, at least 1, [..., T] -> [...]."""
    return jnp.maximum(jnp.sum(mask, axis=-1, dtype=dtype), 1.0)


def nan_where(condition: Array, values: Array) -> Array:
    """Puts NaN where a condition holds, and leaves gradients as they are elsewhere.

    The NaN is computed from the values: on CPU, XLA folds the exponential of a constant NaN to an arbitrary number.
    """
    finite = jax.lax.stop_gradient(jnp.where(jnp.isfinite(values), values, 1.0))
    infinite = finite * jnp.where(condition, jnp.inf, 1.0)
    return jnp.where(condition, infinite - infinite, values)


def weighted(weight: Array, value: Array) -> Array:
    """``weight * value`` with 0 * inf = 0."""
    return weight * jnp.where((weight == 0.0) & jnp.isinf(value), 0.0, value)
