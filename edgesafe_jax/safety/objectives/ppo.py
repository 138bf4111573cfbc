"""Proximal policy optimisation on the student's own answers: a value head, and the guard's verdict as the reward."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax import losses, parallel
from edgesafe_jax.errors import FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_COUNT, check_ranges
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.safety.objectives.base import BatchFn, BatchSource, Needs, Objective, Outcomes
from edgesafe_jax.safety.objectives.reinforce import SampledBatch, sample_metrics, sampled_rows
from edgesafe_jax.safety.objectives.rows import along
from edgesafe_jax.training import TrainState
from edgesafe_jax.typing import Adapter, Array, PRNGKey, PyTree


@flax.struct.dataclass
class RolloutBatch(SampledBatch):
    """Answers of the student with what the policy that sampled them thought of each token.

    Attributes:
      old_log_prob: `[B, O]` float32, log-probability of the token.
      old_value: `[B, O]` float32, value before the token.
      advantage: `[B, O]` float32, whitened over the batch.
      target: `[B, O]` float32, the return that the value is fitted to.
    """

    old_log_prob: Array | np.ndarray
    old_value: Array | np.ndarray
    advantage: Array | np.ndarray
    target: Array | np.ndarray


def values(own: PyTree, hidden: Array) -> Array:
    """The value head: an affine function of the hidden states, `[B, O, D]` -> `[B, O]`, in float32."""
    return jnp.einsum("bod,d->bo", hidden.astype(jnp.float32), own["weight"]) + own["bias"]


@dataclasses.dataclass(frozen=True)
class PPO(Objective):
    """The clipped surrogate on answers of the student, see `losses.ppo_clip`, `losses.gae` and `losses.value_loss`.

    The reward of a token is -reference_kl (log q - log p), p the base model without adapter, and at the last one the
    guard's P(safe) of the answer as well. One batch of answers is sampled for several steps of the optimiser. The value
    head reads the student's hidden states and does not train the adapter. A row's loss is the mean over its tokens.

    Attributes:
      clip: how far the ratio of the policies, and a value, may move from the ones that sampled.
      reference_kl: cost of a nat of KL to the base model, in units of the reward.
      discount: gamma of the advantages.
      decay: lambda of the advantages.
      updates_per_sample: steps of the optimiser on one batch of answers.
      value_learning_rate: of the value head (Adam).

    Reference: Schulman et al., arXiv 1707.06347; among the direct objectives of Alfarra et al., arXiv 2606.09388.
    """

    clip: float = 0.2
    reference_kl: float = 0.0
    discount: float = 1.0
    decay: float = 0.95
    updates_per_sample: int = 4
    value_learning_rate: float = 3e-4
    with_decision = False

    def __post_init__(self):
        ranges = {
            "clip": POSITIVE,
            "reference_kl": NON_NEGATIVE,
            "discount": FRACTION,
            "decay": FRACTION,
            "updates_per_sample": POSITIVE_COUNT,
            "value_learning_rate": POSITIVE,
        }
        check_ranges(dataclasses.asdict(self), ranges, prefix="")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Samples and their rewards, each for some steps."""
        return Needs(samples=True, reward=True, updates_per_sample=self.updates_per_sample)

    def init_own(self, key: PRNGKey, model: LanguageModel) -> PyTree:
        """The value head, which starts at 0."""
        del key
        return {"weight": jnp.zeros(model.config.embed_dim, jnp.float32), "bias": jnp.zeros((), jnp.float32)}

    def own_optimizer(self) -> optax.GradientTransformation:
        """Adam at a constant rate."""
        return optax.adam(self.value_learning_rate)

    def __call__(self, outcomes: Outcomes) -> Array:
        """Policy and value loss of each answer, `[B]`."""
        batch, where = outcomes.batch, outcomes.where
        assert isinstance(batch, RolloutBatch)
        policy = losses.ppo_clip(
            log_prob=outcomes.token_log_prob,
            old_log_prob=batch.old_log_prob,
            advantage=batch.advantage,
            clip=self.clip,
            where=where,
        )
        value = losses.value_loss(
            value=values(outcomes.own, jax.lax.stop_gradient(outcomes.hidden)),
            target=batch.target,
            old_value=batch.old_value,
            clip=self.clip,
            where=where,
        )
        return jnp.sum(policy + value, axis=1) / outcomes.count

    def batches(self, source: BatchSource) -> BatchFn:
        """Answers of the student as it was when the batch began; a batch serves `updates_per_sample` steps."""
        kept: dict[int, RolloutBatch] = {}

        def rollouts(step: int, state: TrainState) -> RolloutBatch:
            begin = step - step % self.updates_per_sample
            if begin not in kept:
                kept.clear()
                sampling = ("adapter", "own") if self.updates_per_sample == 1 else ("behaviour", "behaviour_own")
                adapter, own = (parallel.to_local(state.params[name]) for name in sampling)
                kept[begin] = self._rollouts(source, adapter, own, begin)
            return kept[begin]

        return rollouts

    def _rollouts(self, source: BatchSource, adapter: Adapter, own: PyTree, step: int) -> RolloutBatch:
        batch = sampled_rows(source, adapter, source.data.sample[source.order(step)], step)
        hidden, log_prob = along(source.model, batch, adapter, head=source.data.head)
        where = jnp.asarray(batch.outcome_where)
        gap = losses.kl_penalty(log_prob=log_prob, reference_log_prob=batch.reference_log_prob, where=where)
        last = np.arange(where.shape[1])[None] == np.sum(batch.outcome_where, axis=1)[:, None] - 1
        reward = jnp.where(last, jnp.asarray(batch.reward)[:, None], 0.0) - self.reference_kl * gap
        value = values(own, jnp.asarray(hidden))
        advantage, target = losses.gae(
            reward=reward, value=value, discount=self.discount, decay=self.decay, where=where
        )
        return RolloutBatch(
            **vars(batch),
            old_log_prob=log_prob,
            old_value=np.asarray(value),
            advantage=np.asarray(losses.whiten(advantage, where=where)),
            target=np.asarray(target),
        )

    def metrics(self, outcomes: Outcomes) -> dict[str, Array]:
        """See `sample_metrics`."""
        return sample_metrics(outcomes)
