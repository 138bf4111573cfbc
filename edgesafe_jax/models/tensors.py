"""Named tensors of a checkpoint as a parameter tree, read strictly."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import Family, LoadingError


@dataclasses.dataclass(frozen=True)
class TensorReader:
    """Named tensors of a file or of several, read one at a time.

    Attributes:
      names: all tensors that are there, Hugging Face names.
      read: returns one of them as a NumPy array.
      where: the file or folder, for messages.
    """

    names: frozenset[str]
    read: Callable[[str], np.ndarray]
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
    places = family.layer_tensors(config)
    outer = {
        "model.embed_tokens.weight": (config.vocab_size, config.embed_dim),
        "model.norm.weight": (config.embed_dim,),
    }
    if not config.tie_embeddings:
        outer["lm_head.weight"] = (config.vocab_size, config.embed_dim)
    expected = set(outer) | {f"model.layers.{i}.{name}" for i in range(config.num_layers) for name in places}
    ignorable = re.compile(r".*rotary_emb\.inv_freq$" + (r"|^lm_head\.weight$" if config.tie_embeddings else ""))
    present = {name for name in reader.names if not ignorable.match(name)}
    if missing := sorted(expected - present):
        raise LoadingError(f"{reader.where}: {len(missing)} tensors are missing, the first is {missing[0]!r}.")
    if unexpected := sorted(present - expected):
        raise LoadingError(f"{reader.where}: {len(unexpected)} unexpected tensors, the first is {unexpected[0]!r}.")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = reader.read(name)
        if tensor.shape != shape:
            raise LoadingError(f"{reader.where}: tensor {name!r} has shape {tensor.shape}; expected {shape}.")
        return tensor

    params: dict[str, Any] = {
        "embedding": read("model.embed_tokens.weight", outer["model.embed_tokens.weight"]),
        "final_norm": {"scale": read("model.norm.weight", outer["model.norm.weight"])},
    }
    if not config.tie_embeddings:
        params["head"] = np.ascontiguousarray(read("lm_head.weight", outer["lm_head.weight"]).T)
    flat: dict[str, np.ndarray] = {}
    for name, place in places.items():
        tensors = [read(f"model.layers.{i}.{name}", place.shape) for i in range(config.num_layers)]
        flat["/".join(place.path)] = np.stack([t.T if t.ndim == 2 else t for t in tensors])
    params["layers"] = unflatten(flat)
    return family.transform(params)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the leaves of nested dictionaries, with the keys on the way joined by slashes."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Undoes `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
