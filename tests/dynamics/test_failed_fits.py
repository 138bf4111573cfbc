"""A fit that failed is an error, not a model."""

import dataclasses

import jax
import numpy as np
import pytest

from edgesafe_jax.dynamics import DynamicsError, EnsembleSettings, ReachSettings, fit_ensemble, fit_translations
from tests.dynamics.worlds import SHIFT, collect

SETTINGS = EnsembleSettings(num_members=2, num_elites=2, hidden=(8,), num_epochs=3, batch_size=32)


def parts():
    data = collect(num_episodes=12)
    return data.take(data.episodes < 8), data.take(data.episodes >= 8)


@pytest.mark.parametrize("value", [1e20, -1e20, 1e12, np.nan, np.inf])
@pytest.mark.parametrize("array", ["states", "actions", "next_states"])
def test_one_absurd_validation_value_is_refused(array, value):
    training, validation = parts()
    spoiled = np.array(getattr(validation, array))
    spoiled[3, 0] = value
    with pytest.raises(DynamicsError, match=r"validation row 3: dimension [02] of the"):
        fit_ensemble(jax.random.key(0), training, validation.replace(**{array: spoiled}), SETTINGS)


@pytest.mark.parametrize("value", [1e30, np.nan])
def test_training_data_without_a_finite_variance_are_refused(value):
    training, validation = parts()
    spoiled = np.array(training.states)
    spoiled[3, 0] = value
    with pytest.raises(DynamicsError, match="of the training data is"):
        fit_ensemble(jax.random.key(0), training.replace(states=spoiled), validation, SETTINGS)


@pytest.mark.parametrize("learning_rate", [1e4, 1e9])
def test_a_fit_that_diverged_is_an_error(learning_rate):
    with pytest.raises(DynamicsError, match="the fit failed: the best validation errors of the elites"):
        fit_ensemble(jax.random.key(0), *parts(), dataclasses.replace(SETTINGS, learning_rate=learning_rate))


def test_translations_that_diverged_are_an_error(fitted):
    settings = ReachSettings(num_steps=20, batch_size=16, hidden=(8,))
    object.__setattr__(settings, "learning_rate", 1e38)  # which no range allows
    with pytest.raises(DynamicsError, match="the fit failed: weights, entropy or multiplier"):
        fit_translations(
            jax.random.key(0), fitted.ensemble, fitted.calibration, fitted.support, SHIFT, fitted.data, settings
        )
