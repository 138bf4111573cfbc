"""OLMo 2: sublayers whose outputs are normed instead of their inputs, and queries and keys normed as a whole."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import (
    LAYER_NAMES,
    Family,
    GgufHeader,
    GgufLayout,
    Place,
    Places,
    layer_tensors,
)
from edgesafe_jax.models.families.settings import read_config, read_gguf_config

_NORMS = {"pre_norms": False, "post_norms": True, "qk_norm": "projection"}


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    return read_config(settings, **_NORMS)


def _layer_tensors(config: DecoderConfig) -> Places:
    d, q, kv = config.embed_dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    matrices = {name: place for name, place in layer_tensors(config).items() if "layernorm" not in name}
    return matrices | {
        "self_attn.q_norm.weight": Place(("attention", "query_norm", "scale"), (q,)),
        "self_attn.k_norm.weight": Place(("attention", "key_norm", "scale"), (kv,)),
        "post_attention_layernorm.weight": Place(("attention_post_norm", "scale"), (d,)),
        "post_feedforward_layernorm.weight": Place(("mlp_post_norm", "scale"), (d,)),
    }


def _read_gguf_config(header: GgufHeader) -> DecoderConfig:
    return read_gguf_config(header, **_NORMS)


FAMILY = Family(
    read_config=_read_config,
    layer_tensors=_layer_tensors,
    gguf=GgufLayout(
        "olmo2",
        _read_gguf_config,
        layer_names={
            **LAYER_NAMES,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
)
