"""Gemma 2: norms before and after each sublayer, soft caps, scaled embeddings, tanh-GELU."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import family
from edgesafe_jax.models.families.family import Family, Place


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    family.check_sizes(settings)
    return family.read_config(
        {**settings, "hidden_act": settings.get("hidden_activation")},
        activation="gelu_pytorch_tanh",
        tie_embeddings=bool(settings.get("tie_word_embeddings", True)),
        post_norms=True,
        attention_scale=float(settings.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_softcap=settings.get("attn_logit_softcapping"),
        logit_softcap=settings.get("final_logit_softcapping"),
        embedding_scale=float(settings["hidden_size"]) ** 0.5,
    )


def _layer_tensors(config: DecoderConfig) -> dict[str, Place]:
    # With norms on both sides of a sublayer, Llama's name of the norm before the feed-forward layer is that of the norm
    # after attention.
    d = config.embed_dim
    return family.layer_tensors(config) | {
        "post_attention_layernorm.weight": Place(("attention_post_norm", "scale"), (d,)),
        "pre_feedforward_layernorm.weight": Place(("mlp_norm", "scale"), (d,)),
        "post_feedforward_layernorm.weight": Place(("mlp_post_norm", "scale"), (d,)),
    }


def _shift_norms(params: Mapping[str, Any]) -> dict[str, Any]:
    """Adds one to every norm's scale, in float32: Gemma multiplies by `1 + weight`."""
    shifted = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            shifted[name] = _shift_norms(value)
        else:
            shifted[name] = np.asarray(value, np.float32) + 1 if name == "scale" else value
    return shifted


FAMILY = Family(read_config=_read_config, layer_tensors=_layer_tensors, transform=_shift_norms)
