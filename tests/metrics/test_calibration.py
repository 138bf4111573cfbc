import doctest
import math

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.metrics import (
    binary_nll,
    brier_score,
    calibration,
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    scale_temperature,
)

METRICS = [expected_calibration_error, brier_score, binary_nll]


def predictions(num=500, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.beta(0.7, 0.9, size=num)
    labels = rng.random(num) < probs**1.5
    return probs, labels


def test_examples_run():
    assert doctest.testmod(calibration).failed == 0


class TestExpectedCalibrationError:
    def test_by_hand(self):
        # Bins [0, .5) and [.5, 1]: three samples with mean .2 of which one is positive, and two
        # with mean .8 of which both are.
        error = expected_calibration_error(probs=[0.1, 0.2, 0.3, 0.7, 0.9], labels=[0, 1, 0, 1, 1], num_bins=2)
        assert error == pytest.approx((3 / 5) * abs(0.2 - 1 / 3) + (2 / 5) * abs(0.8 - 1))

    @pytest.mark.parametrize("num_bins", [1, 4, 15])
    def test_equal_width_equals_a_loop_over_bins(self, num_bins):
        probs, labels = predictions()
        expected = 0.0
        for k in range(num_bins):
            upper = probs < (k + 1) / num_bins if k < num_bins - 1 else probs <= 1
            inside = (probs >= k / num_bins) & upper
            if inside.any():
                expected += inside.mean() * abs(probs[inside].mean() - labels[inside].mean())
        error = expected_calibration_error(probs=probs, labels=labels, num_bins=num_bins)
        assert error == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("num_bins", [1, 4, 15])
    def test_equal_mass_equals_a_loop_over_sorted_chunks(self, num_bins):
        probs, labels = predictions(num=15 * 4 * 7)
        order = np.argsort(probs)
        expected = np.mean([abs(probs[chunk].mean() - labels[chunk].mean()) for chunk in np.split(order, num_bins)])
        error = expected_calibration_error(probs=probs, labels=labels, num_bins=num_bins, equal_mass=True)
        assert error == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("equal_mass", [False, True])
    def test_order_of_samples_does_not_matter_even_with_ties(self, equal_mass):
        probs, labels = predictions()
        probs = np.round(probs, 1)
        shuffled = np.random.default_rng(1).permutation(len(probs))
        first, second = (
            expected_calibration_error(probs=probs[order], labels=labels[order], num_bins=7, equal_mass=equal_mass)
            for order in (np.arange(len(probs)), shuffled)
        )
        assert first == pytest.approx(second, abs=1e-12)

    @pytest.mark.parametrize("equal_mass", [False, True])
    def test_ends_of_the_scale(self, equal_mass):
        # Certain and right, certain and wrong, and a constant prediction.
        for probs, labels, expected in [
            ([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1], 0.0),
            ([0.0, 0.0, 1.0, 1.0], [1, 1, 0, 0], 1.0),
            ([0.3] * 10, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 0.0),
            ([0.3] * 10, [1] * 10, 0.7),
            ([1.0], [0], 1.0),
        ]:
            error = expected_calibration_error(probs=probs, labels=labels, equal_mass=equal_mass)
            assert error == pytest.approx(expected, abs=1e-12)

    def test_calibrated_predictions_have_a_small_error(self):
        rng = np.random.default_rng(0)
        probs = rng.random(20000)
        labels = rng.random(20000) < probs
        assert expected_calibration_error(probs=probs, labels=labels) < 0.015
        assert expected_calibration_error(probs=np.sqrt(probs), labels=labels) > 0.15

    @pytest.mark.parametrize("num_bins", [1, 3, 7, 10, 15, 100, 200, 1000])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16])
    def test_a_probability_at_an_edge_is_in_the_bin_above(self, num_bins, dtype):
        edges = (np.arange(num_bins) / num_bins).astype(dtype)
        if len(np.unique(edges)) == num_bins:
            np.testing.assert_array_equal(equal_width_bins(edges, num_bins), np.arange(num_bins))
        assert equal_width_bins([0, 1], num_bins).tolist() == [0, num_bins - 1]

    def test_a_rounded_product_does_not_put_a_probability_into_the_bin_below(self):
        assert int(0.29 * 100) == 28
        assert equal_width_bins([0.29, 0.57, 0.58, 0.285], 100).tolist() == [29, 57, 58, 28]
        assert equal_width_bins([0.285], 200).tolist() == [57]
        # In one bin with .285 and .28 it would be off by less.
        error = expected_calibration_error(probs=[0.29, 0.28], labels=[1, 0], num_bins=100)
        assert error == pytest.approx((0.71 + 0.28) / 2)


class TestProperScores:
    def test_by_hand(self):
        probs, labels = [0.9, 0.2, 0.5], [1, 0, 0]
        assert brier_score(probs=probs, labels=labels) == pytest.approx((0.01 + 0.04 + 0.25) / 3)
        expected = -(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3
        assert binary_nll(probs=probs, labels=labels) == pytest.approx(expected)

    def test_constant_half(self):
        _, labels = predictions()
        half = np.full(len(labels), 0.5)
        assert brier_score(probs=half, labels=labels) == pytest.approx(0.25)
        assert binary_nll(probs=half, labels=labels) == pytest.approx(math.log(2))

    @pytest.mark.parametrize("score", [brier_score, binary_nll])
    def test_best_for_the_true_probability(self, score):
        # Weighted by the truth: a share of 0.3 positives is scored best by 0.3.
        labels = np.arange(1000) < 300
        best = score(probs=np.full(1000, 0.3), labels=labels)
        for other in (0.29, 0.31, 0.1, 0.9):
            assert score(probs=np.full(1000, other), labels=labels) > best

    def test_nll_of_a_certain_error_is_clamped(self):
        assert binary_nll(probs=[1.0], labels=[0], eps=1e-3) == pytest.approx(-math.log(1e-3))
        assert binary_nll(probs=[1.0], labels=[0], eps=0.0) == math.inf
        assert binary_nll(probs=[1.0, 0.0], labels=[1, 0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_numpy_jax_and_lists_give_the_same(metric):
    probs, labels = (x[:20] for x in predictions())
    probs = probs.astype(np.float32)
    expected = metric(probs=probs, labels=labels)
    assert isinstance(expected, float)
    assert metric(probs=jnp.asarray(probs), labels=jnp.asarray(labels)) == expected
    assert metric(probs=probs.tolist(), labels=labels.astype(int).tolist()) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_low_precision_is_accepted(metric):
    probs = jnp.array([0.25, 0.75], jnp.bfloat16)
    assert metric(probs=probs, labels=[0, 1]) == metric(probs=[0.25, 0.75], labels=[0, 1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([], [], "probs is empty, expected at least one entry"),
        ([0.5, 0.5], [1], "labels has 1 entries but probs has 2"),
        ([0.5, 1.5], [0, 1], r"probs holds 1.5, expected probabilities in \[0, 1\]"),
        ([0.5, math.nan], [0, 1], "probs holds nan, expected finite numbers"),
        ([0.5, 0.5], [0, 2], "labels holds 2, expected 0 and 1"),
        ([0.5, 0.5], [0.0, 0.5], "labels holds 0.5, expected 0 and 1"),
        ([[0.5]], [[1]], r"probs has shape \(1, 1\), expected 1 axis"),
        (["a"], [1], "probs has dtype .*, expected numbers"),
    ],
)
def test_bad_input(metric, probs, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(probs=probs, labels=labels)


def test_bad_options():
    with pytest.raises(ValueError, match="num_bins=0: expected at least 1"):
        expected_calibration_error(probs=[0.5], labels=[1], num_bins=0)
    with pytest.raises(ValueError, match=r"eps is 0.5, expected a number in \[0, 0.5\)"):
        binary_nll(probs=[0.5], labels=[1], eps=0.5)


class TestTemperature:
    def test_overconfidence_of_a_known_factor_is_undone(self):
        rng = np.random.default_rng(0)
        z = rng.normal(0, 2, 20_000)
        labels = rng.random(20_000) < 1 / (1 + np.exp(-z))
        probs = 1 / (1 + np.exp(-3 * z))
        temperature = fit_temperature(probs=probs, labels=labels)
        assert temperature == pytest.approx(3.0, rel=0.05)
        scaled = scale_temperature(probs=probs, temperature=temperature)
        assert expected_calibration_error(probs=scaled, labels=labels) < 0.02
        assert binary_nll(probs=scaled, labels=labels) < binary_nll(probs=probs, labels=labels)

    def test_it_is_the_minimum(self):
        probs, labels = predictions()
        temperature = fit_temperature(probs=probs, labels=labels)
        at = {f: scale_temperature(probs=probs, temperature=f * temperature) for f in (0.9, 1.0, 1.1)}
        nll = {f: binary_nll(probs=p, labels=labels) for f, p in at.items()}
        assert nll[1.0] < min(nll[0.9], nll[1.1])

    def test_scaling_keeps_order_and_verdicts(self):
        probs, _ = predictions()
        scaled = scale_temperature(probs=probs, temperature=2.5)
        assert np.array_equal(np.argsort(scaled, kind="stable"), np.argsort(probs, kind="stable"))
        assert np.array_equal(scaled > 0.5, probs > 0.5)
        np.testing.assert_allclose(scale_temperature(probs=probs, temperature=1.0), probs, atol=1e-6)

    def test_ends_of_the_range(self):
        assert fit_temperature(probs=[0.9, 0.1], labels=[1, 0]) == pytest.approx(1e-3)
        assert fit_temperature(probs=[0.9, 0.1], labels=[0, 1]) == pytest.approx(1e3)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
    def test_bad_temperature(self, temperature):
        with pytest.raises(ValueError, match="temperature is"):
            scale_temperature(probs=[0.5], temperature=temperature)
