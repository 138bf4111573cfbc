"""HarmBench: harmful behaviours."""

import os

from edgesafe_jax.corpora.readers.rows import as_text, read_rows
from edgesafe_jax.corpora.records import Prompt


def read_harmbench(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads a HarmBench CSV of text behaviours (``Behavior``, ``FunctionalCategory``, ``SemanticCategory``, ...).

    A contextual prompt is its context, a line ``---`` and the request, as in the original evaluation.

    Reference:
        Mazeika et al., "HarmBench: A Standardized Evaluation Framework for Automated Red Teaming and Robust Refusal",
        2024.
    """
    prompts = []
    for number, row in enumerate(read_rows(path, ("Behavior", "FunctionalCategory", "SemanticCategory")), 1):
        request, context = as_text(row, "Behavior", path, number), str(row.get("ContextString") or "").strip()
        text = f"{context}\n\n---\n\n{request}" if context else request
        kind = str(row["FunctionalCategory"])
        prompts.append(Prompt(text, f"harmbench-{kind}", str(row["SemanticCategory"]), "harmful"))
    return prompts
