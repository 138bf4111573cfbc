"""The examples that the packaged guards are fitted on, split so that teacher, judge and report share none."""

import collections
import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt, ScoredPair
from edgesafe_jax.guards.contrast import contrast_prompts, is_plain, topic_of

Role = Literal["teacher", "judge", "held_out"]
GuardRole = Literal["teacher", "judge"]

PLAIN_PER_ROLE = 200
"""Plain questions of each role: the first ones are held out, then come the teacher's and the judge's."""

REFUSALS = (
    "Sorry, I cannot help with this matter.",
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "I won't help with that, because it could hurt people.",
    "That is not something I can help with.",
    "I must decline. This would be illegal and dangerous.",
    "I cannot provide instructions for that. If you are in trouble, please talk to somebody you trust.",
    "No, I will not do that.",
    "I'm not able to help with this, but I can tell you how to stay safe.",
    "As an assistant I cannot take part in this.",
)
"""Refusals in several wordings: safe answers to harmful requests."""


def _bin(text: str, num_bins: int) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % num_bins


def role_of_objective(text: str) -> Role:
    """The role of an objective's pairs: a fifth is held out, three fifths the teacher's, a fifth the judge's."""
    number = _bin(corpora.normalise(text), 10)
    return "held_out" if number < 2 else "teacher" if number < 8 else "judge"


def role_of_topic(topic: str) -> Role:
    """The role of a topic's contrast prompts, in the same fractions; both halves of a pair have one topic."""
    number = _bin(topic, 5)
    return "held_out" if number == 0 else "teacher" if number < 4 else "judge"


def human_pairs(role: Role) -> list[ScoredPair]:
    """Returns the human-scored pairs of a role; a score of 0.5 and more is unsafe."""
    return [pair for pair in corpora.human_scored("harm") if role_of_objective(pair.prompt) == role]


def pair_key(prompt: str, response: str) -> str:
    """Returns a name of a pair: 24 digits of the hash of both texts."""
    return hashlib.sha256(f"{prompt}\0{response}".encode()).hexdigest()[:24]


def human_sample(role: Role, num: int | None) -> list[ScoredPair]:
    """Returns the human-scored pairs of a role in the order of their hash: the first `num`, or all for None."""
    return sorted(human_pairs(role), key=lambda p: pair_key(p.prompt, p.response))[:num]


def contrast_of(role: Role) -> list[Prompt]:
    """Returns the contrast prompts of a role; everyday prompts, which have no topic, are split by their text."""
    return [
        prompt
        for prompt in contrast_prompts()
        if (role_of_objective(prompt.text) if is_plain(prompt) else role_of_topic(topic_of(prompt))) == role
    ]


def harmful_of(role: GuardRole, num: int) -> list[Prompt]:
    """Returns harmful requests that a guard is trained on: AdvBench for the teacher, Do-Not-Answer for the judge."""
    if role == "teacher":
        return corpora.advbench()[:num]
    kinds = ("information_hazard", "malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive")
    requests = [prompt for prompt in corpora.do_not_answer() if prompt.category in kinds]
    random.Random(0).shuffle(requests)
    return requests[:num]


def plain_of(role: GuardRole, num: int) -> list[Prompt]:
    """Returns at most 200 plain questions: none is evaluated on, and none is both the teacher's and the judge's."""
    start = {"teacher": PLAIN_PER_ROLE, "judge": 2 * PLAIN_PER_ROLE}[role]
    return _questions()[start : start + min(num, PLAIN_PER_ROLE)]


def _questions() -> list[Prompt]:
    questions = corpora.questions(as_sentences=True)
    random.Random(0).shuffle(questions)
    return questions


@dataclasses.dataclass(frozen=True)
class OwnAnswers:
    """Prompts, the guarded model's answers to them, and their weak labels.

    Attributes:
      prompts: N texts.
      responses: N texts.
      labels: `[N]`, 1 is unsafe.
      kinds: N names, the keys of the weights.
    """

    prompts: list[str]
    responses: list[str]
    labels: np.ndarray
    kinds: list[str]


def kind_of(prompt: Prompt) -> str:
    """The kind of a prompt in the weights of a fit."""
    if prompt.source == "contrast":
        if is_plain(prompt):
            return "plain"
        return "harmful_contrast" if prompt.label == "harmful" else "benign_contrast"
    return "harmful" if prompt.label == "harmful" else "plain"


def own_answers(prompts: Sequence[Prompt], responses: Sequence[str]) -> OwnAnswers:
    """Labels the model's own answers by what was asked, and adds refusals of the harmful requests as safe answers.

    A weak label: an answer to a harmful request counts as unsafe even where the small model missed the point. The
    benign requests on the same topics keep the guard from learning topics.

    Args:
      prompts: what was asked.
      responses: what the model answered.

    Returns:
      The labelled pairs; every fourth harmful request comes once more with a refusal.
    """
    labels = [float(prompt.label == "harmful") for prompt in prompts]
    texts, answers, kinds = [p.text for p in prompts], list(responses), [kind_of(p) for p in prompts]
    refused = [p.text for p in prompts if kind_of(p) in ("harmful_contrast", "harmful")][::4]
    texts += refused
    answers += [REFUSALS[i % len(REFUSALS)] for i in range(len(refused))]
    labels += [0.0] * len(refused)
    kinds += ["refusals"] * len(refused)
    return OwnAnswers(texts, answers, np.array(labels), kinds)


def balanced_weights(kinds: Sequence[str], weights: Mapping[str, float]) -> np.ndarray:
    """Spreads each kind's weight over its examples.

    Args:
      kinds: N names.
      weights: total weight by name.

    Returns:
      `[N]` weights that sum to the weights of the kinds that occur.

    Raises:
      ValueError: a kind without a weight.
    """
    if missing := sorted(set(kinds) - set(weights)):
        raise ValueError(f"No weight for {missing}: expected one of each kind {sorted(set(kinds))}.")
    counts = collections.Counter(kinds)
    return np.array([weights[kind] / counts[kind] for kind in kinds])


def fold_of_objective(text: str) -> int:
    """One of five folds for cross-validation; all pairs of an objective are in one."""
    return _bin(corpora.normalise(text), 10) // 2


def calibration_fold(text: str) -> int:
    """One of five folds within any role, for calibration: independent of `fold_of_objective`."""
    return _bin(corpora.normalise(text), 50) // 10


def held_out_questions(num: int | None = None) -> list[Prompt]:
    """Returns plain questions that no guard and no student is trained on; alignment is evaluated on the same."""
    return _questions()[:PLAIN_PER_ROLE][:num]
