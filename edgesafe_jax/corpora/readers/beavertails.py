"""BeaverTails: prompts with rated answers."""

import os

from edgesafe_jax.corpora.readers.rows import as_text, read_rows
from edgesafe_jax.corpora.records import CorpusError, Label, Prompt
from edgesafe_jax.errors import shortened


def read_beavertails(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads the prompts of a BeaverTails file (``prompt``, ``response``, ``category``, ``is_safe``), each once.

    The file rates answers, not prompts: a prompt is ``"benign"`` where all its answers are safe, ``"harmful"`` where
    none is, else ``"unlabelled"``. The category is the first harm that an unsafe answer was rated with.

    Reference:
        Ji et al., "BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset", 2023.
    """
    safe: dict[str, list[bool]] = {}
    kinds: dict[str, str] = {}
    for number, row in enumerate(read_rows(path, ("prompt", "is_safe")), 1):
        text, verdict = as_text(row, "prompt", path, number), str(row["is_safe"]).lower()
        if verdict not in ("true", "false"):
            raise CorpusError(f"{path}, row {number}: is_safe={shortened(row['is_safe'])!r}, expected true or false.")
        safe.setdefault(text, []).append(verdict == "true")
        found = row.get("category")
        if isinstance(found, dict):
            kinds[text] = kinds.get(text) or next((str(name) for name, flag in found.items() if flag), "")
    labels: dict[tuple[bool, bool], Label] = {(True, True): "benign", (False, False): "harmful"}
    return [
        Prompt(text, "beavertails", kinds.get(text, ""), labels.get((any(found), all(found)), "unlabelled"))
        for text, found in safe.items()
    ]
