r"""Divergences between next-token distributions of a student and its teacher.

Throughout the losses, p is the teacher and q the student, both over the last axis V.

Common to all losses:

- They return one value per element; `edgesafe_jax.losses.masked_mean` reduces over the batch.
- They compute in float32 whatever the input is (float64 stays float64); gradients have the dtype of
  the input.
- ``where`` is a boolean mask over the *returned* elements, never over the vocabulary. A masked
  element gives exactly 0 with gradient exactly 0, whatever its inputs hold. To exclude an entry of
  the vocabulary, set its logit to -inf.
- Gradients flow to the teacher as well. Wrap a frozen teacher in ``jax.lax.stop_gradient``, or do
  not differentiate by it.
- Temperatures and mixture weights may be scalar arrays, traced ones included: annealing them inside
  ``jit`` compiles nothing anew. The range of an array is not checked, and no gradient flows to it.
- A row whose logits are all -inf defines no distribution: it gives NaN unless it is masked.

The divergences have their gradients in closed form, so that the backward pass is one elementwise
product and -inf logits cannot turn into NaN: with D = sum_v d_v(log p_v, log q_v),

.. math:: \partial D / \partial z^q = (g - q \textstyle\sum_v g_v) / \tau,\qquad
          g_v = \partial d_v / \partial \log q_v,

and the same with p for the teacher's logits; tau is the temperature. Forward and reverse mode both
work.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses._checks import (
    check_logits,
    check_same_shape,
    check_scalar,
    check_temperature,
    check_where,
    compute_dtype,
)
from edgesafe_jax.typing import Array, ArrayLike

# (weight, log p, log q) -> (d_v, its derivative by log q_v, its derivative by log p_v), each derivative up to
# a multiple of its own distribution, which the softmax projects away.
_Terms: TypeAlias = Callable[["_Weight", Array, Array], tuple[Array, Array, Array]]


class _Weight(NamedTuple):
    """A mixture weight w and its logarithms."""

    value: Array
    rest: Array  # 1 - w
    log: Array
    log_rest: Array


class Divergence(Protocol):
    """A divergence over logits, as `gated_divergence` and `linear_divergence` take it."""

    def __call__(
        self,
        *,
        student_logits: ArrayLike,
        teacher_logits: ArrayLike,
        temperature: ArrayLike = 1.0,
        where: ArrayLike | None = None,
    ) -> Array:
        """Maps logits [..., V] to values [...]."""
        ...


def forward_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence from teacher to student, KL(p || q); mass-covering.

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
      ConfigError: If shapes differ, a dtype is not floating point (``where``: not boolean), or
        ``temperature`` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, -jnp.inf])
      >>> print(f"{forward_kl(student_logits=student, teacher_logits=teacher):.3f}")
      0.693
    """
    return _token_divergence(_forward_kl_terms, None, student_logits, teacher_logits, temperature, where)


def reverse_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence from student to teacher, KL(q || p); mode-seeking.

    .. math:: \mathrm{KL}(q \| p) = \sum_v q_v (\log q_v - \log p_v),\qquad
              \partial / \partial z^q = q (\log q - \log p - \mathrm{KL}) / \tau

    Args:
      student_logits: [..., V], those of q, as for `forward_kl`.
      teacher_logits: [..., V], those of p.
      temperature: Of both.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats. It is +inf where the teacher excludes (-inf) what the student holds possible;
      the gradient is then that of a teacher with the smallest normal probability of the dtype at
      such an entry: finite, and it lowers the student's logit. Rounding may put the value a few
      1e-7 below zero.

    Raises:
      ConfigError: As `forward_kl`.

    Example:
      >>> import jax.numpy as jnp
      >>> student, teacher = jnp.array([0.0, -jnp.inf]), jnp.log(jnp.array([0.25, 0.75]))
      >>> print(f"{reverse_kl(student_logits=student, teacher_logits=teacher):.3f}")
      1.386
    """
    return _token_divergence(_reversed(_forward_kl_terms), None, student_logits, teacher_logits, temperature, where)


def jensen_shannon(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    mixture: ArrayLike = 0.5,
    where: ArrayLike | None = None,
) -> Array:
    r"""Generalised Jensen-Shannon divergence; ``mixture`` is the weight of the *teacher*.

    .. math:: \mathrm{JSD}_\beta(p \| q) = \beta\,\mathrm{KL}(p \| m)
              + (1 - \beta)\,\mathrm{KL}(q \| m),\qquad m = \beta p + (1 - \beta) q

    Near the ends it is a scaled KL: JSD / beta tends to KL(p || q) (`forward_kl`) as beta tends to
    0, and JSD / (1 - beta) to KL(q || p) (`reverse_kl`) as beta tends to 1. It is symmetric at 1/2
    and at most -beta log beta - (1 - beta) log(1 - beta), which is log 2 there: always finite.

    Args:
      student_logits: [..., V], those of q, as for `forward_kl`.
      teacher_logits: [..., V], those of p.
      temperature: Of both.
      mixture: beta, inside (0, 1).
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats.

    Raises:
      ConfigError: If ``mixture`` is not inside (0, 1), or as `forward_kl`.

    Example:
      >>> import jax.numpy as jnp
      >>> apart = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> print(f"{jensen_shannon(student_logits=apart[0], teacher_logits=apart[1]):.3f}")
      0.693

    Reference:
      Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, eq. 1.
    """
    if isinstance(mixture, jax.Array):
        check_scalar(mixture, "mixture")
    elif not 0.0 < float(mixture) < 1.0:  # type: ignore[arg-type]
        raise ConfigError(
            f"mixture is {mixture}, expected a number inside (0, 1); at the ends the divergence is "
            "zero for all students: use forward_kl (towards 0) or reverse_kl (towards 1)."
        )
    return _token_divergence(_jensen_shannon_terms, mixture, student_logits, teacher_logits, temperature, where)


def skewed_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    skew: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Forward KL to a student that has been mixed with some of the teacher.

    .. math:: \mathrm{KL}(p \| (1 - \lambda) q + \lambda p)

    At most -log(lambda), with bounded gradients, where plain forward KL has no bound. ``skew=0``
    is `forward_kl`.

    Args:
      student_logits: [..., V], those of q, as for `forward_kl`.
      teacher_logits: [..., V], those of p.
      temperature: Of both.
      skew: lambda, in [0, 1), the weight of the teacher in the mixture.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats.

    Raises:
      ConfigError: If ``skew`` is not in [0, 1), or as `forward_kl`.

    Example:
      >>> import jax.numpy as jnp
      >>> apart = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> print(f"{skewed_kl(student_logits=apart[0], teacher_logits=apart[1]):.3f}")
      2.303

    Reference:
      Ko et al., "DistiLLM", arXiv 2402.03898, section 3.1 (skew KLD).
    """
    terms, weight = _skewed_terms(skew)
    return _token_divergence(terms, weight, student_logits, teacher_logits, temperature, where)


def skewed_reverse_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    skew: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Reverse KL to a teacher that has been mixed with some of the student.

    .. math:: \mathrm{KL}(q \| (1 - \lambda) p + \lambda q)

    At most -log(lambda), where plain reverse KL is infinite as soon as the teacher excludes a token: the one to use
    with a teacher that is certain of a refusal. ``skew=0`` is `reverse_kl`.

    Args:
      student_logits: [..., V], those of q, as for `forward_kl`.
      teacher_logits: [..., V], those of p.
      temperature: Of both.
      skew: lambda, in [0, 1), the weight of the student in the mixture.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats.

    Raises:
      ConfigError: As `skewed_kl`.

    Example:
      >>> import jax.numpy as jnp
      >>> apart = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
      >>> print(f"{skewed_reverse_kl(student_logits=apart[0], teacher_logits=apart[1]):.3f}")
      2.303

    Reference:
      Ko et al., "DistiLLM", arXiv 2402.03898, section 3.1 (skew RKLD).
    """
    terms, weight = _skewed_terms(skew)
    return _token_divergence(_reversed(terms), weight, student_logits, teacher_logits, temperature, where)


def total_variation(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Total variation distance: the mass by which two distributions differ.

    .. math:: \mathrm{TV}(p, q) = \tfrac12 \sum_v |p_v - q_v|,\qquad
              \partial / \partial z^q = q (s - \langle q, s \rangle) / \tau,\quad
              s = \tfrac12 \operatorname{sign}(q - p),\ \operatorname{sign}(0) = 0

    So TV^2 <= KL / 2 (Pinsker). Where student and teacher agree the gradient is exactly zero.
    Between two confident distributions that disagree it is nearly zero as well: begin training such a
    student with a KL, or add one.

    Args:
      student_logits: [..., V], those of q, as for `forward_kl`.
      teacher_logits: [..., V], those of p.
      temperature: Of both.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in [0, 1].

    Raises:
      ConfigError: As `forward_kl`.

    Example:
      >>> import jax.numpy as jnp
      >>> student, teacher = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.6, 0.4]))
      >>> print(f"{total_variation(student_logits=student, teacher_logits=teacher):.3f}")
      0.300
    """
    return _token_divergence(_total_variation_terms, None, student_logits, teacher_logits, temperature, where)


def temperature_of(divergence: Divergence) -> float | Array:
    """The temperature that a divergence has by itself: the default of its keyword, bound or not; 1 without one."""
    parameter = _parameters(divergence).get("temperature")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return 1.0
    return check_temperature(parameter.default)


def at_unit_temperature(divergence: Divergence) -> Callable[..., Array]:
    """A divergence whose logits have been divided by its temperature already."""
    if "temperature" not in _parameters(divergence):
        return divergence
    return functools.partial(divergence, temperature=1.0)


def _parameters(divergence: Divergence) -> Any:
    try:
        return inspect.signature(divergence).parameters
    except (TypeError, ValueError):  # a callable without a signature, such as a built-in
        return {}


# --------------------------------------------------------------------------------------------------
# The closed-form terms
# --------------------------------------------------------------------------------------------------


def _forward_kl_terms(weight: _Weight, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    del weight
    p = jnp.exp(log_p)
    weighted = p * (_finite(log_p) - _finite(log_q))
    return jnp.where((p > 0.0) & jnp.isneginf(log_q), jnp.inf, weighted), -p, weighted


def _reversed(terms: _Terms) -> _Terms:
    """The terms of a divergence with the two distributions in each other's place."""

    def swapped(weight: _Weight, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
        value, by_log_p, by_log_q = terms(weight, log_q, log_p)
        return value, by_log_q, by_log_p

    return swapped


def _skewed_terms(skew: ArrayLike) -> tuple[_Terms, ArrayLike | None]:
    if isinstance(skew, jax.Array):
        return _skewed_kl_terms, check_scalar(skew, "skew")
    if not 0.0 <= float(skew) < 1.0:  # type: ignore[arg-type]
        raise ConfigError(f"skew is {skew}, expected a number in [0, 1); at 1 the loss does not depend on the student.")
    return (_forward_kl_terms, None) if skew == 0.0 else (_skewed_kl_terms, skew)


def _jensen_shannon_terms(mixture: _Weight, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    q_over_p = _finite(log_q) - _finite(log_p)
    m_over_p = jnp.logaddexp(mixture.log, mixture.log_rest + q_over_p)
    from_p = -mixture.value * p * m_over_p
    from_q = mixture.rest * q * (q_over_p - m_over_p)
    return from_p + from_q, from_q, from_p


def _skewed_kl_terms(skew: _Weight, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    p = jnp.exp(log_p)
    q_over_p = _finite(log_q) - _finite(log_p)
    m_over_p = jnp.logaddexp(skew.log, skew.log_rest + q_over_p)
    value = -p * m_over_p
    by_log_q = -p * jnp.exp(skew.log_rest + q_over_p - m_over_p)
    by_log_p = value - p * jnp.exp(skew.log - m_over_p)
    return value, by_log_q, by_log_p


def _total_variation_terms(weight: _Weight, log_p: Array, log_q: Array) -> tuple[Array, Array, Array]:
    del weight
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # By comparison, not by the sign of a difference: a compiler may fuse the latter into
    # something that is not exactly zero for equal inputs.
    half_sign = jnp.where(q > p, 0.5, jnp.where(q < p, -0.5, 0.0))
    return half_sign * (q - p), half_sign * q, -half_sign * p


def _finite(log_prob: Array) -> Array:
    """Puts the smallest normal probability where there is none; a weight of 0 removes it again."""
    floor = math.log(float(jnp.finfo(log_prob.dtype).tiny))
    return jnp.where(jnp.isneginf(log_prob), floor, log_prob)


def scaled(logits: Array, temperature: ArrayLike) -> Array:
    """Logits divided by a temperature."""
    if isinstance(temperature, jax.Array):
        return logits / jax.lax.stop_gradient(temperature).astype(logits.dtype)
    return logits if temperature == 1.0 else logits / temperature


def _make_weight(value: ArrayLike | None, dtype: jnp.dtype) -> _Weight:
    """The weight in a dtype; from a number of the host the logarithms are computed there."""
    if isinstance(value, jax.Array):
        weight = jax.lax.stop_gradient(value).astype(dtype)
        return _Weight(weight, 1.0 - weight, jnp.log(weight), jnp.log1p(-weight))
    number = 0.5 if value is None else float(value)  # type: ignore[arg-type]
    parts = (number, 1.0 - number, math.log(number), math.log1p(-number))
    return _Weight(*(jnp.asarray(part, dtype) for part in parts))


def _divergence_value(terms: _Terms, weight: _Weight, student_logits: Array, teacher_logits: Array) -> Array:
    log_p = jax.nn.log_softmax(teacher_logits, axis=-1)
    log_q = jax.nn.log_softmax(student_logits, axis=-1)
    return jnp.sum(terms(weight, log_p, log_q)[0], axis=-1)


def _divergence_jvp(terms: _Terms, primals, tangents) -> tuple[Array, Array]:
    weight, student_logits, teacher_logits = primals
    log_p = jax.nn.log_softmax(teacher_logits, axis=-1)
    log_q = jax.nn.log_softmax(student_logits, axis=-1)
    value, by_log_q, by_log_p = terms(weight, log_p, log_q)
    out = jnp.sum(value, axis=-1)
    out_tangent = jnp.zeros_like(out)
    for tangent, log_prob, by_log in zip(tangents[1:], (log_q, log_p), (by_log_q, by_log_p), strict=True):
        if isinstance(tangent, SymbolicZero):  # Not differentiated: nothing is computed for it.
            continue
        total = jnp.sum(by_log, axis=-1, keepdims=True)
        out_tangent += jnp.sum((by_log - jnp.exp(log_prob) * total) * tangent, axis=-1)
    return out, out_tangent


_divergence = jax.custom_jvp(_divergence_value, nondiff_argnums=(0,))
_divergence.defjvp(_divergence_jvp, symbolic_zeros=True)


def _token_divergence(
    terms: _Terms,
    weight: ArrayLike | None,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike,
    where: ArrayLike | None,
) -> Array:
    student = check_logits(student_logits, "student_logits")
    teacher = check_logits(teacher_logits, "teacher_logits")
    if student.shape[:-1] == teacher.shape[:-1] and student.shape[-1] != teacher.shape[-1]:
        raise ConfigError(
            f"student_logits has {student.shape[-1]} vocabulary entries but teacher_logits has "
            f"{teacher.shape[-1]}; expected the same: pad the smaller one with -inf."
        )
    check_same_shape(student_logits=student, teacher_logits=teacher)
    tau = check_temperature(temperature)
    dtype = compute_dtype(student, teacher)
    mixed = _make_weight(weight, dtype)
    if where is None:
        return _divergence(terms, mixed, scaled(student.astype(dtype), tau), scaled(teacher.astype(dtype), tau))
    mask = check_where(where, student.shape[:-1])
    # Masking what goes in keeps whatever a masked row holds out of the gradients as well.
    student = jnp.where(mask[..., None], student, 0.0).astype(dtype)
    teacher = jnp.where(mask[..., None], teacher, 0.0).astype(dtype)
    return jnp.where(mask, _divergence(terms, mixed, scaled(student, tau), scaled(teacher, tau)), 0.0)
