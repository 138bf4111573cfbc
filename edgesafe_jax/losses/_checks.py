"""Checks that the losses share. Each returns its argument as an array, or raises `ConfigError`."""

import math
from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.typing import Array, ArrayLike


def compute_dtype(*arrays: Array) -> jnp.dtype:
    """Dtype to compute in: float32, or float64 where an input has it."""
    wide = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def check_floating(value: ArrayLike, name: str) -> Array:
    """Returns a floating-point array."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ConfigError(
            f"{name} has dtype {array.dtype}, expected floating point; cast it with {name}.astype(jnp.float32)."
        )
    return array


def check_where(where: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """Returns a boolean mask of a shape; all True for None."""
    if where is None:
        return jnp.ones(shape, dtype=bool)
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise ConfigError(
            f"where has dtype {mask.dtype}, expected bool; a mask of zeros and ones becomes one "
            "with `mask > 0`, weights are multiplied onto the returned losses."
        )
    if mask.shape != shape:
        raise ConfigError(
            f"where has shape {mask.shape}, expected {shape}: one entry per returned element; "
            "expand it with jnp.broadcast_to."
        )
    return mask


def check_same_shape(**arrays: Array) -> tuple[int, ...]:
    """Returns the shape that all named arrays have; an error names the first two that differ."""
    (first_name, first), *others = arrays.items()
    for name, array in others:
        if array.shape != first.shape:
            raise ConfigError(
                f"{name} has shape {array.shape} but {first_name} has shape {first.shape}; "
                "expected the same shape for both."
            )
    return first.shape


def check_arrays(**given: ArrayLike) -> list[Array]:
    """Returns floating-point arrays of one shape."""
    arrays = {name: check_floating(value, name) for name, value in given.items()}
    check_same_shape(**arrays)
    return list(arrays.values())


def masked(arrays: Sequence[Array], mask: Array) -> list[Array]:
    """Casts arrays to the dtype to compute in; masked elements are 0."""
    dtype = compute_dtype(*arrays)
    return [jnp.where(mask, array, 0.0).astype(dtype) for array in arrays]


def check_normalization(normalization: str) -> None:
    """Checks a normalization over positions."""
    if normalization not in ("sum", "mean"):
        raise ConfigError(f'normalization is {normalization!r}, expected "sum" or "mean".')


def check_probability(value: ArrayLike, name: str) -> Array:
    """Returns probabilities.

    Only values on the host (Python numbers, NumPy arrays) are compared with [0, 1]: a traced value cannot be, and
    reading a device array would wait for the device.
    """
    if not isinstance(value, jax.Array):
        host = np.asarray(value)
        if host.size and not np.all((host >= 0) & (host <= 1)):
            offending = host[~((host >= 0) & (host <= 1))].ravel()[0]
            raise ConfigError(f"{name} holds {offending}, expected probabilities in [0, 1].")
    array = jnp.asarray(value)
    if array.dtype == jnp.bool_ or jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jnp.float32)  # A hard verdict: 0 or 1.
    return check_floating(array, name)


def check_logits(logits: ArrayLike, name: str, *, positions: bool = False) -> Array:
    """Returns logits, [..., V], or [..., T, V] where they have positions."""
    array = check_floating(logits, name)
    axes = ("T", "V") if positions else ("V",)
    if array.ndim < len(axes) or 0 in array.shape[-len(axes) :]:
        raise ConfigError(
            f"{name} has shape {array.shape}, expected [..., {', '.join(axes)}] with at least one "
            f"{' and one '.join('position' if axis == 'T' else 'token' for axis in axes)}."
        )
    return array


def check_positive(value: ArrayLike, name: str, dtype: jnp.dtype) -> Array:
    """Returns a positive scalar of a dtype; like a probability it is compared on the host only."""
    if not isinstance(value, jax.Array) and not 0.0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise ConfigError(f"{name} is {value}, expected a positive, finite number.")
    return check_scalar(jnp.asarray(value, dtype), name)


def check_temperature(temperature: ArrayLike) -> float | Array:
    """Returns a positive, finite temperature: a number of the host, or a scalar array, whose value is not looked at."""
    if isinstance(temperature, jax.Array):
        return check_scalar(temperature, "temperature")
    if not 0.0 < float(temperature) < math.inf:  # type: ignore[arg-type]
        raise ConfigError(f"temperature is {temperature}, expected a positive, finite number.")
    return float(temperature)  # type: ignore[arg-type]


def check_scalar(value: Array, name: str) -> Array:
    """Returns a floating-point array without axes."""
    if value.shape:
        raise ConfigError(f"{name} has shape {value.shape}, expected a scalar; map over several with jax.vmap.")
    return check_floating(value, name)


def check_integers(tokens: ArrayLike, name: str) -> Array:
    """Returns integers, at least 32 bits wide."""
    array = jnp.asarray(tokens)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ConfigError(f"{name} has dtype {array.dtype}, expected integer token ids.")
    return array.astype(jnp.int32) if array.dtype.itemsize < 4 else array


def check_tokens(
    tokens: ArrayLike, name: str, shape: tuple[int, ...], *, num_vocab: int, where: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Returns token ids that can be used as indices, and where the given ones could not.

    Args:
      tokens: integers.
      name: of the argument.
      shape: that they must have.
      num_vocab: V.
      where: boolean of that shape; a masked token may be anything.

    Returns:
      The ids, int32, with 0 for those that are masked or outside [0, V); and which unmasked ones are outside, which
      can be true of traced values only. The caller gives these NaN.

    Raises:
      ConfigError: another shape or dtype, or, outside ``jit``, an unmasked token outside [0, V).
    """
    ids = check_integers(tokens, name)
    if ids.shape != shape:
        raise ConfigError(f"{name} has shape {ids.shape}, expected {shape}: one token for each position.")
    mask = check_where(where, shape)
    if _is_concrete(tokens) and (where is None or _is_concrete(where)):
        host = np.asarray(tokens)
        wrong = np.argwhere(((host < 0) | (host >= num_vocab)) & (True if where is None else np.asarray(where)))
        if wrong.size:
            index = tuple(wrong[0].tolist())
            raise ConfigError(
                f"{name}{list(index)} is {host[index]}, expected a token id in [0, {num_vocab}); mask padding."
            )
    outside = mask & ((ids < 0) | (ids >= num_vocab))
    return jnp.where(mask & ~outside, ids, 0).astype(jnp.int32), outside


def is_token(tokens: Array, num_vocab: int) -> Array:
    """One-hot rows as booleans, [...] -> [..., V]."""
    vocabulary = jax.lax.broadcasted_iota(tokens.dtype, (*tokens.shape, num_vocab), tokens.ndim)
    return tokens[..., None] == vocabulary


def _is_concrete(value: ArrayLike) -> bool:
    """Whether the values can be looked at: neither traced nor on other hosts."""
    return not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)
