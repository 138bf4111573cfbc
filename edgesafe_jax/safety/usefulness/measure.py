"""What a measure of usefulness is: items, and a score of a model for each of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.corpora import Records
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, ProgressFn


@dataclasses.dataclass(frozen=True)
class Reading:
    """Who is measured, and how.

    Attributes:
      model: the frozen language model.
      adapter: the student's, or None for the bare model.
      max_tokens: longest answer.
      on_batch: called with (items done, items in total), or None.
    """

    model: LanguageModel
    adapter: Adapter | None
    max_tokens: int
    on_batch: ProgressFn | None = None


@dataclasses.dataclass(frozen=True)
class Measure:
    """An entry of the table of measures.

    Attributes:
      items: from a user's files, by the name of the data set, to the items: those of its file where there is one, else
        packaged ones.
      score: from a reading and N items to numbers by quantity, `[N]` each.
      titles: of the quantities in tables, by name; a higher number is better unless the title says so.
    """

    items: Callable[[Mapping[str, Records]], Sequence[Any]]
    score: Callable[[Reading, Sequence[Any]], dict[str, np.ndarray]]
    titles: Mapping[str, str]
