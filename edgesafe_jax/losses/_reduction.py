"""How per-element losses become one number, and the checks that all losses share."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

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

    Sums and counts are handed back apart so that shards and micro-batches can be added up before
    the one division: the mean of means is not the mean.

    Args:
      values: Numbers to add up, any shape. Low precision is added up in float32.
      where: Boolean, shape of ``values``; True is kept. None keeps all.
      axis: Axis or axes to reduce. None reduces all.

    Returns:
      ``(total, count)``, both of the reduced shape and of the same floating dtype. Masked elements
      add nothing, whatever they hold (NaN included), and get gradient zero.

    Raises:
      ValueError: If ``where`` has another shape than ``values`` or is not boolean.

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
      ValueError: If ``where`` has another shape than ``values`` or is not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> float(masked_mean(jnp.array([1.0, 3.0, 9.0]), where=jnp.array([True, True, False])))
      2.0
    """
    total, count = masked_sum_and_count(values, where=where, axis=axis)
    return total / jnp.maximum(count, 1.0)


def compute_dtype(*arrays: Array) -> jnp.dtype:
    """Dtype to compute in: float32, or float64 where an input has it."""
    wide = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def check_floating(value: ArrayLike, name: str) -> Array:
    """Hands ``value`` back as an array, or raises if it is not floating point."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {array.dtype}, expected floating point; cast it with {name}.astype(jnp.float32)."
        )
    return array


def check_where(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """Hands back a boolean mask of ``shape``, or raises if ``where`` is something else."""
    if where is None:
        return jnp.ones(shape, dtype=bool)
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise ValueError(
            f"where has dtype {mask.dtype}, expected bool; a mask of zeros and ones becomes one "
            "with `mask > 0`, weights are multiplied onto the returned losses."
        )
    if mask.shape != shape:
        raise ValueError(
            f"where has shape {mask.shape}, expected {shape}: one entry per returned element; "
            "expand it with jnp.broadcast_to."
        )
    return mask


def check_same_shape(**arrays: Array) -> tuple[int, ...]:
    """Hands back the one shape that all named arrays have, or raises naming the first two."""
    (first_name, first), *others = arrays.items()
    for name, array in others:
        if array.shape != first.shape:
            raise ValueError(
                f"{name} has shape {array.shape} but {first_name} has shape {first.shape}; "
                "expected the same shape for both."
            )
    return first.shape


def check_normalization(normalization: str) -> None:
    """Raises unless ``normalization`` is a known one."""
    if normalization not in ("sum", "mean"):
        raise ValueError(f'normalization is {normalization!r}, expected "sum" or "mean".')


def check_probability(value: ArrayLike, name: str) -> Array:
    """Hands ``value`` back as an array, or raises if its host value leaves [0, 1].

    Only what lives on the host (Python numbers, NumPy arrays) is looked at: a traced value cannot
    be, and looking at a device array would wait for the device.
    """
    if not isinstance(value, jax.Array):
        host = np.asarray(value)
        if host.size and not np.all((host >= 0) & (host <= 1)):
            offending = host[~((host >= 0) & (host <= 1))].ravel()[0]
            raise ValueError(f"{name} holds {offending}, expected probabilities in [0, 1].")
    array = jnp.asarray(value)
    if array.dtype == jnp.bool_ or jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jnp.float32)  # A hard verdict: 0 or 1.
    return check_floating(array, name)
