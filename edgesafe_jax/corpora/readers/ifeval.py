"""IFEval: requests with instructions that a program can verify."""

import os

from edgesafe_jax.corpora.readers.rows import as_text, read_rows
from edgesafe_jax.corpora.records import CorpusError, Instructed


def read_ifeval(path: str | os.PathLike[str]) -> list[Instructed]:
    """Reads IFEval's JSON lines (``prompt``, ``instruction_id_list``, ``kwargs``); arguments that are null are dropped.

    Reference:
        Zhou et al., "Instruction-Following Evaluation for Large Language Models", 2023.
    """
    rows = []
    for number, row in enumerate(read_rows(path, ("prompt", "instruction_id_list", "kwargs")), 1):
        names, arguments = row["instruction_id_list"], row["kwargs"]
        if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments) or not names:
            raise CorpusError(f"{path}, row {number}: expected as many kwargs as instruction ids, and at least one.")
        given = [{name: value for name, value in (found or {}).items() if value is not None} for found in arguments]
        instructions = tuple(zip(map(str, names), given, strict=True))
        rows.append(Instructed(as_text(row, "prompt", path, number), instructions, "ifeval"))
    return rows
