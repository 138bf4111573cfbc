r"""Losses on pairs of answers of which one is preferred.

x is a prompt, y_w the chosen and y_l the rejected answer, q the trained model and p its frozen reference. The
losses take log-probabilities of whole answers, see `edgesafe_jax.losses.sequence_log_prob`. For what all losses have
in common see `edgesafe_jax.losses.divergences`; gradients flow to the reference as well.
"""

import jax
import jax.numpy as jnp

from edgesafe_jax.losses._checks import (
    check_arrays,
    check_positive,
    check_probability,
    check_same_shape,
    check_where,
    masked,
)
from edgesafe_jax.losses._reduction import weighted
from edgesafe_jax.typing import Array, ArrayLike


def dpo(
    *,
    chosen_log_prob: ArrayLike,
    rejected_log_prob: ArrayLike,
    reference_chosen_log_prob: ArrayLike,
    reference_rejected_log_prob: ArrayLike,
    beta: ArrayLike = 0.1,
    flip_prob: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Direct preference optimisation: a logistic loss on the difference of implicit rewards.

    .. math:: h = \log\frac{q(y_w|x)}{p(y_w|x)} - \log\frac{q(y_l|x)}{p(y_l|x)},\qquad
              \ell = -(1 - \epsilon) \log\sigma(\beta h) - \epsilon \log\sigma(-\beta h)

    With epsilon above 0 the preference is not certain, and the loss is least at a finite h, where
    sigma(beta h) = 1 - epsilon.

    Args:
      chosen_log_prob: [...], log q(y_w|x), summed over the tokens.
      rejected_log_prob: [...], log q(y_l|x).
      reference_chosen_log_prob: [...], log p(y_w|x) of the frozen reference.
      reference_rejected_log_prob: [...], log p(y_l|x).
      beta: Scalar, above 0: how strongly the reference is kept to. May be traced.
      flip_prob: epsilon, scalar or [...], in [0, 1]: the probability that the preference is the other way round.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats, never negative; log 2 where the model is its reference.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, or a host value of ``beta`` or ``flip_prob`` is outside its
        range.

    Example:
      >>> import math
      >>> loss = dpo(chosen_log_prob=-1.0, rejected_log_prob=-3.0, reference_chosen_log_prob=-2.0,
      ...            reference_rejected_log_prob=-2.0, beta=0.5)
      >>> print(f"{loss:.3f} {math.log1p(math.exp(-1.0)):.3f}")
      0.313 0.313

    Reference:
      Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, eq. 7. Uncertain preferences: Mitchell, "A
      note on DPO with noisy preferences and relationship to IPO" (2023), eq. 3.
    """
    margin, mask = _margin(
        chosen_log_prob, rejected_log_prob, reference_chosen_log_prob, reference_rejected_log_prob, where
    )
    flip = jnp.where(mask, _fit(check_probability(flip_prob, "flip_prob"), margin), 0.0)
    logit = check_positive(beta, "beta", margin.dtype) * margin
    loss = weighted(1.0 - flip, -jax.nn.log_sigmoid(logit)) + weighted(flip, -jax.nn.log_sigmoid(-logit))
    return jnp.where(mask, loss, 0.0)


def ipo(
    *,
    chosen_log_prob: ArrayLike,
    rejected_log_prob: ArrayLike,
    reference_chosen_log_prob: ArrayLike,
    reference_rejected_log_prob: ArrayLike,
    beta: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Identity preference optimisation: the difference of log-ratios is pulled to a finite target.

    .. math:: \ell = \Big(h - \frac{1}{2 \beta}\Big)^2

    with h as in `dpo`. A preference that is never violated does not drive h to infinity.

    Args:
      chosen_log_prob: As for `dpo`.
      rejected_log_prob: As for `dpo`.
      reference_chosen_log_prob: As for `dpo`.
      reference_rejected_log_prob: As for `dpo`.
      beta: Scalar, above 0; tau in the paper. May be traced.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], never negative.

    Raises:
      ConfigError: As `dpo`.

    Example:
      >>> loss = ipo(chosen_log_prob=-1.0, rejected_log_prob=-3.0, reference_chosen_log_prob=-2.0,
      ...            reference_rejected_log_prob=-2.0, beta=0.5)
      >>> print(f"{loss:.3f}")  # (2 - 1) ** 2
      1.000

    Reference:
      Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv 2310.12036,
      eq. 17.
    """
    margin, mask = _margin(
        chosen_log_prob, rejected_log_prob, reference_chosen_log_prob, reference_rejected_log_prob, where
    )
    gap = margin - 0.5 / check_positive(beta, "beta", margin.dtype)
    return jnp.where(mask, gap * gap, 0.0)


def simpo(
    *,
    chosen_log_prob: ArrayLike,
    rejected_log_prob: ArrayLike,
    beta: ArrayLike = 2.0,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Simple preference optimisation: a logistic loss on log-probabilities per token, without a reference.

    .. math:: \ell = -\log\sigma\big(\beta (\bar\ell_w - \bar\ell_l) - \gamma\big)

    Args:
      chosen_log_prob: [...], the *mean* over the tokens of log q(y_w|x).
      rejected_log_prob: [...], the same of y_l.
      beta: Scalar, above 0. May be traced.
      margin: Scalar, gamma: by how much the chosen answer must lead. May be traced.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats, never negative.

    Raises:
      ConfigError: As `dpo`.

    Example:
      >>> loss = simpo(chosen_log_prob=-0.5, rejected_log_prob=-1.0, beta=2.0, margin=1.0)
      >>> print(f"{loss:.3f}")  # log 2: the chosen answer leads by the margin
      0.693

    Reference:
      Meng, Xia, Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv 2405.14734, eq. 6.
    """
    arrays = check_arrays(chosen_log_prob=chosen_log_prob, rejected_log_prob=rejected_log_prob)
    mask = check_where(where, arrays[0].shape)
    chosen, rejected = masked(arrays, mask)
    gap = chosen - rejected
    logit = check_positive(beta, "beta", gap.dtype) * gap - jnp.asarray(margin, gap.dtype)
    return jnp.where(mask, -jax.nn.log_sigmoid(logit), 0.0)


def _margin(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    where: ArrayLike | None,
) -> tuple[Array, Array]:
    """The difference of log-ratios, 0 where it is masked, and the mask."""
    arrays = check_arrays(
        chosen_log_prob=chosen,
        rejected_log_prob=rejected,
        reference_chosen_log_prob=reference_chosen,
        reference_rejected_log_prob=reference_rejected,
    )
    mask = check_where(where, arrays[0].shape)
    won, lost, reference_won, reference_lost = masked(arrays, mask)
    return (won - reference_won) - (lost - reference_lost), mask


def _fit(value: Array, like: Array) -> Array:
    """A scalar or an array of a shape, as an array of that shape."""
    if value.ndim:
        check_same_shape(log_prob=like, flip_prob=value)
    return jnp.broadcast_to(value, like.shape).astype(like.dtype)
