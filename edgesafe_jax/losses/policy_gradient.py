r"""Policy gradients on sampled answers: REINFORCE, the clipped surrogate of PPO, advantages and values.

An answer y of T tokens was drawn from a policy; token t is its action a_t, r_t is the reward behind it and V_t the
value before it. Rewards, advantages and baselines are constants of these losses: no gradient flows to them. For what
all losses have in common see `edgesafe_jax.losses.divergences`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses._checks import (
    check_arrays,
    check_floating,
    check_positive,
    check_probability,
    check_where,
    masked,
)
from edgesafe_jax.losses._reduction import masked_mean
from edgesafe_jax.typing import Array, ArrayLike


def reinforce(
    *, log_prob: ArrayLike, reward: ArrayLike, baseline: ArrayLike | None = None, where: ArrayLike | None = None
) -> Array:
    r"""The surrogate whose gradient is the score-function estimate of that of the expected reward, negated.

    .. math:: \ell = -(R - b) \log q(y|x),\qquad
              \mathbb{E}_{y \sim q} \nabla \ell = -\nabla\, \mathbb{E}_{y \sim q}[R]

    for answers that were drawn from q itself. Any baseline b that does not depend on y leaves the mean of the gradient
    as it is and changes its variance, see `leave_one_out`.

    Args:
      log_prob: [...], log q(y|x), summed over the tokens.
      reward: [...], R; no gradient.
      baseline: [...], b; None for 0. No gradient.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...]. The value itself has no meaning, only its gradient.

    Raises:
      ConfigError: If shapes differ or a dtype is wrong.

    Example:
      >>> print(f"{reinforce(log_prob=-2.0, reward=1.0, baseline=0.25):.3f}")
      1.500

    Reference:
      Williams, "Simple statistical gradient-following algorithms" (1992), theorem 1.
    """
    arrays = check_arrays(
        log_prob=log_prob, reward=reward, baseline=jnp.zeros_like(reward) if baseline is None else baseline
    )
    mask = check_where(where, arrays[0].shape)
    log_q, gain, base = masked(arrays, mask)
    return jnp.where(mask, -jax.lax.stop_gradient(gain - base) * log_q, 0.0)


def leave_one_out(*, reward: ArrayLike, where: ArrayLike | None = None) -> Array:
    r"""Baseline of each of N answers to one prompt: the mean reward of the others.

    .. math:: b_i = \frac{1}{N - 1} \sum_{j \ne i} R_j

    Args:
      reward: [..., N].
      where: Boolean [..., N]; False leaves an answer out.

    Returns:
      [..., N]; 0 where there are no others.

    Raises:
      ConfigError: If shapes differ or a dtype is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> print(leave_one_out(reward=jnp.array([1.0, 2.0, 6.0])))
      [4.  3.5 1.5]

    Reference:
      Kool, van Hoof, Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (2019); Ahmadian et al., "Back to
      Basics", arXiv 2402.14740 (RLOO).
    """
    gain = check_floating(reward, "reward")
    mask = check_where(where, gain.shape)
    (gain,) = masked([gain], mask)
    others = jnp.sum(mask, axis=-1, keepdims=True, dtype=gain.dtype) - mask.astype(gain.dtype)
    total = jnp.sum(gain, axis=-1, keepdims=True) - gain
    return jnp.where(mask & (others > 0), total / jnp.maximum(others, 1.0), 0.0)


def ppo_clip(
    *,
    log_prob: ArrayLike,
    old_log_prob: ArrayLike,
    advantage: ArrayLike,
    clip: ArrayLike = 0.2,
    where: ArrayLike | None = None,
) -> Array:
    r"""The clipped surrogate of proximal policy optimisation, negated.

    .. math:: \rho = \frac{q(a|s)}{q_{old}(a|s)},\qquad
              \ell = -\min\big(\rho A,\ \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A\big)

    Where the ratio has left the interval in the direction that the advantage asks for, the gradient is 0.

    Args:
      log_prob: [...], log q(a|s), of the policy that is trained.
      old_log_prob: [...], of the policy that sampled; no gradient.
      advantage: [...], A; no gradient.
      clip: Scalar, epsilon, above 0. May be traced.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...].

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, or ``clip`` is not positive.

    Example:
      >>> import math
      >>> print(f"{ppo_clip(log_prob=math.log(0.6), old_log_prob=math.log(0.4), advantage=1.0):.3f}")
      -1.200

    Reference:
      Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7.
    """
    arrays = check_arrays(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    mask = check_where(where, arrays[0].shape)
    log_q, old, gain = masked(arrays, mask)
    old, gain = jax.lax.stop_gradient((old, gain))
    width = check_positive(clip, "clip", log_q.dtype)
    ratio = jnp.exp(log_q - old)
    # By selection, so that a ratio that is clipped has a gradient of exactly 0 and a tie the unclipped one.
    clipped = (gain > 0) & (ratio > 1.0 + width) | (gain < 0) & (ratio < 1.0 - width)
    bound = jnp.where(gain > 0, 1.0 + width, 1.0 - width)
    return jnp.where(mask, -gain * jnp.where(clipped, bound, ratio), 0.0)


def value_loss(
    *,
    value: ArrayLike,
    target: ArrayLike,
    old_value: ArrayLike | None = None,
    clip: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Array:
    r"""Squared error of a value, on request with the clip that keeps it near the one that it was before.

    .. math:: \ell = \tfrac12 \max\Big((V - G)^2,\
              \big(V_{old} + \mathrm{clip}(V - V_{old}, \pm\epsilon) - G\big)^2\Big)

    Args:
      value: [...], V.
      target: [...], G; no gradient.
      old_value: [...], given exactly if ``clip`` is; no gradient.
      clip: Scalar, epsilon, above 0; None for the plain squared error. May be traced.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], never negative.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, ``clip`` is not positive, or only one of ``clip`` and
        ``old_value`` is given.

    Example:
      >>> print(f"{value_loss(value=2.0, target=1.0):.3f}")
      0.500

    Reference:
      Schulman et al., arXiv 1707.06347, eq. 9; the clip as in the authors' published implementation (Engstrom et al.,
      arXiv 2005.12729, section 3).
    """
    if (clip is None) != (old_value is None):
        raise ConfigError("Give clip and old_value both, or neither.")
    arrays = check_arrays(value=value, target=target, old_value=value if old_value is None else old_value)
    mask = check_where(where, arrays[0].shape)
    estimate, goal, old = masked(arrays, mask)
    goal, old = jax.lax.stop_gradient((goal, old))
    error = (estimate - goal) ** 2
    if clip is not None:
        width = check_positive(clip, "clip", estimate.dtype)
        error = jnp.maximum(error, (old + jnp.clip(estimate - old, -width, width) - goal) ** 2)
    return jnp.where(mask, 0.5 * error, 0.0)


def gae(
    *,
    reward: ArrayLike,
    value: ArrayLike,
    discount: ArrayLike = 1.0,
    decay: ArrayLike = 0.95,
    where: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""Generalised advantage estimates of answers that end, and the returns that values are fitted to.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t,\qquad A_t = \delta_t + \gamma \lambda A_{t+1},\qquad
              G_t = A_t + V_t

    with V and A of 0 behind the last token. With lambda of 1 and gamma of 1, A_t is the sum of the rewards from t on
    less V_t; with lambda of 0 it is delta_t.

    Args:
      reward: [..., T].
      value: [..., T], V before each token; no gradient.
      discount: Scalar, gamma, in [0, 1]. May be traced.
      decay: Scalar, lambda, in [0, 1]. May be traced.
      where: Boolean [..., T]; the kept positions of an answer are its first ones. False gives 0.

    Returns:
      Advantages [..., T] and returns [..., T]; neither has a gradient.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, or a host value of ``discount`` or ``decay`` leaves [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> advantage, target = gae(reward=jnp.array([0.0, 1.0]), value=jnp.array([0.5, 0.5]), decay=1.0)
      >>> print(advantage, target)
      [0.5 0.5] [1. 1.]

    Reference:
      Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv 1506.02438,
      eq. 16.
    """
    arrays = check_arrays(reward=reward, value=value)
    mask = check_where(where, arrays[0].shape)
    gain, estimate = jax.lax.stop_gradient(masked(arrays, mask))
    gamma = check_probability(discount, "discount").astype(gain.dtype)
    factor = gamma * check_probability(decay, "decay").astype(gain.dtype)
    after = jnp.concatenate([estimate[..., 1:], jnp.zeros_like(estimate[..., :1])], axis=-1)
    delta = jnp.where(mask, gain + gamma * after - estimate, 0.0)

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        # x -> a x + b, the later step applied first.
        return earlier[0] * later[0], earlier[0] * later[1] + earlier[1]

    factors = jnp.broadcast_to(factor, delta.shape)
    advantage = jax.lax.associative_scan(compose, (factors, delta), axis=delta.ndim - 1, reverse=True)[1]
    return jax.lax.stop_gradient((jnp.where(mask, advantage, 0.0), jnp.where(mask, advantage + estimate, 0.0)))


KLEstimator = Literal["k1", "k3"]


def kl_penalty(
    *,
    log_prob: ArrayLike,
    reference_log_prob: ArrayLike,
    estimator: KLEstimator = "k1",
    where: ArrayLike | None = None,
) -> Array:
    r"""Estimates KL(q || p) at a token that was drawn from q, from its two log-probabilities.

    .. math:: k_1 = \log\frac{q}{p},\qquad k_3 = \frac{p}{q} - 1 - \log\frac{p}{q}

    Both have the divergence as their mean under q; k3 is never negative and varies less near p = q.

    Args:
      log_prob: [...], log q(a|s).
      reference_log_prob: [...], log p(a|s).
      estimator: ``"k1"`` or ``"k3"``.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats.

    Raises:
      ConfigError: If shapes differ, a dtype is wrong, or the estimator is unknown.

    Example:
      >>> print(f"{kl_penalty(log_prob=-1.0, reference_log_prob=-1.5):.3f}")
      0.500

    Reference:
      Schulman, "Approximating KL divergence" (2020).
    """
    if estimator not in ("k1", "k3"):
        raise ConfigError(f'estimator is {estimator!r}, expected "k1" or "k3".')
    arrays = check_arrays(log_prob=log_prob, reference_log_prob=reference_log_prob)
    mask = check_where(where, arrays[0].shape)
    log_q, log_p = masked(arrays, mask)
    gap = log_q - log_p
    return jnp.where(mask, gap if estimator == "k1" else jnp.expm1(-gap) + gap, 0.0)


def whiten(values: ArrayLike, *, eps: float = 1e-8, where: ArrayLike | None = None) -> Array:
    r"""Shifts and scales kept values to mean 0 and variance 1.

    .. math:: \hat v = \frac{v - \bar v}{\sqrt{\overline{(v - \bar v)^2} + \epsilon}}

    Args:
      values: Any shape; no gradient.
      eps: Added to the variance.
      where: Boolean, shape of ``values``; False leaves a value out and gives 0.

    Returns:
      Shape of ``values``.

    Raises:
      ConfigError: If a dtype is wrong or the mask has another shape.

    Example:
      >>> import jax.numpy as jnp
      >>> print(whiten(jnp.array([1.0, 3.0])))
      [-1.  1.]
    """
    array = check_floating(values, "values")
    mask = check_where(where, array.shape)
    (array,) = jax.lax.stop_gradient(masked([array], mask))
    centred = array - masked_mean(array, where=mask)
    return jnp.where(mask, centred * jax.lax.rsqrt(masked_mean(centred * centred, where=mask) + eps), 0.0)
