"""The direct baseline: cross-entropy of the refusal on harmful prompts and of the answers on the rest."""

import dataclasses

import jax.numpy as jnp

from edgesafe_jax import losses
from edgesafe_jax.safety.objectives.base import Objective, Outcomes
from edgesafe_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class RefusalPerplexity(Objective):
    """Cross-entropy of what the system most probably says: the refusal where it refuses, the answer where it answers.

    -log q(y_r | x) where P(unsafe) is above one half, -log q(y | x) elsewhere. Unlike `kl` it knows the verdict and not
    its probability.

    Attributes:
      normalization: over the tokens of an outcome; its exponential is a perplexity with "mean".

    Reference: "perplexity" among the direct objectives of Alfarra et al., arXiv 2606.09388, which take it of a corpus;
    here it is that of the system's own outcomes.
    """

    normalization: losses.Normalization = "mean"
    with_decision = False

    def __call__(self, outcomes: Outcomes) -> Array:
        """The cross-entropy of each outcome that the system decides for, `[B]`; 0 for the other one."""
        decided = outcomes.exists & (jnp.asarray(outcomes.batch.weight) >= 0.5)
        return jnp.where(decided, -outcomes.log_prob(self.normalization), 0.0)
