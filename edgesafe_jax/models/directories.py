"""Reading a model from a Hugging Face directory: its settings by transformers, its tensors from safetensors."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import FAMILIES, Family, LoadingError
from edgesafe_jax.models.families.settings import check_plausible, check_sizes
from edgesafe_jax.models.files import read_json, sensible
from edgesafe_jax.models.templates import TokenizerError
from edgesafe_jax.models.tensors import TensorReader, read_params
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.models.tokenizer_files import tokenizer_from_directory

_log = logging.getLogger(__name__)


def read_directory(
    path: Path, *, max_context: int | None = None
) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer, str]:
    """Reads a Hugging Face directory.

    Args:
      path: directory with `config.json`, safetensors weights and a tokenizer.
      max_context: see `load_model`.

    Returns:
      Config, parameters, tokenizer, and the hash of the weights, see `hash_weights`.

    Raises:
      LoadingError: a damaged file, an unsupported model, or a wrong set of tensors.
    """
    settings = read_settings(path) | {"max_context": max_context}
    family = family_of(settings)
    with sensible(path / "config.json", LoadingError):
        config = config_from_hf(settings)
    digest = hash_weights(path)
    reader = _of_whole_model(safetensors_reader(path), family)
    config = _with_its_head(config, family, reader)
    params = read_params(family, config, _transformed(reader, family, config))
    with sensible(path, TokenizerError):
        return config, params, tokenizer_from_directory(path), digest


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the `config.json` of a directory, with the defaults that transformers has for its model type.

    Raises:
      LoadingError: the file is damaged or incomplete, or its model type is not supported.
    """
    file = path / "config.json"
    settings = read_json(file, LoadingError)
    check_sizes(settings, family_of(settings).sizes)
    check_plausible(settings)
    if quantised := settings.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise LoadingError(
            f"{path} is quantised ({method}), which is not supported: load the directory of its float weights, or a "
            "GGUF file."
        )
    import transformers  # not at import time: it takes seconds

    try:
        # Nothing of the directory is run: an own class (auto_map) is not asked for.
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library checks the fields with errors of many kinds
        raise LoadingError(f"{file} cannot be read ({type(error).__name__}: {error}).") from error
    return config.to_dict()


def family_of(settings: Mapping[str, Any]) -> Family:
    """Returns the family that a `config.json` names.

    Raises:
      LoadingError: it is not a supported one; the message lists those.
    """
    try:
        return lookup(FAMILIES, settings.get("model_type"), "model_type")
    except ConfigError as error:
        raise LoadingError(f"{error} A new family is one file of edgesafe_jax.models.families.") from None


def config_from_hf(settings: Mapping[str, Any]) -> DecoderConfig:
    """Reads the sizes from the contents of a Hugging Face `config.json`.

    Raises:
      LoadingError: a model type or an option that this decoder does not implement, or a size that is not given.
    """
    return family_of(settings).read_config(settings)


def weight_files(path: Path) -> dict[str, Path]:
    """Finds the tensors of a directory: those of the files that its index names, or of its only file.

    Args:
      path: the directory; what else lies in it, such as adapters or shards of another save, is not read.

    Returns:
      From the name of each tensor to its file.

    Raises:
      LoadingError: a file is damaged or missing, or there is no telling which of several are the model's.
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        named = read_json(index, LoadingError).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise LoadingError(f"{index} has no weight_map; copy or download it again.")
        files = {path / shard for shard in named.values()}
    else:
        named = None
        found = sorted(path.glob("*.safetensors"))
        files = {path / "model.safetensors"} if path / "model.safetensors" in found else set(found)
        if len(files) != 1:
            raise LoadingError(
                f"{path} has {len(found)} safetensors files and no {index.name}: expected the index, or one file named "
                "model.safetensors."
            )
    tensors: dict[str, Path] = {}
    for file in sorted(files):
        try:
            with safetensors.safe_open(file, framework="numpy") as handle:
                inside = list(handle.keys())
        except FileNotFoundError as error:
            raise LoadingError(f"{index} names {file.name}, which is not there; download it.") from error
        except safetensors.SafetensorError as error:
            raise LoadingError(f"{file} is damaged ({error}); copy or download it again.") from error
        tensors |= {name: file for name in inside if named is None or named.get(name, file.name) == file.name}
    return tensors


def safetensors_reader(path: Path) -> TensorReader:
    """Opens the weights of a directory, see `weight_files`.

    Raises:
      LoadingError: a file is damaged or missing, or a tensor is not of floating-point numbers.
    """
    files = weight_files(path)

    def read(name: str) -> np.ndarray:
        # The flax framework of safetensors reads bfloat16, the numpy one does not.
        with safetensors.safe_open(files[name], framework="flax") as handle:
            return np.asarray(handle.get_tensor(name))

    return TensorReader(frozenset(files), read, str(path))


_FLOATS = ("F64", "F32", "F16", "BF16")


def hash_weights(path: Path) -> str:
    """Returns the sha256 of the names, shapes, dtypes and bytes of a directory's tensors.

    It does not depend on how they are split into files.

    Raises:
      LoadingError: see `weight_files`; or a tensor is not of floating-point numbers.
    """
    tensors = weight_files(path)
    headers = {file: _header(file) for file in set(tensors.values())}
    digest = hashlib.sha256()
    for name, file in sorted(tensors.items()):
        start, header = headers[file]
        about = header[name]
        if about["dtype"] not in _FLOATS and not name.endswith("inv_freq"):
            raise LoadingError(
                f"{file}: tensor {name!r} is of type {about['dtype']}; expected one of {', '.join(_FLOATS)}. Load a "
                "copy that is not quantised, or a GGUF file."
            )
        digest.update(json.dumps([name, about["dtype"], about["shape"]]).encode())
        begin, end = about["data_offsets"]
        if end > begin:
            digest.update(memoryview(np.memmap(file, np.uint8, "r", start + begin, (end - begin,))))  # type: ignore[arg-type]
    return digest.hexdigest()


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begin, and what its header says of each tensor."""
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        return 8 + size, json.loads(handle.read(size))


def _of_whole_model(reader: TensorReader, family: Family) -> TensorReader:
    """The tensors under the names of a whole language model, where a directory holds its body alone."""
    body = family.layers.split(".")[0] + "."
    if any(name.startswith(body) for name in reader.names):
        return reader
    names = {name if name == "lm_head.weight" else body + name: name for name in reader.names}
    return TensorReader(frozenset(names), lambda name: reader.read(names[name]), reader.where)


def _read(reader: TensorReader, name: str) -> np.ndarray:
    """A tensor of a directory, where none is quantised."""
    found = reader.read(name)
    assert isinstance(found, np.ndarray)
    return found


def _transformed(reader: TensorReader, family: Family, config: DecoderConfig) -> TensorReader:
    return dataclasses.replace(reader, read=lambda name: family.transform(config, name, _read(reader, name)))


def _with_its_head(config: DecoderConfig, family: Family, reader: TensorReader) -> DecoderConfig:
    """Decides by the weights whether the output head is the embedding table; says so where the config is wrong."""
    embedding, head = family.embedding, "lm_head.weight"
    if not config.tie_embeddings:
        if head in reader.names or embedding not in reader.names:
            return config
        _log.warning(
            "%s has no %s: the embedding table is the output head, though config.json unties them.", reader.where, head
        )
        return dataclasses.replace(config, tie_embeddings=True)
    if head not in reader.names or np.array_equal(_read(reader, head), _read(reader, embedding)):
        return config
    _log.warning(
        "%s has a %s of its own, which is the output head, though config.json ties it to the embedding table.",
        reader.where,
        head,
    )
    return dataclasses.replace(config, tie_embeddings=False)
