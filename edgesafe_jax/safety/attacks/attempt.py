"""What an attack is: a function from harmful requests to what is sent to a model in their place."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

from edgesafe_jax.corpora import Prompt
from edgesafe_jax.errors import POSITIVE_COUNT, check_ranges
from edgesafe_jax.models.chats import Chat
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, PRNGKey


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt to get an answer to a harmful request.

    Attributes:
      request: the request itself, by which the answer is judged.
      sent: the user text or the chat that the model gets.
      prefill: how the model's answer is made to begin; empty for no prefill.
    """

    request: Prompt
    sent: str | Chat
    prefill: str = ""


@dataclasses.dataclass(frozen=True)
class SearchBudget:
    """The effort of an attack that searches.

    Attributes:
      num_steps: steps of the search, for each request.
      num_candidates: attempts that are compared in a step.

    Raises:
      ConfigError: a number below 1.
    """

    num_steps: int = 20
    num_candidates: int = 32

    def __post_init__(self):
        check_ranges(
            dataclasses.asdict(self), dict.fromkeys(("num_steps", "num_candidates"), POSITIVE_COUNT), prefix="search."
        )


@dataclasses.dataclass(frozen=True)
class Target:
    """What is attacked, and how hard.

    Attributes:
      model: the frozen language model.
      adapter: the student's, or None for the bare model.
      budget: of attacks that search.
    """

    model: LanguageModel
    adapter: Adapter | None = None
    budget: SearchBudget = dataclasses.field(default_factory=SearchBudget)


MakeAttempts: TypeAlias = Callable[[PRNGKey, Target, Sequence[Prompt]], list[Attempt]]
"""From a random key, the target and N harmful requests to N attempts in their order."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """An entry of the table of attacks.

    Attributes:
      title: in tables.
      make: makes one attempt of each request.
      adaptive: whether the attempts are made for each target by itself. Others are made once, from the bare model.
    """

    title: str
    make: MakeAttempts
    adaptive: bool = False
