"""Qwen2: as Llama, with biases of the queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, Place, Places, layer_tensors
from edgesafe_jax.models.families.settings import read_config


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    return read_config(settings, attention_bias=True, qkv_bias=True)


def _layer_tensors(config: DecoderConfig) -> Places:
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return layer_tensors(config) | {
        "self_attn.q_proj.bias": Place(("attention", "query_bias"), (q,)),
        "self_attn.k_proj.bias": Place(("attention", "key_bias"), (kv,)),
        "self_attn.v_proj.bias": Place(("attention", "value_bias"), (kv,)),
    }


FAMILY = Family(read_config=_read_config, layer_tensors=_layer_tensors)
