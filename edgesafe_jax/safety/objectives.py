"""Objectives of a distillation: from the student along the outcomes of a batch to one loss per row.

An objective is a class with `needs` and a call; `OBJECTIVES` names those that a config can ask for. To add one, write
the class in a file of its own and enter it in the table:

    @dataclasses.dataclass(frozen=True)
    class TokenReverseKL(Objective):
        needs = Needs(divergences=(losses.reverse_kl,))

        def __call__(self, outcomes):
            return jnp.sum(outcomes.divergence(losses.reverse_kl), axis=1) * outcomes.batch.weight

    OBJECTIVES["token_reverse_kl"] = lambda normalization: TokenReverseKL()
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import chex
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.guards.verdicts import Guard
from edgesafe_jax.losses.divergences import Divergence
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.safety.batches import BatchOrder
from edgesafe_jax.safety.teacher import TeacherBatch, TeacherData, certainty, project
from edgesafe_jax.training import TrainState
from edgesafe_jax.typing import Array, Params

BatchFn: TypeAlias = Callable[[int, TrainState], TeacherBatch]
"""From a step and the state before it to the rows of the step."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """The inputs of an objective beside the student's log-probabilities.

    Attributes:
      divergences: divergences to the gated teacher at every position; with any, the teacher's hidden states are kept.
        All of an objective share the logits of student and teacher.
      samples: whether `Objective.batches` samples from the student: the run then has one process.
      reward: whether `Objective.batches` asks the guard for its verdicts.
    """

    divergences: tuple[Divergence, ...] = ()
    samples: bool = False
    reward: bool = False

    @property
    def teacher_hidden(self) -> bool:
        """Whether the teacher's hidden states are read."""
        return bool(self.divergences)

    def __or__(self, other: "Needs") -> "Needs":
        """What both need together."""
        return Needs(
            tuple(dict.fromkeys((*self.divergences, *other.divergences))),
            self.samples or other.samples,
            self.reward or other.reward,
        )


class Outcomes:
    """The student along the outcomes of a batch, as objectives read it; each quantity is computed once.

    Attributes:
      batch: the rows.
      where: `[B, O]` bool, which positions exist.
    """

    def __init__(self, decoder: Decoder, params: Params, hidden: Array, batch: TeacherBatch, needs: Needs):
        """Prepares what is computed when it is asked for.

        Args:
          decoder: the module, for its output head.
          params: its frozen parameters.
          hidden: the student's final hidden states `[B, O, D]`, from `teacher.outcome_hidden`.
          batch: B rows.
          needs: what the objective declares.
        """
        chex.assert_shape(hidden, (*batch.outcome.shape, None))
        self.batch = batch
        self.where = jnp.asarray(batch.outcome_where)
        self._params, self._hidden, self._needs = params, hidden, needs
        self._project = functools.partial(project, decoder)
        self._divergences: dict[Divergence, Array] = {}
        self._log_prob: Array | None = None

    def divergence(self, divergence: Divergence) -> Array:
        """Divergence to the gated teacher at every position, `[B, O]`; it must be among the declared needs."""
        if divergence not in self._needs.divergences:
            raise ConfigError(f"The divergence {divergence} is not declared: add it to the objective's needs.")
        if not self._divergences:
            certain, tokens = certainty(self.batch)
            values = losses.linear_divergence(
                self._needs.divergences,
                student_hidden=self._hidden,
                teacher_hidden=self.batch.teacher_hidden,
                head=self._params,
                certain_prob=certain,
                certain_tokens=tokens,
                project=self._project,
                where=self.where,
            )
            self._divergences = dict(zip(self._needs.divergences, values, strict=True))
        return self._divergences[divergence]

    def log_prob(self, normalization: losses.Normalization = "sum") -> Array:
        """Log-probability of each outcome, `[B]`: the sum or the mean over its tokens."""
        if self._log_prob is None:
            self._log_prob = losses.linear_log_prob(
                hidden=self._hidden,
                tokens=self.batch.outcome,
                head=self._params,
                project=self._project,
                where=self.where,
            )
        summed = jnp.sum(self._log_prob, axis=1)
        return summed if normalization == "sum" else summed / self.count

    @property
    def exists(self) -> Array:
        """Which rows are not padding, `[B]` bool."""
        return jnp.any(self.where, axis=1)

    @property
    def count(self) -> Array:
        """Tokens of each outcome, `[B]` float32; 1 for a row of padding."""
        return jnp.maximum(jnp.sum(self.where, axis=1, dtype=jnp.float32), 1.0)


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """The inputs from which an objective makes its batches.

    Attributes:
      model: the frozen language model.
      data: rows of the gated teacher.
      order: row numbers of each step.
      guard: for objectives that need a reward.
    """

    model: LanguageModel
    data: TeacherData
    order: BatchOrder
    guard: Guard | None = None

    def teacher_rows(self, step: int, state: TrainState) -> TeacherBatch:
        """The teacher's rows of a step, whatever the state."""
        del state
        return self.data.batch(self.order(step), pad_id=self.model.tokenizer.pad_id)


class Objective(abc.ABC):
    """A distillation objective.

    Attributes:
      needs: what it reads; the trainer provides that and nothing more.
    """

    needs: Needs = Needs()

    @abc.abstractmethod
    def __call__(self, outcomes: Outcomes) -> Array:
        """The loss of each row, `[B]` float32; 0 for a row of padding.

        Summed over the rows of one prompt it is the objective of that prompt: its outcomes' losses weighed by their
        probabilities.
        """

    def batches(self, source: BatchSource) -> BatchFn:
        """Makes `batches(step, state)`; by default the teacher's rows.

        An objective on samples of the student overrides it: it generates with `state.params["adapter"]`, asks
        `source.guard` for a reward, and returns a `TeacherBatch` or a subclass with further fields.
        """
        return source.teacher_rows


@dataclasses.dataclass(frozen=True)
class SequenceObjective(Objective):
    """A loss on the log-probability of each whole outcome.

    Attributes:
      loss: `losses.outcome_total_variation` (equation 4) or `losses.outcome_kl`.
      normalization: how the log-probability of a sequence is taken from its tokens'. With "sum" the clip of equation 4
        never binds (an answer of forty tokens has a log-probability far below log a); with "mean" it can.
    """

    loss: Callable[..., Array]
    normalization: losses.Normalization = "mean"

    def __call__(self, outcomes: Outcomes) -> Array:
        """The loss of each outcome, `[B]`."""
        log_prob = outcomes.log_prob(self.normalization)
        return self.loss(log_prob=log_prob, weight=outcomes.batch.weight, where=outcomes.exists)


@dataclasses.dataclass(frozen=True)
class TokenObjective(Objective):
    """A full-vocabulary divergence to the gated teacher at every position; see `losses.gated_divergence`.

    Attributes:
      divergence: `losses.forward_kl`, `losses.total_variation`, `losses.jensen_shannon` or one with their keywords.
      normalization: whether each outcome counts by the sum or by the mean over its positions.
    """

    divergence: Divergence
    normalization: losses.Normalization = "mean"

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The divergence."""
        return Needs(divergences=(self.divergence,))

    def __call__(self, outcomes: Outcomes) -> Array:
        """The divergence along each outcome, `[B]`."""
        exists = jnp.asarray(outcomes.where, jnp.float32)
        weights = exists if self.normalization == "sum" else exists / outcomes.count[:, None]
        return _weighted(outcomes, weights, self.divergence)


@dataclasses.dataclass(frozen=True)
class DecisionObjective(Objective):
    """A divergence at the decision between answer and refusal: the first position, and all of the refusal.

    D(a p_1 + (1 - a) [first token of y_r], q_1) + (1 - a) sum_{t > 1} D([y_{r,t}], q(. | x, y_{r,<t})). Averaged over
    the positions of an answer the first part nearly vanishes, and more so the longer the answer is beside the refusal;
    added on its own it weighs both mistakes alike. The rest of the refusal conflicts with no answer.

    Attributes:
      divergence: `losses.forward_kl`, `losses.total_variation` or one with their keywords.
    """

    divergence: Divergence

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The divergence."""
        return Needs(divergences=(self.divergence,))

    def __call__(self, outcomes: Outcomes) -> Array:
        """The divergence at the decision, `[B]`."""
        exists = jnp.asarray(outcomes.where, jnp.float32)
        first = (np.arange(exists.shape[1]) == 0)[None]
        weights = jnp.where(first | jnp.asarray(outcomes.batch.is_refusal)[:, None], exists, 0.0)
        return _weighted(outcomes, weights, self.divergence)


def _weighted(outcomes: Outcomes, weights: Array, divergence: Divergence) -> Array:
    weights = weights * jnp.asarray(outcomes.batch.weight)[:, None]
    return jnp.sum(weights * outcomes.divergence(divergence), axis=1)


@dataclasses.dataclass(frozen=True)
class WeightedSum(Objective):
    """Objectives added up; batches are those of the first.

    Attributes:
      terms: pairs of a factor and an objective, at least one.

    Raises:
      ConfigError: there are no terms.
    """

    terms: tuple[tuple[float, Objective], ...]

    def __post_init__(self):
        if not self.terms:
            raise ConfigError("An objective needs at least one term.")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """What the terms need together."""
        return functools.reduce(Needs.__or__, (objective.needs for _, objective in self.terms))

    def __call__(self, outcomes: Outcomes) -> Array:
        """The weighted sum of the terms, `[B]`."""
        total = jnp.zeros(outcomes.where.shape[0], jnp.float32)
        for factor, objective in self.terms:
            total = total + factor * objective(outcomes)
        return total

    def batches(self, source: BatchSource) -> BatchFn:
        """The batches of the first term."""
        return self.terms[0][1].batches(source)


OBJECTIVES: dict[str, Callable[[losses.Normalization], Objective]] = {
    "tv": lambda n: SequenceObjective(losses.outcome_total_variation, n),
    "kl": lambda n: SequenceObjective(losses.outcome_kl, n),
    "token_tv": lambda n: TokenObjective(losses.total_variation, n),
    "token_kl": lambda n: TokenObjective(losses.forward_kl, n),
}
"""What a config may name: from the normalisation over the positions of an outcome to the objective."""


def make_objective(
    name: str, *, normalization: losses.Normalization = "mean", decision_weight: float = 0.0
) -> Objective:
    """Makes an objective of the table, with the term at the decision beside it.

    Args:
      name: in `OBJECTIVES`.
      normalization: over the positions of an outcome.
      decision_weight: factor of the forward KL at the decision; 0 leaves it out.

    Returns:
      The objective.

    Raises:
      ConfigError: an unknown name; the message lists the known ones.
    """
    objective = lookup(OBJECTIVES, name, "objective")(normalization)
    if not decision_weight:
        return objective
    return WeightedSum(((1.0, objective), (decision_weight, DecisionObjective(losses.forward_kl))))


def row_losses(objective: Objective, decoder: Decoder, params: Params, hidden: Array, batch: TeacherBatch) -> Array:
    """The loss of each row.

    Args:
      objective: what is minimised.
      decoder: the module, for its output head.
      params: its frozen parameters.
      hidden: the student's `[B, O, D]`, from `teacher.outcome_hidden`.
      batch: B rows.

    Returns:
      `[B]` float32; a row of padding gives 0.
    """
    return objective(Outcomes(decoder, params, hidden, batch, objective.needs))
