r"""Consistency losses: cross-entropy of the members of a set from a common target, and an anchor to the first verdicts.

A set holds an answer and its paraphrases; z are the guard's log-odds of "unsafe" for its members, over the last axis N.
The target t is one probability per set (`edgesafe_jax.guards.targets.set_target`), taken from the guard as it was at
the start or from a moving average of it (``optax.incremental_update(params, average, step_size)`` after each step).
Gradients never flow into t.

Pinneri and Louizos, "Guarding the Meaning: Self-Supervised Training for Semantic Robustness in Guard Models", arXiv
2511.10665: label-free training towards a conservative set-level target. The loss and the anchor are this project's.
"""

import jax
import jax.numpy as jnp

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses._checks import (
    check_floating,
    check_probability,
    check_same_shape,
    check_where,
    compute_dtype,
)
from edgesafe_jax.typing import Array, ArrayLike


def consistency(*, logits: ArrayLike, target: ArrayLike, where: ArrayLike | None = None) -> Array:
    r"""Cross-entropy of each member of a set from the set's target probability.

    .. math:: \ell_i = -t \log \sigma(z_i) - (1 - t) \log \sigma(-z_i),\qquad
              \partial \ell_i / \partial z_i = \sigma(z_i) - t

    with t behind a stop-gradient. The original is a member like the others.

    Args:
      logits: [..., N], log-odds of "unsafe" of the N members.
      target: [...], the set's probability of "unsafe".
      where: Boolean [..., N]; False (a member that does not exist) gives 0 with gradient 0.

    Returns:
      [..., N], in nats; at least the entropy of t, which it reaches at sigma(z) = t.

    Raises:
      ConfigError: If the shapes do not fit, a dtype is not floating point (``where``: not boolean), or a target on the
        host is not in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> loss = consistency(logits=jnp.array([[0.0, 2.0]]), target=jnp.array([1.0]))
      >>> [round(float(value), 3) for value in loss[0]]
      [0.693, 0.127]
    """
    z = check_floating(logits, "logits")
    t = check_probability(target, "target")
    if z.ndim == 0 or t.shape != z.shape[:-1]:
        raise ConfigError(f"target has shape {t.shape}, expected {z.shape[:-1]}: one per set of logits {z.shape}.")
    return _cross_entropy(z, jnp.broadcast_to(t[..., None], z.shape), where)


def consistency_anchor(*, logits: ArrayLike, reference_logits: ArrayLike, where: ArrayLike | None = None) -> Array:
    r"""Divergence of a verdict from the one that the guard gave before training, KL(r || q) over {safe, unsafe}.

    .. math:: r \log \frac{r}{q} + (1 - r) \log \frac{1 - r}{1 - q},\qquad r = \sigma(z^{ref}),\ q = \sigma(z)

    Consistency alone is at its best where everything is unsafe, or everything safe. Over the originals, this term holds
    the guard to the distinctions that it made before.

    Args:
      logits: [...], log-odds of "unsafe".
      reference_logits: [...], those of the guard before training; no gradient flows into them.
      where: Boolean [...]; False gives 0 with gradient 0.

    Returns:
      [...], in nats; 0 where the two agree.

    Raises:
      ConfigError: If the shapes differ or a dtype is not floating point (``where``: not boolean).

    Example:
      >>> import jax.numpy as jnp
      >>> float(consistency_anchor(logits=jnp.array([0.5]), reference_logits=jnp.array([0.5]))[0])
      0.0
    """
    z = check_floating(logits, "logits")
    reference = check_floating(reference_logits, "reference_logits")
    check_same_shape(logits=z, reference_logits=reference)
    reference = jax.lax.stop_gradient(reference.astype(compute_dtype(z, reference)))
    prob = jax.nn.sigmoid(reference)
    return _cross_entropy(z, prob, where) - _cross_entropy(reference, prob, where)


def _cross_entropy(logits: Array, target: Array, where: ArrayLike | None) -> Array:
    """Binary cross-entropy from fixed targets of the same shape; softplus keeps it finite for any log-odds."""
    dtype = compute_dtype(logits, target)
    mask = check_where(where, logits.shape)
    z = jnp.where(mask, logits.astype(dtype), 0.0)
    t = jnp.where(mask, jax.lax.stop_gradient(target.astype(dtype)), 0.0)
    return jnp.where(mask, jax.nn.softplus(z) - t * z, 0.0)
