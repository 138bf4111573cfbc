"""Readers of JSON-lines and CSV files."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from edgesafe_jax.corpora.records import CorpusError


def json_lines(content: bytes, path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the JSON lines of a user's file, one after the other.

    Args:
        content: of the file, in UTF-8, with or without a byte-order mark; empty lines are left out.
        path: of the file, for messages.

    Yields:
        The number of each line, counted from 1, and its object.

    Raises:
        CorpusError: a line that is no JSON object in UTF-8; the message names the file and the line.
    """
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not UTF-8 text ({error}).") from None
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}).") from None
        except (RecursionError, ValueError) as error:
            raise CorpusError(f"{path}, line {number}: not valid JSON ({error}).") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
        yield number, row


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a JSON-lines file; empty lines are left out."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    """Reads a CSV file with a header, before which there may be lines that begin with ``#``."""
    text = path.read_text(encoding="utf-8-sig")
    while text.startswith("#"):
        text = text.partition("\n")[2]
    return list(csv.DictReader(io.StringIO(text, newline="")))
