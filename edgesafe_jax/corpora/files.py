"""Readers of JSON-lines and CSV files."""

import csv
import io
import json
import pathlib
from typing import Any


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
