"""Reading a model from a Hugging Face directory: its settings by transformers, its tensors from safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families import FAMILIES, Family, LoadingError
from edgesafe_jax.models.families.family import check_sizes
from edgesafe_jax.models.files import read_json
from edgesafe_jax.models.tensors import TensorReader, read_params
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.models.tokenizer_files import tokenizer_from_directory


def read_directory(path: Path) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer]:
    """Reads a Hugging Face directory.

    Args:
      path: directory with `config.json`, safetensors weights and a tokenizer.

    Returns:
      Config, parameters and tokenizer.

    Raises:
      LoadingError: a damaged file, an unsupported model, or a wrong set of tensors.
    """
    settings = read_settings(path)
    config = config_from_hf(settings)
    params = read_params(family_of(settings), config, safetensors_reader(path))
    return config, params, tokenizer_from_directory(path)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the `config.json` of a directory, with the defaults that transformers has for its model type.

    Raises:
      LoadingError: the file is damaged or incomplete, or its model type is not supported.
    """
    file = path / "config.json"
    settings = read_json(file, LoadingError)
    family_of(settings)
    check_sizes(settings)
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


def safetensors_reader(path: Path) -> TensorReader:
    """Opens the safetensors files of a directory.

    Raises:
      LoadingError: one of them is damaged.
    """
    files: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, framework="numpy") as handle:
                files |= dict.fromkeys(handle.keys(), file)
        except safetensors.SafetensorError as error:
            raise LoadingError(f"{file} is damaged ({error}); copy or download it again.") from error

    def read(name: str) -> np.ndarray:
        # The flax framework of safetensors reads bfloat16, the numpy one does not.
        with safetensors.safe_open(files[name], framework="flax") as handle:
            return np.asarray(handle.get_tensor(name))

    return TensorReader(frozenset(files), read, str(path))
