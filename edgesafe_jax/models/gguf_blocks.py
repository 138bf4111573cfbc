"""Matrices of GGUF files as they are stored: their codes and scales, without making floats of them."""

from collections.abc import Callable

import gguf
import numpy as np

from edgesafe_jax.models.families import LoadingError
from edgesafe_jax.models.quantised import QuantizedMatrix

_Type = gguf.GGMLQuantizationType
_ONE = np.float16(1).tobytes()
FLOATS = (_Type.F32, _Type.F16, _Type.BF16)


def read_matrix(tensor: gguf.ReaderTensor, *, round_inputs: bool = False) -> QuantizedMatrix:
    """Reads a quantised matrix.

    4-bit codes stay packed; those of 5, 6 and 8 bits take 8. The scales of a K-quant, products of two numbers, become
    float32.

    Args:
      tensor: of a GGUF file.
      round_inputs: whether inputs are rounded before a product, in the blocks that ggml uses with this type.

    Returns:
      The matrix, outputs first, with NumPy arrays; its numbers are exactly those of the file.

    Raises:
      LoadingError: a type that is not supported.
    """
    read = BLOCK_TYPES.get(tensor.tensor_type)
    if read is None:
        known = ", ".join(kind.name for kind in BLOCK_TYPES)
        raise LoadingError(
            f"tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which cannot be kept: expected {known}. "
            "Load the file without quantization='keep'."
        )
    rows = tensor.data.shape[0]
    size, num_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    blocks = np.asarray(tensor.data).reshape(-1, num_bytes)
    codes, scales, lows, bits, zero = read(blocks)
    arrays = (None if array is None else array.reshape(rows, -1) for array in (codes, scales, lows))
    return QuantizedMatrix(*arrays, bits=bits, zero=zero, input_block=size if round_inputs else 0)  # type: ignore[arg-type]


_Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray | None, int, int]]
"""From the bytes of blocks `[N, bytes]` to codes, scales, lows, bits and the code of zero."""


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _unscaled(blocks: np.ndarray, kind: gguf.GGMLQuantizationType, changes: dict[int, bytes]) -> np.ndarray:
    """The numbers of blocks whose scales are one, as int8."""
    blocks = blocks.copy()
    for start, value in changes.items():
        blocks[:, start : start + len(value)] = np.frombuffer(value, np.uint8)
    return gguf.quants.dequantize(blocks, kind).astype(np.int8)


def _packed(codes: np.ndarray, size: int) -> np.ndarray:
    """Two numbers in each byte, see `QuantizedMatrix`."""
    halves = codes.astype(np.uint8).reshape(-1, 2, size // 2)
    return halves[:, 0] | halves[:, 1] << 4


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and lows of the eight parts of each block of a Q4_K or Q5_K matrix."""
    scales, lows = gguf.quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    large, low = (_half(blocks, start).astype(np.float32) for start in (0, 2))
    return large * scales.astype(np.float32), -low * lows.astype(np.float32)


_K_ONES = {0: _ONE, 2: b"\0\0", 4: b"\1" * 4 + b"\0" * 4 + b"\1" * 4}

BLOCK_TYPES: dict[gguf.GGMLQuantizationType, _Read] = {
    _Type.Q4_0: lambda b: (b[:, 2:], _half(b, 0), None, 4, 8),
    _Type.Q4_1: lambda b: (b[:, 4:], _half(b, 0), _half(b, 2), 4, 0),
    _Type.Q5_0: lambda b: (_unscaled(b, _Type.Q5_0, {0: _ONE}), _half(b, 0), None, 8, 0),
    _Type.Q5_1: lambda b: (_unscaled(b, _Type.Q5_1, {0: _ONE + b"\0\0"}), _half(b, 0), _half(b, 2), 8, 0),
    _Type.Q8_0: lambda b: (np.ascontiguousarray(b[:, 2:]).view(np.int8), _half(b, 0), None, 8, 0),
    _Type.Q4_K: lambda b: (_packed(_unscaled(b, _Type.Q4_K, _K_ONES), 32), *_k_scales(b), 4, 0),
    _Type.Q5_K: lambda b: (_unscaled(b, _Type.Q5_K, _K_ONES), *_k_scales(b), 8, 0),
    _Type.Q6_K: lambda b: (
        _unscaled(b, _Type.Q6_K, {192: b"\1" * 16 + _ONE}),
        _half(b, 208).astype(np.float32) * np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32),
        None,
        8,
        0,
    ),
}
"""The types of blocks that can be kept."""
