"""Sets of paraphrases of one answer, from several independent sources, filtered by meaning.

A guard that judges the meaning of an answer gives all members of a set one verdict. A source turns N texts into
candidates; `make_sets` keeps those that are close to the original in meaning (cosine of sentence embeddings) and length
and are neither the original nor one another. The guard itself never decides what is kept: a filter by its own score
would remove the very flips that are to be measured.

Pinneri and Louizos, "Guarding the Meaning: Self-Supervised Training for Semantic Robustness in Guard Models", arXiv
2511.10665: paraphrases are of the response, the prompt is context. The paraphrasers and the filter are this project's.
"""

import collections
import dataclasses
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgesafe_jax.assets import write_checked
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.guards.styles import split_sentences, words_of
from edgesafe_jax.guards.verdicts import Encode

_log = logging.getLogger(__name__)


class ParaphraseError(EdgesafeError, ValueError):
    """A file of paraphrase sets that cannot be read, or a set that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Paraphrase:
    """One rewording and where it comes from.

    Attributes:
      text: the rewording.
      source: what made it, such as "style", "wordnet", "llm" or a user's own name.
      style: which of the source's ways.
    """

    text: str
    source: str
    style: str


@dataclasses.dataclass(frozen=True)
class ParaphraseSet:
    """An answer and its paraphrases.

    Attributes:
      prompt: what was asked; the same for all members.
      original: the answer as it was given.
      paraphrases: rewordings of it; may be empty.
      label: 1 where people call the original unsafe, 0 where safe, None where nobody has. Never trained on.
    """

    prompt: str
    original: str
    paraphrases: tuple[Paraphrase, ...]
    label: float | None = None

    @property
    def texts(self) -> list[str]:
        """The original and then its paraphrases."""
        return [self.original, *(p.text for p in self.paraphrases)]


Source: TypeAlias = Callable[[Sequence[str]], list[list[Paraphrase]]]
"""From N texts to N lists of candidates; any callable will do, a back-translation for instance."""

REASONS = ("identical", "length", "meaning")
"""Why a candidate is dropped, in the order of the checks."""


@dataclasses.dataclass(frozen=True)
class SetCounts:
    """What became of the candidates.

    Attributes:
      ways: by "SOURCE/STYLE" how many candidates there were (`candidates`), were kept (`kept`) and were dropped, by
        reason (`REASONS`).
    """

    ways: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> dict[str, int]:
        """The counts over all ways."""
        names = ("candidates", "kept", *REASONS)
        return {name: sum(counts[name] for counts in self.ways.values()) for name in names}

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Ways that changed nothing: every candidate was the original, or what another way had made of it."""
        return tuple(way for way, counts in self.ways.items() if counts["identical"] == counts["candidates"])

    @property
    def lost(self) -> tuple[str, ...]:
        """Ways that changed everything: no candidate kept the meaning and the length, and some were no copies."""
        return tuple(way for way, c in self.ways.items() if not c["kept"] and c["identical"] < c["candidates"])


def make_sets(
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    sources: Sequence[Source],
    encode: Encode | None,
    labels: Sequence[float] | None = None,
    min_cosine: float = 0.75,
    length_ratio: tuple[float, float] = (0.5, 2.0),
) -> tuple[list[ParaphraseSet], SetCounts]:
    """Makes paraphrase sets and filters them by meaning, length and identity.

    A candidate c of an original x is kept if `cos(e(x), e(c)) >= min_cosine`, its number of words is within
    `length_ratio` times that of x, and after lowering case and dropping punctuation and spacing at the ends it is
    neither x nor a candidate kept before.

    Args:
      prompts: N texts, the context.
      responses: N answers to paraphrase.
      sources: who paraphrases.
      encode: a sentence encoder, it is not the guard; None for no filter by meaning.
      labels: N labels that the sets are to carry, 1 is unsafe.
      min_cosine: smallest cosine of the embeddings.
      length_ratio: smallest and largest ratio of the numbers of words.

    Returns:
      N sets, and what became of the candidates of each way; ways that changed nothing or everything are logged too.

    Raises:
      ValueError: inputs of different length, an empty response, or a source that returns another number of lists.
    """
    if len(prompts) != len(responses) or (labels is not None and len(labels) != len(responses)):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} responses: expected as many of each (and of labels)."
        )
    if empty := [i for i, text in enumerate(responses) if not text.strip()]:
        raise ValueError(f"Response {empty[0]} is empty: there is nothing to paraphrase. Leave the pair out.")
    candidates: list[list[Paraphrase]] = [[] for _ in responses]
    for source in sources:
        made = source(responses)
        if len(made) != len(responses):
            raise ValueError(f"A source returned {len(made)} lists for {len(responses)} texts: expected one each.")
        for index, found in enumerate(made):
            candidates[index] += found
    flat = [p.text for found in candidates for p in found]
    owners = np.repeat(np.arange(len(responses)), [len(found) for found in candidates])
    cosine_of = np.ones(len(flat))
    if encode is not None and flat:
        originals, vectors = (np.asarray(encode(texts), np.float64) for texts in (responses, flat))
        cosine_of = np.sum(vectors * originals[owners], axis=1)
    ways: dict[str, collections.Counter[str]] = {}
    sets, at = [], 0
    for index, found in enumerate(candidates):
        cosines = cosine_of[at : at + len(found)]
        at += len(found)
        kept: list[Paraphrase] = []
        seen = {_bare(responses[index])}
        for candidate, cosine in zip(found, cosines, strict=True):
            ratio = len(words_of(candidate.text)) / len(words_of(responses[index]))
            reason = "kept"
            if _bare(candidate.text) in seen:
                reason = "identical"
            elif not length_ratio[0] <= ratio <= length_ratio[1]:
                reason = "length"
            elif encode is not None and not cosine >= min_cosine:
                reason = "meaning"
            else:
                seen.add(_bare(candidate.text))
                kept.append(candidate)
            ways.setdefault(f"{candidate.source}/{candidate.style}", collections.Counter()).update(
                ("candidates", reason)
            )
        label = None if labels is None else float(labels[index])
        sets.append(ParaphraseSet(prompts[index], responses[index], tuple(kept), label))
    counts = SetCounts(ways)
    for what, names in (("changed no text", counts.unchanged), ("kept the meaning of no text", counts.lost)):
        if names:
            _log.info("%d ways %s: %s", len(names), what, ", ".join(names))
    return sets, counts


def _bare(text: str) -> str:
    """A text without case, outer punctuation and repeated space."""
    return re.sub(r"\s+", " ", text.lower()).strip(" \t\n.,;:!?\"'“”‘’-")


def select(
    sets: Sequence[ParaphraseSet],
    *,
    sources: Collection[str] | None = None,
    styles: Collection[str] | None = None,
    without_sources: Collection[str] = (),
    without_styles: Collection[str] = (),
) -> list[ParaphraseSet]:
    """Keeps paraphrases of some sources and styles; the originals stay.

    Args:
      sets: N sets.
      sources: sources to keep; default all.
      styles: styles to keep; default all.
      without_sources: sources to leave out.
      without_styles: styles to leave out.

    Returns:
      N sets, some of which may have no paraphrase left.
    """

    def wanted(p: Paraphrase) -> bool:
        inside = (sources is None or p.source in sources) and (styles is None or p.style in styles)
        return inside and p.source not in without_sources and p.style not in without_styles

    return [dataclasses.replace(s, paraphrases=tuple(p for p in s.paraphrases if wanted(p))) for s in sets]


def excerpt(text: str, max_words: int) -> str:
    """Returns the first whole sentences of a text, up to a number of words; at least the beginning of the first.

    Args:
      text: the text.
      max_words: most words that are kept.

    Returns:
      The beginning of the text, on one line.

    Example:
      >>> excerpt("One two. Three four. Five.", 4)
      'One two. Three four.'
    """
    kept, count = [], 0
    for sentence in split_sentences(text):
        count += len(words_of(sentence))
        if count > max_words:
            break
        kept.append(sentence)
    beginning = text[: words_of(text)[:max_words][-1].end()] if words_of(text) and max_words > 0 else ""
    return " ".join((" ".join(kept) or beginning).split())


# On disk --------------------------------------------------------------------------------------------------------------


def write_sets(path: str | Path, sets: Sequence[ParaphraseSet], about: Mapping[str, Any]) -> None:
    """Writes sets as JSON lines, with a sidecar `NAME.json` that says how they were made.

    Args:
      path: the `.jsonl` file.
      sets: the sets.
      about: JSON-able provenance: models, seeds, thresholds, counts of the filter.
    """
    path = Path(path)
    lines = [json.dumps(dataclasses.asdict(s), ensure_ascii=False) + "\n" for s in sets]
    write_checked(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))
    text = json.dumps(dict(about), indent=2, sort_keys=True) + "\n"
    write_checked(path.with_suffix(".json"), lambda part: part.write_text(text, encoding="utf-8"))


def read_sets(path: str | Path) -> list[ParaphraseSet]:
    """Reads sets from JSON lines: a user's own, or those that `write_sets` wrote.

    Each line has `prompt`, `original` and `paraphrases`, a list of texts or of objects with `text`, `source` and
    `style`; and, where known, `label` (1 unsafe, 0 safe).

    Args:
      path: the file.

    Returns:
      The sets, in the order of the lines.

    Raises:
      ParaphraseError: no sets, or a line that is not one; the message gives its number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParaphraseError(f"{path} cannot be read ({error}).") from error
    sets = [_parse_set(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not sets:
        raise ParaphraseError(f"{path} holds no sets: expected one JSON object per line.")
    return sets


def _parse_set(line: str, where: str) -> ParaphraseSet:
    try:
        row = json.loads(line)
        found = tuple(
            Paraphrase(p, "user", "user")
            if isinstance(p, str)
            else Paraphrase(p["text"], p.get("source", "user"), p.get("style", "user"))
            for p in row["paraphrases"]
        )
        made = ParaphraseSet(row["prompt"], row["original"], found, row.get("label"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParaphraseError(
            f"{where} is no paraphrase set ({type(error).__name__}: {error}): expected an object with prompt, original "
            "and paraphrases."
        ) from error
    if not all(isinstance(text, str) and text.strip() for text in (made.prompt, *made.texts)):
        raise ParaphraseError(f"{where} has an empty text: expected a prompt, an original and paraphrases with words.")
    if made.label is not None and made.label not in (0, 1):
        raise ParaphraseError(f"{where} has the label {made.label!r}: expected 0 (safe), 1 (unsafe) or none.")
    return made
