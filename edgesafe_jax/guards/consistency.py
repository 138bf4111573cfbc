"""Consistency training of a guard: one verdict for all members of a paraphrase set, without labels.

Pinneri and Louizos, "Guarding the Meaning: Self-Supervised Training for Semantic Robustness in Guard Models", arXiv
2511.10665. The objective is this project's reading of it: cross-entropy from a set-level target
(`edgesafe_jax.guards.targets`) for every member, and an anchor to the first verdict on the originals.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from edgesafe_jax.guards.heads import GatedHead, unsafe_log_odds
from edgesafe_jax.guards.targets import Rule, set_target
from edgesafe_jax.losses import consistency, consistency_anchor, masked_mean
from edgesafe_jax.typing import Array, PRNGKey, PyTree


def consistency_objective(
    *, log_odds: Array, target: Array, reference: Array, where: Array, anchor_weight: float | Array
) -> Array:
    """What consistency training minimises, per set.

    The mean over members of `consistency`, plus `anchor_weight` times the `consistency_anchor` of the original.

    Args:
      log_odds: `[S, N]`, the guard's log-odds of the members; the original is the first one.
      target: `[S]`, the set-level P(unsafe).
      reference: `[S]`, log-odds of the originals before training.
      where: `[S, N]` bool, which members exist.
      anchor_weight: weight of the anchor, 0 or more.

    Returns:
      `[S]`, in nats.
    """
    pulled = masked_mean(consistency(logits=log_odds, target=target, where=where), where=where, axis=-1)
    held = consistency_anchor(logits=log_odds[:, 0], reference_logits=reference)
    return pulled + anchor_weight * held


@flax.struct.dataclass
class SetFeatures:
    """Frozen features of paraphrase sets, padded to a common number of members.

    Attributes:
      features: `[S, N, M]` float32; the original is the first member.
      where: `[S, N]` bool, which members exist.
    """

    features: Array
    where: Array


_TRAINED = ("linear", "bias")


def _trained(head: GatedHead) -> dict[str, dict[str, Array]]:
    return {
        part: {leaf: getattr(getattr(head, part), leaf) for leaf in _TRAINED} for part in ("general", "own", "gate")
    }


def _with(head: GatedHead, trained: dict[str, dict[str, Array]]) -> GatedHead:
    return head.replace(  # type: ignore[attr-defined]
        **{part: getattr(head, part).replace(**leaves) for part, leaves in trained.items()}
    )


def tune_heads(
    keys: PRNGKey,
    head: GatedHead,
    sets: SetFeatures,
    *,
    rule: Rule,
    anchor_weight: float,
    learning_rate: float,
    num_steps: int,
    ema_decay: float | None = None,
) -> tuple[GatedHead, Array]:
    """Trains the linear maps of a head on frozen features towards set-level targets, once per key.

    Adam on the whole sample at once: frozen features are read by one matrix product for all keys. The standardisation
    and the calibration of the head stay. Each key draws its own sample of the sets, as many as there are with
    replacement: several keys show how much the choice of answers matters.

    Args:
      keys: `[K]` random keys of the samples.
      head: where training starts, and what the anchor holds on to.
      sets: features of the paraphrase sets.
      rule: from members to target, see `edgesafe_jax.guards.targets`.
      anchor_weight: weight of the anchor.
      learning_rate: of Adam, decayed to zero along a cosine.
      num_steps: steps.
      ema_decay: None takes the targets from the head at the start; a decay in [0, 1] from an exponential moving
        average of the trained one.

    Returns:
      The trained heads, leaves `[K, ...]`, and the objective at each step, `[K, num_steps]`.

    Raises:
      TargetError: a set without members.
    """
    reference = _log_odds(head, sets.features)
    target = set_target(jax.nn.sigmoid(reference), rule=rule, where=sets.where)
    return _tune(
        head,
        sets,
        target,
        reference[:, 0],
        keys,
        jnp.float32(anchor_weight),
        jnp.float32(learning_rate),
        jnp.float32(0.0 if ema_decay is None else ema_decay),
        num_steps=num_steps,
        # Fixed targets come in as an array, so that all rules share one compilation.
        rule=None if ema_decay is None else rule,
    )


_log_odds = jax.jit(unsafe_log_odds)


@functools.partial(jax.jit, static_argnames=("num_steps", "rule"))
def _tune(
    head: GatedHead,
    sets: SetFeatures,
    fixed: Array,
    reference: Array,
    keys: PRNGKey,
    anchor_weight: Array,
    learning_rate: Array,
    ema_decay: Array,
    *,
    num_steps: int,
    rule: Rule | None,
) -> tuple[GatedHead, Array]:
    num_sets = sets.where.shape[0]
    # Adam's direction; the decayed rate is multiplied on below, where it is an argument.
    optimizer = optax.scale_by_adam()

    def tune(key: PRNGKey) -> tuple[Any, Array]:
        sample = jax.random.randint(key, (num_sets,), 0, num_sets)
        weight = jnp.bincount(sample, length=num_sets).astype(jnp.float32) / num_sets

        def objective(trained: PyTree, target: Array) -> Array:
            values = consistency_objective(
                log_odds=unsafe_log_odds(_with(head, trained), sets.features),
                target=target,
                reference=reference,
                where=sets.where,
                anchor_weight=anchor_weight,
            )
            return jnp.sum(weight * values)

        def step(carry: Any, number: Array) -> tuple[Any, Array]:
            trained, average, state = carry
            target = fixed
            if rule is not None:
                members = jax.nn.sigmoid(unsafe_log_odds(_with(head, average), sets.features))
                target = set_target(members, rule=rule, where=sets.where)
            value, gradient = jax.value_and_grad(objective)(trained, target)
            rate = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * number.astype(jnp.float32) / num_steps))
            with jax.numpy_dtype_promotion("standard"):  # optax relies on it
                direction, state = optimizer.update(gradient, state, trained)
                trained = jax.tree.map(lambda value, move: value - rate * move, trained, direction)
                if rule is not None:
                    average = optax.incremental_update(trained, average, 1 - ema_decay)
            return (trained, average, state), value

        start = _trained(head)
        (trained, _, _), values = jax.lax.scan(step, (start, start, optimizer.init(start)), jnp.arange(num_steps))
        return trained, values

    trained, values = jax.vmap(tune)(keys)
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (keys.shape[0], *leaf.shape)), head)
    return _with(copies, trained), values
