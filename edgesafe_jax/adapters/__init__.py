"""What is attached to a frozen language model."""

from edgesafe_jax.adapters.lora import LoRA, init_lora, merge_lora
from edgesafe_jax.adapters.soft_prompt import (
    SoftPrompt,
    random_soft_prompt,
    soft_prompt_from_text,
    soft_prompt_from_vocabulary,
)
from edgesafe_jax.adapters.storage import (
    AdapterError,
    load_lora,
    load_soft_prompt,
    packaged_soft_prompt,
    save_lora,
    save_soft_prompt,
)

__all__ = [
    "AdapterError",
    "LoRA",
    "SoftPrompt",
    "init_lora",
    "load_lora",
    "load_soft_prompt",
    "merge_lora",
    "packaged_soft_prompt",
    "random_soft_prompt",
    "save_lora",
    "save_soft_prompt",
    "soft_prompt_from_text",
    "soft_prompt_from_vocabulary",
]
