"""Qwen3: as Llama, with queries and keys normed per head before they are rotated."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, Place, Places, layer_tensors
from edgesafe_jax.models.families.settings import read_config


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    return read_config(settings, qk_norm="head")


def head_norms(config: DecoderConfig) -> Places:
    """Returns the norms of the queries and keys of each head."""
    return {
        "self_attn.q_norm.weight": Place(("attention", "query_norm", "scale"), (config.head_dim,)),
        "self_attn.k_norm.weight": Place(("attention", "key_norm", "scale"), (config.head_dim,)),
    }


def _layer_tensors(config: DecoderConfig) -> Places:
    return {**layer_tensors(config), **head_norms(config)}


FAMILY = Family(read_config=_read_config, layer_tensors=_layer_tensors)
