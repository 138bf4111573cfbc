"""Phi-3 and Phi-4-mini: as Llama, with joined projections, a part of each head rotated, and LongRoPE."""

import math
from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import LAYER_NAMES, Family, GgufHeader, GgufLayout, Place, Places
from edgesafe_jax.models.families.settings import read_config, read_gguf_config


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    rope = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("su", "longrope"):  # "su" in early files
        rope["rope_type"] = "longrope"
        rope.setdefault("original_max_position_embeddings", settings.get("original_max_position_embeddings"))
    return read_config({**settings, "rope_parameters": rope})


def _layer_tensors(config: DecoderConfig) -> Places:
    d, f, e = config.embed_dim, config.mlp_dim, config.head_dim
    sizes = {"query": config.num_heads * e, "key": config.num_kv_heads * e, "value": config.num_kv_heads * e}
    return {
        "self_attn.qkv_proj.weight": tuple(Place(("attention", name), (rows, d)) for name, rows in sizes.items()),
        "self_attn.o_proj.weight": Place(("attention", "out"), (d, sizes["query"])),
        "mlp.gate_up_proj.weight": (Place(("mlp", "gate"), (f, d)), Place(("mlp", "up"), (f, d))),
        "mlp.down_proj.weight": Place(("mlp", "down"), (d, f)),
        "input_layernorm.weight": Place(("attention_norm", "scale"), (d,)),
        "post_attention_layernorm.weight": Place(("mlp_norm", "scale"), (d,)),
    }


def _read_gguf_config(header: GgufHeader) -> DecoderConfig:
    options: dict[str, Any] = {}
    if "rope_factors_short.weight" in header.names:
        # Read for the context of the first training stage, as a directory is.
        longest, trained = (
            int(header.value("context_length")),
            int(header.value("rope.scaling.original_context_length")),
        )
        magnitude = header.get(
            "rope.scaling.attn_factor", math.sqrt(1 + math.log(longest / trained) / math.log(trained))
        )
        options = {
            "max_context": trained,
            "rope_divisors": tuple(header.read("rope_factors_short.weight").ravel().tolist()),
            "rope_magnitude": float(magnitude),
        }
    if window := header.get("attention.sliding_window"):
        options |= {"window": int(window), "sliding_layers": (True,) * int(header.value("block_count"))}
    head_dim = int(header.value("embedding_length")) // int(header.value("attention.head_count"))
    return read_gguf_config(header, head_dim=head_dim, **options)


FAMILY = Family(
    read_config=_read_config,
    layer_tensors=_layer_tensors,
    gguf=GgufLayout(
        "phi3",
        _read_gguf_config,
        layer_names={**LAYER_NAMES, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
)
