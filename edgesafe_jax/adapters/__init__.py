"""Adapters of a frozen language model: one protocol (`edgesafe_jax.typing.Adapter`), one table of kinds."""

from edgesafe_jax.adapters.budgets import Budget, budget, match_budget, options_of
from edgesafe_jax.adapters.composition import Composition, compose
from edgesafe_jax.adapters.gate import Gate, fit_gate, init_gate
from edgesafe_jax.adapters.kind import AdapterError, AdapterKind, Cost, Examples, Option, StoredAdapter
from edgesafe_jax.adapters.lora import LoRA, init_lora, merge_lora, unmerge_lora
from edgesafe_jax.adapters.prefix import Prefix, init_prefix
from edgesafe_jax.adapters.registry import (
    ADAPTERS,
    fit_adapter,
    kinds_of,
    load_adapter,
    make_adapter,
    save_adapter,
    stored_form,
)
from edgesafe_jax.adapters.soft_prompt import SoftPrompt, init_soft_prompt, packaged_soft_prompt
from edgesafe_jax.adapters.steering import Steering, contrastive_steering, init_steering

__all__ = [
    "ADAPTERS",
    "AdapterError",
    "AdapterKind",
    "Budget",
    "Composition",
    "Cost",
    "Examples",
    "Gate",
    "LoRA",
    "Option",
    "Prefix",
    "SoftPrompt",
    "Steering",
    "StoredAdapter",
    "budget",
    "compose",
    "contrastive_steering",
    "fit_adapter",
    "fit_gate",
    "init_gate",
    "init_lora",
    "init_prefix",
    "init_soft_prompt",
    "init_steering",
    "kinds_of",
    "load_adapter",
    "make_adapter",
    "match_budget",
    "merge_lora",
    "options_of",
    "packaged_soft_prompt",
    "save_adapter",
    "stored_form",
    "unmerge_lora",
]
