"""Digests beside files: what was written is what is read, or it is said.

A file that can be made again has its SHA-256 in ``NAME.sha256`` beside it, as ``sha256sum`` writes it; the files that
ship with the package have theirs in ``SHA256SUMS`` of their folder. A process hashes a file once: it hashes again only
what the file system calls changed. Reading is bound by the hash at about a gigabyte a second.
"""

import logging
import pathlib
from collections.abc import Callable, Mapping

from edgesafe_jax.assets.cache import AssetError, digest_of, sha256_of, write_atomically
from edgesafe_jax.errors import storage_errors

SUMS = "SHA256SUMS"

_log = logging.getLogger(__name__)


def write_checked(path: str | pathlib.Path, write: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Writes a file atomically, with its SHA-256 in ``NAME.sha256`` beside it, as ``sha256sum`` writes it.

    Args:
      path: the file; missing parent directories are made.
      write: called with the path of a temporary file, which it has to create.

    Returns:
      The file.

    Raises:
      StorageError: the operating system refuses.

    Example:
      >>> import tempfile
      >>> file = write_checked(tempfile.mkdtemp() + "/margins.json", lambda part: part.write_text("[1, 2]"))
      >>> is_whole(file)
      True
    """
    path = pathlib.Path(path)

    def fill(part: pathlib.Path) -> None:
        write(part)
        line = f"{sha256_of(part)}  {path.name}\n"
        write_atomically(_beside(path), lambda file: file.write_text(line, encoding="utf-8"))

    with storage_errors(path):
        return write_atomically(path, fill)


def is_whole(path: str | pathlib.Path) -> bool:
    """Returns whether a file of `write_checked` is there with the bytes that were written.

    Args:
      path: the file. If it is there and damaged, or has no digest, a warning says that it is made again.
    """
    if damage := find_damage(pathlib.Path(path)):
        _log.warning("%s %s: it is made again", path, damage)
        return False
    return pathlib.Path(path).exists()


def find_damage(path: pathlib.Path) -> str:
    """Returns what is wrong with a file of `write_checked` that is there; empty for nothing."""
    with storage_errors(path):
        if not path.exists():
            return ""
        if not _beside(path).exists():
            return "has no digest beside it"
        stored = _beside(path).read_text(encoding="utf-8", errors="replace").split()
        return "" if stored[:1] == [digest_of(path)] else "is damaged (its bytes are not those that were written)"


def check_packaged(path: pathlib.Path) -> pathlib.Path:
    """Checks a file that ships with the package against ``SHA256SUMS`` of its folder.

    Args:
      path: the file.

    Returns:
      The file.

    Raises:
      AssetError: it is missing, or has other bytes.
    """
    sums = read_sums(path.with_name(SUMS))
    if path.name not in sums or not path.exists() or digest_of(path) != sums[path.name]:
        raise AssetError(
            f"{path} is missing, or has other bytes than those that ship with the package: install the package again."
        )
    return path


def read_sums(file: pathlib.Path) -> Mapping[str, str]:
    """Reads digests by name, as ``sha256sum`` writes them."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")
