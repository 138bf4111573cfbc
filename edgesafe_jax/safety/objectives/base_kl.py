"""A term that keeps the student near its base model on benign prompts, for any objective."""

import dataclasses

import jax.numpy as jnp

from edgesafe_jax import losses
from edgesafe_jax.losses.divergences import Divergence
from edgesafe_jax.safety.objectives.base import Needs, Objective, Outcomes
from edgesafe_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class KLToBase(Objective):
    """KL from the base model to the student along the answers to benign prompts, KL(p || q), mean over the positions.

    A prompt is benign where the guard gives the base model's answer a P(safe) above one half. Rows of other prompts,
    and refusals, give 0. Beside a distillation objective, whose teacher is nearly the base model there, the term gives
    benign prompts more weight.

    Attributes:
      divergence: to the base model.
    """

    divergence: Divergence = losses.forward_kl
    needs = Needs(base_hidden=True)

    def __call__(self, outcomes: Outcomes) -> Array:
        """The divergence along each benign answer, `[B]`."""
        batch = outcomes.batch
        benign = outcomes.exists & (jnp.asarray(batch.refusal_prob) < 0.5) & ~jnp.asarray(batch.is_refusal)
        return jnp.where(benign, jnp.sum(outcomes.divergence_to_base(self.divergence), axis=1) / outcomes.count, 0.0)
