"""GSM8K: word problems of school mathematics."""

import os

from edgesafe_jax.corpora.readers.rows import as_text, read_rows
from edgesafe_jax.corpora.records import CorpusError, Problem
from edgesafe_jax.errors import shortened


def read_gsm8k(path: str | os.PathLike[str]) -> list[Problem]:
    """Reads GSM8K (``question``, ``answer``, whose last line is ``####`` and the number).

    Reference:
        Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021.
    """
    problems = []
    for number, row in enumerate(read_rows(path, ("question", "answer")), 1):
        _, mark, answer = as_text(row, "answer", path, number).rpartition("####")
        if not mark or not answer.strip():
            raise CorpusError(
                f"{path}, row {number}: answer={shortened(row['answer'])!r}, expected a last line '#### NUMBER'."
            )
        text = as_text(row, "question", path, number)
        problems.append(Problem(text, answer.strip().replace(",", ""), "gsm8k"))
    return problems
