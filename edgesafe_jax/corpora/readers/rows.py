"""Rows of a data file: CSV, TSV, JSON or JSON lines, plain or compressed by gzip, with the columns checked."""

import csv
import gzip
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from edgesafe_jax.corpora.files import json_lines
from edgesafe_jax.corpora.records import CorpusError, MissingCorpusError
from edgesafe_jax.errors import shortened

Row = Mapping[str, Any]

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")


def read_text(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Reads a text file, decompressed if its name ends with ``.gz``.

    Args:
        path: the file, in UTF-8.

    Returns:
        The text, and the suffix of the file without ``.gz``.

    Raises:
        MissingCorpusError: there is no such file.
        CorpusError: an unknown suffix, a damaged archive, or another encoding.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingCorpusError(f"There is no data file {path}.")
    packed = path.suffix == ".gz"
    suffix = pathlib.Path(path.stem if packed else path.name).suffix.lower()
    if suffix not in _SUFFIXES:
        hint = " Write it as JSON lines, e.g. with pandas.read_parquet." if suffix == ".parquet" else ""
        raise CorpusError(f"{path}: expected a file that ends with {', '.join(_SUFFIXES)}, or these with .gz.{hint}")
    try:
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        return content.decode("utf-8-sig"), suffix
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read ({error}): expected UTF-8 text.") from None


def read_rows(path: str | os.PathLike[str], columns: Sequence[str]) -> list[Row]:
    """Reads the rows of a data file and checks that its columns are there.

    Args:
        path: a ``.csv`` or ``.tsv`` file with a header, ``.jsonl``, or ``.json`` with a list of objects.
        columns: names that every row must have.

    Returns:
        At least one row.

    Raises:
        MissingCorpusError: there is no such file.
        CorpusError: a line that cannot be read, no rows, or a missing column; the message shows the first row's keys.
    """
    text, suffix = read_text(path)
    rows = _parse(text, suffix, path)
    if not rows:
        raise CorpusError(f"{path} has no rows: expected some with the columns {', '.join(columns)}.")
    for number, row in enumerate(rows, 1):
        for column in columns:
            if column not in row or row[column] is None:
                keys = ", ".join(map(str, rows[0]))
                raise CorpusError(f"{path}, row {number}: no column {column!r}. The first row has {keys}.")
    return rows


def _parse(text: str, suffix: str, path: str | os.PathLike[str]) -> list[Row]:
    if suffix in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ","))
    try:
        whole = json.loads(text) if suffix == ".json" else None
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}: not valid JSON ({error}).") from None
    if suffix == ".json":
        if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
            raise CorpusError(f"{path}: expected a JSON list of objects.")
        return whole
    return [row for _, row in json_lines(text.encode("utf-8"), path)]


def as_text(row: Row, column: str, path: str | os.PathLike[str], number: int) -> str:
    """Returns a column as text without outer space.

    Raises:
        CorpusError: it is no text, or empty.
    """
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{path}, row {number}: {column}={shortened(value)!r}, expected text.")
    return value.strip()
