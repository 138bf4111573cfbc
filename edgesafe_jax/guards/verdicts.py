"""The guard protocol: a callable from prompts and responses to P(unsafe), and the check of its results."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from edgesafe_jax.errors import EdgesafeError

Guard: TypeAlias = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""From N prompts and N responses to P(unsafe), `[N]` in [0, 1]: it judges the response, the prompt is context."""

Encode: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""A sentence encoder: from N texts to unit vectors `[N, D]`."""


class GuardError(EdgesafeError, ValueError):
    """A guard that returned something other than probabilities."""


def checked(guard: Guard) -> Guard:
    """Wraps a guard so that whatever it returns is float64 probabilities of the right shape.

    Args:
      guard: any callable with the signature of `Guard`.

    Returns:
      A guard whose result is `[N]` float64 in [0, 1].

    Raises:
      GuardError: (by the wrapped guard, when called) a wrong shape, NaN, or a value outside [0, 1]; the message names
        the first offending pair.
      ValueError: (likewise) another number of responses than prompts.
    """

    def scored(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses: expected as many of each.")
        result = np.asarray(guard(prompts, responses), np.float64)
        if result.shape != (len(prompts),):
            raise GuardError(
                f"The guard returned shape {result.shape} for {len(prompts)} pairs: expected one number each."
            )
        wrong = np.flatnonzero(~((result >= 0) & (result <= 1)))
        if wrong.size:
            first = int(wrong[0])
            raise GuardError(
                f"The guard returned {result[first]} for pair {first} (prompt {prompts[first][:40]!r}...): expected a "
                f"probability of being unsafe in [0, 1]. {wrong.size} of {len(prompts)} values are wrong."
            )
        return result

    return scored


def judged_once(guard: Guard) -> Guard:
    """Wraps a guard so that it judges each pair once: its verdicts are kept for as long as the wrapper lives.

    Args:
      guard: one whose verdict on a pair does not depend on the pairs beside it.

    Returns:
      A guard with the same verdicts.

    Example:
      >>> calls = []
      >>> def guard(prompts, responses):
      ...     calls.append(len(prompts))
      ...     return np.zeros(len(prompts))
      >>> once = judged_once(guard)
      >>> once(["a", "a", "b"], ["x", "x", "y"]), once(["b", "c"], ["y", "z"]), calls
      (array([0., 0., 0.]), array([0., 0.]), [2, 1])
    """
    known: dict[tuple[str, str], float] = {}

    def scored(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        pairs = list(zip(prompts, responses, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        if new:
            verdicts = checked(guard)([prompt for prompt, _ in new], [response for _, response in new])
            known.update(zip(new, verdicts.tolist(), strict=True))
        return np.array([known[pair] for pair in pairs], np.float64)

    return scored
