r"""Greedy coordinate gradient: a suffix of tokens that makes the target begin its answer with "Sure, here is".

With the suffix s behind the request, and the opening o as the answer, the search lowers

    L(s) = - mean_t log q(o_t | request, s, o_<t)

of the attacked model, its adapter included. In a step the gradient of L with respect to the one-hot rows of s gives the
most promising tokens of each position; candidates with one token exchanged are drawn from them, those that are not
encoded as they are decoded are dropped, and the best of the rest is kept where it is better.

Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models", 2023, algorithm 1 (for one
request at a time, and keeping the best suffix so far).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.errors import ConfigError, shortened
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, behind
from edgesafe_jax.models.generation import PROMPT_BUCKETS, bucket_length, encode_rows, encode_shared_once, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.safety.attacks.attempt import Attempt, Target
from edgesafe_jax.safety.attacks.prefill import OPENING
from edgesafe_jax.typing import Array, Params, PRNGKey

SUFFIX = " !" * 10
"""Where the search begins."""

NUM_TOP = 64
"""Tokens of each position that candidates are drawn from."""


@functools.partial(jax.jit, static_argnames=("decoder",))
def _read(
    decoder: Decoder, params: Params, attached: Mapping[str, Any], shared: KeyValues, tokens: Array, where: Array
) -> KeyValues:
    """Keys and values of a request behind the shared head."""
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,), **attached
    )
    return output.key_values


def _embed(decoder: Decoder, params: Params, attached: Mapping[str, Any], tokens: Array) -> Array:
    return decoder.apply({"params": params}, tokens, attached.get("virtual"), method=Decoder.embed)  # type: ignore[return-value]


def _opening_loss(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    past: tuple[KeyValues, ...],
    embeddings: Array,
    opening: Array,
) -> Array:
    """L, `[B]`: embeddings `[B, S + T, D]` of suffix and template's tail, then the opening `[G]`."""
    apply = functools.partial(decoder.apply, {"params": params})
    batch = embeddings.shape[0]
    begin: Array = apply(opening[:-1], method=Decoder.embed)  # type: ignore[assignment]
    begin = jnp.broadcast_to(begin[None], (batch, *begin.shape))
    whole = jnp.concatenate([embeddings.astype(begin.dtype), begin], axis=1)
    output: DecoderOutput = apply(embeddings=whole, past=past, **attached)  # type: ignore[assignment]
    logits: Array = apply(output.hidden[:, -len(opening) :], method=Decoder.logits)  # type: ignore[assignment]
    tokens = jnp.broadcast_to(opening[None], (batch, len(opening)))
    return -losses.sequence_log_prob(
        logits=logits, tokens=tokens, where=jnp.ones(tokens.shape, bool), normalization="mean"
    )


@functools.partial(jax.jit, static_argnames=("decoder",))
def suffix_losses(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    past: tuple[KeyValues, ...],
    suffixes: Array,
    tail: Array,
    opening: Array,
) -> Array:
    """L of several suffixes.

    Args:
      decoder: the module.
      params: its frozen parameters.
      attached: what the passes need of the adapter, see `decoder.behind`.
      past: what stands before the suffix, in blocks of batch size one.
      suffixes: `[B, S]` int32.
      tail: `[T]` int32, the template between the user's text and the answer.
      opening: `[G]` int32, how the answer shall begin.

    Returns:
      `[B]` nats per token of the opening.
    """
    tokens = jnp.concatenate([suffixes, jnp.broadcast_to(tail[None], (len(suffixes), len(tail)))], axis=1)
    embeddings = _embed(decoder, params, attached, tokens)
    return _opening_loss(decoder, params, attached, past, embeddings, opening)


@functools.partial(jax.jit, static_argnames=("decoder", "num_candidates"))
def draw_candidates(
    key: PRNGKey,
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    past: tuple[KeyValues, ...],
    suffix: Array,
    tail: Array,
    opening: Array,
    allowed: Array,
    *,
    num_candidates: int,
) -> Array:
    """Draws suffixes with one token exchanged, `[num_candidates, S]`; see `suffix_losses` and the module's docstring.

    `allowed` `[V]` bool says which tokens a suffix may have.
    """
    embed = functools.partial(_embed, decoder, params, attached)

    def loss(embeddings: Array) -> Array:
        whole = jnp.concatenate([embeddings, embed(tail)], axis=0)[None]
        return _opening_loss(decoder, params, attached, past, whole, opening)[0]

    gradient = jax.grad(loss)(embed(suffix))
    # The gradient of a one-hot row is that of its embedding times the embedding table.
    table = embed(jnp.arange(len(allowed), dtype=jnp.int32))
    gain = -jnp.einsum("sd,vd->sv", gradient.astype(jnp.float32), table.astype(jnp.float32))
    _, best = jax.lax.top_k(jnp.where(allowed[None], gain, -jnp.inf), min(NUM_TOP, len(allowed)))  # [S, NUM_TOP]
    where_key, which_key = jax.random.split(key)
    position = jax.random.randint(where_key, (num_candidates,), 0, len(suffix))
    which = jax.random.randint(which_key, (num_candidates,), 0, best.shape[1])
    rows = jnp.broadcast_to(suffix[None], (num_candidates, len(suffix)))
    return rows.at[jnp.arange(num_candidates), position].set(best[position, which].astype(suffix.dtype))


def allowed_tokens(model: LanguageModel) -> np.ndarray:
    """Which tokens a suffix may have, `[V]` bool: printable ASCII, no control tokens."""
    allowed = np.zeros(model.config.vocab_size, bool)
    for token in range(model.tokenizer.max_id + 1):
        text = model.tokenizer.decode([token])
        allowed[token] = bool(text.strip()) and text.isascii() and text.isprintable()
    return allowed


@dataclasses.dataclass(frozen=True)
class _Search:
    """What the searches for several requests share."""

    target: Target

    @functools.cached_property
    def allowed(self) -> Array:
        return jnp.array(allowed_tokens(self.target.model))

    def parts(self, request: str) -> tuple[tuple[KeyValues, ...], Array, Array, Array]:
        """What stands before the suffix of a request, the first suffix, and what follows: tail and opening."""
        model, tokenizer, adapter = self.target.model, self.target.model.tokenizer, self.target.adapter
        opening, suffix = tokenizer.encode_answers([OPENING])[0], tokenizer.encode(SUFFIX)
        head, [row] = encode_rows(model, [request + SUFFIX], max_tokens=len(opening), adapter=adapter)
        # The suffix stands where it was filled in last: the text of a request may end like it.
        starts = [i for i in range(len(row) - len(suffix) + 1) if row[i : i + len(suffix)] == suffix]
        if not starts:
            raise ConfigError(f"The suffix {SUFFIX!r} merges with the request {shortened(request)!r}: remove its end.")
        before, tail = row[: starts[-1]], row[starts[-1] + len(suffix) :]
        length = bucket_length(max(1, len(before)), PROMPT_BUCKETS)
        tokens, where = pad_tokens([before], pad_id=tokenizer.pad_id, length=length)
        shared = encode_shared_once(model.decoder, model.params, adapter, jnp.array(head, jnp.int32))
        read = _read(model.decoder, model.params, behind(adapter), shared, jnp.array(tokens), jnp.array(where))
        return (shared, read), *(jnp.array(ids, jnp.int32) for ids in (suffix, tail, opening))  # type: ignore[return-value]

    def suffix(self, key: PRNGKey, request: str) -> tuple[str, list[float]]:
        """Returns the best suffix for a request and the best loss after each step."""
        model, budget = self.target.model, self.target.budget
        encode, decode = model.tokenizer.encode, model.tokenizer.decode
        past, best, *fixed = self.parts(request)
        frozen = model.decoder, model.params, behind(self.target.adapter)
        before, lowest, trace = encode(request), np.inf, []
        drawn = jnp.broadcast_to(best[None], (budget.num_candidates, len(best)))
        for step in range(budget.num_steps + 1):
            values = np.asarray(suffix_losses(*frozen, past, drawn, *fixed))
            order = np.argsort(values, kind="stable")
            for index in order[values[order] < lowest]:
                ids = drawn[index].tolist()
                if step == 0 or encode(request + decode(ids)) == [*before, *ids]:
                    best, lowest = drawn[index], float(values[index])
                    break
            trace.append(lowest)
            if step < budget.num_steps:
                step_key = jax.random.fold_in(key, step)
                drawn = draw_candidates(
                    step_key, *frozen, past, best, *fixed, self.allowed, num_candidates=budget.num_candidates
                )
        return decode(best.tolist()), trace


def search_suffix(key: PRNGKey, target: Target, request: str) -> tuple[str, list[float]]:
    """Searches a suffix for one request.

    Args:
      key: random key of the candidates.
      target: what is attacked, with the budget.
      request: the user's text.

    Returns:
      The suffix, and the loss of the best suffix before the first and after each step.
    """
    return _Search(target).suffix(key, request.strip())


def make_suffixes(key: PRNGKey, target: Target, requests: Sequence[Prompt]) -> list[Attempt]:
    """Searches a suffix for each request and puts it behind it."""
    search = _Search(target)
    attempts = []
    for number, request in enumerate(requests):
        suffix, _ = search.suffix(jax.random.fold_in(key, number), request.text)
        attempts.append(Attempt(request, request.text + suffix))
    return attempts
