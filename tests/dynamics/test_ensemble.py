"""What the ensemble learns, keeps and says of its own errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    DynamicsError,
    EnsembleSettings,
    GaussianMLP,
    fit_ensemble,
    prediction_error,
    variance_calibration,
)
from edgesafe_jax.dynamics.ensemble import _bootstrap_rows, _fit
from tests.dynamics.worlds import collect


def test_it_predicts_a_held_out_world(fitted):
    held_out = fitted.parts["calibration"]
    error = prediction_error(
        fitted.ensemble, jnp.stack([held_out.states, held_out.next_states], 1), held_out.actions[:, None]
    )
    change = np.std(held_out.next_states - held_out.states, axis=0)
    assert error.shape == (1, 2)
    assert np.all(np.asarray(error[0]) < 0.1 * change)


def test_errors_grow_with_the_horizon(fitted):
    data = fitted.parts["calibration"]
    states = np.concatenate([data.states.reshape(-1, 15, 2), data.next_states.reshape(-1, 15, 2)[:, -1:]], 1)
    error = np.asarray(prediction_error(fitted.ensemble, jnp.asarray(states), data.actions.reshape(-1, 15, 1)))
    assert error.shape == (15, 2)
    assert error[14, 0] > error[0, 0]
    # The first step of a rollout is the one-step prediction.
    first = jax.vmap(fitted.ensemble.predict)(jnp.asarray(states[:, 0]), data.actions.reshape(-1, 15, 1)[:, 0])
    np.testing.assert_allclose(error[0], np.sqrt(np.mean((first.mean - states[:, 1]) ** 2, 0)), rtol=1e-4)


def test_elites_are_the_members_with_the_lowest_best_error(fitted):
    log = fitted.log
    best = np.asarray(log.best)
    assert len(log.elites) == 3
    assert best[np.asarray(log.elites)].tolist() == sorted(best)[:3]
    # Each member keeps its own best epoch.
    np.testing.assert_allclose(best, np.nanmin(np.asarray(log.validation), axis=0))


def test_kept_weights_have_the_error_that_the_log_says(fitted):
    data, ensemble = fitted.parts["validation"], fitted.ensemble
    inputs = jax.vmap(ensemble.normalize)(data.states, data.actions)
    targets = (data.next_states - data.states - ensemble.target_mean[None]) / ensemble.target_std[None]
    network = GaussianMLP(2, ensemble.hidden)
    for number, member in enumerate(np.asarray(fitted.log.elites)):
        params = jax.tree.map(lambda leaf, number=number: leaf[number], ensemble.params)
        means = jax.vmap(lambda x, params=params: network.apply({"params": params}, x)[0])(inputs)
        np.testing.assert_allclose(np.mean((means - targets) ** 2), fitted.log.best[member], rtol=1e-3)


def test_a_member_that_gets_worse_stops_with_its_best_weights():
    training = collect(num_episodes=6)
    validation = collect(num_episodes=6, seed=9, slope=2.0)  # another world: its error soon rises
    validation = validation.replace(episodes=validation.episodes + 100)
    _, log = fit_ensemble(
        jax.random.key(0),
        training,
        validation,
        EnsembleSettings(
            num_members=3,
            num_elites=2,
            hidden=(16,),
            num_epochs=60,
            patience=3,
            learning_rate=1e-2,
            batch_size=32,
        ),
    )
    assert int(log.num_epochs) < 60
    errors = np.asarray(log.validation)
    assert np.isnan(errors[int(log.num_epochs) :]).all()
    last = errors[int(log.num_epochs) - 1]
    assert np.all(last >= np.asarray(log.best))
    # After three epochs without a better one a member changes no more.
    for member in range(3):
        best = int(np.nanargmin(errors[:, member]))
        frozen = errors[best + 3 : int(log.num_epochs), member]
        assert len(frozen)
        np.testing.assert_allclose(frozen, frozen[0], rtol=1e-6)


def test_the_spread_of_noise_is_learned():
    # Next states with noise of 0.05 in x and 0.2 in v: nothing can predict it, its size can be.
    data = collect(num_episodes=150)
    noise = np.random.default_rng(0).normal(size=data.next_states.shape) * np.array([0.05, 0.2])
    noisy = data.replace(next_states=(data.next_states + noise).astype(np.float32))
    training, validation = noisy.take(noisy.episodes < 90), noisy.take((noisy.episodes >= 90) & (noisy.episodes < 110))
    held_out = noisy.take(noisy.episodes >= 110)
    ensemble, _ = fit_ensemble(
        jax.random.key(0),
        training,
        validation,
        EnsembleSettings(num_members=3, num_elites=3, hidden=(16,), num_epochs=60, learning_rate=1e-2, batch_size=64),
    )
    spread = np.median(np.asarray(jax.vmap(ensemble.predict)(held_out.states, held_out.actions).spread), axis=0)
    np.testing.assert_allclose(spread, [0.05, 0.2], rtol=0.2)
    found = variance_calibration(ensemble, held_out)
    np.testing.assert_allclose(found.coverage[1], 0.8, atol=0.06)
    np.testing.assert_allclose(found.z_rms, 1.0, atol=0.15)


def test_log_variances_stay_between_their_soft_bounds():
    network = GaussianMLP(1, (4,))
    params = network.init(jax.random.key(0), jnp.zeros(2))["params"]
    params = {**params, "max_log_var": jnp.array([1.0]), "min_log_var": jnp.array([-4.0])}
    for size in (1e3, -1e3):
        huge = {**params, "Dense_1": {"kernel": params["Dense_1"]["kernel"], "bias": jnp.full(2, size)}}
        _, log_var = network.apply({"params": huge}, jnp.zeros(2))
        assert -4.0 - 1e-4 <= float(log_var[0]) <= 1.0 + 1e-2
    # The bounds pass gradients, so that they can be learned.
    slope = jax.grad(lambda p: network.apply({"params": p}, jnp.zeros(2))[1].sum())(params)
    assert float(slope["max_log_var"][0]) > 0


def test_a_bootstrap_draws_whole_episodes_and_differs_by_member():
    episodes = np.repeat(np.arange(8), 5)
    rows = np.asarray(_bootstrap_rows(jax.random.key(0), episodes, 3))
    assert rows.shape == (3, 40)
    for member in rows:
        counts = np.bincount(member, minlength=40).reshape(8, 5)
        assert np.all(counts == counts[:, :1])
        assert np.any(counts == 0)
    assert len({tuple(sorted(member)) for member in rows.tolist()}) == 3


def test_the_fit_compiles_once_for_other_data_of_the_same_shape():
    settings = EnsembleSettings(num_members=2, num_elites=1, hidden=(4,), num_epochs=1)
    before = _fit._cache_size()
    for seed in (0, 1):
        data = collect(num_episodes=4, seed=seed)
        fit_ensemble(jax.random.key(seed), data.take(data.episodes < 2), data.take(data.episodes >= 2), settings)
    assert _fit._cache_size() == before + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_elites": 8}, "num_elites=8: expected 1 to num_members=7"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(DynamicsError, match=message):
        EnsembleSettings(**settings)


def test_differences_are_inputs_too():
    data = collect(num_episodes=8)
    training, validation = data.take(data.episodes < 4), data.take(data.episodes >= 4)
    arguments = (
        jax.random.key(0),
        training,
        validation,
        EnsembleSettings(num_members=1, num_elites=1, hidden=(4,), num_epochs=1),
    )
    ensemble, _ = fit_ensemble(*arguments, relations=((1, 0),))
    found = jax.vmap(ensemble.normalize)(training.states, training.actions)
    assert found.shape[1] == 4
    difference = training.states[:, 1] - training.states[:, 0]
    np.testing.assert_allclose(found[:, 3], (difference - difference.mean()) / difference.std(), atol=1e-5)
    assert ensemble.predict(training.states[0], training.actions[0]).mean.shape == (2,)
    with pytest.raises(DynamicsError, match="relations names dimension 2 of a state of 2: expected 0 to 1"):
        fit_ensemble(*arguments, relations=((2, 0),))


def test_an_episode_in_both_parts_is_refused():
    data = collect(num_episodes=4)
    with pytest.raises(ValueError, match="episode 1 is in training and in validation"):
        fit_ensemble(jax.random.key(0), data.take(data.episodes < 2), data.take(data.episodes >= 1))


def test_members_that_agree_have_finite_gradients(fitted):
    one = fitted.ensemble.replace(params=jax.tree.map(lambda leaf: leaf[:1], fitted.ensemble.params))
    state, action = jnp.array([0.1, 0.2]), jnp.array([0.3])
    prediction = one.predict(state, action)
    np.testing.assert_array_equal(prediction.disagreement, 0)
    slope = jax.grad(lambda s: jnp.sum(one.predict(s, action).spread))(state)
    assert np.all(np.isfinite(slope))
