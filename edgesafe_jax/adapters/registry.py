"""The table of adapter kinds, and what works for all of them: make, store, read.

A stored adapter is `NAME.safetensors` with a sidecar `NAME.json`, which says what kind it is and which model it is for.
To add a kind, write one file that ends in an `AdapterKind` and add a line to `ADAPTERS`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax.adapters.kind import AdapterError, AdapterKind, StoredAdapter, fill
from edgesafe_jax.adapters.lora import LORA
from edgesafe_jax.adapters.peft_directories import read_peft
from edgesafe_jax.adapters.soft_prompt import SOFT_PROMPT
from edgesafe_jax.assets import write_atomically
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, PRNGKey

ADAPTERS: dict[str, AdapterKind] = {
    "soft_prompt": SOFT_PROMPT,
    "lora": LORA,
}
"""Adapter kinds by the name that configs and sidecars give them."""

_BOUND = ("base_model", "base_model_hash", "tokenizer_hash", "training")


def make_adapter(key: PRNGKey, kind: str, model: LanguageModel, **options: Any) -> Adapter:
    """Makes an adapter to train.

    Args:
      key: random key.
      kind: of `ADAPTERS`.
      model: the frozen model that it is for.
      **options: of the kind, see `ADAPTERS[kind].options`: for `"soft_prompt"` those of `init_soft_prompt`, for
        `"lora"` those of `init_lora`.

    Returns:
      The adapter.

    Raises:
      ConfigError: an unknown kind, an unknown or missing option, or a value that is not allowed.

    Example:
      The two kinds of the library::

        make_adapter(key, "soft_prompt", model, init="text", text="Answer helpfully.", num_virtual=8)
        make_adapter(key, "lora", model, rank=8, targets=("attention/query", "mlp/down"))
    """
    entry = lookup(ADAPTERS, kind, "kind")
    return entry.init(key, model, **fill(entry.options, options, f"{kind} option"))


def save_adapter(
    path: str | Path, adapter: Adapter, model: LanguageModel, *, training: Mapping[str, Any] | None = None
) -> None:
    """Stores an adapter of any registered kind as `NAME.safetensors` with a sidecar `NAME.json`.

    Args:
      path: the `.safetensors` file.
      adapter: the adapter; stored in float32.
      model: the base model it was trained on.
      training: JSON-able config of its training.

    Raises:
      AdapterError: an adapter of no registered kind, one that does not fit the model, a number that is not finite, or
        another suffix of the file.
    """
    path = Path(path)
    stored = stored_form(adapter)
    arrays = dict(stored.arrays)
    _check(path, stored.kind, arrays, stored.fields, model)
    bound = (model.name, model.hash, model.tokenizer.hash, dict(training or {}))
    about = {"kind": stored.kind, **stored.fields, **dict(zip(_BOUND, bound, strict=True))}
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda part: safetensors.numpy.save_file(arrays, part))
    write_atomically(_sidecar(path), lambda part: part.write_text(text, encoding="utf-8"))


def stored_form(adapter: Adapter) -> StoredAdapter:
    """Returns the kind of an adapter, its arrays in float32 and its static fields.

    Raises:
      AdapterError: an adapter of no registered kind.
    """
    for kind, entry in ADAPTERS.items():
        if type(adapter) is entry.type:
            leaves, fields = entry.to_arrays(adapter)
            return StoredAdapter(kind, {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}, fields)
    raise AdapterError(
        f"A {type(adapter).__name__} cannot be stored: expected an adapter of a kind in ADAPTERS, which are "
        f"{', '.join(sorted(ADAPTERS))}."
    )


def load_adapter(path: str | Path, model: LanguageModel, *, kind: str | None = None) -> Adapter:
    """Reads an adapter of any registered kind for a model.

    Args:
      path: the `.safetensors` file, with its sidecar beside it; or a directory that PEFT stored.
      model: the base model it is to be attached to.
      kind: the kind that is expected; None for any.

    Returns:
      The adapter, of the class that the sidecar's kind names.

    Raises:
      AdapterError: a missing or damaged file, an unregistered kind or another than `kind`, a sidecar with missing,
        unknown or meaningless fields, arrays of other names, shapes or dtypes than the kind and the model call for,
        numbers that are not finite, or another base model or tokenizer; the message gives both hashes.
    """
    path = Path(path)
    if path.is_dir():
        return _load_peft(path, model, kind)
    sidecar = _sidecar(path)
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise TypeError(f"{sidecar.name} is no JSON object")
        arrays = safetensors.numpy.load_file(path)
    except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"{path} is not a readable adapter ({type(error).__name__}: {error}); it needs {sidecar.name} beside it."
        ) from error
    found = about.pop("kind", None)
    if not isinstance(found, str) or found not in ADAPTERS:
        raise AdapterError(f"{path} is a {found!r}; expected one of {', '.join(sorted(ADAPTERS))}.")
    if kind not in (None, found):
        raise AdapterError(f"{path} is a {found!r}; expected a {kind!r}.")
    if absent := sorted(set(_BOUND) - set(about)):
        raise AdapterError(f"{sidecar} has no {', '.join(absent)}: expected the sidecar that save_adapter writes.")
    bound = {name: about.pop(name) for name in _BOUND}
    _check_base(path, bound, model)
    fields = _check(path, found, arrays, about, model)
    return ADAPTERS[found].from_arrays(arrays, fields)


def _load_peft(path: Path, model: LanguageModel, kind: str | None) -> Adapter:
    stored, metadata = read_peft(path, model.config)
    if kind not in (None, stored.kind):
        raise AdapterError(f"{path} is a {stored.kind!r}; expected a {kind!r}.")
    _check_base(path, metadata, model)
    return ADAPTERS[stored.kind].from_arrays(
        stored.arrays, _check(path, stored.kind, stored.arrays, stored.fields, model)
    )


def _check_base(path: Path, bound: Mapping[str, Any], model: LanguageModel) -> None:
    """Checks the hashes of base model and tokenizer that are given."""
    for what, name, actual in (
        ("base model", "base_model_hash", model.hash),
        ("tokenizer", "tokenizer_hash", model.tokenizer.hash),
    ):
        if bound.get(name, actual) != actual:
            raise AdapterError(
                f"{path} was trained on the {what} with hash {bound[name]}; {model.name} has {actual}. Load that "
                "model, or train an adapter for this one."
            )


def _sidecar(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path}: expected the name of a .safetensors file.")
    return path.with_suffix(".json")


def _check(
    path: Path, kind: str, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any], model: LanguageModel
) -> dict[str, Any]:
    """Checks the contents of a file against what its kind and the model call for; returns all static fields."""
    entry = ADAPTERS[kind]
    try:
        filled = fill(entry.fields, fields, "sidecar field")
        expected = entry.shapes(model, arrays, filled)
    except (AdapterError, ConfigError) as error:
        raise AdapterError(f"{path} is not a {kind} for {model.name}: {error}") from error
    if arrays.keys() != expected.keys():
        raise AdapterError(
            f"{path} holds the arrays {sorted(arrays)}: expected {sorted(expected)} for a {kind} of {model.name}."
        )
    for name, shape in expected.items():
        value = arrays[name]
        if value.shape != shape or value.dtype != np.float32:
            raise AdapterError(
                f"{path} has {name} of shape {list(value.shape)} and dtype {value.dtype}; expected {list(shape)} and "
                f"float32 for a {kind} of {model.name}."
            )
        if not np.all(np.isfinite(value)):
            raise AdapterError(
                f"{path}: {name} has numbers that are not finite: the training of this {kind} diverged; train it "
                "again, or take an earlier checkpoint."
            )
    return filled
