"""Evaluation of an aligned model: safety, over-refusal, fidelity to its teacher, usefulness and cost."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from edgesafe_jax.adapters import budget
from edgesafe_jax.corpora import MULTIPLE_CHOICE, Choice, Prompt, Records
from edgesafe_jax.corpora import multiple_choice as read_choices
from edgesafe_jax.errors import COUNT, POSITIVE_COUNT, ConfigError, check_ranges, check_texts, lookup
from edgesafe_jax.guards.named import GuardCost
from edgesafe_jax.guards.styles import STYLES
from edgesafe_jax.models.decoder_config import flops_per_token, num_params
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.scoring import answer_log_probs, kl_from_base
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.safety.attacks import ATTACKS, Attack, Attempt, SearchBudget, Target
from edgesafe_jax.safety.judging import Judged, Judges, judge_each_once, judge_responses
from edgesafe_jax.safety.prompts import EVALUATION_SETS
from edgesafe_jax.safety.system import SafeSystem
from edgesafe_jax.safety.usefulness import USEFULNESS, Reading
from edgesafe_jax.typing import Adapter, PRNGKey, ProgressFn

Record = TypeVar("Record")


def _records(name: str, records: Sequence[Record], kind: type[Record]) -> list[Record]:
    """Returns records as a list; texts, or one record where several are expected, are refused."""
    found: list[Any] = list(records) if isinstance(records, Iterable) and not isinstance(records, str) else [records]
    for record in found:
        if not isinstance(record, kind):
            expected = f"edgesafe_jax.corpora.{kind.__name__}"
            raise ConfigError(f"{name} has a {type(record).__name__}: expected a list of {expected}.")
    return found


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
    found = _records("prompts", prompts, Prompt)
    begins = [""] * len(found) if prefills is None else check_texts("prefills", prefills)
    if len(begins) != len(found):
        raise ConfigError(f"{len(begins)} prefills for {len(found)} prompts: expected as many.")
    attempts = [Attempt(p, p.chat, begin) for p, begin in zip(found, begins, strict=True)]
    run = functools.partial(_answer_attempts, model, adapter, system, judges, max_tokens, batch_size, on_batch)
    return run(attempts, attempts)


def evaluate_attack(
    key: PRNGKey,
    attack: Attack,
    system: SafeSystem,
    adapter: Adapter,
    requests: Sequence[Prompt],
    judges: Judges,
    *,
    max_tokens: int,
    budget: SearchBudget | None = None,
    on_batch: ProgressFn | None = None,
) -> SetResult:
    """Attacks base model, student and safe system with harmful requests, and judges the answers by the requests.

    An adaptive attack is made once for the base model, whose attempts the system gets too (it is not adapted to the
    guard), and once for the student.

    Args:
      key: random key of the attack.
      attack: an entry of `ATTACKS`.
      system: the teacher, with the base model.
      adapter: the student's.
      requests: N harmful requests.
      judges: who gives verdicts.
      max_tokens: longest answer, in tokens.
      budget: of an attack that searches.
      on_batch: called with (answers done, answers in total).

    Returns:
      Responses and verdicts; the prompts are the requests.
    """
    requests = _records("requests", requests, Prompt)
    target = Target(system.model, None, budget or SearchBudget())
    base = attack.make(key, target, requests)
    student = attack.make(key, dataclasses.replace(target, adapter=adapter), requests) if attack.adaptive else base
    longest = max(len(row) for row in system.model.tokenizer.encode_answers([each.prefill for each in base]))
    return _answer_attempts(
        system.model, adapter, system, judges, max(max_tokens, longest + 1), 64, on_batch, base, student
    )


def _answer_attempts(
    model: LanguageModel,
    adapter: Adapter,
    system: SafeSystem,
    judges: Judges,
    max_tokens: int,
    batch_size: int,
    on_batch: ProgressFn | None,
    base: Sequence[Attempt],
    student: Sequence[Attempt],
) -> SetResult:
    """Answers attempts on the base model, which are also the system's, and on the student; judges by the requests."""
    total = len(base) + len(student)

    def report(offset: int) -> ProgressFn | None:
        if (call := on_batch) is None:
            return None
        return lambda done, _: call(offset + done, total)

    def begins(attempts: Sequence[Attempt]) -> list[str] | None:
        return [each.prefill for each in attempts] if any(each.prefill for each in attempts) else None

    found = generate(
        model,
        [each.sent for each in student],
        max_tokens=max_tokens,
        adapter=adapter,
        prefills=begins(student),
        batch_size=batch_size,
        on_batch=report(0),
    )
    answered = system.answer(
        [each.sent for each in base],
        max_tokens=max_tokens,
        prefills=begins(base),
        batch_size=batch_size,
        on_batch=report(len(student)),
    )
    gated = [[] if no else tokens for no, tokens in zip(answered.refused, answered.base.tokens, strict=True)]
    bare, aligned, safe = judge_each_once(
        [each.request.text for each in base],
        [
            (answered.base.texts, answered.base.tokens),
            (found.texts, found.tokens),
            (answered.responses, gated),
        ],
        judges,
    )
    return SetResult([each.request for each in base], bare, aligned, safe, answered.refused)


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
      ConfigError: no questions.
      NonFiniteError: the model computed NaN or infinity.
    """
    choices = _records("choices", choices, Choice)
    if not choices:
        raise ConfigError("There are no questions: expected at least one.")
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
    model: LanguageModel, adapter: Adapter, *, guard: GuardCost | None, context: int = 512
) -> Mapping[str, Mapping[str, float]]:
    """Parameters, bytes and operations per token of base model, safe system and aligned model.

    The guard of the safe system reads every token once more. The aligned model has its adapter on top, see
    `adapters.budget`.

    Args:
      model: the frozen language model.
      adapter: the student's.
      guard: what the guard costs, see `guards.named.guard_cost`; None where it is not known.
      context: positions that a token sees.

    Returns:
      By model: `params`, `bytes` (float32) and `flops_per_token`; no system where the guard's cost is not known.
    """
    params = num_params(model.params)
    added = budget(adapter, model)
    base = flops_per_token(model.config, context=context)
    rows = {"base": (params, base)}
    if guard is not None:
        rows["system"] = (params + guard.parameters, base + guard.flops_per_token)
    rows["student"] = (params + added.parameters, base + added.flops_per_token)
    return {
        name: {"params": float(count), "bytes": 4.0 * count, "flops_per_token": flops}
        for name, (count, flops) in rows.items()
    }


# A whole evaluation ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation; in each number None stands for all.

    Attributes:
      max_tokens: longest answer.
      num_reworded: prompts of each set that are also asked in other words.
      rewordings: how, names in `guards.styles.STYLES`.
      num_kl: prompts of each benign set for the token KL to the base model.
      multiple_choice: names in `corpora.MULTIPLE_CHOICE`.
      num_choices: questions of each.
      attacks: requests by the name of the attack, in `attacks.ATTACKS`.
      search: the effort of attacks that search.
      usefulness: items by the name of the measure, in `usefulness.USEFULNESS`.
      usefulness_tokens: longest answer in these measures.
      seed: of attacks.

    Raises:
      ConfigError: a value outside its range, or an unknown name.
    """

    max_tokens: int = 40
    num_reworded: int | None = 0
    rewordings: tuple[str, ...] = ()
    num_kl: int | None = 0
    multiple_choice: tuple[str, ...] = ()
    num_choices: int | None = None
    attacks: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    search: SearchBudget = dataclasses.field(default_factory=SearchBudget)
    usefulness: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    usefulness_tokens: int = 128
    seed: int = 0

    def __post_init__(self):
        check_texts("rewordings", self.rewordings)
        check_texts("multiple_choice", self.multiple_choice)
        counts = ("num_reworded", "num_kl")
        ranges = {**dict.fromkeys(("max_tokens", "usefulness_tokens"), POSITIVE_COUNT), **dict.fromkeys(counts, COUNT)}
        if self.multiple_choice:
            ranges["num_choices"] = POSITIVE_COUNT
        ranges |= {f"attacks.{name}": COUNT for name in self.attacks}
        ranges |= {f"usefulness.{name}": COUNT for name in self.usefulness}
        check_ranges(dataclasses.asdict(self), ranges, prefix="")
        tables: dict[str, tuple[Mapping[str, Any], Iterable[str]]] = {
            "multiple_choice": (MULTIPLE_CHOICE, self.multiple_choice),
            "rewordings": (STYLES, self.rewordings),
            "attacks": (ATTACKS, self.attacks),
            "usefulness": (USEFULNESS, self.usefulness),
        }
        for what, (table, names) in tables.items():
            for name in names:
                lookup(table, name, what)
        if self.num_reworded != 0 and not self.rewordings:
            raise ConfigError(
                f"num_reworded={self.num_reworded} with no rewordings: expected some of {', '.join(STYLES)}, or 0 "
                "prompts."
            )


@dataclasses.dataclass(frozen=True)
class Reworded:
    """A set's first prompts in other words.

    Attributes:
      result: of the rewordings, prompt after prompt.
      num_each: how many there are of each prompt.
    """

    result: SetResult
    num_each: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """Numbers of the base model and of the student by quantity, `[N]` each over the same items."""

    base: Mapping[str, np.ndarray]
    student: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
      results: responses and verdicts by set.
      attacks: the same by attack, on harmful requests of the sets.
      reworded: the same for prompts in other words.
      kl: by benign set `[N]`, nats per token from the base model to the student along the base model's answers.
      choices: by multiple-choice set, which questions the base model and which the student answered correctly.
      usefulness: by measure.
      max_tokens: longest answer.
    """

    results: dict[str, SetResult]
    reworded: dict[str, Reworded]
    kl: dict[str, np.ndarray]
    choices: dict[str, tuple[np.ndarray, np.ndarray]]
    max_tokens: int
    attacks: dict[str, SetResult] = dataclasses.field(default_factory=dict)
    usefulness: dict[str, Scores] = dataclasses.field(default_factory=dict)


def attacked_requests(sets: Mapping[str, Sequence[Prompt]]) -> list[Prompt]:
    """The requests that attacks are made of: harmful prompts of the sets but for those that are attacks already.

    Args:
      sets: prompts by set, in the order in which they are used.

    Returns:
      Different requests.
    """
    wrapped = ("jailbreaks", "indirect_harmful")
    chosen = [p for name, prompts in sets.items() if name not in wrapped for p in prompts if p.label == "harmful"]
    return list({p.text: p for p in chosen}.values())


def evaluate(
    system: SafeSystem,
    adapter: Adapter,
    sets: Mapping[str, Sequence[Prompt]],
    judges: Judges,
    settings: EvaluationSettings,
    files: Mapping[str, Records] | None = None,
) -> Evaluation:
    """Measures an adapter beside its base model and its teacher.

    Args:
      system: the teacher, with the base model.
      adapter: the student's.
      sets: prompts by set, such as those of `prompts.evaluation_prompts`.
      judges: who gives verdicts, see `make_judges`.
      settings: what is measured.
      files: a user's data sets for measures of usefulness, of `corpora.read_files`; prompts among them are not read
        here, see `prompts.file_prompts`.

    Returns:
      Responses, verdicts and usefulness; `report` makes numbers and tables of them.

    Raises:
      ConfigError: there is no set, or no harmful request for an attack.
    """
    if not sets:
        raise ConfigError("There is no set of prompts to evaluate on: expected at least one.")
    requests, wanted = attacked_requests(sets), {name: num for name, num in settings.attacks.items() if num != 0}
    if wanted and not requests:
        raise ConfigError(f"attacks={sorted(wanted)} without a harmful request: expected a set such as strongreject.")
    model, max_tokens, files = system.model, settings.max_tokens, files or {}
    measure = functools.partial(evaluate_set, model, adapter, system, judges=judges, max_tokens=max_tokens)
    results: dict[str, SetResult] = {}
    for name, chosen in sets.items():
        with ProgressBar(f"answering {name}") as progress:
            results[name] = measure(prompts=chosen, on_batch=progress)
    attacks: dict[str, SetResult] = {}
    for number, (name, num) in enumerate(wanted.items()):
        key = jax.random.fold_in(jax.random.key(settings.seed), number)
        with ProgressBar(f"attack {name}") as progress:
            attacks[name] = evaluate_attack(
                key,
                ATTACKS[name],
                system,
                adapter,
                requests[:num],
                judges,
                max_tokens=max_tokens,
                budget=settings.search,
                on_batch=progress,
            )
    reworded: dict[str, Reworded] = {}
    for name, chosen in sets.items():
        if asked := _reword(chosen[: settings.num_reworded], settings.rewordings):
            with ProgressBar(f"answering {name} in other words") as progress:
                reworded[name] = Reworded(measure(prompts=asked, on_batch=progress), len(settings.rewordings))
    kl = {}
    for name in () if settings.num_kl == 0 else results:
        if name in EVALUATION_SETS and not EVALUATION_SETS[name].harmful:
            texts = [p.text for p in results[name].prompts][: settings.num_kl]
            tokens = results[name].base.tokens[: settings.num_kl]
            kl[name] = kl_from_base(model, texts, tokens, adapter=adapter)
    choices, scores = _usefulness(model, adapter, settings, files)
    return Evaluation(results, reworded, kl, choices, max_tokens, attacks, scores)


def _usefulness(
    model: LanguageModel, adapter: Adapter, settings: EvaluationSettings, files: Mapping[str, Records]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Scores]]:
    """Multiple choice and the measures of `USEFULNESS`, base model and student."""
    questions: dict[str, Sequence[Choice]] = {name: read_choices(name) for name in settings.multiple_choice}
    for name, records in files.items():
        if found := [record for record in records if isinstance(record, Choice)]:
            questions[name] = found
    choices = {}
    for name, found in questions.items():
        asked, pair = found[: settings.num_choices], []
        for who, given in (("base", None), ("student", adapter)):
            with ProgressBar(f"multiple choice: {name}, {who}") as progress:
                pair.append(multiple_choice(model, asked, adapter=given, on_batch=progress).correct)
        choices[name] = pair[0], pair[1]
    scores = {}
    for name, num in settings.usefulness.items():
        if num == 0:
            continue
        items, pair = USEFULNESS[name].items(files)[:num], []
        for who, given in (("base", None), ("student", adapter)):
            with ProgressBar(f"{name}, {who}") as progress:
                pair.append(USEFULNESS[name].score(Reading(model, given, settings.usefulness_tokens, progress), items))
        scores[name] = Scores(pair[0], pair[1])
    return choices, scores


def answer_rows(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: Sequence[Prompt],
    judges: Judges,
    *,
    max_tokens: int,
    on_batch: ProgressFn | None = None,
) -> list[dict[str, Any]]:
    """Answers prompts and judges the answers.

    Args:
      model: the frozen language model.
      adapter: the student's, or None.
      prompts: N prompts.
      judges: who gives verdicts.
      max_tokens: longest answer.
      on_batch: called with (answers done, answers in total).

    Returns:
      One mapping per prompt: prompt, label, response, refused_by_pattern, refused_by_meaning, unsafe (P by the teacher
      guard), judge_unsafe (P by the judge), and further judges by name.
    """
    found = _records("prompts", prompts, Prompt)
    texts, chats = [prompt.text for prompt in found], [prompt.chat for prompt in found]
    answers = generate(model, chats, max_tokens=max_tokens, adapter=adapter, batch_size=64, on_batch=on_batch)
    judged = judge_responses(texts, answers.texts, answers.tokens, judges)
    names = {"refused": "refused_by_pattern", "teacher": "unsafe", "judge": "judge_unsafe"}
    rows = []
    for i, prompt in enumerate(prompts):
        row: dict[str, Any] = {"prompt": prompt.text, "label": prompt.label, "response": judged.responses[i]}
        row |= {names.get(judge, judge): bool(refused[i]) for judge, refused in judged.refusals.items()}
        row |= {names.get(judge, judge): round(float(p[i]), 4) for judge, p in judged.unsafe_probs.items()}
        rows.append(row)
    return rows


def _reword(chosen: Sequence[Prompt], styles: Sequence[str]) -> list[Prompt]:
    """Each prompt in each of the styles, prompt after prompt."""
    return [dataclasses.replace(prompt, text=STYLES[style](prompt.text)) for prompt in chosen for style in styles]
