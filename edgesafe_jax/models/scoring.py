"""Log-likelihood of given answers: multiple choice and divergence from the base model."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.errors import ConfigError, check_counts, check_texts
from edgesafe_jax.models.chats import Chat, check_chats
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, behind
from edgesafe_jax.models.finite import check_finite
from edgesafe_jax.models.generation import (
    PROMPT_BUCKETS,
    bucket_length,
    encode_prompts,
    encode_rows,
    encode_shared_once,
    pad_tokens,
)
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import head_of
from edgesafe_jax.typing import Adapter, Array, Params, ProgressFn


@functools.partial(jax.jit, static_argnames=("decoder",))
def _hidden(
    decoder: Decoder,
    params: Params,
    attached: Mapping[str, Any],
    shared: KeyValues,
    tokens: Array,
    where: Array,
) -> Array:
    """Returns the hidden states of all positions, `[B, T, D]`."""
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,), **attached
    )
    return output.hidden


@functools.partial(jax.jit, static_argnames=("num_answer",))
def _answer_hidden(hidden: Array, start: Array, *, num_answer: int) -> Array:
    """Returns the hidden states that predict each answer token, `[B, num_answer, D]`.

    A program of its own: the decoder is then compiled for each length of a row, and not for that of the answers too.
    """
    columns = start[:, None] - 1 + jnp.arange(num_answer, dtype=jnp.int32)[None]
    return jnp.take_along_axis(hidden, jnp.clip(columns, 0, hidden.shape[1] - 1)[:, :, None], axis=1)


@functools.partial(jax.jit, static_argnames=("decoder",))
def _log_probs(decoder: Decoder, params: Params, hidden: Array, answer: Array, where: Array) -> Array:
    logits: Array = decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    return losses.sequence_log_prob(logits=logits, tokens=answer, where=where, normalization="sum")


@functools.partial(jax.jit, static_argnames=("decoder",))
def _mean_kl(decoder: Decoder, params: Params, student: Array, teacher: Array, where: Array) -> Array:
    head = functools.partial(decoder.apply, {"params": params}, method=Decoder.logits)
    divergence = losses.forward_kl(student_logits=head(student), teacher_logits=head(teacher), where=where)  # type: ignore[arg-type]
    return jnp.sum(divergence, axis=1) / jnp.maximum(jnp.sum(where, axis=1, dtype=jnp.float32), 1.0)


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Deals rows out in the order of their lengths: yields those of a batch, and the same filled up with repeats."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen, chosen + [chosen[-1]] * (batch_size - len(chosen))


def _hidden_of(
    model: LanguageModel,
    adapter: Adapter | None,
    shared: KeyValues,
    prompts: list[list[int]],
    answers: list[list[int]],
    length: int,
) -> tuple[Array, np.ndarray, np.ndarray]:
    """Hidden states over one batch; returns them with the padded answers and which tokens exist."""
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    total = bucket_length(max(map(len, rows)), PROMPT_BUCKETS)
    tokens, where = pad_tokens(rows, pad_id=model.tokenizer.pad_id, length=total)
    answer, answer_where = pad_tokens(answers, pad_id=model.tokenizer.pad_id, length=length)
    start = np.array([len(p) for p in prompts], np.int32)
    hidden = _hidden(model.decoder, model.params, behind(adapter), shared, tokens, where)
    return _answer_hidden(hidden, start, num_answer=length), answer, answer_where


def _routed(
    model: LanguageModel,
    prompts: Sequence[str | Chat],
    adapter: Adapter | None,
    run: Callable[[np.ndarray, Adapter | None], np.ndarray],
) -> np.ndarray | None:
    """Values `[N]` of prompts among which a gate decides; None where it does not.

    Args:
      model: the frozen language model.
      prompts: N user texts.
      adapter: that may have a gate.
      run: from row numbers and what they run with to their values.
    """
    routes = None if adapter is None else adapter.routes(model, prompts)
    if routes is None:
        return None
    values = np.zeros(len(prompts))
    for rows, each in routes:
        if len(rows):
            values[rows] = run(rows, each)
    return values


def answer_log_probs(
    model: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    adapter: Adapter | None = None,
    batch_size: int = 16,
    on_batch: ProgressFn | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of given answers to one-turn chats.

    Args:
      model: the frozen language model.
      prompts: N user texts.
      answers: N answers.
      adapter: a soft prompt, a LoRA or another adapter, or None.
      batch_size: rows that run at once.
      on_batch: called with (rows done, rows in total).

    Returns:
      `[N]` log-probability of the whole answer in nats, and `[N]` its number of tokens.

    Raises:
      ConfigError: other numbers of prompts and answers, an empty answer, or a count below 1.
      NonFiniteError: the model computed NaN or infinity.
    """
    prompts, answers = check_texts("prompts", prompts), check_texts("answers", answers)
    if len(prompts) != len(answers):
        raise ConfigError(f"{len(prompts)} prompts and {len(answers)} answers: expected as many of each.")
    check_counts(batch_size=batch_size)
    encoded = model.tokenizer.encode_answers(answers)
    for index, row in enumerate(encoded):
        if not row:
            raise ConfigError(f"Answer {index} is empty: it has no log-probability.")
    counts = np.array([len(row) for row in encoded])
    routed = _routed(
        model,
        prompts,
        adapter,
        lambda rows, each: answer_log_probs(
            model, [prompts[i] for i in rows], [answers[i] for i in rows], adapter=each, batch_size=batch_size
        )[0],
    )
    if routed is not None:
        return routed, counts
    longest = max(map(len, encoded), default=1)
    rows = encode_prompts(model, prompts, max_tokens=longest, adapter=adapter)
    shared = encode_shared_once(model.decoder, model.params, adapter, head_of(model, adapter))
    result = np.zeros(len(rows))
    lengths = [len(row) + len(answer) for row, answer in zip(rows, encoded, strict=True)]
    done = 0
    for chosen, filled in _batches(lengths, batch_size):
        length = 1 << (max(len(encoded[i]) for i in filled) - 1).bit_length()
        hidden, answer, where = _hidden_of(
            model, adapter, shared, [rows[i] for i in filled], [encoded[i] for i in filled], length
        )
        values = _log_probs(model.decoder, model.params, hidden, jnp.array(answer), jnp.array(where))
        result[chosen] = np.asarray(values)[: len(chosen)]
        done += len(chosen)
        if on_batch is not None:
            on_batch(done, len(rows))
    _check(result, "The log-probabilities of answer", model, adapter)
    return result, counts


@functools.partial(jax.jit, static_argnames=("decoder",))
def _margins(decoder: Decoder, params: Params, hidden: Array, token: Array) -> Array:
    logits: Array = decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    return logits[:, token] - jnp.max(logits.at[:, token].set(-jnp.inf), axis=1)


def first_token_margins(
    model: LanguageModel,
    prompts: Sequence[str | Chat],
    token: int,
    *,
    adapter: Adapter | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """By how much a token leads where the answers to chats begin.

    Args:
      model: the frozen language model.
      prompts: N user texts, or chats of several turns.
      token: its id.
      adapter: a soft prompt, a LoRA or another adapter, or None.
      batch_size: rows that run at once.

    Returns:
      `[N]` nats, the log-probability of that token less that of the likeliest other one.

    Raises:
      ConfigError: an id outside the vocabulary, or a count below 1.
      NonFiniteError: the model computed NaN or infinity.
    """
    check_counts(batch_size=batch_size)
    if not 0 <= token < model.config.vocab_size:
        raise ConfigError(f"token={token}: expected an id below {model.config.vocab_size}.")
    prompts = check_chats("prompts", prompts)
    run = functools.partial(first_token_margins, model, token=token, batch_size=batch_size)
    routed = _routed(model, prompts, adapter, lambda rows, each: run([prompts[i] for i in rows], adapter=each))
    if routed is not None:
        return routed
    head, rows = encode_rows(model, prompts, max_tokens=1, adapter=adapter)
    shared = encode_shared_once(model.decoder, model.params, adapter, jnp.array(head, jnp.int32))
    result = np.zeros(len(rows))
    for chosen, filled in _batches([len(row) for row in rows], batch_size):
        hidden, _, _ = _hidden_of(model, adapter, shared, [rows[i] for i in filled], [[] for _ in filled], 1)
        values = _margins(model.decoder, model.params, hidden[:, 0], jnp.int32(token))
        result[chosen] = np.asarray(values)[: len(chosen)]
    _check(result, "The margins of prompt", model, adapter)
    return result


def kl_from_base(
    model: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[Sequence[int]],
    *,
    adapter: Adapter,
    batch_size: int = 16,
) -> np.ndarray:
    """Forward KL per token from the base model to the adapted one, along given answers.

    Args:
      model: the frozen language model.
      prompts: N user texts.
      answers: N answers as token ids, usually the base model's own.
      adapter: what is compared with the bare model.
      batch_size: rows that run at once.

    Returns:
      `[N]` nats per token, averaged over each answer; zero for an empty answer.

    Raises:
      ConfigError: other numbers of prompts and answers, texts for token ids, or a count below 1.
      NonFiniteError: the model computed NaN or infinity.
    """
    check_counts(batch_size=batch_size)
    if isinstance(answers, str) or any(isinstance(answer, str) for answer in answers):
        raise ConfigError("answers are texts: expected token ids, such as those of model.tokenizer.encode_answers.")
    prompts = check_texts("prompts", prompts)
    if len(prompts) != len(answers):
        raise ConfigError(f"{len(prompts)} prompts and {len(answers)} answers: expected as many of each.")

    def run(rows: np.ndarray, each: Adapter | None) -> np.ndarray:
        if each is None:  # the base model itself
            return np.zeros(len(rows))
        asked, said = [prompts[i] for i in rows], [answers[i] for i in rows]
        return kl_from_base(model, asked, said, adapter=each, batch_size=batch_size)

    routed = _routed(model, prompts, adapter, run)
    if routed is not None:
        return routed
    longest = max((len(a) for a in answers), default=1)
    both = None, adapter
    rows, adapted_rows = (encode_prompts(model, prompts, max_tokens=longest, adapter=each) for each in both)
    base, adapted = (encode_shared_once(model.decoder, model.params, each, head_of(model, each)) for each in both)
    result = np.zeros(len(rows))
    for chosen, filled in _batches([len(row) for row in rows], batch_size):
        chosen_answers = [list(answers[i]) for i in filled]
        teacher, _, where = _hidden_of(model, None, base, [rows[i] for i in filled], chosen_answers, longest)
        student, _, _ = _hidden_of(model, adapter, adapted, [adapted_rows[i] for i in filled], chosen_answers, longest)
        values = _mean_kl(model.decoder, model.params, student, teacher, jnp.array(where))
        result[chosen] = np.asarray(values)[: len(chosen)]
    _check(result, "The divergences of answer", model, adapter)
    return result


def _check(values: np.ndarray, what: str, model: LanguageModel, adapter: Adapter | None) -> None:
    check_finite(values, what, sources=(("parameter", model.params), ("adapter", adapter)))
