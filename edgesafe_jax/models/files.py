"""Reading the small files of a model's directory."""

import json
from pathlib import Path
from typing import Any

from edgesafe_jax.errors import EdgesafeError


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
      EdgesafeError: of the given class; the file is truncated or holds something else. The message names it.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise error(f"{path} is damaged ({cause}); copy or download it again.") from cause
    if not isinstance(found, dict):
        raise error(f"{path} holds a {type(found).__name__}; expected a JSON object. Copy or download it again.")
    return found
