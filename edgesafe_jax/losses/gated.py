r"""The gated teacher, token by token: the base model with a guard in front of its answers.

.. math:: p^\tau_{gated} = (1 - c)\,\mathrm{softmax}(z / \tau) + c\,\delta_k

z are the base model's logits and c is the probability that the system continues with the token k whatever
the base model says. A temperature tau softens the base model only: it is applied before mixing, and the
refusal stays certain. The student at that temperature is softmax(z^q / tau). `gated_divergence`,
`edgesafe_jax.losses.linear_divergence` and with it the token-level objective of `edgesafe_jax.safety` all
use this one definition, `gated_teacher`. The temperature is the keyword of the divergence, such as
``functools.partial(forward_kl, temperature=2.0)``.
"""

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses._checks import (
    check_logits,
    check_normalization,
    check_probability,
    check_same_shape,
    check_temperature,
    check_tokens,
    check_where,
    compute_dtype,
    is_token,
)
from edgesafe_jax.losses._reduction import Normalization, nan_where, num_kept, weighted
from edgesafe_jax.losses.divergences import Divergence, at_unit_temperature, scaled, temperature_of
from edgesafe_jax.typing import Array, ArrayLike


def gated_teacher(
    *, teacher_logits: ArrayLike, certain_prob: ArrayLike, certain_tokens: ArrayLike, temperature: ArrayLike = 1.0
) -> Array:
    r"""Log-probabilities of the gated teacher, the formula above.

    Args:
      teacher_logits: [..., V], the base model's; -inf is allowed.
      certain_prob: [...], c, in [0, 1].
      certain_tokens: Integer [...], k, in [0, V).
      temperature: tau, of the base model.

    Returns:
      [..., V], normalised. Under ``jit``, a row whose token is outside [0, V) is NaN.

    Raises:
      ConfigError: If shapes do not fit, a dtype is wrong, ``temperature`` is not positive and finite, or,
        outside ``jit``, a token is not in [0, V) or a probability not in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> log_probs = gated_teacher(
      ...     teacher_logits=jnp.log(jnp.array([0.75, 0.25])), certain_prob=0.5, certain_tokens=1)
      >>> print(*(f"{value:.3f}" for value in jnp.exp(log_probs)))
      0.375 0.625
    """
    logits = check_logits(teacher_logits, "teacher_logits")
    certain = check_probability(certain_prob, "certain_prob")
    if certain.shape != logits.shape[:-1]:
        raise ConfigError(f"certain_prob has shape {certain.shape}, expected {logits.shape[:-1]}, one per position.")
    tokens, outside = check_tokens(certain_tokens, "certain_tokens", certain.shape, num_vocab=logits.shape[-1])
    dtype = compute_dtype(logits, certain)
    log_p = jax.nn.log_softmax(scaled(logits.astype(dtype), check_temperature(temperature)), axis=-1)
    return _mix(log_p, nan_where(outside, certain.astype(dtype)), tokens)


@jax.custom_jvp
def _mix(log_p: Array, certain: Array, tokens: Array) -> Array:
    # In logarithms, so that a certain teacher has -inf everywhere else: log(1 - c) is -inf for c = 1.
    rest = log_p + jnp.log1p(-certain)[..., None]
    at = jnp.take_along_axis(rest, tokens[..., None], axis=-1)
    return jnp.where(is_token(tokens, log_p.shape[-1]), jnp.logaddexp(at, jnp.log(certain)[..., None]), rest)


@_mix.defjvp
def _mix_jvp(primals, tangents) -> tuple[Array, Array]:
    # m = (1 - c) p + c delta_k: d log m = ((1 - c) p d log p + (delta_k - p) dc) / m, and 0 where m is 0.
    log_p, certain, tokens = primals
    by_log_p, by_certain, _ = tangents
    out = _mix(log_p, certain, tokens)
    mixed, p = jnp.exp(out), jnp.exp(log_p)
    one_hot = is_token(tokens, p.shape[-1]).astype(p.dtype)
    slope = (1.0 - certain)[..., None] * p * by_log_p + (one_hot - p) * by_certain[..., None]
    positive = mixed >= jnp.finfo(mixed.dtype).tiny
    return out, jnp.where(positive, slope / jnp.where(positive, mixed, 1.0), 0.0)


def gated_divergence(
    divergence: Divergence,
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    refusal_logits: ArrayLike,
    refusal_tokens: ArrayLike,
    safe_prob: ArrayLike,
    temperature: ArrayLike | None = None,
    normalization: Normalization = "sum",
    where: ArrayLike | None = None,
    refusal_where: ArrayLike | None = None,
) -> Array:
    r"""Token-level divergence to the guarded system: base model with weight a, refusal otherwise.

    Teacher forcing along both outcomes. At the first position the teacher is the mixture of the two
    (`gated_teacher`); from the second on, the prefix determines the outcome:

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

    Where a depends on the answer, the exact teacher at a position is the base model reweighted by the
    safety of its continuations, which one sampled answer does not give. This loss uses the base model's
    distribution instead, which is an approximation; `sequence_kl` needs none.

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
      temperature: tau of the gated teacher and of the student; default that of ``divergence``, its keyword
        ``temperature``.
      normalization: ``"sum"`` or ``"mean"``, see above.
      where: Boolean [..., T], the positions of y that count. An element whose first position is
        masked is padding: it gives 0 with gradient 0.
      refusal_where: Boolean [..., R] for refusals of different lengths. None keeps all positions.

    Returns:
      [...], in the units of ``divergence``. Under ``jit``, an element that keeps a refusal token outside
      [0, V) gives NaN.

    Raises:
      ConfigError: If shapes do not fit, a dtype is wrong, ``temperature`` is not positive and finite or
        contradicts that of ``divergence``, ``normalization`` is unknown, a host value of ``safe_prob``
        leaves [0, 1], or, outside ``jit``, a kept token of the refusal is not in [0, V).

    Example:
      >>> import jax.numpy as jnp
      >>> from edgesafe_jax.losses import total_variation
      >>> loss = gated_divergence(
      ...     total_variation,
      ...     student_logits=jnp.zeros((3, 4)), teacher_logits=jnp.zeros((3, 4)),
      ...     refusal_logits=jnp.zeros((2, 4)), refusal_tokens=jnp.array([1, 2]), safe_prob=0.5)
      >>> float(loss)  # 0.5 * 0.75 at the first position, 0.5 * 0.75 at the refusal's second
      0.75

    Reference:
      The teacher is eq. 1 and 2 of Alfarra et al., arXiv 2606.09388; the token-level losses are ours.
    """
    temperature = _resolve_temperature(divergence, temperature)
    check_normalization(normalization)
    student_logits = check_logits(student_logits, "student_logits", positions=True)
    teacher_logits = check_logits(teacher_logits, "teacher_logits", positions=True)
    refusal_logits = check_logits(refusal_logits, "refusal_logits", positions=True)
    safe_prob = check_probability(safe_prob, "safe_prob")
    shape, num_vocab, num_refusal = _check_gated_shapes(student_logits, teacher_logits, refusal_logits, safe_prob)
    dtype = compute_dtype(student_logits, teacher_logits, refusal_logits, safe_prob)
    student, teacher, refusal = (
        scaled(logits.astype(dtype), temperature) for logits in (student_logits, teacher_logits, refusal_logits)
    )
    mask = check_where(where, student.shape[:-1])
    kept = mask[..., 0]
    refusal_mask = check_where(refusal_where, (*shape, num_refusal)) & kept[..., None]
    used = refusal_mask | (kept[..., None] & _is_first(refusal_mask))
    tokens, outside = _refusal_tokens(refusal_tokens, (*shape, num_refusal), num_vocab, used)
    a = jnp.where(kept, safe_prob, 0.5).astype(dtype)

    distance = at_unit_temperature(divergence)
    first = distance(
        student_logits=student[..., 0, :],
        teacher_logits=gated_teacher(
            teacher_logits=jnp.where(kept[..., None], teacher[..., 0, :], 0.0),
            certain_prob=1.0 - a,
            certain_tokens=tokens[..., 0],
        ),
        where=kept,
    )
    later = mask & kept[..., None] & ~_is_first(mask)
    response = distance(student_logits=student, teacher_logits=teacher, where=later)
    one_hot = jnp.where(is_token(tokens, num_vocab), 0.0, -jnp.inf).astype(dtype)
    later = refusal_mask & ~_is_first(refusal_mask)
    refused = distance(student_logits=refusal, teacher_logits=one_hot, where=later)
    response_path = first + jnp.sum(response, axis=-1)
    refusal_path = first + jnp.sum(refused, axis=-1)
    if normalization == "mean":
        response_path /= num_kept(mask, response_path.dtype)
        refusal_path /= num_kept(refusal_mask, refusal_path.dtype)
    total = weighted(a, response_path) + weighted(1.0 - a, refusal_path)
    return nan_where(jnp.any(outside, axis=-1), total)


def _resolve_temperature(divergence: Divergence, temperature: ArrayLike | None) -> float | Array:
    own = temperature_of(divergence)
    if temperature is None:
        return own
    traced = isinstance(own, jax.Array)
    if traced or (own != 1.0 and (isinstance(temperature, jax.Array) or own != temperature)):
        raise ConfigError(
            f"temperature={temperature}, but the divergence has temperature {own} already: expected one of the two."
        )
    return check_temperature(temperature)


def _check_gated_shapes(
    student: Array, teacher: Array, refusal: Array, safe_prob: Array
) -> tuple[tuple[int, ...], int, int]:
    """Checks shapes against each other; returns those of the batch, V and R."""
    check_same_shape(student_logits=student, teacher_logits=teacher)
    *batch, _, num_vocab = student.shape
    shape, num_refusal = tuple(batch), refusal.shape[-2]
    if refusal.shape != (*shape, num_refusal, num_vocab):
        raise ConfigError(
            f"refusal_logits has shape {refusal.shape}, expected [..., R, V] with the leading axes and V of "
            f"student_logits, which has shape {student.shape}."
        )
    if safe_prob.shape != shape:
        raise ConfigError(
            f"safe_prob has shape {safe_prob.shape}, expected {shape}: one for each answer of student_logits, which "
            f"has shape {student.shape}."
        )
    return shape, num_vocab, num_refusal


def _refusal_tokens(tokens: ArrayLike, shape: tuple[int, ...], num_vocab: int, used: Array) -> tuple[Array, Array]:
    """Checks the tokens of a refusal, one for all elements or one of each; see `check_tokens`."""
    given = np.shape(tokens)
    if given not in (shape[-1:], shape):
        raise ConfigError(
            f"refusal_tokens has shape {given}, expected {shape[-1:]} or {shape}: one token for each position of "
            "refusal_logits."
        )
    if given != shape:
        tokens = jnp.broadcast_to(tokens, shape) if isinstance(tokens, jax.Array) else np.broadcast_to(tokens, shape)
    return check_tokens(tokens, "refusal_tokens", shape, num_vocab=num_vocab, where=used)


def _is_first(mask: Array) -> Array:
    """Whether a position is the first, [..., T]."""
    return jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1) == 0
