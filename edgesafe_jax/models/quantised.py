"""Matrices of few bits, multiplied as they are stored: one block of rows is made floats of at a time."""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.integer_products import integer_matmul, is_few
from edgesafe_jax.typing import Array, Params

LARGEST = 1 << 22
"""Numbers of a matrix that are made floats of at once; of larger ones a block of rows after the other is."""


@flax.struct.dataclass
class QuantizedMatrix:
    """A matrix, or one per layer, stored outputs first, in blocks along its inputs: `scale * (code - zero) + low`.

    Attributes:
      codes: `[..., outputs, inputs]` int8; or `[..., outputs, inputs / 2]` uint8, of which byte j of a block of b holds
        number j in its lower half and number j + b / 2 in its upper half.
      scales: `[..., outputs, blocks]`.
      lows: `[..., outputs, blocks]`, or None for zeros.
      bits: 8 or 4.
      zero: the code of zero.
      input_block: how many numbers of an input share a scale when `round_inputs` rounds it before a product; 0 where
        inputs stay as they are.
    """

    codes: Array
    scales: Array
    lows: Array | None = None
    bits: int = flax.struct.field(pytree_node=False, default=8)
    zero: int = flax.struct.field(pytree_node=False, default=0)
    input_block: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(..., outputs, inputs)`."""
        return (*self.codes.shape[:-1], self.codes.shape[-1] * 8 // self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def rows(self, index: Array | np.ndarray | slice) -> "QuantizedMatrix":
        """Returns some rows of a single matrix; those of `index` `[...]` make a matrix of shape `(..., inputs)`."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def integers(matrix: QuantizedMatrix) -> Array:
    """Returns codes less that of zero, `[..., outputs, blocks, b]` int8."""
    codes = jnp.asarray(matrix.codes)
    codes = codes.reshape(*codes.shape[:-1], matrix.scales.shape[-1], -1)
    if matrix.bits == 4:
        codes = jnp.concatenate([codes & jnp.uint8(15), codes >> jnp.uint8(4)], axis=-1)
    return codes.astype(jnp.int8) - jnp.int8(matrix.zero)


def dequantize(matrix: QuantizedMatrix) -> Array:
    """Returns the numbers, `[..., outputs, inputs]` float32."""
    values = integers(matrix).astype(jnp.float32) * jnp.asarray(matrix.scales).astype(jnp.float32)[..., None]
    if matrix.lows is not None:
        values = values + jnp.asarray(matrix.lows).astype(jnp.float32)[..., None]
    return values.reshape(matrix.shape)


HALF_BLOCK = 32
"""Numbers in a block of Q8_0 and Q8_1, whose scales and sums are float16; those of Q8_K are not."""


def round_inputs(x: Array, block: int) -> tuple[Array, Array]:
    """Rounds inputs of a product to 8 bits in blocks, as the CPU kernels of ggml do before they multiply.

    With a the largest absolute number of a block, x becomes the code `q = round(127 x / a)` and stands for `q a / 127`.
    In blocks of 32 (Q8_0, Q8_1) the scale `a / 127` is float16, and so is the sum of the block (Q8_1), by which the
    lows of a matrix are multiplied; in blocks of 256 (Q8_K) the scale is float32 and the sum exact.

    Args:
      x: `[..., inputs]` floats.
      block: numbers in a block, 32 or 256.

    Returns:
      The numbers `[..., inputs]` and the sums of blocks `[..., inputs / block]`, float32.

    Reference: ggml, `quantize_row_q8_0`, `quantize_row_q8_1` and `quantize_row_q8_K` of ggml-cpu.
    """
    blocks = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, block)
    largest = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    codes = jnp.round(blocks * jnp.where(largest == 0, 0.0, 127.0 / largest))
    scales, totals = largest / 127, jnp.sum(codes, axis=-1)
    sums = scales[..., 0] * totals
    if block == HALF_BLOCK:
        scales, sums = (leaf.astype(jnp.float16).astype(jnp.float32) for leaf in (scales, sums))
    return (codes * scales).reshape(x.shape), sums


def look_up(table: Array | QuantizedMatrix, ids: Array) -> Array:
    """Returns rows of an embedding table, `[..., D]` for ids `[...]`."""
    if isinstance(table, QuantizedMatrix):
        return dequantize(jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), table))
    return _take_bits(table, ids) if table.dtype == jnp.bfloat16 else jnp.take(table, ids, axis=0)


@jax.custom_vjp
def _take_bits(table: Array, ids: Array) -> Array:
    """Rows of a bfloat16 table, moved as integers: XLA for CPU widens the whole table to float32 otherwise."""
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)
    return jax.lax.bitcast_convert_type(jnp.take(bits, ids, axis=0), jnp.bfloat16)


def _take_forward(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return _take_bits(table, ids), (table, ids)


def _take_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, np.ndarray]:
    table, ids = residuals
    return jnp.zeros_like(table).at[ids].add(cotangent), np.zeros(ids.shape, jax.dtypes.float0)


_take_bits.defvjp(_take_forward, _take_backward)


def quantize_int8(matrix: Array, *, outputs_first: bool = False) -> QuantizedMatrix:
    """Rounds a matrix to 8 bits, with one scale per output: the largest absolute number over 127.

    Args:
      matrix: `[..., inputs, outputs]` floats.
      outputs_first: whether it is stored `[..., outputs, inputs]`.

    Returns:
      The matrix, outputs first.
    """
    rows = jnp.asarray(matrix, jnp.float32)
    rows = rows if outputs_first else jnp.swapaxes(rows, -1, -2)
    scales = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) / 127
    codes = jnp.round(rows / jnp.where(scales == 0, 1.0, scales)).astype(jnp.int8)
    return QuantizedMatrix(codes, scales)


def stack(matrices: list[QuantizedMatrix]) -> QuantizedMatrix:
    """Stacks the matrices of the layers; those of several types become 8-bit ones of the same numbers."""
    kinds = {(m.bits, m.zero, m.scales.shape, m.scales.dtype, m.lows is None) for m in matrices}
    if len(blocks := {m.input_block for m in matrices}) > 1:
        raise ConfigError(
            f"one matrix has layers whose inputs are rounded in blocks of {' and '.join(map(str, sorted(blocks)))}, "
            "which cannot be stacked: use quantization='keep'."
        )
    if len(kinds) > 1:
        num_blocks = math.lcm(*(m.scales.shape[-1] for m in matrices))
        any_low = any(m.lows is not None for m in matrices)
        matrices = [_as_8_bits(m, num_blocks, any_low) for m in matrices]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *matrices)


def _as_8_bits(matrix: QuantizedMatrix, num_blocks: int, with_lows: bool) -> QuantizedMatrix:
    def repeated(leaf: Array) -> np.ndarray:
        return np.repeat(np.asarray(leaf, np.float32), num_blocks // leaf.shape[-1], axis=-1)

    codes, scales = np.asarray(integers(matrix)).reshape(matrix.shape), repeated(matrix.scales)
    lows = np.zeros_like(scales) if matrix.lows is None else repeated(matrix.lows)
    return QuantizedMatrix(codes, scales, lows if with_lows else None, input_block=matrix.input_block)  # type: ignore[arg-type]


def num_bytes(params: Params) -> int:
    """Returns how much memory parameters take."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def to_int8(params: Params) -> dict[str, Any]:
    """Rounds the matrices of a decoder's parameters to 8 bits, its embedding table and head included."""
    layers = jax.tree.map(lambda leaf: quantize_int8(leaf) if leaf.ndim == 3 else leaf, params["layers"])
    found = {**params, "layers": layers, "embedding": quantize_int8(params["embedding"], outputs_first=True)}
    return found | ({"head": quantize_int8(params["head"])} if "head" in params else {})


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def quantized_matmul(dtype: jnp.dtype, x: Array, matrix: QuantizedMatrix) -> Array:
    """Multiplies `[..., inputs]` by a matrix, with factors of `dtype` and sums in float32; x alone has a gradient.

    Where the matrix asks for rounded inputs, factors are float32, in which the products of codes are exact, and the
    gradient is that of the product without the rounding (straight-through).
    """
    if matrix.input_block:
        product = functools.partial(_rounded_dot, *round_inputs(x, matrix.input_block), x.dtype)
    elif is_few(x) and matrix.bits == 8 and not matrix.zero and matrix.lows is None and matrix.scales.shape[-1] == 1:
        return integer_matmul(x, jnp.asarray(matrix.codes), jnp.asarray(matrix.scales))
    else:
        product = lambda part: _dot(x, dequantize(part), 1, dtype)  # noqa: E731
    if (count := _num_parts(matrix)) == 1:
        return product(matrix)
    parts = jax.lax.map(product, _parts(matrix, count))
    return jnp.moveaxis(parts, 0, -2).reshape(*x.shape[:-1], matrix.shape[0])


def _rounded_dot(rounded: Array, sums: Array, dtype: jnp.dtype, matrix: QuantizedMatrix) -> Array:
    """The product with rounded inputs, the lows with the sums of the blocks as they are stored."""
    y = _dot(rounded, dequantize(matrix), 1, jnp.dtype(jnp.float32))
    if matrix.lows is not None and matrix.input_block == HALF_BLOCK:
        lost = sums - jnp.sum(rounded.reshape(*sums.shape, HALF_BLOCK), axis=-1)
        y = y + _dot(lost, matrix.lows, 1, jnp.dtype(jnp.float32))
    return y.astype(dtype)


def _forward(dtype: jnp.dtype, x: Array, matrix: QuantizedMatrix) -> tuple[Array, QuantizedMatrix]:
    return quantized_matmul(dtype, x, matrix), matrix


def _backward(dtype: jnp.dtype, matrix: QuantizedMatrix, cotangent: Array) -> tuple[Array, QuantizedMatrix]:
    count = _num_parts(matrix)
    if count == 1:
        by_x = _dot(cotangent, dequantize(matrix), 0, dtype)
    else:
        pieces = jnp.moveaxis(cotangent.reshape(*cotangent.shape[:-1], count, -1), -2, 0)
        start = jnp.zeros((*cotangent.shape[:-1], matrix.shape[1]), cotangent.dtype)
        add = lambda total, each: (total + _dot(each[0], dequantize(each[1]), 0, dtype), None)  # noqa: E731
        by_x, _ = jax.lax.scan(add, start, (pieces, _parts(matrix, count)))
    none = jax.tree.map(
        lambda leaf: (
            jnp.zeros_like(leaf)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else np.zeros(leaf.shape, jax.dtypes.float0)
        ),
        matrix,
    )
    return by_x, none


quantized_matmul.defvjp(_forward, _backward)


def _dot(x: Array, matrix: Array, axis: int, dtype: jnp.dtype) -> Array:
    product = jax.lax.dot_general(
        x.astype(dtype), matrix.astype(dtype), (((x.ndim - 1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )
    return product.astype(x.dtype)


def _num_parts(matrix: QuantizedMatrix) -> int:
    """Into how many blocks of rows a matrix is split: the fewest whose size is at most `LARGEST`."""
    rows, inputs = matrix.shape
    needed = -(-rows * inputs // LARGEST)
    return next((n for n in range(needed, 4 * needed) if rows % n == 0), 1)


def _parts(matrix: QuantizedMatrix, count: int) -> QuantizedMatrix:
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), matrix)
