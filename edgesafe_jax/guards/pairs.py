"""Pairs as a guard with a trained LoRA reads them: the protocols of data and scorer, and scoring in batches.

Two kinds of guard are trained through a LoRA. Where it acts at the verdict only (`edgesafe_jax.guards.activated`), all
else is read once and pairs are what the frozen layers have made of them; where it acts in all layers
(`edgesafe_jax.guards.adapted`), pairs are rows of tokens. Training and scoring see both through `Pairs` and `Scorer`.
"""

import functools
from typing import Any, Protocol

import jax
import numpy as np

from edgesafe_jax.adapters import LoRA
from edgesafe_jax.errors import check_counts
from edgesafe_jax.guards.verdicts import check_finite_pairs
from edgesafe_jax.typing import Array


class Pairs(Protocol):
    """N pairs on the host, without padding."""

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`, positions of each pair."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def batch(self, numbers: np.ndarray, *, one_length: bool = False) -> Any:
        """The pairs of the given numbers as a pytree, padded to the bucket of their longest.

        Args:
          numbers: `[B]`, which pairs.
          one_length: pad to the bucket of the longest of all N instead, so that all batches share one compilation.
        """
        ...


class Scorer(Protocol):
    """Reads verdicts with a LoRA; hashable, so that it can be static under `jax.jit`."""

    def __call__(self, frozen: Any, lora: LoRA, pairs: Any) -> Array:
        """Log-odds of "unsafe", `[B]` float32; pure, and differentiable by the LoRA."""
        ...


@functools.partial(jax.jit, static_argnames="scorer")
def _scores(scorer: Scorer, frozen: Any, lora: LoRA, pairs: Any) -> Array:
    return scorer(frozen, lora, pairs)


def score_pairs(
    scorer: Scorer, frozen: Any, lora: LoRA, pairs: Pairs, numbers: np.ndarray, *, batch_size: int = 64
) -> np.ndarray:
    """Scores pairs of the given numbers, in batches of like length.

    Args:
      scorer: from LoRA and pairs to log-odds.
      frozen: what the scorer takes beside.
      lora: the LoRA.
      pairs: all pairs.
      numbers: `[N]`, which of them.
      batch_size: pairs that run at once.

    Returns:
      Log-odds of "unsafe", `[N]` float64, in the order of `numbers`.

    Raises:
      GuardError: a score is not finite.
    """
    check_counts(batch_size=batch_size)
    found = np.zeros(len(numbers))
    order = np.argsort(pairs.lengths[numbers], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = np.concatenate([chosen, np.repeat(chosen[-1:], batch_size - len(chosen))])
        found[chosen] = np.asarray(_scores(scorer, frozen, lora, pairs.batch(numbers[filled])))[: len(chosen)]
    check_finite_pairs(np.isfinite(found), "The scores", sources=(("frozen part", frozen), ("LoRA", lora)))
    return found
