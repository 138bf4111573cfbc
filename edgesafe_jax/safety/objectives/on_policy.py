"""Generalised knowledge distillation: the gated teacher along answers that the student samples."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import numpy as np
import scipy.special

from edgesafe_jax import losses
from edgesafe_jax.errors import FRACTION, PROBABILITY, check_ranges, lookup
from edgesafe_jax.losses.divergences import Divergence
from edgesafe_jax.safety.objectives.base import BatchFn, BatchSource, Needs
from edgesafe_jax.safety.objectives.distillation import TokenObjective, smoothed_reverse_kl
from edgesafe_jax.safety.objectives.rows import along, as_outcomes, make_rows, sample_answers
from edgesafe_jax.safety.teacher import TeacherBatch
from edgesafe_jax.training import TrainState
from edgesafe_jax.typing import Array

DIVERGENCES: dict[str, Any] = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": smoothed_reverse_kl,
    "jensen_shannon": losses.jensen_shannon,
    "skewed_kl": losses.skewed_kl,
    "skewed_reverse_kl": losses.skewed_reverse_kl,
    "total_variation": losses.total_variation,
}
"""Divergences that may be asked for by name."""

_STREAM = 6
"""Of the run's random key, for the choice of the rows that the student answers."""


@flax.struct.dataclass
class ScoredBatch(TeacherBatch):
    """Rows of which some outcomes are the student's, with the gated teacher along all of them.

    Attributes:
      certain_prob: `[B, O]` float32, the part of the teacher that is certain of a token.
      certain_token: `[B, O]` int32, that token.
    """

    certain_prob: Array | np.ndarray
    certain_token: Array | np.ndarray

    def certainty(self) -> tuple[Array, Array]:
        """What was computed when the rows were made."""
        return self.certain_prob, self.certain_token  # type: ignore[return-value]


def posterior_of_refusal(
    batch: TeacherBatch, log_prob: np.ndarray, refusal: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The gated teacher along any answer: its probability of being in the middle of the refusal.

    While an answer has begun like the refusal, the system may be giving the refusal or an answer of the base model that
    begins so: (1 - a) / ((1 - a) + a p(y_<t | x)). Elsewhere the system is the base model. This is exactly equation 2
    for a guard that judges prompts.

    Args:
      batch: B rows.
      log_prob: `[B, O]`, log-probabilities of their tokens under the base model.
      refusal: its tokens.

    Returns:
      That probability before each token, `[B, O]` float32, and the refusal's next token, `[B, O]` int32.
    """
    length = np.shape(batch.outcome)[1]
    expected = np.zeros(length, np.int32)
    expected[: len(refusal)] = refusal[:length]
    agrees = (np.asarray(batch.outcome) == expected) & np.asarray(batch.outcome_where)
    agrees[:, len(refusal) :] = False

    def before(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((0, 0), (1, 0)))[:, :-1]

    begun = np.cumprod(np.pad(agrees, ((0, 0), (1, 0)), constant_values=True)[:, :-1], axis=1).astype(bool)
    begun[:, len(refusal) :] = False
    refused = np.asarray(batch.refusal_prob, np.float64)[:, None]
    with np.errstate(divide="ignore"):
        odds = np.log(refused) - np.log1p(-refused) - before(np.cumsum(np.float64(log_prob), axis=1))
    return np.where(begun, scipy.special.expit(odds), 0.0).astype(np.float32), np.tile(expected, (len(refused), 1))


@dataclasses.dataclass(frozen=True)
class OnPolicyDistillation(TokenObjective):
    """A divergence to the gated teacher, along the teacher's outcomes or along answers of the student.

    Attributes:
      on_policy: fraction of the rows whose outcome the student samples; 0 is the objective at token level, 1 trains on
        nothing but the student's own answers. No gradient flows through the sampling.

    Reference: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, algorithm 1.
    """

    on_policy: float = 0.5

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The divergence, and samples where there are any."""
        return Needs(divergences=(self.divergence,), samples=self.on_policy > 0)

    def batches(self, source: BatchSource) -> BatchFn:
        """Rows of the teacher, a fixed number of which the student answers in its own way at each step."""
        data = source.data
        stream = jax.random.fold_in(jax.random.key(source.seed), _STREAM)

        def scored(step: int, state: TrainState) -> TeacherBatch:
            rows = source.order(step)
            num = round(self.on_policy * len(rows))
            if not num:
                return source.teacher_rows(step, state)
            own = np.sort(np.asarray(jax.random.permutation(jax.random.fold_in(stream, step), len(rows)))[:num])
            prompts = data.sample[rows]
            answers = sample_answers(source, state.params["adapter"], prompts[own], step, max_tokens=data.max_tokens)
            outcomes = [data.outcomes[row] for row in rows]
            for index, outcome in zip(own, as_outcomes(answers), strict=True):
                outcomes[index] = outcome
            sampled = np.isin(np.arange(len(rows)), own)
            refuses = data.is_refusal[rows] & ~sampled
            batch = make_rows(
                source,
                prompts,
                outcomes,
                is_refusal=refuses,
                weight=np.where(sampled, 1.0, data.weight[rows]),
                max_tokens=data.max_tokens,
                prefixes=source.prefixes(np.where(refuses, prompts, -1), step),
            )
            hidden, log_prob = along(source.model, batch, head=source.data.head)
            given = [np.asarray(each) for each in batch.certainty()]
            scores = posterior_of_refusal(batch, log_prob, data.refusal)
            certain, token = (np.where(sampled[:, None], *pair) for pair in zip(scores, given, strict=True))
            fields = {**vars(batch), "teacher_hidden": hidden}
            return ScoredBatch(**fields, certain_prob=certain, certain_token=token)

        return scored


def gkd(
    normalization: losses.Normalization = "mean",
    *,
    on_policy: float = 0.5,
    divergence: str = "jensen_shannon",
    mixture: float = 0.5,
) -> OnPolicyDistillation:
    """Makes generalised knowledge distillation.

    Args:
      normalization: over the positions of an outcome.
      on_policy: fraction of the rows that the student answers.
      divergence: a name in `DIVERGENCES`.
      mixture: weight of the teacher in "jensen_shannon": towards 0 the forward KL, towards 1 the reverse one.

    Returns:
      The objective.

    Raises:
      ConfigError: an unknown divergence or a number outside its range.
    """
    ranges = {"on_policy": FRACTION, "mixture": PROBABILITY}
    check_ranges({"on_policy": on_policy, "mixture": mixture}, ranges, prefix="")
    chosen: Divergence = lookup(DIVERGENCES, divergence, "divergence")
    if divergence == "jensen_shannon":
        chosen = functools.partial(losses.jensen_shannon, mixture=mixture)
    return OnPolicyDistillation(chosen, normalization, on_policy)
