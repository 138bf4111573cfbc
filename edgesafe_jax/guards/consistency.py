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
    *, log_odds: Array, target: Array, reference: Array, where: Array, anchor_weight: float
) -> Array:
    """What consistency training minimises, over a batch of sets.

    The mean over sets of `mean over members of consistency + anchor_weight * consistency_anchor of the original`.

    Args:
      log_odds: `[S, N]`, the guard's log-odds of the members; the original is the first one.
      target: `[S]`, the set-level P(unsafe).
      reference: `[S]`, log-odds of the originals before training.
      where: `[S, N]` bool, which members exist.
      anchor_weight: weight of the anchor, 0 or more.

    Returns:
      A scalar.
    """
    pulled = masked_mean(consistency(logits=log_odds, target=target, where=where), where=where, axis=-1)
    held = consistency_anchor(logits=log_odds[:, 0], reference_logits=reference)
    return jnp.mean(pulled + anchor_weight * held)


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


def tune_head(
    head: GatedHead,
    sets: SetFeatures,
    key: PRNGKey,
    *,
    rule: Rule,
    anchor_weight: float,
    learning_rate: float,
    num_steps: int,
    batch_size: int,
    ema_decay: float | None = None,
) -> tuple[GatedHead, Array]:
    """Trains the linear maps of a head on frozen features towards set-level targets.

    The standardisation and the calibration of the head stay. Each key draws its own sample of the sets, as many as
    there are with replacement, and its own order: several keys show how much both matter. Pure: `jit` it, and `vmap` it
    over keys.

    Args:
      head: where training starts, and what the anchor holds on to.
      sets: features of the paraphrase sets.
      key: random key of the sample and the order.
      rule: from members to target, see `edgesafe_jax.guards.targets`.
      anchor_weight: weight of the anchor.
      learning_rate: of Adam, decayed to zero along a cosine.
      num_steps: steps.
      batch_size: sets per step.
      ema_decay: None takes the targets from the head at the start; a decay in [0, 1) from an exponential moving
        average of the trained one.

    Returns:
      The trained head, and the objective at each step, `[num_steps]`.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    score = unsafe_log_odds(head, sets.features)
    frozen = set_target(jax.nn.sigmoid(score), rule=rule, where=sets.where)
    num_sets = sets.where.shape[0]
    sample_key, order_key = jax.random.split(key)
    sample = jax.random.randint(sample_key, (num_sets,), 0, num_sets)

    def objective(trained: PyTree, chosen: Array, target: Array) -> Array:
        log_odds = unsafe_log_odds(_with(head, trained), sets.features[chosen])
        return consistency_objective(
            log_odds=log_odds,
            target=target,
            reference=score[chosen, 0],
            where=sets.where[chosen],
            anchor_weight=anchor_weight,
        )

    def step(carry: Any, number: Array) -> tuple[Any, Array]:
        trained, average, state = carry
        picks = jax.random.randint(jax.random.fold_in(order_key, number), (batch_size,), 0, num_sets)
        chosen = sample[picks]
        if ema_decay is None:
            target = frozen[chosen]
        else:
            members = jax.nn.sigmoid(unsafe_log_odds(_with(head, average), sets.features[chosen]))
            target = set_target(members, rule=rule, where=sets.where[chosen])
        value, gradient = jax.value_and_grad(objective)(trained, chosen, target)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            updates, state = optimizer.update(gradient, state, trained)
            trained = optax.apply_updates(trained, updates)
            if ema_decay is not None:
                average = optax.incremental_update(trained, average, 1 - ema_decay)
        return (trained, average, state), value

    start = _trained(head)
    (trained, _, _), values = jax.lax.scan(step, (start, start, optimizer.init(start)), jnp.arange(num_steps))
    return _with(head, trained), values


@functools.partial(
    jax.jit,
    static_argnames=("rule", "anchor_weight", "learning_rate", "num_steps", "batch_size", "ema_decay"),
)
def tune_heads(head: GatedHead, sets: SetFeatures, keys: PRNGKey, **options: Any) -> tuple[GatedHead, Array]:
    """`tune_head` for several keys at once; leaves of the result have the keys in front, `[K, ...]`."""
    return jax.vmap(lambda key: tune_head(head, sets, key, **options))(keys)
