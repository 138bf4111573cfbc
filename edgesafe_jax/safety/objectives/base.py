"""What an objective is: from the student along the outcomes of a batch to one loss per row."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import chex
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax import losses
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.verdicts import Guard
from edgesafe_jax.losses.divergences import Divergence
from edgesafe_jax.models.chats import Chat
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.safety.batches import BatchOrder
from edgesafe_jax.safety.recovery import continued, prefixes
from edgesafe_jax.safety.teacher import TeacherBatch, TeacherData, project
from edgesafe_jax.training import TrainState
from edgesafe_jax.typing import Array, Params, PRNGKey, PyTree

BatchFn: TypeAlias = Callable[[int, TrainState], TeacherBatch]
"""From a step and the state before it to the rows of the step."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """The inputs of an objective beside the student's log-probabilities.

    Attributes:
      divergences: divergences to the gated teacher at every position; with any, the teacher's hidden states are kept.
        All of an objective share the logits of student and teacher.
      base_hidden: whether the base model's hidden states are read for other ends, as by `Outcomes.divergence_to_base`.
      samples: whether `Objective.batches` samples from the student: the run then has one process.
      reward: whether `Objective.batches` asks the guard for its verdicts.
      rows_per_prompt: rows of a batch that belong to one prompt; the batch size must be a multiple of it.
      updates_per_sample: steps of the optimiser on one batch. Above 1 the state's parameters hold `"behaviour"` and
        `"behaviour_own"`, what was trained as it was at the last step that is a multiple of it.
    """

    divergences: tuple[Divergence, ...] = ()
    base_hidden: bool = False
    samples: bool = False
    reward: bool = False
    rows_per_prompt: int = 1
    updates_per_sample: int = 1

    @property
    def teacher_hidden(self) -> bool:
        """Whether the hidden states of the teacher, which is the base model, are read."""
        return bool(self.divergences) or self.base_hidden

    def __or__(self, other: "Needs") -> "Needs":
        """What both need together."""
        return Needs(
            divergences=tuple(dict.fromkeys((*self.divergences, *other.divergences))),
            base_hidden=self.base_hidden or other.base_hidden,
            samples=self.samples or other.samples,
            reward=self.reward or other.reward,
            rows_per_prompt=max(self.rows_per_prompt, other.rows_per_prompt),
            updates_per_sample=max(self.updates_per_sample, other.updates_per_sample),
        )


class Outcomes:
    """The student along the outcomes of a batch, as objectives read it; each quantity is computed once.

    Attributes:
      batch: the rows.
      where: `[B, O]` bool, which positions exist.
      hidden: `[B, O, D]`, the student's final hidden states that predict each token.
      own: parameters of the objective itself, see `Objective.init_own`.
    """

    def __init__(
        self, decoder: Decoder, params: Params, hidden: Array, batch: TeacherBatch, needs: Needs, *, own: PyTree = ()
    ):
        """Prepares what is computed when it is asked for.

        Args:
          decoder: the module, for its output head.
          params: its frozen parameters.
          hidden: the student's final hidden states `[B, O, D]`, from `teacher.outcome_hidden`.
          batch: B rows.
          needs: what the objective declares.
          own: its own parameters.
        """
        chex.assert_shape(hidden, (*batch.outcome.shape, None))
        self.batch = batch
        self.where = jnp.asarray(batch.outcome_where)
        self.hidden, self.own = hidden, own
        self._params, self._needs = params, needs
        self._project = functools.partial(project, decoder)
        self._divergences: dict[Divergence, Array] = {}

    def divergence(self, divergence: Divergence) -> Array:
        """Divergence to the gated teacher at every position, `[B, O]`; it must be among the declared needs."""
        if divergence not in self._needs.divergences:
            raise ConfigError(f"The divergence {divergence} is not declared: add it to the objective's needs.")
        if not self._divergences:
            certain, tokens = self.batch.certainty()
            values = losses.linear_divergence(
                self._needs.divergences,
                student_hidden=self.hidden,
                teacher_hidden=self.batch.teacher_hidden,
                head=self._params,
                certain_prob=certain,
                certain_tokens=tokens,
                project=self._project,
                where=self.where,
            )
            self._divergences = dict(zip(self._needs.divergences, values, strict=True))
        return self._divergences[divergence]

    def divergence_to_base(self, divergence: Divergence) -> Array:
        """Divergence to the base model, without a gate, at every position, `[B, O]`; the needs have `base_hidden`."""
        if not self._needs.base_hidden:
            raise ConfigError(
                "The base model's hidden states are not declared: set base_hidden in the objective's needs."
            )
        return losses.linear_divergence(
            divergence,
            student_hidden=self.hidden,
            teacher_hidden=self.batch.teacher_hidden,
            head=self._params,
            project=self._project,
            where=self.where,
        )

    @functools.cached_property
    def token_log_prob(self) -> Array:
        """Log-probability of each token of the outcomes, `[B, O]`; 0 for padding."""
        return losses.linear_log_prob(
            hidden=self.hidden,
            tokens=self.batch.outcome,
            head=self._params,
            project=self._project,
            where=self.where,
        )

    def log_prob(self, normalization: losses.Normalization = "sum") -> Array:
        """Log-probability of each outcome, `[B]`: the sum or the mean over its tokens."""
        summed = jnp.sum(self.token_log_prob, axis=1)
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
      texts: the prompts of `data` as texts or chats, for objectives that sample.
      max_tokens: longest answer of the student, for objectives that sample.
      seed: of that sampling.
      needs: those of the whole objective, of which `Objective.batches` may be one term.
      recovery: fraction of the refusals that follow the beginning of an unsafe answer, see `recovery.prefixes`, and of
        the teacher's answers that are continued from within, see `recovery.continued`.
    """

    model: LanguageModel
    data: TeacherData
    order: BatchOrder
    guard: Guard | None = None
    texts: Sequence[str | Chat] = ()
    max_tokens: int = 40
    seed: int = 0
    needs: Needs = Needs()
    recovery: float = 0.0

    def prefixes(self, prompts: np.ndarray, step: int) -> list[list[int]]:
        """Beginnings of unsafe answers for the rows of a step, see `recovery.prefixes`; none where `recovery` is 0."""
        tokenizer, seed = self.model.tokenizer, (self.seed, step)
        return prefixes(tokenizer, self.data, prompts, fraction=self.recovery, seed=seed)

    def teacher_rows(self, step: int, state: TrainState) -> TeacherBatch:
        """The teacher's rows of a step, whatever the state."""
        del state
        rows = self.order(step)
        begun = self.prefixes(np.where(self.data.is_refusal[rows], self.data.sample[rows], -1), step)
        said = continued(self.data, rows, fraction=self.recovery, seed=(self.seed, step))
        return self.data.batch(rows, pad_id=self.model.tokenizer.pad_id, prefixes=begun, said=said)


class Objective(abc.ABC):
    """What is minimised.

    Attributes:
      needs: what it reads; the trainer provides that and nothing more.
      with_decision: whether `decision_weight` adds its term; False for objectives that do not distil the gated teacher.
    """

    needs: Needs = Needs()
    with_decision: ClassVar[bool] = True

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

    def init_own(self, key: PRNGKey, model: LanguageModel) -> PyTree:
        """Parameters that are trained beside the adapter and not kept in the end, such as a value head; none here."""
        del key, model
        return ()

    def own_optimizer(self) -> optax.GradientTransformation:
        """The optimiser of these."""
        return optax.identity()

    def metrics(self, outcomes: Outcomes) -> dict[str, Array]:
        """Further scalars to log, by name."""
        del outcomes
        return {}


@dataclasses.dataclass(frozen=True)
class WeightedSum(Objective):
    """Objectives added up; batches and own parameters are those of the first.

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

    def init_own(self, key: PRNGKey, model: LanguageModel) -> PyTree:
        """Those of the first term."""
        return self.terms[0][1].init_own(key, model)

    def own_optimizer(self) -> optax.GradientTransformation:
        """That of the first term."""
        return self.terms[0][1].own_optimizer()

    def metrics(self, outcomes: Outcomes) -> dict[str, Array]:
        """Those of all terms."""
        return {name: value for _, term in self.terms for name, value in term.metrics(outcomes).items()}


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
