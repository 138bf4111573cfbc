"""The decoder families that can be loaded: one file each, and one entry of `FAMILIES`."""

from edgesafe_jax.models.families import gemma2, granite, llama, mistral, qwen2, qwen3
from edgesafe_jax.models.families.family import Family, LoadingError

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "gemma2": gemma2.FAMILY,
    "granite": granite.FAMILY,
}
"""Decoder families by the `model_type` of their `config.json`."""

__all__ = ["FAMILIES", "Family", "LoadingError"]
