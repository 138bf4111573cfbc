"""What is attached to a frozen language model."""

from edgesafe_jax.adapters.soft_prompt import (
    SoftPrompt,
    random_soft_prompt,
    soft_prompt_from_text,
    soft_prompt_from_vocabulary,
)
from edgesafe_jax.adapters.storage import AdapterError, load_soft_prompt, save_soft_prompt

__all__ = [
    "AdapterError",
    "SoftPrompt",
    "load_soft_prompt",
    "random_soft_prompt",
    "save_soft_prompt",
    "soft_prompt_from_text",
    "soft_prompt_from_vocabulary",
]
