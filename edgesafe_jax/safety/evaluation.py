"""What an aligned model is measured by: safety, over-refusal, fidelity to its teacher, usefulness and cost."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgesafe_jax.corpora import Choice, Prompt
from edgesafe_jax.guards.verdicts import Guard, checked
from edgesafe_jax.metrics.refusal import refused_by_pattern
from edgesafe_jax.models.decoder_config import flops_per_token, num_params
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.scoring import answer_log_probs
from edgesafe_jax.safety.system import SafeSystem
from edgesafe_jax.typing import Adapter, ProgressFn

RefusedByMeaning = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Responses to one set of prompts, with every verdict on them.

    Attributes:
      responses: N texts.
      tokens: the same as token ids.
      refused: `[N]` bool, by the words at the start of the response.
      refused_by_meaning: `[N]` bool, by the meaning of its first sentences; all False if there is no such verdict.
      unsafe: `[N]` P(unsafe) by the teacher guard.
      judge_unsafe: `[N]` P(unsafe) by the independent judge; NaN if there is none.
    """

    responses: list[str]
    tokens: list[list[int]]
    refused: np.ndarray
    refused_by_meaning: np.ndarray
    unsafe: np.ndarray
    judge_unsafe: np.ndarray


@dataclasses.dataclass(frozen=True)
class Judges:
    """Whoever gives verdicts on responses.

    Attributes:
      teacher: the guard that the student was distilled from.
      judge: an independent guard, or None.
      by_meaning: a verdict on refusals by meaning, or None.
    """

    teacher: Guard
    judge: Guard | None = None
    by_meaning: RefusedByMeaning | None = None


def judge_responses(
    prompts: Sequence[str], responses: Sequence[str], tokens: Sequence[Sequence[int]], judges: Judges
) -> Judged:
    """Collects all verdicts on given responses."""
    nothing = np.zeros(len(prompts), bool)
    return Judged(
        responses=list(responses),
        tokens=[list(row) for row in tokens],
        refused=np.array([refused_by_pattern(text) for text in responses], bool),
        refused_by_meaning=nothing if judges.by_meaning is None else np.asarray(judges.by_meaning(responses), bool),
        unsafe=checked(judges.teacher)(prompts, responses),
        judge_unsafe=np.full(len(prompts), np.nan)
        if judges.judge is None
        else checked(judges.judge)(prompts, responses),
    )


@dataclasses.dataclass(frozen=True)
class SetResult:
    """One evaluation set: the base model, the student and the safe system on the same prompts.

    Attributes:
      prompts: the prompts.
      base: the bare model.
      student: the model with its adapter and no guard.
      system: base model + guard; where the guard objects its response is the refusal.
      system_refused: `[N]` bool, where the guard objected.
    """

    prompts: list[Prompt]
    base: Judged
    student: Judged
    system: Judged
    system_refused: np.ndarray


def evaluate_set(
    model: LanguageModel,
    adapter: Adapter,
    system: SafeSystem,
    prompts: Sequence[Prompt],
    judges: Judges,
    *,
    max_tokens: int,
    batch_size: int = 64,
    prefills: Sequence[str] | None = None,
    on_batch: ProgressFn | None = None,
) -> SetResult:
    """Answers a set of prompts greedily with base model, student and safe system, and judges the answers.

    Args:
      model: the frozen language model.
      adapter: the student's.
      system: the teacher.
      prompts: the set.
      judges: who gives verdicts.
      max_tokens: longest answer, in tokens.
      batch_size: rows that run at once.
      prefills: how each answer is made to begin (a prefill attack), or None.
      on_batch: called with (answers done, answers in total).

    Returns:
      Responses and verdicts.
    """
    texts = [p.text for p in prompts]
    total = 2 * len(texts)

    def report(offset: int) -> ProgressFn | None:
        if (call := on_batch) is None:
            return None
        return lambda done, _: call(offset + done, total)

    student = generate(
        model,
        texts,
        max_tokens=max_tokens,
        adapter=adapter,
        prefills=prefills,
        batch_size=batch_size,
        on_batch=report(0),
    )
    answered = system.answer(
        texts, max_tokens=max_tokens, prefills=prefills, batch_size=batch_size, on_batch=report(len(texts))
    )
    gated = [[] if no else tokens for no, tokens in zip(answered.refused, answered.base.tokens, strict=True)]
    base, aligned, safe = _judge_each_once(
        texts,
        [
            (answered.base.texts, answered.base.tokens),
            (student.texts, student.tokens),
            (answered.responses, gated),
        ],
        judges,
    )
    return SetResult(list(prompts), base, aligned, safe, answered.refused)


def _judge_each_once(
    prompts: Sequence[str], answers: Sequence[tuple[Sequence[str], Sequence[Sequence[int]]]], judges: Judges
) -> list[Judged]:
    """Collects the verdicts on several answers to each prompt; a pair that occurs twice is judged once."""
    rows: dict[tuple[int, str], int] = {}
    for responses, _ in answers:
        for pair in enumerate(responses):
            rows.setdefault(pair, len(rows))
    judged = judge_responses(
        [prompts[index] for index, _ in rows], [response for _, response in rows], [[] for _ in rows], judges
    )
    found = []
    for responses, tokens in answers:
        chosen = np.array([rows[pair] for pair in enumerate(responses)], int)
        verdicts = (judged.refused, judged.refused_by_meaning, judged.unsafe, judged.judge_unsafe)
        found.append(Judged(list(responses), [list(row) for row in tokens], *(each[chosen] for each in verdicts)))
    return found


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """Accuracy by log-likelihood, per question.

    Attributes:
      correct: `[N]` bool.
    """

    correct: np.ndarray


def multiple_choice(
    model: LanguageModel,
    choices: Sequence[Choice],
    *,
    adapter: Adapter | None = None,
    batch_size: int = 16,
    on_batch: ProgressFn | None = None,
) -> MultipleChoice:
    """Answers multiple-choice questions with the option of highest log-probability per token.

    Args:
      model: the frozen language model.
      choices: N questions.
      adapter: a soft prompt, a LoRA or another adapter, or None.
      batch_size: options that run at once.
      on_batch: called with (options done, options in total).

    Returns:
      Which of the questions were answered correctly.

    Raises:
      ValueError: no questions.
    """
    if not choices:
        raise ValueError("There are no questions: expected at least one.")
    contexts = [choice.context for choice in choices for _ in choice.options]
    options = [option for choice in choices for option in choice.options]
    total, count = answer_log_probs(model, contexts, options, adapter=adapter, batch_size=batch_size, on_batch=on_batch)
    mean = total / count
    correct, start = [], 0
    for choice in choices:
        stop = start + len(choice.options)
        correct.append(int(np.argmax(mean[start:stop])) == choice.answer)
        start = stop
    return MultipleChoice(np.array(correct, bool))


def costs(
    model: LanguageModel, adapter: Adapter, *, guard_params: int, guard_layers: int, context: int = 512
) -> Mapping[str, Mapping[str, float]]:
    """Parameters, bytes and operations per token of base model, safe system and aligned model.

    The safe system reads every token a second time, as deep as its guard looks. The aligned model has only its virtual
    positions on top: they lengthen the context of every token, and are computed once.

    Args:
      model: the frozen language model.
      adapter: the student's.
      guard_params: numbers in the guard's head.
      guard_layers: layers of the language model that the guard computes.
      context: positions that a token sees.

    Returns:
      By model: `params`, `bytes` (float32) and `flops_per_token`.
    """
    config = model.config
    params = num_params(model.params)
    virtual = adapter.num_virtual
    base = flops_per_token(config, context=context)
    guard = flops_per_token(dataclasses.replace(config, num_layers=guard_layers), context=context, with_head=False)
    added = virtual * config.embed_dim
    rows = {
        "base": (params, base),
        "system": (params + guard_params, base + guard),
        "student": (params + added, flops_per_token(config, context=context + virtual)),
    }
    return {
        name: {"params": float(count), "bytes": 4.0 * count, "flops_per_token": flops}
        for name, (count, flops) in rows.items()
    }
