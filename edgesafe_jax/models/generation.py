"""Batched generation with a key-value cache, greedy or sampled, with any adapter.

Prompts are padded on the right to a length bucket, so that a handful of compilations serve every length. The part that
all rows share (the adapter's virtual positions and the head of the chat template) is computed once at batch size one.
A row's answer does not depend on its padding or on the rows beside it: positions that do not exist are never attended
to, and every row draws from a random stream of its own.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError, EdgesafeError, check_counts, check_texts
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, behind
from edgesafe_jax.models.finite import check_finite
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import answer_ids, head_of
from edgesafe_jax.typing import Adapter, Array, Params, PRNGKey, ProgressFn

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Lengths, in positions, to which rows are padded; longer ones to multiples of the last."""

PROMPT_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""The same for rows that are read once, before a generation or for their likelihood: fewer, since each is compiled."""


class ContextError(EdgesafeError, ValueError):
    """A prompt that does not fit into the model's context."""


def bucket_length(length: int, buckets: Sequence[int] = BUCKETS) -> int:
    """Returns the smallest of the buckets, in rising order, that holds `length` positions.

    Beyond the largest bucket its multiples are buckets too.
    """
    for bucket in buckets:
        if length <= bucket:
            return bucket
    return -(-length // buckets[-1]) * buckets[-1]


def pad_tokens(
    rows: Sequence[Sequence[int]], *, pad_id: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows on the right.

    Args:
      rows: token ids, B rows.
      pad_id: id of the padding.
      length: T; default the bucket of the longest row.

    Returns:
      Tokens `[B, T]` int32 and which of them exist, `[B, T]` bool.
    """
    if length is None:
        length = bucket_length(max((len(row) for row in rows), default=1))
    tokens = np.full((len(rows), length), pad_id, np.int32)
    where = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        where[index, : len(row)] = True
    return tokens, where


def encode_shared(decoder: Decoder, params: Params, adapter: Adapter | None, head: Array) -> KeyValues:
    """Computes the keys and values that all rows share: an adapter's virtual positions, then the template's head.

    Args:
      decoder: the module.
      params: its frozen parameters.
      adapter: trained vectors, or None.
      head: `[T]` int32 tokens of the template before the user's text, see `placements.head_of`; may be empty if there
        is an adapter.

    Returns:
      A block of batch size one. Differentiable with respect to the adapter.
    """
    output: DecoderOutput = decoder.apply({"params": params}, head[None], adapter=adapter)  # type: ignore[assignment]
    return output.key_values.replace(where=None)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Generation:
    """Answers to a batch of prompts.

    Attributes:
      tokens: answers as token ids, without the end-of-sequence token.
      texts: the same decoded.
      finished: whether each answer ended by itself (rather than at the length limit).
      ends: the id of the token that ended each answer, None for one that did not end; or None where it is not known.
      hidden: `[N, max_tokens, D]` float32, the final hidden states from which each token was chosen, the end of
        sequence included; None where they were not asked for.
    """

    tokens: list[list[int]]
    texts: list[str]
    finished: list[bool]
    hidden: np.ndarray | None = None
    ends: list[int | None] | None = None


_BLOCK = 256  # of the vocabulary, in `_argmax` and `_sample`


def _argmax(logits: Array) -> tuple[Array, Array]:
    """The first token of the largest logit in each row, `[B]`, and whether that logit is finite.

    In two steps: on CPU, maxima are faster than indices.
    """
    batch, num_tokens = logits.shape
    padding = ((0, 0), (0, -num_tokens % _BLOCK))
    blocks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(batch, -1, _BLOCK)
    maxima = jnp.max(blocks, axis=-1)
    block = jnp.argmax(maxima, axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    chosen = (block * _BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)
    return chosen, jnp.isfinite(jnp.max(maxima, axis=-1))


def _sample(logits: Array, keys: PRNGKey, temperature: Array) -> tuple[Array, Array]:
    """Draws one token per row by inverting the distribution function, `[B]`; and whether the sum of it is finite.

    One uniform number per row, where Gumbel noise would take one per token of the vocabulary. The function is inverted
    in two steps, first over blocks of tokens and then within one, so that no sum runs over the whole vocabulary.
    """
    batch, num_tokens = logits.shape
    probs = jax.nn.softmax(logits / temperature, axis=-1)
    blocks = jnp.pad(probs, ((0, 0), (0, -num_tokens % _BLOCK))).reshape(batch, -1, _BLOCK)
    upper = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys) * upper[:, -1]

    def first_above(sums: Array, value: Array, mass: Array) -> Array:
        """The first index whose running sum exceeds the value; the heaviest one where rounding leaves none."""
        above = sums > value[:, None]
        return jnp.where(jnp.any(above, axis=-1), jnp.argmax(above, axis=-1), jnp.argmax(mass, axis=-1))

    block = first_above(upper, target, jnp.sum(blocks, axis=-1))
    below = jnp.where(block > 0, jnp.take_along_axis(upper, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    index = first_above(jnp.cumsum(inside, axis=-1), target - below, inside)
    return (block * _BLOCK + index).astype(jnp.int32), jnp.isfinite(upper[:, -1])


@functools.partial(jax.jit, static_argnames=("decoder", "num_steps", "eos_ids", "pad_id", "sampled", "keep_hidden"))
def _generate(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    shared: KeyValues,
    tokens: Array,
    where: Array,
    forced: Array,
    forced_where: Array,
    keys: PRNGKey,
    temperature: Array,
    *,
    num_steps: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    sampled: bool,
    keep_hidden: bool,
) -> tuple[Array, Array, Array, Array]:
    """Generates `num_steps` tokens per row; see `generate`.

    Returns:
      Answers `[B, num_steps]`, the pad id after their end; whether each one ended; the hidden states behind the tokens,
      `[B, num_steps, D]`, or `[B, 0, D]` where they are not kept; whether what each row was chosen from was finite.
    """
    batch, length = tokens.shape
    variables = {"params": params}
    prefill: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        variables, tokens, where=where, past=(shared,), **attached
    )
    counts = jnp.sum(where, axis=1, dtype=jnp.int32)
    last = jnp.take_along_axis(prefill.hidden, (counts - 1)[:, None, None], axis=1)[:, 0]

    def choose(hidden: Array, step: Array) -> tuple[Array, Array]:
        logits = decoder.apply(variables, hidden, method=Decoder.logits)
        if sampled:
            chosen, finite = _sample(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step), temperature)  # type: ignore[arg-type]
        else:
            chosen, finite = _argmax(logits)  # type: ignore[arg-type]
        if forced.shape[1] == 0:
            return chosen, finite
        column = jnp.minimum(step, forced.shape[1] - 1)
        use = jnp.take(forced_where, column, axis=1) & (step < forced.shape[1])
        return jnp.where(use, jnp.take(forced, column, axis=1), chosen), finite

    # The cache holds the prompt's keys and values, then one slot per generated token.
    room = ((0, 0), (0, 0), (0, 0), (0, num_steps), (0, 0))
    cache = KeyValues(
        keys=jnp.pad(prefill.key_values.keys, room),
        values=jnp.pad(prefill.key_values.values, room),
        where=jnp.pad(where, ((0, 0), (0, num_steps))),
    )
    shared_length = shared.keys.shape[3]
    put = jax.lax.dynamic_update_slice_in_dim
    is_eos = functools.partial(jnp.isin, test_elements=jnp.array(eos_ids, jnp.int32))

    states = jnp.zeros((batch, num_steps if keep_hidden else 0, last.shape[-1]), last.dtype)

    def unfinished(carry):
        step, done = carry[0], carry[3]
        return (step < num_steps) & ~jnp.all(done)

    def advance(carry):
        step, token, hidden, done, cache, answers, states, finite = carry
        if keep_hidden:
            states = put(states, hidden[:, None], step, axis=1)
        answers = put(answers, jnp.where(done, pad_id, token)[:, None], step, axis=1)
        done = done | is_eos(token)
        output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
            variables,
            token[:, None],
            positions=(shared_length + counts + step)[:, None],
            past=(shared, cache),
            **attached,
        )
        slot = length + step
        cache = KeyValues(
            keys=put(cache.keys, output.key_values.keys, slot, axis=3),
            values=put(cache.values, output.key_values.values, slot, axis=3),
            where=cache.where | (jnp.arange(length + num_steps, dtype=jnp.int32) == slot)[None],
        )
        hidden = output.hidden[:, 0]
        token, still_finite = choose(hidden, step + 1)
        return step + 1, token, hidden, done, cache, answers, states, finite & (still_finite | done)

    zero = jnp.zeros((), jnp.int32)
    answers = jnp.full((batch, num_steps), pad_id, jnp.int32)
    token, finite = choose(last, zero)
    start = (zero, token, last, jnp.zeros((batch,), bool), cache, answers, states, finite)
    _, _, _, done, _, answers, states, finite = jax.lax.while_loop(unfinished, advance, start)
    return answers, done, states, finite


encode_shared_once = jax.jit(encode_shared, static_argnames=("decoder",))
"""`encode_shared`, compiled: one program for all who compute a shared block ahead of their batches."""


def generate(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    adapter: Adapter | None = None,
    temperature: float = 0.0,
    key: PRNGKey | None = None,
    prefills: Sequence[str] | None = None,
    batch_size: int = 32,
    keep_hidden: bool = False,
    on_batch: ProgressFn | None = None,
) -> Generation:
    """Answers one-turn chats.

    Args:
      model: the frozen language model.
      prompts: the users' texts, each of a chat of its own. A chat of several turns is rendered with
        `model.tokenizer.render_chat`.
      max_tokens: longest answer, in tokens.
      adapter: a soft prompt, a LoRA or another adapter, or None for the bare model.
      temperature: 0 for greedy answers; above, of the sampling distribution.
      key: random key, needed when the temperature is above 0. Row i draws from `fold_in(key, i)` whatever its batch.
      prefills: text with which each answer is made to begin (a prefill attack), counted as part of it; or None.
      batch_size: rows that run at once.
      keep_hidden: whether to return the hidden states behind the tokens.
      on_batch: called with (answers done, answers in total) after each batch.

    Returns:
      Answers in the order of the prompts.

    Raises:
      ContextError: a prompt with its answer is longer than the model's context; the message gives its index.
      ConfigError: no prompts or something else than texts, a count below 1, a negative temperature, sampling without
        a key, or a prefill longer than the answer.
      NonFiniteError: the model computed NaN or infinity; the message names the prompt and the tensor.
    """
    prompts = check_texts("prompts", prompts)
    if not prompts:
        raise ConfigError("prompts is empty: expected at least one.")
    check_counts(max_tokens=max_tokens, batch_size=batch_size)
    if not 0 <= temperature < np.inf:
        raise ConfigError(f"temperature={temperature}: expected 0 (greedy) or more.")
    if temperature > 0 and key is None:
        raise ConfigError("temperature > 0 needs key=jax.random.key(seed).")
    rows = encode_prompts(model, prompts, max_tokens=max_tokens, adapter=adapter)
    forced = _encode_prefills(model, prefills, len(rows), max_tokens)
    model = model.for_decoding
    run = _Run(model, adapter, rows, forced, max_tokens, temperature, key, keep_hidden)

    # Rows of like length share a batch; the last batch is filled up with repeats, so that one compilation serves it.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def answer(chosen: list[int]) -> tuple[list[int], tuple[np.ndarray, ...]]:
        full = min(batch_size, 1 << (len(chosen) - 1).bit_length())
        outputs = run.batch(chosen + [chosen[-1]] * (full - len(chosen)))
        return chosen, tuple(np.asarray(output)[: len(chosen)] for output in outputs)

    tokens: list[list[int]] = [[] for _ in rows]
    ends: list[int | None] = [None] * len(rows)
    finite = np.ones(len(rows), bool)
    hidden = np.zeros((len(rows), max_tokens, model.config.embed_dim), np.float32) if keep_hidden else None
    done = 0
    # A decoding step is bound by memory and leaves the cores of a CPU idle: there two batches run beside each other.
    with _two_threads() if jax.default_backend() == "cpu" and len(batches) > 1 else contextlib.nullcontext() as pool:
        for chosen, (answers, _, states, good) in map(answer, batches) if pool is None else pool.map(answer, batches):
            finite[chosen] = good
            if hidden is not None:
                hidden[chosen] = states
            for row, index in enumerate(chosen):
                tokens[index], ends[index] = _until_eos(answers[row].tolist(), model.tokenizer.eos_ids)
            done += len(chosen)
            if on_batch is not None:
                on_batch(done, len(rows))
    check_finite(finite, "The logits of prompt", sources=(("parameter", model.params), ("adapter", adapter)))
    texts = [model.tokenizer.decode(row).strip() for row in tokens]
    return Generation(tokens, texts, [end is not None for end in ends], hidden, ends)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the batches of one call of `generate` share."""

    model: LanguageModel
    adapter: Adapter | None
    rows: list[list[int]]
    forced: list[list[int]]
    max_tokens: int
    temperature: float
    key: PRNGKey | None
    keep_hidden: bool

    @functools.cached_property
    def shared(self) -> KeyValues:
        head = head_of(self.model, self.adapter)
        return encode_shared_once(self.model.decoder, self.model.params, self.adapter, head)

    @functools.cached_property
    def keys(self) -> PRNGKey:
        key = jax.random.key(0) if self.key is None else self.key
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(self.rows), dtype=jnp.uint32))

    @functools.cached_property
    def num_forced(self) -> int:
        return min(bucket_length(max(map(len, self.forced))), self.max_tokens) if any(self.forced) else 0

    def batch(self, chosen: list[int]) -> tuple[Array, Array, Array, Array]:
        """Generates the answers of some rows; see `_generate`."""
        model, pad_id = self.model, self.model.tokenizer.pad_id
        length = bucket_length(max(len(self.rows[i]) for i in chosen), PROMPT_BUCKETS)
        tokens, where = pad_tokens([self.rows[i] for i in chosen], pad_id=pad_id, length=length)
        begin, begin_where = pad_tokens([self.forced[i] for i in chosen], pad_id=pad_id, length=self.num_forced)
        return _generate(
            model.decoder,
            model.params,
            behind(self.adapter),
            self.shared,
            tokens,
            where,
            begin,
            begin_where,
            self.keys[np.array(chosen)],
            jnp.float32(self.temperature),
            num_steps=self.max_tokens,
            eos_ids=model.tokenizer.eos_ids,
            pad_id=pad_id,
            sampled=self.temperature > 0,
            keep_hidden=self.keep_hidden,
        )


@contextlib.contextmanager
def _two_threads() -> Iterator[futures.ThreadPoolExecutor]:
    """Two threads; what has not begun when the block is left is not run."""
    pool = futures.ThreadPoolExecutor(2)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_prefills(
    model: LanguageModel, prefills: Sequence[str] | None, num: int, max_tokens: int
) -> list[list[int]]:
    if prefills is None:
        return [[]] * num
    forced = model.tokenizer.encode_answers(check_texts("prefills", prefills))
    if len(forced) != num:
        raise ConfigError(f"{len(forced)} prefills for {num} prompts: expected as many.")
    if (longest := max(map(len, forced))) > max_tokens:
        raise ConfigError(f"A prefill has {longest} tokens, more than max_tokens={max_tokens}: raise max_tokens.")
    return forced


def _until_eos(tokens: list[int], eos_ids: tuple[int, ...]) -> tuple[list[int], int | None]:
    """What comes before the first end, and which token that is; all of it and None where there is none."""
    for index, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[:index], token
    return tokens, None


def encode_prompts(
    model: LanguageModel, prompts: Sequence[str], *, max_tokens: int, adapter: Adapter | None = None
) -> list[list[int]]:
    """Encodes the users' texts with the template's tail behind them, and checks that all of it fits.

    Args:
      model: gives tokenizer, template and context.
      prompts: the users' texts.
      max_tokens: positions that must remain for the answer.
      adapter: its virtual positions count too.

    Returns:
      Token ids of each row after the shared head, those of virtual positions before the answer at their end.

    Raises:
      ContextError: a row does not fit; the message gives its index and both lengths.
    """
    behind_prompt = answer_ids(adapter)
    head = head_of(model, adapter)
    used = int(np.sum(head >= 0)) + (adapter.num_virtual if adapter is not None else 0)
    available = model.config.max_context
    rows = model.tokenizer.encode_prompts([prompt.strip() for prompt in check_texts("prompts", prompts)])
    for index, row in enumerate(rows):
        if used + len(row) + max_tokens > available:
            raise ContextError(
                f"Prompt {index} ({prompts[index][:40]!r}...) needs {used + len(row)} positions and its answer "
                f"{max_tokens}; the context of {model.name} has {available}. Shorten the prompt."
            )
    return [[*row, *behind_prompt] for row in rows]
