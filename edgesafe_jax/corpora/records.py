"""The records that readers return, and the errors they raise."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from edgesafe_jax.errors import EdgesafeError

Label = Literal["harmful", "benign", "unlabelled"]


class CorpusError(EdgesafeError, ValueError):
    """A data file that cannot be read or an invalid selection; the message names the file and the line."""


class MissingCorpusError(EdgesafeError, FileNotFoundError):
    """A file of prompts that does not exist."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One request to a language model.

    Attributes:
        text: what the user says; never empty, no surrounding white space.
        source: where it comes from, such as ``"advbench"``.
        category: topic or class within the source; may be empty.
        label: ``"harmful"``, ``"benign"``, or ``"unlabelled"`` where the data does not say.
        before: what was said before, as (role, text): a system prompt, earlier turns.
    """

    text: str
    source: str
    category: str
    label: Label
    before: tuple[tuple[str, str], ...] = ()

    @property
    def chat(self) -> str | list[dict[str, str]]:
        """The text alone, or the whole chat as messages where something was said before."""
        if not self.before:
            return self.text
        return [{"role": role, "content": text} for role, text in (*self.before, ("user", self.text))]


@dataclasses.dataclass(frozen=True)
class ScoredPair:
    """A prompt, a response to it, and a score of the response.

    Attributes:
        prompt: the request.
        response: the answer that was scored.
        score: in [0, 1]; its meaning depends on the reader.
        source: the file it comes from, such as ``"harm/exploits"``.
    """

    prompt: str
    response: str
    score: float
    source: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with options, of which one is right.

    Attributes:
        context: the passage, if any, and the question; no template and no list of options.
        options: the options without their letters, all different.
        answer: index of the right option.
        source: name of the data set.
    """

    context: str
    options: tuple[str, ...]
    answer: int
    source: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A word problem with a number as its answer.

    Attributes:
        text: the problem.
        answer: the number, without separators of thousands, such as ``"2280"``.
        source: name of the data set.
    """

    text: str
    answer: str
    source: str


@dataclasses.dataclass(frozen=True)
class Instructed:
    """A request with instructions that a program can verify.

    Attributes:
        text: the request, which states the instructions in words.
        instructions: names in ``metrics.VERIFIERS`` with their arguments.
        source: name of the data set.
    """

    text: str
    instructions: tuple[tuple[str, Mapping[str, Any]], ...]
    source: str
