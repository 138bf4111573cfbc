"""REINFORCE on the student's own answers, with the guard's verdict as the reward."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.errors import NON_NEGATIVE, POSITIVE_COUNT, check_ranges
from edgesafe_jax.safety.objectives.base import BatchFn, BatchSource, Needs, Objective, Outcomes
from edgesafe_jax.safety.objectives.rows import along, as_outcomes, make_rows, prompts_of, reward_of, sample_answers
from edgesafe_jax.safety.teacher import TeacherBatch
from edgesafe_jax.training import TrainState
from edgesafe_jax.typing import Adapter, Array


@flax.struct.dataclass
class SampledBatch(TeacherBatch):
    """Answers of the student, each with its reward.

    Attributes:
      reward: `[B]` float32, the guard's P(safe) of the answer.
      reference_log_prob: `[B, O]` float32, log-probabilities of its tokens under the base model without adapter.
    """

    reward: Array | np.ndarray
    reference_log_prob: Array | np.ndarray


def sampled_rows(source: BatchSource, adapter: Adapter, prompts: np.ndarray, step: int) -> SampledBatch:
    """Samples answers of the student, has them judged, and scores them with the base model.

    Args:
      source: model, guard and texts.
      adapter: of the student.
      prompts: `[B]`, numbers of the prompts.
      step: of the run.

    Returns:
      The rows, with the base model's hidden states along these answers.
    """
    answers = sample_answers(source, adapter, prompts, step, max_tokens=source.max_tokens)
    reward = reward_of(source, prompts, answers)
    nothing, everything = np.zeros(len(prompts), bool), np.ones(len(prompts), np.float32)
    batch = make_rows(
        source,
        prompts,
        as_outcomes(answers),
        is_refusal=nothing,
        weight=everything,
        max_tokens=source.max_tokens,
    )
    hidden, log_prob = along(source.model, batch, head=source.data.head)
    if source.needs.teacher_hidden:
        batch = batch.replace(teacher_hidden=hidden)  # type: ignore[attr-defined]
    return SampledBatch(**vars(batch), reward=reward, reference_log_prob=log_prob)


def sample_metrics(outcomes: Outcomes) -> dict[str, Array]:
    """Means over sampled answers: the guard's reward, and the nats by which they are likelier than under the base."""
    assert isinstance(outcomes.batch, SampledBatch)
    gap = outcomes.log_prob("sum") - jnp.sum(jnp.asarray(outcomes.batch.reference_log_prob), axis=1)
    means = {"reward": jnp.asarray(outcomes.batch.reward), "kl": gap}
    return {name: losses.masked_mean(value, where=outcomes.exists) for name, value in means.items()}


@dataclasses.dataclass(frozen=True)
class Reinforce(Objective):
    """The score-function gradient of E_q[R], R = P(safe) - reference_kl (log q(y|x) - log p(y|x)).

    p is the base model without adapter: with `reference_kl` above 0 the student is kept near it, without which a safe
    answer to everything has all of the reward. The baseline of an answer is the mean reward of the others to the same
    prompt, or of all others in the batch where there is one answer to each prompt.

    Attributes:
      reference_kl: nats of KL to the base model that cost a reward of 1, inverted; 0 is the paper's.
      samples_per_prompt: answers to each prompt of a batch.

    Reference: Alfarra et al., arXiv 2606.09388, among the direct objectives; `losses.reinforce`.
    """

    reference_kl: float = 0.0
    samples_per_prompt: int = 2
    with_decision = False

    def __post_init__(self):
        ranges = {"reference_kl": NON_NEGATIVE, "samples_per_prompt": POSITIVE_COUNT}
        check_ranges(dataclasses.asdict(self), ranges, prefix="")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Samples and their rewards."""
        return Needs(samples=True, reward=True, rows_per_prompt=self.samples_per_prompt)

    def __call__(self, outcomes: Outcomes) -> Array:
        """The surrogate loss of each answer, `[B]`."""
        assert isinstance(outcomes.batch, SampledBatch)
        log_prob = outcomes.log_prob("sum")
        reference = jnp.sum(jnp.asarray(outcomes.batch.reference_log_prob), axis=1)
        gap = losses.kl_penalty(log_prob=jax.lax.stop_gradient(log_prob), reference_log_prob=reference)
        reward = jnp.asarray(outcomes.batch.reward) - self.reference_kl * gap
        count = self.samples_per_prompt if self.samples_per_prompt > 1 else reward.shape[0]
        grouped = reward.reshape(-1, count)
        baseline = losses.leave_one_out(reward=grouped, where=outcomes.exists.reshape(-1, count)).reshape(-1)
        return losses.reinforce(log_prob=log_prob, reward=reward, baseline=baseline, where=outcomes.exists)

    def batches(self, source: BatchSource) -> BatchFn:
        """Answers of the student as it is at each step."""

        def sampled(step: int, state: TrainState) -> SampledBatch:
            prompts = np.repeat(prompts_of(source, step, self.samples_per_prompt), self.samples_per_prompt)
            return sampled_rows(source, state.params["adapter"], prompts, step)

        return sampled

    def metrics(self, outcomes: Outcomes) -> dict[str, Array]:
        """See `sample_metrics`."""
        return sample_metrics(outcomes)
