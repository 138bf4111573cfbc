"""Readers of data sets in their public file formats, for files that a user has.

A new data set is one file here with a function from a path to records, and one line of `READERS`.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from edgesafe_jax.corpora.readers.beavertails import read_beavertails
from edgesafe_jax.corpora.readers.gsm8k import read_gsm8k
from edgesafe_jax.corpora.readers.harmbench import read_harmbench
from edgesafe_jax.corpora.readers.ifeval import read_ifeval
from edgesafe_jax.corpora.readers.mmlu import read_mmlu
from edgesafe_jax.corpora.readers.orbench import read_orbench
from edgesafe_jax.corpora.readers.toxigen import read_toxigen
from edgesafe_jax.corpora.readers.xstest import read_xstest
from edgesafe_jax.corpora.records import Choice, CorpusError, Instructed, Problem, Prompt
from edgesafe_jax.errors import check_texts, lookup

__all__ = ["READERS", "Reader", "Records", "read_file", "read_files"]

Records: TypeAlias = Sequence[Prompt] | Sequence[Choice] | Sequence[Problem] | Sequence[Instructed]


@dataclasses.dataclass(frozen=True)
class Reader:
    """The reader of one data set.

    Attributes:
        title: in tables.
        read: from a path to records.
        record: their type.
    """

    title: str
    read: Callable[[str | os.PathLike[str]], Records]
    record: type[Prompt] | type[Choice] | type[Problem] | type[Instructed] = Prompt


READERS: dict[str, Reader] = {
    "beavertails": Reader("BeaverTails", read_beavertails),
    "gsm8k": Reader("GSM8K", read_gsm8k, Problem),
    "harmbench": Reader("HarmBench", read_harmbench),
    "ifeval": Reader("IFEval", read_ifeval, Instructed),
    "mmlu": Reader("MMLU", read_mmlu, Choice),
    "orbench": Reader("OR-Bench", read_orbench),
    "toxigen": Reader("ToxiGen", read_toxigen),
    "xstest": Reader("XSTest", read_xstest),
}
"""The readers by name."""


def read_file(name: str, path: str | os.PathLike[str]) -> Records:
    """Reads a file with the reader of a data set.

    Args:
        name: in `READERS`.
        path: the file.

    Returns:
        The records in the order of the file.

    Raises:
        ConfigError: an unknown name.
        CorpusError: a file that is not in the format of the data set; a missing column is named, and the first row's
            keys are shown.

    Example:
        ``read_file("xstest", "xstest_prompts.csv")``
    """
    return lookup(READERS, name, "data set").read(path)


def read_files(files: str | Sequence[str]) -> dict[str, Records]:
    """Reads several files.

    Args:
        files: ``"NAME=PATH"`` entries, as a list or as one text with commas between; ``NAME`` is in `READERS`.

    Returns:
        The records by name, in the order given.

    Raises:
        CorpusError: an entry without ``=``, a name that comes twice, or a file that cannot be read.
        ConfigError: an unknown name.

    Example:
        ``read_files("xstest=xstest_prompts.csv,gsm8k=test.jsonl")``
    """
    entries = files.split(",") if isinstance(files, str) else check_texts("files", files)
    found: dict[str, Records] = {}
    for entry in entries:
        if not entry.strip():
            continue
        name, mark, path = entry.strip().partition("=")
        if not mark or not path:
            raise CorpusError(f"files={entry!r}: expected NAME=PATH with a NAME of {', '.join(READERS)}.")
        if name in found:
            raise CorpusError(f"files names {name!r} twice: expected each data set once.")
        found[name] = read_file(name, path)
    return found
