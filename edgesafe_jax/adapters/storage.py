"""Adapters on disk: safetensors with a sidecar that says what they belong to."""

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax.adapters.lora import LoRA
from edgesafe_jax.adapters.soft_prompt import SoftPrompt
from edgesafe_jax.assets import write_atomically
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models.loading import LanguageModel

PLACEMENT = "before_chat_template"
"""Where a soft prompt's vectors stand: in front of everything that the chat template renders."""


class AdapterError(EdgesafeError, ValueError):
    """A stored adapter that is damaged or belongs to another model."""


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _check_model(path: Path, about: Mapping[str, Any], model: LanguageModel) -> None:
    for what, stored, actual in (
        ("base model", about.get("base_model_hash"), model.hash),
        ("tokenizer", about.get("tokenizer_hash"), model.tokenizer.hash),
    ):
        if stored != actual:
            raise AdapterError(
                f"{path} was trained on the {what} with hash {stored}; {model.name} has {actual}. Load that model, or "
                "train an adapter for this one."
            )


def _write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], model: LanguageModel) -> None:
    """Writes finite arrays and the sidecar that binds them to a model."""
    if not all(np.all(np.isfinite(value)) for value in arrays.values()):
        raise AdapterError(f"The {about['kind']} has numbers that are not finite: its training diverged.")
    bound = {"base_model": model.name, "base_model_hash": model.hash, "tokenizer_hash": model.tokenizer.hash}
    write_atomically(path, lambda part: safetensors.numpy.save_file(dict(arrays), part))
    text = json.dumps({**about, **bound}, indent=2, sort_keys=True) + "\n"
    write_atomically(_sidecar(path), lambda part: part.write_text(text, encoding="utf-8"))


def save_lora(path: str | Path, lora: LoRA, model: LanguageModel, *, training: Mapping[str, Any] | None = None) -> None:
    """Stores a LoRA as `NAME.safetensors` with a sidecar `NAME.json`.

    Args:
      path: the `.safetensors` file.
      lora: the LoRA; stored in float32.
      model: the base model it was trained on.
      training: JSON-able config of its training.

    Raises:
      AdapterError: a number is not finite.
    """
    arrays = {
        f"{target}/{name}": np.asarray(leaf, np.float32)
        for name, part in (("down", lora.down), ("up", lora.up))
        for target, leaf in part.items()
    }
    about = {"kind": "lora", "scale": lora.scale, "first_layer": lora.first_layer, "training": dict(training or {})}
    _write(Path(path), arrays, about, model)


def load_lora(path: str | Path, model: LanguageModel) -> LoRA:
    """Reads a LoRA for a model.

    Args:
      path: the `.safetensors` file, with its sidecar beside it.
      model: the base model it is to be attached to.

    Returns:
      The LoRA.

    Raises:
      AdapterError: a missing or damaged file, another kind of adapter, or another base model or tokenizer; the message
        gives both hashes.
    """
    path = Path(path)
    try:
        about = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(path)
        kind, scale, first_layer = about["kind"], float(about.get("scale", np.nan)), int(about.get("first_layer", 0))
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"{path} is not a readable LoRA ({type(error).__name__}: {error}); it needs {_sidecar(path).name} "
            "beside it."
        ) from error
    if kind != "lora":
        raise AdapterError(f"{path} is a {kind!r}; expected a 'lora'.")
    _check_model(path, about, model)
    parts: dict[str, dict[str, Any]] = {"down": {}, "up": {}}
    for name, value in arrays.items():
        target, _, part = name.rpartition("/")
        parts.get(part, {})[target] = jnp.asarray(value)
    if not parts["down"] or parts["down"].keys() != parts["up"].keys():
        raise AdapterError(f"{path} holds factors {sorted(arrays)}: expected a down and an up for each matrix.")
    return LoRA(parts["down"], parts["up"], scale=scale, first_layer=first_layer)


def save_soft_prompt(
    path: str | Path, prompt: SoftPrompt, model: LanguageModel, *, training: Mapping[str, Any] | None = None
) -> None:
    """Stores a soft prompt as `NAME.safetensors` with a sidecar `NAME.json`.

    Args:
      path: the `.safetensors` file.
      prompt: the soft prompt.
      model: the base model it was trained on.
      training: JSON-able config of its training.

    Raises:
      AdapterError: an embedding is not finite.
    """
    path = Path(path)
    embeddings = np.asarray(prompt.embeddings, np.float32)
    about = {
        "kind": "soft_prompt",
        "num_virtual": prompt.num_virtual,
        "placement": PLACEMENT,
        "training": dict(training or {}),
    }
    _write(path, {"embeddings": embeddings}, about, model)


def load_soft_prompt(path: str | Path, model: LanguageModel) -> SoftPrompt:
    """Reads a soft prompt for a model.

    Args:
      path: the `.safetensors` file, with its sidecar beside it.
      model: the base model it is to be attached to.

    Returns:
      The soft prompt.

    Raises:
      AdapterError: a missing or damaged file, another placement, or another base model or tokenizer; the message gives
        both hashes.
    """
    path = Path(path)
    try:
        about = json.loads(_sidecar(path).read_text(encoding="utf-8"))
        embeddings = safetensors.numpy.load_file(path)["embeddings"]
        expected = (int(about["num_virtual"]), model.config.embed_dim)
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"{path} is not a readable soft prompt ({type(error).__name__}: {error}); it needs {_sidecar(path).name} "
            "beside it."
        ) from error
    if about.get("kind") != "soft_prompt" or about.get("placement") != PLACEMENT:
        raise AdapterError(
            f"{path} is a {about.get('kind')!r} placed {about.get('placement')!r}; expected a 'soft_prompt' placed "
            f"{PLACEMENT!r}."
        )
    _check_model(path, about, model)
    if embeddings.shape != expected:
        raise AdapterError(f"{path} has embeddings of shape {embeddings.shape}; expected {list(expected)}.")
    if not np.all(np.isfinite(embeddings)):
        raise AdapterError(f"{path} has embeddings that are not finite; train it again or take an earlier checkpoint.")
    return SoftPrompt(jnp.asarray(embeddings))


def packaged_soft_prompt() -> Path:
    """Returns the path of the soft prompt that ships with the package, for `load_soft_prompt`.

    It belongs to SmolLM2-135M-Instruct and is what configs/align_soft_prompt.py trains; its figures are there.
    """
    return Path(str(importlib.resources.files("edgesafe_jax.adapters") / "data" / "smollm2_soft_prompt.safetensors"))
