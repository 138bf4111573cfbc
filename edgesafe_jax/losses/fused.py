r"""Divergences from final hidden states, without logits of shape [B, T, V] in memory.

A student that is an adapter on its own frozen teacher has the teacher's output head. The D numbers of
a hidden state then determine its V logits, and a loss can be computed in chunks of positions: the
logits of one chunk, its divergences, and their gradient by the hidden states, which is all that is
kept. Forward and backward pass together need three products with the head, the least possible:
student, teacher, gradient. The gradient is computed in the forward pass; the backward pass scales it
by the incoming cotangent.

The head is frozen and gradients flow to the student's hidden states alone, unless ``head_gradient`` asks for that of
the head's parameters too. It is a sum over all positions, weighed by the cotangents, and so the logits of each chunk
are computed once more in the backward pass.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses._checks import check_floating, check_integers, check_probability, check_tokens, check_where
from edgesafe_jax.losses._reduction import nan_where
from edgesafe_jax.losses.divergences import Divergence, at_unit_temperature, scaled, temperature_of
from edgesafe_jax.losses.gated import gated_teacher
from edgesafe_jax.typing import Array, ArrayLike, PyTree

Project: TypeAlias = Callable[[PyTree, Array], Array]
"""From the head's parameters and hidden states [..., D] to logits [..., V]."""


def linear_head(head: Array, hidden: Array) -> Array:
    """Logits [..., V] of hidden states [..., D] and a head [V, D], summed in float32."""
    return jnp.einsum("...d,vd->...v", hidden.astype(head.dtype), head, preferred_element_type=jnp.float32)


def linear_divergence(
    divergences: Divergence | Sequence[Divergence],
    *,
    student_hidden: ArrayLike,
    teacher_hidden: ArrayLike | tuple[ArrayLike, PyTree],
    head: PyTree,
    certain_prob: ArrayLike | None = None,
    certain_tokens: ArrayLike | None = None,
    project: Project = linear_head,
    where: ArrayLike | None = None,
    chunk_size: int = 256,
    head_gradient: bool = False,
) -> Any:
    r"""Divergences between two next-token distributions that are given by hidden states.

    The teacher may be the gated one of `edgesafe_jax.losses.gated`, which puts a probability c on one token:

    .. math:: D\big((1 - c)\,\mathrm{softmax}(W h^p / \tau) + c\,\delta_k,\; \mathrm{softmax}(W h^q / \tau)\big)

    With c = 1 the token is certain (the refusal of a guarded system), with 0 < c < 1 it is the mixture at the
    position where answer and refusal differ. tau is the temperature of D, its keyword ``temperature``.

    Args:
      divergences: A callable with keywords ``student_logits, teacher_logits``, from [..., V] to [...], or several,
        which share the logits: `forward_kl`, `total_variation` or a ``functools.partial`` of them, whose keywords may
        be traced scalars such as an annealed ``temperature``.
      student_hidden: [..., T, D].
      teacher_hidden: [..., T, D]; or a pair of these and of the teacher's own head, where the student's is trained and
        has left it. No gradient.
      head: Parameters for ``project``, by default a matrix [V, D]; no gradient unless ``head_gradient``.
      certain_prob: [..., T], c in [0, 1]; None for 0 everywhere.
      certain_tokens: Integer [..., T], k, in [0, V) wherever ``where`` is True; given exactly if ``certain_prob`` is.
      project: From ``(head, hidden)`` to logits; a module-level function or a partial of one.
      where: Boolean [..., T]; False gives 0 with gradient 0.
      chunk_size: Positions, counted over the whole batch, whose logits are in memory at once. The
        chunks run along T, so that a batch which is split over devices stays split.
      head_gradient: Whether gradients flow to ``head`` as well, through the student's logits.

    Returns:
      [..., T] float32; a tuple of them for several divergences. Under ``jit``, a position that keeps a certain token
      outside [0, V) is NaN.

    Raises:
      ConfigError: If shapes do not fit, a dtype is wrong, ``chunk_size`` is below 1, only one of ``certain_prob`` and
        ``certain_tokens`` is given, or, outside ``jit``, a kept certain token is not in [0, V).

    Example:
      >>> import jax.numpy as jnp
      >>> from edgesafe_jax.losses import total_variation
      >>> head = jnp.eye(4)
      >>> tv = linear_divergence(
      ...     total_variation, student_hidden=jnp.zeros((3, 4)), teacher_hidden=jnp.zeros((3, 4)),
      ...     head=head, certain_prob=jnp.array([0.0, 0.5, 1.0]), certain_tokens=jnp.zeros(3, int))
      >>> print(*(f"{value:.3f}" for value in tv))
      0.000 0.375 0.750
    """
    several, scalars = zip(*map(_split, (divergences,) if callable(divergences) else divergences), strict=True)
    own_head = None
    if isinstance(teacher_hidden, tuple):
        teacher_hidden, own_head = teacher_hidden
    elif head_gradient:
        own_head = head
    student, mask, num_vocab = _check(student_hidden, "student_hidden", where, chunk_size, project, head)
    teacher = check_floating(teacher_hidden, "teacher_hidden")
    if teacher.shape != student.shape:
        raise ConfigError(f"teacher_hidden has shape {teacher.shape}, expected {student.shape} as student_hidden.")
    if (certain_prob is None) != (certain_tokens is None):
        raise ConfigError("Give certain_prob and certain_tokens both, or neither.")
    given = [jnp.where(mask[..., None], teacher, 0.0)]
    if certain_prob is not None and certain_tokens is not None:
        certain = check_probability(certain_prob, "certain_prob")
        if certain.shape != mask.shape:
            raise ConfigError(f"certain_prob has shape {certain.shape}, expected {mask.shape}, one per position.")
        check_tokens(certain_tokens, "certain_tokens", mask.shape, num_vocab=num_vocab, where=where)
        tokens = jnp.where(mask, check_integers(certain_tokens, "certain_tokens"), 0)
        given += [jnp.where(mask, certain.astype(jnp.float32), 0.0), tokens]
    values = _chunked(
        functools.partial(_divergences, several, project),
        head if head_gradient else jax.lax.stop_gradient(head),
        jax.lax.stop_gradient((scalars, own_head)),
        student,
        jax.lax.stop_gradient(tuple(given)),
        chunk_size,
        head_gradient,
    )
    found = tuple(jnp.where(mask, value, 0.0) for value in values)
    return found[0] if callable(divergences) else found


def linear_log_prob(
    *,
    hidden: ArrayLike,
    tokens: ArrayLike,
    head: PyTree,
    project: Project = linear_head,
    where: ArrayLike | None = None,
    chunk_size: int = 256,
    head_gradient: bool = False,
) -> Array:
    r"""Log-probabilities of given tokens from hidden states: the chunked linear cross-entropy, negated.

    .. math:: \log \mathrm{softmax}(W h_t)_{y_t}

    Args:
      hidden: [..., T, D]; position t predicts y_t.
      tokens: Integer [..., T], y, in [0, V) wherever ``where`` is True.
      head: As in `linear_divergence`.
      project: As in `linear_divergence`.
      where: Boolean [..., T]; False gives 0 with gradient 0.
      chunk_size: As in `linear_divergence`.
      head_gradient: As in `linear_divergence`.

    Returns:
      [..., T] float32, in nats. Under ``jit``, a position that keeps a token outside [0, V) is NaN.

    Raises:
      ConfigError: As `linear_divergence`.

    Example:
      >>> import jax.numpy as jnp
      >>> value = linear_log_prob(hidden=jnp.zeros((1, 4)), tokens=jnp.array([2]), head=jnp.eye(4))
      >>> print(f"{value[0]:.3f}")
      -1.386
    """
    student, mask, num_vocab = _check(hidden, "hidden", where, chunk_size, project, head)
    ids, outside = check_tokens(tokens, "tokens", mask.shape, num_vocab=num_vocab, where=where)
    function = functools.partial(_log_probs, project)
    head = head if head_gradient else jax.lax.stop_gradient(head)
    (value,) = _chunked(function, head, (), student, (ids,), chunk_size, head_gradient)
    return nan_where(outside, jnp.where(mask, value, 0.0))


def _check(
    hidden: ArrayLike, name: str, where: ArrayLike | None, chunk_size: int, project: Project, head: PyTree
) -> tuple[Array, Array, int]:
    """Returns hidden states that are zero where they are masked, the mask, and V."""
    array = check_floating(hidden, name)
    if array.ndim < 2 or 0 in array.shape:
        raise ConfigError(f"{name} has shape {array.shape}, expected [..., T, D] with at least one position.")
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}, expected at least 1.")
    mask = check_where(where, array.shape[:-1])
    try:
        logits = jax.eval_shape(project, head, jax.ShapeDtypeStruct((1, 1, array.shape[-1]), array.dtype))
    except (TypeError, ValueError) as error:
        shapes = jax.tree.leaves(jax.tree.map(jnp.shape, head), is_leaf=lambda leaf: isinstance(leaf, tuple))
        shown = f"shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} arrays"
        raise ConfigError(
            f"The head ({shown}) gives no logits for {name} of width D={array.shape[-1]}; expected a matrix [V, D], or "
            f"parameters that project takes: {error}"
        ) from error
    return jnp.where(mask[..., None], array, 0.0), mask, logits.shape[-1]


def _split(divergence: Divergence) -> tuple[Divergence, dict[str, Array]]:
    """Separates a divergence from the arrays that are bound to its keywords: those are arguments of a program."""
    if not isinstance(divergence, functools.partial):
        return divergence, {}
    arrays = {name: value for name, value in divergence.keywords.items() if isinstance(value, jax.Array)}
    rest = {name: value for name, value in divergence.keywords.items() if name not in arrays}
    return functools.partial(divergence.func, *divergence.args, **rest), arrays


def _divergences(
    divergences: tuple[Divergence, ...],
    project: Project,
    head: PyTree,
    constants: tuple[tuple[dict[str, Array], ...], PyTree | None],
    hidden: Array,
    given: tuple[Array, ...],
) -> tuple[Array, ...]:
    scalars, own_head = constants
    logits, student = project(head if own_head is None else own_head, given[0]), project(head, hidden)
    teachers: dict[Any, Array] = {}
    values = []
    for unbound, arrays in zip(divergences, scalars, strict=True):
        divergence = functools.partial(unbound, **arrays) if arrays else unbound
        temperature = temperature_of(divergence)
        name = id(temperature) if isinstance(temperature, jax.Array) else temperature
        if name not in teachers:
            teachers[name] = (
                scaled(logits, temperature)
                if len(given) == 1
                else gated_teacher(
                    teacher_logits=logits, certain_prob=given[1], certain_tokens=given[2], temperature=temperature
                )
            )
        values.append(
            at_unit_temperature(divergence)(student_logits=scaled(student, temperature), teacher_logits=teachers[name])
        )
    return tuple(values)


def _log_probs(
    project: Project, head: PyTree, constants: tuple[()], hidden: Array, given: tuple[Array]
) -> tuple[Array]:
    del constants
    log_q = jax.nn.log_softmax(project(head, hidden), axis=-1)
    return (jnp.take_along_axis(log_q, given[0][..., None], axis=-1)[..., 0],)


# --------------------------------------------------------------------------------------------------
# Chunks along the positions
# --------------------------------------------------------------------------------------------------


def _chunked(
    function: Any,
    head: PyTree,
    constants: PyTree,
    hidden: Array,
    given: PyTree,
    chunk_size: int,
    head_gradient: bool,
) -> tuple[Array, ...]:
    """Applies ``function(head, constants, hidden, given)`` to chunks of positions.

    Without a gradient of the head one gradient of the hidden states is kept per value, with it nothing is.
    """
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

    scan = _scan_again if head_gradient else _scan
    values: tuple[Array, ...] = scan(function, head, constants, cut(hidden), jax.tree.map(cut, given))
    return tuple(
        jnp.moveaxis(value, 0, 1).reshape(rows, num_chunks * step)[:, :length].reshape(*batch, length)
        for value in values
    )


def _scan_again(function: Any, head: PyTree, constants: PyTree, hidden: Array, given: PyTree) -> tuple[Array, ...]:
    """The chunks with the gradient of the head; each is computed again in the backward pass."""
    return jax.lax.map(jax.checkpoint(lambda chunk: function(head, constants, *chunk)), (hidden, given))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(function: Any, head: PyTree, constants: PyTree, hidden: Array, given: PyTree) -> tuple[Array, ...]:
    return jax.lax.map(lambda chunk: function(head, constants, *chunk), (hidden, given))


def _scan_fwd(
    function: Any, head: PyTree, constants: PyTree, hidden: Array, given: PyTree
) -> tuple[tuple[Array, ...], tuple[tuple[Array, ...], PyTree, PyTree, PyTree]]:
    def one(chunk: tuple[Array, PyTree]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        values, pull = jax.vjp(lambda h: function(head, constants, h, chunk[1]), chunk[0])
        gradients = []
        for index in range(len(values)):
            unit = tuple(jnp.full_like(value, float(i == index)) for i, value in enumerate(values))
            gradients.append(pull(unit)[0])
        return values, tuple(gradients)

    values, gradients = jax.lax.map(one, (hidden, given))
    return values, (gradients, head, constants, given)


def _scan_bwd(
    function: Any, residuals: tuple[tuple[Array, ...], PyTree, PyTree, PyTree], cotangents: tuple[Array, ...]
) -> tuple[PyTree, PyTree, Array, PyTree]:
    del function
    gradients, *frozen = residuals
    total = sum(g * c.astype(g.dtype)[..., None] for g, c in zip(gradients, cotangents, strict=True))
    head, constants, given = jax.tree.map(_no_gradient, frozen)
    return head, constants, jnp.asarray(total), given


def _no_gradient(leaf: Array) -> Any:
    return jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.zeros(leaf.shape, jax.dtypes.float0)


_scan.defvjp(_scan_fwd, _scan_bwd)
