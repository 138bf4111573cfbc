"""MMLU: questions of 57 subjects with four options."""

import ast
import csv
import io
import os
from collections.abc import Sequence

from edgesafe_jax.corpora.readers.rows import as_text, read_rows, read_text
from edgesafe_jax.corpora.records import Choice, CorpusError
from edgesafe_jax.errors import shortened

LETTERS = "ABCD"


def read_mmlu(path: str | os.PathLike[str]) -> list[Choice]:
    """Reads MMLU in either of its two formats.

    The original is a CSV without header: question, four options, letter. The other has a header or keys: ``question``,
    ``choices`` (a list) and ``answer`` (an index or a letter). Questions whose options are not all different are left
    out.

    Reference:
        Hendrycks et al., "Measuring Massive Multitask Language Understanding", 2021.
    """
    text, suffix = read_text(path)
    table = list(csv.reader(io.StringIO(text, newline=""))) if suffix == ".csv" else []
    if table and "question" not in table[0]:
        found = [_choice(path, number, row[0], row[1:5], row[5:6]) for number, row in enumerate(table, 1)]
    else:
        found = []
        for number, row in enumerate(read_rows(path, ("question", "choices", "answer")), 1):
            options = row["choices"]
            if isinstance(options, str):
                try:
                    options = ast.literal_eval(options)
                except (ValueError, SyntaxError):
                    options = ()
            question = as_text(row, "question", path, number)
            found.append(_choice(path, number, question, options, [row["answer"]]))
    return [choice for choice in found if len(set(choice.options)) == len(choice.options)]


def _choice(
    path: str | os.PathLike[str], number: int, question: str, options: object, answer: Sequence[object]
) -> Choice:
    given = [str(option).strip() for option in options] if isinstance(options, list | tuple) else []
    right = str(answer[0]).strip() if answer else ""
    index = {**dict(zip(LETTERS, range(4), strict=True)), **{str(i): i for i in range(4)}}.get(right, -1)
    if len(given) != 4 or index < 0:
        raise CorpusError(
            f"{path}, row {number} ({shortened(question, 30)!r}): {len(given)} options and the answer {right!r}, "
            "expected four options and a letter A to D or an index 0 to 3."
        )
    return Choice(question.strip(), tuple(given), index, "mmlu")
