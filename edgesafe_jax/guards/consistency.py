"""Consistency training of a guard: one verdict for all members of a paraphrase set, without labels.

Pinneri and Louizos, "Guarding the Meaning: Self-Supervised Training for Semantic Robustness in Guard Models", arXiv
2511.10665. The objective is this project's reading of it: cross-entropy from a set-level target
(`edgesafe_jax.guards.targets`) for every member, and an anchor to the first verdict on the originals.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax.adapters.lora import LoRA
from edgesafe_jax.guards.heads import GatedHead, unsafe_log_odds
from edgesafe_jax.guards.paraphrases import ParaphraseError, ParaphraseSet
from edgesafe_jax.guards.scoring import LanguageModelGuard, label_scores
from edgesafe_jax.guards.targets import Rule, set_target
from edgesafe_jax.losses import consistency, consistency_anchor, masked_mean
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import pad_tokens
from edgesafe_jax.typing import Array, Params, PRNGKey, PyTree


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
    head: GatedHead,
    sets: SetFeatures,
    keys: PRNGKey,
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
      head: where training starts, and what the anchor holds on to.
      sets: features of the paraphrase sets.
      keys: `[K]` random keys of the samples.
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


# Language-model guards ------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class SetTokens:
    """Paraphrase sets as a language-model guard reads them.

    Attributes:
      tokens: `[S, N, T]` int32, each member with its prompt and template; the original is the first member.
      exists: `[S, N, T]` bool, which tokens exist.
      where: `[S, N]` bool, which members exist.
      unsafe: ids of the unsafe labels' first tokens.
      safe: ids of the safe ones'.
    """

    tokens: Array
    exists: Array
    where: Array
    unsafe: Array
    safe: Array

    def take(self, rows: Array | np.ndarray) -> "SetTokens":
        """The sets of some rows."""
        return self.replace(  # type: ignore[attr-defined]
            tokens=self.tokens[rows], exists=self.exists[rows], where=self.where[rows]
        )


def encode_sets(guard: LanguageModelGuard, sets: Sequence[ParaphraseSet]) -> SetTokens:
    """Encodes paraphrase sets for a language-model guard.

    Args:
      guard: has template, labels and tokenizer.
      sets: S sets.

    Returns:
      The tokens, padded to one length.

    Raises:
      ParaphraseError: no sets.
      TemplateError: the guard's verdict is not at one place, see `LanguageModelGuard.encode`.
    """
    if not sets:
        raise ParaphraseError("There are no paraphrase sets to train on.")
    rows, unsafe, safe = guard.encode([s.prompt for s in sets for _ in s.texts], [t for s in sets for t in s.texts])
    flat, flat_exists = pad_tokens(rows, pad_id=guard.model.tokenizer.pad_id)
    most = max(len(s.texts) for s in sets)
    tokens = np.full((len(sets), most, flat.shape[1]), guard.model.tokenizer.pad_id, np.int32)
    exists = np.zeros(tokens.shape, bool)
    exists[:, :, 0] = True  # a member that does not exist still has a last position
    where = np.zeros(tokens.shape[:2], bool)
    start = 0
    for row, found in enumerate(sets):
        count = len(found.texts)
        tokens[row, :count], exists[row, :count] = flat[start : start + count], flat_exists[start : start + count]
        where[row, :count] = True
        start += count
    return SetTokens(
        jnp.asarray(tokens),
        jnp.asarray(exists),
        jnp.asarray(where),
        jnp.asarray(unsafe, jnp.int32),
        jnp.asarray(safe, jnp.int32),
    )


def set_log_odds(decoder: Decoder, params: Params, sets: SetTokens, lora: LoRA | None = None) -> Array:
    """Log-odds of "unsafe" of all members, `[S, N]`, of a language-model guard with a LoRA or without; pure."""
    batch = (-1, sets.tokens.shape[-1])
    odds, _ = label_scores(
        decoder,
        params,
        (),
        sets.tokens.reshape(batch),
        sets.exists.reshape(batch),
        sets.unsafe,
        sets.safe,
        None if lora is None else lora.low_rank(),
    )
    return odds.reshape(sets.where.shape)


def lora_objective(
    lora: LoRA,
    decoder: Decoder,
    params: Params,
    sets: SetTokens,
    *,
    target: Array,
    reference: Array,
    anchor_weight: float,
) -> Array:
    """Mean `consistency_objective` of a language-model guard as a function of its LoRA: differentiate it by the first.

    Args:
      lora: the trained numbers.
      decoder: of the guard.
      params: its frozen parameters.
      sets: a batch.
      target: `[S]`, the set-level P(unsafe), from `set_target` of the guard before training (or of a moving average).
      reference: `[S]`, log-odds of the originals before training.
      anchor_weight: weight of the anchor.

    Returns:
      A scalar.

    Example:
      Freeze the targets once, then take steps with any optimiser::

        score = set_log_odds(decoder, params, sets)
        target = set_target(jax.nn.sigmoid(score), rule="conservative_gap", where=sets.where)
        loss, gradient = jax.value_and_grad(lora_objective)(
            lora, decoder, params, sets, target=target, reference=score[:, 0], anchor_weight=0.3)
        robust = LanguageModelGuard(merge_lora(model, lora), format)
    """
    return jnp.mean(
        consistency_objective(
            log_odds=set_log_odds(decoder, params, sets, lora),
            target=target,
            reference=reference,
            where=sets.where,
            anchor_weight=anchor_weight,
        )
    )
