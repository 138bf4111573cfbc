"""The declaration of an export format, and what all formats share: checks, whole directories, model cards."""

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesafe_jax.assets import AssetError, ModelSource, resolve_model
from edgesafe_jax.errors import EdgesafeError, StorageError, storage_errors
from edgesafe_jax.models.converted import hash_gguf
from edgesafe_jax.models.directories import hash_weights
from edgesafe_jax.models.loading import LanguageModel


class ExportError(EdgesafeError, ValueError):
    """An adapter, a base model or a target that an export format cannot take."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format in which an adapter leaves this library.

    Attributes:
      carries: kinds of adapters (names of `adapters.ADAPTERS`) that it can hold, and compositions such as
        `soft_prompt+lora` in any order.
      write: `write(adapter, model, folder)` fills an existing empty folder. It raises `ExportError` before it writes
        anything where this adapter or this base model has no place in the format. It returns what the model card says
        of the files beside their names and sizes, by title.
      usage: how the result is run, in Markdown; `{path}` stands for the directory.
      composes: whether it can hold any composition of the kinds that it carries.
    """

    carries: tuple[str, ...]
    write: Callable[[Any, LanguageModel, Path], Mapping[str, str]]
    usage: str
    composes: bool = False

    def holds(self, kind: str) -> bool:
        """Whether it can hold an adapter of a kind, or a composition whose kinds are joined by `+`."""
        parts = sorted(kind.split("+"))
        whole = any(parts == sorted(known.split("+")) for known in self.carries)
        return whole or (self.composes and set(parts) <= set(self.carries))


def base_files(model: LanguageModel) -> ModelSource:
    """Finds the files from which a model was loaded.

    Args:
      model: as `load_model` returned it; its name says where it came from.

    Returns:
      The GGUF file or the Hugging Face directory.

    Raises:
      ExportError: they are not there, or hold other weights than the model.
    """
    try:
        source = resolve_model(model.name)
    except AssetError as error:
        raise ExportError(f"The files of the base model are needed, and they are not found: {error}") from error
    path = Path(source.path)
    actual = hash_gguf(path) if source.kind == "gguf" else hash_weights(path)
    if actual != model.hash:
        raise ExportError(
            f"{path} holds another base model (hash {actual}) than the adapter's (hash {model.hash}): give the file "
            "from which the model was loaded."
        )
    return source


def check_target(path: str | Path) -> Path:
    """Returns the absolute path of a directory that is to be made.

    Raises:
      ExportError: something has that name already, or there is no folder to put it into.
    """
    path = Path(path).absolute()
    if os.path.lexists(path):
        raise ExportError(f"{path} exists and would be overwritten: give another name, or remove it first.")
    if not path.parent.is_dir():
        raise ExportError(f"{path.parent} is no directory: expected the name of a new one inside an existing one.")
    return path


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Makes a directory that is there as a whole or not at all.

    Args:
      path: the directory; it must not exist, its parent must.

    Yields:
      A temporary sibling to write into, which takes the name `path` when the block ends without an error.

    Raises:
      ExportError: see `check_target`.
      StorageError: it cannot be written.
    """
    path = check_target(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        scratch.mkdir()
        try:
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)  # some libraries write files that only their owner can read
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            try:
                os.rename(scratch, path)
            except FileExistsError as error:  # another process was faster
                raise StorageError(f"{path} was made by somebody else meanwhile: give another name.") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
