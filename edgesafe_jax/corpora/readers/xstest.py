"""XSTest: safe prompts that look unsafe, and unsafe ones beside them."""

import os

from edgesafe_jax.corpora.readers.rows import as_text, read_rows
from edgesafe_jax.corpora.records import CorpusError, Label, Prompt
from edgesafe_jax.errors import shortened


def read_xstest(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads the prompts of XSTest (``prompt``, ``type``; the second version has ``label``, safe or unsafe).

    Where there is no label, the types that begin with ``contrast`` are the unsafe ones.

    Reference:
        Röttger et al., "XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large Language Models",
        2024.
    """
    labels: dict[str, Label] = {"safe": "benign", "unsafe": "harmful"}
    prompts = []
    for number, row in enumerate(read_rows(path, ("prompt", "type")), 1):
        kind = str(row["type"])
        label = str(row.get("label") or ("unsafe" if kind.startswith("contrast") else "safe"))
        if label not in labels:
            raise CorpusError(f"{path}, row {number}: label={shortened(label)!r}, expected safe or unsafe.")
        prompts.append(Prompt(as_text(row, "prompt", path, number), "xstest", kind, labels[label]))
    return prompts
