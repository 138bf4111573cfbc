"""GPT-2: learned positions, LayerNorm, biases everywhere, and a feed-forward layer without a gate."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, GgufHeader, GgufLayout, LoadingError, Place, Places
from edgesafe_jax.models.families.settings import read_config, read_gguf_config

_OPTIONS: dict[str, Any] = {
    "norm": "layer",
    "qkv_bias": True,
    "linear_bias": True,
    "gated": False,
    "learned_positions": True,
    "rotary_dim": 0,
}
_OTHERS = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    for name, expected in _OTHERS.items():
        if settings.get(name, expected) is not expected:
            raise LoadingError(f"{name}={settings[name]} is not supported; expected {expected} of a gpt2 model.")
    width = settings.get("n_embd", settings.get("hidden_size"))
    named = {
        "model_type": "gpt2",
        "vocab_size": settings.get("vocab_size"),
        "hidden_size": width,
        "hidden_act": settings.get("activation_function", "gelu_new"),
        "num_hidden_layers": settings.get("n_layer", settings.get("num_hidden_layers")),
        "num_attention_heads": settings.get("n_head", settings.get("num_attention_heads")),
        "intermediate_size": settings.get("n_inner") or (4 * width if width else None),
        "rms_norm_eps": settings.get("layer_norm_epsilon"),
        "max_position_embeddings": settings.get("n_positions", settings.get("max_position_embeddings")),
        "tie_word_embeddings": settings.get("tie_word_embeddings", True),
    }
    return read_config(named, activation="gelu_new", **_OPTIONS)


def _joined(places: Mapping[str, int], module: str, rows: int) -> dict[str, tuple[Place, ...]]:
    """The places of a matrix, stored inputs first, and of its bias."""
    return {
        "weight": tuple(Place((module, name), (rows, size), as_stored=True) for name, size in places.items()),
        "bias": tuple(Place((module, f"{name}_bias"), (size,)) for name, size in places.items()),
    }


def _layer_tensors(config: DecoderConfig) -> Places:
    d, f = config.embed_dim, config.mlp_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    modules = {
        "attn.c_attn": _joined({"query": q, "key": kv, "value": kv}, "attention", d),
        "attn.c_proj": _joined({"out": d}, "attention", q),
        "mlp.c_fc": _joined({"up": f}, "mlp", d),
        "mlp.c_proj": _joined({"down": d}, "mlp", f),
    }
    norms = {
        f"{name}.{kind}": Place((norm, leaf), (d,))
        for name, norm in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm"))
        for kind, leaf in (("weight", "scale"), ("bias", "bias"))
    }
    return norms | {f"{name}.{kind}": places for name, module in modules.items() for kind, places in module.items()}


def _outer_tensors(config: DecoderConfig) -> Places:
    d = config.embed_dim
    tensors = {
        "transformer.wte.weight": Place(("embedding",), (config.vocab_size, d), as_stored=True),
        "transformer.wpe.weight": Place(("positions",), (config.max_context, d), as_stored=True),
        "transformer.ln_f.weight": Place(("final_norm", "scale"), (d,)),
        "transformer.ln_f.bias": Place(("final_norm", "bias"), (d,)),
    }
    return tensors if config.tie_embeddings else tensors | {"lm_head.weight": Place(("head",), (config.vocab_size, d))}


def _read_gguf_config(header: GgufHeader) -> DecoderConfig:
    eps = header.value("attention.layer_norm_epsilon")
    return read_gguf_config(header, activation="gelu_tanh", norm_eps=eps, **_OPTIONS)


def _transposed(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """The matrices of the layers with their inputs first: the converter stores them outputs first."""
    del config
    return tensor.T if tensor.ndim == 2 and ".h." in name else tensor


FAMILY = Family(
    read_config=_read_config,
    layer_tensors=_layer_tensors,
    outer_tensors=_outer_tensors,
    sizes=("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon"),
    layers="transformer.h",
    embedding="transformer.wte.weight",
    ignored=r".*\.attn\.(masked_)?bias",  # causal masks
    gguf=GgufLayout(
        "gpt2",
        _read_gguf_config,
        layer_names={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        outer_names={
            "token_embd.weight": "transformer.wte.weight",
            "position_embd.weight": "transformer.wpe.weight",
            "output_norm.weight": "transformer.ln_f.weight",
            "output_norm.bias": "transformer.ln_f.bias",
            "output.weight": "lm_head.weight",
        },
        transform=_transposed,
        convert=_transposed,
    ),
)
