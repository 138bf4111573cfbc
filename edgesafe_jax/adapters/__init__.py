"""Adapters of a frozen language model: one protocol (`edgesafe_jax.typing.Adapter`), one table of kinds."""

from edgesafe_jax.adapters.composition import Composition, compose
from edgesafe_jax.adapters.kind import AdapterError, AdapterKind, Examples, Option, StoredAdapter
from edgesafe_jax.adapters.lora import LoRA, init_lora, merge_lora
from edgesafe_jax.adapters.prefix import Prefix, init_prefix
from edgesafe_jax.adapters.registry import (
    ADAPTERS,
    fit_adapter,
    kinds_of,
    load_adapter,
    make_adapter,
    options_of,
    save_adapter,
    stored_form,
)
from edgesafe_jax.adapters.soft_prompt import SoftPrompt, init_soft_prompt, packaged_soft_prompt
from edgesafe_jax.adapters.steering import Steering, contrastive_steering, init_steering

__all__ = [
    "ADAPTERS",
    "AdapterError",
    "AdapterKind",
    "Composition",
    "Examples",
    "LoRA",
    "Option",
    "Prefix",
    "SoftPrompt",
    "Steering",
    "StoredAdapter",
    "compose",
    "contrastive_steering",
    "fit_adapter",
    "init_lora",
    "init_prefix",
    "init_soft_prompt",
    "init_steering",
    "kinds_of",
    "load_adapter",
    "make_adapter",
    "merge_lora",
    "options_of",
    "packaged_soft_prompt",
    "save_adapter",
    "stored_form",
]
