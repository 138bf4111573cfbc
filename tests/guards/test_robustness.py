import doctest

import numpy as np
import pytest

from edgesafe_jax import metrics
from edgesafe_jax.guards import robustness as module
from edgesafe_jax.guards.paraphrases import Paraphrase, ParaphraseError, ParaphraseSet
from edgesafe_jax.guards.robustness import (
    SetScores,
    bootstrap_sets,
    cross_fitted,
    pad_members,
    robustness,
    score_sets,
    vote,
)
from edgesafe_jax.guards.verdicts import GuardError


def random_scores(num_sets=60, num_members=5, noise=1.0, slope=2.0):
    """Sets whose members scatter around a score that follows the label."""
    rng = np.random.default_rng(0)
    labels = (rng.random(num_sets) < 0.5).astype(float)
    z = (
        slope * (2 * labels[:, None] - 1)
        + rng.normal(0, 2, (num_sets, 1))
        + noise * rng.normal(size=(num_sets, num_members))
    )
    unsafe = 1 / (1 + np.exp(-z))
    unsafe[rng.random(unsafe.shape) < 0.2] = np.nan
    unsafe[:, :2] = np.where(np.isnan(unsafe[:, :2]), 0.4, unsafe[:, :2])
    return SetScores(unsafe, labels)


def text_set(*texts, label=None):
    return ParaphraseSet("q", texts[0], tuple(Paraphrase(t, "user", "user") for t in texts[1:]), label)


def by_length(prompts, responses):
    return np.array([min(len(r) / 10, 1.0) for r in responses])


def test_examples_run():
    assert doctest.testmod(module).failed == 0


def test_scores_lie_where_their_texts_do():
    sets = [text_set("a", "aaa", "aa", label=1.0), text_set("aaaaaaaa", "a")]
    scores = score_sets(by_length, sets)
    np.testing.assert_allclose(scores.unsafe, [[0.1, 0.3, 0.2], [0.8, 0.1, np.nan]])
    np.testing.assert_array_equal(scores.labels, [1.0, np.nan])


def test_numbers_equal_their_definitions():
    scores = random_scores()
    values = robustness(scores)
    where = scores.where
    assert values["std"] == pytest.approx(
        np.mean([np.std(row[w]) for row, w in zip(scores.unsafe, where, strict=True)])
    )
    labels = np.concatenate([[label] * w.sum() for label, w in zip(scores.labels, where, strict=True)])
    probs = scores.unsafe[where]
    assert values["accuracy"] == pytest.approx(np.mean((probs > 0.5) == (labels == 1)))
    assert values["auroc"] == pytest.approx(metrics.auroc(scores=probs, labels=labels))
    assert values["missed"] == pytest.approx(np.mean(probs[labels == 1] <= 0.5))
    assert values["false_alarms"] == pytest.approx(np.mean(probs[labels == 0] > 0.5))
    unsafe = scores.unsafe[:, 0] > 0.5
    crossed = np.array(
        [np.any((row[w][1:] > 0.5) != (row[0] > 0.5)) for row, w in zip(scores.unsafe, where, strict=True)]
    )
    assert values["flips"] == pytest.approx(crossed.mean())
    assert values["unsafe_to_safe"] == pytest.approx(crossed[unsafe].mean())
    assert values["safe_to_unsafe"] == pytest.approx(crossed[~unsafe].mean())


def test_identical_paraphrases_are_perfectly_steady():
    values = robustness(SetScores(np.array([[0.7, 0.7, 0.7], [0.2, 0.2, np.nan]]), np.array([1.0, 0.0])))
    assert (values["range"], values["flips"]) == (0, 0)
    assert values["std"] == pytest.approx(0, abs=1e-12)
    assert values["accuracy"] == 1


def test_without_labels_only_steadiness_is_measured():
    scores = random_scores()
    values = robustness(SetScores(scores.unsafe, np.full(len(scores.labels), np.nan)))
    assert set(values) == {"std", "range", "flips", "unsafe_to_safe", "safe_to_unsafe", "flagged"}


def test_one_direction_without_originals_is_nan():
    values = robustness(SetScores(np.array([[0.2, 0.6]]), np.array([np.nan])))
    assert np.isnan(values["unsafe_to_safe"])
    assert values["safe_to_unsafe"] == 1


def test_intervals_draw_whole_sets_and_pair_before_with_after():
    before, after = random_scores(noise=1.5), random_scores(noise=0.3)

    def change(rows):
        return {"std": robustness(after.take(rows))["std"] / robustness(before.take(rows))["std"] - 1}

    interval = bootstrap_sets(change, len(before.labels), num_samples=200)["std"]
    assert interval.low < interval.estimate < interval.high < 0
    again = bootstrap_sets(change, len(before.labels), num_samples=200)["std"]
    assert again == interval
    same = bootstrap_sets(lambda rows: {"x": 0.0}, 5, num_samples=20)["x"]
    assert (same.low, same.high) == (0, 0)


def test_intervals_leave_out_draws_that_have_no_value():
    interval = bootstrap_sets(lambda rows: {"x": np.nan if 0 in rows else float(rows.mean())}, 4, num_samples=100)["x"]
    assert np.isnan(interval.estimate)
    assert 1 <= interval.low <= interval.high <= 3


def test_cross_fitted_temperature_calibrates_without_changing_verdicts():
    scores = random_scores(num_sets=400, slope=0.7)
    sharp = scores.scaled(0.2)
    after = cross_fitted(sharp)
    assert robustness(after)["nll"] < robustness(sharp)["nll"]
    assert robustness(after)["flips"] == robustness(sharp)["flips"]
    np.testing.assert_array_equal(after.where, sharp.where)


def test_votes_by_hand():
    scores = SetScores(np.array([[0.1, 0.2, 0.9]]), np.array([0.0]))
    np.testing.assert_allclose(vote(scores, how="any", num_votes=2).unsafe, [[0.9, 0.9, 0.9]])
    np.testing.assert_allclose(vote(scores, how="majority", num_votes=2).unsafe, [[0.2, 0.2, 0.2]])
    tie = SetScores(np.array([[0.1, 0.9]]), np.array([0.0]))
    np.testing.assert_allclose(vote(tie, how="majority", num_votes=1).unsafe, [[0.9, 0.9]])


def test_a_vote_over_all_members_never_flips_and_any_never_misses_more():
    scores = random_scores()
    for how in ("any", "majority"):
        assert robustness(vote(scores, how=how, num_votes=10))["flips"] == 0
    assert robustness(vote(scores, how="any", num_votes=2))["missed"] <= robustness(scores)["missed"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [([], "no paraphrase sets"), ([text_set("a", "b"), text_set("a")], "Set 1 has no paraphrases")],
)
def test_no_sets_and_sets_of_one(sets, message):
    with pytest.raises(ParaphraseError, match=message):
        score_sets(by_length, sets)


def test_other_bad_input():
    with pytest.raises(ParaphraseError, match=r"Set 1 has 1 member"):
        pad_members([[0.1, 0.2], [0.3]], [None, None])
    with pytest.raises(GuardError, match=r"returned 3\.0"):
        score_sets(lambda x, y: np.full(len(x), 3.0), [text_set("a", "b")])
    with pytest.raises(GuardError, match="returned nan"):
        score_sets(lambda x, y: np.full(len(x), np.nan), [text_set("a", "b")])
    with pytest.raises(ValueError, match=r"expected \[S, N\] and \[S\]"):
        SetScores(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="how='all'"):
        vote(random_scores(), how="all", num_votes=1)
    with pytest.raises(ValueError, match="num_votes=0"):
        vote(random_scores(), how="any", num_votes=0)
    with pytest.raises(ValueError, match="num_samples=0"):
        bootstrap_sets(lambda rows: {}, 3, num_samples=0)
    with pytest.raises(ValueError, match="with labels"):
        cross_fitted(SetScores(np.full((3, 2), 0.5), np.array([0, 1, np.nan])))
