"""Consistency training of a guard: one verdict for all members of a paraphrase set, without labels.

Pinneri and Louizos, "Guarding the Meaning: Self-Supervised Training for Semantic Robustness in Guard Models", arXiv
2511.10665. The objective is this project's reading of it: cross-entropy from a set-level target
(`edgesafe_jax.guards.targets`) for every member, and an anchor to the first verdict on the originals.

A head on frozen features is linear, and what paraphrasing moves in the features is known from the sets alone: it is
first turned away from that in closed form (`whiten_head`), which carries over to other ways of paraphrasing better
than gradient steps do, and then trained.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from edgesafe_jax.adapters.lora import LoRA
from edgesafe_jax.guards.heads import GatedHead, Head, unsafe_log_odds
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


def whiten_head(head: GatedHead, sets: SetFeatures, *, strength: float) -> GatedHead:
    r"""Turns the verdicts of a head away from what paraphrasing moves in its features, without labels.

    .. math:: w' = k\, (I + c\, \Sigma)^{-1} w

    with the covariance :math:`\Sigma` of the members' standardised features around the mean of their set, and the
    strength c. By least squares, k and the bias keep the log-odds of the originals as they were. This is within-class
    covariance normalisation with sets in the place of classes. The gate stays.

    Args:
      head: the head; its maps `general` and `own` are changed.
      sets: features of the paraphrase sets.
      strength: c, above 0: a direction that paraphrasing moves with a variance of 1 / c loses half its weight.

    Returns:
      The head.

    Raises:
      ValueError: a strength that is not above 0.

    Reference:
      Hatch, Kajarekar, Stolcke, "Within-Class Covariance Normalization for SVM-based Speaker Recognition", 2006.
    """
    if not strength > 0:
        raise ValueError(f"strength={strength}: expected above 0.")
    features, where = np.asarray(sets.features, np.float32), np.asarray(sets.where)
    exists = where[:, :, None]
    centre = np.sum(features, axis=1, where=exists, keepdims=True) / exists.sum(axis=1, keepdims=True)
    deviations, originals = (features - centre)[where], features[:, 0]

    def whitened(part: Head) -> Head:
        scale, linear = np.asarray(part.scale), np.asarray(part.linear)
        moved = deviations * scale
        # (I + c A'A / n)^-1 w by the matrix A A', which is the smaller one.
        gram = moved @ moved.T
        gram[np.diag_indices_from(gram)] += len(moved) / strength
        turned = linear - moved.T @ np.linalg.solve(gram, moved @ linear)
        standardised = (originals - np.asarray(part.mean)) * scale
        before, after = standardised @ linear, standardised @ turned
        k = np.cov(before, after)[0, 1] / np.maximum(np.var(after, ddof=1), 1e-12)
        return part.replace(  # type: ignore[attr-defined]
            linear=jnp.asarray(k * turned, jnp.float32),
            bias=jnp.float32(part.bias + before.mean() - k * after.mean()),
        )

    return head.replace(general=whitened(head.general), own=whitened(head.own))  # type: ignore[attr-defined]


@jax.jit
def _calibration_gradient(
    change: Array, head: GatedHead, sets: SetFeatures, target: Array, reference: Array, anchor_weight: Array
) -> tuple[Array, Array]:
    """Mean `consistency_objective` of `_recalibrated` with its gradient by the change."""

    def objective(change: Array) -> Array:
        values = consistency_objective(
            log_odds=unsafe_log_odds(_recalibrated(head, change), sets.features),
            target=target,
            reference=reference,
            where=sets.where,
            anchor_weight=anchor_weight,
        )
        return jnp.mean(values)

    return jax.value_and_grad(objective)(change)


def _recalibrated(head: GatedHead, change: Array) -> GatedHead:
    """The head with the log-odds of both its verdicts multiplied by `exp(change[0])` and moved by `change[1]`."""
    factor = jnp.exp(change[0])
    parts = {
        part: getattr(head, part).replace(
            slope=getattr(head, part).slope * factor, offset=getattr(head, part).offset * factor + change[1]
        )
        for part in ("general", "own")
    }
    return head.replace(**parts)  # type: ignore[attr-defined]


def _calibrate(
    head: GatedHead, sets: SetFeatures, *, target: Array, reference: Array, anchor_weight: float
) -> GatedHead:
    """Fits slope and offset of a head to set-level targets: two numbers, which cannot learn the sets by heart."""

    def objective(change: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _calibration_gradient(
            jnp.asarray(change, jnp.float32), head, sets, target, reference, jnp.float32(anchor_weight)
        )
        return float(value), np.asarray(gradient, np.float64)

    found = scipy.optimize.minimize(objective, np.zeros(2), jac=True, method="L-BFGS-B", options={"maxiter": 30})
    return _recalibrated(head, jnp.asarray(found.x, jnp.float32))


def tune_heads(
    head: GatedHead,
    sets: SetFeatures,
    keys: PRNGKey,
    *,
    rule: Rule,
    anchor_weight: float,
    learning_rate: float,
    num_steps: int,
    whitening: float = 0.0,
    ema_decay: float | None = None,
) -> tuple[GatedHead, Array]:
    """Trains the linear maps of a head on frozen features towards set-level targets, once per key.

    With `whitening`, the head goes through `whiten_head` first and its calibration is fitted to the targets of the head
    as it was; the whitened head then stands for the head. Adam on the whole sample at once follows: frozen features are
    read by one matrix product for all keys. Standardisation and calibration stay. Each key draws its own sample of the
    sets for Adam, as many as there are with replacement: several keys show how much the choice of answers matters.

    Args:
      head: where training starts, and what the anchor holds on to.
      sets: features of the paraphrase sets.
      keys: `[K]` random keys of the samples.
      rule: from members to target, see `edgesafe_jax.guards.targets`.
      anchor_weight: weight of the anchor.
      learning_rate: of Adam, decayed to zero along a cosine.
      num_steps: steps.
      whitening: strength of `whiten_head`; 0 leaves it out.
      ema_decay: None takes the targets from the head at the start; a decay in [0, 1] from an exponential moving
        average of the trained one.

    Returns:
      The trained heads, leaves `[K, ...]`, and the objective at each step, `[K, num_steps]`.

    Raises:
      TargetError: a set without members.
    """
    reference = _log_odds(head, sets.features)
    target = set_target(jax.nn.sigmoid(reference), rule=rule, where=sets.where)
    if whitening:
        whitened = whiten_head(head, sets, strength=whitening)
        head = _calibrate(whitened, sets, target=target, reference=reference[:, 0], anchor_weight=anchor_weight)
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
