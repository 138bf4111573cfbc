"""Adapters of a frozen language model: one protocol (`edgesafe_jax.typing.Adapter`), one table of kinds."""

from edgesafe_jax.adapters.kind import AdapterError, AdapterKind, Option, StoredAdapter
from edgesafe_jax.adapters.lora import LoRA, init_lora, merge_lora
from edgesafe_jax.adapters.registry import ADAPTERS, load_adapter, make_adapter, save_adapter, stored_form
from edgesafe_jax.adapters.soft_prompt import SoftPrompt, init_soft_prompt, packaged_soft_prompt

__all__ = [
    "ADAPTERS",
    "AdapterError",
    "AdapterKind",
    "LoRA",
    "Option",
    "SoftPrompt",
    "StoredAdapter",
    "init_lora",
    "init_soft_prompt",
    "load_adapter",
    "make_adapter",
    "merge_lora",
    "packaged_soft_prompt",
    "save_adapter",
    "stored_form",
]
