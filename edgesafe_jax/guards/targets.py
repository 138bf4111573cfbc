r"""One probability of "unsafe" for a whole set of paraphrases: the rules by which it is chosen.

A rule maps values `[..., N]` and a mask to one value per set. All of them are blind to the order of the members, never
leave the range of the set, and give the value itself for a set of one or of identical values. In logit space
(`in_logit_space`) a rule works on the log-odds and its result is turned back into a probability.

Pinneri and Louizos, arXiv 2511.10665, train towards a conservative, skew-aware set-level target and report that mean
and median can lose safety. Their rule was not available: `skew_quantile`, `conservative_gap` and `medcouple_mean` are
this project's readings of it, the others are controls. `configs/guard_consistency.py` ranks them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.typing import Array, ArrayLike

Rule: TypeAlias = Callable[[Array, Array], Array]
"""From values `[..., N]` and which of them exist, `[..., N]` bool, to one value per set, `[...]`."""

LOGIT_EPS = 1e-6
"""Probabilities are clipped to [eps, 1 - eps] before their log-odds are taken."""


class TargetError(EdgesafeError, ValueError):
    """Scores of which no target can be made."""


def set_target(scores: ArrayLike, *, rule: str | Rule, where: ArrayLike | None = None) -> Array:
    """Chooses one probability of "unsafe" per set.

    Args:
      scores: `[..., N]`, P(unsafe) of the members of each set, in [0, 1].
      rule: a name in `RULES`, or a callable such as `quantile(0.9)`, `in_logit_space(mean)` or a user's own.
      where: `[..., N]` bool, which members exist; default all. What lies elsewhere is ignored, NaN included.

    Returns:
      `[...]` float32. Within `jit`, where values cannot be looked at, a set without members gives NaN.

    Raises:
      TargetError: no members in a set, NaN or a value outside [0, 1] among them, a mask of another shape or dtype, an
        unknown name, or a rule whose result is not one value per set.

    Example:
      >>> target = set_target([0.1, 0.2, 0.9], rule="conservative_gap")  # mean 0.4, median 0.2
      >>> round(float(target), 3)
      0.4
    """
    values = jnp.asarray(scores, jnp.float32)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise TargetError(f"scores has shape {values.shape}: expected [..., N] with at least one member in each set.")
    mask = jnp.ones(values.shape, bool) if where is None else jnp.asarray(where)
    if mask.dtype != jnp.bool_ or mask.shape != values.shape:
        raise TargetError(f"where is {mask.dtype}{mask.shape}: expected bool{values.shape}, one entry per score.")
    if not isinstance(values, Tracer) and not isinstance(mask, Tracer):
        _check_values(np.asarray(values), np.asarray(mask))
    if isinstance(rule, str):
        if rule not in RULES:
            raise TargetError(f"rule={rule!r}: expected one of {', '.join(sorted(RULES))}, or a callable.")
        rule = RULES[rule]
    result = rule(jnp.where(mask, values, 0.0), mask)
    if result.shape != values.shape[:-1]:
        raise TargetError(f"The rule returned shape {result.shape} for scores {values.shape}: expected one per set.")
    return jnp.where(jnp.any(mask, axis=-1), result, jnp.nan)


def _check_values(values: np.ndarray, mask: np.ndarray) -> None:
    rows = np.asarray(mask.reshape(-1, mask.shape[-1]).any(axis=1))
    if not rows.all():
        raise TargetError(
            f"Set {int(np.flatnonzero(~rows)[0])} has no members ({int((~rows).sum())} of {rows.size} sets): leave it "
            "out."
        )
    kept = values[mask]
    if wrong := int(np.sum(~((kept >= 0) & (kept <= 1)))):
        first = kept[~((kept >= 0) & (kept <= 1))][0]
        raise TargetError(
            f"scores holds {first} ({wrong} of {kept.size} values are no probabilities): expected P(unsafe) in [0, 1]. "
            "NaN comes from a guard that failed; log-odds go through a sigmoid first."
        )


def in_logit_space(rule: Rule) -> Rule:
    """Makes a rule work on log-odds: `sigmoid(rule(logit(u)))`. Saturated scores then weigh heavily in a mean."""

    def transformed(values: Array, where: Array) -> Array:
        clipped = jnp.clip(values, LOGIT_EPS, 1 - LOGIT_EPS)
        return jax.nn.sigmoid(rule(jnp.where(where, jnp.log(clipped) - jnp.log1p(-clipped), 0.0), where))

    return transformed


# Controls -------------------------------------------------------------------------------------------------------------


def mean(values: Array, where: Array) -> Array:
    """The mean of the members."""
    return _masked_mean(values, where)


def median(values: Array, where: Array) -> Array:
    """The median; between the middle two where their number is even."""
    return _quantile(values, where, 0.5)


def minimum(values: Array, where: Array) -> Array:
    """The lowest member: the least conservative rule."""
    return jnp.min(jnp.where(where, values, jnp.inf), axis=-1)


def maximum(values: Array, where: Array) -> Array:
    """The highest member: the most conservative rule."""
    return jnp.max(jnp.where(where, values, -jnp.inf), axis=-1)


def quantile(q: float) -> Rule:
    """Makes the rule that takes the q-quantile, interpolated linearly between members.

    Raises:
      TargetError: q outside [0, 1].
    """
    if not 0 <= q <= 1:
        raise TargetError(f"q={q}: expected a quantile in [0, 1].")
    return functools.partial(_quantile, q=q)


def trimmed_mean(fraction: float = 0.2) -> Rule:
    """Makes the mean without the lowest and the highest `floor(fraction * n)` members.

    Raises:
      TargetError: a fraction outside [0, 0.5).
    """
    if not 0 <= fraction < 0.5:
        raise TargetError(f"fraction={fraction}: expected a fraction in [0, 0.5).")

    def rule(values: Array, where: Array) -> Array:
        ordered, count = _sorted(values, where)
        cut = jnp.floor(fraction * count)[..., None]
        rank = _ranks(values)
        return _masked_mean(ordered, (rank >= cut) & (rank < count[..., None] - cut))

    return rule


# Skew-aware rules -----------------------------------------------------------------------------------------------------


def skewness(values: Array, where: Array) -> Array:
    r"""Bias-corrected Fisher-Pearson skewness of each set; 0 for fewer than three members or equal ones.

    .. math:: G_1 = \frac{\sqrt{n (n - 1)}}{n - 2} \frac{m_3}{m_2^{3/2}}

    Args:
      values: `[..., N]`.
      where: `[..., N]` bool.

    Returns:
      `[...]`.
    """
    count = jnp.sum(where, axis=-1, dtype=jnp.float32)
    deviation = values - _masked_mean(values, where)[..., None]
    second, third = (_masked_mean(deviation**power, where) for power in (2, 3))
    defined = (count > 2) & (second > 1e-12)
    ratio = third / jnp.where(defined, second, 1.0) ** 1.5
    return jnp.where(defined, jnp.sqrt(count * (count - 1)) / jnp.maximum(count - 2, 1.0) * ratio, 0.0)


def skew_quantile(threshold: float = 0.5, q: float = 0.75) -> Rule:
    """Makes the rule that takes the upper quantile q where the skewness exceeds a threshold, else the median.

    A positive skewness is a tail of paraphrases that the guard finds unsafe while the bulk looks safe.

    Raises:
      TargetError: q below one half or above 1.
    """
    if not 0.5 <= q <= 1:
        raise TargetError(f"q={q}: expected an upper quantile in [0.5, 1].")

    def rule(values: Array, where: Array) -> Array:
        return jnp.where(skewness(values, where) > threshold, _quantile(values, where, q), median(values, where))

    return rule


def conservative_gap(values: Array, where: Array) -> Array:
    """The larger of mean and median: the conservative side of the gap that skew opens between them."""
    return jnp.maximum(mean(values, where), median(values, where))


def medcouple(values: Array, where: Array) -> Array:
    r"""Medcouple of each set: a skewness in [-1, 1] that outliers do not move.

    The median of :math:`h(x_i, x_j) = \frac{(x_i - m) - (m - x_j)}{x_i - x_j}` over :math:`x_j \le m \le x_i`, with the
    median m; pairs that both equal m count as -1, 0 or 1 by their ranks.

    Args:
      values: `[..., N]`.
      where: `[..., N]` bool.

    Returns:
      `[...]`; 0 for sets of one and of equal values.

    Reference:
      Brys, Hubert, Struyf, "A Robust Measure of Skewness", 2004, definition 1 and equation 4.
    """
    ordered, count = _sorted(values, where)
    exists = _ranks(values) < count[..., None]
    centre = _quantile(values, where, 0.5)[..., None]
    above, below = exists & (ordered >= centre), exists & (ordered <= centre)
    upper, lower = ordered[..., :, None], ordered[..., None, :]
    spread = upper - lower
    kernel = (upper + lower - 2 * centre[..., None]) / jnp.where(spread > 0, spread, 1.0)
    ties = exists & (ordered == centre)
    rank = jnp.cumsum(ties, axis=-1)  # of a tie among the ties, from 1
    total = jnp.max(rank, axis=-1)[..., None, None]
    tied = jnp.sign(rank[..., :, None] + rank[..., None, :] - 1 - total).astype(kernel.dtype)
    kernel = jnp.where(ties[..., :, None] & ties[..., None, :], tied, kernel)
    pairs = above[..., :, None] & below[..., None, :]
    flat = (*values.shape[:-1], -1)
    return _quantile(kernel.reshape(flat), pairs.reshape(flat), 0.5)


def medcouple_mean(values: Array, where: Array) -> Array:
    r"""The mean of the members inside fences that follow the skew.

    With the quartiles, their distance IQR and the medcouple M, kept are the members in

    .. math:: [Q_1 - 1.5\, e^{a M} \mathrm{IQR},\ Q_3 + 1.5\, e^{b M} \mathrm{IQR}],\qquad
              (a, b) = (-4, 3)\ \text{if}\ M \ge 0,\ \text{else}\ (-3, 4)

    Reference:
      Hubert and Vandervieren, "An adjusted boxplot for skewed distributions", 2008, section 3.
    """
    couple = medcouple(values, where)
    first, third = _quantile(values, where, 0.25), _quantile(values, where, 0.75)
    reach = 1.5 * (third - first)
    low = first - reach * jnp.exp(jnp.where(couple >= 0, -4.0, -3.0) * couple)
    high = third + reach * jnp.exp(jnp.where(couple >= 0, 3.0, 4.0) * couple)
    return _masked_mean(values, where & (values >= low[..., None]) & (values <= high[..., None]))


def _masked_mean(values: Array, where: Array) -> Array:
    count = jnp.sum(where, axis=-1, dtype=jnp.float32)
    return jnp.sum(jnp.where(where, values, 0.0), axis=-1) / jnp.maximum(count, 1.0)


def _ranks(values: Array) -> Array:
    """0, 1, ... along the last axis, in the shape of the values."""
    return jnp.broadcast_to(jnp.arange(values.shape[-1], dtype=jnp.float32), values.shape)


def _sorted(values: Array, where: Array) -> tuple[Array, Array]:
    """The members in rising order, then what does not exist (as +inf); and how many there are, float32."""
    return jnp.sort(jnp.where(where, values, jnp.inf), axis=-1), jnp.sum(where, axis=-1, dtype=jnp.float32)


def _quantile(values: Array, where: Array, q: float) -> Array:
    """The q-quantile of the members: linear interpolation at rank `q (n - 1)`."""
    ordered, count = _sorted(values, where)
    rank = q * jnp.maximum(count - 1, 0.0)
    low = jnp.floor(rank)
    pair = [
        jnp.take_along_axis(ordered, index.astype(jnp.int32)[..., None], axis=-1)[..., 0]
        for index in (low, jnp.minimum(low + 1, jnp.maximum(count - 1, 0.0)))
    ]
    part = rank - low
    return jnp.where(part > 0, pair[0] * (1 - part) + pair[1] * part, pair[0])


_IN_PROBABILITY: Mapping[str, Rule] = {
    "mean": mean,
    "median": median,
    "min": minimum,
    "max": maximum,
    "quantile": quantile(0.75),
    "trimmed_mean": trimmed_mean(),
    "skew_quantile": skew_quantile(),
    "conservative_gap": conservative_gap,
    "medcouple": medcouple_mean,
}
RULES: Mapping[str, Rule] = {
    **_IN_PROBABILITY,
    **{f"{name}_logit": in_logit_space(rule) for name, rule in _IN_PROBABILITY.items()},
}
"""The rules by name; with the suffix "_logit" in logit space."""
