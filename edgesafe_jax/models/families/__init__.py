"""The decoder families that can be loaded: one file each, and one entry of `FAMILIES`."""

from edgesafe_jax.models.families import (
    gemma2,
    gemma3,
    gpt2,
    granite,
    llama,
    mistral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from edgesafe_jax.models.families.family import Family, LoadingError

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "gemma2": gemma2.FAMILY,
    "gemma3_text": gemma3.FAMILY,
    "granite": granite.FAMILY,
    "phi3": phi3.FAMILY,
    "smollm3": smollm3.FAMILY,
    "olmo2": olmo2.FAMILY,
    "gpt2": gpt2.FAMILY,
}
"""Decoder families by the `model_type` of their `config.json`."""

__all__ = ["FAMILIES", "Family", "LoadingError"]
