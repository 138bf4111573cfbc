"""Consistency training of SmolGuard's LoRA: the subject of `launch.consistency` that is not a head."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax.adapters import LoRA
from edgesafe_jax.guards.activated import PairBatch, PairReader, PairStates, UpperLayers, save_guard, score_pairs
from edgesafe_jax.guards.consistency import consistency_objective
from edgesafe_jax.guards.paraphrases import ParaphraseSet
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.guards.targets import RULES, set_target
from edgesafe_jax.training import (
    Checkpoints,
    MetricWriter,
    TrainState,
    apply_gradients,
    init_state,
    make_data_order,
)
from edgesafe_jax.training import train as run_training
from edgesafe_jax.typing import Array
from launch.guards import pair_key
from launch.smolguard import make_optimizer, read_kept


@dataclasses.dataclass(frozen=True)
class ReadSets:
    """Paraphrase sets as rows of what was read.

    Attributes:
      states: what the frozen part computes of the pairs.
      rows: `[S, N]` int64, the pair of each member, the original first; -1 where there is none.
    """

    states: PairStates
    rows: np.ndarray


@flax.struct.dataclass
class SetBatch:
    """B paraphrase sets as a step takes them.

    Attributes:
      pairs: what the frozen part computes of the B N members.
      where: `[B, N]` bool, which members exist.
      target: `[B]` float32, the set-level P(unsafe).
      reference: `[B]` float32, log-odds of the originals before training.
    """

    pairs: PairBatch
    where: Array | np.ndarray
    target: Array | np.ndarray
    reference: Array | np.ndarray


def _make_step(
    optimizer: optax.GradientTransformation,
) -> Callable[[UpperLayers, Array, TrainState, SetBatch], tuple[TrainState, dict[str, Array]]]:
    """Makes the jitted step on `consistency_objective`; the state's parameters are the LoRA."""

    @jax.jit
    def step(
        upper: UpperLayers, anchor_weight: Array, state: TrainState, batch: SetBatch
    ) -> tuple[TrainState, dict[str, Array]]:
        where = jnp.asarray(batch.where)

        def objective(lora: LoRA) -> Array:
            values = consistency_objective(
                log_odds=upper.scores(lora, batch.pairs)[0].reshape(where.shape),
                target=jnp.asarray(batch.target),
                reference=jnp.asarray(batch.reference),
                where=where,
                anchor_weight=anchor_weight,
            )
            return jnp.mean(values)

        loss, gradient = jax.value_and_grad(objective)(state.params)
        return apply_gradients(state, gradient, optimizer), {"loss": loss}

    return step


@dataclasses.dataclass(frozen=True)
class LoraSubject:
    """SmolGuard, tuned through its LoRA; targets are those of the guard before training.

    Attributes:
      config: of the run; `lora` says how it is trained.
      guard: the guard, with its adapter.
      workdir: where what is read, checkpoints and metrics are kept.
    """

    config: Mapping[str, Any]
    guard: LanguageModelGuard
    workdir: Path

    @property
    def start(self) -> LoRA:
        """The adapter before training."""
        assert self.guard.adapter is not None
        return self.guard.adapter

    @functools.cached_property
    def reader(self) -> PairReader:
        """Reads pairs below and beside the adapted layers."""
        return PairReader(self.guard, self.start.first_layer)

    def prepare(self, groups: Mapping[str, Sequence[ParaphraseSet]], name: str) -> dict[str, ReadSets]:
        """Reads the pairs of all groups, each once."""
        members = {
            pair_key(found.prompt, text): (found.prompt, text)
            for sets in groups.values()
            for found in sets
            for text in found.texts
        }
        prompts, responses = zip(*members.values(), strict=True)
        states = read_kept(self.reader, prompts, responses, self.workdir / "states", name)
        number = {key: row for row, key in enumerate(members)}
        prepared = {}
        for group, sets in groups.items():
            rows = np.full((len(sets), max(len(found.texts) for found in sets)), -1)
            for row, found in enumerate(sets):
                rows[row, : len(found.texts)] = [number[pair_key(found.prompt, text)] for text in found.texts]
            prepared[group] = ReadSets(states, rows)
        return prepared

    def log_odds(self, trained: LoRA, prepared: ReadSets) -> np.ndarray:
        """Log-odds of all members, `[S, N]`; zero where there is none."""
        chosen = np.unique(prepared.rows[prepared.rows >= 0])
        found = np.zeros(len(prepared.states))
        found[chosen] = score_pairs(self.reader.upper, trained, prepared.states, chosen).log_odds
        return np.where(prepared.rows >= 0, found[prepared.rows], 0.0)

    def scores(self, trained: LoRA, prepared: ReadSets) -> np.ndarray:
        """P(unsafe) of all members, set after set."""
        return 0.5 + 0.5 * np.tanh(0.5 * self.log_odds(trained, prepared)[prepared.rows >= 0])

    def tune(self, prepared: ReadSets, rule: str) -> list[LoRA]:
        """Trains one LoRA per seed, each on its own sample of the sets, as many as there are with replacement."""
        settings = self.config["lora"]
        where = prepared.rows >= 0
        score = jnp.asarray(self.log_odds(self.start, prepared), jnp.float32)
        target = np.asarray(set_target(jax.nn.sigmoid(score), rule=RULES[rule], where=jnp.asarray(where)))
        reference = np.asarray(score[:, 0])
        num_steps, batch_size = int(settings["num_steps"]), int(settings["batch_size"])
        optimizer = make_optimizer(float(settings["learning_rate"]), num_steps)
        step = functools.partial(_make_step(optimizer), self.reader.upper, jnp.float32(self.config["anchor_weight"]))
        tuned = []
        for seed in range(int(self.config["num_seeds"])):
            sample = np.random.default_rng([int(self.config["seed"]), seed]).integers(0, len(where), len(where))
            order = make_data_order(len(sample), batch_size, seed=seed)

            def batches(number: int, sample: np.ndarray = sample, order: Any = order) -> SetBatch:
                chosen = sample[order(number)]
                members = np.maximum(prepared.rows[chosen], 0).reshape(-1)
                return SetBatch(prepared.states.batch(members), where[chosen], target[chosen], reference[chosen])

            folder = self.workdir / "training" / f"{rule}_{seed}"
            with (
                MetricWriter(folder) as writer,
                Checkpoints(folder / "checkpoints", save_interval=int(settings["save_every"])) as checkpoints,
            ):
                trained = run_training(
                    step,
                    init_state(self.start, optimizer, key=jax.random.key(seed)),
                    batches,
                    num_steps=num_steps,
                    writer=writer,
                    checkpoints=checkpoints,
                )
            tuned.append(trained.params)
        return tuned

    def store(self, path: Path, trained: LoRA, training: Mapping[str, Any]) -> None:
        """Writes the adapter with its sidecar; `load_smolguard` reads it."""
        save_guard(path, dataclasses.replace(self.guard, adapter=trained), {"consistency": dict(training)})
