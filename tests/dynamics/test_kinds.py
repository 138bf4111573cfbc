"""Kinds of places: examples in the data, counterparts at places of one kind, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    BoxDomain,
    DynamicsError,
    ReachSettings,
    Verdict,
    find_kinds,
    fit_translations,
    make_bank,
)
from tests.dynamics.worlds import SHIFT, TOLERANCE, wrong

DOMAIN = BoxDomain(dims=(0,), low=(-6.0,), high=(6.0,))


def grounds(state):
    """Two kinds side by side, from 4 on a third that no data have, and something unclear below -3."""
    right, far, unclear = (jax.nn.sigmoid(x / 0.1) for x in (state[0], state[0] - 4, -3 - state[0]))
    return jnp.stack([(1 - right) * (1 - unclear), right * (1 - far), right * far])


@pytest.fixture(scope="module")
def kinds(fitted):
    return find_kinds(grounds, SHIFT, fitted.data, max_examples=64)


@pytest.fixture(scope="module")
def bank(fitted, kinds):
    model = (fitted.ensemble, fitted.calibration, fitted.support)
    small = ReachSettings(num_steps=300, batch_size=128, hidden=(16,), learning_rate=1e-2, dual_rate=0.2)
    declared = {"domain": DOMAIN, "kinds": kinds}
    distribution, _ = fit_translations(jax.random.key(0), *model, SHIFT, fitted.data, small, **declared)
    return make_bank(jax.random.key(1), *model, distribution, fitted.data, num_elements=4, **declared)


def test_examples_are_states_of_their_kind(fitted, kinds):
    assert kinds.present.tolist() == [True, True, False, False]
    assert np.all(np.asarray(kinds.examples)[0, :, 0] < 0)
    assert np.all(np.asarray(kinds.examples)[1, :, 0] > 0)
    drawn = np.asarray(kinds.draw(jax.random.key(0)))
    assert drawn[0] in np.asarray(fitted.data.states)


def test_places_of_kinds_that_are_alike_are_reached_beyond_the_data(fitted, bank):
    accepted = np.asarray(bank.accepted)
    reached = np.asarray(fitted.data.states)[:, None, 0] + np.asarray(bank.elements)[..., 0]
    outside = np.asarray(bank.verdicts) == Verdict.EXTRAPOLATED
    assert np.mean(accepted[outside & (reached > -2.9) & (reached < 3.9)]) > 0.5
    for number in range(4):
        missed = wrong(SHIFT, bank.elements[:, number], fitted.data, TOLERANCE)
        assert np.mean(missed[accepted[:, number]]) < 0.02


def test_nothing_leads_to_what_is_unclear_or_not_in_the_data(fitted, bank):
    reached = np.asarray(fitted.data.states)[:, None, 0] + np.asarray(bank.elements)[..., 0]
    assert not np.any(np.asarray(bank.accepted)[(reached > 4) | (reached < -3)])
    assert np.mean((reached > -3.2) & (reached < 4.2)) > 0.9  # the reach learns to stay away


def test_memberships_that_are_none_are_refused(fitted, kinds):
    for bad, message in (
        (lambda state: jnp.stack([state[0] * 0 + 0.7, state[0] * 0 + 0.7]), "add up to 1 at most"),
        (lambda state: state[0], "one of each kind"),
        (lambda state: jax.nn.softmax(state), "depend on dimensions other than"),
    ):
        with pytest.raises(DynamicsError, match=message):
            find_kinds(bad, SHIFT, fitted.data)
    arguments = (jax.random.key(0), fitted.ensemble, fitted.calibration, fitted.support, SHIFT, fitted.data)
    with pytest.raises(DynamicsError, match="kinds of places with no domain"):
        fit_translations(*arguments, kinds=kinds)
    with pytest.raises(DynamicsError, match=r"kinds of places with along=\(0,\)"):
        fit_translations(*arguments, domain=DOMAIN, along=(0,), kinds=kinds)
