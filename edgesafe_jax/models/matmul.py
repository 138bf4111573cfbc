"""Matrix products with factors in one precision and sums in float32."""

import functools
import math
from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.models.quantised import QuantizedMatrix, quantized_matmul
from edgesafe_jax.typing import Array

FEW_ROWS = 32
"""Rows up to which a product with a float32 matrix that is stored outputs first has the matrix as its first factor."""


@flax.struct.dataclass
class OutputsFirst:
    """A float matrix that is stored outputs first; of few rows of inputs the product is faster on CPU.

    Attributes:
      matrix: `[..., outputs, inputs]`.
    """

    matrix: Array


Matrix: TypeAlias = Array | QuantizedMatrix | OutputsFirst
"""A matrix of a model, in one of the forms that `matmul` takes."""


def pack_bfloat16(matrix: Array) -> Array:
    """Stores bfloat16 numbers as their bits, uint16, in which form `matmul` takes them.

    XLA for CPU widens stacked bfloat16 matrices to float32 before it takes a layer's slice of them, and narrows the
    slice again: at 64 rows that costs three times as much as the product. It moves integers as they are.

    Args:
      matrix: bfloat16, of any shape.

    Returns:
      uint16, of the same shape.
    """
    return jax.lax.bitcast_convert_type(matrix, jnp.uint16)


def unpack_bfloat16(matrix: Array) -> Array:
    """Undoes `pack_bfloat16`; a matrix of any other dtype than uint16 is returned as it is."""
    return jax.lax.bitcast_convert_type(matrix, jnp.bfloat16) if matrix.dtype == jnp.uint16 else matrix


def matmul(x: Array, kernel: Matrix, *, dtype: jnp.dtype, transposed: bool = False) -> Array:
    """Multiplies with factors in one precision and sums in float32, in the backward pass too.

    Factors of bfloat16 with sums of float32 are twice as fast as float32 on processors that have them (AVX-512 BF16,
    GPUs, TPUs); everything between the products keeps the precision of `x`.

    Args:
      x: `[..., A]`.
      kernel: `[A, B]`, or `[B, A]` if `transposed`; or the bits of `pack_bfloat16`, or a quantised
        matrix, which have no gradient; or a matrix that is stored outputs first.
      dtype: of the factors.
      transposed: whether the kernel is stored outputs first, as an embedding table that serves as output head.

    Returns:
      `[..., B]` in the dtype of `x`.
    """
    if isinstance(kernel, QuantizedMatrix):
        return quantized_matmul(jnp.dtype(dtype), x, kernel)
    if isinstance(kernel, OutputsFirst):
        kernel, transposed = kernel.matrix, True
    if dtype == x.dtype:
        kernel = unpack_bfloat16(kernel).astype(dtype)
        if transposed and dtype == jnp.float32 and _has_few_rows(x):
            return _matrix_first(x, kernel)
        return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (int(transposed),)), ((), ())))
    return _mixed_matmul(jnp.dtype(dtype), transposed, x, kernel)


def _has_few_rows(x: Array) -> bool:
    return jax.default_backend() == "cpu" and 1 < math.prod(x.shape[:-1]) <= FEW_ROWS


def _matrix_first(x: Array, kernel: Array) -> Array:
    """Multiplies with the matrix `[B, A]` as the first factor.

    XLA for CPU rearranges the second factor before each product, which of an output head takes as long as the product
    with 16 rows. The barrier keeps it from exchanging the factors again.
    """
    product = jax.lax.dot_general(kernel, x.reshape(-1, x.shape[-1]), (((1,), (1,)), ((), ())))
    return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mixed_matmul(dtype: jnp.dtype, transposed: bool, x: Array, kernel: Array) -> Array:
    factor = unpack_bfloat16(kernel).astype(dtype)
    if math.prod(x.shape[:-1]) == 1:
        # XLA for CPU widens the whole matrix to float32 before it multiplies a single row; for two rows it does not.
        row = x.astype(dtype).reshape(1, -1)
        y = _dot(jnp.concatenate([row, row]), factor, (1, int(transposed)))[0]
        return y.reshape(*x.shape[:-1], -1).astype(x.dtype)
    return _dot(x.astype(dtype), factor, (x.ndim - 1, int(transposed))).astype(x.dtype)


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    return jax.lax.dot_general(
        left, right, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32
    )


def _mixed_matmul_fwd(
    dtype: jnp.dtype, transposed: bool, x: Array, kernel: Array
) -> tuple[Array, tuple[Array | None, Array]]:
    # Bits have no gradient, for which alone x is kept.
    return _mixed_matmul(dtype, transposed, x, kernel), (None if kernel.dtype == jnp.uint16 else x, kernel)


def _mixed_matmul_bwd(
    dtype: jnp.dtype, transposed: bool, residuals: tuple[Array | None, Array], cotangent: Array
) -> tuple[Array, Array | np.ndarray]:
    # JAX's own transpose of a product with a float32 result would multiply float32 by `dtype`, which is slow. A frozen
    # kernel's cotangent is not used, and the compiler leaves it out.
    x, kernel = residuals
    low = cotangent.astype(dtype)
    factor = unpack_bfloat16(kernel).astype(dtype)
    by_x = _dot(low, factor, (low.ndim - 1, int(not transposed))).astype(cotangent.dtype)
    if x is None:
        return by_x, np.zeros(kernel.shape, jax.dtypes.float0)
    rows, columns = x.astype(dtype).reshape(-1, x.shape[-1]), low.reshape(-1, low.shape[-1])
    by_kernel = _dot(columns, rows, (0, 0)) if transposed else _dot(rows, columns, (0, 0))
    return by_x, by_kernel.astype(kernel.dtype)


_mixed_matmul.defvjp(_mixed_matmul_fwd, _mixed_matmul_bwd)
