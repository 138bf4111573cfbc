"""The table of adapter kinds, and what works for all of them: make, store, read.

A stored adapter is `NAME.safetensors` with a sidecar `NAME.json`, which says what kind it is and which model it is for.
To add a kind, write one file that ends in an `AdapterKind` and add a line to `ADAPTERS`. A composition of adapters has
the names of its kinds joined by `+`, such as "soft_prompt+lora".
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax.adapters.composition import Composition, compose
from edgesafe_jax.adapters.gate import GATE
from edgesafe_jax.adapters.kind import AdapterError, AdapterKind, Examples, StoredAdapter, fill
from edgesafe_jax.adapters.lora import LORA
from edgesafe_jax.adapters.peft_directories import read_peft
from edgesafe_jax.adapters.prefix import PREFIX
from edgesafe_jax.adapters.soft_prompt import SOFT_PROMPT
from edgesafe_jax.adapters.steering import STEERING
from edgesafe_jax.assets import write_atomically
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.templates import TokenizerError
from edgesafe_jax.typing import Adapter, PRNGKey

ADAPTERS: dict[str, AdapterKind] = {
    "soft_prompt": SOFT_PROMPT,
    "prefix": PREFIX,
    "lora": LORA,
    "steering": STEERING,
    "gate": GATE,
}
"""Adapter kinds by the name that configs and sidecars give them."""

_BOUND = ("base_model", "base_model_hash", "tokenizer_hash", "training")


def kinds_of(kind: str, what: str = "kind") -> tuple[str, ...]:
    """Returns the registered kinds of which a name is made, one or several joined by `+`.

    Args:
      kind: the name.
      what: what it is called in messages.

    Raises:
      ConfigError: an unknown kind, or one that is named twice.
    """
    names = tuple(kind.split("+")) if isinstance(kind, str) else (kind,)
    for name in names:
        lookup(ADAPTERS, name, what)
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{what}={kind!r} names a kind twice: expected different kinds. Use compose() for two of one."
        )
    return names


def make_adapter(key: PRNGKey, kind: str, model: LanguageModel, **options: Any) -> Adapter:
    """Makes an adapter to train.

    Args:
      key: random key.
      kind: of `ADAPTERS`, or several joined by `+`.
      model: the frozen model that it is for.
      **options: of the kind, see `ADAPTERS[kind].options`; of several kinds a mapping for each, by its name.

    Returns:
      The adapter.

    Raises:
      ConfigError: an unknown kind, an unknown or missing option, or a value that is not allowed.
      AdapterError: two kinds that use one place of the decoder.

    Example:
      Some adapters::

        make_adapter(key, "soft_prompt", model, init="text", text="Answer helpfully.", num_virtual=8)
        make_adapter(key, "lora", model, rank=8, targets=("attention/query", "mlp/down"))
        make_adapter(key, "prefix+lora", model, prefix={"text": "Answer helpfully."}, lora={"rank": 8})
    """
    kinds = kinds_of(kind)
    if len(kinds) == 1:
        entry = ADAPTERS[kind]
        return entry.init(key, model, **fill(entry.options, options, f"{kind} option"))
    for name in options:
        lookup(dict.fromkeys(kinds), name, f"options of {kind}")
    keys = jax.random.split(key, len(kinds))
    return compose(
        *(make_adapter(k, name, model, **options.get(name, {})) for k, name in zip(keys, kinds, strict=True))
    )


def fit_adapter(adapter: Adapter, model: LanguageModel, examples: Examples) -> Adapter:
    """Fits the parts of an adapter that are not trained by gradients, before the training.

    Args:
      adapter: as `make_adapter` made it.
      model: the frozen model that it is for.
      examples: prompts and what the teacher does on them.

    Returns:
      The adapter to train: the same one where its kind has nothing to fit, or is not registered.
    """
    if isinstance(adapter, Composition):
        return adapter.replace(parts=tuple(fit_adapter(part, model, examples) for part in adapter.parts))  # type: ignore[attr-defined]
    fit = next((entry.fit for entry in ADAPTERS.values() if type(adapter) is entry.type), None)
    return adapter if fit is None else fit(adapter, model, examples)


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
    for part in _parts(path, stored):
        _check(path, part, model)
    arrays = dict(stored.arrays)
    bound = (model.name, model.hash, model.tokenizer.hash, dict(training or {}))
    about = {"kind": stored.kind, **stored.fields, **dict(zip(_BOUND, bound, strict=True))}
    about = json.loads(json.dumps(about))
    about["sha256"] = _digest(arrays, about)
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda part: safetensors.numpy.save_file(arrays, part))
    write_atomically(_sidecar(path), lambda part: part.write_text(text, encoding="utf-8"))


def stored_form(adapter: Adapter) -> StoredAdapter:
    """Returns the kind of an adapter, its arrays in float32 and its static fields.

    Raises:
      AdapterError: an adapter of no registered kind.
    """
    if isinstance(adapter, Composition):
        parts = [stored_form(part) for part in adapter.parts]
        arrays = {f"{i}/{name}": leaf for i, part in enumerate(parts) for name, leaf in part.arrays.items()}
        return StoredAdapter("+".join(part.kind for part in parts), arrays, {"parts": [p.fields for p in parts]})
    kind = kind_of(adapter)
    leaves, fields = ADAPTERS[kind].to_arrays(adapter)
    return StoredAdapter(kind, {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}, fields)


def kind_of(adapter: Adapter) -> str:
    """Returns the name of an adapter's kind.

    Raises:
      AdapterError: an adapter of no registered kind.
    """
    for kind, entry in ADAPTERS.items():
        if type(adapter) is entry.type:
            return kind
    raise AdapterError(
        f"A {type(adapter).__name__} is of no registered kind: expected an adapter of a kind in ADAPTERS, which are "
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
    except (OSError, TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"{path} is not a readable adapter ({type(error).__name__}: {error}); it needs {sidecar.name} beside it."
        ) from error
    # Sidecars of earlier versions have no digest.
    is_whole = about.pop("sha256", None) in (None, _digest(arrays, about))
    found = about.pop("kind", None)
    kinds = found.split("+") if isinstance(found, str) else []
    if not kinds or not set(kinds) <= set(ADAPTERS):
        raise AdapterError(f"{path} is a {found!r}; expected one of {', '.join(sorted(ADAPTERS))}.")
    if kind not in (None, found):
        raise AdapterError(f"{path} is a {found!r}; expected a {kind!r}.")
    if absent := sorted(set(_BOUND) - set(about)):
        raise AdapterError(f"{sidecar} has no {', '.join(absent)}: expected the sidecar that save_adapter writes.")
    bound = {name: about.pop(name) for name in _BOUND}
    _check_base(path, bound, model)
    adapter = _restored(path, StoredAdapter(found, arrays, about), model)
    if not is_whole:
        raise AdapterError(
            f"{path} or {sidecar.name} is damaged: their contents are not those that were written together. Copy both "
            "again, or train the adapter again."
        )
    return adapter


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """Of the arrays of an adapter and of its sidecar without the digest."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _parts(path: Path, stored: StoredAdapter) -> list[StoredAdapter]:
    """Takes the stored form of a composition apart; that of another adapter is its only part."""
    kinds = stored.kind.split("+")
    if len(kinds) == 1:
        return [stored]
    fields = stored.fields.get("parts")
    if not isinstance(fields, list) or len(fields) != len(kinds) or not all(isinstance(each, dict) for each in fields):
        raise AdapterError(f"{path} has no parts for {stored.kind}: expected a list of {len(kinds)} JSON objects.")
    arrays: list[dict[str, np.ndarray]] = [{} for _ in kinds]
    for name, value in stored.arrays.items():
        number, _, own = name.partition("/")
        if not number.isdecimal() or int(number) >= len(kinds):
            raise AdapterError(f"{path} holds the array {name!r}: expected 0/NAME to {len(kinds) - 1}/NAME.")
        arrays[int(number)][own] = value
    return [StoredAdapter(*part) for part in zip(kinds, arrays, fields, strict=True)]


def _restored(path: Path, stored: StoredAdapter, model: LanguageModel) -> Adapter:
    checked = ((part, _check(path, part, model)) for part in _parts(path, stored))
    return compose(*(ADAPTERS[part.kind].from_arrays(part.arrays, fields) for part, fields in checked))


def _load_peft(path: Path, model: LanguageModel, kind: str | None) -> Adapter:
    stored, metadata = read_peft(path, model.config)
    if kind not in (None, stored.kind):
        raise AdapterError(f"{path} is a {stored.kind!r}; expected a {kind!r}.")
    _check_base(path, metadata, model)
    return _restored(path, stored, model)


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


def _check(path: Path, stored: StoredAdapter, model: LanguageModel) -> dict[str, Any]:
    """Checks the contents of a file against what its kind and the model call for; returns all static fields."""
    kind, arrays, entry = stored.kind, stored.arrays, ADAPTERS[stored.kind]
    try:
        filled = fill(entry.fields, stored.fields, "sidecar field")
        expected = entry.shapes(model, arrays, filled)
    except (AdapterError, ConfigError, TokenizerError) as error:
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
