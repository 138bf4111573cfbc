"""Guards with a LoRA in all layers and at every position of their language model.

A head on frozen features, or an adapter at the place of the verdict, can only weigh what the frozen layers have made of
a paraphrase. A LoRA in the layers themselves changes what they make of it. `ProbeScorer` and `VerdictScorer` are pure
functions from its factors and padded pairs to log-odds, for training; what reads the verdict, a head or the words of
SmolGuard, stays as it was. For use, `HiddenStateGuard(..., adapter=)` takes the factors, and `merge_lora` puts them
into SmolGuard's model.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters import LoRA
from edgesafe_jax.guards.heads import GatedHead, unsafe_log_odds
from edgesafe_jax.guards.hidden_states import encode_conversations, pool
from edgesafe_jax.guards.probe import HiddenStateGuard
from edgesafe_jax.guards.scoring import LanguageModelGuard, label_scores
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, truncate
from edgesafe_jax.models.generation import bucket_length, encode_shared, pad_tokens
from edgesafe_jax.typing import Array, LowRank, Params

ROW_BUCKETS = (32, 64, 128, 192, 224, 256, 384, 512, 1024, 2048)
"""Lengths, in positions, to which pairs are padded; each is compiled."""


@flax.struct.dataclass
class PairTokens:
    """B pairs as a guard's language model reads them, behind what all of them begin with.

    Attributes:
      tokens: `[B, T]` int32.
      where: `[B, T]` bool, which tokens exist; padding is at the end.
      answer: `[B, T]` bool, which of them are the answer's.
    """

    tokens: Array | np.ndarray
    where: Array | np.ndarray
    answer: Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class PairRows:
    """N pairs as rows of token ids, without padding.

    Attributes:
      rows: N lists of token ids.
      spans: `[N, 2]`, where in its row each answer begins and ends; zeros where nobody asks for it.
      pad_id: id of the padding.
    """

    rows: Sequence[list[int]] = dataclasses.field(repr=False)
    spans: np.ndarray = dataclasses.field(repr=False)
    pad_id: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`, tokens of each row."""
        return np.array([len(row) for row in self.rows])

    def batch(self, numbers: np.ndarray, *, one_length: bool = False) -> PairTokens:
        """The pairs of the given numbers, padded to the bucket of the longest: of them, or of all rows."""
        longest = int(np.max(self.lengths if one_length else self.lengths[numbers]))
        tokens, where = pad_tokens(
            [self.rows[i] for i in numbers], pad_id=self.pad_id, length=bucket_length(longest, ROW_BUCKETS)
        )
        answer = np.zeros(where.shape, bool)
        for row, number in enumerate(numbers):
            answer[row, slice(*self.spans[number])] = True
        return PairTokens(tokens, where, answer)


@flax.struct.dataclass
class ProbeParts:
    """What stays as it is in a guard on hidden states.

    Attributes:
      params: of the decoder up to the last layer that is read.
      begin: token ids of the template before the prompt.
      head: over the features of `probe_features`.
    """

    params: Params
    begin: Array
    head: GatedHead


@dataclasses.dataclass(frozen=True)
class ProbeScorer:
    """`HiddenStateGuard`, as a function of the LoRA in its layers.

    Attributes:
      decoder: the module, up to the last layer that is read.
      layers: which layers are read, counted from 1.
    """

    decoder: Decoder
    layers: tuple[int, ...]

    def __call__(self, frozen: ProbeParts, lora: LoRA, pairs: PairTokens) -> Array:
        """Log-odds of the head on what the adapted layers hold."""
        shared = encode_shared(self.decoder, frozen.params, lora, frozen.begin)
        pooled = pool(
            self.decoder,
            frozen.params,
            shared,
            jnp.asarray(pairs.tokens),
            jnp.asarray(pairs.where),
            jnp.asarray(pairs.answer),
            lora.low_rank(),
            layers=self.layers,
        )
        rms = jnp.sqrt(jnp.mean(jnp.square(pooled), axis=-1, keepdims=True) + 1e-6)
        return unsafe_log_odds(frozen.head, (pooled / rms).reshape(pooled.shape[0], -1))


def probe_scorer(guard: HiddenStateGuard) -> tuple[ProbeScorer, ProbeParts]:
    """Splits a guard on hidden states into a scorer and what stays frozen in it."""
    config, params = truncate(guard.model.config, guard.model.params, max(guard.layers))
    begin = encode_conversations(guard.model, [], [], max_prompt=1, max_response=1).head
    scorer = ProbeScorer(Decoder(config, guard.model.dtype, guard.model.matmul_dtype), guard.layers)
    return scorer, ProbeParts(params, jnp.array(begin, jnp.int32), guard.head)


def probe_rows(guard: HiddenStateGuard, prompts: Sequence[str], responses: Sequence[str]) -> PairRows:
    """Encodes pairs as `HiddenStateGuard` does, answers cut to its `max_response` tokens."""
    found = encode_conversations(
        guard.model, prompts, responses, max_prompt=guard.max_prompt, max_response=guard.max_response
    )
    return PairRows(found.rows, np.array(found.spans), guard.model.tokenizer.pad_id)


@flax.struct.dataclass
class VerdictParts:
    """What stays as it is in a language-model guard.

    Attributes:
      params: of the decoder.
      begin: token ids of the template before the prompt.
      unsafe: ids of the unsafe labels' first tokens.
      safe: ids of the safe ones'.
      adapter: factors that act at the place of the verdict only, or None.
    """

    params: Params
    begin: Array
    unsafe: Array
    safe: Array
    adapter: LoRA | None


@dataclasses.dataclass(frozen=True)
class VerdictScorer:
    """`LanguageModelGuard`, as a function of the LoRA in its layers; its own adapter acts at the verdict as before.

    Attributes:
      decoder: the module.
    """

    decoder: Decoder

    def __call__(self, frozen: VerdictParts, lora: LoRA, pairs: PairTokens) -> Array:
        """Log-odds of the summed label mass."""
        tokens, where = jnp.asarray(pairs.tokens), jnp.asarray(pairs.where)
        shared, factors = encode_shared(self.decoder, frozen.params, lora, frozen.begin), lora.low_rank()
        last = jnp.sum(where, axis=1, dtype=jnp.int32)[:, None] - 1
        before = where & (jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] < last)
        read: DecoderOutput = self.decoder.apply(  # type: ignore[assignment]
            {"params": frozen.params}, tokens, where=before, past=(shared,), low_rank=factors
        )
        verdict = jnp.take_along_axis(tokens, last, axis=1)
        at_verdict = factors if frozen.adapter is None else join_factors(factors, frozen.adapter.low_rank())
        every = jnp.ones(verdict.shape, bool)
        past = (shared, read.key_values)
        odds, _ = label_scores(
            self.decoder, frozen.params, past, verdict, every, frozen.unsafe, frozen.safe, at_verdict
        )
        return odds


def verdict_scorer(guard: LanguageModelGuard) -> tuple[VerdictScorer, VerdictParts]:
    """Splits a language-model guard into a scorer and what stays frozen in it."""
    model = guard.model
    _, unsafe, safe = guard.encode([], [])
    parts = VerdictParts(
        model.params,
        jnp.array(guard.head_tokens, jnp.int32),
        jnp.array(unsafe, jnp.int32),
        jnp.array(safe, jnp.int32),
        guard.adapter,
    )
    return VerdictScorer(model.decoder), parts


def verdict_rows(guard: LanguageModelGuard, prompts: Sequence[str], responses: Sequence[str]) -> PairRows:
    """Encodes pairs as `LanguageModelGuard` does, without what all of them begin with."""
    rows = guard.encode_behind_head(prompts, responses)
    return PairRows(rows, np.zeros((len(rows), 2), int), guard.model.tokenizer.pad_id)


def join_factors(first: LowRank, second: LowRank) -> LowRank:
    """Factors that add what both add: for each matrix the columns of A and the rows of B side by side."""
    joined: dict[str, dict[str, tuple[Array, Array]]] = {m: dict(leaves) for m, leaves in first.items()}
    for module, leaves in second.items():
        for leaf, (down, up) in leaves.items():
            if leaf in joined.setdefault(module, {}):
                other_down, other_up = joined[module][leaf]
                down = jnp.concatenate([other_down, down], axis=2)
                up = jnp.concatenate([other_up, up], axis=1)
            joined[module][leaf] = (down, up)
    return joined
