"""The equivalence test: its level, its verdicts on worlds with a known answer, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    BoxDomain,
    CalibrationError,
    Verdict,
    accept,
    calibrate,
    episode_quantile,
    equivalence_test,
    fit_support,
    residuals,
    segment_residuals,
    summarize,
    trust_threshold,
    verdict_map,
)
from tests.dynamics.worlds import SHIFT, SHIFT_VELOCITY, TOLERANCE, collect, wrong


def shifts(data, low=-1.0, high=1.0, seed=0):
    """Shifts that carry every state to a place drawn from [low, high]."""
    places = jax.random.uniform(jax.random.key(seed), (len(data.states), 1), minval=low, maxval=high)
    return places - data.states[:, :1]


def run(fitted, group, elements, tolerance=TOLERANCE):
    data = fitted.parts["calibration"]
    calibration = calibrate(fitted.ensemble, data, tolerance=tolerance)
    return equivalence_test(fitted.ensemble, calibration, fitted.support, group, elements, data)


def test_a_true_symmetry_is_verified(fitted):
    result = run(fitted, SHIFT, shifts(fitted.parts["calibration"]))
    report = summarize(result)
    assert report.overall == Verdict.VERIFIED
    assert report.verified.low > 0.95
    assert report.shares["rejected"] == 0


def test_a_force_that_depends_on_the_place_is_rejected(sloped):
    data = sloped.parts["calibration"]
    elements = shifts(data)
    result = run(sloped, SHIFT, elements)
    assert summarize(result).overall == Verdict.REJECTED
    verdicts, truth = np.asarray(result.verdicts), wrong(SHIFT, elements, data, TOLERANCE, slope=0.6)
    assert truth[verdicts == Verdict.REJECTED].all()
    assert np.mean(verdicts == Verdict.VERIFIED) > 0.05  # short shifts do not matter
    assert truth[verdicts == Verdict.VERIFIED].mean() <= 0.05


def test_a_shift_of_the_velocity_alone_is_rejected(fitted):
    data = fitted.parts["calibration"]
    elements = jnp.full((len(data.states), 1), 0.8)
    result = run(fitted, SHIFT_VELOCITY, elements)
    assert wrong(SHIFT_VELOCITY, elements, data, TOLERANCE).all()
    report = summarize(result)
    assert report.overall == Verdict.REJECTED
    assert report.shares["verified"] == 0


def test_an_underfitted_model_is_inconclusive(underfitted):
    result = run(underfitted, SHIFT, shifts(underfitted.parts["calibration"]))
    assert summarize(result).overall == Verdict.INCONCLUSIVE
    assert np.mean(np.asarray(result.verdicts) == Verdict.VERIFIED) < 0.05
    # ... because the model is not trusted, whatever the residual.
    assert np.mean(np.asarray(result.trusted)) < 0.1


def test_outside_the_data_nothing_is_claimed(fitted):
    # A world with a wall at 3 that the data never reach cannot be told from one without: the verdict says so.
    data = fitted.parts["calibration"]
    result = run(fitted, SHIFT, shifts(data, low=5.0, high=6.0))
    assert np.all(np.asarray(result.verdicts) == Verdict.EXTRAPOLATED)
    report = summarize(result)
    assert report.overall == Verdict.EXTRAPOLATED
    assert report.rejected is None
    assert report.dimensions == []


def test_the_identity_has_the_residual_of_the_model(fitted):
    data = fitted.parts["calibration"]
    residual, spread = residuals(fitted.ensemble, SHIFT, jnp.zeros((len(data.states), 1)), data)
    prediction = jax.vmap(fitted.ensemble.predict)(data.states, data.actions)
    np.testing.assert_allclose(residual, prediction.mean - data.next_states, atol=1e-6)
    np.testing.assert_allclose(spread, prediction.spread, rtol=1e-5)


def test_segments_of_one_step_have_the_one_step_residual(fitted):
    data = fitted.parts["calibration"].take(np.arange(20))
    elements = shifts(data)
    one, _ = residuals(fitted.ensemble, SHIFT, elements, data)
    states = jnp.stack([data.states, data.next_states], 1)
    many = segment_residuals(fitted.ensemble, SHIFT, elements, states, jnp.asarray(data.actions)[:, None])
    np.testing.assert_allclose(many[:, 0], one, atol=1e-6)


def test_a_false_symmetry_shows_more_over_several_steps(sloped):
    data = sloped.parts["calibration"]
    states = np.concatenate([data.states.reshape(-1, 15, 2), data.next_states.reshape(-1, 15, 2)[:, -1:]], 1)
    actions = data.actions.reshape(-1, 15, 1)
    elements = jnp.full((len(states), 1), 0.5)
    error = np.abs(segment_residuals(sloped.ensemble, SHIFT, elements, jnp.asarray(states[:, :6]), actions[:, :5]))
    assert error[:, 4, 0].mean() > 2 * error[:, 0, 0].mean()


def test_the_conformal_quantile_in_closed_form():
    # One score an episode: the ceil((n + 1)(1 - alpha))-th smallest.
    scores = np.random.default_rng(0).permutation(99).astype(float)
    assert episode_quantile(scores, np.arange(99), 0.1) == 89  # the 90th smallest, counted from 0
    assert episode_quantile(scores, np.arange(99), 0.01) == 98
    assert episode_quantile(scores, np.arange(99), 0.005) == np.inf
    # An episode weighs the same whatever its length.
    lengths = np.array([1, 50, 3])
    repeated = np.repeat([5.0, 1.0, 9.0], lengths)
    assert episode_quantile(repeated, np.repeat([0, 1, 2], lengths), 0.5) == 5.0
    assert episode_quantile(repeated, np.repeat([0, 1, 2], lengths), 0.25) == 9.0


def test_the_quantile_covers_a_fresh_episode_at_its_level():
    # Episodes of unlike length and scale, strongly dependent inside: a random score of a fresh one is covered.
    rng = np.random.default_rng(0)

    def episode():
        return rng.exponential() * (1 + 0.1 * rng.normal(size=rng.integers(1, 9)))

    covered = []
    for _ in range(1500):
        parts = [episode() for _ in range(29)]
        names = np.repeat(np.arange(29), [len(p) for p in parts])
        q = episode_quantile(np.concatenate(parts), names, 0.1)
        fresh = episode()
        covered.append(fresh[rng.integers(len(fresh))] <= q)
    assert 0.88 <= np.mean(covered) <= 0.95


def test_the_threshold_in_closed_form():
    # 19 episodes of one transition: at level 0.1 two of 20 may be wrong, and one of them is the episode to come.
    scores = np.random.default_rng(0).permutation(19).astype(float)
    assert trust_threshold(scores, scores >= 10, np.arange(19), 0.1) == 11  # scores below it hold one wrong one
    assert trust_threshold(scores, scores >= 10, np.arange(19), 0.05) == 10  # ... none
    assert trust_threshold(scores, scores >= 18, np.arange(19), 0.1) == 18  # never above the largest score
    # An episode weighs the same whatever its length: half of the second one is wrong.
    scores, wrong_ones = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True])
    assert trust_threshold(scores, wrong_ones, np.array([0, 1, 1, 0]), 0.5) == 4.0
    assert trust_threshold(scores, wrong_ones, np.array([0, 1, 1, 0]), 0.4) == 3.0


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_trusted_errors_of_a_fresh_episode_keep_to_the_level(alpha):
    # Episodes of unlike length and difficulty; the score foresees the error only in part.
    rng = np.random.default_rng(0)

    def episode():
        difficulty, length = rng.exponential(), rng.integers(1, 9)
        scores = difficulty * rng.uniform(0.5, 1.5, length)
        return scores, rng.uniform(size=length) < 0.5 * (1 - np.exp(-scores))

    losses = []
    for _ in range(1500):
        parts = [episode() for _ in range(29)]
        names = np.repeat(np.arange(29), [len(s) for s, _ in parts])
        scores, wrong_ones = (np.concatenate(column) for column in zip(*parts, strict=True))
        limit = trust_threshold(scores, wrong_ones, names, alpha)
        fresh_scores, fresh_wrong = episode()
        losses.append(np.mean(fresh_wrong & (fresh_scores < limit)))
    assert np.mean(losses) <= alpha + 0.01
    assert np.mean(losses) >= alpha - 0.04  # within 1 / 30 of the level: the bound is not idle


def test_false_acceptance_is_below_alpha_on_fresh_data(sloped):
    # Over repeated calibrations of one model: the share of fresh transitions that are verified though wrong.
    tolerance = (0.02, 0.06)
    shares = []
    for seed in range(10):
        old = collect(num_episodes=60, seed=100 + seed, slope=0.6)
        calibration = calibrate(sloped.ensemble, old, tolerance=tolerance)
        fresh = collect(num_episodes=60, seed=200 + seed, slope=0.6)
        elements = 0.3 * jax.random.normal(jax.random.key(seed), (len(fresh.states), 1))
        result = equivalence_test(sloped.ensemble, calibration, sloped.support, SHIFT, elements, fresh)
        verified = np.asarray(result.verdicts) == Verdict.VERIFIED
        shares.append(np.mean(verified & wrong(SHIFT, elements, fresh, tolerance, slope=0.6)))
    assert np.mean(shares) <= 0.05


def test_a_larger_tolerance_verifies_more(sloped):
    elements = shifts(sloped.parts["calibration"])
    shares = [
        np.mean(np.asarray(run(sloped, SHIFT, elements, np.array(TOLERANCE) * scale).verdicts) == Verdict.VERIFIED)
        for scale in (0.5, 1.0, 2.0, 4.0)
    ]
    assert np.all(np.diff(shares) > 0)


def test_fresh_data_are_inside_the_support(fitted):
    fresh = collect(num_episodes=60, seed=77)
    inside = np.asarray(fitted.support.contains(jax.vmap(fitted.ensemble.normalize)(fresh.states, fresh.actions)))
    assert inside.mean() > 0.9
    far = fresh.replace(states=fresh.states + np.array([4.0, 0.0], np.float32))
    assert not np.asarray(fitted.support.contains(jax.vmap(fitted.ensemble.normalize)(far.states, far.actions))).any()


def test_extrapolation_needs_a_declaration_and_a_regular_transition():
    v, e, r, i = Verdict.VERIFIED, Verdict.EXTRAPOLATED, Verdict.REJECTED, Verdict.INCONCLUSIVE
    verdicts = np.array([[v, e, e], [v, e, r], [i, e, e], [e, e, e]])
    declared = np.array([[True, True, False]] * 4)
    assert accept(verdicts).tolist() == [[True, False, False], [True, False, False], [False] * 3, [False] * 3]
    assert accept(verdicts, declared=declared).tolist() == [
        [True, True, False],
        [True, False, False],
        [False] * 3,
        [False] * 3,
    ]


def test_a_box_domain_measures_how_far_outside():
    box = BoxDomain(dims=(0, 2), low=(-1.0, 0.0), high=(1.0, 4.0))
    assert bool(box.contains(jnp.array([1.0, 99.0, 0.0])))
    assert not bool(box.contains(jnp.array([1.1, 0.0, 0.0])))
    np.testing.assert_allclose(box.excess(jnp.array([2.0, 0.0, 5.0])), 0.5)
    with pytest.raises(ValueError, match="one low below one high"):
        BoxDomain(dims=(0,), low=(1.0,), high=(1.0,))


def test_the_map_shows_where_it_breaks(sloped):
    data = sloped.parts["calibration"]
    result = run(sloped, SHIFT, shifts(data))
    cells = verdict_map(result, dims=(0, 1), low=(-1.0, -1.0), high=(1.0, 1.0), num_cells=4)
    total = sum(np.nan_to_num(cells[verdict.name.lower()]) for verdict in Verdict)
    np.testing.assert_allclose(total[cells["count"] > 0], 1.0)
    assert np.isnan(cells["verified"][cells["count"] == 0]).all()
    assert cells["count"].sum() <= len(data.states)


@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        ((0.0, 0.1), r"tolerance\[0\]=0.0: expected above 0"),
        ((0.1, np.nan), r"tolerance\[1\]=nan: expected above 0"),
        ((0.1,), r"tolerance has shape \(1,\): expected \[2\]"),
    ],
)
def test_bad_tolerances_are_refused(fitted, tolerance, message):
    with pytest.raises(ValueError, match=message):
        run(fitted, SHIFT, shifts(fitted.parts["calibration"]), tolerance)


def test_too_few_calibration_episodes_are_refused(fitted):
    few = fitted.parts["calibration"]
    few = few.take(np.isin(few.episodes, np.unique(few.episodes)[:30]))
    with pytest.raises(CalibrationError, match=r"30 calibration episodes with alpha=0.03: expected at least 33"):
        calibrate(fitted.ensemble, few, tolerance=TOLERANCE, alpha=0.03)
    with pytest.raises(
        CalibrationError, match=r"30 calibration episodes for a support with alpha=0.05: expected at least 39"
    ):
        fit_support(fitted.ensemble, fitted.parts["training"], few, moved=(0,))
    with pytest.raises(CalibrationError, match=r"alpha=1\.0"):
        calibrate(fitted.ensemble, few, tolerance=TOLERANCE, alpha=1.0)
