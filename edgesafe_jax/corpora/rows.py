"""A user's own prompts: JSON lines with a column of texts or chats and, where wanted, one of labels."""

import os
from pathlib import Path
from typing import Any

from edgesafe_jax.corpora.files import json_lines
from edgesafe_jax.corpora.prompts import parse_chat
from edgesafe_jax.corpora.records import CorpusError, MissingCorpusError, Prompt


def read_rows(
    path: str | os.PathLike[str], *, column: str = "prompt", label_column: str = "", default_label: str = "answer"
) -> list[Prompt]:
    """Reads prompts and labels from a JSONL file.

    Args:
      path: the file, in UTF-8: one JSON object per line, empty lines are skipped.
      column: the field of the prompts: texts, or chats as lists of objects with role and content, the last the user's.
      label_column: the field of the labels; empty for none.
      default_label: of rows without a label.

    Returns:
      N prompts without outer space, the label as their category; a prompt that occurs twice is taken once.

    Raises:
      MissingCorpusError: there is no such file.
      CorpusError: a line that is no JSON object, a missing column (named with the keys of the first row), a prompt
        that is empty or neither text nor chat, or no row at all.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "mine.jsonl"
      >>> _ = file.write_text('{"text": "How do I bake bread?", "label": "plain"}')
      >>> [(p.text, p.category) for p in read_rows(file, column="text", label_column="label")]
      [('How do I bake bread?', 'plain')]
    """
    path = Path(path)
    if not path.is_file():
        raise MissingCorpusError(f"There is no file {path}: expected JSON lines with a field {column!r}.")
    found: dict[tuple[Any, str], Prompt] = {}
    first: dict[str, Any] | None = None
    for number, row in json_lines(path.read_bytes(), path):
        if first is None:
            first = row
            for name in filter(None, (column, label_column)):
                if name not in row:
                    keys = ", ".join(row) or "none"
                    raise CorpusError(f"{path} has no column {name!r}: the keys of its first row are {keys}.")
        text, label = row.get(column), row.get(label_column) if label_column else None
        before: tuple[tuple[str, str], ...] = ()
        if isinstance(text, list):
            try:
                before, text = parse_chat(text)
            except CorpusError as error:
                raise CorpusError(f"{path}, line {number}, {column}: {error}.") from None
        if not isinstance(text, str) or not text.strip():
            raise CorpusError(f"{path}, line {number}: {column} is {text!r}: expected a text or a chat.")
        if label is not None and not (isinstance(label, str) and label.strip()):
            raise CorpusError(f"{path}, line {number}: {label_column} is {label!r}: expected a text, or none.")
        prompt = Prompt(text.strip(), str(path), label or default_label, "unlabelled", before)
        found.setdefault((before, prompt.text), prompt)
    if not found:
        raise CorpusError(f'{path} has no rows: expected lines such as {{"{column}": "How do I bake bread?"}}.')
    return list(found.values())
