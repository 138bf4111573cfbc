"""Features of (prompt, response) pairs from the middle layers of a language model.

The pair is laid out as a conversation in the model's chat template, followed by a question about the answer. Two
vectors per layer are kept: the mean of the residual stream over the answer, and its value at the last position, where
the model would begin to reply. Only the layers up to the last one wanted are computed.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters import LoRA
from edgesafe_jax.errors import COUNT, POSITIVE_COUNT, ConfigError, Range, check_counts, check_ranges
from edgesafe_jax.guards.verdicts import check_finite_pairs, check_pairs, judged_text
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, low_rank_of, truncate
from edgesafe_jax.models.generation import ContextError, encode_shared_once, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.tokenization import SLOT
from edgesafe_jax.typing import Array, LowRank, Params, ProgressFn

QUESTION = "Is the answer above harmful?"
"""The question about the answer that the model is asked."""

MAX_PROMPT = 384
"""Tokens of a prompt that are read unless more are asked for: its last ones."""


def pool(
    decoder: Decoder,
    params: Params,
    shared: KeyValues,
    tokens: Array,
    where: Array,
    answer: Array,
    low_rank: LowRank | None,
    *,
    layers: tuple[int, ...],
) -> Array:
    """Pools hidden states; pure, and differentiable by the factors.

    Args:
      decoder: the module, up to the last of the layers.
      params: its frozen parameters.
      shared: what stands before the tokens, computed with the same factors.
      tokens: `[B, T]` int32.
      where: `[B, T]` bool, which of them exist; padding is at the end.
      answer: `[B, T]` bool, which of them are the answer's.
      low_rank: factors added to the decoder's matrices, or None.
      layers: N layers to read, counted from 1.

    Returns:
      `[B, N, 2, D]` float32: the mean over the answer, and the last position.
    """
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,), low_rank=low_rank
    )
    hidden = output.layer_hidden[np.array(layers) - 1].astype(jnp.float32)  # [N, B, T, D]
    weight = answer.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
    mean = jnp.einsum("nbtd,bt->bnd", hidden, weight)
    last = jnp.sum(where, axis=1, dtype=jnp.int32) - 1
    final = jnp.take_along_axis(hidden, last[None, :, None, None], axis=2)[:, :, 0]
    return jnp.stack([mean, final.transpose(1, 0, 2)], axis=2)


_pooled = jax.jit(pool, static_argnames=("decoder", "layers"))


@dataclasses.dataclass(frozen=True)
class Conversations:
    """N pairs as R rows of token ids: a row for each window of an answer.

    Attributes:
      head: tokens that all rows begin with, left out of them.
      rows: R lists of token ids.
      spans: R pairs, where in its row each window begins and ends.
      owners: `[R]` int64, the pair of each row, in rising order.
    """

    head: list[int]
    rows: list[list[int]] = dataclasses.field(repr=False)
    spans: list[tuple[int, int]] = dataclasses.field(repr=False)
    owners: np.ndarray = dataclasses.field(repr=False)


def encode_conversations(
    model: LanguageModel,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    max_prompt: int,
    max_response: int,
    windows: bool = False,
) -> Conversations:
    """Encodes pairs as conversations that end with the question.

    Answers are measured and cut in tokens, never in characters, of which a token may hold a part only.

    Args:
      model: has the tokenizer and its template.
      prompts: N user texts.
      responses: N answers; leading reasoning is left out, see `judged_text`.
      max_prompt: tokens of each prompt that are kept, its last ones.
      max_response: tokens of an answer that a row holds.
      windows: whether a longer answer becomes several rows that together hold all its tokens; otherwise its first
        `max_response` tokens are kept.

    Returns:
      The rows.

    Raises:
      ConfigError: what is not a list of texts, or other numbers of prompts and responses.
      ContextError: a pair does not fit into the model's context.
    """
    prompts, responses = check_pairs(prompts, responses)
    ranges = {"max_prompt": COUNT, "max_response": POSITIVE_COUNT if windows else COUNT}
    check_ranges({"max_prompt": max_prompt, "max_response": max_response}, ranges, prefix="")
    head, chats = model.tokenizer.encode_chats(
        [
            {"role": "user", "content": SLOT},
            {"role": "assistant", "content": SLOT},
            {"role": "user", "content": QUESTION},
        ],
        [[p.strip(), judged_text(r)] for p, r in zip(prompts, responses, strict=True)],
    )
    rows, spans, owners = [], [], []
    for number, chat in enumerate(chats):
        (prompt, prompt_end), (answer, answer_end) = chat.spans
        kept = chat.ids[max(prompt, prompt_end - max_prompt) : prompt_end]
        before = [*chat.ids[:prompt], *kept, *chat.ids[prompt_end:answer]]
        starts = range(answer, max(answer_end, answer + 1), max_response) if windows else (answer,)
        for start in starts:
            read = chat.ids[start : min(answer_end, start + max_response)]
            rows.append([*before, *read, *chat.ids[answer_end:]])
            spans.append((len(before), len(before) + len(read)))
            owners.append(number)
            if len(head) + len(rows[-1]) > model.config.max_context:
                raise ContextError(
                    f"Pair {number} needs {len(head) + len(rows[-1])} positions; the context of {model.name} has "
                    f"{model.config.max_context}. Lower max_prompt or max_response."
                )
    return Conversations(list(head), rows, spans, np.array(owners, np.int64))


def layers_at(depths: Sequence[float], num_layers: int) -> tuple[int, ...]:
    """Returns the layers at some depths of a model, so that one setting serves models of any depth.

    Args:
      depths: fractions of the layers, above 0.0 to 1.0 for the last one; a whole number is a layer, counted from 1.
      num_layers: L.

    Returns:
      Layers, counted from 1 and rising, each once.

    Raises:
      ConfigError: no depths, or one that the model does not have.
    """
    allowed = Range(1, num_layers, integer=True), Range(0.0, 1.0, above=True)
    for depth in depths:
        if depth not in allowed[isinstance(depth, float)]:
            raise ConfigError(
                f"layers={tuple(depths)}: {depth} is neither a layer of 1 to {num_layers} nor a fraction of the depth "
                "above 0.0 to 1.0."
            )
    if not depths:
        raise ConfigError("layers is empty: expected at least one.")
    return tuple(sorted({max(1, round(d * num_layers)) if isinstance(d, float) else int(d) for d in depths}))


def read_features(
    model: LanguageModel,
    conversations: Conversations,
    *,
    layers: Sequence[int],
    adapter: LoRA | None = None,
    batch_size: int = 16,
    on_batch: ProgressFn | None = None,
) -> np.ndarray:
    """Reads hidden states over encoded pairs.

    Args:
      model: the frozen language model.
      conversations: R rows, see `encode_conversations`.
      layers: which layers to read, counted from 1 (the output of the first) to L.
      adapter: a LoRA in the layers up to the last of these, or None for the bare model.
      batch_size: rows that run at once.
      on_batch: called with (rows done, rows in total) after each batch.

    Returns:
      `[R, len(layers), 2, D]` float32: over the answer the mean, and the last position after the question. An empty
      answer has a mean of zero.

    Raises:
      ConfigError: a layer that the model does not have, or a batch size below 1.
      GuardError: a hidden state is not finite.
    """
    check_counts(batch_size=batch_size)
    layers = tuple(int(layer) for layer in layers)
    if not layers or min(layers) < 1 or max(layers) > model.config.num_layers:
        raise ConfigError(f"layers={layers}: expected some of 1 to {model.config.num_layers}.")
    config, params = truncate(model.config, model.params, max(layers))
    rows, spans = conversations.rows, conversations.spans
    features = np.zeros((len(rows), len(layers), 2, config.embed_dim), np.float32)
    if not rows:
        return features
    decoder = Decoder(config, model.dtype, model.matmul_dtype)
    shared = encode_shared_once(decoder, params, adapter, jnp.array(conversations.head, jnp.int32))
    low_rank = low_rank_of(adapter)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = chosen + [chosen[-1]] * (batch_size - len(chosen)) if start else chosen
        tokens, where = pad_tokens([rows[i] for i in filled], pad_id=model.tokenizer.pad_id)
        answer = np.zeros(where.shape, bool)
        for row, index in enumerate(filled):
            answer[row, slice(*spans[index])] = True
        pooled = _pooled(decoder, params, shared, tokens, where, answer, low_rank, layers=layers)
        features[chosen] = np.asarray(pooled)[: len(chosen)]
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    finite = np.ones(int(conversations.owners[-1]) + 1, bool)
    np.logical_and.at(finite, conversations.owners, np.isfinite(features).all(axis=(1, 2, 3)))
    check_finite_pairs(finite, f"{model.name}'s hidden states", sources=(("parameters", params), ("adapter", adapter)))
    return features


def pair_features(
    model: LanguageModel,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    layers: Sequence[int],
    adapter: LoRA | None = None,
    max_response: int = 128,
    max_prompt: int = MAX_PROMPT,
    batch_size: int = 16,
    on_batch: ProgressFn | None = None,
) -> np.ndarray:
    """Reads hidden states over (prompt, response) pairs, of each answer its first tokens.

    Args:
      model: the frozen language model.
      prompts: N user texts.
      responses: N answers; leading reasoning is left out, see `judged_text`.
      layers: as `read_features`.
      adapter: as `read_features`.
      max_response: tokens of each answer that are read; the rest is cut.
      max_prompt: tokens of each prompt that are read: the last ones are kept.
      batch_size: rows that run at once.
      on_batch: called with (pairs done, pairs in total) after each batch.

    Returns:
      `[N, len(layers), 2, D]` float32, see `read_features`.

    Raises:
      ConfigError: other numbers of prompts and responses, or as `read_features`.
      ContextError: a pair does not fit into the model's context.
      GuardError: a hidden state is not finite.
    """
    conversations = encode_conversations(model, prompts, responses, max_prompt=max_prompt, max_response=max_response)
    return read_features(model, conversations, layers=layers, adapter=adapter, batch_size=batch_size, on_batch=on_batch)
