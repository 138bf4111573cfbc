"""Granite: as Llama, with factors of the embeddings, the residual stream, the attention scores and the logits."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, layer_tensors
from edgesafe_jax.models.families.settings import read_config


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    return read_config(
        settings,
        attention_scale=float(settings.get("attention_multiplier", 1.0)),
        embedding_scale=float(settings.get("embedding_multiplier", 1.0)),
        residual_scale=float(settings.get("residual_multiplier", 1.0)),
        logit_scale=1 / float(settings.get("logits_scaling", 1.0)),
    )


FAMILY = Family(read_config=_read_config, layer_tensors=layer_tensors)
