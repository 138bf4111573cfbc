"""OR-Bench: prompts that models refuse without need."""

import os
import pathlib

from edgesafe_jax.corpora.readers.rows import as_text, read_rows
from edgesafe_jax.corpora.records import Prompt


def read_orbench(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads a file of OR-Bench (``prompt``, ``category``).

    Its three files have the same columns: prompts of the one with "toxic" in its name are harmful, those of the other
    two (``80k`` and ``hard-1k``) are benign.

    Reference:
        Cui et al., "OR-Bench: An Over-Refusal Benchmark for Large Language Models", 2024.
    """
    label = "harmful" if "toxic" in pathlib.Path(path).name.lower() else "benign"
    return [
        Prompt(as_text(row, "prompt", path, number), "orbench", str(row["category"]), label)
        for number, row in enumerate(read_rows(path, ("prompt", "category")), 1)
    ]
