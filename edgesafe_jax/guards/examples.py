"""The examples that the packaged guards are fitted on, split so that teacher, judge and report share none."""

import collections
import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt, ScoredPair
from edgesafe_jax.guards.contrast import contrast_prompts, is_plain, topic_of
from edgesafe_jax.guards.heads import GatedHead, calibrate, fit_head, head_logits

Role = Literal["teacher", "judge", "held_out"]
GuardRole = Literal["teacher", "judge"]

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
    """Who may see the pairs of an objective: a fifth is held out, three fifths the teacher's, a fifth the judge's."""
    number = _bin(corpora.normalise(text), 10)
    return "held_out" if number < 2 else "teacher" if number < 8 else "judge"


def role_of_topic(topic: str) -> Role:
    """Who may see the contrast prompts of a topic, in the same shares; both halves of a pair have one topic."""
    number = _bin(topic, 5)
    return "held_out" if number == 0 else "teacher" if number < 4 else "judge"


def human_pairs(role: Role) -> list[ScoredPair]:
    """Returns the human-scored pairs of a role; a score of 0.5 and more is unsafe."""
    return [pair for pair in corpora.human_scored("harm") if role_of_objective(pair.prompt) == role]


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
    questions = corpora.questions(as_sentences=True)
    random.Random(0).shuffle(questions)
    start = {"teacher": 200, "judge": 400}[role]
    return questions[start : start + min(num, 200)]


@dataclasses.dataclass(frozen=True)
class OwnAnswers:
    """Prompts, the guarded model's answers to them, and what is taken for true.

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


def fit_gated_head(
    *,
    human_features: np.ndarray,
    human_labels: np.ndarray,
    human_folds: np.ndarray,
    own_features: np.ndarray,
    own: OwnAnswers,
    weights: Mapping[str, float],
    l2_general: float,
    l2_own: float,
    l2_gate: float,
    own_share: float,
) -> GatedHead:
    """Fits the two heads and the gate, and calibrates the general one on scores from cross-validation.

    Args:
      human_features: `[N, M]` of human-scored pairs.
      human_labels: `[N]` in [0, 1], the mean of people's scores: as a soft label it tells more than the majority's.
      human_folds: `[N]`, the fold of each pair's objective.
      own_features: `[K, M]` of the model's own answers.
      own: those answers.
      weights: total weight, in the fit of the own head, of each kind of them and of the human-scored pairs ("human").
      l2_general: penalty of the head on human-scored pairs.
      l2_own: penalty of the head on the model's own answers.
      l2_gate: penalty of the gate.
      own_share: weight of the model's own answers in the fit of the gate; the human-scored pairs have the rest.

    Returns:
      The gated head.
    """
    weights = dict(weights)
    human_weight = weights.pop("human")
    out_of_fold = np.zeros(len(human_labels))
    for number in np.unique(human_folds):
        chosen = human_folds == number
        part = fit_head(human_features[~chosen], human_labels[~chosen], l2=l2_general)
        out_of_fold[chosen] = np.asarray(head_logits(part, jnp.asarray(human_features[chosen], jnp.float32)))
    general = calibrate(
        fit_head(human_features, human_labels, l2=l2_general),
        scores=out_of_fold,
        labels=np.asarray(human_labels) >= 0.5,
    )
    both = np.concatenate([human_features, own_features])

    def spread(human: float, rest: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full(len(human_features), human / len(human_features)), rest])

    own_head = fit_head(
        both,
        np.concatenate([human_labels, own.labels]),
        weights=spread(human_weight, balanced_weights(own.kinds, weights)),
        l2=l2_own,
    )
    is_own = np.concatenate([np.zeros(len(human_features)), np.ones(len(own_features))])
    share = spread(1 - own_share, np.full(len(own_features), own_share / len(own_features)))
    return GatedHead(general=general, own=own_head, gate=fit_head(both, is_own, weights=share, l2=l2_gate))


def fold_of_objective(text: str) -> int:
    """One of five folds for cross-validation; all pairs of an objective are in one."""
    return _bin(corpora.normalise(text), 10) // 2


def calibration_fold(text: str) -> int:
    """One of five folds within any role, for calibration: independent of `fold_of_objective`."""
    return _bin(corpora.normalise(text), 50) // 10


def held_out_questions(num: int = 200) -> list[Prompt]:
    """Plain questions that no guard and no student is trained on; alignment is evaluated on the same."""
    questions = corpora.questions(as_sentences=True)
    random.Random(0).shuffle(questions)
    return questions[:num]
