"""The training prompts of an alignment: a choice of the packaged ones, or a user's own file."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgesafe_jax import corpora
from edgesafe_jax.corpora import forms
from edgesafe_jax.corpora.everyday import everyday_questions
from edgesafe_jax.corpora.rows import read_rows
from edgesafe_jax.errors import COUNT, ConfigError, check_ranges
from edgesafe_jax.models.chats import Chat, flat_text
from edgesafe_jax.safety import prompts
from edgesafe_jax.safety.prompts import Split
from edgesafe_jax.safety.settings import HARD, MiningSettings
from edgesafe_jax.safety.teacher import REFUSE

_log = logging.getLogger(__name__)

PACKAGED_GROUPS = (REFUSE, "sensitive", "plain")
"""Rows of a batch by what the guard said: refused; answered, near a harmful topic; answered, everyday."""

COUNTS = (
    "num_harmful",
    "num_sensitive",
    "num_plain",
    "num_forms",
    "num_everyday",
    "forms_per_prompt",
    "max_prompt_tokens",
)
"""Fields of `TrainingData` that are counts."""

EVERYDAY = 3
"""Other forms of a question about an everyday act, for each of another prompt: requests for harm ask for acts more
often than plain questions do, and a gate would take the form for the harm."""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Which prompts a student is trained on.

    Attributes:
      path: a JSONL file; empty for the packaged prompts.
      column: its field with the texts or chats.
      label_column: its field with the labels, each of which becomes a group of a batch; empty makes one group,
        "answer", of all answers.
      num_harmful: of the packaged prompts, None for all.
      num_sensitive: likewise.
      num_plain: likewise.
      num_forms: packaged prompts of each group that are there once more in another form, None for all.
      num_everyday: packaged questions about everyday acts, None for all.
      forms_per_prompt: other forms of each text in which the parts of an adapter that are fitted before the training
        (a gate, a contrastive direction) see it too; `EVERYDAY` times as many of questions about everyday acts.
      refuse_harmful: whether the packaged harmful requests are refused whatever the answer, see `system.refusing`.
      max_prompt_tokens: longest prompt, None for no limit.
    """

    path: str = ""
    column: str = "prompt"
    label_column: str = ""
    num_harmful: int | None = None
    num_sensitive: int | None = None
    num_plain: int | None = None
    num_forms: int | None = 0
    num_everyday: int | None = 0
    forms_per_prompt: int = 0
    refuse_harmful: bool = False
    max_prompt_tokens: int | None = None

    def __post_init__(self):
        check_ranges(dataclasses.asdict(self), dict.fromkeys(COUNTS, COUNT), prefix="data.")
        if self.path and self.refuse_harmful:
            raise ConfigError(
                "data.refuse_harmful=True is for the packaged prompts: for data.path expected False, and a guard "
                "MODULE:FUNCTION that knows the requests."
            )

    def groups(self) -> tuple[str, ...]:
        """Names of the groups of a batch, before any work.

        Raises:
          CorpusError: the file cannot be read, or lacks a column.
        """
        if not self.path:
            return PACKAGED_GROUPS
        labels = dict.fromkeys(row.category for row in self._read())
        if REFUSE in labels:
            raise ConfigError(f"{self.path} has the label {REFUSE!r}, which names the refusals: use another one.")
        return (REFUSE, *labels)

    def _read(self) -> list[corpora.Prompt]:
        return read_rows(self.path, column=self.column, label_column=self.label_column)


class Chosen(NamedTuple):
    """Training prompts.

    Attributes:
      texts: N texts or chats.
      labels: N: of a file its own; of the packaged prompts "plain" for everyday ones, else "sensitive".
      refused: those of the texts that are refused whatever the answer.
    """

    texts: list[str | Chat]
    labels: list[str]
    refused: list[str | Chat]


def choose(data: TrainingData, split: Split, num_tokens: Callable[[str], int]) -> Chosen:
    """Chooses the prompts, without any that overlaps an evaluation prompt.

    Args:
      data: which.
      split: what is kept out of training, and the seed of the choice.
      num_tokens: of a text.

    Returns:
      The prompts with their labels.

    Raises:
      ConfigError: no prompt of some kind is short enough, or none is left.
    """
    longest = data.max_prompt_tokens
    fits = None if longest is None else lambda text: num_tokens(text.strip()) <= longest
    if data.path:
        rows = data._read()
        kept, dropped = corpora.remove_overlap(rows, prompts.kept_out_of_training(split))
        kept = [row for row in kept if fits is None or fits(flat_text(row.chat))]
        if gone := {row.category for row in rows} - {row.category for row in kept}:
            raise ConfigError(
                f"{data.path}: no row with the label {sorted(gone)[0]!r} is left ({len(dropped)} of {len(rows)} rows "
                f"are too close to an evaluation prompt; data.max_prompt_tokens={longest}): expected some."
            )
        _log.info(f"{len(dropped)} prompts left out, too close to an evaluation prompt")
        return Chosen([row.chat for row in kept], [row.category for row in kept], [])
    chosen, removed = prompts.training_prompts(
        num_harmful=data.num_harmful,
        num_sensitive=data.num_sensitive,
        num_plain=data.num_plain,
        num_forms=data.num_forms,
        num_everyday=data.num_everyday,
        split=split,
        fits=fits,
    )
    if none := [name for name, found in chosen.items() if not found]:
        raise ConfigError(
            f"No {none[0]} prompt has at most config.data.max_prompt_tokens={longest} tokens: raise it, or -1 for all."
        )
    _log.info(f"{removed} prompts left out, too close to an evaluation prompt")
    labels = ["plain" if name == "plain" else "sensitive" for name, found in chosen.items() for _ in found]
    rows = [p for found in chosen.values() for p in found]
    refused: list[str | Chat] = [p.text for p in rows if data.refuse_harmful and p.label == "harmful"]
    return Chosen([p.text for p in rows], labels, refused)


def other_forms(data: TrainingData, texts: Sequence[str | Chat], split: Split) -> list[tuple[int, str]]:
    """Returns the prompts in other forms, which no teacher answers: what it does with a prompt holds for its forms.

    Args:
      data: how many of each.
      texts: N prompts; chats have none.
      split: what is kept out of training.

    Returns:
      (number of the prompt, its form), without any that overlaps an evaluation prompt.
    """
    if not data.forms_per_prompt:
        return []
    numbers = [i for i, text in enumerate(texts) if isinstance(text, str)]
    few = {p.text for p in everyday_questions()}
    counts = [data.forms_per_prompt * (EVERYDAY if texts[i] in few else 1) for i in numbers]
    found = forms.other_forms([str(texts[i]) for i in numbers], counts)
    kept = set(corpora.remove_overlap([text for _, text in found], prompts.kept_out_of_training(split))[0])
    return [(numbers[i], text) for i, text in found if text in kept]


def even_mining(mining: MiningSettings, groups: tuple[str, ...]) -> MiningSettings:
    """Returns the mining with a mixture for other groups: refusals 6 to 10 for all answers, half of each hard rows."""
    answers = [name for name in groups if name != REFUSE]
    weights = {REFUSE: 6.0, **{name: 10.0 / len(answers) for name in answers}}
    hard = {f"{HARD}{name}": weight / 2 for name, weight in weights.items()}
    return dataclasses.replace(mining, mixture={**{name: weight / 2 for name, weight in weights.items()}, **hard})
