"""The nested test: what hiding a dimension costs, its level, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    DynamicsError,
    EnsembleSettings,
    Prediction,
    Verdict,
    fit_hidden,
    hide,
    make_transitions,
    nested_test,
)
from tests.dynamics.worlds import SHIFT, SHIFT_VELOCITY, TOLERANCE, collect

SETTINGS = EnsembleSettings(
    num_members=4, num_elites=3, hidden=(32, 32), learning_rate=3e-3, batch_size=64, num_epochs=40
)


def judge(fitted, group, fresh, **options):
    hidden = fit_hidden(1, group, fitted.parts["training"], fitted.parts["validation"], SETTINGS)
    return nested_test(fitted.ensemble, hidden, group, fresh, tolerance=TOLERANCE, **options)[0]


def test_hidden_transitions_keep_their_changes_and_nothing_of_the_place(fitted):
    carried = hide(SHIFT, fitted.data)
    np.testing.assert_array_equal(carried.states[:, 0], 0)
    np.testing.assert_array_equal(carried.states[:, 1], fitted.data.states[:, 1])
    changes = fitted.data.next_states - fitted.data.states
    np.testing.assert_allclose(carried.next_states - carried.states, changes, atol=1e-6)


def test_a_true_symmetry_is_verified_and_a_false_one_rejected(fitted):
    fresh = collect(num_episodes=60, seed=50)
    assert judge(fitted, SHIFT, fresh).verdict == Verdict.VERIFIED
    assert judge(fitted, SHIFT_VELOCITY, fresh).verdict == Verdict.REJECTED


def test_a_force_that_grows_with_the_place_is_found(sloped):
    found = judge(sloped, SHIFT, collect(num_episodes=60, seed=50, slope=0.6))
    assert found.verdict == Verdict.REJECTED
    assert found.low > 0.3 > found.error


@dataclasses.dataclass(frozen=True)
class _Off:
    """A model whose prediction of the first dimension is off by what `error` says."""

    error: float


jax.tree_util.register_dataclass(_Off, data_fields=["error"], meta_fields=[])


def _predict(model, state, action):
    return Prediction(state.at[0].add(model.error * action[0]), jnp.ones(2), jnp.zeros(2))


_Off.predict = _predict


def _made(num_episodes, spread, seed):
    """Still states; the action of an episode is the size of the error that a model off by it makes."""
    sizes = np.random.default_rng(seed).uniform(0, spread, num_episodes)
    actions = np.repeat(sizes, 3)[:, None]
    states = np.zeros((len(actions), 2))
    episodes = np.repeat(np.arange(num_episodes), 3)
    return make_transitions(states=states, actions=actions, next_states=states, episodes=episodes)


def test_the_cost_is_the_mean_over_episodes_and_the_level_holds_at_the_limit():
    made = _made(40, 0.4, seed=0)
    found = nested_test(_Off(0.0), _Off(1.0), SHIFT, made, tolerance=(1.0, 1.0))[0]
    assert found.cost == pytest.approx(np.asarray(made.actions).mean(), rel=1e-5)
    assert found.error == 0
    # True cost 0.2, at the limit: verified in at most alpha of the data sets, but for the error of a proportion.
    verdicts = [
        nested_test(_Off(0.0), _Off(1.0), SHIFT, _made(40, 0.4, seed), tolerance=(1.0, 1.0), limit=0.2)[0].verdict
        for seed in range(200)
    ]
    assert np.mean([v == Verdict.VERIFIED for v in verdicts]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean([v == Verdict.REJECTED for v in verdicts]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_regions_are_judged_apart_and_errors_are_cut():
    made = _made(40, 9.0, seed=0)
    near = (np.arange(len(made.states)) % 3 == 0).astype(int)
    found = nested_test(_Off(1.0), _Off(1.0), SHIFT, made, tolerance=(1.0, 1.0), regions=near)
    assert set(found) == {0, 1}
    assert all(each.verdict == Verdict.VERIFIED and each.cost == 0 for each in found.values())
    assert nested_test(_Off(0.0), _Off(9.0), SHIFT, made, tolerance=(1.0, 1.0), cap=2.0)[0].cost <= 2
    one = nested_test(_Off(0.0), _Off(0.0), SHIFT, _made(1, 1.0, 0), tolerance=(1.0, 1.0))[0]
    assert one.verdict == Verdict.INCONCLUSIVE  # of one episode nothing is known


def test_what_means_nothing_is_refused(fitted):
    models = (fitted.ensemble, fitted.ensemble, SHIFT, fitted.data)
    with pytest.raises(DynamicsError, match="limit=0"):
        nested_test(*models, tolerance=TOLERANCE, limit=0.0)
    with pytest.raises(DynamicsError, match=r"tolerance has shape \(1,\)"):
        nested_test(*models, tolerance=(0.1,))
    with pytest.raises(DynamicsError, match="expected one each"):
        nested_test(*models, tolerance=TOLERANCE, regions=np.zeros(3, int))
