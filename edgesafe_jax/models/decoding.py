"""Answers in slots: the compiled programs of generation.

A slot holds one answer while it is made: its prompt's keys and values, its tokens, its random stream. Slots are filled
in groups, decoded together one token at a time, and filled again when their answers are finished, so that a short
answer does not wait for a long one. A slot never looks at another one.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.models.decoder import Cache, Decoder, DecoderOutput, KeyValues
from edgesafe_jax.models.sharding import constrain
from edgesafe_jax.typing import Array, Params, PRNGKey

_BLOCK = 256  # of the vocabulary, in `_argmax` and `_sample`

PIECE, LEAST_PIECE = 1024, 16
"""On CPU, rows times positions of a cache that are read at once, and the least number of these positions."""


def piece_length(num: int, size: int) -> int:
    """Positions in one piece of a cache of `num` rows of `size` positions each, a divisor of `size`.

    On CPU attention is bound by memory, and reads filled pieces alone; accelerators read all in one operation.
    """
    most = max(LEAST_PIECE, PIECE // num)
    length = math.gcd(size, 1 << (most.bit_length() - 1))
    return size if length < LEAST_PIECE or jax.default_backend() != "cpu" else length


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


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Tokens with a meaning in generation.

    Attributes:
      eos: those that end an answer.
      pad: what stands behind an answer.
      suppressed: those that are never chosen.
    """

    eos: tuple[int, ...]
    pad: int
    suppressed: tuple[int, ...] = ()


@flax.struct.dataclass
class Prompts:
    """What a group of slots is filled with.

    Attributes:
      tokens: `[N, T]` int32, the prompts behind the shared positions, padded on the right.
      where: `[N, T]` bool, which of them exist.
      forced: `[N, M]` int32, how the answers begin; M is 0 where they begin by themselves.
      num_forced: `[N]` int32, how many tokens of that exist.
      keys: `[N]` random keys, one per answer.
    """

    tokens: Array | np.ndarray
    where: Array | np.ndarray
    forced: Array | np.ndarray
    num_forced: Array | np.ndarray
    keys: PRNGKey


@flax.struct.dataclass
class Slots:
    """B answers in the making.

    Attributes:
      keys: `[L, P, B, K, Q, E]`, keys of each prompt and behind them of its answer, in P pieces of Q positions.
      values: the same of values.
      length: `[B]` int32, positions of the prompt.
      count: `[B]` int32, tokens of the answer so far.
      token: `[B]` int32, the last of them.
      done: `[B]` bool, whether the answer is finished or the slot empty.
      answers: `[B, M]` int32, the tokens, the pad id behind them.
      states: `[B, M, D]`, final hidden states behind the tokens, or `[B, 0, D]` where they are not kept.
      finite: `[B]` bool, whether all logits were finite.
      forced: `[B, F]` int32, how the answer begins.
      num_forced: `[B]` int32, how many of these exist.
      random: `[B]` random keys.
    """

    keys: Array
    values: Array
    length: Array
    count: Array
    token: Array
    done: Array
    answers: Array
    states: Array
    finite: Array
    forced: Array
    num_forced: Array
    random: PRNGKey


@jax.jit
def take(slots: Slots, chosen: Array | np.ndarray) -> Slots:
    """The chosen slots alone."""
    cache = {"keys": slots.keys[:, :, chosen], "values": slots.values[:, :, chosen]}
    names = [name for name in slots.__dataclass_fields__ if name not in cache]
    return Slots(**cache, **{name: getattr(slots, name)[chosen] for name in names})


@functools.partial(
    jax.jit, static_argnames=("decoder", "num", "size", "max_tokens", "num_forced", "keep_hidden", "pad_id")
)
def empty_slots(
    decoder: Decoder, num: int, size: int, *, max_tokens: int, num_forced: int, keep_hidden: bool, pad_id: int
) -> Slots:
    """B = `num` slots without an answer, of `size` positions each."""
    c = decoder.config
    length = piece_length(num, size)
    cache = jnp.zeros((c.num_layers, size // length, num, c.num_kv_heads, length, c.head_dim), decoder.dtype)
    cache = constrain(cache, decoder.mesh, None, None, "batch", "kv_heads", None, None)
    zeros = jnp.zeros((num,), jnp.int32)
    return Slots(
        keys=cache,
        values=cache,
        length=zeros,
        count=zeros,
        token=zeros,
        done=jnp.ones((num,), bool),
        answers=jnp.full((num, max_tokens), pad_id, jnp.int32),
        states=jnp.zeros((num, max_tokens if keep_hidden else 0, c.embed_dim), decoder.dtype),
        finite=jnp.ones((num,), bool),
        forced=jnp.zeros((num, num_forced), jnp.int32),
        num_forced=zeros,
        random=jax.vmap(jax.random.key)(jnp.zeros((num,), jnp.uint32)),
    )


def _choose(
    decoder: Decoder,
    params: Params,
    hidden: Array,
    slots: Slots,
    temperature: Array | None,
    suppressed_ids: tuple[int, ...],
) -> tuple[Array, Array]:
    """The next token of each slot, `[B]`, and whether its logits are finite."""
    logits: Array = decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    if suppressed_ids:
        logits = logits.at[:, jnp.array(suppressed_ids, jnp.int32)].set(-jnp.inf)
    if temperature is None:
        chosen, finite = _argmax(logits)
    else:
        chosen, finite = _sample(logits, jax.vmap(jax.random.fold_in)(slots.random, slots.count), temperature)
    if slots.forced.shape[1] == 0:
        return chosen, finite
    column = jnp.minimum(slots.count, slots.forced.shape[1] - 1)
    forced = jnp.take_along_axis(slots.forced, column[:, None], axis=1)[:, 0]
    return jnp.where(slots.count < slots.num_forced, forced, chosen), finite


def _append(
    decoder: Decoder,
    params: Params,
    hidden: Array,
    slots: Slots,
    temperature: Array | None,
    ids: TokenIds,
) -> Slots:
    """Chooses the next token of each unfinished slot from its hidden state `[B, D]` and writes both down."""
    token, finite = _choose(decoder, params, hidden, slots, temperature, ids.suppressed)
    max_tokens = slots.answers.shape[1]
    rows = jnp.arange(len(token), dtype=jnp.int32)
    column = jnp.where(slots.done, max_tokens, slots.count)  # behind the end: not written
    states = slots.states
    if states.shape[1]:
        states = states.at[rows, column].set(hidden.astype(states.dtype), mode="drop")
    count = slots.count + (~slots.done).astype(jnp.int32)
    ended = jnp.isin(token, jnp.array(ids.eos, jnp.int32)) | (count >= max_tokens)
    return slots.replace(  # type: ignore[attr-defined]
        token=token,
        answers=slots.answers.at[rows, column].set(token, mode="drop"),
        states=states,
        finite=slots.finite & (finite | slots.done),
        done=slots.done | ended,
        count=count,
    )


def as_pieces(block: Array, length: int) -> Array:
    """Cuts keys or values `[L, N, K, T, E]` into pieces `[L, P, N, K, Q, E]`, Q = `length`, zeros behind the last."""
    padded = jnp.pad(block, ((0, 0), (0, 0), (0, 0), (0, -block.shape[3] % length), (0, 0)))
    return jnp.moveaxis(padded.reshape(*block.shape[:3], -1, length, block.shape[4]), 3, 1)


@functools.partial(jax.jit, static_argnames=("decoder",))
def read(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    shared: KeyValues,
    tokens: Array | np.ndarray,
    where: Array | np.ndarray,
) -> tuple[Array, KeyValues]:
    """Reads N prompts; not part of `begin`, so that slots of all sizes share what takes longest to compile.

    Args:
      decoder: the module.
      params: its parameters.
      attached: what an adapter adds behind the shared positions, see `behind`.
      shared: keys and values of what all prompts begin with.
      tokens: see `Prompts`.
      where: the same.

    Returns:
      The hidden state of the last position of each, `[N, D]`, and keys and values of all.
    """
    output: DecoderOutput = decoder.apply({"params": params}, tokens, where=where, past=(shared,), **attached)  # type: ignore[assignment]
    last = jnp.sum(where, axis=1, dtype=jnp.int32) - 1
    return jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)[:, 0], output.key_values


@functools.partial(jax.jit, static_argnames=("decoder", "ids"), donate_argnames=("slots",))
def begin(
    decoder: Decoder,
    params: Params,
    slots: Slots,
    prompts: Prompts,
    last: Array,
    block: KeyValues,
    places: Array | np.ndarray,
    temperature: Array | None,
    *,
    ids: TokenIds,
) -> Slots:
    """Puts N prompts into slots, each with the first token of its answer.

    Args:
      decoder: the module.
      params: its parameters.
      slots: B slots; their memory is used again.
      prompts: the prompts; a repeated one goes to the same slot.
      last: see `read`.
      block: the same.
      places: `[N]` int32, the slots.
      temperature: of the sampling; None for greedy answers.
      ids: what ends an answer, what stands behind it, and what is never in it.

    Returns:
      The slots.
    """
    num = len(last)
    zeros = jnp.zeros((num,), jnp.int32)
    fresh = Slots(
        keys=block.keys,
        values=block.values,
        length=jnp.sum(prompts.where, axis=1, dtype=jnp.int32),
        count=zeros,
        token=zeros,
        done=jnp.zeros((num,), bool),
        answers=jnp.full((num, slots.answers.shape[1]), ids.pad, jnp.int32),
        states=jnp.zeros((num, *slots.states.shape[1:]), slots.states.dtype),
        finite=jnp.ones((num,), bool),
        forced=jnp.asarray(prompts.forced),
        num_forced=jnp.asarray(prompts.num_forced),
        random=prompts.keys,
    )
    fresh = _append(decoder, params, last, fresh, temperature, ids)

    def put(cache: Array, new: Array) -> Array:
        pieces = as_pieces(new, cache.shape[4]).astype(cache.dtype)
        return cache.at[:, : pieces.shape[1], places].set(pieces)

    cache = {"keys": put(slots.keys, fresh.keys), "values": put(slots.values, fresh.values)}
    names = [name for name in slots.__dataclass_fields__ if name not in cache]
    return Slots(**cache, **{name: getattr(slots, name).at[places].set(getattr(fresh, name)) for name in names})


def fill(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    shared: KeyValues,
    slots: Slots,
    prompts: Prompts,
    places: Array | np.ndarray,
    temperature: Array | None,
    *,
    ids: TokenIds,
) -> Slots:
    """Reads prompts into slots: `read`, then `begin`, whose arguments these are."""
    found = read(decoder, params, attached, shared, prompts.tokens, prompts.where)
    return begin(decoder, params, slots, prompts, *found, places, temperature, ids=ids)


@functools.partial(jax.jit, static_argnames=("decoder", "ids"), donate_argnames=("slots",))
def decode(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    shared: KeyValues,
    slots: Slots,
    limit: Array | np.ndarray | int,
    temperature: Array | None,
    *,
    ids: TokenIds,
) -> Slots:
    """Decodes all slots, one token at a time, until `limit` of them are finished; others as for `read` and `begin`."""
    count, num, length = slots.keys.shape[1], slots.keys.shape[2], slots.keys.shape[4]
    size = count * length
    rows, columns = jnp.arange(num, dtype=jnp.int32), jnp.arange(size, dtype=jnp.int32)

    def advance(slots: Slots) -> Slots:
        place = slots.length + slots.count - 1  # of the last token, among the positions of its slot
        filled = jnp.max(jnp.where(slots.done, 0, place))
        cache = Cache(slots.keys, slots.values, exists=columns[None] < place[:, None], filled=filled)
        output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
            {"params": params},
            slots.token[:, None],
            positions=(shared.keys.shape[3] + place)[:, None],
            past=(shared, cache),
            **attached,
        )
        place = jnp.where(slots.done, size, place)  # behind the end: not written

        def put(cache: Array, new: Array) -> Array:
            # Indexed axes come first: [B, L, K, E].
            return cache.at[:, place // length, rows, :, place % length].set(
                new[:, :, :, 0].swapaxes(0, 1).astype(cache.dtype), mode="drop"
            )

        slots = slots.replace(  # type: ignore[attr-defined]
            keys=put(slots.keys, output.key_values.keys), values=put(slots.values, output.key_values.values)
        )
        return _append(decoder, params, output.hidden[:, 0], slots, temperature, ids)

    return jax.lax.while_loop(lambda slots: jnp.sum(slots.done, dtype=jnp.int32) < limit, advance, slots)
