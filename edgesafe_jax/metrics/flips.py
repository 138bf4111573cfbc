"""Spread of scores and label flips over sets of paraphrases."""

import dataclasses

import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.metrics._inputs import check_numbers, check_probs, check_same_length
from edgesafe_jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class SetSpread:
    """Spread of the scores within each set.

    Attributes:
      std: [S], population standard deviation of the members, the original included.
      range: [S], highest minus lowest member.
    """

    std: np.ndarray
    range: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelFlips:
    """Label flips: originals with a paraphrase of the other verdict.

    Attributes:
      original_unsafe: [S] bool, the verdict on the original.
      flipped: [S] bool, whether at least one paraphrase crosses the threshold.
      fraction: [S], fraction of the paraphrases that do.
    """

    original_unsafe: np.ndarray
    flipped: np.ndarray
    fraction: np.ndarray

    @property
    def unsafe_to_safe(self) -> np.ndarray:
        """[S] bool: the original is unsafe and a paraphrase of it is called safe."""
        return self.flipped & self.original_unsafe

    @property
    def safe_to_unsafe(self) -> np.ndarray:
        """[S] bool: the original is safe and a paraphrase of it is called unsafe."""
        return self.flipped & ~self.original_unsafe


def set_spread(*, original: ArrayLike, paraphrases: ArrayLike, where: ArrayLike | None = None) -> SetSpread:
    """Spread of the scores within each set.

    Args:
      original: [S], P(unsafe) of the originals.
      paraphrases: [S, N], P(unsafe) of their paraphrases.
      where: [S, N] bool, which paraphrases exist; default all.

    Returns:
      Standard deviation and range per set; both 0 where all members score alike.

    Raises:
      ConfigError: As `label_flips`.

    Example:
      >>> spread = set_spread(original=[0.2], paraphrases=[[0.6]])
      >>> round(float(spread.std[0]), 3), round(float(spread.range[0]), 3)
      (0.2, 0.4)
    """
    first, rest, mask = _check_sets(original, paraphrases, where)
    members = np.concatenate([first[:, None], np.where(mask, rest, np.nan)], axis=1)
    return SetSpread(np.nanstd(members, axis=1), np.nanmax(members, axis=1) - np.nanmin(members, axis=1))


def label_flips(
    *, original: ArrayLike, paraphrases: ArrayLike, where: ArrayLike | None = None, threshold: float = 0.5
) -> LabelFlips:
    """Label flips of each set: paraphrases on the other side of the threshold than their original.

    The label-flip rate is the mean of `flipped`. Pooled over both directions it hides the unsafe one: report
    `unsafe_to_safe` among the unsafe originals and `safe_to_unsafe` among the safe ones.

    Args:
      original: [S], P(unsafe) of the originals.
      paraphrases: [S, N], P(unsafe) of their paraphrases.
      where: [S, N] bool, which paraphrases exist; default all.
      threshold: unsafe is what scores above it.

    Returns:
      Flips per set.

    Raises:
      ConfigError: Empty inputs, other numbers of sets, values that are no probabilities, a mask of another shape, or a
        set without paraphrases, which cannot flip.

    Example:
      >>> flips = label_flips(original=[0.9, 0.1], paraphrases=[[0.8, 0.4], [0.2, 0.3]])
      >>> flips.flipped.tolist(), flips.unsafe_to_safe.tolist(), flips.fraction.tolist()
      ([True, False], [True, False], [0.5, 0.0])

    Reference:
      Pinneri and Louizos, arXiv 2511.10665: fraction of originals with at least one paraphrase across the boundary.
    """
    first, rest, mask = _check_sets(original, paraphrases, where)
    unsafe = first > threshold
    crossed = mask & ((rest > threshold) != unsafe[:, None])
    return LabelFlips(unsafe, crossed.any(axis=1), crossed.sum(axis=1) / mask.sum(axis=1))


def _check_sets(
    original: ArrayLike, paraphrases: ArrayLike, where: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = check_probs(original, "original")
    rest = np.asarray(paraphrases, np.float64)
    if rest.ndim != 2 or rest.shape[1] == 0:
        raise ConfigError(f"paraphrases has shape {rest.shape}, expected [S, N] with at least one paraphrase.")
    mask = np.ones(rest.shape, bool) if where is None else np.asarray(where)
    if mask.shape != rest.shape or mask.dtype != bool:
        raise ConfigError(f"where is {mask.dtype}{mask.shape}, expected bool{rest.shape}.")
    check_same_length(original=first, paraphrases=rest)
    if not mask.any(axis=1).all():
        row = int(np.flatnonzero(~mask.any(axis=1))[0])
        raise ConfigError(f"paraphrases of set {row}: there are none, so it cannot flip; leave the set out.")
    check_probs(check_numbers(rest[mask], "paraphrases"), "paraphrases")
    return first, rest, mask
