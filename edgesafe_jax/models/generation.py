"""Batched generation with a key-value cache, greedy or sampled, with any adapter.

Prompts are padded on the right to a length bucket, so that a handful of compilations serve every length. The part that
all rows share (the adapter's virtual positions and the head of the chat template) is computed once at batch size one.
Rows run in slots, see `decoding`: when some answers are finished, the next prompts take their places.
A row's answer does not depend on its padding or on the rows beside it: positions that do not exist are never attended
to, and every row draws from a random stream of its own.
"""

import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError, EdgesafeError, check_counts, check_texts
from edgesafe_jax.models.chats import Chat, check_chats, encode_wholes, flat_text
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, behind
from edgesafe_jax.models.decoding import Prompts, TokenIds, decode, empty_slots, fill, take
from edgesafe_jax.models.finite import check_finite
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import answer_ids, head_of
from edgesafe_jax.typing import Adapter, Array, Params, PRNGKey, ProgressFn

_log = logging.getLogger(__name__)

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Lengths, in positions, to which rows are padded; longer ones to multiples of the last."""

PROMPT_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""The same for slots of a generation, and for rows that are read once for their likelihood: fewer."""

DIVIDED = 16
"""Least number of slots that are filled in parts."""

MOST_HEADS = 4
"""Heads of chats whose keys and values are kept with a model."""

LONG = 5.0
"""Seconds after which a generation says how fast it was."""


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


encode_shared_once = jax.jit(encode_shared, static_argnames=("decoder",))
"""`encode_shared`, compiled: one program for all who compute a shared block ahead of their batches."""


def generate(
    model: LanguageModel,
    prompts: Sequence[str | Chat],
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
    """Answers chats.

    Args:
      model: the frozen language model.
      prompts: the users' texts, each of a chat of its own; or chats of several turns, see `models.chats.Chat`.
      max_tokens: longest answer, in tokens.
      adapter: a soft prompt, a LoRA or another adapter, or None for the bare model.
      temperature: 0 for greedy answers; above, of the sampling distribution.
      key: random key, needed when the temperature is above 0. Row i draws from `fold_in(key, i)` whatever its batch;
        or keys `[N]`, one for each row.
      prefills: text with which each answer is made to begin (a prefill attack), counted as part of it; or None.
      batch_size: rows that run at once; on CPU two such batches do.
      keep_hidden: whether to return the hidden states behind the tokens, zero behind the end of an answer.
      on_batch: called with (answers done, answers in total) when answers are finished.

    Returns:
      Answers in the order of the prompts.

    Raises:
      ContextError: a prompt with its answer is longer than the model's context; the message gives its index.
      ConfigError: no prompts or something else than texts, a count below 1, a negative temperature, sampling without
        a key, or a prefill longer than the answer.
      NonFiniteError: the model computed NaN or infinity; the message names the prompt and the tensor.
    """
    prompts = check_chats("prompts", prompts)
    if not prompts:
        raise ConfigError("prompts is empty: expected at least one.")
    check_counts(max_tokens=max_tokens, batch_size=batch_size)
    if not 0 <= temperature < np.inf:
        raise ConfigError(f"temperature={temperature}: expected 0 (greedy) or more.")
    if temperature > 0 and key is None:
        raise ConfigError("temperature > 0 needs key=jax.random.key(seed).")
    head, rows = encode_rows(model, prompts, max_tokens=max_tokens, adapter=adapter)
    routes = None if adapter is None else adapter.routes(model, prompts)
    if routes is not None:
        options = {"max_tokens": max_tokens, "temperature": temperature, "batch_size": batch_size}
        return _routed(model, prompts, routes, key, prefills, on_batch, keep_hidden=keep_hidden, **options)
    forced = _encode_prefills(model, prefills, len(rows), max_tokens)
    decoding = model.for_decoding
    shared = _shared(decoding, adapter, head)
    keys = row_keys(key, len(rows))
    run = _Run(decoding, behind(adapter), shared, rows, forced, keys, max_tokens, temperature, keep_hidden, batch_size)

    tokens: list[list[int]] = [[] for _ in rows]
    ends: list[int | None] = [None] * len(rows)
    finite = np.ones(len(rows), bool)
    hidden = np.zeros((len(rows), max_tokens, model.config.embed_dim), np.float32) if keep_hidden else None
    done, started = 0, time.monotonic()
    for finished in _side_by_side([run.answers(stream) for stream in run.streams()], run.in_threads):
        for index, answer, states, good in finished:
            finite[index] = good
            if hidden is not None:
                hidden[index] = states
            tokens[index], ends[index] = _until_eos(answer.tolist(), model.tokenizer.eos_ids)
        done += len(finished)
        if on_batch is not None:
            on_batch(done, len(rows))
    if (seconds := time.monotonic() - started) > LONG:
        num = sum(map(len, tokens))
        _log.info(f"{len(rows)} answers, {num} tokens in {seconds:.0f} s: {num / seconds:.0f} tokens per second")
    check_finite(finite, "The logits of prompt", sources=(("parameter", model.params), ("adapter", adapter)))
    texts = [model.tokenizer.decode(row).strip() for row in tokens]
    return Generation(tokens, texts, [end is not None for end in ends], hidden, ends)


def _shared(model: LanguageModel, adapter: Adapter | None, head: Sequence[int]) -> KeyValues:
    """Keys and values of what all rows share; without an adapter those of the last heads are kept with the model."""
    kept = model.kept_heads if adapter is None else {}
    if (found := kept.pop(name := tuple(head), None)) is None:
        found = encode_shared_once(model.decoder, model.params, adapter, jnp.array(head, jnp.int32))
    kept[name] = found
    if len(kept) > MOST_HEADS:
        kept.pop(next(iter(kept)))
    return found


_fold_in = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
_take_keys = jax.jit(lambda keys, rows: keys[rows])


def row_keys(key: PRNGKey | None, num: int) -> PRNGKey:
    """Returns one key for each of `num` rows, from one key, from as many or from none."""
    if key is not None and key.ndim:
        return key
    return _fold_in(jax.random.key(0) if key is None else key, np.arange(num, dtype=np.uint32))


def _routed(
    model: LanguageModel,
    prompts: Sequence[str | Chat],
    routes: Sequence[tuple[np.ndarray, Adapter | None]],
    key: PRNGKey | None,
    prefills: Sequence[str] | None,
    on_batch: ProgressFn | None,
    **options: Any,
) -> Generation:
    """Answers the prompts of each route with its adapter; every row draws from the key of its number."""
    keys, num = row_keys(key, len(prompts)), len(prompts)
    answers: dict[int, tuple[Any, ...]] = {}
    for rows, each in routes:
        if not len(rows):
            continue
        done = len(answers)
        found = generate(
            model,
            [prompts[i] for i in rows],
            adapter=each,
            key=keys[rows],
            prefills=None if prefills is None else [prefills[int(i)] for i in rows],
            on_batch=None if on_batch is None else lambda count, _, done=done: on_batch(done + count, num),
            **options,
        )
        assert found.ends is not None
        hidden = [None] * len(rows) if found.hidden is None else found.hidden
        parts = zip(found.tokens, found.texts, found.finished, hidden, found.ends, strict=True)
        answers |= dict(zip(rows.tolist(), parts, strict=True))
    tokens, texts, finished, hidden, ends = map(list, zip(*(answers[i] for i in range(num)), strict=True))
    kept = np.stack(hidden) if options["keep_hidden"] else None
    return Generation(tokens, texts, finished, kept, ends)


_Answer: TypeAlias = tuple[int, np.ndarray, np.ndarray, bool]
"""A row's index, its tokens with the pad id behind them, their hidden states, and whether all was finite."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the streams of one call of `generate` share."""

    model: LanguageModel
    attached: Mapping[str, Any]
    shared: KeyValues
    rows: list[list[int]]
    forced: list[list[int]]
    keys: PRNGKey
    max_tokens: int
    temperature: float
    keep_hidden: bool
    batch_size: int

    @property
    def in_threads(self) -> bool:
        """Whether two streams run at a time: on one CPU device; collectives of two programs would block each other."""
        return jax.default_backend() == "cpu" and self.model.mesh is None

    @functools.cached_property
    def num_forced(self) -> int:
        return min(bucket_length(max(map(len, self.forced))), self.max_tokens) if any(self.forced) else 0

    def size(self, row: int) -> int:
        """Positions that a slot needs for a row."""
        return bucket_length(len(self.rows[row]) + self.max_tokens, PROMPT_BUCKETS)

    def streams(self) -> list[list[int]]:
        """Splits the rows, from short to long, into streams whose slots are of one size.

        A size is used if at least a batch of rows needs it. On CPU, where a decoding step leaves cores idle, more than
        a batch is cut in two. Lengths alone decide, so that all is repeatable.
        """
        streams, group = [], []
        order = sorted(range(len(self.rows)), key=lambda row: len(self.rows[row]))
        for number, row in enumerate(order, start=1):
            group.append(row)
            if number < len(order) and (len(group) < self.batch_size or self.size(row) == self.size(order[number])):
                continue
            halve = len(group) > self.batch_size and self.in_threads
            streams += [group[::2], group[1::2]] if halve else [group]
            group = []
        return streams

    def answers(self, pending: list[int]) -> Iterator[list[_Answer]]:
        """Answers the rows of a stream and yields them as they are finished.

        Finished slots are filled again a quarter of them at a time. When no rows are left to begin and three quarters
        of the slots are finished, the others go on alone.
        """
        model, tokenizer = self.model, self.model.tokenizer
        ids = TokenIds(tokenizer.eos_ids, tokenizer.pad_id, tokenizer.suppressed_ids)
        common = (model.decoder, model.params, self.attached, self.shared)
        temperature = jnp.float32(self.temperature) if self.temperature > 0 else None
        num = _num_slots(len(pending), self.batch_size)
        slots = empty_slots(
            model.decoder,
            num,
            self.size(pending[-1]),
            max_tokens=self.max_tokens,
            num_forced=self.num_forced,
            keep_hidden=self.keep_hidden,
            pad_id=ids.pad,
        )
        rows = np.full(num, -1)  # the row in each slot
        while pending or np.any(rows >= 0):
            part = len(rows) // 4 if len(rows) >= DIVIDED else len(rows)
            while pending and np.sum(rows < 0) >= min(part, len(pending)):
                group, pending = pending[:part], pending[part:]
                places = np.flatnonzero(rows < 0)[: len(group)]
                rows[places] = group
                # A group that is not full is filled up with repeats, so that one compilation serves it.
                places = np.pad(places, (0, part - len(group)), mode="edge").astype(np.int32)
                prompts = self._prompts([int(row) for row in rows[places]])
                slots = fill(*common, slots, prompts, places, temperature, ids=ids)
            enough = np.sum(rows < 0) + min(part, len(pending)) if pending else len(rows) - part * (part < len(rows))
            slots = decode(*common, slots, np.int32(enough), temperature, ids=ids)
            finished = np.flatnonzero(np.asarray(slots.done) & (rows >= 0))
            # Copies: the memory of slots is used again.
            found = (
                np.array(slots.answers)[finished],
                np.array(slots.states)[finished],
                np.array(slots.finite)[finished],
            )
            yield [(int(rows[place]), *values) for place, *values in zip(finished, *found, strict=True)]
            rows[finished] = -1
            if not pending and part < len(rows) and 0 < np.sum(rows >= 0) <= part:
                chosen = np.argsort(rows < 0, stable=True)[:part]
                slots, rows = take(slots, chosen.astype(np.int32)), rows[chosen]

    def _prompts(self, rows: list[int]) -> Prompts:
        pad_id = self.model.tokenizer.pad_id
        tokens, where = pad_tokens([self.rows[row] for row in rows], pad_id=pad_id)
        forced, begin = pad_tokens([self.forced[row] for row in rows], pad_id=pad_id, length=self.num_forced)
        return Prompts(tokens, where, forced, begin.sum(axis=1, dtype=np.int32), _take_keys(self.keys, np.array(rows)))


def _num_slots(num_rows: int, batch_size: int) -> int:
    """Slots for so many rows: a power of two or three quarters of one, and no more than a batch."""
    power = 1 << (num_rows - 1).bit_length()
    return min(3 * power // 4 if DIVIDED <= 3 * power // 4 >= num_rows else power, batch_size)


def _side_by_side(streams: Sequence[Iterator[list[_Answer]]], in_threads: bool) -> Iterator[list[_Answer]]:
    """What the streams yield; in threads, two of them run at a time. None goes on when the caller stops."""
    if len(streams) == 1 or not in_threads:
        for stream in streams:
            yield from stream
        return
    results: queue.SimpleQueue[list[_Answer] | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def run(stream: Iterator[list[_Answer]]) -> None:
        try:
            while not stopped.is_set() and (found := next(stream, None)) is not None:
                results.put(found)
            results.put(None)
        except BaseException as error:
            results.put(error)

    with futures.ThreadPoolExecutor(2) as pool:
        try:
            running = [pool.submit(run, stream) for stream in streams]
            while running:
                found = results.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    running.pop()
                else:
                    yield found
        finally:
            stopped.set()
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
    return encode_rows(model, check_texts("prompts", prompts), max_tokens=max_tokens, adapter=adapter)[1]


def encode_rows(
    model: LanguageModel, prompts: Sequence[str | Chat], *, max_tokens: int, adapter: Adapter | None = None
) -> tuple[list[int], list[list[int]]]:
    """Encodes texts and chats, see `encode_prompts`.

    Returns:
      The head that all of them share, and the rows behind it.
    """
    shared, rows = encode_wholes(model.tokenizer, prompts)
    head = head_of(model, adapter, shared).tolist()
    behind_prompt = answer_ids(adapter)
    used = sum(token >= 0 for token in head) + (adapter.num_virtual if adapter is not None else 0)
    available = model.config.max_context
    for index, row in enumerate(rows):
        if used + len(row) + max_tokens > available:
            raise ContextError(
                f"Prompt {index} ({flat_text(prompts[index])[:40]!r}...) needs {used + len(row)} positions and its "
                f"answer {max_tokens}; the context of {model.name} has {available}. Shorten the prompt."
            )
    return head, [[*row, *behind_prompt] for row in rows]
