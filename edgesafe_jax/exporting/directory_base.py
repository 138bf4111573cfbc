"""Hugging Face directories as a base: their settings are copied, their tensors read and written in their own dtypes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.flax

from edgesafe_jax.assets.models import SETTINGS_FILES
from edgesafe_jax.models.directories import weight_files


def copy_settings(source: Path, folder: Path) -> None:
    """Copies configuration and tokenizer of a Hugging Face directory."""
    for pattern in SETTINGS_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def read_tensors(source: Path) -> dict[str, Any]:
    """Reads all tensors of a Hugging Face directory in their own dtypes."""
    tensors: dict[str, Any] = {}
    for name, file in weight_files(source).items():
        with safetensors.safe_open(file, framework="flax") as handle:
            tensors[name] = handle.get_tensor(name)
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Writes the weights of a Hugging Face directory as one file."""
    safetensors.flax.save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
