import doctest

import numpy as np
import pytest

from edgesafe_jax.metrics import bootstrap_interval, flips, label_flips, set_spread

RNG = np.random.default_rng(0)
ORIGINAL = np.concatenate([RNG.uniform(0, 0.3, 10), RNG.uniform(0.4, 1, 10)])
REST = np.clip(ORIGINAL[:, None] + RNG.normal(0, 0.3, (20, 6)), 0, 1) ** 3
WHERE = RNG.random((20, 6)) < 0.7
WHERE[:, 0] = True


def test_examples_run():
    assert doctest.testmod(flips).failed == 0


def test_both_directions_by_hand():
    found = label_flips(original=[0.9, 0.9, 0.1, 0.2], paraphrases=[[0.4, 0.8], [0.7, 0.6], [0.6, 0.7], [0.1, 0.3]])
    assert found.original_unsafe.tolist() == [True, True, False, False]
    assert found.flipped.tolist() == [True, False, True, False]
    assert found.unsafe_to_safe.tolist() == [True, False, False, False]
    assert found.safe_to_unsafe.tolist() == [False, False, True, False]
    assert found.fraction.tolist() == [0.5, 0, 1, 0]


def test_spread_by_hand():
    spread = set_spread(original=[0.2, 0.5], paraphrases=[[0.4, 0.6], [0.5, 0.5]])
    np.testing.assert_allclose(spread.std, [np.std([0.2, 0.4, 0.6]), 0])
    np.testing.assert_allclose(spread.range, [0.4, 0])


def test_masked_equals_filtered():
    broken = np.where(WHERE, REST, np.nan)
    spread = set_spread(original=ORIGINAL, paraphrases=broken, where=WHERE)
    found = label_flips(original=ORIGINAL, paraphrases=broken, where=WHERE)
    for i in range(20):
        alone = {"original": ORIGINAL[i : i + 1], "paraphrases": REST[i : i + 1][:, WHERE[i]]}
        assert spread.std[i] == pytest.approx(set_spread(**alone).std[0])
        assert spread.range[i] == pytest.approx(set_spread(**alone).range[0])
        assert found.flipped[i] == label_flips(**alone).flipped[0]
        assert found.fraction[i] == pytest.approx(label_flips(**alone).fraction[0])


def test_order_of_paraphrases_does_not_matter():
    shuffled = RNG.permuted(REST, axis=1)
    np.testing.assert_allclose(
        set_spread(original=ORIGINAL, paraphrases=shuffled).std, set_spread(original=ORIGINAL, paraphrases=REST).std
    )
    assert np.array_equal(
        label_flips(original=ORIGINAL, paraphrases=shuffled).flipped,
        label_flips(original=ORIGINAL, paraphrases=REST).flipped,
    )


def test_the_mirror_image_exchanges_the_directions():
    here = label_flips(original=ORIGINAL, paraphrases=REST)
    there = label_flips(original=1 - ORIGINAL, paraphrases=1 - REST)
    assert np.array_equal(here.unsafe_to_safe, there.safe_to_unsafe)
    assert here.unsafe_to_safe.any()
    assert here.safe_to_unsafe.any()


def test_a_constant_guard_never_flips():
    found = label_flips(original=np.full(5, 0.5), paraphrases=np.full((5, 3), 0.5))
    assert not found.flipped.any()
    assert not found.original_unsafe.any()  # unsafe is above the threshold, not at it


def test_rates_are_bootstrapped_by_set():
    found = label_flips(original=ORIGINAL, paraphrases=REST)
    interval = bootstrap_interval(found.flipped.astype(float))
    assert interval.low < interval.estimate == found.flipped.mean() < interval.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original": []}, "original is empty"),
        ({"paraphrases": np.zeros((20, 0))}, r"shape \(20, 0\)"),
        ({"paraphrases": REST[0]}, r"shape \(6,\)"),
        ({"original": ORIGINAL[:3]}, "entries"),
        ({"original": ORIGINAL * 3}, "probabilities"),
        ({"paraphrases": REST - 1}, "probabilities"),
        ({"paraphrases": np.full((20, 6), np.nan)}, "paraphrases holds nan"),
        ({"where": np.zeros((20, 6), bool)}, "set 0: there are none"),
        ({"where": np.ones((20, 6), int)}, "where is int64"),
    ],
)
@pytest.mark.parametrize("function", [label_flips, set_spread])
def test_bad_input(function, change, message):
    with pytest.raises(ValueError, match=message):
        function(**{"original": ORIGINAL, "paraphrases": REST, **change})
