"""Models averaged over verified elements: closed forms, predictions beyond the data, and what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    DynamicsError,
    Prediction,
    Sizes,
    Support,
    SymmetrisedEnsemble,
    Translation,
    Verdict,
    compositions,
    symmetrise,
    verify_elements,
)
from edgesafe_jax.dynamics.support import tabulate_support
from tests.dynamics.worlds import SHIFT, SHIFT_VELOCITY, collect, step


@pytest.fixture(scope="module")
def fresh():
    return collect(num_episodes=100, seed=50)


@pytest.fixture(scope="module")
def shifted(fitted, fresh):
    return verify_elements(fitted, SHIFT, jnp.array([[0.5], [-0.5]]), fresh)


class _Doubling:
    """A model of one dimension that doubles the state, with a spread of its own."""

    num_members = 1

    def normalize(self, state, action):
        return jnp.concatenate([state, action])

    def predict(self, state, action):
        return Prediction(2 * state, jnp.full(1, 0.3), jnp.zeros(1))


def _doubling(elements, *, num_averaged=4, references=((0.0, 0.0), (1.0, 0.0))):
    group = Translation(Sizes(1, 1), state_axes=((0,),), goal_axes=((),), low=(-9.0,), high=(9.0,))
    support = Support(jnp.array(references), jnp.array([0.1]), jnp.zeros(2), views=((0,),))
    table = tabulate_support(support)
    return SymmetrisedEnsemble(_Doubling(), jnp.array(elements), table, group=group, num_averaged=num_averaged)


def test_predictions_are_carried_back_and_averaged_over_what_leads_to_the_data():
    model = _doubling([[0.0], [1.0], [-5.0]])
    found = model.predict(jnp.zeros(1), jnp.zeros(1))  # 2 * 0 and 2 * 1 - 1; -5 leads nowhere
    np.testing.assert_allclose(found.mean, [0.5])
    np.testing.assert_allclose(found.disagreement, [0.5])
    np.testing.assert_allclose(found.spread, [np.sqrt(0.3**2 + 0.5**2)], rtol=1e-6)
    # From 5 only the last element leads to the data: 2 * 0 + 5.
    np.testing.assert_allclose(model.predict(jnp.full(1, 5.0), jnp.zeros(1)).mean, [5.0])
    # From nowhere to the data: the plain model.
    np.testing.assert_allclose(model.predict(jnp.full(1, 3.0), jnp.zeros(1)).mean, [6.0])
    one = _doubling([[0.0], [1.0]], num_averaged=1).predict(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(one.disagreement, [0.0])


def test_a_table_of_a_support_answers_as_the_support_does(fitted):
    table = tabulate_support(fitted.support)
    inputs = jax.random.uniform(jax.random.key(0), (4000, 3), minval=-5.0, maxval=5.0)
    inside = np.asarray(fitted.support.distances(inputs))[0] <= 1  # the place alone
    assert 0.2 < inside.mean() < 0.8
    assert np.mean(np.asarray(table.contains(inputs)) == inside) > 0.998
    both = tabulate_support(fitted.support.replace(views=((0, 1),)), max_cells=10_000)
    assert both.num_cells == 100
    known = fitted.support.replace(views=((0, 1),), thresholds=fitted.support.thresholds[:1])
    assert np.mean(np.asarray(both.contains(inputs)) == np.asarray(known.contains(inputs))) > 0.97
    with pytest.raises(DynamicsError, match="a table of 3 cells over 2 dimensions"):
        tabulate_support(known, max_cells=3)


def test_compositions_are_each_once_and_within_the_group():
    found = compositions(SHIFT, jnp.array([[2.5], [-2.5]]), num_factors=3)
    assert sorted(np.asarray(found)[:, 0].tolist()) == [-5.0, -2.5, 0.0, 2.5, 5.0]  # not 7.5: the group ends at 6


def test_beyond_the_data_it_is_right_where_the_plain_model_is_not(fitted, shifted):
    assert np.all(np.asarray(shifted.verdicts) == Verdict.VERIFIED)
    model = symmetrise(fitted.ensemble, SHIFT, shifted, num_factors=8)
    states = jnp.stack([jnp.linspace(2.5, 4.5, 40), jnp.linspace(-0.5, 0.5, 40)], 1)
    actions = jnp.linspace(-1, 1, 40)[:, None]
    truth = jax.vmap(step)(states, actions)
    error = [np.abs(jax.vmap(m.predict)(states, actions).mean - truth)[:, 1].max() for m in (model, fitted.ensemble)]
    assert error[0] < 0.05
    assert error[0] < 0.5 * error[1]
    # At the data it is the mean of models that agree.
    inside = jnp.zeros((40, 2)).at[:, 1].set(states[:, 1])
    plain, averaged = (jax.vmap(m.predict)(inside, actions).mean for m in (fitted.ensemble, model))
    np.testing.assert_allclose(plain, averaged, atol=0.03)


def test_what_is_verified_forward_is_used_backward(fitted, shifted):
    forward = shifted.replace(verdicts=jnp.array([Verdict.VERIFIED, Verdict.INCONCLUSIVE], jnp.int8))
    found, both = (symmetrise(fitted.ensemble, SHIFT, v, num_factors=3).elements for v in (forward, shifted))
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(both[:, 0]))
    assert symmetrise(fitted.ensemble, SHIFT, forward).elements[:, 0].tolist() == [0.0, 0.5]


def test_members_and_rollouts_are_those_of_the_averaged_model(fitted, shifted):
    model = symmetrise(fitted.ensemble, SHIFT, shifted, num_factors=8)
    assert model.num_members == fitted.ensemble.num_members
    state, actions = jnp.array([4.0, 0.2]), jnp.full((2, 1), 0.5)
    members = jax.vmap(lambda index: model.member(index).predict(state, actions[0]).mean)(jnp.arange(3))
    np.testing.assert_allclose(members.mean(0), model.predict(state, actions[0]).mean, atol=1e-5)
    path = model.rollout(state, actions).mean
    np.testing.assert_allclose(path[1], model.predict(path[0], actions[1]).mean, atol=1e-5)


def test_without_a_verified_element_it_is_the_plain_model_and_says_so(fitted, fresh, caplog):
    verdicts = verify_elements(fitted, SHIFT_VELOCITY, jnp.array([[0.7]]), fresh)
    assert verdicts.num_verified == 0
    with caplog.at_level(logging.INFO):
        assert symmetrise(fitted.ensemble, SHIFT_VELOCITY, verdicts) is fitted.ensemble
    assert "none of 1 elements is verified" in caplog.text


def test_what_does_not_belong_together_is_refused(fitted, sloped, shifted, fresh):
    with pytest.raises(DynamicsError, match="a model of other data"):
        symmetrise(sloped.ensemble, SHIFT, shifted)
    with pytest.raises(DynamicsError, match=r"element 1, \[7\.0\], lies outside its group"):
        verify_elements(fitted, SHIFT, jnp.array([[0.5], [7.0]]), fresh)
    with pytest.raises(DynamicsError, match="not empty"):
        verify_elements(fitted, SHIFT, jnp.zeros((0, 1)), fresh)
    other = Translation(Sizes(3, 1), state_axes=((0,),), goal_axes=((),), low=(-1.0,), high=(1.0,))
    with pytest.raises(DynamicsError, match="expected the same world"):
        symmetrise(fitted.ensemble, other, shifted)
