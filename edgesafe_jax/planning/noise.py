"""Noise whose power falls with frequency, and the ways to draw candidate action sequences from it."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.planner import clipped
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey

Convention: TypeAlias = Literal["classic", "corrected"]
"""Normalisations of coloured noise, see `colored_noise`."""


class ActionSampler(NamedTuple):
    """A sampler of candidates in two parts, so that the random numbers of all iterations come from one call.

    Attributes:
      draw: from one key and a shape `(T, A)` to random numbers of that shape, whatever their law.
      place: from such numbers `[N, T, A]`, mean and std `[T, A]` and the bounds `[A]` to candidates `[N, T, A]` within
        the bounds.
    """

    draw: Callable[[PRNGKey, tuple[int, int]], Array]
    place: Callable[[Array, Array, Array, np.ndarray, np.ndarray], Array]


def colored_noise(
    key: PRNGKey, beta: ArrayLike, shape: tuple[int, ...], *, convention: Convention = "classic"
) -> Array:
    r"""Draws Gaussian noise with a power spectral density ~ 1 / f^beta along the last axis.

    With frequencies f_k = max(k, 1) / T, k = 0 .. T/2, and standard normal a_k, b_k

        x = irfft( f_k^(-beta/2) (a_k + i b_k) ) / sigma,    sigma^2 = var of x without the term k = 0,

    where b_k = 0 at k = 0 and, for even T, at k = T/2. beta = 0 is white noise, 1 pink, 2 brown. The two published
    normalisations differ in those real coefficients:

    ``"classic"``
        a_0 and a_{T/2} are drawn like the others, as in the colorednoise package before 2.1 and in the iCEM paper;
    ``"corrected"``
        they are multiplied by sqrt(2), as in that package since 2.1, which makes beta = 0 exactly white.

    Neither has unit variance, because sigma leaves out the mean of a sequence: with T = 30 the standard deviation at
    beta 0.25 / 2 / 3.5 is 1.013 / 1.076 / 1.105 (classic) and 1.033 / 1.148 / 1.202 (corrected), see
    `colored_noise_std`.

    Args:
      key: typed random key.
      beta: exponent; a number, or an array that broadcasts to ``shape[:-1]``, such as one per action dimension.
      shape: of the result; the last axis is time, T, and what precedes it is independent.
      convention: which normalisation.

    Returns:
      Noise `shape`, float32.

    Raises:
      ValueError: if `shape` is empty or has a last axis below 1, or the convention is unknown.

    Example:
      >>> colored_noise(jax.random.key(0), 2.0, (5, 30)).shape
      (5, 30)

    Reference: Timmer and König, On generating power law noise, 1995; iCEM, arXiv 2008.06389, section 3.1.
    """
    if not shape or shape[-1] < 1:
        raise ValueError(f"shape={shape}: expected a last axis of at least 1 (time)")
    if convention not in get_args(Convention):
        raise ValueError(f"convention={convention!r}: expected one of {', '.join(get_args(Convention))}")
    *lead, length = shape
    if length == 1:  # there is no frequency to colour
        return jax.random.normal(key, shape, jnp.float32)
    count = length // 2 + 1
    frequency = jnp.asarray(np.maximum(np.arange(count), 1) / length, jnp.float32)
    beta = jnp.broadcast_to(jnp.asarray(beta, jnp.float32), lead)[..., None]
    amplitude = jnp.exp(-0.5 * beta * jnp.broadcast_to(jnp.log(frequency), (*lead, count)))
    in_real, in_imag = _coefficients(length, convention)
    # Multiplicity of each frequency in the variance of the series; the constant is left out of sigma.
    power = jnp.broadcast_to(jnp.asarray(_multiplicity(length), jnp.float32), (*lead, count)) * amplitude**2
    sigma = jnp.sqrt(jnp.sum(power[..., 1:], axis=-1, keepdims=True)) / length
    draws = jax.random.normal(key, (*lead, 2, count), jnp.float32)
    real = draws[..., 0, :] * jnp.broadcast_to(in_real, (*lead, count))
    imag = draws[..., 1, :] * jnp.broadcast_to(in_imag, (*lead, count))
    return jnp.fft.irfft(jax.lax.complex(real * amplitude, imag * amplitude), n=length, axis=-1) / sigma


def colored_noise_std(beta: float, length: int, *, convention: Convention = "classic") -> float:
    """Returns the standard deviation that `colored_noise` has, over sequences.

    Args:
      beta: exponent.
      length: T, the length of the sequences.
      convention: which normalisation.

    Returns:
      The standard deviation at every time of a sequence, in closed form.

    Example:
      >>> round(colored_noise_std(2.0, 30), 3)
      1.076
    """
    if length == 1:
        return 1.0
    power = (np.maximum(np.arange(length // 2 + 1), 1) / length) ** -float(beta)
    sigma = np.sum((_multiplicity(length) * power)[1:])
    in_real, in_imag = _coefficients(length, convention)
    ends = np.isin(np.arange(len(power)), [0] if length % 2 else [0, length // 2])
    weight = np.where(ends, in_real**2, 2.0 * (in_real**2 + in_imag**2))
    return float(np.sqrt(np.sum(weight * power) / sigma))


def _multiplicity(length: int) -> np.ndarray:
    """Four for each pair of frequencies +-f, one for those that are their own mirror image."""
    weight = np.full(length // 2 + 1, 4.0)
    weight[0] = 1.0
    if length % 2 == 0:
        weight[-1] = 1.0
    return weight


def _coefficients(length: int, convention: Convention) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the real and the imaginary draws; those that are their own mirror image are real."""
    real, imag = np.ones((2, length // 2 + 1), np.float32)
    for index in (0,) if length % 2 else (0, -1):
        imag[index] = 0.0
        real[index] = 1.0 if convention == "classic" else np.sqrt(2.0)
    return real, imag


def clipped_noise(beta: ArrayLike, *, convention: Convention = "classic") -> ActionSampler:
    """Makes the sampler of iCEM: clip(mean + std * coloured noise, low, high).

    Args:
      beta: exponent of the noise, a number or one per action dimension `[A]`.
      convention: its normalisation, see `colored_noise`.

    Returns:
      The sampler.
    """

    def draw(key: PRNGKey, shape: tuple[int, int]) -> Array:
        return colored_noise(key, beta, shape[::-1], convention=convention).T

    def place(noise: Array, mean: Array, std: Array, low: np.ndarray, high: np.ndarray) -> Array:
        return clipped(mean[None] + std[None] * noise, low, high)

    return ActionSampler(draw, place)


def truncated_normal() -> ActionSampler:
    """Makes the sampler of the CEM baseline: white noise from the normal that is truncated at the bounds.

    Returns:
      The sampler.
    """

    def draw(key: PRNGKey, shape: tuple[int, int]) -> Array:
        return jax.random.uniform(key, shape, jnp.float32)

    def place(uniform: Array, mean: Array, std: Array, low: np.ndarray, high: np.ndarray) -> Array:
        std = jnp.maximum(std, 1e-6)
        start = jax.scipy.special.ndtr((low[None] - mean) / std)[None]
        end = jax.scipy.special.ndtr((high[None] - mean) / std)[None]
        noise = jax.scipy.special.ndtri(jnp.clip(start + uniform * (end - start), 1e-7, 1 - 1e-7))
        return clipped(mean[None] + std[None] * noise, low, high)

    return ActionSampler(draw, place)


def half_distance_normal() -> ActionSampler:
    """Makes the sampler of PETS: std at most half the distance to the nearer bound, noise truncated at 2 std.

    Returns:
      The sampler.

    Reference: Chua et al., arXiv 1805.12114.
    """

    def draw(key: PRNGKey, shape: tuple[int, int]) -> Array:
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)

    def place(noise: Array, mean: Array, std: Array, low: np.ndarray, high: np.ndarray) -> Array:
        std = jnp.minimum(std, jnp.minimum(mean - low[None], high[None] - mean) / 2)
        return clipped(mean[None] + std[None] * noise, low, high)

    return ActionSampler(draw, place)


def uniform() -> ActionSampler:
    """Makes the sampler of random shooting: independent uniform actions, whatever the mean.

    Returns:
      The sampler.
    """

    def draw(key: PRNGKey, shape: tuple[int, int]) -> Array:
        return jax.random.uniform(key, shape, jnp.float32)

    def place(fraction: Array, mean: Array, std: Array, low: np.ndarray, high: np.ndarray) -> Array:
        del mean, std
        return fraction * jnp.asarray((high - low)[None, None]) + jnp.asarray(low[None, None])

    return ActionSampler(draw, place)
