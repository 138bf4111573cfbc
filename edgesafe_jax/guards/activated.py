"""A guard with a LoRA that acts at one position, where the verdict is read; the pair before it is read unadapted.

Greenewald et al., "Activated LoRA: Fine-tuned LLMs for Intrinsics", arXiv 2504.12397. The keys and
values of prompt, response and question are those of the bare model: a model that has just answered has most of them
already, and its guard costs the few tokens of the question. This also makes training cheap: the frozen part is
computed once (`PairReader.read`), namely keys and values of all earlier positions in the adapted layers, and the
residual stream below these layers at the last one. A step then runs the upper layers over one position of each pair.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters import AdapterError, LoRA, load_adapter, save_adapter
from edgesafe_jax.assets import is_whole, write_checked
from edgesafe_jax.errors import POSITIVE_COUNT
from edgesafe_jax.guards.probe import packaged_head
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.scoring import LanguageModelGuard, read_labels
from edgesafe_jax.guards.verdicts import check_finite_pairs
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, remainder
from edgesafe_jax.models.generation import bucket_length, encode_shared_once, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.typing import Array, Params, ProgressFn

STATE_BUCKETS = (32, 64, 96, 128, 160, 192, 256, 384, 512, 1024, 2048, 4096)
"""Lengths, in positions, to which the pairs of a training batch are padded."""


@flax.struct.dataclass
class PairBatch:
    """What the frozen part of a guard computes of B pairs.

    Attributes:
      states: `[B, S, L', 2, K, E]` float16, keys and values in the L' upper layers of what stands before the verdict.
      where: `[B, S]` bool, which of the positions exist.
      hidden: `[B, D]` float32, the residual stream below these layers at the place of the verdict.
    """

    states: Array | np.ndarray
    where: Array | np.ndarray
    hidden: Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class PairStates:
    """The same of N pairs on the host, without padding.

    Attributes:
      states: `[tokens, L', 2, K, E]` float16, pair after pair; may be mapped from a file.
      offsets: `[N + 1]` int64, where each pair begins.
      hidden: `[N, D]` float32.
    """

    states: np.ndarray = dataclasses.field(repr=False)
    offsets: np.ndarray = dataclasses.field(repr=False)
    hidden: np.ndarray = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`, positions of each pair before the verdict."""
        return np.diff(self.offsets)

    def batch(self, numbers: Sequence[int] | np.ndarray, *, one_length: bool = False) -> PairBatch:
        """The pairs of the given numbers, padded to the bucket of the longest: of them, or of all pairs."""
        spans = [(int(self.offsets[i]), int(self.offsets[i + 1])) for i in numbers]
        longest = int(self.lengths.max()) if one_length else max(end - start for start, end in spans)
        length = bucket_length(longest, STATE_BUCKETS)
        states = np.zeros((len(spans), length, *self.states.shape[1:]), self.states.dtype)
        where = np.zeros((len(spans), length), bool)
        for row, (start, end) in enumerate(spans):
            states[row, : end - start], where[row, : end - start] = self.states[start:end], True
        return PairBatch(states, where, self.hidden[np.asarray(numbers)])

    def save(self, folder: str | Path, about: str) -> None:
        """Writes the arrays into a folder; `about` says what they belong to, and comes last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (("states", self.states), ("offsets", self.offsets), ("hidden", self.hidden)):
            write_checked(folder / f"{name}.npy", functools.partial(_save_array, value))
        text = json.dumps(about)
        write_checked(folder / "about.json", lambda part: part.write_text(text, encoding="utf-8"))


def _save_array(value: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # `np.save` would add an ending to a name
        np.save(file, value)


def load_states(folder: str | Path, about: str) -> PairStates | None:
    """Maps stored states, or returns None where there are none that belong to `about`."""
    folder = Path(folder)
    file = folder / "about.json"
    if not is_whole(file) or json.loads(file.read_text(encoding="utf-8")) != about:
        return None
    if not all(is_whole(folder / f"{name}.npy") for name in ("states", "offsets", "hidden")):
        return None
    states = np.load(folder / "states.npy", mmap_mode="r")
    return PairStates(states, np.load(folder / "offsets.npy"), np.load(folder / "hidden.npy"))


@flax.struct.dataclass
class UpperLayers:
    """The adapted part of a guard.

    Attributes:
      params: frozen parameters of the upper layers, the final norm and the head.
      shared: keys and values, in these layers, of the template before the prompt.
      unsafe: ids of the unsafe labels' first tokens.
      safe: ids of the safe ones'.
      decoder: the module of the upper layers.
      first_layer: how many layers are below.
    """

    params: Params
    shared: KeyValues
    unsafe: Array
    safe: Array
    decoder: Decoder = flax.struct.field(pytree_node=False)
    first_layer: int = flax.struct.field(pytree_node=False)

    def scores(self, lora: LoRA | None, batch: PairBatch) -> tuple[Array, Array]:
        """Reads the verdicts; pure, and differentiable by the LoRA.

        Args:
          lora: of the whole decoder, beginning at `first_layer` or above; None for the bare model.
          batch: B pairs.

        Returns:
          Log-odds of "unsafe" and log of the captured mass, each `[B]`, as `label_scores`.
        """
        keys, values = jnp.transpose(jnp.asarray(batch.states), (3, 2, 0, 4, 1, 5))
        output: DecoderOutput = self.decoder.apply(  # type: ignore[assignment]
            {"params": self.params},
            embeddings=jnp.asarray(batch.hidden)[:, None],
            past=(self.shared, KeyValues(keys, values, jnp.asarray(batch.where))),
            low_rank=None if lora is None else lora.low_rank(self.first_layer),
        )
        return read_labels(self.decoder, self.params, output.hidden[:, 0], self.unsafe, self.safe)


def verdict_loss(*, log_odds: Array, log_mass: Array, labels: Array) -> Array:
    r"""Cross-entropy of the right verdict among all tokens, the mass of its labels summed.

    .. math:: -\log \sigma(\pm z) - \log m

    with the log-odds z, the captured mass m, and plus where the pair is unsafe.

    Args:
      log_odds: `[B]`, see `UpperLayers.scores`.
      log_mass: `[B]`.
      labels: `[B]`, 1 is unsafe.

    Returns:
      `[B]`, in nats.
    """
    return -jax.nn.log_sigmoid(jnp.where(labels > 0.5, log_odds, -log_odds)) - log_mass


@dataclasses.dataclass(frozen=True)
class ActivatedScorer:
    """The `Scorer` of a guard whose LoRA acts at the verdict only; what stays frozen are its `UpperLayers`."""

    def __call__(self, frozen: UpperLayers, lora: LoRA, pairs: PairBatch) -> Array:
        """Log-odds of "unsafe", `[B]`."""
        return frozen.scores(lora, pairs)[0]


@functools.partial(jax.jit, static_argnames=("decoder", "first_layer"))
def _read(
    decoder: Decoder, params: Params, shared: KeyValues, tokens: Array, where: Array, *, first_layer: int
) -> tuple[Array, Array]:
    """Returns `states`, of all positions, and `hidden` of a `PairBatch`."""
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,)
    )
    block = _layers(output.key_values, slice(first_layer, None))
    last = jnp.sum(where, axis=1, dtype=jnp.int32)[:, None, None] - 1
    hidden = jnp.take_along_axis(output.layer_hidden[first_layer - 1], last, axis=1)[:, 0]
    states = jnp.stack([block.keys, block.values]).transpose(2, 4, 1, 0, 3, 5)
    return states.astype(jnp.float16), hidden.astype(jnp.float32)


def _layers(block: KeyValues, kept: slice) -> KeyValues:
    return KeyValues(block.keys[kept], block.values[kept], block.where)


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Computes once what the frozen part of a guard makes of pairs.

    Attributes:
      guard: a language-model guard with one verdict; its adapter is not used.
      first_layer: how many layers stay unadapted, 1 to L - 1.
    """

    guard: LanguageModelGuard
    first_layer: int

    def __post_init__(self):
        if not 1 <= self.first_layer < self.guard.model.config.num_layers:
            raise ValueError(f"first_layer={self.first_layer}: expected 1 to {self.guard.model.config.num_layers - 1}.")

    @functools.cached_property
    def _shared(self) -> KeyValues:
        model = self.guard.model
        return encode_shared_once(model.decoder, model.params, None, jnp.array(self.guard.head_tokens, jnp.int32))

    @functools.cached_property
    def upper(self) -> UpperLayers:
        """The adapted part."""
        model = self.guard.model
        _, unsafe, safe = self.guard.encode([], [])
        config, params = remainder(model.config, model.params, self.first_layer)
        return UpperLayers(
            params,
            _layers(self._shared, slice(self.first_layer, None)),
            jnp.array(unsafe, jnp.int32),
            jnp.array(safe, jnp.int32),
            Decoder(config, model.dtype, model.matmul_dtype),
            self.first_layer,
        )

    def read(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        on_batch: ProgressFn | None = None,
    ) -> PairStates:
        """Reads pairs.

        Args:
          prompts: N user texts.
          responses: N answers.
          on_batch: called with (pairs done, pairs in total).

        Returns:
          What the frozen part computes of them; 2 L' K E float16 numbers per token.

        Raises:
          TemplateError: the guard's verdict is not at one place, see `LanguageModelGuard.encode`; or the prompt grows
            together with the template before it.
          ContextError: a pair does not fit into the model's context.
          GuardError: a hidden state, a key or a value is not finite.
        """
        model, first = self.guard.model, self.first_layer
        rows = self.guard.encode_behind_head(prompts, responses)
        offsets = np.concatenate([[0], np.cumsum([len(row) - 1 for row in rows])]).astype(np.int64)
        shape = (int(offsets[-1]), model.config.num_layers - first, 2, model.config.num_kv_heads, model.config.head_dim)
        states, hidden = np.zeros(shape, np.float16), np.zeros((len(rows), model.config.embed_dim), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        size = self.guard.batch_size
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            filled = chosen + [chosen[-1]] * (size - len(chosen)) if start else chosen
            tokens, where = pad_tokens([rows[i] for i in filled], pad_id=model.tokenizer.pad_id)
            read = _read(model.decoder, model.params, self._shared, tokens, where, first_layer=first)
            batch_states, batch_hidden = map(np.asarray, read)
            for row, index in enumerate(chosen):
                states[offsets[index] : offsets[index + 1]] = batch_states[row, : len(rows[index]) - 1]
                hidden[index] = batch_hidden[row]
            if on_batch is not None:
                on_batch(min(start + size, len(order)), len(order))
        whole = np.array([np.isfinite(states[a:b]).all() for a, b in itertools.pairwise(offsets)], bool)
        finite = np.isfinite(hidden).all(axis=1) & whole
        check_finite_pairs(finite, "The hidden states in half precision", sources=(("parameters", model.params),))
        return PairStates(states, offsets, hidden)

    def read_kept(self, prompts: Sequence[str], responses: Sequence[str], folder: str | Path, name: str) -> PairStates:
        """Reads pairs with progress and keeps what was read in a folder, or maps it from there.

        Args:
          prompts: N user texts.
          responses: N answers.
          folder: where it is kept.
          name: of what is read; it lies in the subfolder of this name.

        Returns:
          As `read`.
        """
        guard = self.guard
        facts = [
            guard.model.hash,
            guard.template_hash,
            [self.first_layer, guard.max_prompt, guard.max_response],
            list(zip(prompts, responses, strict=True)),
        ]
        digest, folder = hashlib.sha256(json.dumps(facts).encode()).hexdigest(), Path(folder) / name
        found = load_states(folder, digest)
        if found is None:
            with ProgressBar(f"reading {len(prompts)} pairs: {name}") as progress:
                self.read(prompts, responses, on_batch=progress).save(folder, digest)
            found = load_states(folder, digest)
            assert found is not None
        return found


# SmolGuard ------------------------------------------------------------------------------------------------------------


def save_guard(path: str | Path, guard: LanguageModelGuard, training: Mapping[str, Any]) -> None:
    """Stores the adapter of a guard, with what its scores belong to in the sidecar.

    Args:
      path: the `.safetensors` file.
      guard: a guard with an adapter.
      training: JSON-able config of its training.

    Raises:
      AdapterError: a number is not finite.
    """
    assert guard.adapter is not None
    about = {"template_hash": guard.template_hash, "max_prompt": guard.max_prompt, "max_response": guard.max_response}
    save_adapter(path, guard.adapter, guard.model, training={**training, "guard": about})


def load_smolguard(model: LanguageModel, path: str | Path | None = None) -> LanguageModelGuard:
    """Loads SmolGuard: the language model asked about a pair, with an adapter where it answers.

    Args:
      model: the base model of the adapter.
      path: a stored adapter of configs/guard_smol.py; default the packaged one.

    Returns:
      The guard.

    Raises:
      AdapterError: a missing or damaged file, or another base model; or the adapter was trained on another template.

    Example:
      Unlike the heads it is asked in words, and scores with the mass of two words::

        guard = load_smolguard(load_model())
        verdicts = guard.judge(["How do I boil an egg?"], ["Seven minutes in boiling water."])
    """
    path = packaged_head("smolguard") if path is None else Path(path)
    lora = load_adapter(path, model, kind="lora")
    assert isinstance(lora, LoRA)
    training = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["training"]
    about = training.get("guard", {}) if isinstance(training, dict) else {}
    guard = LanguageModelGuard(model, FORMATS["smolguard"], adapter=lora)
    if about.get("template_hash") != guard.template_hash:
        raise AdapterError(
            f"{path} was trained on the template {about.get('template_hash')}; this version asks with "
            f"{guard.template_hash}. Train it again with configs/guard_smol.py."
        )
    lengths = {name: about.get(name) for name in ("max_prompt", "max_response")}
    if wrong := [name for name, value in lengths.items() if value not in POSITIVE_COUNT]:
        raise AdapterError(f"The sidecar of {path} has {wrong[0]}={lengths[wrong[0]]!r}: expected at least 1 token.")
    return dataclasses.replace(guard, **lengths)
