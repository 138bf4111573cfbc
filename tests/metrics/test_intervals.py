import doctest
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from edgesafe_jax import reporting
from edgesafe_jax.dynamics import episode_interval
from edgesafe_jax.guards.robustness import bootstrap_sets
from edgesafe_jax.metrics import (
    auroc,
    bootstrap_interval,
    intervals,
    paired_bootstrap_interval,
    wilson_interval,
)
from edgesafe_jax.offline_rl import seed_interval
from edgesafe_jax.offline_rl.runs import over_runs
from edgesafe_jax.planning.study import interval_of
from edgesafe_jax.reporting.curves import curves


def test_examples_run():
    assert doctest.testmod(intervals).failed == 0


class TestBootstrap:
    def test_mean_has_the_width_of_the_normal_interval(self):
        values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
        interval = bootstrap_interval(values, num_samples=4000)
        assert interval.estimate == pytest.approx(values.mean())
        margin = 1.96 * values.std() / math.sqrt(1000)
        assert interval.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
        assert interval.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)

    def test_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(1)
        hits = 0
        for trial in range(400):
            values = rng.exponential(size=60)
            interval = bootstrap_interval(values, num_samples=300, confidence=0.8, seed=trial)
            hits += interval.low <= 1.0 <= interval.high
        # 0.8 +- 4 standard errors (0.02), and a little less for 60 skewed values.
        assert 0.70 <= hits / 400 <= 0.88

    def test_callable_statistic_agrees_with_the_mean(self):
        values = np.random.default_rng(0).normal(size=200)
        fast = bootstrap_interval(values, num_samples=3000)
        slow = bootstrap_interval(values, statistic=np.mean, num_samples=3000, seed=5)
        assert slow.estimate == pytest.approx(fast.estimate)
        width = fast.high - fast.low
        assert slow.low == pytest.approx(fast.low, abs=0.1 * width)
        assert slow.high == pytest.approx(fast.high, abs=0.1 * width)

    def test_statistic_of_two_columns(self):
        rng = np.random.default_rng(0)
        labels = rng.random(150) < 0.5
        rows = np.stack([rng.normal(size=150) + labels, labels], axis=1)
        interval = bootstrap_interval(rows, statistic=lambda r: auroc(scores=r[:, 0], labels=r[:, 1]), num_samples=300)
        assert interval.estimate == auroc(scores=rows[:, 0], labels=labels)
        # Hanley and McNeil's standard error for an area near 0.76 is about 0.04.
        assert 0.1 < interval.high - interval.low < 0.2

    def test_is_deterministic_by_seed(self):
        values = np.random.default_rng(0).normal(size=50)
        for kwargs in ({}, {"statistic": np.median}, {"clusters": np.arange(50) // 5}):
            first = bootstrap_interval(values, num_samples=200, **kwargs)
            assert first == bootstrap_interval(values, num_samples=200, **kwargs)
            assert first != bootstrap_interval(values, num_samples=200, seed=1, **kwargs)

    def test_more_confidence_is_wider(self):
        values = np.random.default_rng(0).normal(size=50)
        narrow, wide = (bootstrap_interval(values, confidence=c) for c in (0.5, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high

    def test_shifting_and_scaling_moves_the_interval_along(self):
        values = np.random.default_rng(0).normal(size=50)
        plain, moved = bootstrap_interval(values), bootstrap_interval(2 * values + 5)
        assert moved.low == pytest.approx(2 * plain.low + 5)
        assert moved.high == pytest.approx(2 * plain.high + 5)

    @pytest.mark.parametrize("statistic", ["mean", np.mean])
    def test_clusters_that_repeat_one_value_are_as_good_as_one_row_each(self, statistic):
        # Ten copies of each row add no information: the width must be that of the originals.
        values = np.random.default_rng(0).normal(size=80)
        repeated, ids = np.repeat(values, 10), np.repeat(np.arange(80), 10)
        kwargs = {"statistic": statistic, "num_samples": 1500}
        original, naive, honest = (
            bootstrap_interval(values, **kwargs),
            bootstrap_interval(repeated, **kwargs),
            bootstrap_interval(repeated, clusters=ids, **kwargs),
        )
        width = original.high - original.low
        assert honest.estimate == pytest.approx(original.estimate)
        assert honest.high - honest.low == pytest.approx(width, rel=0.12)
        assert naive.high - naive.low < 0.4 * width

    def test_clusters_may_be_names_of_any_order_and_size(self):
        values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        names = np.array(["b", "a", "b", "c", "a", "b"])
        # Every draw is a mean over whole clusters: a {2, 5}, b {1, 3, 6}, c {4}.
        sums, sizes = {"a": 7, "b": 10, "c": 4}, {"a": 2, "b": 3, "c": 1}
        possible = {
            round(sum(sums[n] for n in draw) / sum(sizes[n] for n in draw), 9)
            for draw in [(i, j, k) for i in "abc" for j in "abc" for k in "abc"]
        }
        seen = set()

        def statistic(rows):
            seen.add(round(float(rows.mean()), 9))
            return float(rows.mean())

        by_rows = bootstrap_interval(values, statistic=statistic, clusters=names, num_samples=500)
        assert seen == possible | {3.5}
        by_counts = bootstrap_interval(values, clusters=names, num_samples=5000)
        assert by_counts.estimate == by_rows.estimate == 3.5
        assert min(possible) <= by_counts.low <= by_counts.high <= max(possible)
        assert round(by_counts.low, 9) in possible

    def test_many_rows_are_drawn_in_parts(self, monkeypatch):
        values = np.random.default_rng(0).normal(size=100)
        monkeypatch.setattr(intervals, "_MAX_COUNTS", 100 * 7)
        parts = bootstrap_interval(values, num_samples=100)
        monkeypatch.setattr(intervals, "_MAX_COUNTS", 10**9)
        whole = bootstrap_interval(values, num_samples=100)
        assert [parts.low, parts.high] == pytest.approx([whole.low, whole.high])

    def test_equal_values_have_no_width(self):
        interval = bootstrap_interval([0.3] * 10, num_samples=50)
        assert interval.low == pytest.approx(0.3)
        assert interval.high == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("interval", "estimate"),
        [
            (lambda: bootstrap_interval([0.75]), 0.75),
            (lambda: bootstrap_interval([0.75], statistic=np.median), 0.75),
            (lambda: bootstrap_interval([0.5, 1.0], clusters=["a", "a"]), 0.75),
            (lambda: bootstrap_interval([[0.5, 1.0]]), 0.75),
            (lambda: paired_bootstrap_interval(values=[1.0], baseline=[0.25]), 0.75),
            (lambda: paired_bootstrap_interval(values=[1.0], baseline=[0.25], statistic=np.mean), 0.75),
            (lambda: seed_interval(np.array([[1, 1, 1, 0]])), 0.75),
            (lambda: over_runs([0.75]), 0.75),
            (lambda: interval_of([0.75]), 0.75),
            (lambda: bootstrap_sets(lambda rows: {"x": 0.75}, 1)["x"], 0.75),
        ],
    )
    def test_one_sample_has_no_interval_and_tables_say_so(self, interval, estimate):
        found = interval()
        assert found.estimate == estimate
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.named("rate") == {"rate": estimate}
        fragment = reporting.Section("name").table([{"rate": found}]).to_fragment()
        assert json.loads(json.dumps(fragment, allow_nan=False)) == fragment
        assert "0.75 [no interval]" in reporting.make_table([{"rate": found}]).to_text()
        assert curves({"rate": [(1.0, found)]}, xlabel="x", ylabel="y")

    def test_one_episode_still_has_the_interval_of_a_rate(self):
        found = episode_interval(np.array([True, False, True, True]), np.zeros(4))
        reach = wilson_interval(0, 1).high
        assert (found.low, found.estimate, found.high) == (1 - reach, 0.75, reach)

    def test_jax_arrays_and_booleans(self):
        flags = np.random.default_rng(0).random(40) < 0.3
        expected = bootstrap_interval(flags.astype(float))
        assert bootstrap_interval(flags) == expected
        assert bootstrap_interval(jnp.asarray(flags)) == expected


class TestPaired:
    def test_estimate_and_direction(self):
        values, baseline = np.array([1.0, 2.0, 4.0]), np.array([0.0, 2.0, 2.0])
        interval = paired_bootstrap_interval(values=values, baseline=baseline)
        assert interval.estimate == pytest.approx(1.0)
        assert interval.low >= 0.0
        swapped = paired_bootstrap_interval(values=baseline, baseline=values)
        assert swapped.estimate == pytest.approx(-1.0)
        assert swapped.low == pytest.approx(-interval.high)

    @pytest.mark.parametrize("statistic", ["mean", np.mean])
    def test_what_both_share_cancels(self, statistic):
        rng = np.random.default_rng(0)
        difficulty = rng.normal(0, 10, size=300)
        baseline = difficulty + rng.normal(0, 0.1, size=300)
        values = difficulty + 0.2 + rng.normal(0, 0.1, size=300)
        paired = paired_bootstrap_interval(values=values, baseline=baseline, statistic=statistic, num_samples=800)
        assert 0.1 < paired.low < 0.2 < paired.high + 0.03
        assert paired.high - paired.low < 0.05
        unpaired = bootstrap_interval(values)
        assert unpaired.high - unpaired.low > 1.0

    def test_identical_measurements_differ_by_exactly_zero(self):
        values = np.random.default_rng(0).normal(size=30)
        for statistic in ("mean", np.median):
            interval = paired_bootstrap_interval(values=values, baseline=values, statistic=statistic, num_samples=50)
            assert (interval.low, interval.estimate, interval.high) == (0.0, 0.0, 0.0)

    def test_clusters(self):
        rng = np.random.default_rng(0)
        gain = np.repeat(rng.normal(size=60), 10)
        baseline = rng.normal(size=600)
        kwargs = {"values": baseline + gain, "baseline": baseline, "num_samples": 800}
        naive = paired_bootstrap_interval(**kwargs)
        honest = paired_bootstrap_interval(**kwargs, clusters=np.repeat(np.arange(60), 10))
        assert honest.high - honest.low > 2.5 * (naive.high - naive.low)


class TestWilson:
    @pytest.mark.parametrize(("successes", "trials"), [(0, 20), (1, 7), (45, 90), (20, 20)])
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
    def test_equals_scipy(self, successes, trials, confidence):
        interval = wilson_interval(successes, trials, confidence=confidence)
        expected = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert interval.estimate == successes / trials
        assert interval.low == pytest.approx(expected.low, abs=1e-12)
        assert interval.high == pytest.approx(expected.high, abs=1e-12)

    def test_stays_inside_and_has_a_width_at_the_ends(self):
        none, every = wilson_interval(0, 20), wilson_interval(20, 20)
        assert none.low == 0.0
        assert none.high == pytest.approx(0.1611, abs=1e-4)
        assert every.high == 1.0
        assert every.low == pytest.approx(1 - none.high)

    def test_ends_solve_the_score_equation(self):
        interval = wilson_interval(13, 40, confidence=0.9)
        z = scipy.stats.norm.ppf(0.95)
        for end in (interval.low, interval.high):
            deviation = abs(13 / 40 - end) / math.sqrt(end * (1 - end) / 40)
            assert deviation == pytest.approx(z)


class TestBadInput:
    @pytest.mark.parametrize(
        ("values", "kwargs", "message"),
        [
            ([], {}, "values is empty, expected at least one entry"),
            (1.0, {}, "values is a single number, expected one row per sample"),
            ([1.0, math.nan], {}, "values holds nan, expected finite numbers"),
            ([1.0], {"num_samples": 0}, "num_samples=0: expected at least 1"),
            ([1.0], {"confidence": 95}, r"confidence is 95, expected a number inside \(0, 1\)"),
            ([1.0, 2.0], {"clusters": [1]}, "clusters has 1 entries but values has 2"),
            ([1.0], {"clusters": [[1]]}, r"clusters has shape \(1, 1\), expected \[N\]"),
            ([1.0], {"statistic": "median"}, "statistic is 'median', expected \"mean\" or a call"),
            ([1.0], {"statistic": lambda _: math.nan}, "statistic is nan for the data"),
        ],
    )
    def test_bootstrap(self, values, kwargs, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(values, **kwargs)

    def test_statistic_that_is_not_finite_on_a_draw(self):
        def ratio(rows):
            return 1.0 / rows.std() if rows.std() else math.inf

        with pytest.raises(ValueError, match=r"not finite for \d+ of 100 draws"):
            bootstrap_interval([1.0, 2.0], statistic=ratio, num_samples=100)

    def test_paired(self):
        with pytest.raises(ValueError, match=r"baseline has shape \(2,\) but values has shape"):
            paired_bootstrap_interval(values=[1.0], baseline=[1.0, 2.0])
        with pytest.raises(ValueError, match="baseline is empty"):
            paired_bootstrap_interval(values=[1.0], baseline=[])

    def test_wilson(self):
        with pytest.raises(ValueError, match="num_trials=0: expected at least 1"):
            wilson_interval(0, 0)
        with pytest.raises(ValueError, match="num_successes is 3, expected a count from 0 to"):
            wilson_interval(3, 2)
        with pytest.raises(ValueError, match="num_successes is -1, expected a count from 0 to"):
            wilson_interval(-1, 2)
        with pytest.raises(ValueError, match=r"confidence is 1\.0, expected a number inside"):
            wilson_interval(1, 2, confidence=1.0)
