"""The cache of converted GGUF weights: read again when they are whole, and done without where it cannot be written."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from edgesafe_jax import assets
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.tensors import flatten, unflatten
from edgesafe_jax.models.tokenization import ChatTokenizer

_FORMAT = "5"  # of the cache; raise it when the layout or the reading of the tokenizer changes
_CHUNK = 1 << 20  # bytes of which one sum is kept

_log = logging.getLogger(__name__)


def load_gguf(path: Path) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer, str]:
    """Loads the converted copy of a GGUF file, converting it first when there is none.

    Args:
      path: the `.gguf` file.

    Returns:
      Config, float32 parameters, tokenizer, and the sha256 of the file.

    Raises:
      LoadingError: see `read_gguf`.
    """
    digest = hash_gguf(path)
    folder = assets.cache_dir() / "converted" / f"{digest[:24]}-v{_FORMAT}"
    try:
        return (*_read(folder), digest)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever is wrong with the copy, the original is there
        _log.warning("Converting %s again: its cached copy is damaged (%s).", path, error)
    config, params, tokenizer = read_gguf(path)
    try:
        _write(folder, config, params, tokenizer)
    except OSError as error:
        _log.warning(
            "The converted weights of %s are not kept (%s): every load converts them again. Set %s to a folder that "
            "can be written.",
            path,
            error,
            assets.CACHE_VARIABLE,
        )
    return config, params, tokenizer, digest


def hash_gguf(path: Path) -> str:
    """Returns the hash to which adapters of a GGUF file are bound: the sha256 of its sha256."""
    with path.open("rb") as file:
        return hashlib.sha256(hashlib.file_digest(file, "sha256").digest()).hexdigest()


def _read(folder: Path) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer]:
    weights = folder / "weights.safetensors"
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if weights.stat().st_size != about["bytes"]:
        raise ValueError(f"{weights.stat().st_size} bytes instead of {about['bytes']}")
    if checksum(weights) != about["checksum"]:
        raise ValueError("other bytes than were written")
    tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer"].pop("json"))
    params = unflatten(safetensors.numpy.load_file(weights))
    config: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in about["config"].items()
    }
    return DecoderConfig(**config), params, ChatTokenizer(tokenizer, **about["tokenizer"])


def _write(folder: Path, config: DecoderConfig, params: dict[str, Any], tokenizer: ChatTokenizer) -> None:
    weights = folder / "weights.safetensors"
    flat = {name: np.ascontiguousarray(leaf) for name, leaf in flatten(params)}
    assets.write_atomically(weights, lambda part: safetensors.numpy.save_file(flat, part))
    about = {
        "config": dataclasses.asdict(config),
        "bytes": weights.stat().st_size,
        "checksum": checksum(weights),
        "tokenizer": {
            "json": tokenizer.to_json(),
            "chat_template": tokenizer.chat_template,
            "eos_ids": tokenizer.eos_ids,
            "pad_id": tokenizer.pad_id,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
        },
    }
    text = json.dumps(about)
    assets.write_atomically(folder / "model.json", lambda part: part.write_text(text, encoding="utf-8"))


def checksum(path: Path) -> str:
    """Returns a digest of a file that is read at the speed of memory.

    The sha256 of the sums of 64-bit words of each mebibyte: it notices damage, not forgery.
    """
    whole = np.memmap(path, np.uint8, "r")
    num = whole.size // _CHUNK * _CHUNK
    sums = whole[:num].view(np.uint64).reshape(-1, _CHUNK // 8).sum(axis=1, dtype=np.uint64)
    return hashlib.sha256(sums.tobytes() + whole[num:].tobytes()).hexdigest()
