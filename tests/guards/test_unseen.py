"""The study of left-out makers: what is left out is never seen, and the numbers are those of their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.guards import unseen
from edgesafe_jax.guards.heads import GatedHead, Head
from edgesafe_jax.guards.paraphrases import Paraphrase, ParaphraseSet
from edgesafe_jax.guards.probe import head_probability
from edgesafe_jax.guards.robustness import SetScores
from edgesafe_jax.guards.unseen import (
    CANONICAL,
    ENCODER,
    HIDDEN,
    LEADS,
    WORDS,
    Context,
    Members,
    UnseenScores,
    answers_curve,
    compare_unseen,
    contexts_without,
    flips_by_distance,
    makers_of,
    metrics_by_maker,
    randomised,
    read_members,
    score_unseen,
    steady_guard,
    unseen_metrics,
    ways_curve,
)

WIDTH = 6
WAYS = ("a/1", "a/2", "b/1", "b/2", "c/1", "c/2")


def head():
    def linear(direction, bias=0.0):
        one, nothing = jnp.ones(()), jnp.zeros(())
        return Head(
            jnp.zeros(WIDTH), jnp.ones(WIDTH), jnp.asarray(direction, jnp.float32), jnp.float32(bias), one, nothing
        )

    weights = np.array([1.0, 0.8, 0, 0, 0, 0])  # its second feature is the ways'
    return GatedHead(general=linear(weights), own=linear(weights), gate=linear(np.zeros(WIDTH), -20.0))


def members(num=24, seed=0):
    """Answers along the first feature; every way moves the second one."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) // 2 % 2  # both in both halves of the answers
    answers = rng.normal(size=(num, WIDTH)) * 0.3
    answers[:, 0] += 2.0 * (2 * labels - 1)
    rows = [(i, "", "", answers[i]) for i in range(num)]
    for number, way in enumerate(WAYS):
        shift = np.zeros(WIDTH)
        shift[1] = 3.0 * (-1) ** number
        rows += [(i, way[0], way, answers[i] + shift + 0.05 * rng.normal(size=WIDTH)) for i in range(num)]
    index, makers, ways, x = (np.array(column) for column in zip(*rows, strict=True))
    readings = {HIDDEN: x, CANONICAL: x, WORDS: x[:, :1], ENCODER: x[:, 2:3]}
    readings |= {"canonical_words": x[:, :1], "canonical_encoder": x[:, 2:3]}
    return Members(index, makers, ways, labels[index].astype(float), readings)


@pytest.fixture(scope="module")
def context():
    return Context(head(), members(seed=1), num_seeds=2, num_steps=20)


def test_sets_become_members():
    sets = [
        ParaphraseSet("q", "o", (Paraphrase("x", "a", "1"), Paraphrase("y", "b", "2")), 1.0),
        ParaphraseSet("r", "p", (), 0.0),
        ParaphraseSet("s", "t", (Paraphrase("u", "a", "1"),), 0.0),
    ]
    made = read_members(sets, lambda prompts, texts: {"n": np.array([[len(t)] for t in texts])}, left_out=("b/2",))
    assert made.answers.tolist() == [0, 0, 1, 1]
    assert made.ways.tolist() == ["", "a/1", "", "a/1"]
    assert made.labels.tolist() == [1, 1, 0, 0]
    assert made.readings["n"].shape == (4, 1)
    assert makers_of(made) == ["a"]


def test_a_left_out_maker_is_neither_trained_nor_calibrated_on(context, monkeypatch):
    seen = []
    fit = unseen.fit_stack
    monkeypatch.setattr(
        unseen, "fit_stack", lambda columns, m, **k: seen.append(set(makers_of(m))) or fit(columns, m, **k)
    )

    def spy(one):
        assert len(makers_of(one.train)) == 2
        return lambda m: [m.readings[WORDS]]

    test = members(seed=2)
    contexts = contexts_without(context, makers_of(test))
    for target, num_stacks in ((test, 1), (None, 2)):
        seen.clear()
        scores = score_unseen(spy, contexts, members(seed=3), target)
        assert seen == [s for maker in "abc" for s in [set("abc") - {maker}] * num_stacks]
        assert scores.makers.tolist() == ["a"] * 24 + ["b"] * 24 + ["c"] * 24
        assert scores.seeds[0].unsafe.shape == (72, 3)
    raw = score_unseen(LEADS["hidden states"], contexts, test, test, raw=True).seeds[0].unsafe
    logits = test.readings[HIDDEN][:24] @ np.array([1.0, 0.8, 0, 0, 0, 0])
    np.testing.assert_allclose(raw[:24, 0], 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.fixture(scope="module")
def results(context):
    judge, test = members(seed=3), members(seed=2)
    contexts = contexts_without(context, makers_of(test))
    return {name: score_unseen(lead, contexts, judge, test) for name, lead in LEADS.items()} | {
        "raw": score_unseen(LEADS["hidden states"], contexts, judge, test, raw=True)
    }


def test_leads_lower_the_flips_where_makers_share_a_direction(results):
    flips = {name: unseen_metrics(scores.seeds)["flips"] for name, scores in results.items()}
    assert flips["raw"] > 0.3
    for name in ("canonical form, trained", "canonical hybrid, trained", "weighted words"):
        assert flips[name] < 0.5 * flips["raw"], name
    assert {len(results[name].seeds) for name in ("canonical form, trained", "canonical hybrid, trained")} == {2}
    assert len(results["hybrid"].seeds) == 1


def test_the_steady_guard_is_calibrated_on_the_training_answers(context):
    for tuned, calibrated in zip(context.tuned, context.guards, strict=True):
        np.testing.assert_array_equal(tuned.general.linear, calibrated.general.linear)
        probs = head_probability(calibrated, context.train.readings[CANONICAL])
        assert probs.mean() == pytest.approx(context.train.labels.mean(), abs=1e-3)  # all answers have as many members
    contexts = contexts_without(context, makers_of(context.train))
    scores = score_unseen(steady_guard, contexts, members(seed=3), members(seed=2), raw=True)
    assert unseen_metrics(scores.seeds)["accuracy"] > 0.95


def test_changes_are_against_the_baseline_on_the_same_answers(results):
    same = compare_unseen(results["raw"], results["raw"], num_samples=20)
    assert same["reduction/std"].low == same["reduction/std"].high == 0.0
    found = compare_unseen(results["canonical form, trained"], results["raw"], num_samples=50)
    before, after = (unseen_metrics(results[name].seeds) for name in ("raw", "canonical form, trained"))
    assert found["reduction/flips"].estimate == pytest.approx(1 - after["flips"] / before["flips"])
    assert found["reduction/std"].low <= found["reduction/std"].estimate <= found["reduction/std"].high
    assert set(metrics_by_maker(results["raw"])) == {"a", "b", "c"}


def test_relative_variability_is_of_the_spread():
    wide = SetScores(np.array([[0.1, 0.2], [0.9, 0.8]]), np.array([0.0, 1.0]))
    narrow = SetScores(0.5 + (wide.unsafe - 0.5) / 4, wide.labels)
    assert unseen_metrics([wide])["std"] == pytest.approx(4 * unseen_metrics([narrow])["std"])
    assert unseen_metrics([wide])["relative"] == pytest.approx(unseen_metrics([narrow])["relative"])


def test_the_curve_trains_on_as_many_texts_whatever_the_number_of_ways(context):
    for count in (1, 2, 4):
        chosen = unseen._one_each(context.train, count, np.random.default_rng(count))
        assert chosen.sum() == 12
        assert len(set(context.train.ways[chosen])) <= count
        assert len(set(context.train.answers[chosen])) == 12
        assert not chosen[context.train.makers == ""].any()
    curve = ways_curve(context, members(seed=2), counts=(4,), num_draws=1)
    assert list(curve) == [0, 4]
    assert curve[4][0]["std"] < curve[0][0]["std"]


def test_more_answers_are_trained_on_with_all_their_paraphrases(context, monkeypatch):
    seen = []
    tuned = unseen.tuned_heads
    monkeypatch.setattr(unseen, "tuned_heads", lambda c, x: seen.append(c.train) or tuned(c, x))
    found = answers_curve(context, members(seed=2), counts=(4, 24), num_draws=1)
    assert [len(np.unique(train.answers)) for train in seen] == [4] * 3 + [24] * 3
    assert all(len(train.answers) == 5 * len(np.unique(train.answers)) for train in seen)
    assert found[24][0]["std"] < unseen_metrics([unseen.all_members(members(seed=2), head())])["std"]


def test_flips_by_distance_are_all_flips():
    unsafe = np.array([[0.55, 0.45, np.nan], [0.75, 0.6, 0.9], [0.95, 0.2, 0.9], [0.5, 0.4, 0.3]])
    found = flips_by_distance(UnseenScores([SetScores(unsafe, np.zeros(4))], np.arange(4), np.array(["a"] * 4)))
    assert {name: row["sets"] for name, row in found.items()} == {
        "below 0.1": 0.5,
        "below 0.2": 0.0,
        "below 0.3": 0.25,
        "below 0.5": 0.25,
    }
    assert [found[name]["of_flips"] for name in ("below 0.1", "below 0.5")] == [0.5, 0.5]
    assert sum(row["of_flips"] for row in found.values()) == 1.0
    assert found["below 0.3"]["flips"] == 0.0


def test_randomised_readings_are_of_other_makers(results):
    test = members(seed=2)
    found = randomised(test, head(), num_readings=(0, 4))
    np.testing.assert_allclose(found[0].seeds[0].unsafe, results["raw"].seeds[0].unsafe, atol=1e-6)
    assert unseen_metrics(found[4].seeds)["std"] < unseen_metrics(found[0].seeds)["std"]
