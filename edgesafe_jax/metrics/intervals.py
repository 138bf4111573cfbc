"""Bootstrap and Wilson confidence intervals, deterministic by seed."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

from edgesafe_jax.errors import ConfigError, check_counts
from edgesafe_jax.metrics._inputs import check_numbers, check_same_length
from edgesafe_jax.typing import ArrayLike

Statistic: TypeAlias = Callable[[np.ndarray], float]
"""Maps resampled values, [M] or [M, ...], to one number."""

_MAX_COUNTS = 1 << 22  # Resampling counts held at once by the mean, 32 MB.


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with the interval around it.

    Attributes:
      estimate: The statistic of the data as they are.
      low: Lower end; NaN where there is no interval, as of one sample.
      high: Upper end; NaN where there is none.
      confidence: Coverage that the interval aims at, for instance 0.95.
    """

    estimate: float
    low: float
    high: float
    confidence: float

    def named(self, name: str) -> dict[str, float]:
        """The estimate as `name` and the ends, where there is an interval, as `name_low` and `name_high`.

        >>> Interval(0.5, 0.4, 0.6, confidence=0.95).named("accuracy")
        {'accuracy': 0.5, 'accuracy_low': 0.4, 'accuracy_high': 0.6}
        """
        if math.isnan(self.low) or math.isnan(self.high):
            return {name: self.estimate}
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap_interval(
    values: ArrayLike,
    *,
    statistic: Literal["mean"] | Statistic = "mean",
    num_samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap interval of a statistic.

    Rows of ``values`` are drawn with replacement, as many as there are; the interval lies between
    the outer (1 - confidence) / 2 quantiles of the statistic over the draws. With ``clusters`` whole
    clusters are drawn instead (as many as there are clusters): for rows that belong together, such
    as the paraphrases of one answer, drawing rows on their own makes intervals too narrow.

    One row, or one cluster, says nothing about the spread: there is no interval, its ends are NaN,
    and tables show "[no interval]".

    For a rate near 0 or 1, or of few samples, use `wilson_interval`: the bootstrap of values that
    are all equal has width zero.

    Args:
      values: [N] or [N, ...]; one row per sample. Several columns serve statistics of several
        arrays, such as a score and a label.
      statistic: ``"mean"`` of all entries, or a callable that maps resampled rows to a number.
      num_samples: Number of draws.
      confidence: Coverage aimed at, inside (0, 1).
      seed: Seed of the draws; the same one gives the same interval.
      clusters: [N], the cluster of each row, any hashable kind (numbers or text).

    Returns:
      The estimate and its interval.

    Raises:
      ConfigError: If ``values`` is empty or not finite, ``clusters`` is of different length,
        ``num_samples`` is less than 1, ``confidence`` is not inside (0, 1), or the statistic of
        the data or of a draw is not finite.

    Example:
      >>> interval = bootstrap_interval([1.0, 2.0, 3.0, 4.0])
      >>> interval.low < interval.estimate == 2.5 < interval.high
      True

    Reference:
      Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    array = _check_rows(values, "values")
    _check_options(num_samples, confidence)
    groups = _check_clusters(clusters, len(array), "values")
    if statistic == "mean":
        row_means = array.reshape(len(array), -1).mean(axis=1)
        draws = _mean_draws(row_means, groups, num_samples, seed)
        return _percentiles(float(row_means.mean()), draws, confidence, len(groups))
    function = _check_statistic(statistic)
    draws = np.array([function(array[rows]) for rows in _row_draws(groups, num_samples, seed)])
    return _percentiles(float(function(array)), draws, confidence, len(groups))


def paired_bootstrap_interval(
    *,
    values: ArrayLike,
    baseline: ArrayLike,
    statistic: Literal["mean"] | Statistic = "mean",
    num_samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap interval of a difference between two measurements of the same samples.

    .. math:: T(values) - T(baseline)

    Every draw takes the same rows on both sides, so the variance that both measurements have in common cancels.

    Args:
      values: [N] or [N, ...]; one row per sample.
      baseline: Same shape as ``values``; row i is the same sample as row i there.
      statistic: ``"mean"`` of all entries, or a callable that maps resampled rows to a number.
      num_samples: Number of draws.
      confidence: Coverage aimed at, inside (0, 1).
      seed: Seed of the draws; the same one gives the same interval.
      clusters: [N], the cluster of each row; see `bootstrap_interval`.

    Returns:
      The difference ``values`` minus ``baseline`` and its interval.

    Raises:
      ConfigError: If the two differ in shape, or as `bootstrap_interval`.

    Example:
      >>> interval = paired_bootstrap_interval(values=[1.5, 2.5, 9.5], baseline=[1.0, 2.0, 9.0])
      >>> interval.low, interval.estimate, interval.high
      (0.5, 0.5, 0.5)
    """
    first, second = _check_rows(values, "values"), _check_rows(baseline, "baseline")
    if first.shape != second.shape:
        raise ConfigError(
            f"baseline has shape {second.shape} but values has shape {first.shape}; expected the same samples in both."
        )
    _check_options(num_samples, confidence)
    if statistic == "mean":
        return bootstrap_interval(
            first - second,
            num_samples=num_samples,
            confidence=confidence,
            seed=seed,
            clusters=clusters,
        )
    groups = _check_clusters(clusters, len(first), "values")
    function = _check_statistic(statistic)
    draws = np.array([function(first[rows]) - function(second[rows]) for rows in _row_draws(groups, num_samples, seed)])
    return _percentiles(float(function(first) - function(second)), draws, confidence, len(groups))


def wilson_interval(num_successes: int, num_trials: int, *, confidence: float = 0.95) -> Interval:
    r"""Wilson score interval of a rate.

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4n^2}}{1 + z^2/n}

    with z the (1 + confidence) / 2 quantile of the normal distribution. It stays inside [0, 1] and
    has a positive width for rates of 0 and 1 too: 0 refusals of 20 do not prove a rate of 0.

    Args:
      num_successes: Count, from 0 to ``num_trials``.
      num_trials: Count, at least 1.
      confidence: Coverage aimed at, inside (0, 1).

    Returns:
      The rate and its interval.

    Raises:
      ConfigError: If a count is out of range or ``confidence`` is not inside (0, 1).

    Example:
      >>> interval = wilson_interval(0, 20)
      >>> interval.low, round(interval.high, 3)
      (0.0, 0.161)

    Reference:
      Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    _check_confidence(confidence)
    check_counts(num_trials=num_trials)
    if not 0 <= num_successes <= num_trials:
        raise ConfigError(f"num_successes is {num_successes}, expected a count from 0 to num_trials={num_trials}.")
    n, rate = num_trials, num_successes / num_trials
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    margin = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    # Exact at the ends, where rounding could leave the interval.
    low = 0.0 if num_successes == 0 else centre - margin
    high = 1.0 if num_successes == num_trials else centre + margin
    return Interval(estimate=rate, low=low, high=high, confidence=confidence)


def rate_interval(hits: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Wilson interval of the fraction of rows that are true.

    Args:
      hits: [N], bool or 0 and 1.
      confidence: Coverage aimed at, inside (0, 1).

    Returns:
      The fraction and its interval; see `wilson_interval`.

    Raises:
      ConfigError: If ``hits`` is empty.

    Example:
      >>> rate_interval([True, False, True, True]).estimate
      0.75
    """
    hits = np.asarray(hits, bool)
    return wilson_interval(int(hits.sum()), len(hits), confidence=confidence)


def _check_rows(values: ArrayLike, name: str) -> np.ndarray:
    array = check_numbers(values, name, ndim=None)
    if array.ndim == 0:
        raise ConfigError(f"{name} is a single number, expected one row per sample.")
    return array


def _check_statistic(statistic: Literal["mean"] | Statistic) -> Statistic:
    if not callable(statistic):
        raise ConfigError(f'statistic is {statistic!r}, expected "mean" or a callable.')
    return statistic


def _check_options(num_samples: int, confidence: float) -> None:
    check_counts(num_samples=num_samples)
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence is {confidence}, expected a number inside (0, 1).")


def _check_clusters(clusters: ArrayLike | None, num_rows: int, name: str) -> list[np.ndarray]:
    """The rows of each cluster; every row is its own cluster where none are given."""
    if clusters is None:
        return list(np.arange(num_rows)[:, None])
    ids = np.asarray(clusters)
    if ids.ndim != 1:
        raise ConfigError(f"clusters has shape {ids.shape}, expected [N].")
    check_same_length(**{name: np.empty(num_rows), "clusters": ids})
    _, inverse = np.unique(ids, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def _row_draws(groups: list[np.ndarray], num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each draw."""
    rng = np.random.default_rng(seed)
    for _ in range(num_samples):
        yield np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])


def _mean_draws(values: np.ndarray, groups: list[np.ndarray], num_samples: int, seed: int) -> np.ndarray:
    """Means of the draws, by how often each cluster is drawn."""
    rng = np.random.default_rng(seed)
    totals = np.array([values[rows].sum() for rows in groups])
    sizes = np.array([len(rows) for rows in groups], dtype=float)
    weights = np.full(len(groups), 1 / len(groups))
    chunk = max(1, _MAX_COUNTS // len(groups))
    means = []
    for start in range(0, num_samples, chunk):
        counts = rng.multinomial(len(groups), weights, size=min(chunk, num_samples - start))
        means.append((counts @ totals) / (counts @ sizes))
    return np.concatenate(means)


def _percentiles(estimate: float, draws: np.ndarray, confidence: float, num_groups: int) -> Interval:
    if not (math.isfinite(estimate) and np.all(np.isfinite(draws))):
        num_bad = int(np.sum(~np.isfinite(draws)))
        raise ConfigError(
            f"statistic is {estimate} for the data and not finite for {num_bad} of {len(draws)} "
            "draws, expected finite numbers; a draw can lack a class or repeat one row only."
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) if num_groups > 1 else (math.nan, math.nan)
    return Interval(estimate=estimate, low=float(low), high=float(high), confidence=confidence)
