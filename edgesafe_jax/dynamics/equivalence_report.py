"""The result of an equivalence test over all samples: fractions with intervals over episodes, and a map of verdicts."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from edgesafe_jax.dynamics.equivariance import Equivalence, Verdict
from edgesafe_jax.metrics import bootstrap_interval, wilson_interval
from edgesafe_jax.metrics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class EquivalenceReport:
    """The result over all samples.

    Attributes:
      fractions: from verdict name to its fraction of the samples.
      overall: the verdict on the transformation as a whole: `REJECTED` if the fraction of rejected among the tested
        samples (inside the support) is above the allowed exceptions, by the lower end of its interval; `VERIFIED` if
        the fraction of not verified is at most that, by the upper end; `EXTRAPOLATED` if too few samples could be
        tested; else `INCONCLUSIVE`.
      rejected: the fraction of rejected among the tested samples, with an interval over episodes; None if none was
        tested.
      verified: the fraction of verified among them.
      dimensions: one row per dimension: tolerance, median error among the tested, fractions of tested samples in which
        the model is trusted and the dimension alone would verify or reject.
      reason: what the overall verdict rests on, and what would settle one that is open.
      num_episodes: about how many episodes with tested samples would settle it, if the fractions stayed as they are;
        None where it is settled, or no number of episodes would.
    """

    fractions: dict[str, float]
    overall: Verdict
    rejected: Interval | None
    verified: Interval | None
    dimensions: list[dict[str, float]]
    reason: str = ""
    num_episodes: int | None = None


def summarize(
    result: Equivalence,
    *,
    exceptions: float = 0.05,
    confidence: float = 0.95,
    min_tested: float = 0.05,
    min_episodes: int = 20,
) -> EquivalenceReport:
    """Sums up an equivalence test.

    Args:
      result: from `equivalence_test`.
      exceptions: fraction of tested samples that a verdict on the whole may leave out.
      confidence: of the intervals, which are over episodes because transitions of one episode are alike. However alike
        the episodes are, an interval reaches as far as Wilson's of as many episodes without an exception: with
        `exceptions` 0.05, nothing is verified by fewer than 73 episodes.
      min_tested: fraction of the samples that have to be tested for a verdict on the whole other than `EXTRAPOLATED`.
      min_episodes: number of episodes from which they have to come.

    Returns:
      The report.
    """
    verdicts = np.asarray(result.verdicts)
    fractions = {verdict.name.lower(): float(np.mean(verdicts == verdict)) for verdict in Verdict}
    tested = verdicts != Verdict.EXTRAPOLATED
    if not tested.any():
        reason = "no transformed sample lies inside the support of the data"
        return EquivalenceReport(fractions, Verdict.EXTRAPOLATED, None, None, [], reason)
    episodes = np.asarray(result.episodes)[tested]
    intervals = {
        verdict: episode_interval(verdicts[tested] == verdict, episodes, confidence=confidence)
        for verdict in (Verdict.REJECTED, Verdict.VERIFIED)
    }
    if tested.mean() < min_tested or len(np.unique(episodes)) < min_episodes:
        overall = Verdict.EXTRAPOLATED
    elif intervals[Verdict.REJECTED].low > exceptions:
        overall = Verdict.REJECTED
    elif 1 - intervals[Verdict.VERIFIED].low <= exceptions:
        overall = Verdict.VERIFIED
    else:
        overall = Verdict.INCONCLUSIVE
    errors, trusted = np.asarray(result.errors)[tested], np.asarray(result.trusted)[tested]
    limits = np.asarray(result.tolerance)
    dimensions = [
        {
            "dimension": j,
            "tolerance": float(limits[j]),
            "median error": float(np.median(errors[:, j])),
            "verified": float(np.mean(trusted & (errors[:, j] < 0.5 * limits[j]))),
            "rejected": float(np.mean(trusted & (errors[:, j] > 1.5 * limits[j]))),
        }
        for j in range(len(limits))
    ]
    num_tested, fraction_tested = len(np.unique(episodes)), float(tested.mean())
    needed = None
    if overall == Verdict.EXTRAPOLATED:
        reason = (
            f"{fraction_tested:.3g} of the samples, of {num_tested} episodes, could be tested: expected {min_tested} "
            f"of {min_episodes} episodes"
        )
        needed = min_episodes if fraction_tested >= min_tested else None
    elif overall == Verdict.INCONCLUSIVE:
        needed = _episodes_needed(verdicts[tested], episodes, exceptions, confidence)
        reason = _open_reason(result, tested, dimensions, intervals[Verdict.VERIFIED].estimate, exceptions, needed)
    else:
        reason = f"{intervals[overall].estimate:.3g} of the tested samples are {overall.name.lower()}"
    rejected, verified = intervals[Verdict.REJECTED], intervals[Verdict.VERIFIED]
    return EquivalenceReport(fractions, overall, rejected, verified, dimensions, reason, needed)


def _episodes_needed(verdicts: np.ndarray, episodes: np.ndarray, exceptions: float, confidence: float) -> int | None:
    """About how many episodes bring the end of an interval past the allowed exceptions; None where none do.

    The distance between an estimate and the end of its bootstrap interval falls with the square root of their number;
    and as many are needed as an interval of no exception at all takes, see `episode_interval`.
    """
    num, found = len(np.unique(episodes)), []
    for verdict, limit in ((Verdict.REJECTED, exceptions), (Verdict.VERIFIED, 1 - exceptions)):
        hits = np.asarray(verdicts == verdict, np.float64)
        if hits.mean() > limit:
            interval = bootstrap_interval(hits, clusters=episodes, confidence=confidence, num_samples=500)
            found.append(math.ceil(num * ((interval.estimate - interval.low) / (interval.estimate - limit)) ** 2))
    if not found:
        return None
    fewest = num + 1
    if np.mean(verdicts == Verdict.VERIFIED) > 1 - exceptions:
        while wilson_interval(0, fewest, confidence=confidence).high > exceptions:
            fewest += 1
    return max(*found, fewest)


def _open_reason(
    result: Equivalence,
    tested: np.ndarray,
    dimensions: list[dict[str, float]],
    verified: float,
    exceptions: float,
    needed: int | None,
) -> str:
    """Says why a test is inconclusive and what would settle it."""
    if needed is not None:
        return f"too few episodes to tell {exceptions} of exceptions from none: about {needed} with tested samples"
    trusted = float(np.mean(np.asarray(result.trusted)[tested]))
    if trusted < 1 - exceptions:
        worst = int(np.argmax([line["median error"] / line["tolerance"] for line in dimensions]))
        return (
            f"the model is trusted on {trusted:.3g} of the tested samples (its largest errors, in tolerances, are in "
            f"dimension {worst}): a better model or a larger tolerance is needed, more episodes only as they improve it"
        )
    worst = int(np.argmin([line["verified"] for line in dimensions]))
    return (
        f"{verified:.3g} of the tested samples are verified: in dimension {worst} differences are about the tolerance, "
        "or the symmetry holds in places only (`verdict_map`); more episodes do not settle it"
    )


def episode_interval(hits: np.ndarray, episodes: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interval of a fraction of samples that come in episodes: bootstrap over episodes, with ends that have a width.

    Where all episodes are alike the bootstrap has no width, however few they are. So the interval reaches as far as
    Wilson's of as many episodes without a hit, and without a miss.

    Args:
      hits: `[N]` booleans, at least one.
      episodes: `[N]` the episode of each.
      confidence: coverage aimed at.

    Returns:
      The fraction of hits and its interval.

    Example:
      >>> interval = episode_interval(np.zeros(200, bool), np.arange(200) // 10)
      >>> interval.estimate, interval.low, round(interval.high, 3)  # of 20 episodes
      (0.0, 0.0, 0.161)
    """
    found = bootstrap_interval(np.asarray(hits, np.float64), clusters=episodes, confidence=confidence, num_samples=500)
    reach = wilson_interval(0, len(np.unique(episodes)), confidence=confidence).high
    return dataclasses.replace(found, low=float(np.fmin(found.low, 1 - reach)), high=float(np.fmax(found.high, reach)))


def verdict_map(
    result: Equivalence, *, dims: tuple[int, int], low: Sequence[float], high: Sequence[float], num_cells: int = 20
) -> dict[str, np.ndarray]:
    """Maps the verdicts: their fractions by the place that the transformed states reach.

    Args:
      result: from `equivalence_test`.
      dims: the two dimensions of the state that span the map.
      low: `[2]` its lower corner.
      high: `[2]` its upper corner.
      num_cells: along each side.

    Returns:
      From verdict name to its fraction in each cell `[num_cells, num_cells]`, first index along `dims[0]`; NaN in empty
      cells; and under ``"count"`` the samples of each cell.
    """
    places = np.asarray(result.states)[:, list(dims)]
    edges = [np.linspace(low[i], high[i], num_cells + 1) for i in range(2)]
    count = np.histogram2d(places[:, 0], places[:, 1], bins=edges)[0]
    cells: dict[str, np.ndarray] = {"count": count}
    for verdict in Verdict:
        chosen = places[np.asarray(result.verdicts) == verdict]
        found = np.histogram2d(chosen[:, 0], chosen[:, 1], bins=edges)[0]
        cells[verdict.name.lower()] = np.divide(found, count, out=np.full_like(count, np.nan), where=count > 0)
    return cells
