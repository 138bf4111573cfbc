"""Llama, the base of the other families; SmolLM2, TinyLlama and Llama 3.x belong to it."""

from collections.abc import Callable

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, GgufLayout, layer_tensors
from edgesafe_jax.models.families.settings import read_config, read_gguf_config


def undo_interleaving(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Undoes the interleaving of rotary pairs that the converter applies to the rows of queries and keys."""
    return _reordered(config, name, tensor, lambda rows: (rows // 2, 2))


def interleave(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Interleaves the rotary pairs of queries and keys as the converter does."""
    return _reordered(config, name, tensor, lambda rows: (2, rows // 2))


def _reordered(
    config: DecoderConfig, name: str, tensor: np.ndarray, split: Callable[[int], tuple[int, int]]
) -> np.ndarray:
    """Swaps the two axes into which the rows of each head of queries and keys are split."""
    heads = {"q_proj.weight": config.num_heads, "k_proj.weight": config.num_kv_heads}
    num_heads = heads.get(".".join(name.split(".")[-2:]))
    if num_heads is None:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(num_heads, *split(rows // num_heads), columns).swapaxes(1, 2).reshape(rows, columns)


FAMILY = Family(
    read_config=read_config,
    layer_tensors=layer_tensors,
    gguf=GgufLayout("llama", read_gguf_config, transform=undo_interleaving, convert=interleave),
)
