"""Consistency training of a LoRA in all layers of a guard's model: two more subjects of `launch.consistency`."""

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

from edgesafe_jax.adapters import LoRA, init_lora
from edgesafe_jax.guards.adapted import PairRows, PairTokens, Scorer, score_rows
from edgesafe_jax.guards.consistency import consistency_objective
from edgesafe_jax.guards.paraphrases import ParaphraseSet
from edgesafe_jax.guards.targets import RULES, set_target
from edgesafe_jax.models.decoder_config import DecoderConfig
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


def _at_rate(rate: Array | float) -> optax.GradientTransformation:
    """Adam with clipped gradients; the rate comes with each batch, so that one compilation serves all schedules."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), optax.scale(-rate))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class TokenSets:
    """Paraphrase sets as rows of encoded pairs.

    Attributes:
      pairs: all pairs, each once.
      members: `[S, N]` int64, the pair of each member, the original first; -1 where there is none.
      start: `[S, N]` float64, log-odds of the members before training, zero where there are none.
    """

    pairs: PairRows
    members: np.ndarray
    start: np.ndarray


@flax.struct.dataclass
class TokenBatch:
    """B sets, N members of each, as a step takes them.

    Attributes:
      pairs: the B N members.
      where: `[B, N]` bool, which members exist.
      target: `[B]` float32, the set-level P(unsafe).
      reference: `[B]` float32, log-odds of the originals before training.
      anchor_weight: scalar.
      rate: scalar, the learning rate of this step.
    """

    pairs: PairTokens
    where: Array | np.ndarray
    target: Array | np.ndarray
    reference: Array | np.ndarray
    anchor_weight: Array | np.ndarray
    rate: Array | np.ndarray


@functools.partial(jax.jit, static_argnames="scorer", donate_argnames="state")
def _step(scorer: Scorer, frozen: Any, state: TrainState, batch: TokenBatch) -> tuple[TrainState, dict[str, Array]]:
    """One step on `consistency_objective`; the state's parameters are the LoRA."""
    where = jnp.asarray(batch.where)

    def objective(lora: LoRA) -> Array:
        values = consistency_objective(
            log_odds=scorer(frozen, lora, batch.pairs).reshape(where.shape),
            target=jnp.asarray(batch.target),
            reference=jnp.asarray(batch.reference),
            where=where,
            anchor_weight=jnp.asarray(batch.anchor_weight),
        )
        return jnp.mean(values)

    loss, gradient = jax.value_and_grad(objective)(state.params)
    return apply_gradients(state, gradient, _at_rate(jnp.asarray(batch.rate))), {"loss": loss}


def _rate(step: int, num_steps: int, peak: float) -> float:
    """Warmed up over a tenth of the steps, then a cosine to zero."""
    warm = max(1, num_steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, num_steps - warm)))


@dataclasses.dataclass(frozen=True)
class BackboneSubject:
    """A guard that is tuned through a LoRA in its language model; targets are those of the guard before training.

    Attributes:
      config: of the run; `backbone` says how it is trained.
      scorer: from LoRA and pairs to log-odds.
      frozen: what the scorer takes beside.
      encode: from prompts, responses and the most tokens of a prompt (None: as many as the guard reads) to rows.
      decoder: sizes of the decoder that the LoRA is for.
      save: stores a guard with a LoRA under a path, with what is known of its training.
      workdir: where checkpoints and metrics are kept.
    """

    config: Mapping[str, Any]
    scorer: Scorer
    frozen: Any
    encode: Callable[[Sequence[str], Sequence[str], int | None], PairRows]
    decoder: DecoderConfig
    save: Callable[[Path, LoRA, Mapping[str, Any]], None]
    workdir: Path

    @functools.cached_property
    def start(self) -> LoRA:
        """A LoRA that changes nothing yet."""
        return self._initial(0)

    def _initial(self, seed: int) -> LoRA:
        settings = self.config["backbone"]
        return init_lora(
            jax.random.key(seed),
            self.decoder,
            rank=int(settings["rank"]),
            targets=tuple(settings["targets"]),
            first_layer=int(settings["first_layer"]),
        )

    def prepare(self, groups: Mapping[str, Sequence[ParaphraseSet]], name: str) -> dict[str, TokenSets]:
        """Encodes the pairs of all groups, each once, and scores them; long prompts are cut for training only."""
        longest = int(self.config["backbone"]["max_prompt"]) if name == "teacher" else None
        found = {
            pair_key(s.prompt, text): (s.prompt, text) for sets in groups.values() for s in sets for text in s.texts
        }
        prompts, responses = zip(*found.values(), strict=True)
        pairs = self.encode(prompts, responses, longest)
        start = score_rows(self.scorer, self.frozen, self.start, pairs, np.arange(len(pairs)))
        number = {key: row for row, key in enumerate(found)}
        prepared = {}
        for group, sets in groups.items():
            members = np.full((len(sets), max(len(s.texts) for s in sets)), -1)
            for row, s in enumerate(sets):
                members[row, : len(s.texts)] = [number[pair_key(s.prompt, text)] for text in s.texts]
            prepared[group] = TokenSets(pairs, members, np.where(members >= 0, start[members], 0.0))
        return prepared

    def scores(self, trained: LoRA, prepared: TokenSets) -> np.ndarray:
        """P(unsafe) of all members, set after set."""
        chosen = np.unique(prepared.members[prepared.members >= 0])
        odds = np.zeros(len(prepared.pairs))
        odds[chosen] = score_rows(self.scorer, self.frozen, trained, prepared.pairs, chosen)
        return 0.5 + 0.5 * np.tanh(0.5 * odds[prepared.members[prepared.members >= 0]])

    def tune(self, prepared: TokenSets, rule: str) -> list[LoRA]:
        """Trains one LoRA per seed, each on its own sample of the sets, as many as there are with replacement."""
        exists = prepared.members >= 0
        start = jnp.asarray(prepared.start, jnp.float32)
        target = np.asarray(set_target(jax.nn.sigmoid(start), rule=RULES[rule], where=jnp.asarray(exists)))
        return [self._tune(prepared, target, rule, seed) for seed in range(int(self.config["num_seeds"]))]

    def _tune(self, prepared: TokenSets, target: np.ndarray, rule: str, seed: int) -> LoRA:
        settings = self.config["backbone"]
        num_steps, num_members = int(settings["num_steps"]), int(settings["num_members"])
        sample = np.random.default_rng([int(self.config["seed"]), seed]).integers(0, len(target), len(target))
        order = make_data_order(len(sample), int(settings["batch_size"]), seed=seed)

        def batches(step: int) -> TokenBatch:
            chosen = sample[order(step)]
            rng = np.random.default_rng([int(self.config["seed"]), seed, step])
            rows = np.full((len(chosen), num_members), -1)
            for row, number in enumerate(chosen):
                others = np.flatnonzero(prepared.members[number, 1:] >= 0) + 1
                drawn = [0, *rng.permutation(others)[: num_members - 1]]
                rows[row, : len(drawn)] = prepared.members[number, drawn]
            return TokenBatch(
                prepared.pairs.batch(np.maximum(rows, 0).reshape(-1)),
                rows >= 0,
                target[chosen],
                prepared.start[chosen, 0].astype(np.float32),
                np.asarray(self.config["anchor_weight"], np.float32),
                np.asarray(_rate(step, num_steps, float(settings["learning_rate"])), np.float32),
            )

        folder = self.workdir / "training" / f"{rule}_{seed}"
        with (
            MetricWriter(folder) as writer,
            Checkpoints(folder / "checkpoints", save_interval=int(settings["save_every"])) as checkpoints,
        ):
            trained = run_training(
                functools.partial(_step, self.scorer, self.frozen),
                init_state(self._initial(seed), _at_rate(0.0), key=jax.random.key(seed)),
                batches,
                num_steps=num_steps,
                writer=writer,
                checkpoints=checkpoints,
            )
        return trained.params

    def store(self, path: Path, trained: LoRA, training: Mapping[str, Any]) -> None:
        """Writes the tuned guard."""
        self.save(path, trained, {"consistency": dict(training)})
