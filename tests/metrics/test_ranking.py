import doctest
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from edgesafe_jax.metrics import auroc, average_precision, fpr_at_tpr, ranking

METRICS = [auroc, average_precision, fpr_at_tpr]


def ranked(num=300, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    labels = rng.random(num) < 0.3
    scores = rng.normal(size=num) + labels
    return (scores if decimals is None else np.round(scores, decimals)), labels


def thresholds_loop(scores, labels):
    """(true positives, false positives) for every threshold, by counting."""
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        yield int(np.sum(above & labels)), int(np.sum(above & ~labels))


def test_examples_run():
    assert doctest.testmod(ranking).failed == 0


class TestAuroc:
    def test_by_hand(self):
        # Pairs (positive, negative): 4 > 3, 4 > 1, 2 < 3, 2 > 1.
        assert auroc(scores=[4, 3, 2, 1], labels=[1, 0, 1, 0]) == 0.75

    @pytest.mark.parametrize("decimals", [None, 1, 0])
    def test_equals_all_pairs_and_the_rank_sum(self, decimals):
        scores, labels = ranked(decimals=decimals)
        pairs = np.sign(scores[labels][:, None] - scores[~labels][None, :])
        assert auroc(scores=scores, labels=labels) == pytest.approx(np.mean((pairs + 1) / 2))
        statistic = scipy.stats.mannwhitneyu(scores[labels], scores[~labels]).statistic
        expected = statistic / (labels.sum() * (~labels).sum())
        assert auroc(scores=scores, labels=labels) == pytest.approx(expected)

    def test_ends(self):
        labels = [0, 0, 1, 1]
        assert auroc(scores=[1, 2, 3, 4], labels=labels) == 1.0
        assert auroc(scores=[4, 3, 2, 1], labels=labels) == 0.0
        assert auroc(scores=[7, 7, 7, 7], labels=labels) == 0.5

    def test_invariances(self):
        scores, labels = ranked(decimals=1)
        area = auroc(scores=scores, labels=labels)
        assert auroc(scores=np.exp(scores), labels=labels) == pytest.approx(area)
        assert auroc(scores=-scores, labels=labels) == pytest.approx(1 - area)
        assert auroc(scores=-scores, labels=~labels) == pytest.approx(area)


class TestAveragePrecision:
    def test_by_hand(self):
        # Positives at ranks 1, 3 and 4: precision 1/1, 2/3, 3/4.
        value = average_precision(scores=[5, 4, 3, 2, 1], labels=[1, 0, 1, 1, 0])
        assert value == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)

    @pytest.mark.parametrize("decimals", [None, 1, 0])
    def test_equals_a_loop_over_thresholds(self, decimals):
        scores, labels = ranked(decimals=decimals)
        expected, last = 0.0, 0
        for true_positives, false_positives in thresholds_loop(scores, labels):
            precision = true_positives / (true_positives + false_positives)
            expected += (true_positives - last) / labels.sum() * precision
            last = true_positives
        assert average_precision(scores=scores, labels=labels) == pytest.approx(expected)

    def test_ends(self):
        assert average_precision(scores=[1, 2, 3, 4], labels=[0, 0, 1, 1]) == 1.0
        assert average_precision(scores=[7] * 5, labels=[1, 0, 0, 1, 0]) == pytest.approx(0.4)


class TestFprAtTpr:
    def test_by_hand(self):
        scores, labels = [9, 8, 7, 6, 5, 4], [1, 0, 1, 0, 0, 1]
        for tpr, expected in [(1 / 3, 0.0), (0.5, 1 / 3), (2 / 3, 1 / 3), (0.9, 1.0), (1.0, 1.0)]:
            assert fpr_at_tpr(scores=scores, labels=labels, tpr=tpr) == pytest.approx(expected)

    @pytest.mark.parametrize("decimals", [None, 1, 0])
    @pytest.mark.parametrize("tpr", [0.1, 0.8, 0.95, 1.0])
    def test_equals_a_loop_over_thresholds(self, decimals, tpr):
        scores, labels = ranked(decimals=decimals)
        expected = min(
            false_positives / np.sum(~labels)
            for true_positives, false_positives in thresholds_loop(scores, labels)
            if true_positives / labels.sum() >= tpr
        )
        assert fpr_at_tpr(scores=scores, labels=labels, tpr=tpr) == pytest.approx(expected)

    def test_a_share_that_counts_cannot_hit_exactly_in_floating_point(self):
        # 0.07 * 100 is 7.000000000000001: seven of a hundred positives must be enough.
        scores = np.concatenate([np.arange(200, 193, -1), [150], np.arange(93)])
        labels = np.concatenate([np.ones(7), [0], np.ones(93)])
        assert 0.07 * 100 > 7
        assert fpr_at_tpr(scores=scores, labels=labels, tpr=0.07) == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_samples_does_not_matter_even_with_ties(metric):
    scores, labels = ranked(decimals=0)
    order = np.random.default_rng(1).permutation(len(scores))
    expected = metric(scores=scores, labels=labels)
    assert metric(scores=scores[order], labels=labels[order]) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_numpy_jax_and_lists_give_the_same(metric):
    scores, labels = (x[:20] for x in ranked())
    scores = scores.astype(np.float32)
    expected = metric(scores=scores, labels=labels)
    assert isinstance(expected, float)
    assert metric(scores=jnp.asarray(scores), labels=jnp.asarray(labels)) == expected
    assert metric(scores=scores.tolist(), labels=labels.tolist()) == expected


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "scores is empty, expected at least one entry"),
        ([0.5, 0.5], [1], "labels has 1 entries but scores has 2"),
        ([0.5, math.nan], [0, 1], "scores holds nan, expected finite numbers"),
        ([0.5, -math.inf], [0, 1], "scores holds -inf, expected finite numbers"),
        ([0.5, 0.5], [1, 1], r"labels holds only 1 \(2 times\), expected both classes"),
        ([0.5, 0.5], [0, 0], r"labels holds only 0 \(2 times\), expected both classes"),
        ([0.5, 0.5], [0, -1], "labels holds -1, expected 0 and 1"),
    ],
)
def test_bad_input(metric, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(scores=scores, labels=labels)


@pytest.mark.parametrize("tpr", [0.0, 1.1, math.nan])
def test_bad_tpr(tpr):
    with pytest.raises(ValueError, match=r"tpr is .*, expected a fraction in \(0, 1\]"):
        fpr_at_tpr(scores=[0.1, 0.2], labels=[0, 1], tpr=tpr)
