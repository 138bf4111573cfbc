"""Gemma 3 (text): as Gemma 2, with normed queries and keys, and another RoPE in the layers that slide."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import LAYER_NAMES, Family, GgufHeader, GgufLayout, LoadingError, Places
from edgesafe_jax.models.families.gemma2 import gemma_layer_tensors, read_gemma, shift_norms
from edgesafe_jax.models.families.qwen3 import head_norms
from edgesafe_jax.models.families.settings import read_gguf_config

_LOCAL_BASE, _GLOBAL_BASE = 1e4, 1e6  # where a file does not give them
_PERIOD = 6  # every sixth layer sees everything


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    if settings.get("use_bidirectional_attention"):
        raise LoadingError("use_bidirectional_attention is not supported: expected a causal language model.")
    kinds = settings.get("rope_parameters") or {}
    local = kinds.get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise LoadingError(f"RoPE type {local['rope_type']!r} in layers that slide is not supported.")
    base = settings.get("rope_theta", _GLOBAL_BASE)
    rope = {"rope_theta": base, **(kinds.get("full_attention") or settings.get("rope_scaling") or {})}
    return read_gemma(
        {**settings, "rope_parameters": rope},
        qk_norm="head",
        local_rope_base=float(local.get("rope_theta", settings.get("rope_local_base_freq", _LOCAL_BASE))),
    )


def _layer_tensors(config: DecoderConfig) -> Places:
    return {**gemma_layer_tensors(config), **head_norms(config)}


def _read_gguf_config(header: GgufHeader) -> DecoderConfig:
    layers = int(header.value("block_count"))
    head_dim = int(header.value("attention.key_length"))
    return read_gguf_config(
        header,
        activation="gelu_tanh",
        qk_norm="head",
        post_norms=True,
        rope_base=float(header.get("rope.freq_base", _GLOBAL_BASE)),
        local_rope_base=float(header.get("rope.freq_base_swa", _LOCAL_BASE)),
        window=int(header.value("attention.sliding_window")),
        sliding_layers=tuple((i + 1) % _PERIOD != 0 for i in range(layers)),
        attention_scale=head_dim**-0.5,
        embedding_scale=float(header.value("embedding_length")) ** 0.5,
        logit_softcap=header.get("final_logit_softcapping"),
    )


FAMILY = Family(
    read_config=_read_config,
    layer_tensors=_layer_tensors,
    transform=shift_norms,
    gguf=GgufLayout(  # the converter has added one to the norms
        "gemma3",
        _read_gguf_config,
        layer_names={
            **LAYER_NAMES,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
)
