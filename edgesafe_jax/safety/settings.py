"""Settings of an alignment, with the values of the quickstart as defaults and the range of each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgesafe_jax.errors import (
    COUNT,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_COUNT,
    PROBABILITY,
    ConfigError,
    Range,
    check_ranges,
    lookup,
)
from edgesafe_jax.losses import Normalization
from edgesafe_jax.parallel import Layout
from edgesafe_jax.safety.batches import row_counts
from edgesafe_jax.safety.objectives import OBJECTIVES, Objective, make_objective

NORMALIZATIONS: dict[str, Normalization] = {"sum": "sum", "mean": "mean"}

HARD = "hard_"
"""Prefix of the names of groups of hard rows."""

RANGES: dict[str, Range] = {
    "num_steps": POSITIVE_COUNT,
    "batch_size": POSITIVE_COUNT,
    "max_tokens": POSITIVE_COUNT,
    "num_positions": POSITIVE_COUNT,
    "save_every": POSITIVE_COUNT,
    "log_every": POSITIVE_COUNT,
    "learning_rate": POSITIVE,
    "average_from": FRACTION,
    "sampling_temperature": NON_NEGATIVE,
    "gate_sharpness": POSITIVE,
    "gate_threshold": PROBABILITY,
    "decision_weight": NON_NEGATIVE,
    "kl_to_base": NON_NEGATIVE,
    "recovery": FRACTION,
    "warmup_steps": COUNT,
    "clip_norm": Range(
        0, 1e9, above=True, also=(float("inf"),), expected="above 0, and at most 1e9; inf for no clipping"
    ),
    "final_learning_rate": FRACTION,
    "num_held_out": COUNT,
    "mining.start": Range(0, 1, expected="0 to 1; 1 for no mining"),
    "mining.margin": Range(0, 1e6, expected="0 nats or more, and at most 1e6"),
}
"""Ranges of the numbers of `AlignSettings`, by dotted name."""


@dataclasses.dataclass(frozen=True)
class MiningSettings:
    """Hard prompts: those that the student decides wrongly, or rightly by less than a margin, are drawn more often.

    Attributes:
      start: fraction of the run after which the student decides its training prompts; 1 for never.
      margin: nats by which the refusal's first token must lead, or trail.
      mixture: rows of a batch by group from then on, in any unit; `hard_NAME` is a group of the hard rows of NAME.
    """

    start: float = 1.0
    margin: float = 1.0
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AlignSettings:
    """Settings of a distillation.

    Attributes:
      seed: of the sampling, the adapter and the order of the data.
      objective: a name in `objectives.OBJECTIVES`.
      normalization: "mean" or "sum" of log-probabilities and divergences over the positions of an outcome.
      decision_weight: of the forward KL at the first position and along the refusal, beside an objective that distils
        the gated teacher; the others have no such term.
      kl_to_base: weight of the KL to the base model along the answers to benign prompts, beside any objective.
      recovery: fraction of the rows of refusals that follow the first 1 to 10 tokens of the base model's own unsafe
        answer, and of the rows of answers that are continued from within, beside any objective on the teacher's
        outcomes; see `edgesafe_jax.safety.recovery`.
      objective_options: options by the name of the objective, such as `{"dpo": {"beta": 0.1}}`; see `OBJECTIVES`.
      sampling_temperature: of the teacher's answers; 0 for greedy ones, 1 for y ~ p(y | x).
      max_tokens: longest answer of the teacher.
      num_positions: positions of each answer that are distilled, from its start.
      gate_threshold: P(unsafe) above which the system refuses.
      gate_sharpness: factor on the guard's log-odds; 1 is the paper's teacher.
      num_held_out: prompts of each group that are not trained on, whose refusal rate is logged.
      mixture: rows of a batch by group, in any unit. The groups are "refuse" (rows of refusals) and the labels of the
        answered prompts. Empty: three in eight are refusals, the labels share the rest evenly.
      mining: hard prompts.
      batch_size: B.
      num_steps: of the optimiser.
      learning_rate: peak of the cosine schedule.
      warmup_steps: of linear warm-up.
      final_learning_rate: end of the cosine, as a fraction of the peak.
      clip_norm: largest global norm of the gradient.
      average_from: the adapter is the mean over the steps after this fraction of the run; 1 for the last step's.
      log_every: steps between two reads of the metrics.
      save_every: steps between two checkpoints.
      parallel: how the model is split over devices; the rest of them share the batch.
      wandb: project of Weights & Biases that metrics are logged to; empty for none.

    Raises:
      ConfigError: a value outside its range, an unknown name, or a batch too small for its mixture.
    """

    seed: int = 0
    objective: str = "token_kl"
    normalization: Normalization = "mean"
    decision_weight: float = 1.0
    kl_to_base: float = 0.0
    recovery: float = 0.0
    objective_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    sampling_temperature: float = 0.0
    max_tokens: int = 40
    num_positions: int = 12
    gate_threshold: float = 0.5
    gate_sharpness: float = 10.0
    num_held_out: int = 0
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mining: MiningSettings = dataclasses.field(default_factory=MiningSettings)
    batch_size: int = 8
    num_steps: int = 200
    learning_rate: float = 5e-3
    warmup_steps: int = 10
    final_learning_rate: float = 0.1
    clip_norm: float = 1.0
    average_from: float = 0.7
    log_every: int = 5
    save_every: int = 50
    parallel: Layout = dataclasses.field(default_factory=Layout)
    wandb: str = ""

    def __post_init__(self):
        lookup(OBJECTIVES, self.objective, "objective")
        lookup(NORMALIZATIONS, self.normalization, "normalization")
        check_ranges(dataclasses.asdict(self), RANGES, prefix="")
        for name, options in self.objective_options.items():
            make_objective(name, options=options)
        if self.recovery and self.make_objective().needs.reward:
            raise ConfigError(
                f"recovery={self.recovery}: objective={self.objective!r} trains on the student's answers alone, and no "
                "row is a refusal of the teacher; expected 0."
            )
        if self.batch_size % (rows := self.make_objective().needs.rows_per_prompt):
            raise ConfigError(
                f"batch_size={self.batch_size}: expected a multiple of {rows}, the rows of each prompt with "
                f"objective={self.objective!r}."
            )
        if self.num_positions > self.max_tokens:
            raise ConfigError(f"num_positions={self.num_positions}: expected at most max_tokens={self.max_tokens}.")
        if self.mixture:
            check_mixture("mixture", self.mixture, self.mixture, batch_size=self.batch_size)
        if self.mining_step < self.num_steps:
            mined = self.mining.mixture
            if not any(name.startswith(HARD) for name in mined):
                raise ConfigError(f"mining.mixture names {sorted(mined)}: expected some group {HARD}NAME.")
            check_mixture("mining.mixture", mined, mined, batch_size=self.batch_size)

    def make_objective(self) -> Objective:
        """Makes the objective, with the terms that are added to it."""
        return make_objective(
            self.objective,
            normalization=self.normalization,
            decision_weight=self.decision_weight,
            kl_to_base=self.kl_to_base,
            options=self.objective_options.get(self.objective),
        )

    @property
    def mining_step(self) -> int:
        """The step before which hard rows are looked for; `num_steps` where none are."""
        steps = self.num_steps
        return steps if self.mining.start == 1 else min(max(1, round(self.mining.start * steps)), steps)


def check_mixture(
    name: str, mixture: Mapping[str, float], groups: Sequence[str] | Mapping[str, object], *, batch_size: int
) -> None:
    """Checks that a mixture names the groups of a batch and leaves each at least one row.

    Args:
      name: of the setting.
      mixture: rows by group, in any unit.
      groups: names of the groups.
      batch_size: B.

    Raises:
      ConfigError: other names, a weight that is not positive, or a group without a row.
    """
    if set(mixture) != set(groups):
        raise ConfigError(f"{name} names {sorted(mixture)}: expected {sorted(groups)}.")
    try:
        row_counts(batch_size, mixture)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
