"""Ranking metrics of a score: AUROC, average precision, false-positive rate at a true-positive rate."""

import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.metrics._inputs import check_binary, check_numbers, check_same_length
from edgesafe_jax.typing import ArrayLike


def auroc(*, scores: ArrayLike, labels: ArrayLike) -> float:
    r"""Area under the ROC curve: the probability that a positive scores above a negative.

    .. math:: P(s_+ > s_-) + \tfrac12 P(s_+ = s_-)

    Args:
      scores: [N], higher means more positive; any finite numbers.
      labels: [N], 0 or 1, both present.

    Returns:
      A number in [0, 1]; one half for a score that knows nothing. Ties count one half.

    Raises:
      ConfigError: If inputs are empty, of different length, not finite or not binary, or one of the
        classes is missing.

    Example:
      >>> auroc(scores=[0.1, 0.4, 0.4, 0.9], labels=[0, 0, 1, 1])
      0.875

    Reference:
      Hanley and McNeil, "The meaning and use of the area under a ROC curve", 1982.
    """
    s, y = _check_ranking(scores, labels)
    negatives = np.sort(s[~y])
    below = np.searchsorted(negatives, s[y], side="left")
    not_above = np.searchsorted(negatives, s[y], side="right")
    return float(np.mean(below + not_above) / (2 * len(negatives)))


def average_precision(*, scores: ArrayLike, labels: ArrayLike) -> float:
    r"""Area under the precision-recall curve, as a sum of steps.

    .. math:: \sum_k (R_k - R_{k-1}) P_k

    over the distinct scores from the highest down; no interpolation between them, so equal scores
    are one step and their order does not matter.

    Args:
      scores: [N], higher means more positive; any finite numbers.
      labels: [N], 0 or 1, both present.

    Returns:
      A number in (0, 1]; the fraction of positives for a constant score.

    Raises:
      ConfigError: If inputs are empty, of different length, not finite or not binary, or one of the
        classes is missing.

    Example:
      >>> round(average_precision(scores=[0.9, 0.8, 0.7], labels=[1, 0, 1]), 3)
      0.833
    """
    true_positives, false_positives = _cumulative_counts(*_check_ranking(scores, labels))
    precision = true_positives / (true_positives + false_positives)
    steps = np.diff(true_positives, prepend=0) / true_positives[-1]
    return float(np.sum(steps * precision))


def fpr_at_tpr(*, scores: ArrayLike, labels: ArrayLike, tpr: float = 0.95) -> float:
    """Smallest false-positive rate at which a threshold finds a given fraction of positives.

    A sample counts as positive if its score is at least the threshold; of all thresholds with a
    true-positive rate of at least ``tpr`` the one with the lowest false-positive rate is taken. No
    interpolation: a threshold that does not exist is not reported.

    Args:
      scores: [N], higher means more positive; any finite numbers.
      labels: [N], 0 or 1, both present.
      tpr: Fraction of positives that must be found, in (0, 1].

    Returns:
      A number in [0, 1].

    Raises:
      ConfigError: If inputs are empty, of different length, not finite or not binary, one of the
        classes is missing, or ``tpr`` is not in (0, 1].

    Example:
      >>> fpr_at_tpr(scores=[0.1, 0.6, 0.5, 0.9], labels=[0, 0, 1, 1], tpr=1.0)
      0.5
    """
    if not 0.0 < tpr <= 1.0:
        raise ConfigError(f"tpr is {tpr}, expected a fraction in (0, 1].")
    true_positives, false_positives = _cumulative_counts(*_check_ranking(scores, labels))
    # A tolerance far below one sample: 0.95 * 20 is not 19 in floating point.
    enough = true_positives >= tpr * true_positives[-1] - 1e-9 * true_positives[-1]
    return float(false_positives[np.argmax(enough)] / false_positives[-1])


def _check_ranking(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    s, y = check_numbers(scores, "scores"), check_binary(labels, "labels")
    check_same_length(scores=s, labels=y)
    if np.all(y) or not np.any(y):
        raise ConfigError(
            f"labels holds only {int(y[0])} ({len(y)} times), expected both classes: a ranking of "
            "one class is not defined."
        )
    return s, y


def _cumulative_counts(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    s, y = scores[order], labels[order]
    last_of_ties = np.append(s[1:] != s[:-1], True)
    return np.cumsum(y)[last_of_ties], np.cumsum(~y)[last_of_ties]
