"""Rows of other outcomes than the teacher's: pairs, and answers that the student samples."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses, parallel
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.verdicts import checked
from edgesafe_jax.models.chats import flat_text
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import Generation, generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import head_of
from edgesafe_jax.safety.objectives.base import BatchSource
from edgesafe_jax.safety.teacher import TeacherBatch, outcome_hidden, project
from edgesafe_jax.typing import Adapter, Array, Params

_STREAM = 5
"""Of the run's random key, for the student's samples."""


def prompts_of(source: BatchSource, step: int, rows_per_prompt: int) -> np.ndarray:
    """Chooses the prompts of a step of which each gets several rows.

    Args:
      source: with the order of the rows.
      step: of the run.
      rows_per_prompt: K; every K-th row of the step's order counts, beginning at another one in each step, so that all
        groups of rows come up.

    Returns:
      Numbers of the prompts, `[B / K]`.
    """
    return source.data.sample[source.order(step)[step % rows_per_prompt :: rows_per_prompt]]


def make_rows(
    source: BatchSource,
    prompts: np.ndarray,
    outcomes: Sequence[Sequence[int]],
    *,
    is_refusal: np.ndarray,
    weight: np.ndarray,
    max_tokens: int,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> TeacherBatch:
    """Pads rows of given outcomes.

    Args:
      source: with the prompts.
      prompts: `[B]`, the number of each row's prompt.
      outcomes: token ids, B rows.
      is_refusal: `[B]` bool.
      weight: `[B]`.
      max_tokens: O, at least the longest outcome: the same in all steps, for each is compiled.
      prefixes: how each row's answer has begun before the outcome, or None.

    Returns:
      The rows; their teacher's hidden states are those along the base model's own answers.
    """
    data = dataclasses.replace(
        source.data,
        sample=prompts,
        outcomes=[list(outcome) for outcome in outcomes],
        is_refusal=np.asarray(is_refusal, bool),
        weight=np.asarray(weight, np.float32),
        max_tokens=max_tokens,
    )
    return data.batch(np.arange(len(prompts)), pad_id=source.model.tokenizer.pad_id, prefixes=prefixes)


@functools.partial(jax.jit, static_argnames="decoder")
def _along(
    decoder: Decoder, params: Params, adapter: Adapter | None, head: Array, batch: TeacherBatch
) -> tuple[Array, Array]:
    hidden = outcome_hidden(decoder, params, adapter, head, batch)
    log_prob = losses.linear_log_prob(
        hidden=hidden,
        tokens=batch.outcome,
        head=params,
        project=functools.partial(project, decoder),
        where=batch.outcome_where,
    )
    return hidden, log_prob


def along(
    model: LanguageModel, batch: TeacherBatch, adapter: Adapter | None = None, *, head: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a model along the outcomes of rows, without a gradient.

    Args:
      model: the frozen language model.
      batch: B rows.
      adapter: on the model, or None for the base model.
      head: what the chats begin with, see `TeacherData.head`; None for the head of one-turn chats.

    Returns:
      The hidden states that predict each token, `[B, O, D]` float32, and the log-probabilities of the tokens, `[B, O]`.
    """
    placed = jnp.array(head_of(model, adapter, head))
    hidden, log_prob = _along(model.decoder, model.params, adapter, placed, batch)
    return np.asarray(hidden, np.float32), np.asarray(log_prob)


def sample_answers(
    source: BatchSource, adapter: Adapter, prompts: np.ndarray, step: int, *, max_tokens: int
) -> Generation:
    """Samples an answer of the student to each prompt, at temperature 1.

    Args:
      source: with texts and seed.
      adapter: of the student.
      prompts: numbers of the prompts.
      step: of the run: the same step draws the same answers.
      max_tokens: longest answer, with its end.

    Returns:
      The answers.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(source.seed), _STREAM), step)
    return generate(
        source.model,
        [source.texts[int(number)] for number in prompts],
        max_tokens=max_tokens,
        adapter=parallel.to_local(adapter),
        temperature=1.0,
        key=key,
    )


def as_outcomes(answers: Generation) -> list[list[int]]:
    """Sampled answers as outcomes: with the token that ended each one, where one did."""
    assert answers.ends is not None
    return [
        [*tokens, *([] if end is None else [end])] for tokens, end in zip(answers.tokens, answers.ends, strict=True)
    ]


def reward_of(source: BatchSource, prompts: np.ndarray, answers: Generation) -> np.ndarray:
    """The guard's P(safe) of answers, `[B]` float32.

    Raises:
      ConfigError: there is no guard.
      GuardError: the guard returned something other than probabilities.
    """
    if source.guard is None:
        raise ConfigError("The objective rewards answers by a guard: expected one in BatchSource.guard.")
    unsafe = checked(source.guard)([flat_text(source.texts[int(number)]) for number in prompts], answers.texts)
    return np.asarray(1.0 - unsafe, np.float32)
