"""Agreement of binary predictions with labels, and of two sets of verdicts."""

import dataclasses

import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.metrics._inputs import check_binary, check_same_length
from edgesafe_jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class ConfusionCounts:
    """The four cells of a binary confusion matrix.

    Attributes:
      true_positives: Predicted 1, labelled 1.
      false_positives: Predicted 1, labelled 0.
      false_negatives: Predicted 0, labelled 1.
      true_negatives: Predicted 0, labelled 0.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


def confusion_counts(*, predictions: ArrayLike, labels: ArrayLike) -> ConfusionCounts:
    """Counts the four cells of a binary confusion matrix.

    Args:
      predictions: [N], 0 or 1.
      labels: [N], 0 or 1.

    Returns:
      The counts; they add up to N.

    Raises:
      ConfigError: If inputs are empty, of different length or not binary.

    Example:
      >>> confusion_counts(predictions=[1, 1, 0], labels=[1, 0, 0]).false_positives
      1
    """
    a, b = check_binary(predictions, "predictions"), check_binary(labels, "labels")
    check_same_length(predictions=a, labels=b)
    return _count(a, b)


def accuracy(*, predictions: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of predictions that equal their label.

    Args:
      predictions: [N], 0 or 1.
      labels: [N], 0 or 1.

    Returns:
      A number in [0, 1].

    Raises:
      ConfigError: As `confusion_counts`.

    Example:
      >>> accuracy(predictions=[1, 1, 0, 0], labels=[1, 0, 0, 0])
      0.75
    """
    counts = confusion_counts(predictions=predictions, labels=labels)
    correct = counts.true_positives + counts.true_negatives
    return correct / (correct + counts.false_positives + counts.false_negatives)


def f1_score(*, predictions: ArrayLike, labels: ArrayLike) -> float:
    r"""Harmonic mean of precision and recall of the positive class.

    .. math:: F_1 = \frac{2\,\mathrm{TP}}{2\,\mathrm{TP} + \mathrm{FP} + \mathrm{FN}}

    Args:
      predictions: [N], 0 or 1.
      labels: [N], 0 or 1.

    Returns:
      A number in [0, 1].

    Raises:
      ConfigError: As `confusion_counts`, or neither side holds a positive.

    Example:
      >>> f1_score(predictions=[1, 1, 0], labels=[1, 0, 1])
      0.5
    """
    counts = confusion_counts(predictions=predictions, labels=labels)
    found = 2 * counts.true_positives
    total = found + counts.false_positives + counts.false_negatives
    if total == 0:
        raise ConfigError(
            "predictions and labels hold no positive, expected at least one: F1 is 0/0; report accuracy instead."
        )
    return found / total


def shared_positive_rate(*, reference: ArrayLike, candidate: ArrayLike) -> float:
    r"""Fraction of the reference's positives that are positive for the candidate too.

    .. math:: P(\text{candidate} = 1 \mid \text{reference} = 1)

    For instance the fraction of the requests refused by the teacher that the student refuses.

    Args:
      reference: [N], 0 or 1, with at least one 1.
      candidate: [N], 0 or 1.

    Returns:
      A number in [0, 1].

    Raises:
      ConfigError: As `confusion_counts`, or ``reference`` holds no positive.

    Example:
      >>> shared_positive_rate(reference=[1, 1, 0, 0], candidate=[1, 0, 1, 0])
      0.5
    """
    return _rate(reference, candidate, among=True)


def excess_positive_rate(*, reference: ArrayLike, candidate: ArrayLike) -> float:
    r"""Fraction of the reference's negatives that are positive for the candidate.

    .. math:: P(\text{candidate} = 1 \mid \text{reference} = 0)

    Of the requests that the teacher answers, for instance, the fraction that the student refuses.

    Args:
      reference: [N], 0 or 1, with at least one 0.
      candidate: [N], 0 or 1.

    Returns:
      A number in [0, 1].

    Raises:
      ConfigError: As `shared_positive_rate`, or ``reference`` holds no negative.

    Example:
      >>> excess_positive_rate(reference=[1, 0, 0, 0, 0], candidate=[1, 1, 0, 0, 0])
      0.25
    """
    return _rate(reference, candidate, among=False)


def _rate(reference: ArrayLike, candidate: ArrayLike, *, among: bool) -> float:
    a, b = check_binary(reference, "reference"), check_binary(candidate, "candidate")
    check_same_length(reference=a, candidate=b)
    chosen = b[a == among]
    if len(chosen) == 0:
        raise ConfigError(
            f"reference holds no {int(among)} among its {len(a)} entries, expected at least one: "
            "a fraction of nothing is not defined."
        )
    return float(np.mean(chosen))


def _count(predictions: np.ndarray, labels: np.ndarray) -> ConfusionCounts:
    return ConfusionCounts(
        true_positives=int(np.sum(predictions & labels)),
        false_positives=int(np.sum(predictions & ~labels)),
        false_negatives=int(np.sum(~predictions & labels)),
        true_negatives=int(np.sum(~predictions & ~labels)),
    )
