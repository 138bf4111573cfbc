"""Reading the files of a model, which may be damaged or made to do harm."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgesafe_jax.errors import ConfigError, EdgesafeError, shortened

MAX_JSON_BYTES = 200_000_000
"""Of a JSON file that is read; the index of a model of a thousand files has some megabytes."""


class MissingFileError(EdgesafeError, FileNotFoundError):
    """A file of a model that is not there."""


def read_json(path: Path, error: type[EdgesafeError]) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      error: class of the error that is raised.

    Returns:
      The object; empty where there is no such file.

    Raises:
      EdgesafeError: of the given class; the file is truncated, too large, nested too deeply or holds something else.
        The message names it.
    """
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as cause:
        raise error(f"{path} is nested too deeply to be read; copy or download it again.") from cause
    except (OSError, ValueError) as cause:
        raise error(f"{path} is damaged ({cause}); copy or download it again.") from cause
    if not isinstance(found, dict):
        raise error(f"{path} holds a {type(found).__name__}; expected a JSON object. Copy or download it again.")
    return found


@contextlib.contextmanager
def sensible(where: str | Path, error: type[EdgesafeError]) -> Iterator[None]:
    """Turns whatever fails while a model's file is interpreted into one error that names the file.

    Args:
      where: the file.
      error: class of the error that is raised.

    Raises:
      EdgesafeError: of the given class for anything that a file can cause, panics of the tokenizers library included;
        other errors of this library keep their class.
    """
    try:
        yield
    except ConfigError as found:
        # What the caller asked for, `max_context`, is not the file's fault.
        if str(found).startswith("max_context"):
            raise
        raise error(f"{where}: {found}") from found
    except EdgesafeError as found:
        if str(where) in str(found) or not isinstance(found, error):
            raise
        raise type(found)(f"{where}: {found}") from found
    except MemoryError as found:
        raise error(f"{where} needs more memory than there is.") from found
    except BaseException as found:
        if is_failure(found):
            raise error(
                f"{where} makes no sense ({type(found).__name__}: {shortened(found, 300)}): it is damaged, or made for "
                "another program. Copy or download it again."
            ) from found
        raise


def is_failure(error: BaseException) -> bool:
    """Whether something failed: an `Exception`, or a panic of a library in Rust, which is none; not an interrupt."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
