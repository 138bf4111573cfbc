"""How far the learned translations reach, and what the bank accepts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    BoxDomain,
    DynamicsError,
    ReachSettings,
    Translation,
    Verdict,
    coverage,
    fit_translations,
    make_bank,
)
from edgesafe_jax.dynamics.transformations import counterpart
from tests.dynamics.worlds import SHIFT, SIZES, TOLERANCE, wrong

DECLARED = BoxDomain(dims=(0,), low=(-2.0,), high=(3.0,))


def fit(fitted, *, domain=None, **settings):
    small = {"num_steps": 400, "batch_size": 128, "hidden": (16,), "learning_rate": 1e-2, "dual_rate": 0.2}
    return fit_translations(
        jax.random.key(0),
        fitted.ensemble,
        fitted.calibration,
        fitted.support,
        SHIFT,
        fitted.data,
        ReachSettings(**{**small, **settings}),
        domain=domain,
    )


@pytest.fixture(scope="module")
def declared(fitted):
    return fit(fitted, domain=DECLARED)


def places(distribution, data, num=8):
    keys = jax.random.split(jax.random.key(5), num)
    draw = jax.vmap(jax.vmap(distribution.sample, in_axes=(0, None)), in_axes=(None, 0))
    return np.asarray(draw(keys, data.states)) + np.asarray(data.states)[:, None, :1]


def test_it_fills_the_declared_domain_from_every_state(fitted, declared):
    distribution, log = declared
    reached = places(distribution, fitted.data)
    assert reached.min() < -1.5
    assert reached.max() > 2.5
    inside = (reached >= -2) & (reached <= 3)
    assert inside.mean() > 0.8
    # The interval leans towards where there is room: it is asymmetric and depends on the state.
    ends = [np.asarray(jax.vmap(distribution.interval)(jnp.array([[x, 0.0]]))) for x in (-1.0, 1.0)]
    assert -ends[0][0, 0, 0] < -ends[1][0, 0, 0]
    assert ends[0][1, 0, 0] > ends[0][0, 0, 0] * -1 + 0.5
    assert float(log.entropy[-1]) > float(log.entropy[0]) + 1.0


def test_the_fraction_of_violations_settles_at_its_bound(declared):
    _, log = declared
    assert np.mean(np.asarray(log.violation)[-100:]) == pytest.approx(0.1, abs=0.07)


def test_without_a_declaration_it_stays_with_the_data(fitted):
    distribution, _ = fit(fitted)
    reached = places(distribution, fitted.data)
    assert np.quantile(reached, 0.02) > -2.5
    assert np.quantile(reached, 0.98) < 2.5


def test_a_false_symmetry_is_given_less_room(fitted, sloped):
    free, _ = fit(fitted)
    tied, _ = fit(sloped)
    state = jnp.zeros(2)
    assert float(tied.entropy(state)) < float(free.entropy(state)) - 0.5


def test_densities_integrate_to_one_and_match_the_entropy(declared):
    distribution, _ = declared
    state = jnp.array([0.3, -0.2])
    grid = jnp.linspace(-6.0, 6.0, 12001)[:, None]
    density = jnp.exp(jax.vmap(distribution.log_prob, in_axes=(0, None))(grid, state))
    np.testing.assert_allclose(jnp.sum(density) * 0.001, 1.0, atol=5e-3)
    low, high = distribution.interval(state)
    np.testing.assert_allclose(distribution.entropy(state), jnp.log(high - low)[0], rtol=1e-6)
    drawn = distribution.sample(jax.random.key(0), state)
    np.testing.assert_allclose(distribution.log_prob(drawn, state), -distribution.entropy(state), rtol=1e-5)


def test_a_bank_accepts_what_is_verified_and_what_is_declared(fitted, declared):
    distribution, _ = declared
    data = fitted.data.take(np.arange(200))
    arguments = (jax.random.key(1), fitted.ensemble, fitted.calibration, fitted.support, distribution, data)
    settings = {"num_elements": 16}
    strict, wide = make_bank(*arguments, **settings), make_bank(*arguments, domain=DECLARED, **settings)
    np.testing.assert_array_equal(strict.verdicts, wide.verdicts)
    np.testing.assert_array_equal(strict.accepted, np.asarray(strict.verdicts) == Verdict.VERIFIED)
    more = np.asarray(wide.accepted) & ~np.asarray(strict.accepted)
    assert more.any()
    assert np.all(np.asarray(wide.verdicts)[more] == Verdict.EXTRAPOLATED)
    reached = np.asarray(data.states)[:, None, 0] + np.asarray(wide.elements)[..., 0]
    assert reached[np.asarray(wide.accepted)].min() >= -2
    assert reached[np.asarray(wide.accepted)].max() <= 3
    false = [
        wrong(SHIFT, wide.elements[:, m], data, TOLERANCE)[np.asarray(wide.accepted)[:, m]].mean() for m in range(16)
    ]
    assert np.mean(false) <= 0.01


def test_coverage_counts_cells():
    grid = {"low": (0.0, 0.0), "high": (1.0, 1.0), "num_cells": 4}
    assert coverage(np.array([[0.1, 0.1], [0.12, 0.1], [0.9, 0.9]]), **grid) == pytest.approx(2 / 16)
    assert coverage(np.array([[5.0, 5.0]]), **grid) == 0
    assert coverage(np.random.default_rng(0).uniform(size=(500, 2)), **grid) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_violation": 0.0}, r"max_violation=0\.0"),
        ({"max_violation": 1.0}, r"max_violation=1\.0"),
    ],
)
def test_bad_settings_are_refused(fitted, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(fitted, **settings)


def test_a_group_that_moves_one_way_only_is_refused(fitted):
    group = dataclasses.replace(SHIFT, low=(0.0,))
    with pytest.raises(ValueError, match=r"axis 0 of the group reaches from 0\.0 to 6\.0"):
        fit_translations(jax.random.key(0), fitted.ensemble, fitted.calibration, fitted.support, group, fitted.data)


def test_an_element_is_judged_by_its_counterpart_where_the_law_is_declared_to_go_on(fitted):
    wide = Translation(SIZES, state_axes=((0,), (1,)), goal_axes=((0,), ()), low=(-6.0, -1.0), high=(6.0, 1.0))
    element, state, other = jnp.array([5.0, 0.3]), jnp.array([-1.0, 0.2]), jnp.array([0.5, -0.4])
    np.testing.assert_allclose(counterpart(wide, (0,), element, state, other), [1.5, 0.3])
    np.testing.assert_allclose(counterpart(wide, (), element, state, other), element)
    # Along the place the law goes on; shifts of the velocity, which are none, stay narrow wherever they lead.
    small = ReachSettings(num_steps=400, batch_size=128, hidden=(16,), learning_rate=1e-2, dual_rate=0.2)
    model = (fitted.ensemble, fitted.calibration, fitted.support)
    declaration = {"domain": DECLARED, "along": (0,)}
    distribution, _ = fit_translations(jax.random.key(0), *model, wide, fitted.data, small, **declaration)
    low, high = (np.asarray(each) for each in jax.vmap(distribution.interval)(jnp.asarray(fitted.data.states)))
    assert np.mean(high - low, axis=0)[0] > 3
    assert np.mean(high - low, axis=0)[1] < 0.4
    bank = make_bank(jax.random.key(1), *model, distribution, fitted.data, num_elements=4, **declaration)
    outside = np.asarray(bank.verdicts) == Verdict.EXTRAPOLATED
    assert np.mean(np.asarray(bank.accepted)[outside]) > 0.5
    rows = np.repeat(np.arange(len(fitted.data.states)), 4)
    missed = wrong(wide, bank.elements.reshape(-1, 2), fitted.data.take(rows), TOLERANCE).reshape(-1, 4)
    assert np.mean(missed[np.asarray(bank.accepted) & outside]) < 0.02


def test_axes_along_which_nothing_can_go_on_are_refused(fitted):
    arguments = (jax.random.key(0), fitted.ensemble, fitted.calibration, fitted.support, SHIFT, fitted.data)
    with pytest.raises(DynamicsError, match="names axis 1 of the group, which has 1"):
        fit_translations(*arguments, domain=DECLARED, along=(1,))
    with pytest.raises(DynamicsError, match="without a domain"):
        fit_translations(*arguments, along=(0,))
