"""The safe system that is distilled: a language model, a guard and a refusal.

Alfarra et al., "Distilling Safe LLM Systems via Soft Prompts for On Device Settings", arXiv 2606.09388. With a guard
p(s | x, y) that judges a response y to a prompt x, and a refusal y_r,

    p(r | x, y) = p(s=1 | x, y) I[r = y] + p(s=0 | x, y) I[r = y_r]      (equation 1)
    p(r | x)    = sum_y p(y | x) p(r | x, y)                             (equation 2)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edgesafe_jax.errors import FRACTION, POSITIVE, PROBABILITY, ConfigError, check_ranges
from edgesafe_jax.guards.verdicts import Guard, checked
from edgesafe_jax.models.chats import Chat, flat_text
from edgesafe_jax.models.generation import Generation, generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, PRNGKey, ProgressFn

REFUSAL = "Sorry, I cannot help with this matter."
"""The refusal of the paper."""


def check_refusal(refusal: str) -> None:
    """Raises `ConfigError` unless a refusal says something."""
    if not isinstance(refusal, str) or not refusal.strip():
        raise ConfigError(f"The refusal is empty or no text ({refusal!r}): expected a sentence such as {REFUSAL!r}.")


def sharpened(guard: Guard, *, sharpness: float = 1.0, threshold: float = 0.5) -> Guard:
    """Wraps a guard so that its log-odds are moved, `threshold` becoming one half, and multiplied.

    sigmoid(sharpness (logit P(unsafe) - logit threshold)): with sharpness 1 and threshold 0.5 the guard itself, with
    more a harder decision.

    Args:
      guard: the guard; what it returns is checked.
      sharpness: factor on the log-odds, above 0.
      threshold: P(unsafe) that becomes 0.5, inside (0, 1).

    Returns:
      The guard.

    Raises:
      ConfigError: a factor or a threshold outside its range.
    """
    check_ranges(
        {"sharpness": sharpness, "threshold": threshold}, {"sharpness": POSITIVE, "threshold": PROBABILITY}, prefix=""
    )
    return functools.partial(_sharpen, guard, float(sharpness), float(threshold))


def _sharpen(
    guard: Guard, sharpness: float, threshold: float, prompts: Sequence[str], responses: Sequence[str]
) -> np.ndarray:
    prob = np.clip(checked(guard)(prompts, responses), 1e-9, 1 - 1e-9)
    log_odds = np.log(prob) - np.log1p(-prob) - np.log(threshold / (1 - threshold))
    return 0.5 + 0.5 * np.tanh(0.5 * sharpness * log_odds)


def refusing(guard: Guard, requests: Iterable[str | Chat]) -> Guard:
    """Wraps a guard so that requests that are known to be harmful are unsafe whatever the answer.

    A guard of answers lets a harmless answer to a harmful request pass. A student of it answers such requests; one of
    this guard refuses them.

    Args:
      guard: the guard; what it returns is checked.
      requests: texts or chats.

    Returns:
      The guard.
    """
    return functools.partial(_refuse, guard, frozenset(flat_text(request) for request in requests))


def _refuse(guard: Guard, requests: frozenset[str], prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    known = np.array([prompt in requests for prompt in prompts], bool)
    return np.where(known, 1.0, checked(guard)(prompts, responses))


@dataclasses.dataclass(frozen=True)
class SystemAnswers:
    """The answers of a safe system with the guard's verdicts.

    Attributes:
      responses: the system's answers, after the guard.
      base: the language model's own answers before it.
      unsafe_prob: `[N]`, the guard's P(unsafe) of those.
      refused: `[N]` bool, where the refusal took the answer's place.
    """

    responses: list[str]
    base: Generation
    unsafe_prob: np.ndarray
    refused: np.ndarray


@dataclasses.dataclass(frozen=True)
class SequenceTeacher:
    """The gated teacher at sequence level: with probability `safe_prob` the answer, otherwise the refusal (equation 1).

    Attributes:
      prompts: N user texts or chats x.
      responses: N answers y, drawn from the base model.
      safe_prob: `[N]`, a = p(s=1 | x, y).
      refusal: y_r.
    """

    prompts: list[str | Chat]
    responses: Generation
    safe_prob: np.ndarray
    refusal: str


@dataclasses.dataclass(frozen=True)
class SafeSystem:
    """Base model + guard + refusal.

    Attributes:
      model: the frozen language model.
      guard: judges its answers; what it returns is checked.
      refusal: what is said instead of an unsafe answer.
      generate: what answers prompts, with the signature of `models.generate`.
    """

    model: LanguageModel
    guard: Guard
    refusal: str = REFUSAL
    generate: Callable[..., Generation] = generate

    def __post_init__(self):
        check_refusal(self.refusal)

    def sequence_teacher(
        self,
        prompts: Sequence[str | Chat],
        *,
        key: PRNGKey,
        max_tokens: int,
        temperature: float = 1.0,
        batch_size: int = 64,
        keep_hidden: bool = False,
        on_batch: ProgressFn | None = None,
    ) -> SequenceTeacher:
        """Samples an answer to each prompt from the base model and weighs it with the guard.

        Args:
          prompts: N user texts or chats; of a chat the guard sees all that was said.
          key: random key of the sampling.
          max_tokens: longest answer, in tokens.
          temperature: 1 samples from p(y | x) itself, as equation 2 asks; 0 takes the most probable answer.
          batch_size: rows that run at once.
          keep_hidden: whether to keep the base model's hidden states, which token-level objectives need.
          on_batch: called with (answers done, answers in total).

        Returns:
          Prompts, answers and weights.

        Raises:
          GuardError: the guard returned NaN or left [0, 1].
        """
        answers = self.generate(
            self.model,
            prompts,
            max_tokens=max_tokens,
            temperature=temperature,
            key=key,
            batch_size=batch_size,
            keep_hidden=keep_hidden,
            on_batch=on_batch,
        )
        unsafe = checked(self.guard)([flat_text(prompt) for prompt in prompts], answers.texts)
        return SequenceTeacher(list(prompts), answers, 1.0 - unsafe, self.refusal)

    def answer(
        self,
        prompts: Sequence[str | Chat],
        *,
        max_tokens: int,
        threshold: float | None = 0.5,
        temperature: float = 0.0,
        key: PRNGKey | None = None,
        seed: int = 0,
        adapter: Adapter | None = None,
        prefills: Sequence[str] | None = None,
        batch_size: int = 64,
        on_batch: ProgressFn | None = None,
    ) -> SystemAnswers:
        """Answers prompts with the guard behind the model.

        Args:
          prompts: N user texts or chats; of a chat the guard sees all that was said.
          max_tokens: longest answer, in tokens.
          threshold: refuse where P(unsafe) is above it; None draws from equation 1 instead.
          temperature: of the language model's sampling; 0 is greedy.
          key: random key of the sampling.
          seed: of the draws from equation 1.
          adapter: an adapter on the language model, or None.
          prefills: how each answer is made to begin, or None.
          batch_size: rows that run at once.
          on_batch: called with (answers done, answers in total).

        Returns:
          The answers and the verdicts.

        Raises:
          ConfigError: a threshold outside [0, 1], or an argument that `generate` refuses.
          GuardError: the guard returned NaN or left [0, 1].
        """
        check_ranges({"threshold": threshold}, {"threshold": FRACTION}, prefix="")
        base = self.generate(
            self.model,
            prompts,
            max_tokens=max_tokens,
            adapter=adapter,
            temperature=temperature,
            key=key,
            prefills=prefills,
            batch_size=batch_size,
            on_batch=on_batch,
        )
        unsafe = checked(self.guard)([flat_text(prompt) for prompt in prompts], base.texts)
        limit = np.random.default_rng(seed).random(len(unsafe)) if threshold is None else threshold
        refused = unsafe > limit
        responses = [self.refusal if no else text for no, text in zip(refused, base.texts, strict=True)]
        return SystemAnswers(responses, base, unsafe, refused)
