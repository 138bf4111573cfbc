"""Calibration of binary predictions: error, likelihood and temperature."""

import numpy as np

from edgesafe_jax.errors import ConfigError, check_counts
from edgesafe_jax.metrics._inputs import check_binary, check_probs, check_same_length
from edgesafe_jax.typing import ArrayLike


def expected_calibration_error(
    *, probs: ArrayLike, labels: ArrayLike, num_bins: int = 15, equal_mass: bool = False
) -> float:
    r"""Mean absolute difference between predicted and observed frequency of positives, over bins.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N}
              \Big| \frac{1}{n_b} \sum_{i \in b} p_i - \frac{1}{n_b} \sum_{i \in b} y_i \Big|

    Bins are over the probability of the *positive* class, not over the confidence of the predicted
    one. Those of equal width are those of `equal_width_bins`. Those of equal mass hold
    about N/n samples each; equal probabilities share a bin, so the order of samples does not
    matter. Empty bins count nothing.

    Args:
      probs: [N], predicted probability of the positive class.
      labels: [N], 0 or 1.
      num_bins: Number of bins, at least 1.
      equal_mass: Bins of equal mass instead of equal width.

    Returns:
      A number in [0, 1].

    Raises:
      ConfigError: If inputs are empty, of different length, not finite, not probabilities or not
        binary, or ``num_bins`` is less than 1.

    Example:
      >>> error = expected_calibration_error(
      ...     probs=[0.1, 0.1, 0.8, 0.8], labels=[0, 0, 1, 0], num_bins=2)
      >>> round(error, 3)  # (|0.1 - 0| + |0.8 - 0.5|) / 2
      0.2

    Reference:
      Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    check_counts(num_bins=num_bins)
    p, y = _check_predictions(probs, labels)
    if equal_mass:
        starts = np.sort(p)[np.arange(1, num_bins) * len(p) // num_bins]
        bins = np.searchsorted(starts, p, side="right")
    else:
        bins = equal_width_bins(probs, num_bins)
    gaps = np.bincount(bins, weights=p - y, minlength=num_bins)
    return float(np.sum(np.abs(gaps)) / len(p))


def equal_width_bins(probs: ArrayLike, num_bins: int) -> np.ndarray:
    """Bin of each probability, among [k/n, (k+1)/n) for k = 0 ... n - 1, the last one closed.

    A probability that equals an edge in its own precision is above it: with 100 bins, 0.29 is in bin 29, as
    a Python number and as float32, although 100 times either is below 29.

    Args:
      probs: [N], in [0, 1].
      num_bins: n.

    Returns:
      [N] integers in [0, n).

    Raises:
      ConfigError: If ``probs`` is empty or not in [0, 1], or ``num_bins`` is less than 1.

    Example:
      >>> equal_width_bins([0.0, 0.28, 0.29, 1.0], 100).tolist()
      [0, 28, 29, 99]
    """
    check_counts(num_bins=num_bins)
    p, dtype = check_probs(probs, "probs"), np.asarray(probs).dtype
    # One reading of the edges for all: in float64, and rounded as the probabilities were.
    edges = np.arange(1, num_bins) / num_bins
    if dtype.kind not in "iub":
        edges = edges.astype(dtype).astype(np.float64)
    return np.searchsorted(edges, p, side="right")


def brier_score(*, probs: ArrayLike, labels: ArrayLike) -> float:
    r"""Mean squared error of a predicted probability.

    .. math:: \frac{1}{N} \sum_i (p_i - y_i)^2

    Args:
      probs: [N], predicted probability of the positive class.
      labels: [N], 0 or 1.

    Returns:
      A number in [0, 1]; 0.25 for a constant prediction of one half.

    Raises:
      ConfigError: If inputs are empty, of different length, not finite, not probabilities or not
        binary.

    Example:
      >>> round(brier_score(probs=[0.9, 0.2], labels=[1, 0]), 3)
      0.025

    Reference:
      Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    p, y = _check_predictions(probs, labels)
    return float(np.mean(np.square(p - y)))


def binary_nll(*, probs: ArrayLike, labels: ArrayLike, eps: float = 1e-7) -> float:
    r"""Mean negative log-likelihood of binary labels.

    .. math:: -\frac{1}{N} \sum_i \big[ y_i \log p_i + (1 - y_i) \log(1 - p_i) \big]

    Args:
      probs: [N], predicted probability of the positive class.
      labels: [N], 0 or 1.
      eps: Probabilities are clamped to [eps, 1 - eps], so that one certain error costs
        -log(eps), not infinity. 0 switches that off.

    Returns:
      A number in nats; log 2 for a constant prediction of one half.

    Raises:
      ConfigError: If inputs are empty, of different length, not finite, not probabilities or not
        binary, or ``eps`` is not in [0, 0.5).

    Example:
      >>> round(binary_nll(probs=[0.9, 0.2], labels=[1, 0]), 3)
      0.164
    """
    if not 0.0 <= eps < 0.5:
        raise ConfigError(f"eps is {eps}, expected a number in [0, 0.5).")
    p, y = _check_predictions(probs, labels)
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(np.clip(np.where(y, p, 1.0 - p), eps, 1.0))))


def fit_temperature(*, probs: ArrayLike, labels: ArrayLike, eps: float = 1e-7) -> float:
    r"""Fits the temperature of binary probabilities by maximum likelihood; the order of the scores stays.

    .. math:: T = \arg\min_T \mathrm{NLL}(\sigma(z / T), y),\qquad z = \log p - \log(1 - p)

    Convex in 1/T; found by bisection between 1/1000 and 1000. Fit it on other data than it is reported on.

    Args:
      probs: [N], predicted probability of the positive class.
      labels: [N], 0 or 1.
      eps: Probabilities are clamped to [eps, 1 - eps].

    Returns:
      T; above 1 for overconfident predictions. At an end of its range where predictions carry no information (1000) or
      make no error (1/1000).

    Raises:
      ConfigError: As `binary_nll`.

    Example:
      >>> probs = [0.99, 0.99, 0.99, 0.01, 0.01, 0.01]  # certain, and right two times in three
      >>> round(fit_temperature(probs=probs, labels=[1, 1, 0, 0, 0, 1]), 1)
      6.6

    Reference:
      Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    p, y = _check_predictions(probs, labels)
    if not 0.0 < eps < 0.5:
        raise ConfigError(f"eps is {eps}, expected a number inside (0, 0.5).")
    z = _log_odds(p, eps)
    low, high = np.log(1e-3), np.log(1e3)  # of 1/T
    for _ in range(60):
        middle = (low + high) / 2
        slope = np.mean(z * (_sigmoid(np.exp(middle) * z) - y))
        low, high = (middle, high) if slope <= 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def scale_temperature(*, probs: ArrayLike, temperature: float, eps: float = 1e-7) -> np.ndarray:
    r"""Probabilities at another temperature, :math:`\sigma(\mathrm{logit}(p) / T)`.

    Args:
      probs: [N], probability of the positive class.
      temperature: T, above 0; above 1 moves towards one half.
      eps: Probabilities are clamped to [eps, 1 - eps].

    Returns:
      [N] float64; one half stays one half, so verdicts at one half do not change.

    Raises:
      ConfigError: If ``probs`` is empty or not in [0, 1], or ``temperature`` is not positive and finite.

    Example:
      >>> scale_temperature(probs=[0.5, 0.9], temperature=2.0).round(3).tolist()
      [0.5, 0.75]
    """
    if not 0.0 < temperature < np.inf:
        raise ConfigError(f"temperature is {temperature}, expected positive and finite.")
    return _sigmoid(_log_odds(check_probs(probs, "probs"), eps) / temperature)


def _log_odds(p: np.ndarray, eps: float) -> np.ndarray:
    clipped = np.clip(p, eps, 1.0 - eps)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * z)


def _check_predictions(probs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, y = check_probs(probs, "probs"), check_binary(labels, "labels")
    check_same_length(probs=p, labels=y)
    return p, y
