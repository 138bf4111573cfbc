"""The evaluation of an exported model inside a runtime: the prompts, judges and questions of `safety.evaluation`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax.corpora import Prompt, multiple_choice
from edgesafe_jax.errors import lookup
from edgesafe_jax.exporting.llama_cpp import LlamaCpp
from edgesafe_jax.exporting.runtime import Runtime, RuntimeSettings
from edgesafe_jax.metrics import rate_interval
from edgesafe_jax.reporting import Table, make_table
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.safety.attacks.prefill import OPENING
from edgesafe_jax.safety.judging import Judged, Judges, judge_responses
from edgesafe_jax.safety.report import safe_rate, title_of
from edgesafe_jax.training import write_summary

RUNTIMES: dict[str, Callable[[str | Path, RuntimeSettings], Runtime]] = {"llama_cpp": LlamaCpp}
"""Runtimes by name: from a model's file and settings to the running program. One entry adds one."""


def start_runtime(name: str, path: str | Path, settings: RuntimeSettings | None = None) -> Runtime:
    """Starts a runtime.

    Args:
      name: in `RUNTIMES`.
      path: the model's file.
      settings: of the runtime.

    Raises:
      ConfigError: an unknown name.
      RuntimeFailure: it is not installed, or cannot load the file.
    """
    return lookup(RUNTIMES, name, "runtime")(path, settings or RuntimeSettings())


@dataclasses.dataclass(frozen=True)
class RuntimeEvaluation:
    """The results of an evaluation inside a runtime.

    Attributes:
      prompts: by set.
      judged: responses and verdicts by set; "prefill" is StrongREJECT with prefilled answers.
      choices: by multiple-choice set `[N]` bool, which questions were answered correctly.
      first_seconds: `[N]`, until the first token of each answer.
      tokens_per_second: `[N]`, of the following ones.
    """

    prompts: Mapping[str, Sequence[Prompt]]
    judged: Mapping[str, Judged]
    choices: Mapping[str, np.ndarray]
    first_seconds: np.ndarray
    tokens_per_second: np.ndarray


def evaluate_runtime(
    runtime: Runtime,
    sets: Mapping[str, Sequence[Prompt]],
    judges: Judges,
    *,
    max_tokens: int,
    num_prefill: int | None = 0,
    choices: Sequence[str] = (),
    num_choices: int | None = None,
) -> RuntimeEvaluation:
    """Measures safety and usefulness of the model that a runtime runs.

    Args:
      runtime: the runtime.
      sets: prompts by set, such as those of `safety.prompts.evaluation_prompts`.
      judges: who gives verdicts.
      max_tokens: longest answer.
      num_prefill: requests of StrongREJECT whose answer is made to begin with `OPENING`; None for all.
      choices: multiple-choice sets, names in `corpora.MULTIPLE_CHOICE`.
      num_choices: questions of each; None for all.

    Returns:
      Responses, verdicts and accuracies.
    """
    asked = {name: list(found) for name, found in sets.items()}
    if num_prefill != 0 and "strongreject" in asked:
        asked["prefill"] = asked["strongreject"][:num_prefill]
    judged, first, rate = {}, [], []
    for name, prompts in asked.items():
        texts = [prompt.text for prompt in prompts]
        begun = [OPENING] * len(texts) if name == "prefill" else None
        with ProgressBar(f"answering {name}") as progress:
            answers = runtime.answer(texts, max_tokens=max_tokens, prefills=begun, on_batch=progress)
        judged[name] = judge_responses(texts, answers.texts, answers.tokens, judges)
        first.append(answers.first_seconds)
        rate.append(answers.tokens_per_second)
    correct = {}
    for name in choices:
        questions = multiple_choice(name)[:num_choices]
        contexts = [question.context for question in questions for _ in question.options]
        options = [option for question in questions for option in question.options]
        with ProgressBar(f"multiple choice: {name}") as progress:
            total, count = runtime.answer_log_probs(contexts, options, on_batch=progress)
        ends = np.cumsum([len(question.options) for question in questions])[:-1]
        best = [int(np.argmax(part)) for part in np.split(total / count, ends)]
        correct[name] = np.array([mine == question.answer for mine, question in zip(best, questions, strict=True)])
    return RuntimeEvaluation(asked, judged, correct, np.concatenate(first), np.concatenate(rate))


def runtime_numbers(found: RuntimeEvaluation) -> dict[str, float]:
    """Flat numbers with the ends of their intervals."""
    values: dict[str, float] = {}
    for name, judged in found.judged.items():
        values[f"{name}/num_prompts"] = len(judged.responses)
        for judge, refused in judged.refusals.items():
            values |= rate_interval(refused).named(f"{name}/runtime/{judge}")
        for guard in judged.unsafe_probs:
            values |= safe_rate(judged, guard).named(f"{name}/runtime/sgs_{guard}")
    for name, correct in found.choices.items():
        values |= rate_interval(correct).named(f"{name}/runtime")
    values["speed/first_token_seconds"] = float(np.median(found.first_seconds))
    values["speed/tokens_per_second"] = float(np.nanmedian(found.tokens_per_second))
    return values


def runtime_table(found: RuntimeEvaluation) -> Table:
    """Refusals and safe answers by set, and accuracies."""
    rows: list[dict[str, Any]] = []
    for name, judged in found.judged.items():
        refusals = {judge: rate_interval(verdict) for judge, verdict in judged.refusals.items()}
        safe = {f"safe by {guard}": safe_rate(judged, guard) for guard in judged.unsafe_probs}
        rows.append({"prompts": title_of(name), "N": len(judged.responses), **refusals, **safe})
    rows += [
        {"prompts": f"{name} accuracy", "N": len(correct), "correct": rate_interval(correct)}
        for name, correct in found.choices.items()
    ]
    return make_table(rows)


def write_results(folder: Path, found: RuntimeEvaluation) -> Table:
    """Writes the numbers into the `summary.json` of a folder, section "runtime"; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_summary(folder, "runtime", runtime_numbers(found))
    return runtime_table(found)
