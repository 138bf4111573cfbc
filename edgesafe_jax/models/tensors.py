"""Named tensors of a checkpoint as a parameter tree, read strictly."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import Family, LoadingError
from edgesafe_jax.models.families.family import Place
from edgesafe_jax.models.quantised import QuantizedMatrix, stack


@dataclasses.dataclass(frozen=True)
class TensorReader:
    """Named tensors of a file or of several, read one at a time.

    Attributes:
      names: all tensors that are there, Hugging Face names.
      read: returns one of them as a NumPy array, or a matrix as it is stored.
      where: the file or folder, for messages.
    """

    names: frozenset[str]
    read: Callable[[str], np.ndarray | QuantizedMatrix]
    where: str


def read_params(family: Family, config: DecoderConfig, reader: TensorReader) -> dict[str, Any]:
    """Stacks named tensors into the decoder's parameter tree, strictly.

    Args:
      family: says which tensors there are and where they belong.
      config: sizes that the tensors must have.
      reader: tensors under Hugging Face names.

    Returns:
      Parameters as float NumPy arrays; matrices are stored inputs first.

    Raises:
      LoadingError: a tensor is missing, unexpected or misshapen; the message names it.
    """
    outer, inner = family.outer_tensors(config), family.layer_tensors(config)
    prefixes = [f"{family.layers}.{i}." for i in range(config.num_layers)]
    expected = set(outer) | {prefix + name for prefix in prefixes for name in inner}
    ignorable = re.compile(family.ignored + (r"|lm_head\.weight" if config.tie_embeddings else ""))
    present = {name for name in reader.names if not ignorable.fullmatch(name)}
    if missing := sorted(expected - present):
        raise LoadingError(f"{reader.where}: {len(missing)} tensors are missing, the first is {missing[0]!r}.")
    if unexpected := sorted(present - expected):
        raise LoadingError(f"{reader.where}: {len(unexpected)} unexpected tensors, the first is {unexpected[0]!r}.")
    flat: dict[str, Any] = {}
    for name, place in outer.items():
        for path, matrix in _parts(reader, name, place):
            flat[path] = matrix if isinstance(matrix, QuantizedMatrix) else np.ascontiguousarray(matrix)
    for name, place in inner.items():
        layers = [_parts(reader, prefix + name, place) for prefix in prefixes]
        for each in zip(*layers, strict=True):
            flat[f"layers/{each[0][0]}"] = _stacked(reader, each[0][0], [matrix for _, matrix in each])
    return unflatten(flat)


def _stacked(reader: TensorReader, path: str, matrices: Sequence[Any]) -> Any:
    kept = [isinstance(matrix, QuantizedMatrix) for matrix in matrices]
    if any(kept) and not all(kept):
        raise LoadingError(
            f"{reader.where}: {path} is quantised in {sum(kept)} of {len(kept)} layers, and cannot be kept. "
            "Load the file without quantization='keep'."
        )
    return stack(list(matrices)) if all(kept) else np.stack(matrices)


def _parts(reader: TensorReader, name: str, place: Place | tuple[Place, ...]) -> list[tuple[str, Any]]:
    """Reads a tensor and splits it into its parts, matrices with their inputs first; returns these with their paths."""
    places: Sequence[Place] = place if isinstance(place, tuple) else (place,)
    axis = 1 if len(places[0].shape) == 2 and places[0].as_stored else 0  # of the outputs
    sizes = [part.shape[axis] for part in places]
    shape = (*places[0].shape[:axis], sum(sizes), *places[0].shape[axis + 1 :])
    tensor = reader.read(name)
    if tensor.shape != shape:
        raise LoadingError(f"{reader.where}: tensor {name!r} has shape {tensor.shape}; expected {shape}.")
    if isinstance(tensor, QuantizedMatrix):  # outputs first wherever it belongs
        if len(places) == 1:
            return [("/".join(places[0].path), tensor)]
        ends = np.cumsum(sizes)
        return [
            ("/".join(part.path), tensor.rows(slice(end - size, end)))
            for part, size, end in zip(places, sizes, ends, strict=True)
        ]
    found = np.split(tensor, np.cumsum(sizes)[:-1], axis=axis)
    return [
        ("/".join(part.path), array.T if array.ndim == 2 and not part.as_stored else array)
        for part, array in zip(places, found, strict=True)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the leaves of nested dictionaries, with the keys on the way joined by slashes."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
