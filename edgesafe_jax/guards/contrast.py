"""The project's contrast prompts: harmful topics with benign intents, in matched pairs, and everyday prompts."""

import importlib.resources
import json
from pathlib import Path

from edgesafe_jax.assets import check_packaged
from edgesafe_jax.corpora import Prompt


def contrast_prompts() -> list[Prompt]:
    """Reads the contrast prompts.

    Returns:
      Prompts whose `source` is "contrast" and whose `category` is "topic/intent"; everyday ones have the intent
      "plain".
    """
    folder = Path(str(importlib.resources.files("edgesafe_jax.guards") / "data"))
    file = check_packaged(folder / "contrast_prompts.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Prompt(row["prompt"], "contrast", f"{row['topic']}/{row['intent']}", row["label"]) for row in rows]


def is_plain(prompt: Prompt) -> bool:
    """Whether a contrast prompt is an everyday one."""
    return prompt.category.endswith("/plain")


def topic_of(prompt: Prompt) -> str:
    """The topic of a contrast prompt."""
    return prompt.category.rsplit("/", 1)[0]
