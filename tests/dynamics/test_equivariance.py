"""The equivalence test: its level, its verdicts on worlds with a known answer, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    BoxDomain,
    CalibrationError,
    DynamicsError,
    EnsembleSettings,
    Equivalence,
    Verdict,
    accept,
    calibrate,
    episode_quantile,
    equivalence_test,
    fit_ensemble,
    fit_support,
    make_segments,
    make_transitions,
    residuals,
    summarize,
    trust_threshold,
    verdict_map,
)
from tests.dynamics.worlds import SHIFT, SHIFT_VELOCITY, TOLERANCE, collect, wrong


def shifts(data, low=-1.0, high=1.0, seed=0):
    """Shifts that carry every state to a place drawn from [low, high]."""
    places = jax.random.uniform(jax.random.key(seed), (len(data.states), 1), minval=low, maxval=high)
    return places - data.states[:, :1]


def run(fitted, group, elements, tolerance=TOLERANCE, data=None):
    calibration = calibrate(fitted.ensemble, fitted.parts["calibration"], tolerance=tolerance)
    data = fitted.parts["calibration"] if data is None else data
    return equivalence_test(fitted.ensemble, calibration, fitted.support, group, elements, data)


def test_a_true_symmetry_is_verified(fitted):
    fresh = collect(num_episodes=100, seed=50)
    report = summarize(run(fitted, SHIFT, shifts(fresh), data=fresh))
    assert report.overall == Verdict.VERIFIED
    assert report.verified.low > 0.95
    assert report.fractions["rejected"] == 0


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
    assert report.fractions["verified"] == 0


def test_an_underfitted_model_is_inconclusive(underfitted):
    result = run(underfitted, SHIFT, shifts(underfitted.parts["calibration"]))
    assert summarize(result).overall == Verdict.INCONCLUSIVE
    assert np.mean(np.asarray(result.verdicts) == Verdict.VERIFIED) < 0.05
    # ... because the model is not trusted, whatever the residual.
    assert np.mean(np.asarray(result.trusted)) < 0.1


def verdicts_of(*episodes):
    """A result with the given verdicts, one list for each episode."""
    verdicts = np.concatenate([np.asarray(each, np.int8) for each in episodes])
    num = len(verdicts)
    return Equivalence(
        verdicts=verdicts,
        errors=np.zeros((num, 1)),
        expected=np.zeros(num),
        trusted=np.ones(num, bool),
        states=np.zeros((num, 1)),
        tolerance=np.ones(1),
        episodes=np.repeat(np.arange(len(episodes)), [len(each) for each in episodes]),
    )


def test_few_tested_samples_decide_nothing():
    v, e, r = Verdict.VERIFIED, Verdict.EXTRAPOLATED, Verdict.REJECTED
    # Three verified samples of one episode among five thousand outside the data.
    report = summarize(verdicts_of([v, v, v], *[[e] * 50] * 100))
    assert report.overall == Verdict.EXTRAPOLATED
    assert report.verified.low < 0.3
    # Samples of few episodes, however many they are.
    assert summarize(verdicts_of(*[[r] * 50] * 19)).overall == Verdict.EXTRAPOLATED
    assert summarize(verdicts_of(*[[r] * 50] * 20)).overall == Verdict.REJECTED
    # All verified: 72 episodes do not show that at most 5 % are not, 73 do.
    open_ = summarize(verdicts_of(*[[v] * 50] * 72))
    assert open_.overall == Verdict.INCONCLUSIVE
    assert open_.num_episodes == 73
    assert "about 73" in open_.reason
    assert summarize(verdicts_of(*[[v] * 50] * 73)).overall == Verdict.VERIFIED


def test_what_is_open_says_why_and_how_many_episodes_would_settle_it():
    v, u, r = Verdict.VERIFIED, Verdict.INCONCLUSIVE, Verdict.REJECTED
    # One in fifty is not verified: 2 %, below the 5 % allowed, and 40 episodes do not show it.
    few = [[v] * 49 + [u]] * 39 + [[v] * 50]
    report = summarize(verdicts_of(*few))
    assert report.overall == Verdict.INCONCLUSIVE
    assert report.num_episodes == 73
    assert summarize(verdicts_of(*few, *few)).overall == Verdict.VERIFIED
    # The rejected differ from episode to episode: 10 % of all, all in a tenth of the episodes.
    uneven = [[r] * 50] * 3 + [[v] * 50] * 27
    wanted = summarize(verdicts_of(*uneven)).num_episodes
    assert 60 < wanted < 250
    assert summarize(verdicts_of(*uneven * (2 + wanted // 30))).overall == Verdict.REJECTED
    # Half of them lie about the tolerance: no number of episodes helps.
    half = summarize(verdicts_of(*[[v] * 25 + [u] * 25] * 100))
    assert half.num_episodes is None
    assert "more episodes do not settle it" in half.reason
    doubted = verdicts_of(*[[u] * 50] * 100)
    doubted = summarize(doubted.replace(trusted=np.zeros_like(doubted.trusted)))
    assert "the model is trusted on 0 of the tested samples" in doubted.reason


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
    np.testing.assert_allclose(residual[:, 0], prediction.mean - data.next_states, atol=1e-6)
    np.testing.assert_allclose(spread[:, 0], prediction.spread, rtol=1e-5)


def test_a_segment_is_predicted_from_its_moved_start(fitted):
    data = make_segments(fitted.parts["calibration"].take(np.arange(15)), 4)
    residual, spread = residuals(fitted.ensemble, SHIFT, jnp.full((len(data.states), 1), 0.5), data)
    state = data.states[0, 0] + np.array([0.5, 0.0], np.float32)
    for k in range(4):
        prediction = fitted.ensemble.predict(state, data.actions[0, k])
        state = prediction.mean
        np.testing.assert_allclose(residual[0, k], state - data.states[0, k + 1] - jnp.array([0.5, 0.0]), atol=1e-5)
        np.testing.assert_allclose(spread[0, k], prediction.spread, rtol=1e-4)


def test_a_false_symmetry_shows_more_over_several_steps(sloped):
    data = make_segments(sloped.parts["calibration"], 5)
    error = np.abs(residuals(sloped.ensemble, SHIFT, jnp.full((len(data.states), 1), 0.5), data)[0])
    assert error[:, 4, 0].mean() > 2 * error[:, 0, 0].mean()


def test_several_steps_reject_what_one_step_cannot(sloped):
    # A shift by 0.15 changes the velocity by 0.09 a step: below one and a half tolerances at first, not after four.
    shares = []
    for horizon in (1, 4):
        calibration = calibrate(sloped.ensemble, sloped.parts["calibration"], tolerance=TOLERANCE, horizon=horizon)
        fresh = make_segments(collect(num_episodes=60, seed=5, slope=0.6), horizon)
        elements = jnp.full((len(fresh.states), 1), 0.15)
        result = equivalence_test(sloped.ensemble, calibration, sloped.support, SHIFT, elements, fresh)
        shares.append(np.mean(np.asarray(result.verdicts) == Verdict.REJECTED))
        verified = np.mean(np.asarray(result.verdicts) == Verdict.VERIFIED)
    assert shares[0] == 0
    assert shares[1] > 0.5
    assert verified == 0


def test_a_segment_is_known_only_if_its_whole_path_is(fitted):
    fresh = make_segments(collect(num_episodes=20, seed=6), 4)
    calibration = calibrate(fitted.ensemble, fitted.parts["calibration"], tolerance=TOLERANCE, horizon=4)
    states = np.array(fresh.states)
    states[:, 2, 0] += 9.0  # far outside, in the middle of the path
    elements = jnp.zeros((len(states), 1))
    for data, share in ((fresh, 0.3), (fresh.replace(states=states), 1.0)):
        result = equivalence_test(fitted.ensemble, calibration, fitted.support, SHIFT, elements, data)
        outside = np.mean(np.asarray(result.verdicts) == Verdict.EXTRAPOLATED)
        assert outside <= share
        assert share < 1 or outside == 1


def test_segments_of_another_length_than_the_calibration_are_refused(fitted):
    data = fitted.parts["calibration"]
    with pytest.raises(DynamicsError, match="segments of 2 steps, a calibration for 1: expected the same"):
        equivalence_test(
            fitted.ensemble,
            fitted.calibration,
            fitted.support,
            SHIFT,
            shifts(data)[: 14 * 54],
            make_segments(data, 2),
        )


def test_bodies_that_are_never_so_near_each_other_are_outside_the_support():
    # Two bodies on a line, always at least 0.3 apart, and two numbers more that are noise to this question.
    def episodes(seed, num=60, length=40):
        rng = np.random.default_rng(seed)
        one = rng.uniform(-1, 1, num * length)
        other = one + rng.choice([-1, 1], num * length) * rng.uniform(0.3, 0.6, num * length)
        states = np.stack([one, other, *rng.normal(size=(2, num * length))], 1)
        return make_transitions(
            states=states,
            actions=np.zeros((num * length, 1)),
            next_states=states,
            episodes=np.repeat(np.arange(num), length),
        )

    training, calibration = episodes(0), episodes(1)
    fresh = episodes(2)
    overlap = fresh.replace(states=np.concatenate([fresh.states[:, :1], fresh.states[:, :1], fresh.states[:, 2:]], 1))
    shares = {}
    for relations in ((), ((1, 0),)):
        # Only its normaliser matters here.
        ensemble, _ = fit_ensemble(
            jax.random.key(0),
            training,
            calibration.replace(episodes=calibration.episodes + 100),
            EnsembleSettings(num_members=1, num_elites=1, hidden=(1,), num_epochs=1),
            relations=relations,
        )
        support = fit_support(ensemble, training, calibration, moved=(1,))
        for name, data in (("fresh", fresh), ("overlap", overlap)):
            known = support.contains(jax.vmap(ensemble.normalize)(data.states, data.actions))
            shares[name, len(relations)] = float(np.mean(np.asarray(known)))
    assert shares["overlap", 0] > 0.8
    assert shares["overlap", 1] == 0
    assert shares["fresh", 1] > 0.92
    with pytest.raises(DynamicsError, match="moved names dimension -1 of a state of 4"):
        fit_support(ensemble, training, calibration, moved=(-1,))


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
    verdicts = np.array([[v, e, e], [v, e, r], [i, e, e], [e, e, e], [e, e, v]])
    declared = np.array([[True, True, False]] * 5)
    assert accept(verdicts).tolist() == (verdicts == v).tolist()
    assert accept(verdicts, declared=declared).tolist() == [
        [True, True, False],
        [True, False, False],
        [False] * 3,
        [False] * 3,
        [True, True, False],  # what is verified beyond the declared domain is not accepted
    ]


def test_a_box_domain_measures_how_far_outside():
    box = BoxDomain(dims=(0, 2), low=(-1.0, 0.0), high=(1.0, 4.0))
    assert bool(box.contains(jnp.array([1.0, 99.0, 0.0])))
    assert not bool(box.contains(jnp.array([1.1, 0.0, 0.0])))
    np.testing.assert_allclose(box.excess(jnp.array([2.0, 0.0, 5.0])), 0.5)
    with pytest.raises(ValueError, match="one low below one high"):
        BoxDomain(dims=(0,), low=(1.0,), high=(1.0,))
    with pytest.raises(ValueError, match="one low below one high"):
        BoxDomain(dims=(0, 1), low=(1.0,), high=(1.0,))
    with pytest.raises(DynamicsError, match="dims names dimension 9 of a state of 4: expected 0 to 3"):
        BoxDomain(dims=(0, 9), low=(-1.0, -1.0), high=(1.0, 1.0)).contains(jnp.zeros(4))


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
