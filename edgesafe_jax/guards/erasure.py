r"""Closed-form erasure of a concept, the way of saying for instance, from features.

Belrose et al., "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819, theorem 4.3.
"""

import dataclasses

import numpy as np

from edgesafe_jax.errors import NON_NEGATIVE, ConfigError, check_ranges


@dataclasses.dataclass(frozen=True)
class Eraser:
    r"""The affine map :math:`x - \Sigma^{1/2} P \Sigma^{-1/2} (x - \mu)`: callable on features `[..., M]`.

    Attributes:
      mean: `[M]`, :math:`\mu`.
      left: `[R, M]`, the rows of :math:`\Sigma^{1/2}` times an orthonormal basis of what P projects onto.
      right: `[R, M]`, likewise of :math:`\Sigma^{-1/2}`.
    """

    mean: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Returns the features without the concept, in their dtype."""
        x = np.asarray(features)
        return (x - ((x - self.mean) @ self.right.T) @ self.left).astype(x.dtype)


def fit_eraser(
    features: np.ndarray,
    concepts: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    shrinkage: float = 0.0,
) -> Eraser:
    r"""Fits the smallest affine change after which no linear map of the features tells the concepts apart.

    P is the orthogonal projection onto the columns of :math:`\Sigma^{-1/2} \Sigma_{xz}`, with the covariance
    :math:`\Sigma` of the features and the cross-covariance :math:`\Sigma_{xz}` of features and concepts.

    Args:
      features: `[N, M]`.
      concepts: `[N]` names, each of which is one concept, or `[N, K]` numbers.
      groups: `[N]`: rows of one group, paraphrases of one answer for instance, share what is not to be erased; its
        mean is taken out of features and concepts before the cross-covariance. Default no groups.
      shrinkage: multiple of the mean variance that is added to every variance: with fewer rows than features the
        covariance is not known well. The larger it is, the nearer P comes to the orthogonal projection onto the columns
        of the cross-covariance.

    Returns:
      The eraser.

    Raises:
      ConfigError: other numbers of rows, fewer than two, or a negative shrinkage.
    """
    x = np.asarray(features, np.float64)
    names = np.asarray(concepts)
    z = (names[:, None] == np.unique(names)).astype(np.float64) if names.ndim == 1 else names.astype(np.float64)
    check_ranges({"shrinkage": shrinkage}, {"shrinkage": NON_NEGATIVE}, prefix="")
    if x.ndim != 2 or len(x) < 2 or len(z) != len(x) or (groups is not None and len(groups) != len(x)):
        raise ConfigError(
            f"features {x.shape}, concepts {names.shape}: expected [N, M] and [N] or [N, K] with at least two rows, "
            "and as many groups."
        )
    mean = x.mean(axis=0)
    centred = (x - mean) / np.sqrt(len(x))
    inner_x, inner_z = (_within(values, groups) for values in (x, z))
    cross = inner_z.T @ inner_x / len(x)  # [K, M]
    variances, basis = _principal(centred)
    added = shrinkage * variances.sum() / x.shape[1]

    def power(rows: np.ndarray, exponent: float) -> np.ndarray:
        """Rows times the covariance to a power; outside the rows' own span its eigenvalue is what was added."""
        outside = added**exponent if added else 0.0
        return (rows @ basis.T * ((variances + added) ** exponent - outside)) @ basis + outside * rows

    _, size, directions = np.linalg.svd(power(cross, -0.5), full_matrices=False)
    kept = directions[size > 1e-6 * max(size.max(initial=0.0), 1e-12)]
    return Eraser(mean, power(kept, 0.5), power(kept, -0.5))


def _within(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """The rows without the mean of their group."""
    _, number = np.unique(np.zeros(len(values)) if groups is None else groups, return_inverse=True)
    sums = np.zeros((number.max() + 1, values.shape[1]))
    np.add.at(sums, number, values)
    return values - (sums / np.bincount(number)[:, None])[number]


def _principal(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances `[R]` and directions `[R, M]` of centred rows, by the smaller of the two products."""
    if len(centred) < centred.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        kept = values > 1e-10 * values.max(initial=0.0)
        return values[kept], (vectors[:, kept] / np.sqrt(values[kept])).T @ centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    kept = values > 1e-10 * values.max(initial=0.0)
    return values[kept], vectors[:, kept].T
