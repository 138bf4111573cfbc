"""Llama, the base of the other families; SmolLM2 and TinyLlama belong to it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import family
from edgesafe_jax.models.families.family import Family, GgufLayout, LoadingError


def _read_gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    if "llama.rope.scaling.type" in metadata or "rope_freqs.weight" in tensors:
        raise LoadingError("scaled RoPE in GGUF is not supported; use the Hugging Face directory.")

    def value(name: str) -> Any:
        if f"llama.{name}" not in metadata:
            raise LoadingError(f"the metadata has no llama.{name}; the file is incomplete.")
        return metadata[f"llama.{name}"]

    num_heads, embed_dim = int(value("attention.head_count")), int(value("embedding_length"))
    return DecoderConfig(
        vocab_size=len(metadata.get("tokenizer.ggml.tokens", ())),
        num_layers=int(value("block_count")),
        embed_dim=embed_dim,
        mlp_dim=int(value("feed_forward_length")),
        num_heads=num_heads,
        num_kv_heads=int(metadata.get("llama.attention.head_count_kv", num_heads)),
        head_dim=int(metadata.get("llama.rope.dimension_count", embed_dim // num_heads)),
        rope_base=float(metadata.get("llama.rope.freq_base", 10_000.0)),
        rms_eps=float(value("attention.layer_norm_rms_epsilon")),
        max_context=int(value("context_length")),
        tie_embeddings="output.weight" not in tensors,
    )


def _undo_interleaving(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Undoes the interleaving of rotary pairs that the converter applies to the rows of queries and keys."""
    return _reordered(config, name, tensor, lambda rows: (rows // 2, 2))


def _interleave(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
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
    read_config=family.read_config,
    layer_tensors=family.layer_tensors,
    gguf=GgufLayout(
        architecture="llama",
        read_config=_read_gguf_config,
        layer_names={
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        },
        transform=_undo_interleaving,
        convert=_interleave,
    ),
)
