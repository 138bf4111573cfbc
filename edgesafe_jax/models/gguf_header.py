"""The plausibility of a GGUF file: whether what its header announces can be in it, before anything is allocated.

GGUF 2 and 3: magic, version, counts of tensors and of metadata; then name, type and value of each metadatum; then name,
sizes, type and offset of each tensor. Texts and arrays begin with their length.
"""

import mmap
import struct
from pathlib import Path

import gguf

from edgesafe_jax.models.families import LoadingError

MAX_DIMS = 4
MAX_METADATA = 100_000
MAX_DEPTH = 4
"""Arrays inside arrays."""

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by the number of its type."""


def check_gguf(path: Path) -> None:
    """Checks that the counts, lengths and sizes in a header fit into the file.

    Args:
      path: the file.

    Raises:
      LoadingError: they do not; the message says which.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Header(data).check()
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise LoadingError(
            f"{path} is not a readable GGUF file ({error}). It may be truncated ({path.stat().st_size:,} bytes) or "
            "made to do harm: delete it and fetch or copy it again."
        ) from error


class _Header:
    def __init__(self, data: mmap.mmap):
        self._data, self._size, self._place, self._order = data, len(data), 4, "<"

    def check(self) -> None:
        if self._data[:4] != b"GGUF":
            raise ValueError(f"it begins with {self._data[:4]!r}")
        if self._number("I") & 0xFFFF == 0:
            self._order = ">"
        num_tensors, num_metadata = self._number("Q"), self._number("Q")
        if num_metadata > MAX_METADATA:
            raise ValueError(f"it announces {num_metadata:,} metadata")
        self._room(num_metadata, 13, "metadata")
        for _ in range(num_metadata):
            name = self._text()
            self._value(self._number("I"), name, 0)
        self._room(num_tensors, 24, "tensors")
        for _ in range(num_tensors):
            self._tensor()

    def _tensor(self) -> None:
        name, num_dims = self._text(), self._number("I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        count = 1
        for _ in range(num_dims):
            count *= self._number("Q")
        kind, start = self._number("I"), self._number("Q")
        try:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ValueError(f"tensor {name!r} is of the unknown type {kind}") from None
        if start + count // block * size > self._size:
            raise ValueError(f"tensor {name!r} would have {count:,} numbers, more than the file holds")

    def _value(self, kind: int, name: str, depth: int) -> None:
        if kind == _STRING:
            self._skip(self._number("Q"), f"the text {name!r}")
        elif kind == _ARRAY:
            if depth == MAX_DEPTH:
                raise ValueError(f"{name!r} is an array of arrays, more than {MAX_DEPTH} deep")
            member, length = self._number("I"), self._number("Q")
            if member in _SIZES:
                self._skip(length * _SIZES[member], f"the array {name!r} of {length:,} members")
            else:
                self._room(length, 8, f"members of {name!r}")
                for _ in range(length):
                    self._value(member, name, depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind], name)
        else:
            raise ValueError(f"{name!r} is of the unknown type {kind}")

    def _number(self, code: str) -> int:
        [number] = struct.unpack_from(self._order + code, self._data, self._place)
        self._place += struct.calcsize(code)
        return number

    def _text(self) -> str:
        length = self._number("Q")
        start = self._place
        self._skip(length, "a name")
        return self._data[start : start + min(length, 200)].decode("utf-8", "replace")

    def _skip(self, size: int, what: str) -> None:
        if size > self._size - self._place:
            raise ValueError(f"{what} would take {size:,} bytes, more than are left")
        self._place += size

    def _room(self, count: int, least: int, what: str) -> None:
        if count * least > self._size - self._place:
            raise ValueError(f"it announces {count:,} {what}, more than fit into the file")
