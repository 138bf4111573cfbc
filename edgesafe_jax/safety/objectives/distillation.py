"""Distillation of the gated teacher: on whole outcomes, at every position, and at the decision."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.errors import PROBABILITY, Range, check_ranges
from edgesafe_jax.losses.divergences import Divergence, scaled
from edgesafe_jax.safety.objectives.base import Needs, Objective, Outcomes
from edgesafe_jax.typing import Array, ArrayLike

RANGES = {"skew": PROBABILITY, "mixture": PROBABILITY, "floor": Range(0, 0.5, above=True)}
"""Ranges of the options of the objectives at token level."""


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


def token_reverse_kl(normalization: losses.Normalization = "mean", *, floor: float = 0.001) -> TokenObjective:
    """Makes the reverse KL to the gated teacher at every position; mode-seeking.

    A refusal that is certain excludes every other token, and the divergence is then infinite: here the teacher is mixed
    with a part `floor` of the uniform distribution.
    """
    _check(floor=floor)
    return TokenObjective(functools.partial(smoothed_reverse_kl, floor=floor), normalization)


def smoothed_reverse_kl(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    temperature: ArrayLike = 1.0,
    floor: float = 0.001,
    where: ArrayLike | None = None,
) -> Array:
    """Reverse KL to a teacher that is mixed with a part `floor` of the uniform distribution.

    A temperature softens the logits before they are mixed; the other arguments are those of `losses.reverse_kl`.
    """
    student, teacher = (scaled(jnp.asarray(logits), temperature) for logits in (student_logits, teacher_logits))
    log_p = jax.nn.log_softmax(teacher, axis=-1) + np.log1p(-floor)
    smoothed = jnp.logaddexp(log_p, jnp.full_like(log_p, np.log(floor / log_p.shape[-1])))
    return losses.reverse_kl(student_logits=student, teacher_logits=smoothed, where=where)


def token_jensen_shannon(normalization: losses.Normalization = "mean", *, mixture: float = 0.5) -> TokenObjective:
    """Makes the generalised Jensen-Shannon divergence at every position; `mixture` is the weight of the teacher."""
    _check(mixture=mixture)
    return TokenObjective(functools.partial(losses.jensen_shannon, mixture=mixture), normalization)


def token_skewed_kl(normalization: losses.Normalization = "mean", *, skew: float = 0.1) -> TokenObjective:
    """Makes the forward KL to a student that is mixed with a part `skew` of the teacher (DistiLLM)."""
    _check(skew=skew)
    return TokenObjective(functools.partial(losses.skewed_kl, skew=skew), normalization)


def token_skewed_reverse_kl(normalization: losses.Normalization = "mean", *, skew: float = 0.1) -> TokenObjective:
    """Makes the reverse KL to a teacher that is mixed with a part `skew` of the student (DistiLLM)."""
    _check(skew=skew)
    return TokenObjective(functools.partial(losses.skewed_reverse_kl, skew=skew), normalization)


def _check(**options: float) -> None:
    check_ranges(options, {name: RANGES[name] for name in options}, prefix="")
