"""Mistral: as Llama, with a sliding window that bounds the context."""

from edgesafe_jax.models.families import family

FAMILY = family.Family(read_config=family.read_config, layer_tensors=family.layer_tensors)
