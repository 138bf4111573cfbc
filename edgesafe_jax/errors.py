"""Errors that a user can mend, and the checks that raise them.

Every room derives its errors from `EdgesafeError`; launchers print the message of one and exit, without a traceback.
"""

import contextlib
import dataclasses
import difflib
import errno
import math
import numbers
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")


class EdgesafeError(Exception):
    """Base class of all errors whose message tells a user what was wrong, what was expected and what to do."""


class ConfigError(EdgesafeError, ValueError):
    """An invalid value of a setting or an argument."""


class StorageError(EdgesafeError, OSError):
    """The operating system refused to read or write a file: a full disk, no permission, a read-only file system."""


_DENIED = "permission denied. Give another path, or change the permissions"
_NO_FOLDER = "a part of this path is a file, where a folder is expected. Give another path"
_STORAGE_PROBLEMS: dict[int, str] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the file system or the user's limit allows",
    errno.EROFS: "the file system is read-only. Give another path",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EISDIR: "this is a folder, where a file is expected. Give the name of a file",
    errno.ENAMETOOLONG: "the name is too long. Give a shorter path",
    errno.EIO: "the disk reports an error. Check it, or use another one",
    errno.ESTALE: "the network file system lost the file. Start the same command again",
}
"""Cause and remedy by the error number of an operating-system error."""


def describe_storage_problem(error: BaseException, path: str | os.PathLike[str] | None = None) -> str | None:
    """Returns the message for an operating-system error that a user can mend.

    Args:
      error: an `OSError`, or an error of a storage library that carries the operating system's text.
      path: what was read or written, where the error itself does not name it.

    Returns:
      One line with the path, what is wrong and the way out; None for any other error.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number not in _STORAGE_PROBLEMS:
        known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
        number = next((number for number in known if os.strerror(number) in str(error)), None)
        if number is None:
            return None
    named = getattr(error, "filename", None) or path
    where = "a file" if named is None else os.fspath(named)
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    problem = _STORAGE_PROBLEMS[number]
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if named is not None and (free := _free_bytes(Path(where))) is not None:
            problem += f" ({free / 2**20:.1f} MiB free)"
        problem += ". Make room and start the same command again, or use another disk"
    return f"cannot use {where}: {problem}."


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns operating-system errors of a block, those inside a storage library included, into `StorageError`.

    Args:
      path: what the block reads or writes, for the message.

    Raises:
      StorageError: see `describe_storage_problem`; other errors pass unchanged.
    """
    try:
        yield
    except EdgesafeError:
        raise
    except Exception as error:
        if message := describe_storage_problem(error, path):
            raise StorageError(message) from error
        raise


def _free_bytes(path: Path) -> int | None:
    """Free space on the disk of a path that may not exist yet."""
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def lookup(table: Mapping[str, Value], name: object, what: str) -> Value:
    """Returns an entry of a registry.

    Args:
      table: the registry, from name to entry.
      name: the entry's name.
      what: the setting or argument that gave the name, for the message.

    Returns:
      The entry.

    Raises:
      ConfigError: there is no such entry; the message lists the known names and the closest match.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), table, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{what}={name!r}: expected one of {', '.join(sorted(table))}.{hint}")


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a number may take.

    Attributes:
      low: least value; None for no bound.
      high: largest value; None for no bound.
      above: whether `low` itself is excluded.
      below: whether `high` itself is excluded.
      integer: whether the number must be whole.
      also: further values that are allowed, such as -1 for all.
      expected: text of the message; default a description of the bounds.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    integer: bool = False
    also: tuple[float, ...] = ()
    expected: str = ""

    def __contains__(self, value: object) -> bool:
        """Whether a value is a number of the range."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer that no float is
            return False
        if number in self.also:
            return True
        if not math.isfinite(number) or (self.integer and not number.is_integer()):
            return False
        if self.low is not None and not (number > self.low if self.above else number >= self.low):
            return False
        return self.high is None or (number < self.high if self.below else number <= self.high)

    def describe(self) -> str:
        """The text of the message: what was expected."""
        if self.expected:
            return self.expected
        low, high = (f"{bound:g}" if bound is not None else "" for bound in (self.low, self.high))
        if low and high:
            text = f"inside ({low}, {high})" if self.above and self.below else f"{low} to {high}"
            if self.above != self.below:
                text += f", {low if self.above else high} excluded"
        elif low:
            text = (
                f"above {low}" if self.above else f"at least {low}" if self.integer and self.low else f"{low} or more"
            )
        elif high:
            text = f"below {high}" if self.below else f"at most {high}"
        else:
            text = "a whole number" if self.integer else "a finite number"
        return text + "".join(f", or {extra:g}" for extra in self.also)


_LARGEST_INTEGER = 2**31 - 1  # that every array of indices and every random generator takes
_LARGEST = 1e9  # beyond it a rate, a weight or a temperature is a slip
POSITIVE_COUNT = Range(1, _LARGEST_INTEGER, integer=True, expected="at least 1, and less than 2**31")
COUNT = Range(0, _LARGEST_INTEGER, integer=True, expected="0 or more, and less than 2**31")
COUNT_OR_ALL = Range(
    1, _LARGEST_INTEGER, integer=True, also=(-1,), expected="a positive number (less than 2**31), or -1 for all"
)
SEED = Range(0, _LARGEST_INTEGER, integer=True, expected="a whole number, 0 or more and less than 2**31")
POSITIVE = Range(0, _LARGEST, above=True, expected="above 0, and at most 1e9")
NON_NEGATIVE = Range(0, _LARGEST, expected="0 or more, and at most 1e9")
FRACTION = Range(0, 1)
PROBABILITY = Range(0, 1, above=True, below=True)


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "config.") -> None:
    """Checks the numbers of a nested mapping against declared ranges.

    Args:
      values: the settings; nested mappings are reached by dotted names.
      ranges: from dotted name to the range; for a sequence each element must lie in it. A setting that is None passes.
      prefix: what stands in front of the names in messages.

    Raises:
      ConfigError: a value is missing or outside its range; the message names it and says what was expected.
    """
    for name, allowed in ranges.items():
        value: Any = values
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ConfigError(f"{prefix}{name} is missing: expected {allowed.describe()}.")
            value = value[part]
        members = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if any(member is not None and member not in allowed for member in members):
            raise ConfigError(f"{prefix}{name}={value}: expected {allowed.describe()}.")


def check_counts(**values: object) -> None:
    """Checks arguments that count something, such as `batch_size`.

    Raises:
      ConfigError: one of them is not a whole number of at least 1.
    """
    for name, value in values.items():
        if value not in POSITIVE_COUNT:
            raise ConfigError(f"{name}={value!r}: expected at least 1.")


def check_texts(name: str, texts: Iterable[str]) -> list[str]:
    """Returns texts as a list.

    Args:
      name: of the argument.
      texts: the texts.

    Raises:
      ConfigError: one string where several are expected, or something that is not text.
    """
    if isinstance(texts, str | bytes):
        raise ConfigError(f"{name}={shortened(texts)!r} is one string: expected a list of strings.")
    if not isinstance(texts, Iterable):
        raise ConfigError(f"{name} is a {type(texts).__name__}: expected a list of strings.")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise ConfigError(f"{name}[{number}] is a {type(text).__name__}: expected a string.")
    return found


def shortened(text: Any, longest: int = 60) -> str:
    """Returns the beginning of a text, for a message."""
    text = str(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
