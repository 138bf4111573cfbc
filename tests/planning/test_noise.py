"""Coloured noise: its spectrum, its variance under both conventions, and the samplers built on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from edgesafe_jax.planning import colored_noise, colored_noise_std, noise


def published(rng, exponent, num, length, *, corrected):
    """The formula of Timmer and König with either treatment of the real coefficients, in NumPy float64."""
    frequency = np.fft.rfftfreq(length)
    frequency[0] = frequency[1]
    scale = frequency ** (-exponent / 2)
    inner = scale[1:].copy()
    if length % 2 == 0:
        inner[-1] /= 2
    sigma = 2 * np.sqrt(np.sum(inner**2)) / length
    real, imag = rng.normal(size=(2, num, len(frequency))) * scale
    imag[:, 0] = 0
    real[:, 0] *= np.sqrt(2) if corrected else 1
    if length % 2 == 0:
        imag[:, -1] = 0
        real[:, -1] *= np.sqrt(2) if corrected else 1
    return np.fft.irfft(real + 1j * imag, n=length) / sigma


@pytest.mark.parametrize("convention", ["classic", "corrected"])
@pytest.mark.parametrize("length", [2, 29, 30])
@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0, 3.5])
def test_the_variance_is_that_of_the_published_formula(beta, length, convention):
    reference = published(np.random.default_rng(0), beta, 40_000, length, corrected=convention == "corrected")
    ours = colored_noise(jax.random.key(1), beta, (40_000, length), convention=convention)
    expected = colored_noise_std(beta, length, convention=convention)
    np.testing.assert_allclose(np.sqrt(np.mean(reference**2)), expected, rtol=0.015)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(ours))), expected, rtol=0.015)
    # And at each time of the sequence alone: the noise is stationary.
    np.testing.assert_allclose(np.std(np.asarray(ours), axis=0), expected, rtol=0.025)


@pytest.mark.parametrize(
    ("convention", "expected"), [("classic", (1.013, 1.077, 1.107)), ("corrected", (1.032, 1.146, 1.199))]
)
def test_the_figures_measured_with_the_package_at_horizon_30(convention, expected):
    found = [colored_noise_std(beta, 30, convention=convention) for beta in (0.25, 2.0, 3.5)]
    np.testing.assert_allclose(found, expected, rtol=0.003)  # theirs are estimates


def autocovariance(x):
    x = np.asarray(x, np.float64)
    return x.T @ x / len(x)


def test_the_corrected_noise_is_white_at_beta_0():
    covariance = autocovariance(colored_noise(jax.random.key(2), 0.0, (60_000, 8), convention="corrected"))
    variance = colored_noise_std(0.0, 8, convention="corrected") ** 2
    np.testing.assert_allclose(covariance, variance * np.eye(8), atol=0.03)


def test_the_classic_noise_at_beta_0_has_half_the_power_at_both_ends_of_the_spectrum():
    spectrum = np.abs(np.fft.rfft(np.asarray(colored_noise(jax.random.key(3), 0.0, (60_000, 8))))) ** 2
    mean = spectrum.mean(0)
    np.testing.assert_allclose(mean / mean[1], [0.5, 1, 1, 1, 0.5], rtol=0.03)


@pytest.mark.parametrize("beta", [0.25, 1.0, 2.0, 3.5])
def test_the_slope_of_the_spectrum_is_minus_beta(beta):
    x = np.asarray(colored_noise(jax.random.key(4), beta, (20_000, 64)), np.float64)
    power = np.mean(np.abs(np.fft.rfft(x)) ** 2, axis=0)[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 32)), np.log(power), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.02)


def test_beta_may_differ_between_dimensions():
    key, betas = jax.random.key(5), jnp.array([0.0, 2.0, 3.5])
    together = colored_noise(key, betas, (4, 3, 30))
    for dim, beta in enumerate(betas):
        alone = colored_noise(key, beta, (4, 3, 30))
        np.testing.assert_allclose(together[:, dim], alone[:, dim], rtol=1e-5, atol=1e-6)
    smooth = np.mean(np.abs(np.diff(together, axis=-1)), axis=(0, 2))
    assert smooth[0] > smooth[1] > smooth[2]


def test_one_step_has_no_frequency():
    x = colored_noise(jax.random.key(6), 2.0, (20_000, 1))
    assert np.std(x) == pytest.approx(1.0, abs=0.02)
    assert colored_noise_std(2.0, 1) == 1.0


@pytest.mark.parametrize(
    ("shape", "convention", "match"),
    [((), "classic", r"shape=\(\)"), ((3, 0), "classic", r"shape=\(3, 0\)"), ((3,), "pink", "'pink': expected one of")],
)
def test_bad_input(shape, convention, match):
    with pytest.raises(ValueError, match=match):
        colored_noise(jax.random.key(0), 1.0, shape, convention=convention)


SAMPLERS = {
    "clipped": noise.clipped_noise(1.0),
    "truncated": noise.truncated_normal(),
    "half_distance": noise.half_distance_normal(),
    "uniform": noise.uniform(),
}


def drawn_from(name, num, *, mean, std, low, high):
    sampler = SAMPLERS[name]
    keys = jax.random.split(jax.random.key(7), num)
    return sampler.place(jax.vmap(lambda key: sampler.draw(key, mean.shape))(keys), mean, std, low, high)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_keep_the_bounds(name):
    low, high = np.float32([-1.0, 0.0]), np.float32([2.0, 0.5])
    mean = jnp.broadcast_to(jnp.float32([1.9, 0.1])[None], (6, 2))
    std = jnp.broadcast_to(jnp.float32([1.0, 0.2])[None], (6, 2))
    drawn = drawn_from(name, 400, mean=mean, std=std, low=low, high=high)
    assert drawn.shape == (400, 6, 2)
    assert np.all(drawn >= low[None, None])
    assert np.all(drawn <= high[None, None])
    on_the_bound = np.mean(drawn[..., 0] == high[0])
    assert (on_the_bound > 0.3) == (name == "clipped")  # clipping puts mass on the bound, the others do not


def test_the_truncated_normal_is_the_one_of_scipy():
    low, high = np.float32([-1.0]), np.float32([2.0])
    drawn = drawn_from("truncated", 4000, mean=jnp.full((10, 1), 1.5), std=jnp.full((10, 1), 0.8), low=low, high=high)
    law = scipy.stats.truncnorm((-1 - 1.5) / 0.8, (2 - 1.5) / 0.8, loc=1.5, scale=0.8)
    assert scipy.stats.kstest(np.asarray(drawn, float).ravel(), law.cdf).statistic < 0.01


def test_pets_draws_within_the_nearer_bound():
    low, high = np.float32([-1.0]), np.float32([1.0])
    mean = jnp.full((30, 1), 0.8)
    drawn = drawn_from("half_distance", 500, mean=mean, std=jnp.full((30, 1), 5.0), low=low, high=high)
    # Half of the distance 0.2 is one std, and noise ends at two.
    assert float(jnp.max(jnp.abs(drawn - 0.8))) <= 0.2 + 1e-6
    assert float(jnp.std(drawn)) == pytest.approx(0.1 * 0.88, rel=0.03)
