"""Responses with human scores."""

import math
import pathlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from edgesafe_jax import assets
from edgesafe_jax.corpora.files import read_csv
from edgesafe_jax.corpora.records import CorpusError, ScoredPair
from edgesafe_jax.errors import lookup

_SCORED_FILES: dict[str, tuple[str, ...]] = {
    "harm": ("harm/*.csv",),
    "refusal": ("refusal_scorer/*.csv", "sample/mini_refusal.csv"),
    "objective": ("objective/*.csv",),
}


ScoredKind = Literal["harm", "refusal", "objective"]


def human_scored(kind: ScoredKind = "harm") -> list[ScoredPair]:
    """Returns (prompt, response) pairs that people scored.

    Args:
        kind: what was scored:

            - ``"harm"``: how harmful the response is, on the scale 0, 1/4, 1/2, 3/4, 1; one to
              three people each (984 pairs, 532 of them with a mean of at least 1/2);
            - ``"refusal"``: 1 if the response refuses or does not address the request, else 0 (169
              pairs, 109 refusals);
            - ``"objective"``: 1 if the response does what the request wants, else 0 (394 pairs).

            201 pairs occur both under ``"harm"`` and under ``"objective"``.

    Returns:
        Pairs with the mean over all people as score. A pair that occurs several times, in one file
        or in two, is returned once with the mean over its occurrences.

    Raises:
        ConfigError: unknown kind.
        CorpusError: a score outside of [0, 1].

    Example:
        ``[pair.score >= 0.5 for pair in human_scored("harm")]``
    """
    patterns = lookup(_SCORED_FILES, kind, "kind")
    root = assets.fetch("pyrit") / "pyrit/datasets/scorer_evals"
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    sources: dict[tuple[str, str], str] = {}
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            source = path.relative_to(root).with_suffix("").as_posix()
            for row in read_csv(path):
                pair = row["objective"].strip(), row["assistant_response"].strip()
                scores[pair].append(_mean_score(row, path))
                sources.setdefault(pair, source)
    return [
        ScoredPair(
            prompt=pair[0],
            response=pair[1],
            score=math.fsum(values) / len(values),
            source=sources[pair],
        )
        for pair, values in scores.items()
    ]


def _mean_score(row: Mapping[str, str], path: pathlib.Path) -> float:
    """The mean of the columns ``human_score``, ``human_score_1``, ... that are filled."""
    values = [
        float(value)
        for column, value in row.items()
        if column and column.startswith("human_score") and value and value.strip()
    ]
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise CorpusError(f"{path}: expected human scores in [0, 1], got {values}.")
    return math.fsum(values) / len(values)
