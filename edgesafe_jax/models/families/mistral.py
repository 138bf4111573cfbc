"""Mistral: as Llama, with a sliding window."""

from edgesafe_jax.models.families.family import Family, layer_tensors
from edgesafe_jax.models.families.settings import read_config

FAMILY = Family(read_config=read_config, layer_tensors=layer_tensors)
