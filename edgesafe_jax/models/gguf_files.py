"""Reading a model from a GGUF file."""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import FAMILIES, Family, LoadingError
from edgesafe_jax.models.families.family import GgufHeader, GgufLayout
from edgesafe_jax.models.files import sensible
from edgesafe_jax.models.gguf_blocks import FLOATS, read_matrix
from edgesafe_jax.models.gguf_header import check_gguf
from edgesafe_jax.models.quantised import QuantizedMatrix
from edgesafe_jax.models.templates import TokenizerError
from edgesafe_jax.models.tensors import TensorReader, read_params
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.models.tokenizer_files import tokenizer_from_gguf

_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # read with the metadata


def read_gguf(
    path: Path, *, keep: bool = False, round_inputs: bool = False
) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer]:
    """Reads a GGUF file.

    Args:
      path: the `.gguf` file.
      keep: whether quantised matrices stay as they are, see `gguf_blocks.read_matrix`; else they become floats.
      round_inputs: whether the inputs of products with kept matrices are rounded as ggml rounds them.

    Returns:
      Config, float32 parameters and tokenizer.

    Raises:
      LoadingError: a truncated or damaged file, another architecture, or a wrong set of tensors.
    """
    check_gguf(path)
    try:
        reader = gguf.GGUFReader(str(path))
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the reader lets many kinds of exception through on a damaged file
        raise LoadingError(
            f"{path} is not a readable GGUF file ({type(error).__name__}: {error}). It may be truncated "
            f"({path.stat().st_size:,} bytes): delete it and fetch or copy it again."
        ) from error
    with sensible(path, LoadingError):
        number, count = (int(metadata.get(name, default)) for name, default in (("split.no", 0), ("split.count", 1)))
    if count > 1:
        raise LoadingError(
            f"{path} is part {number + 1} of {count} of a split GGUF file: join the parts first (llama-gguf-split "
            "--merge)."
        )
    family, layout = layout_of(str(metadata.get("general.architecture")), path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def dequantised(name: str) -> np.ndarray:
        tensor = tensors[name]
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    with sensible(path, LoadingError):
        config = layout.read_config(GgufHeader(layout.architecture, metadata, frozenset(tensors), dequantised))
    if config.num_layers > len(tensors):
        raise LoadingError(f"{path} announces {config.num_layers} layers and has {len(tensors)} tensors.")
    names = {_hf_name(name, family, layout): name for name in tensors if name not in _ROPE_TENSORS}

    def read(name: str) -> np.ndarray | QuantizedMatrix:
        tensor = tensors[names[name]]
        if not keep or tensor.tensor_type in FLOATS:
            return layout.transform(config, name, dequantised(tensor.name))
        matrix = read_matrix(tensor, round_inputs=round_inputs)
        order = layout.transform(config, name, np.arange(matrix.shape[0])[:, None])  # of the rows
        if order.shape != (matrix.shape[0], 1):
            raise LoadingError(f"the quantised matrices of {layout.architecture} models cannot be kept.")
        return matrix.rows(order[:, 0])

    if keep and all(tensor.tensor_type in FLOATS for tensor in tensors.values()):
        raise LoadingError(f"{path} has no quantised matrices to keep: use another quantization.")

    with sensible(path, LoadingError):
        params = read_params(family, config, TensorReader(frozenset(names), read, str(path)))
    with sensible(path, TokenizerError):
        return config, params, tokenizer_from_gguf(metadata)


def layout_of(architecture: object, path: Path) -> tuple[Family, GgufLayout]:
    """Returns the family of a GGUF architecture and its layout there.

    Args:
      architecture: value of `general.architecture`.
      path: the file, for the message.

    Raises:
      LoadingError: another architecture than those of `FAMILIES`.
    """
    known = {}
    for family in FAMILIES.values():
        if family.gguf is not None:
            known[family.gguf.architecture] = family, family.gguf
    if architecture not in known:
        expected = " or ".join(map(repr, known))
        raise LoadingError(f"{path}: GGUF architecture {architecture!r} is not supported; expected {expected}.")
    return known[architecture]


def _hf_name(name: str, family: Family, layout: GgufLayout) -> str:
    """The Hugging Face name of a tensor; an unknown one keeps its own and is reported under it as unexpected."""
    if name in layout.outer_names:
        return layout.outer_names[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in layout.layer_names:
        return name
    return f"{family.layers}.{match[1]}.{layout.layer_names[match[2]]}.{match[3]}"
