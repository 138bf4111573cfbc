"""The protocol of runtimes: other programs that run an exported model, started here, asked here and stopped here."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgesafe_jax.errors import EdgesafeError, check_counts
from edgesafe_jax.typing import ProgressFn


class RuntimeFailure(EdgesafeError, RuntimeError):
    """A runtime that is not installed, cannot load a model, or refuses a request."""


@dataclasses.dataclass(frozen=True)
class RuntimeSettings:
    """Settings of a runtime.

    Attributes:
      num_threads: of the processor; None for all that this process may use.
      num_parallel: requests that run at once.
      context: positions of each of them.
      exact: whether keys and values are kept in float32 and attention is computed step by step, for comparisons with
        JAX; otherwise as the runtime does it by default.
      batch: positions of a prompt that are computed at once; None for the runtime's default.

    Raises:
      ConfigError: a count below 1.
    """

    num_threads: int | None = None
    num_parallel: int = 1
    context: int = 2048
    exact: bool = False
    batch: int | None = None

    def __post_init__(self):
        check_counts(num_parallel=self.num_parallel, context=self.context)
        optional = {"num_threads": self.num_threads, "batch": self.batch}
        check_counts(**{name: count for name, count in optional.items() if count is not None})


@dataclasses.dataclass(frozen=True)
class RuntimeAnswers:
    """Greedy answers of a runtime.

    Attributes:
      texts: N answers.
      tokens: the same as token ids, the token that ended an answer included.
      first_seconds: `[N]`, until the first token, by the runtime's own clock.
      tokens_per_second: `[N]`, of the tokens after the first, by the runtime's own clock.
    """

    texts: list[str]
    tokens: list[list[int]]
    first_seconds: np.ndarray
    tokens_per_second: np.ndarray


class Runtime(Protocol):
    """A running program with a loaded model, a context manager that stops it at the end."""

    def __enter__(self) -> "Runtime":
        """Returns itself."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stops the program."""
        ...

    def answer(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        prefills: Sequence[str] | None = None,
        on_batch: ProgressFn | None = None,
    ) -> RuntimeAnswers:
        """Answers one-turn chats greedily, with the chat template of the model's file.

        Args:
          prompts: N user texts.
          max_tokens: longest answer.
          prefills: how each answer is made to begin, or None.
          on_batch: called with (answers done, answers in total).
        """
        ...

    def answer_log_probs(
        self, prompts: Sequence[str], answers: Sequence[str], *, on_batch: ProgressFn | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[N]` log-probabilities of given answers to one-turn chats, and `[N]` their numbers of tokens."""
        ...
