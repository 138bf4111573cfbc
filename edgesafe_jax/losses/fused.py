r"""Divergences from final hidden states, without logits of shape [B, T, V] in memory.

A student that is an adapter on its own frozen teacher has the teacher's output head. So D numbers of
a hidden state stand for V logits exactly, and a loss can run over the positions in chunks: logits of
one chunk, its divergences, their gradient back through the head, and only the D numbers are kept.
Forward and backward together take three products with the head, the fewest there can be: student,
teacher, gradient. The gradient is formed in the forward pass; the backward pass multiplies it by
what arrives.

The head is frozen: gradients flow to the student's hidden states alone.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from edgesafe_jax.losses._reduction import check_floating, check_where
from edgesafe_jax.losses.distillation import Divergence
from edgesafe_jax.typing import Array, ArrayLike, PyTree

Project: TypeAlias = Callable[[PyTree, Array], Array]
"""From the head's parameters and hidden states [..., D] to logits [..., V]."""


def linear_head(head: Array, hidden: Array) -> Array:
    """Logits [..., V] of hidden states [..., D] and a head [V, D], summed in float32."""
    return jnp.einsum("...d,vd->...v", hidden.astype(head.dtype), head, preferred_element_type=jnp.float32)


def linear_divergence(
    divergences: tuple[Divergence, ...],
    *,
    student_hidden: ArrayLike,
    teacher_hidden: ArrayLike,
    head: PyTree,
    certain_prob: ArrayLike | None = None,
    certain_tokens: ArrayLike | None = None,
    project: Project = linear_head,
    where: ArrayLike | None = None,
    chunk_size: int = 256,
) -> tuple[Array, ...]:
    r"""Divergences between two next-token distributions that are given by hidden states.

    The teacher may put a part c of its probability on one token, whatever its hidden state says:

    .. math:: D\big((1 - c)\,\mathrm{softmax}(W h^p) + c\,\delta_k,\; \mathrm{softmax}(W h^q)\big)

    With c = 1 it is certain (the refusal of a guarded system), with 0 < c < 1 it is the mixture at the
    position where answer and refusal part.

    Args:
      divergences: Callables with keywords ``student_logits, teacher_logits``, from [..., V] to [...]:
        `forward_kl`, `total_variation` or a ``functools.partial`` of them. Several share the logits.
      student_hidden: [..., T, D].
      teacher_hidden: [..., T, D]; no gradient.
      head: Parameters for ``project``, by default a matrix [V, D]; no gradient.
      certain_prob: [..., T], c in [0, 1]; None for 0 everywhere.
      certain_tokens: Integer [..., T], k; given exactly if ``certain_prob`` is.
      project: From ``(head, hidden)`` to logits; a module-level function or a partial of one.
      where: Boolean [..., T]; False gives 0 with gradient 0.
      chunk_size: Positions, counted over the whole batch, whose logits are in memory at once. The
        chunks run along T, so that a batch which is split over devices stays split.

    Returns:
      One [..., T] float32 array per divergence.

    Raises:
      ValueError: If shapes do not fit, a dtype is wrong, ``chunk_size`` is below 1, or only one of
        ``certain_prob`` and ``certain_tokens`` is given.

    Example:
      >>> import jax.numpy as jnp
      >>> from edgesafe_jax.losses import total_variation
      >>> head = jnp.eye(4)
      >>> (tv,) = linear_divergence(
      ...     (total_variation,), student_hidden=jnp.zeros((3, 4)), teacher_hidden=jnp.zeros((3, 4)),
      ...     head=head, certain_prob=jnp.array([0.0, 0.5, 1.0]), certain_tokens=jnp.zeros(3, int))
      >>> print(*(f"{value:.3f}" for value in tv))
      0.000 0.375 0.750
    """
    student, mask = _check(student_hidden, "student_hidden", where, chunk_size)
    teacher = check_floating(teacher_hidden, "teacher_hidden")
    if teacher.shape != student.shape:
        raise ValueError(f"teacher_hidden has shape {teacher.shape}, expected {student.shape} as student_hidden.")
    if (certain_prob is None) != (certain_tokens is None):
        raise ValueError("Give certain_prob and certain_tokens both, or neither.")
    given = [jnp.where(mask[..., None], teacher, 0.0)]
    if certain_prob is not None and certain_tokens is not None:
        for name, value in (("certain_prob", certain_prob), ("certain_tokens", certain_tokens)):
            if jnp.shape(value) != mask.shape:
                raise ValueError(f"{name} has shape {jnp.shape(value)}, expected {mask.shape}, one per position.")
        tokens = jnp.asarray(certain_tokens)
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"certain_tokens has dtype {tokens.dtype}, expected integer token ids.")
        given += [jnp.where(mask, jnp.asarray(certain_prob, jnp.float32), 0.0), tokens]
    values = _chunked(
        functools.partial(_divergences, divergences, project),
        jax.lax.stop_gradient(head),
        student,
        jax.lax.stop_gradient(tuple(given)),
        chunk_size,
    )
    return tuple(jnp.where(mask, value, 0.0) for value in values)


def linear_log_prob(
    *,
    hidden: ArrayLike,
    tokens: ArrayLike,
    head: PyTree,
    project: Project = linear_head,
    where: ArrayLike | None = None,
    chunk_size: int = 256,
) -> Array:
    r"""Log-probabilities of given tokens from hidden states: the chunked linear cross-entropy, negated.

    .. math:: \log \mathrm{softmax}(W h_t)_{y_t}

    Args:
      hidden: [..., T, D]; position t predicts y_t.
      tokens: Integer [..., T], y.
      head: As in `linear_divergence`; no gradient.
      project: As in `linear_divergence`.
      where: Boolean [..., T]; False gives 0 with gradient 0.
      chunk_size: As in `linear_divergence`.

    Returns:
      [..., T] float32, in nats.

    Raises:
      ValueError: As `linear_divergence`.

    Example:
      >>> import jax.numpy as jnp
      >>> value = linear_log_prob(hidden=jnp.zeros((1, 4)), tokens=jnp.array([2]), head=jnp.eye(4))
      >>> print(f"{value[0]:.3f}")
      -1.386
    """
    student, mask = _check(hidden, "hidden", where, chunk_size)
    ids = jnp.asarray(tokens)
    if ids.shape != mask.shape or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"tokens is {ids.dtype}{list(ids.shape)}, expected integers of shape {list(mask.shape)}.")
    function = functools.partial(_log_probs, project)
    (value,) = _chunked(function, jax.lax.stop_gradient(head), student, (ids,), chunk_size)
    return jnp.where(mask, value, 0.0)


def _check(hidden: ArrayLike, name: str, where: ArrayLike | None, chunk_size: int) -> tuple[Array, Array]:
    """Hands back hidden states that are zero where they are masked, and the mask."""
    array = check_floating(hidden, name)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}, expected [..., T, D] with at least one position.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected at least 1.")
    mask = check_where(where, array.shape[:-1])
    return jnp.where(mask[..., None], array, 0.0), mask


def _divergences(
    divergences: tuple[Divergence, ...], project: Project, head: PyTree, hidden: Array, given: tuple[Array, ...]
) -> tuple[Array, ...]:
    teacher = project(head, given[0])
    if len(given) > 1:
        certain, tokens = given[1:]
        # In logarithms, so that a certain teacher has -inf everywhere else: log(1 - c) is -inf for c = 1.
        teacher = jax.nn.log_softmax(teacher, axis=-1) + jnp.log1p(-certain)[..., None]
        at = jnp.take_along_axis(teacher, tokens[..., None], axis=-1)
        there = jax.lax.broadcasted_iota(tokens.dtype, teacher.shape, teacher.ndim - 1) == tokens[..., None]
        teacher = jnp.where(there, jnp.logaddexp(at, jnp.log(certain)[..., None]), teacher)
    student = project(head, hidden)
    return tuple(divergence(student_logits=student, teacher_logits=teacher) for divergence in divergences)


def _log_probs(project: Project, head: PyTree, hidden: Array, given: tuple[Array]) -> tuple[Array]:
    log_q = jax.nn.log_softmax(project(head, hidden), axis=-1)
    return (jnp.take_along_axis(log_q, given[0][..., None], axis=-1)[..., 0],)


# --------------------------------------------------------------------------------------------------
# Chunks along the positions
# --------------------------------------------------------------------------------------------------


def _chunked(function: Any, head: PyTree, hidden: Array, given: PyTree, chunk_size: int) -> tuple[Array, ...]:
    """Applies ``function(head, hidden, given)`` to chunks of positions; one gradient is kept per value."""
    *batch, length, _ = hidden.shape
    rows = 1
    for size in batch:
        rows *= size
    step = min(length, max(1, chunk_size // rows))
    num_chunks = -(-length // step)

    def cut(array: Array) -> Array:
        array = array.reshape(rows, length, *array.shape[len(batch) + 1 :])
        pad = [(0, 0), (0, num_chunks * step - length)] + [(0, 0)] * (array.ndim - 2)
        array = jnp.pad(array, pad).reshape(rows, num_chunks, step, *array.shape[2:])
        return jnp.moveaxis(array, 1, 0)

    values: tuple[Array, ...] = _scan(function, head, cut(hidden), jax.tree.map(cut, given))
    return tuple(
        jnp.moveaxis(value, 0, 1).reshape(rows, num_chunks * step)[:, :length].reshape(*batch, length)
        for value in values
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(function: Any, head: PyTree, hidden: Array, given: PyTree) -> tuple[Array, ...]:
    return jax.lax.map(lambda chunk: function(head, *chunk), (hidden, given))


def _scan_fwd(
    function: Any, head: PyTree, hidden: Array, given: PyTree
) -> tuple[tuple[Array, ...], tuple[tuple[Array, ...], PyTree, PyTree]]:
    def one(chunk: tuple[Array, PyTree]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        values, pull = jax.vjp(lambda h: function(head, h, chunk[1]), chunk[0])
        gradients = []
        for index in range(len(values)):
            unit = tuple(jnp.full_like(value, float(i == index)) for i, value in enumerate(values))
            gradients.append(pull(unit)[0])
        return values, tuple(gradients)

    values, gradients = jax.lax.map(one, (hidden, given))
    return values, (gradients, head, given)


def _scan_bwd(
    function: Any, residuals: tuple[tuple[Array, ...], PyTree, PyTree], cotangents: tuple[Array, ...]
) -> tuple[PyTree, Array, PyTree]:
    del function
    gradients, head, given = residuals
    total = sum(g * c.astype(g.dtype)[..., None] for g, c in zip(gradients, cotangents, strict=True))
    return jax.tree.map(_no_gradient, head), jnp.asarray(total), jax.tree.map(_no_gradient, given)


def _no_gradient(leaf: Array) -> Any:
    return jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.zeros(leaf.shape, jax.dtypes.float0)


_scan.defvjp(_scan_fwd, _scan_bwd)
