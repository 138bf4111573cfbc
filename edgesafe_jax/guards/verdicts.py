"""The guard protocol: a callable from prompts and responses to P(unsafe), and the check of its results."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from edgesafe_jax.errors import ConfigError, EdgesafeError, check_texts
from edgesafe_jax.metrics import after_reasoning
from edgesafe_jax.models.finite import NonFiniteError, check_finite
from edgesafe_jax.typing import PyTree

T = TypeVar("T")

Guard: TypeAlias = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""From N prompts and N responses to P(unsafe), `[N]` in [0, 1]: it judges the response, the prompt is context."""

Encode: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""A sentence encoder: from N texts to unit vectors `[N, D]`."""


class GuardError(EdgesafeError, ValueError):
    """A guard that returned something other than probabilities."""


def check_pairs(prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns prompts and responses as lists.

    Args:
      prompts: N texts.
      responses: N texts.

    Raises:
      ConfigError: one string where several are expected, something that is not text, or another number of responses
        than prompts.
    """
    prompts, responses = check_texts("prompts", prompts), check_texts("responses", responses)
    if len(prompts) != len(responses):
        raise ConfigError(f"{len(prompts)} prompts and {len(responses)} responses: expected as many of each.")
    return prompts, responses


def check_finite_pairs(finite: np.ndarray, what: str, *, sources: Sequence[tuple[str, PyTree]] = ()) -> None:
    """Checks what a guard computed of N pairs.

    Args:
      finite: `[N]` bool, whether it is finite.
      what: what it is, such as "The scores".
      sources: trees that it was computed from, by name; see `edgesafe_jax.models.finite.check_finite`.

    Raises:
      GuardError: something is not finite; the message names the first pair and the tensors that are not finite.
    """
    try:
        check_finite(np.asarray(finite, bool), f"{what} of pair", sources=sources)
    except NonFiniteError as error:
        raise GuardError(str(error)) from error


def judged_text(response: str) -> str:
    """Returns the part of a response that the guards of this room judge.

    Reasoning in `<think>...</think>` at the beginning is left out: the verdict is about the answer that follows it, see
    `edgesafe_jax.metrics.after_reasoning`. Whatever could hide an answer is judged: a block that is not closed or that
    nothing follows, and text before a closing tag without an opening one.

    Args:
      response: the response.

    Returns:
      The response without leading reasoning and without outer space.

    Example:
      >>> judged_text("<think>They ask for a bomb.</think> I cannot help with that.")
      'I cannot help with that.'
    """
    text = response.strip()
    return after_reasoning(text, opened=True).strip() or text


def checked(guard: Guard) -> Guard:
    """Wraps a guard so that whatever it returns is float64 probabilities of the right shape.

    Args:
      guard: any callable with the signature of `Guard`.

    Returns:
      A guard whose result is `[N]` float64 in [0, 1].

    Raises:
      GuardError: (by the wrapped guard, when called) a wrong shape, NaN, or a value outside [0, 1]; the message names
        the first offending pair.
      ConfigError: (likewise) what is not a list of texts, or another number of responses than prompts.
    """

    def scored(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        prompts, responses = check_pairs(prompts, responses)
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


def judged_once(guard: Guard) -> "Once":
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
    return Once(guard)


def each_once(
    known: dict[tuple[str, str], T],
    prompts: Sequence[str],
    responses: Sequence[str],
    compute: Callable[[list[str], list[str]], Iterable[T]],
) -> list[T]:
    """Returns what is known of each of N pairs, after it was computed for those of which nothing was.

    Args:
      known: by pair; what is computed is added to it.
      prompts: N texts.
      responses: N texts.
      compute: gives one result for each of some different pairs.
    """
    pairs = list(zip(prompts, responses, strict=True))
    if new := [pair for pair in dict.fromkeys(pairs) if pair not in known]:
        known.update(zip(new, compute([x for x, _ in new], [y for _, y in new]), strict=True))
    return [known[pair] for pair in pairs]


@dataclasses.dataclass(frozen=True)
class Once:
    """A guard that judges each pair once, see `judged_once`.

    Attributes:
      guard: the guard.
      known: verdicts by pair.
    """

    guard: Guard
    known: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        prompts, responses = check_pairs(prompts, responses)
        found = each_once(self.known, prompts, responses, lambda x, y: checked(self.guard)(x, y).tolist())
        return np.array(found, np.float64)
