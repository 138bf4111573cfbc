"""Products of a few rows with an 8-bit matrix, in integers: what a decoding step spends its time on.

The matrix is read as it is stored, a quarter of the bytes of float32, and never made floats of. Each input is written
with two 8-bit digits, so that rounding it costs what rounding to 16 bits costs: with a the largest absolute number of
a row and s = a / 127, `x = s (h + l / 254)`, the whole part h and the rest l each from -127 to 127.
"""

import math

import jax
import jax.numpy as jnp

from edgesafe_jax.typing import Array

MOST_ROWS = 8
"""Rows up to which integers are faster than making floats of the matrix: their digits are twice as many rows."""

STEPS = 254
"""Steps of the lower digit in one step of the upper one."""


def digits(x: Array) -> tuple[Array, Array, Array]:
    """Writes rows with two 8-bit digits.

    Args:
      x: `[N, inputs]` floats.

    Returns:
      Upper and lower digits, `[N, inputs]` int8, and the scale of each row, `[N, 1]` float32.
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    steps = x / jnp.where(scale == 0, 1.0, scale)
    upper = jnp.round(steps)
    return upper.astype(jnp.int8), jnp.round((steps - upper) * STEPS).astype(jnp.int8), scale


def is_few(x: Array) -> bool:
    """Says whether x has no more rows than are multiplied in integers; on accelerators none are."""
    return jax.default_backend() == "cpu" and math.prod(x.shape[:-1]) <= MOST_ROWS


def integer_matmul(x: Array, codes: Array, scales: Array) -> Array:
    """Multiplies rows by an 8-bit matrix with one scale per output.

    Args:
      x: `[..., inputs]` floats.
      codes: `[outputs, inputs]` int8.
      scales: `[outputs, 1]` floats.

    Returns:
      `[..., outputs]` in the dtype of x.
    """
    rows = x.reshape(-1, x.shape[-1])
    upper, lower, scale = digits(rows)
    sums = jax.lax.dot_general(
        jnp.concatenate([upper, lower]), codes, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    above, below = jnp.split(sums.astype(jnp.float32), 2)
    y = (above + below / STEPS) * scale * scales.astype(jnp.float32).T
    return y.reshape(*x.shape[:-1], -1).astype(x.dtype)
