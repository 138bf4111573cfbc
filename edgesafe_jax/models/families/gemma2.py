"""Gemma 2: norms before and after each sublayer, soft caps, scaled embeddings, tanh-GELU, every other layer slides."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, Place, Places, layer_tensors
from edgesafe_jax.models.families.settings import check_sizes, read_config


def read_gemma(settings: Mapping[str, Any], **options: Any) -> DecoderConfig:
    """Reads what the generations of Gemma have in common."""
    check_sizes(settings)
    return read_config(
        {**settings, "hidden_act": settings.get("hidden_activation")},
        activation="gelu_pytorch_tanh",
        tie_embeddings=bool(settings.get("tie_word_embeddings", True)),
        post_norms=True,
        attention_scale=float(settings.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_softcap=settings.get("attn_logit_softcapping"),
        logit_softcap=settings.get("final_logit_softcapping"),
        embedding_scale=float(settings["hidden_size"]) ** 0.5,
        **options,
    )


def gemma_layer_tensors(config: DecoderConfig) -> Places:
    """Returns the tensors of a layer with norms on both sides of its sublayers."""
    # Llama's name of the norm before the feed-forward layer is here that of the norm after attention.
    d = config.embed_dim
    return layer_tensors(config) | {
        "post_attention_layernorm.weight": Place(("attention_post_norm", "scale"), (d,)),
        "pre_feedforward_layernorm.weight": Place(("mlp_norm", "scale"), (d,)),
        "post_feedforward_layernorm.weight": Place(("mlp_post_norm", "scale"), (d,)),
    }


def shift_norms(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Adds one to the scale of a norm, in float32: Gemma multiplies by `1 + weight`."""
    del config
    return np.asarray(tensor, np.float32) + 1 if name.endswith("norm.weight") else tensor


FAMILY = Family(read_config=read_gemma, layer_tensors=gemma_layer_tensors, transform=shift_norms)
