"""Qwen3: as Llama, with queries and keys normed per head before they are rotated."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import family
from edgesafe_jax.models.families.family import Family, Place


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    return family.read_config(settings, qk_norm=True)


def _layer_tensors(config: DecoderConfig) -> dict[str, Place]:
    return family.layer_tensors(config) | {
        "self_attn.q_norm.weight": Place(("attention", "query_norm", "scale"), (config.head_dim,)),
        "self_attn.k_norm.weight": Place(("attention", "key_norm", "scale"), (config.head_dim,)),
    }


FAMILY = Family(read_config=_read_config, layer_tensors=_layer_tensors)
