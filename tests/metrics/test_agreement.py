import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.metrics import (
    ConfusionCounts,
    accuracy,
    agreement,
    confusion_counts,
    excess_positive_rate,
    f1_score,
    shared_positive_rate,
)

PREDICTIONS = [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
LABELS = [1, 1, 0, 1, 0, 0, 0, 0, 0, 0]


def test_examples_run():
    assert doctest.testmod(agreement).failed == 0


def test_counts_by_hand():
    counts = confusion_counts(predictions=PREDICTIONS, labels=LABELS)
    assert counts == ConfusionCounts(true_positives=2, false_positives=2, false_negatives=1, true_negatives=5)


def test_scores_by_hand():
    assert accuracy(predictions=PREDICTIONS, labels=LABELS) == pytest.approx(0.7)
    precision, recall = 2 / 4, 2 / 3
    expected = 2 * precision * recall / (precision + recall)
    assert f1_score(predictions=PREDICTIONS, labels=LABELS) == pytest.approx(expected)


def test_rates_by_hand():
    # Of three labels that are 1 two are predicted; of seven that are 0, two.
    assert shared_positive_rate(reference=LABELS, candidate=PREDICTIONS) == pytest.approx(2 / 3)
    assert excess_positive_rate(reference=LABELS, candidate=PREDICTIONS) == pytest.approx(2 / 7)
    # And the other way round: of four predictions that are 1, two are labelled.
    assert shared_positive_rate(reference=PREDICTIONS, candidate=LABELS) == pytest.approx(2 / 4)


def test_what_the_kinds_have_to_do_with_each_other():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 200)) < 0.4
    counts = confusion_counts(predictions=a, labels=b)
    total = counts.true_positives + counts.false_positives + counts.false_negatives + counts.true_negatives
    assert total == 200
    # Negating both sides swaps the kinds; accuracy does not change, the shares of errors do.
    negated = confusion_counts(predictions=~a, labels=~b)
    assert negated.true_positives == counts.true_negatives
    assert negated.false_positives == counts.false_negatives
    assert accuracy(predictions=~a, labels=~b) == accuracy(predictions=a, labels=b)
    # F1 and accuracy are symmetric.
    assert f1_score(predictions=a, labels=b) == f1_score(predictions=b, labels=a)
    # The rate of positives is made of the two rates.
    share = b.mean()
    shared = shared_positive_rate(reference=b, candidate=a)
    excess = excess_positive_rate(reference=b, candidate=a)
    assert share * shared + (1 - share) * excess == pytest.approx(a.mean())


def test_perfect_agreement():
    assert accuracy(predictions=LABELS, labels=LABELS) == 1.0
    assert f1_score(predictions=LABELS, labels=LABELS) == 1.0
    assert shared_positive_rate(reference=LABELS, candidate=LABELS) == 1.0
    assert excess_positive_rate(reference=LABELS, candidate=LABELS) == 0.0


def test_booleans_numbers_and_jax_arrays_give_the_same():
    for cast in (jnp.asarray, np.array, lambda x: np.array(x, bool), lambda x: np.array(x, float)):
        value = f1_score(predictions=cast(PREDICTIONS), labels=cast(LABELS))
        assert value == f1_score(predictions=PREDICTIONS, labels=LABELS)


@pytest.mark.parametrize("metric", [confusion_counts, accuracy, f1_score])
@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "predictions is empty, expected at least one entry"),
        ([1, 0], [1], "labels has 1 entries but predictions has 2"),
        ([0.7, 0.2], [1, 0], "predictions holds 0.7, expected 0 and 1 .*threshold first"),
    ],
)
def test_bad_input(metric, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(predictions=predictions, labels=labels)


def test_shares_of_nothing_are_errors():
    with pytest.raises(ValueError, match="predictions and labels hold no positive"):
        f1_score(predictions=[0, 0], labels=[0, 0])
    with pytest.raises(ValueError, match="reference holds no 1 among its 2 entries"):
        shared_positive_rate(reference=[0, 0], candidate=[0, 1])
    with pytest.raises(ValueError, match="reference holds no 0 among its 2 entries"):
        excess_positive_rate(reference=[1, 1], candidate=[0, 1])
    with pytest.raises(ValueError, match="candidate has 1 entries but reference has 2"):
        shared_positive_rate(reference=[1, 1], candidate=[1])
