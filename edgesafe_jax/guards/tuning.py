"""One trainer for every kind of guard: a head, a LoRA at the verdict, a LoRA in all layers.

A `Tunable` is a guard whose trained numbers are pulled towards one verdict for all paraphrases of an answer
(`edgesafe_jax.guards.consistency`). `tune_guard` trains one with every rule and seed and scores it before and after;
`edgesafe_jax.guards.tunables` names the packaged kinds. A further kind of guard is an object with these five methods.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax.adapters import LoRA
from edgesafe_jax.guards.consistency import SetFeatures, consistency_objective, tune_heads
from edgesafe_jax.guards.evaluation import Scored
from edgesafe_jax.guards.examples import pair_key
from edgesafe_jax.guards.heads import GatedHead
from edgesafe_jax.guards.kept import Features
from edgesafe_jax.guards.pairs import Pairs, Scorer, score_pairs
from edgesafe_jax.guards.paraphrases import ParaphraseSet
from edgesafe_jax.guards.probe import head_probability, save_head
from edgesafe_jax.guards.robustness import SetScores, pad_members
from edgesafe_jax.guards.scoring import unsafe_of_log_odds
from edgesafe_jax.guards.targets import RULES, set_target
from edgesafe_jax.training import (
    Checkpoints,
    MetricWriter,
    TrainState,
    apply_gradients,
    init_state,
    make_data_order,
    train,
)
from edgesafe_jax.typing import Array, ProgressFn

Groups = Mapping[str, Sequence[ParaphraseSet]]
"""Paraphrase sets by the name of their group."""


class Tunable(Protocol):
    """A guard that is tuned; `Any` stands for its trained numbers and for what its frozen part computes of sets."""

    @property
    def start(self) -> Any:
        """The trained numbers before training."""
        ...

    def prepare(self, groups: Groups, name: str, *, training: bool = False) -> Mapping[str, Any]:
        """What the frozen part computes of groups of sets, kept under a name; as training takes it, or scoring."""
        ...

    def scores(self, trained: Any, prepared: Any) -> np.ndarray:
        """P(unsafe) of all members, set after set."""
        ...

    def tune(self, prepared: Any, rule: str) -> list[Any]:
        """Trained numbers towards the targets of a rule in `RULES`, one per seed."""
        ...

    def store(self, path: Path, trained: Any, training: Mapping[str, Any]) -> None:
        """Writes a tuned guard as `NAME.safetensors`."""
        ...


@dataclasses.dataclass(frozen=True)
class HeadTuning:
    """How a head is tuned: Adam on all sets at once.

    Attributes:
      learning_rate: decayed to zero along a cosine.
      num_steps: steps.
      ema_decay: None takes the targets from the head at the start; a decay in [0, 1) from a moving average.
    """

    learning_rate: float = 0.03
    num_steps: int = 100
    ema_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class LoraTuning:
    """How a LoRA is tuned: clipped Adam on batches of sets.

    Attributes:
      learning_rate: highest rate, warmed up over a tenth of the steps and decayed to zero along a cosine.
      num_steps: steps.
      batch_size: sets in a batch.
      save_every: steps between two checkpoints.
      num_members: members of a set in a batch: the original and others drawn anew at each step; None for all.
    """

    learning_rate: float = 1e-3
    num_steps: int = 300
    batch_size: int = 4
    save_every: int = 50
    num_members: int | None = None


@dataclasses.dataclass(frozen=True)
class NewLora:
    """A new LoRA in the layers of a guard, and how it is tuned.

    Attributes:
      tuning: how it is tuned.
      rank: its rank.
      targets: matrices that it adapts, of `edgesafe_jax.adapters.lora.TARGETS`.
      first_layer: layers below that stay as they are.
      max_prompt: tokens of a prompt that training reads, its last ones.
    """

    tuning: LoraTuning
    rank: int
    targets: tuple[str, ...]
    first_layer: int = 0
    max_prompt: int = 64


@dataclasses.dataclass(frozen=True)
class TuningSettings:
    """Settings of tuning, for all kinds of guards.

    Attributes:
      head: of the guards whose head is tuned.
      verdict: of SmolGuard's own LoRA.
      layers: of the guards that get a new LoRA in all layers.
      adapter: stored adapter of SmolGuard; None for the packaged one.
      seed: of the samples.
      num_seeds: how many guards are tuned, each on its own sample of the sets.
      anchor_weight: weight of the anchor, see `consistency_objective`.
    """

    head: HeadTuning
    verdict: LoraTuning
    layers: NewLora
    adapter: str | None = None
    seed: int = 0
    num_seeds: int = 5
    anchor_weight: float = 0.3


# Heads ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HeadTunable:
    """A head on frozen features.

    Attributes:
      settings: how it is tuned.
      start: the head before training.
      about: what is stored beside a head.
      features: of pairs, frozen.
    """

    settings: TuningSettings
    start: GatedHead
    about: Mapping[str, Any]
    features: Features

    def prepare(self, groups: Groups, name: str, *, training: bool = False) -> dict[str, SetFeatures]:
        """Features of all members, padded."""
        del training
        return {group: self._padded(sets, name) for group, sets in groups.items()}

    def _padded(self, sets: Sequence[ParaphraseSet], name: str) -> SetFeatures:
        flat = self.features([s.prompt for s in sets for _ in s.texts], [t for s in sets for t in s.texts], name)
        sizes = [len(s.texts) for s in sets]
        values = np.zeros((len(sets), max(sizes), flat.shape[1]), np.float32)
        where = np.zeros(values.shape[:2], bool)
        for row, (size, part) in enumerate(zip(sizes, np.split(flat, np.cumsum(sizes)[:-1]), strict=True)):
            values[row, :size], where[row, :size] = part, True
        return SetFeatures(jnp.asarray(values), jnp.asarray(where))

    def scores(self, trained: GatedHead, prepared: SetFeatures) -> np.ndarray:
        """P(unsafe) of all members."""
        return head_probability(trained, np.asarray(prepared.features[prepared.where]))

    def tune(self, prepared: SetFeatures, rule: str) -> list[GatedHead]:
        """Heads tuned by `tune_heads`, all seeds at once."""
        settings = self.settings
        keys = jax.random.split(jax.random.key(settings.seed), settings.num_seeds)
        heads, _ = tune_heads(
            keys,
            self.start,
            prepared,
            rule=RULES[rule],
            anchor_weight=settings.anchor_weight,
            learning_rate=settings.head.learning_rate,
            num_steps=settings.head.num_steps,
            ema_decay=settings.head.ema_decay,
        )
        return [jax.tree.map(lambda leaf, seed=seed: leaf[seed], heads) for seed in range(len(keys))]

    def store(self, path: Path, trained: GatedHead, training: Mapping[str, Any]) -> None:
        """Writes the head."""
        save_head(path, trained, {**self.about, "consistency": dict(training)})


# LoRAs ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SetPairs:
    """Paraphrase sets as numbers of pairs.

    Attributes:
      pairs: all pairs, each once.
      members: `[S, N]` int64, the pair of each member, the original first; -1 where there is none.
      start: `[S, N]` float64, log-odds of the members before training, zero where there are none; None for scoring.
    """

    pairs: Pairs
    members: np.ndarray
    start: np.ndarray | None


@flax.struct.dataclass
class SetBatch:
    """B sets, N members of each, as a step takes them.

    Attributes:
      pairs: the B N members, see `Pairs.batch`.
      where: `[B, N]` bool, which members exist.
      target: `[B]` float32, the set-level P(unsafe).
      reference: `[B]` float32, log-odds of the originals before training.
    """

    pairs: Any
    where: Array | np.ndarray
    target: Array | np.ndarray
    reference: Array | np.ndarray


@functools.partial(jax.jit, static_argnames=("scorer", "optimizer"), donate_argnames="state")
def _step(
    scorer: Scorer,
    optimizer: optax.GradientTransformation,
    frozen: Any,
    anchor_weight: Array,
    state: TrainState,
    batch: SetBatch,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on `consistency_objective`; the state's parameters are the LoRA."""
    where = jnp.asarray(batch.where)

    def objective(lora: LoRA) -> Array:
        values = consistency_objective(
            log_odds=scorer(frozen, lora, batch.pairs).reshape(where.shape),
            target=jnp.asarray(batch.target),
            reference=jnp.asarray(batch.reference),
            where=where,
            anchor_weight=anchor_weight,
        )
        return jnp.mean(values)

    loss, gradient = jax.value_and_grad(objective)(state.params)
    return apply_gradients(state, gradient, optimizer), {"loss": loss}


def make_optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes Adam with gradients clipped to a global norm of one."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))


def warmup_cosine(peak: float, num_steps: int) -> optax.Schedule:
    """Warmed up from zero over a tenth of the steps, then a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=max(1, num_steps // 10), decay_steps=max(2, num_steps)
    )


def early_warmup_cosine(peak: float, num_steps: int) -> optax.Schedule:
    """As `warmup_cosine`, but warmed up from the first step on, which already moves."""
    step, warm = np.arange(num_steps), max(1, num_steps // 10)
    cosine = peak * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, num_steps - warm)))
    rates = np.where(step < warm, peak * (step + 1) / warm, cosine).astype(np.float32)
    return lambda count: jnp.asarray(rates)[count]


@dataclasses.dataclass(frozen=True)
class LoraTunable:
    """A guard that is tuned through a LoRA; targets are those of the guard before training.

    Attributes:
      settings: what all kinds are tuned with.
      tuning: how this LoRA is.
      scorer: from LoRA and pairs to log-odds.
      frozen: what the scorer takes beside.
      read: from prompts, responses, the name under which what is read may be kept, and whether it is for training, to
        pairs.
      initial: the LoRA before training, by seed; that of seed 0 is scored for the targets.
      schedule: from the highest learning rate and the number of steps to the rate of each step.
      save: stores the guard with a LoRA under a path, with what is known of its training.
      workdir: where checkpoints and metrics are kept.
      batch_size: pairs that are scored at once.
      one_length: whether training pads all batches to one length, see `Pairs.batch`.
    """

    settings: TuningSettings
    tuning: LoraTuning
    scorer: Scorer
    frozen: Any
    read: Callable[[Sequence[str], Sequence[str], str, bool], Pairs]
    initial: Callable[[int], LoRA]
    schedule: Callable[[float, int], optax.Schedule]
    save: Callable[[Path, LoRA, Mapping[str, Any]], None]
    workdir: Path
    batch_size: int = 64
    one_length: bool = False

    @functools.cached_property
    def start(self) -> LoRA:
        """The LoRA before training."""
        return self.initial(0)

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.schedule(self.tuning.learning_rate, self.tuning.num_steps))

    def prepare(self, groups: Groups, name: str, *, training: bool = False) -> dict[str, SetPairs]:
        """Reads the pairs of all groups, each once; for training they are scored as well."""
        found = {
            pair_key(s.prompt, text): (s.prompt, text) for sets in groups.values() for s in sets for text in s.texts
        }
        prompts, responses = zip(*found.values(), strict=True)
        pairs = self.read(prompts, responses, name, training)
        start = self._log_odds(self.start, pairs, np.arange(len(pairs))) if training else None
        number = {key: row for row, key in enumerate(found)}
        prepared = {}
        for group, sets in groups.items():
            members = np.full((len(sets), max(len(s.texts) for s in sets)), -1)
            for row, s in enumerate(sets):
                members[row, : len(s.texts)] = [number[pair_key(s.prompt, text)] for text in s.texts]
            scored = None if start is None else np.where(members >= 0, start[members], 0.0)
            prepared[group] = SetPairs(pairs, members, scored)
        return prepared

    def _log_odds(self, lora: LoRA, pairs: Pairs, numbers: np.ndarray) -> np.ndarray:
        return score_pairs(self.scorer, self.frozen, lora, pairs, numbers, batch_size=self.batch_size)

    def scores(self, trained: LoRA, prepared: SetPairs) -> np.ndarray:
        """P(unsafe) of all members, set after set."""
        chosen = np.unique(prepared.members[prepared.members >= 0])
        odds = np.zeros(len(prepared.pairs))
        odds[chosen] = self._log_odds(trained, prepared.pairs, chosen)
        return unsafe_of_log_odds(odds[prepared.members[prepared.members >= 0]])

    def tune(self, prepared: SetPairs, rule: str) -> list[LoRA]:
        """Trains one LoRA per seed, each on its own sample of the sets, as many as there are with replacement."""
        assert prepared.start is not None
        start = jnp.asarray(prepared.start, jnp.float32)
        target = np.asarray(
            set_target(jax.nn.sigmoid(start), rule=RULES[rule], where=jnp.asarray(prepared.members >= 0))
        )
        return [self._tune(prepared, target, rule, seed) for seed in range(self.settings.num_seeds)]

    def _members(self, prepared: SetPairs, sets: np.ndarray, seed: int, step: int) -> np.ndarray:
        """The members `[B, N]` of a batch of sets, -1 where there is none."""
        if self.tuning.num_members is None:
            return prepared.members[sets]
        rng = np.random.default_rng([self.settings.seed, seed, step])
        rows = np.full((len(sets), self.tuning.num_members), -1)
        for row, number in enumerate(sets):
            others = np.flatnonzero(prepared.members[number, 1:] >= 0) + 1
            drawn = [0, *rng.permutation(others)[: self.tuning.num_members - 1]]
            rows[row, : len(drawn)] = prepared.members[number, drawn]
        return rows

    def _tune(self, prepared: SetPairs, target: np.ndarray, rule: str, seed: int) -> LoRA:
        sample = np.random.default_rng([self.settings.seed, seed]).integers(0, len(target), len(target))
        order = make_data_order(len(sample), self.tuning.batch_size, seed=seed)
        assert prepared.start is not None
        reference = prepared.start[:, 0].astype(np.float32)

        def batches(step: int) -> SetBatch:
            chosen = sample[order(step)]
            members = self._members(prepared, chosen, seed, step)
            pairs = prepared.pairs.batch(np.maximum(members, 0).reshape(-1), one_length=self.one_length)
            return SetBatch(pairs, members >= 0, target[chosen], reference[chosen])

        folder = self.workdir / "training" / f"{rule}_{seed}"
        with (
            MetricWriter(folder) as writer,
            Checkpoints(folder / "checkpoints", save_interval=self.tuning.save_every) as checkpoints,
        ):
            trained = train(
                functools.partial(
                    _step, self.scorer, self._optimizer, self.frozen, jnp.float32(self.settings.anchor_weight)
                ),
                init_state(self.initial(seed), self._optimizer, key=jax.random.key(seed)),
                batches,
                num_steps=self.tuning.num_steps,
                writer=writer,
                checkpoints=checkpoints,
            )
        return trained.params

    def store(self, path: Path, trained: LoRA, training: Mapping[str, Any]) -> None:
        """Writes the tuned guard."""
        self.save(path, trained, {"consistency": dict(training)})


# All rules and seeds --------------------------------------------------------------------------------------------------


def tune_guard(
    guard: Tunable,
    train_sets: Sequence[ParaphraseSet],
    groups: Groups,
    *,
    rules: Iterable[str],
    on_tuned: Callable[[str, int, Any], None] | None = None,
    on_rule: ProgressFn | None = None,
) -> dict[str, Scored]:
    """Tunes a guard with every rule and seed, and scores it before and after.

    Args:
      guard: the guard.
      train_sets: paraphrase sets that are trained on; their labels are not looked at.
      groups: paraphrase sets that are scored, by group.
      rules: names in `edgesafe_jax.guards.targets.RULES`.
      on_tuned: called with rule, seed and trained numbers, to store them for instance.
      on_rule: called with (rules done, rules in total).

    Returns:
      By group the scores before training and, by rule, after it, one per seed.
    """
    training = guard.prepare({"train": train_sets}, "teacher", training=True)["train"]
    evaluated = guard.prepare(groups, "held_out")
    ends = {group: np.cumsum([len(s.texts) for s in sets])[:-1] for group, sets in groups.items()}

    def scored(trained: Any, group: str) -> SetScores:
        members = np.split(guard.scores(trained, evaluated[group]), ends[group])
        return pad_members([part.tolist() for part in members], [s.label for s in groups[group]])

    found = {group: Scored(scored(guard.start, group), {}) for group in groups}
    rules = list(dict.fromkeys(rules))
    for number, rule in enumerate(rules):
        for seed, trained in enumerate(guard.tune(training, rule)):
            for group in groups:
                found[group].after.setdefault(rule, []).append(scored(trained, group))
            if on_tuned is not None:
                on_tuned(rule, seed, trained)
        if on_rule is not None:
            on_rule(number + 1, len(rules))
    return found
