"""A dimension that does not vary in the data: nothing is divided by its rounding, another value of it is flagged."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    EnsembleSettings,
    ReachSettings,
    Sizes,
    Translation,
    calibrate,
    fit_ensemble,
    fit_support,
    fit_translations,
    make_transitions,
    standardizer,
    varies,
)
from tests.dynamics.worlds import collect

SETTINGS = EnsembleSettings(num_members=3, num_elites=2, hidden=(32,), num_epochs=30, batch_size=64, learning_rate=3e-3)


def with_constant(value=0.4, jitter=0.0, seed=0):
    """The small world with a third column that does not change."""
    data = collect(num_episodes=60, seed=seed)
    noise = jitter * np.random.default_rng(seed).uniform(-1, 1, (2, len(data.states), 1)).astype(np.float32)
    column = np.full((len(data.states), 1), value, np.float32)
    return make_transitions(
        states=np.concatenate([data.states, column + noise[0]], 1),
        actions=data.actions,
        next_states=np.concatenate([data.next_states, column + noise[1]], 1),
        episodes=data.episodes,
    )


@pytest.fixture(scope="module", params=[(0.4, 0.0), (0.4, 3e-8), (0.0, 1e-9), (1000.0, 0.0)], ids=str)
def fitted(request):
    value, jitter = request.param
    data = with_constant(value, jitter)
    training, validation = data.take(data.episodes < 35), data.take((data.episodes >= 35) & (data.episodes < 40))
    ensemble, _ = fit_ensemble(jax.random.key(0), training, validation, SETTINGS)
    return value, ensemble, training, data.take(data.episodes >= 40)


def test_predictions_near_a_constant_are_those_at_it(fitted):
    value, ensemble, training, _ = fitted
    state, action = jnp.asarray(training.states[7]), jnp.asarray(training.actions[7])
    near = state.at[2].set(value + 0.01)
    np.testing.assert_allclose(ensemble.predict(near, action).mean[:2], training.next_states[7][:2], atol=0.1)
    np.testing.assert_allclose(ensemble.predict(near, action).mean[2], value + 0.01, atol=0.02 + 1e-6 * value)


def test_the_support_flags_another_value_of_a_constant(fitted):
    value, ensemble, training, calibration = fitted
    support = fit_support(ensemble, training, calibration, moved=(0,), alpha=0.1)
    normalize = jax.vmap(ensemble.normalize)
    fresh = normalize(calibration.states, calibration.actions)
    assert np.mean(np.asarray(support.contains(fresh))) > 0.85
    moved = np.array(calibration.states)
    moved[:, 2] = value + 0.01
    assert not np.any(np.asarray(support.contains(normalize(moved, calibration.actions))))


def test_translations_of_data_with_a_constant_have_finite_reach(fitted):
    _, ensemble, training, calibration = fitted
    sizes = Sizes(state=3, action=1)
    group = Translation(sizes, state_axes=((0,),), goal_axes=((),), low=(-6.0,), high=(6.0,))
    support = fit_support(ensemble, training, calibration, moved=group.moved, alpha=0.1)
    tested = calibrate(ensemble, calibration, tolerance=(0.05, 0.1, 0.5), alpha=0.2)
    settings = ReachSettings(num_steps=20, batch_size=32, hidden=(8,))
    distribution, _ = fit_translations(jax.random.key(1), ensemble, tested, support, group, training, settings)
    assert float(distribution.state_std[2]) == 1.0


@pytest.mark.parametrize("value", [0.4, -3.0, 1e4, 0.0])
def test_a_constant_has_the_scale_one_however_many_rows(value):
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=300_000), np.full(300_000, value)], 1).astype(np.float32)
    mean, scale = standardizer(jnp.asarray(values))
    assert varies(jnp.asarray(values)).tolist() == [True, False]
    assert float(scale[1]) == 1.0
    assert float(mean[1]) == np.float32(value)
    chex.assert_trees_all_close(scale[0], jnp.std(values[:, 0]), rtol=1e-6)


def test_small_units_still_count():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(100, 1)) * 1e-6, jnp.float32)
    _, scale = standardizer(values)
    np.testing.assert_allclose(scale, jnp.std(values, 0), rtol=1e-6)
