"""Preference optimisation: the gated teacher prefers the answer or the refusal."""

import dataclasses

import flax.struct
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.errors import POSITIVE, check_ranges
from edgesafe_jax.safety.objectives.base import BatchFn, BatchSource, Needs, Objective, Outcomes
from edgesafe_jax.safety.objectives.rows import along, make_rows, prompts_of
from edgesafe_jax.safety.teacher import TeacherBatch
from edgesafe_jax.training import TrainState
from edgesafe_jax.typing import Array


@flax.struct.dataclass
class PairBatch(TeacherBatch):
    """Pairs of rows: a prompt with the base model's answer, then the same with the refusal.

    Attributes:
      reference_log_prob: `[B]` float32, log-probability of each outcome under the base model without adapter.
    """

    reference_log_prob: Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimisation between the base model's answer and the refusal, see `losses.dpo`.

    The guard's verdict says which of the two is chosen, and its doubt is the probability that the preference is the
    other way round. Log-probabilities are summed over the tokens that are kept of an outcome.

    Attributes:
      beta: how strongly the base model is kept to.
    """

    beta: float = 0.1
    needs = Needs(rows_per_prompt=2)
    with_decision = False

    def __post_init__(self):
        check_ranges({"beta": self.beta}, {"beta": POSITIVE}, prefix="")

    def __call__(self, outcomes: Outcomes) -> Array:
        """The loss of each pair, `[B]`, at both of its rows."""
        assert isinstance(outcomes.batch, PairBatch)
        log_prob = outcomes.log_prob("sum").reshape(-1, 2)
        reference = jnp.asarray(outcomes.batch.reference_log_prob).reshape(-1, 2)
        loss = losses.dpo(
            chosen_log_prob=log_prob[:, 0],
            rejected_log_prob=log_prob[:, 1],
            reference_chosen_log_prob=reference[:, 0],
            reference_rejected_log_prob=reference[:, 1],
            beta=self.beta,
            flip_prob=jnp.asarray(outcomes.batch.refusal_prob).reshape(-1, 2)[:, 0],
            where=jnp.all(outcomes.exists.reshape(-1, 2), axis=1),
        )
        return jnp.repeat(loss, 2)

    def batches(self, source: BatchSource) -> BatchFn:
        """Pairs of the teacher's outcomes, with the log-probabilities of the base model."""
        data = source.data

        def pairs(step: int, state: TrainState) -> PairBatch:
            del state
            prompts = prompts_of(source, step, 2)
            refused = data.refusal_prob[prompts]
            begun = source.prefixes(prompts, step)
            batch = make_rows(
                source,
                np.repeat(prompts, 2),
                [
                    outcome
                    for number, prefix in zip(prompts, begun, strict=True)
                    for outcome in (data.answers[number][len(prefix) :], data.refusal)
                ],
                is_refusal=np.tile([False, True], len(prompts)),
                weight=np.stack([1 - refused, refused], axis=1).ravel(),
                max_tokens=data.max_tokens,
                prefixes=[prefix for prefix in begun for _ in range(2)],
            )
            _, log_prob = along(source.model, batch, head=source.data.head)
            return PairBatch(**vars(batch), reference_log_prob=log_prob.sum(axis=1))

        return pairs
