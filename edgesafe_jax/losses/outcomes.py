r"""Losses on whole answers: the log-probabilities of outcomes, and the guard's verdict.

x is a prompt, y an answer of the base model, y_r the fixed refusal, and a = p(s=1|x,y) the guard's
probability that y is safe. Given y, the guarded system answers y with probability a and y_r otherwise:
these are its outcomes. `sequence_total_variation` and `sequence_kl` are sums of the losses of the two.
For what all losses have in common see `edgesafe_jax.losses.divergences`; gradients flow to a as well.
"""

import jax
import jax.numpy as jnp

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses._checks import (
    check_floating,
    check_logits,
    check_normalization,
    check_probability,
    check_same_shape,
    check_tokens,
    check_where,
    compute_dtype,
    is_token,
)
from edgesafe_jax.losses._reduction import Normalization, nan_where, num_kept, weighted
from edgesafe_jax.typing import Array, ArrayLike


def sequence_log_prob(
    *,
    logits: ArrayLike,
    tokens: ArrayLike,
    where: ArrayLike | None = None,
    normalization: Normalization = "sum",
) -> Array:
    r"""Log-probability that a model gives to a sequence of tokens.

    .. math:: \log q(y|x) = \sum_t w_t \log q(y_t | x, y_{<t}),
              \quad\text{for "mean" divided by } \textstyle\sum_t w_t

    The choice matters for the losses on it. Summed over an answer of many tokens, log q is far below
    log a, so the clip of `sequence_total_variation` never binds and the loss is an a-weighted
    negative log-likelihood, dominated by the longer sequence. Averaged, it is a log-probability per
    token: the clip binds once that reaches log a, but the loss no longer bounds a distance between
    distributions of whole answers.

    Args:
      logits: [..., T, V], ``logits[..., t, :]`` predicts ``tokens[..., t]`` (already shifted).
      tokens: Integer [..., T], in [0, V) wherever ``where`` is True.
      where: Boolean [..., T]; False leaves a position out, whatever its token is. None keeps all.
      normalization: ``"sum"``, or ``"mean"`` over the kept positions.

    Returns:
      [...], in nats. A sequence without any kept position gives 0 with gradient 0. Under ``jit``, a
      sequence that keeps a token outside [0, V) gives NaN.

    Raises:
      ConfigError: If shapes do not fit, a dtype is wrong, ``normalization`` is unknown, or, outside
        ``jit``, a kept token is not in [0, V).

    Example:
      >>> import jax.numpy as jnp
      >>> logits, tokens = jnp.zeros((3, 4)), jnp.array([0, 3, 1])
      >>> log_prob = sequence_log_prob(logits=logits, tokens=tokens, normalization="mean")
      >>> print(f"{log_prob:.3f}")
      -1.386
    """
    logits = check_logits(logits, "logits", positions=True)
    check_normalization(normalization)
    mask = check_where(where, logits.shape[:-1])
    tokens, outside = check_tokens(tokens, "tokens", mask.shape, num_vocab=logits.shape[-1], where=where)
    logits = jnp.where(mask[..., None], logits, 0.0).astype(compute_dtype(logits))
    # A comparison instead of a gather: its transpose is no scatter and fuses with the softmax.
    chosen = is_token(tokens, logits.shape[-1])
    log_prob = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    log_prob = nan_where(outside, log_prob)
    total = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    return total if normalization == "sum" else total / num_kept(mask, total.dtype)


def outcome_total_variation(
    *, log_prob: ArrayLike, weight: ArrayLike, eps: float = 1e-4, where: ArrayLike | None = None
) -> Array:
    r"""One outcome's part in `sequence_total_variation`.

    .. math:: \ell_o = -w_o \min(0, \log q(o|x) - \log w_o)

    Over the outcomes of a system (the answer with w = a and the refusal with w = 1 - a, or one per
    class of a guard with more than two) these add up to the log surrogate of equation 4. In a batch
    whose rows are outcomes, those of negligible weight can be left out.

    Args:
      log_prob: [...], log q(o|x).
      weight: [...], the system's probability of the outcome, in [0, 1].
      eps: The weight is clamped to [eps, 1 - eps].
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats, never negative.

    Raises:
      ConfigError: As `sequence_total_variation`.

    Example:
      >>> import math
      >>> print(f"{outcome_total_variation(log_prob=math.log(0.2), weight=0.5):.3f}")
      0.458

    Reference:
      Alfarra et al., arXiv 2606.09388, eq. 4, one of its two terms.
    """
    if not 0.0 < eps < 0.5:
        raise ConfigError(f"eps is {eps}, expected a number inside (0, 0.5).")
    log_q, prob, mask = _check_outcome(log_prob, weight, where)
    prob = _clamp(prob, eps)
    gap = log_q - jnp.log(prob)
    return jnp.where(mask, -prob * jnp.where(gap >= 0.0, 0.0, gap), 0.0)


def outcome_kl(*, log_prob: ArrayLike, weight: ArrayLike, where: ArrayLike | None = None) -> Array:
    r"""One outcome's part in `sequence_kl`.

    .. math:: \ell_o = w_o (\log w_o - \log q(o|x)),\qquad 0 \log 0 = 0

    Args:
      log_prob: [...], log q(o|x).
      weight: [...], the system's probability of the outcome, in [0, 1].
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats; summed over the outcomes it is the divergence, alone it may be negative.

    Raises:
      ConfigError: As `sequence_kl`.

    Example:
      >>> import math
      >>> print(f"{outcome_kl(log_prob=math.log(0.25), weight=0.5):.3f}")
      0.347
    """
    log_q, prob, mask = _check_outcome(log_prob, weight, where)
    log_weight = jnp.log(jnp.where(prob == 0.0, 1.0, prob))
    return jnp.where(mask, weighted(prob, log_weight - log_q), 0.0)


def sequence_total_variation(
    *,
    response_log_prob: ArrayLike,
    refusal_log_prob: ArrayLike,
    safe_prob: ArrayLike,
    eps: float = 1e-4,
    where: ArrayLike | None = None,
) -> Array:
    r"""The log surrogate of a total variation bound to the guarded system, for one sampled answer.

    .. math:: \ell = -a \min(0, \log q(y|x) - \log a)
              - (1 - a) \min(0, \log q(y_r|x) - \log(1 - a))

    Each of the two terms raises the student's probability of its outcome until it equals the guarded
    system's, and no further. With summed log-probabilities it is, up to ``eps``, at
    least `sequence_total_variation_bound` for each element; see `sequence_log_prob` for the
    effect of averaging.

    Args:
      response_log_prob: [...], log q(y|x) of an answer y that was sampled from the *base* model.
      refusal_log_prob: [...], log q(y_r|x) of the refusal.
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``. Where y is
        the refusal itself, pass 1.
      eps: a is clamped to [eps, 1 - eps], so that no logarithm diverges.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats, never negative. Once a log-probability has reached its target (ties included)
      its gradient is 0.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, a host value of ``safe_prob`` leaves [0, 1],
        or ``eps`` is not inside (0, 0.5).

    Example:
      >>> import math
      >>> loss = sequence_total_variation(
      ...     response_log_prob=math.log(0.2), refusal_log_prob=math.log(0.6), safe_prob=0.5)
      >>> print(f"{loss:.3f}")  # 0.5 log(0.5 / 0.2); the refusal has reached its half
      0.458

    Reference:
      Alfarra et al., "Distilling Safe LLM Systems via Soft Prompts for On Device Settings",
      arXiv 2606.09388, eq. 4.
    """
    log_q_y, log_q_r, a, mask = _check_outcomes(response_log_prob, refusal_log_prob, safe_prob, where)
    return outcome_total_variation(log_prob=log_q_y, weight=a, eps=eps, where=mask) + outcome_total_variation(
        log_prob=log_q_r, weight=1.0 - a, eps=eps, where=mask
    )


def sequence_total_variation_bound(
    *,
    response_log_prob: ArrayLike,
    refusal_log_prob: ArrayLike,
    safe_prob: ArrayLike,
    where: ArrayLike | None = None,
) -> Array:
    r"""Total variation bound to the guarded system, for one sampled answer.

    .. math:: 1 - \mathbb{E}_{r \sim p(r|x,y)} \min\!\big(q(r|x) / p(r|x,y), 1\big)
              = 1 - \min(q(y|x), a) - \min(q(y_r|x), 1 - a)

    since given y the system answers y with probability a and y_r otherwise. Its mean over answers
    y of the base model is at least TV(p(r|x), q(r|x)).

    Use it for reporting. It is hard to optimise: the probability of a long answer underflows, and its
    gradient with it; for training use `sequence_total_variation`.

    Args:
      response_log_prob: [...], log q(y|x), *summed* over positions: with averages it is no bound.
      refusal_log_prob: [...], log q(y_r|x), summed over positions.
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``. Where y is
        the refusal itself, pass 1: otherwise it is counted twice.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in [0, 1] as long as y and y_r differ or a is 1.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, or a host value of ``safe_prob`` leaves
        [0, 1].

    Example:
      >>> import math
      >>> bound = sequence_total_variation_bound(
      ...     response_log_prob=math.log(0.2), refusal_log_prob=math.log(0.6), safe_prob=0.5)
      >>> print(f"{bound:.3f}")
      0.300

    Reference:
      Alfarra et al., "Distilling Safe LLM Systems via Soft Prompts for On Device Settings",
      arXiv 2606.09388, eq. 3.
    """
    log_q_y, log_q_r, a, mask = _check_outcomes(response_log_prob, refusal_log_prob, safe_prob, where)
    overlap = jnp.minimum(jnp.exp(log_q_y), a) + jnp.minimum(jnp.exp(log_q_r), 1.0 - a)
    return jnp.where(mask, 1.0 - overlap, 0.0)


def sequence_kl(
    *,
    response_log_prob: ArrayLike,
    refusal_log_prob: ArrayLike,
    safe_prob: ArrayLike,
    where: ArrayLike | None = None,
) -> Array:
    r"""Forward KL from the guarded system's two outcomes to the student, for one sampled answer.

    .. math:: \mathrm{KL}(p(r|x,y) \| q(r|x)) = a (\log a - \log q(y|x))
              + (1 - a) (\log(1 - a) - \log q(y_r|x)),\qquad 0 \log 0 = 0

    By convexity its mean over answers y of the base model is at least KL(p(r|x) || q(r|x)). It is
    `sequence_total_variation` without the clip: its gradient does not stop at the target.

    Args:
      response_log_prob: [...], log q(y|x) of an answer y that was sampled from the *base* model.
      refusal_log_prob: [...], log q(y_r|x) of the refusal. Both summed over positions for the
        bound to hold; averaged, the value may be negative.
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``. Where y is
        the refusal itself, pass 1.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats. It is +inf where the student excludes (-inf) an outcome of positive weight;
      an outcome of weight 0 adds nothing.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, or a host value of ``safe_prob`` leaves
        [0, 1].

    Example:
      >>> import math
      >>> loss = sequence_kl(
      ...     response_log_prob=math.log(0.25), refusal_log_prob=math.log(0.25), safe_prob=0.5)
      >>> print(f"{loss:.3f}")
      0.693

    Reference:
      The convexity bound of eq. 1 and 2 of Alfarra et al., arXiv 2606.09388. They do not give the
      estimator of their KL objective; this one is ours.
    """
    log_q_y, log_q_r, a, mask = _check_outcomes(response_log_prob, refusal_log_prob, safe_prob, where)
    return outcome_kl(log_prob=log_q_y, weight=a, where=mask) + outcome_kl(log_prob=log_q_r, weight=1.0 - a, where=mask)


def _clamp(prob: Array, eps: float) -> Array:
    # Selecting instead of clipping: its gradient is exactly zero beyond the ends, and NaN stays.
    return jnp.where(prob < eps, eps, jnp.where(prob > 1.0 - eps, 1.0 - eps, prob))


def _check_outcome(log_prob: ArrayLike, weight: ArrayLike, where: ArrayLike | None) -> tuple[Array, Array, Array]:
    log_q, prob = check_floating(log_prob, "log_prob"), check_probability(weight, "weight")
    mask = check_where(where, check_same_shape(log_prob=log_q, weight=prob))
    dtype = compute_dtype(log_q, prob)
    return jnp.where(mask, log_q, 0.0).astype(dtype), jnp.where(mask, prob, 0.5).astype(dtype), mask


def _check_outcomes(
    response_log_prob: ArrayLike,
    refusal_log_prob: ArrayLike,
    safe_prob: ArrayLike,
    where: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Checks and casts; masked elements become values with finite gradients."""
    log_q_y = check_floating(response_log_prob, "response_log_prob")
    log_q_r = check_floating(refusal_log_prob, "refusal_log_prob")
    a = check_probability(safe_prob, "safe_prob")
    shape = check_same_shape(response_log_prob=log_q_y, refusal_log_prob=log_q_r, safe_prob=a)
    dtype = compute_dtype(log_q_y, log_q_r, a)
    mask = check_where(where, shape)
    return (
        jnp.where(mask, log_q_y, 0.0).astype(dtype),
        jnp.where(mask, log_q_r, 0.0).astype(dtype),
        jnp.where(mask, a, 0.5).astype(dtype),
        mask,
    )
