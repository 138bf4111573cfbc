r"""Distances between a student and its teacher, over tokens and over whole answers.

Throughout, p is the teacher, q the student, both over the last axis V; x is a prompt, y an answer
of the base model, y_r the fixed refusal, and a = p(s=1|x,y) the guard's probability that y is safe.

What holds for all of them:

- One value per element, no reduction over the batch: `edgesafe_jax.losses.masked_mean` reduces.
- Computed in float32 whatever the input is (float64 stays float64); gradients come back in the
  dtype of the input.
- ``where`` is a boolean mask over the *returned* elements, never over the vocabulary. A masked
  element gives exactly 0 with gradient exactly 0, whatever its inputs hold. Entries of the
  vocabulary that must not count get the logit -inf.
- Nothing is stopped: gradients flow to the teacher and to a as well. A frozen teacher is wrapped
  in ``jax.lax.stop_gradient`` by the caller, or simply not differentiated.
- A row whose logits are all -inf is no distribution: it gives NaN unless it is masked.

The divergences over logits carry their gradients in closed form, so that the backward pass is one
elementwise product and -inf logits cannot turn into NaN: with D = sum_v d_v(log p_v, log q_v),

.. math:: \partial D / \partial z^q = (g - q \textstyle\sum_v g_v) / \tau,\qquad
          g_v = \partial d_v / \partial \log q_v,

and the same with p for the teacher's logits, tau being the temperature. Forward and reverse mode
both work.
"""

import functools
import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from edgesafe_jax.losses._reduction import (
    Normalization,
    check_floating,
    check_normalization,
    check_probability,
    check_same_shape,
    check_where,
    compute_dtype,
)
from edgesafe_jax.typing import Array, ArrayLike

# (log p, log q) -> (d_v, its derivative by log q_v, its derivative by log p_v). A derivative may
# be off by a multiple of its own distribution: the softmax projects that part away.
_Terms: TypeAlias = Callable[[Array, Array], tuple[Array, Array, Array]]


class Divergence(Protocol):
    """What `gated_divergence` and `linear_divergence` need of a divergence over logits."""

    def __call__(
        self,
        *,
        student_logits: ArrayLike,
        teacher_logits: ArrayLike,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
    ) -> Array:
        """Maps logits [..., V] to values [...]."""
        ...


# --------------------------------------------------------------------------------------------------
# Divergences over the vocabulary
# --------------------------------------------------------------------------------------------------


def forward_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence from teacher to student, KL(p || q): covers all of the teacher.

    .. math:: \mathrm{KL}(p \| q) = \sum_v p_v (\log p_v - \log q_v),\qquad
              \partial / \partial z^q = (q - p) / \tau

    Args:
      student_logits: [..., V], unnormalised log-probabilities of q; -inf is allowed.
      teacher_logits: [..., V], unnormalised log-probabilities of p; -inf is allowed.
      temperature: Both logits are divided by it. The value is *not* multiplied by its square.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats. It is +inf where the student excludes (-inf) what the teacher holds possible;
      the gradient is finite there too. Rounding may put it a few 1e-7 below zero.

    Raises:
      ValueError: If shapes differ, a dtype is not floating point (``where``: not boolean), or
        ``temperature`` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])
      >>> print(f"{forward_kl(student_logits=student, teacher_logits=teacher):.3f}")
      0.693
    """
    return _token_divergence(_forward_kl_terms, student_logits, teacher_logits, temperature, where)


def reverse_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence from student to teacher, KL(q || p): stays within the teacher.

    .. math:: \mathrm{KL}(q \| p) = \sum_v q_v (\log q_v - \log p_v),\qquad
              \partial / \partial z^q = q (\log q - \log p - \mathrm{KL}) / \tau

    Args:
      student_logits: [..., V], unnormalised log-probabilities of q; -inf is allowed.
      teacher_logits: [..., V], unnormalised log-probabilities of p; -inf is allowed.
      temperature: Both logits are divided by it. The value is *not* multiplied by its square.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats. It is +inf where the teacher excludes (-inf) what the student holds possible;
      the gradient is then that of a teacher which gives such an entry the smallest normal
      probability of the dtype: finite, and it takes the mass away. Rounding may put the value
      a few 1e-7 below zero.

    Raises:
      ValueError: If shapes differ, a dtype is not floating point (``where``: not boolean), or
        ``temperature`` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> student, teacher = jnp.array([0.0, -jnp.inf]), jnp.log(jnp.array([0.25, 0.75]))
      >>> print(f"{reverse_kl(student_logits=student, teacher_logits=teacher):.3f}")
      1.386
    """
    return _token_divergence(_reverse_kl_terms, student_logits, teacher_logits, temperature, where)


def jensen_shannon(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    mixture: float = 0.5,
    where: ArrayLike | None = None,
) -> Array:
    r"""Generalised Jensen-Shannon divergence; ``mixture`` is the weight of the *teacher*.

    .. math:: \mathrm{JSD}_\beta(p \| q) = \beta\,\mathrm{KL}(p \| m)
              + (1 - \beta)\,\mathrm{KL}(q \| m),\qquad m = \beta p + (1 - \beta) q

    Near the ends it is a scaled KL: JSD / beta tends to KL(p || q) (`forward_kl`) as beta tends to
    0, and JSD / (1 - beta) to KL(q || p) (`reverse_kl`) as beta tends to 1. It is symmetric at 1/2
    and at most -beta log beta - (1 - beta) log(1 - beta), which is log 2 there: always finite.

    Args:
      student_logits: [..., V], unnormalised log-probabilities of q; -inf is allowed.
      teacher_logits: [..., V], unnormalised log-probabilities of p; -inf is allowed.
      temperature: Both logits are divided by it. The value is *not* multiplied by its square.
      mixture: beta, inside (0, 1).
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats.

    Raises:
      ValueError: If ``mixture`` is not inside (0, 1), shapes differ, a dtype is not floating point
        (``where``: not boolean), or ``temperature`` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> apart = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> print(f"{jensen_shannon(student_logits=apart[0], teacher_logits=apart[1]):.3f}")
      0.693

    Reference:
      Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, eq. 1.
    """
    if not 0.0 < mixture < 1.0:
        raise ValueError(
            f"mixture is {mixture}, expected a number inside (0, 1); at the ends the divergence is "
            "zero for all students: use forward_kl (towards 0) or reverse_kl (towards 1)."
        )
    terms = functools.partial(_jensen_shannon_terms, float(mixture))
    return _token_divergence(terms, student_logits, teacher_logits, temperature, where)


def skewed_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    skew: float = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Forward KL to a student that has been mixed with some of the teacher.

    .. math:: \mathrm{KL}(p \| (1 - \lambda) q + \lambda p)

    At most -log(lambda), with bounded gradients, where plain forward KL has no bound. ``skew=0``
    is `forward_kl`.

    Args:
      student_logits: [..., V], unnormalised log-probabilities of q; -inf is allowed.
      teacher_logits: [..., V], unnormalised log-probabilities of p; -inf is allowed.
      temperature: Both logits are divided by it. The value is *not* multiplied by its square.
      skew: lambda, in [0, 1): the share of the teacher in the mixture.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats.

    Raises:
      ValueError: If ``skew`` is not in [0, 1), shapes differ, a dtype is not floating point
        (``where``: not boolean), or ``temperature`` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> apart = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> print(f"{skewed_kl(student_logits=apart[0], teacher_logits=apart[1]):.3f}")
      2.303

    Reference:
      Ko et al., "DistiLLM", arXiv 2402.03898, section 3.1 (skew KLD).
    """
    if not 0.0 <= skew < 1.0:
        raise ValueError(f"skew is {skew}, expected a number in [0, 1); at 1 the student drops out of the loss.")
    if skew == 0.0:
        terms: _Terms = _forward_kl_terms
    else:
        terms = functools.partial(_skewed_kl_terms, float(skew))
    return _token_divergence(terms, student_logits, teacher_logits, temperature, where)


def total_variation(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Total variation distance: the mass by which two distributions differ.

    .. math:: \mathrm{TV}(p, q) = \tfrac12 \sum_v |p_v - q_v|,\qquad
              \partial / \partial z^q = q (s - \langle q, s \rangle) / \tau,\quad
              s = \tfrac12 \operatorname{sign}(q - p),\ \operatorname{sign}(0) = 0

    So TV^2 <= KL / 2 (Pinsker). Where student and teacher agree the gradient is exactly zero.
    Between two confident distributions that disagree it is nearly zero as well: start such a
    student with a KL, or mix.

    Args:
      student_logits: [..., V], unnormalised log-probabilities of q; -inf is allowed.
      teacher_logits: [..., V], unnormalised log-probabilities of p; -inf is allowed.
      temperature: Both logits are divided by it.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: If shapes differ, a dtype is not floating point (``where``: not boolean), or
        ``temperature`` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> student, teacher = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.6, 0.4]))
      >>> print(f"{total_variation(student_logits=student, teacher_logits=teacher):.3f}")
      0.300
    """
    return _token_divergence(_total_variation_terms, student_logits, teacher_logits, temperature, where)


# --------------------------------------------------------------------------------------------------
# Whole answers: two log-probabilities and the guard's verdict
# --------------------------------------------------------------------------------------------------


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

    The choice matters downstream. Summed over an answer of many tokens, log q is far below log a,
    so the clip of `sequence_total_variation` never binds and the loss is an a-weighted negative
    log-likelihood, dominated by the longer sequence. Averaged, it is a log-probability per token:
    the clip binds once that reaches log a, but what is bounded is no longer a distance of whole
    answers.

    Args:
      logits: [..., T, V], ``logits[..., t, :]`` predicts ``tokens[..., t]`` (already shifted).
      tokens: Integer [..., T], in [0, V) wherever ``where`` is True. Not checked: a value beyond V
        is given log-probability -inf.
      where: Boolean [..., T]; False leaves a position out, whatever its token is. None keeps all.
      normalization: ``"sum"``, or ``"mean"`` over the kept positions.

    Returns:
      [...], in nats. A sequence without any kept position gives 0 with gradient 0.

    Raises:
      ValueError: If shapes do not fit, a dtype is wrong, or ``normalization`` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, tokens = jnp.zeros((3, 4)), jnp.array([0, 3, 1])
      >>> log_prob = sequence_log_prob(logits=logits, tokens=tokens, normalization="mean")
      >>> print(f"{log_prob:.3f}")
      -1.386
    """
    logits = _check_logits(logits, "logits", positions=True)
    tokens = _check_tokens(tokens, "tokens")
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(
            f"tokens has shape {tokens.shape}, expected {logits.shape[:-1]}: one token for each "
            f"position of logits, which has shape {logits.shape}."
        )
    check_normalization(normalization)
    mask = check_where(where, tokens.shape)
    logits = jnp.where(mask[..., None], logits, 0.0).astype(compute_dtype(logits))
    # A comparison instead of a gather: its transpose is no scatter and fuses with the softmax.
    chosen = _is_token(tokens, logits.shape[-1])
    chosen_logit = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    chosen_logit = jnp.where(jnp.any(chosen, axis=-1), chosen_logit, -jnp.inf)
    log_prob = chosen_logit - jax.nn.logsumexp(logits, axis=-1)
    total = jnp.sum(jnp.where(mask, log_prob, 0.0), axis=-1)
    return total if normalization == "sum" else total / _num_kept(mask, total.dtype)


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

    Each of the two terms pulls until the student gives its outcome the probability that the
    guarded system gives it, and no further. With summed log-probabilities it is, up to ``eps``, at
    least `sequence_total_variation_bound` for each element; see `sequence_log_prob` for what
    normalising does.

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
      ValueError: If shapes differ, a dtype is wrong, a host value of ``safe_prob`` leaves [0, 1],
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
    if not 0.0 < eps < 0.5:
        raise ValueError(f"eps is {eps}, expected a number inside (0, 0.5).")
    log_q_y, log_q_r, a, mask = _check_outcomes(response_log_prob, refusal_log_prob, safe_prob, where)
    a = _clamp(a, eps)
    return jnp.where(mask, _shortfall(a, log_q_y) + _shortfall(1.0 - a, log_q_r), 0.0)


def _clamp(prob: Array, eps: float) -> Array:
    # Selecting instead of clipping: its gradient is exactly zero beyond the ends, and NaN stays.
    return jnp.where(prob < eps, eps, jnp.where(prob > 1.0 - eps, 1.0 - eps, prob))


def _shortfall(weight: Array, log_q: Array) -> Array:
    gap = log_q - jnp.log(weight)
    return -weight * jnp.where(gap >= 0.0, 0.0, gap)


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

    It is what to report. To optimise it is hard: the probability of a long answer underflows, and
    with it the gradient; `sequence_total_variation` is made for that.

    Args:
      response_log_prob: [...], log q(y|x), *summed* over positions: with averages it is no bound.
      refusal_log_prob: [...], log q(y_r|x), summed over positions.
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``. Where y is
        the refusal itself, pass 1: counted as two outcomes they would be counted twice.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in [0, 1] as long as y and y_r differ or a is 1.

    Raises:
      ValueError: If shapes differ, a dtype is wrong, or a host value of ``safe_prob`` leaves
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
    `sequence_total_variation` without the clip: it keeps pulling both ways.

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
      ValueError: If shapes differ, a dtype is wrong, or a host value of ``safe_prob`` leaves
        [0, 1].

    Example:
      >>> import math
      >>> loss = sequence_kl(
      ...     response_log_prob=math.log(0.25), refusal_log_prob=math.log(0.25), safe_prob=0.5)
      >>> print(f"{loss:.3f}")
      0.693

    Reference:
      The convexity bound of eq. 1 and 2 of Alfarra et al., arXiv 2606.09388. The estimator of
      their own KL objective is not published; this one is a choice of this project.
    """
    log_q_y, log_q_r, a, mask = _check_outcomes(response_log_prob, refusal_log_prob, safe_prob, where)
    return jnp.where(mask, _relative_entropy(a, log_q_y) + _relative_entropy(1.0 - a, log_q_r), 0.0)


def _relative_entropy(weight: Array, log_q: Array) -> Array:
    log_weight = jnp.log(jnp.where(weight == 0.0, 1.0, weight))
    return _weighted(weight, log_weight - log_q)


# --------------------------------------------------------------------------------------------------
# One outcome at a time
# --------------------------------------------------------------------------------------------------


def outcome_total_variation(
    *, log_prob: ArrayLike, weight: ArrayLike, eps: float = 1e-4, where: ArrayLike | None = None
) -> Array:
    r"""One outcome's part in `sequence_total_variation`.

    .. math:: \ell_o = -w_o \min(0, \log q(o|x) - \log w_o)

    Over the outcomes of a system (the answer with w = a and the refusal with w = 1 - a, or one per
    class of a guard with more than two) these add up to the log surrogate of equation 4. A batch
    whose rows are outcomes needs no forward pass for those of negligible weight.

    Args:
      log_prob: [...], log q(o|x).
      weight: [...], the system's probability of the outcome, in [0, 1].
      eps: The weight is clamped to [eps, 1 - eps].
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats, never negative.

    Raises:
      ValueError: As `sequence_total_variation`.

    Example:
      >>> import math
      >>> print(f"{outcome_total_variation(log_prob=math.log(0.2), weight=0.5):.3f}")
      0.458

    Reference:
      Alfarra et al., arXiv 2606.09388, eq. 4, one of its two terms.
    """
    if not 0.0 < eps < 0.5:
        raise ValueError(f"eps is {eps}, expected a number inside (0, 0.5).")
    log_q, _, prob, mask = _check_outcomes(log_prob, log_prob, weight, where)
    return jnp.where(mask, _shortfall(_clamp(prob, eps), log_q), 0.0)


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
      ValueError: As `sequence_kl`.

    Example:
      >>> import math
      >>> print(f"{outcome_kl(log_prob=math.log(0.25), weight=0.5):.3f}")
      0.347
    """
    log_q, _, prob, mask = _check_outcomes(log_prob, log_prob, weight, where)
    return jnp.where(mask, _relative_entropy(prob, log_q), 0.0)


# --------------------------------------------------------------------------------------------------
# The gated teacher, token by token
# --------------------------------------------------------------------------------------------------


def gated_divergence(
    divergence: Divergence,
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    refusal_logits: ArrayLike,
    refusal_tokens: ArrayLike,
    safe_prob: ArrayLike,
    temperature: float = 1.0,
    normalization: Normalization = "sum",
    where: ArrayLike | None = None,
    refusal_where: ArrayLike | None = None,
) -> Array:
    r"""Token-level divergence to the guarded system: base model with weight a, refusal otherwise.

    Teacher forcing along both outcomes. At the first position the two are not yet apart, so the
    teacher is their mixture; from the second on, the prefix tells which one it is:

    .. math:: D_1 &= D\big(a\,p_1 + (1 - a)\,\delta_{y_{r,1}},\; q_1\big) \\
              \ell &= a \Big[D_1 + \sum_{t \ge 2} D\big(p(\cdot|x,y_{<t}), q(\cdot|x,y_{<t})\big)
              \Big] + (1 - a) \Big[D_1 + \sum_{t \ge 2}
              D\big(\delta_{y_{r,t}}, q(\cdot|x,y_{r,<t})\big)\Big]

    For ``normalization="mean"`` each bracket is divided by its own number of positions, as
    `sequence_log_prob` does: the two outcomes then weigh a and 1 - a however long they are.

    What the sum is, in the mean over answers y of the base model, provided that a is the same for
    all answers to a prompt (a guard that judges prompts, or the mean of a over several answers):

    - for `forward_kl` the chain rule gives KL(p(r|x) || q(r|x)) exactly if the base model never
      starts with the refusal's first token, and an upper bound of it if it may;
    - for `total_variation` it is an upper bound of TV(p(r|x), q(r|x)), by telescoping;
    - for other divergences it is a loss of the same shape, without such a meaning.

    Where a depends on the answer, the true teacher at a position is the base model reweighted by
    the safety of what may follow; one sampled answer cannot give it, and this loss takes the base
    model's own distribution in its place: an approximation. `sequence_kl` needs no such step.

    Args:
      divergence: Callable with keywords ``student_logits, teacher_logits, temperature, where``:
        `forward_kl`, `total_variation`, `jensen_shannon`, `skewed_kl` or a ``functools.partial``
        of them. `reverse_kl` to a one-hot teacher is infinite.
      student_logits: [..., T, V], the student on y; position t predicts y_t.
      teacher_logits: [..., T, V], the base model on the same y.
      refusal_logits: [..., R, V], the student on y_r; position t predicts y_{r,t}. Its first
        position is the same distribution as ``student_logits[..., 0, :]``, which is used for both.
      refusal_tokens: Integer [R], or [..., R] for a refusal of its own per element.
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``.
      temperature: All logits are divided by it; the refusal's tokens stay certain.
      normalization: ``"sum"`` or ``"mean"``, see above.
      where: Boolean [..., T], the positions of y that count. An element whose first position is
        masked is padding: it gives 0 with gradient 0.
      refusal_where: Boolean [..., R] for refusals of different lengths. None keeps all positions.

    Returns:
      [...], in the units of ``divergence``.

    Raises:
      ValueError: If shapes do not fit, a dtype is wrong, ``temperature`` is not positive and
        finite, ``normalization`` is unknown, or a host value of ``safe_prob`` leaves [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> loss = gated_divergence(
      ...     total_variation,
      ...     student_logits=jnp.zeros((3, 4)), teacher_logits=jnp.zeros((3, 4)),
      ...     refusal_logits=jnp.zeros((2, 4)), refusal_tokens=jnp.array([1, 2]), safe_prob=0.5)
      >>> float(loss)  # 0.5 * 0.75 at the first position, 0.5 * 0.75 at the refusal's second
      0.75

    Reference:
      The teacher is eq. 1 and 2 of Alfarra et al., arXiv 2606.09388; the token-level losses are a
      choice of this project.
    """
    student_logits = _check_logits(student_logits, "student_logits", positions=True)
    teacher_logits = _check_logits(teacher_logits, "teacher_logits", positions=True)
    refusal_logits = _check_logits(refusal_logits, "refusal_logits", positions=True)
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    temperature = _check_temperature(temperature)
    check_normalization(normalization)
    *batch_shape, _, num_vocab = student_logits.shape
    shape = tuple(batch_shape)
    num_refusal = refusal_logits.shape[-2]
    if refusal_logits.shape != (*shape, num_refusal, num_vocab):
        raise ValueError(
            f"refusal_logits has shape {refusal_logits.shape}, expected [..., R, V] with the "
            f"leading axes and V of student_logits, which has shape {student_logits.shape}."
        )
    refusal_tokens = _check_tokens(refusal_tokens, "refusal_tokens")
    if refusal_tokens.shape not in ((num_refusal,), (*shape, num_refusal)):
        raise ValueError(
            f"refusal_tokens has shape {refusal_tokens.shape}, expected {(num_refusal,)} or "
            f"{(*shape, num_refusal)}: one token for each position of refusal_logits."
        )
    refusal_tokens = jnp.broadcast_to(refusal_tokens, (*shape, num_refusal))
    safe_prob = check_probability(safe_prob, "safe_prob")
    if safe_prob.shape != shape:
        raise ValueError(
            f"safe_prob has shape {safe_prob.shape}, expected {shape}: one for each answer of "
            f"student_logits, which has shape {student_logits.shape}."
        )
    dtype = compute_dtype(student_logits, teacher_logits, refusal_logits, safe_prob)
    mask = check_where(where, student_logits.shape[:-1])
    kept = mask[..., 0]
    refusal_mask = check_where(refusal_where, refusal_tokens.shape) & kept[..., None]
    a = jnp.where(kept, safe_prob, 0.5).astype(dtype)

    teacher_first = jnp.where(kept[..., None], teacher_logits[..., 0, :], 0.0)
    mixed = a[..., None] * jax.nn.softmax(teacher_first.astype(dtype) / temperature, axis=-1)
    mixed += jnp.where(_is_token(refusal_tokens[..., 0], num_vocab), 1.0 - a[..., None], 0.0)
    first = divergence(
        student_logits=student_logits[..., 0, :].astype(dtype) / temperature,
        teacher_logits=jnp.where(mixed == 0.0, -jnp.inf, jnp.log(jnp.where(mixed == 0, 1, mixed))),
        temperature=1.0,
        where=kept,
    )
    response = divergence(
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        temperature=temperature,
        where=_later(mask & kept[..., None]),
    )
    refusal = divergence(
        student_logits=refusal_logits,
        teacher_logits=jnp.where(_is_token(refusal_tokens, num_vocab), 0.0, -jnp.inf).astype(dtype),
        temperature=temperature,
        where=_later(refusal_mask),
    )
    response_path = first + jnp.sum(response, axis=-1)
    refusal_path = first + jnp.sum(refusal, axis=-1)
    if normalization == "mean":
        response_path /= _num_kept(mask, response_path.dtype)
        refusal_path /= _num_kept(refusal_mask, refusal_path.dtype)
    return _weighted(a, response_path) + _weighted(1.0 - a, refusal_path)


def gated_forward_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    refusal_logits: ArrayLike,
    refusal_tokens: ArrayLike,
    safe_prob: ArrayLike,
    temperature: float = 1.0,
    normalization: Normalization = "sum",
    where: ArrayLike | None = None,
    refusal_where: ArrayLike | None = None,
) -> Array:
    r"""Token-level forward KL from the guarded system to the student.

    `gated_divergence` with `forward_kl`: KL to the mixture at the first position, then KL to the
    base model on y with weight a, and -log q(y_{r,t} | x, y_{r,<t}) on the refusal with weight
    1 - a. In the mean over answers it is KL(p(r|x) || q(r|x)) under the conditions given there.

    Args:
      student_logits: [..., T, V], the student on y; position t predicts y_t.
      teacher_logits: [..., T, V], the base model on the same y.
      refusal_logits: [..., R, V], the student on the refusal; its first position is not used.
      refusal_tokens: Integer [R] or [..., R].
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``.
      temperature: All logits are divided by it; the refusal's tokens stay certain.
      normalization: ``"sum"``, or ``"mean"`` over the positions of each outcome.
      where: Boolean [..., T]; an element whose first position is masked gives 0.
      refusal_where: Boolean [..., R] for refusals of different lengths.

    Returns:
      [...], in nats.

    Raises:
      ValueError: As `gated_divergence`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = gated_forward_kl(
      ...     student_logits=jnp.zeros((3, 4)), teacher_logits=jnp.zeros((3, 4)),
      ...     refusal_logits=jnp.zeros((2, 4)), refusal_tokens=jnp.array([1, 2]), safe_prob=0.0)
      >>> print(f"{loss:.3f}")  # log 4 at each of the refusal's two positions
      2.773

    Reference:
      The teacher is eq. 1 and 2 of Alfarra et al., arXiv 2606.09388; the token-level loss is a
      choice of this project.
    """
    return gated_divergence(
        forward_kl,
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        refusal_logits=refusal_logits,
        refusal_tokens=refusal_tokens,
        safe_prob=safe_prob,
        temperature=temperature,
        normalization=normalization,
        where=where,
        refusal_where=refusal_where,
    )


def gated_total_variation(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    refusal_logits: ArrayLike,
    refusal_tokens: ArrayLike,
    safe_prob: ArrayLike,
    temperature: float = 1.0,
    normalization: Normalization = "sum",
    where: ArrayLike | None = None,
    refusal_where: ArrayLike | None = None,
) -> Array:
    r"""Token-level total variation between the guarded system and the student.

    `gated_divergence` with `total_variation`: distance to the mixture at the first position, then
    distance to the base model on y with weight a, and 1 - q(y_{r,t} | x, y_{r,<t}) on the refusal
    with weight 1 - a. In the mean over answers it is at least TV(p(r|x), q(r|x)) under the
    conditions given there.

    Args:
      student_logits: [..., T, V], the student on y; position t predicts y_t.
      teacher_logits: [..., T, V], the base model on the same y.
      refusal_logits: [..., R, V], the student on the refusal; its first position is not used.
      refusal_tokens: Integer [R] or [..., R].
      safe_prob: [...], a, in [0, 1]; checked for host values only, never under ``jit``.
      temperature: All logits are divided by it; the refusal's tokens stay certain.
      normalization: ``"sum"``, or ``"mean"`` over the positions of each outcome.
      where: Boolean [..., T]; an element whose first position is masked gives 0.
      refusal_where: Boolean [..., R] for refusals of different lengths.

    Returns:
      [...], in [0, number of positions], or in [0, 1] for ``"mean"``.

    Raises:
      ValueError: As `gated_divergence`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = gated_total_variation(
      ...     student_logits=jnp.zeros((3, 4)), teacher_logits=jnp.zeros((3, 4)),
      ...     refusal_logits=jnp.zeros((2, 4)), refusal_tokens=jnp.array([1, 2]), safe_prob=0.0)
      >>> float(loss)  # 0.75 at each of the refusal's two positions
      1.5

    Reference:
      The teacher is eq. 1 and 2 of Alfarra et al., arXiv 2606.09388; the token-level loss is a
      choice of this project.
    """
    return gated_divergence(
        total_variation,
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        refusal_logits=refusal_logits,
        refusal_tokens=refusal_tokens,
        safe_prob=safe_prob,
        temperature=temperature,
        normalization=normalization,
        where=where,
        refusal_where=refusal_where,
    )


# --------------------------------------------------------------------------------------------------
# The closed-form terms
# --------------------------------------------------------------------------------------------------


def _forward_kl_terms(log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    p = jnp.exp(log_p)
    weighted = p * (_finite(log_p) - _finite(log_q))
    return jnp.where((p > 0.0) & jnp.isneginf(log_q), jnp.inf, weighted), -p, weighted


def _reverse_kl_terms(log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    value, by_log_p, by_log_q = _forward_kl_terms(log_q, log_p)
    return value, by_log_q, by_log_p


def _jensen_shannon_terms(mixture: float, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    q_over_p = _finite(log_q) - _finite(log_p)
    m_over_p = jnp.logaddexp(math.log(mixture), math.log1p(-mixture) + q_over_p)
    from_p = -mixture * p * m_over_p
    from_q = (1.0 - mixture) * q * (q_over_p - m_over_p)
    return from_p + from_q, from_q, from_p


def _skewed_kl_terms(skew: float, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    p = jnp.exp(log_p)
    q_over_p = _finite(log_q) - _finite(log_p)
    m_over_p = jnp.logaddexp(math.log(skew), math.log1p(-skew) + q_over_p)
    value = -p * m_over_p
    by_log_q = -p * jnp.exp(math.log1p(-skew) + q_over_p - m_over_p)
    by_log_p = value - p * jnp.exp(math.log(skew) - m_over_p)
    return value, by_log_q, by_log_p


def _total_variation_terms(log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # By comparison, not by the sign of a difference: a compiler may fuse the latter into
    # something that is not exactly zero for equal inputs.
    half_sign = jnp.where(q > p, 0.5, jnp.where(q < p, -0.5, 0.0))
    return half_sign * (q - p), half_sign * q, -half_sign * p


def _finite(log_prob: Array) -> Array:
    """Puts the smallest normal probability where there is none; a weight of 0 removes it again."""
    floor = math.log(float(jnp.finfo(log_prob.dtype).tiny))
    return jnp.where(jnp.isneginf(log_prob), floor, log_prob)


def _log_softmax(logits: Array, temperature: float) -> Array:
    return jax.nn.log_softmax(logits if temperature == 1.0 else logits / temperature, axis=-1)


def _divergence_value(terms: _Terms, temperature: float, student_logits: Array, teacher_logits: Array) -> Array:
    log_p = _log_softmax(teacher_logits, temperature)
    log_q = _log_softmax(student_logits, temperature)
    return jnp.sum(terms(log_p, log_q)[0], axis=-1)


def _divergence_jvp(terms: _Terms, temperature: float, primals, tangents) -> tuple[Array, Array]:
    student_logits, teacher_logits = primals
    log_p = _log_softmax(teacher_logits, temperature)
    log_q = _log_softmax(student_logits, temperature)
    value, by_log_q, by_log_p = terms(log_p, log_q)
    out = jnp.sum(value, axis=-1)
    out_tangent = jnp.zeros_like(out)
    for tangent, log_prob, by_log in zip(tangents, (log_q, log_p), (by_log_q, by_log_p), strict=True):
        if isinstance(tangent, SymbolicZero):  # Not differentiated: nothing is computed for it.
            continue
        total = jnp.sum(by_log, axis=-1, keepdims=True)
        gradient = (by_log - jnp.exp(log_prob) * total) / temperature
        out_tangent += jnp.sum(gradient * tangent, axis=-1)
    return out, out_tangent


_divergence = jax.custom_jvp(_divergence_value, nondiff_argnums=(0, 1))
_divergence.defjvp(_divergence_jvp, symbolic_zeros=True)


def _token_divergence(
    terms: _Terms,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: float,
    where: ArrayLike | None,
) -> Array:
    student = _check_logits(student_logits, "student_logits")
    teacher = _check_logits(teacher_logits, "teacher_logits")
    if student.shape[:-1] == teacher.shape[:-1] and student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_logits has {student.shape[-1]} vocabulary entries but teacher_logits has "
            f"{teacher.shape[-1]}; expected the same: pad the smaller one with -inf."
        )
    check_same_shape(student_logits=student, teacher_logits=teacher)
    temperature = _check_temperature(temperature)
    dtype = compute_dtype(student, teacher)
    if where is None:
        return _divergence(terms, temperature, student.astype(dtype), teacher.astype(dtype))
    mask = check_where(where, student.shape[:-1])
    # Masking what goes in keeps whatever a masked row holds out of the gradients as well.
    student = jnp.where(mask[..., None], student, 0.0).astype(dtype)
    teacher = jnp.where(mask[..., None], teacher, 0.0).astype(dtype)
    return jnp.where(mask, _divergence(terms, temperature, student, teacher), 0.0)


# --------------------------------------------------------------------------------------------------
# Checks and small pieces
# --------------------------------------------------------------------------------------------------


def _check_logits(logits: ArrayLike, name: str, *, positions: bool = False) -> Array:
    array = check_floating(logits, name)
    axes = ("T", "V") if positions else ("V",)
    if array.ndim < len(axes) or 0 in array.shape[-len(axes) :]:
        raise ValueError(
            f"{name} has shape {array.shape}, expected [..., {', '.join(axes)}] with at least one "
            f"{' and one '.join('position' if axis == 'T' else 'token' for axis in axes)}."
        )
    return array


def _check_tokens(tokens: ArrayLike, name: str) -> Array:
    array = jnp.asarray(tokens)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {array.dtype}, expected integer token ids.")
    return array


def _check_temperature(temperature: float) -> float:
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected a positive, finite number.")
    return float(temperature)


def _check_outcomes(
    response_log_prob: ArrayLike,
    refusal_log_prob: ArrayLike,
    safe_prob: ArrayLike,
    where: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Checks, casts, and replaces what is masked by values that have finite gradients."""
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


def _weighted(weight: Array, value: Array) -> Array:
    """``weight * value`` with 0 * inf = 0."""
    return weight * jnp.where((weight == 0.0) & jnp.isinf(value), 0.0, value)


def _is_token(tokens: Array, num_vocab: int) -> Array:
    """One-hot rows as booleans, [...] -> [..., V]."""
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, (*tokens.shape, num_vocab), tokens.ndim)
    return tokens.astype(jnp.int32)[..., None] == vocabulary


def _later(mask: Array) -> Array:
    """The mask without its first position, [..., T]."""
    positions = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
    return mask & (positions > 0)


def _num_kept(mask: Array, dtype: jnp.dtype) -> Array:
    """How many positions a mask keeps, at least 1, [..., T] -> [...]."""
    return jnp.maximum(jnp.sum(mask, axis=-1, dtype=dtype), 1.0)
