"""Removal of evaluation prompts from training data."""

import functools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from edgesafe_jax.corpora.records import CorpusError, Prompt, ScoredPair
from edgesafe_jax.errors import shortened

_Item = TypeVar("_Item", bound=str | Prompt | ScoredPair)


@functools.lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    r"""Returns a text without case, punctuation and repeated white space, to compare texts.

    Args:
        text: any text.

    Returns:
        Words of letters and digits, separated by single spaces.

    Example:
        >>> normalise("  What's a 'Step-by-Step' guide?\n")
        'whats a step by step guide'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`]", "", text)).split())


def remove_overlap(
    train: Sequence[_Item],
    held_out: Sequence[str | Prompt | ScoredPair],
    *,
    similarity: float = 0.7,
) -> tuple[list[_Item], list[_Item]]:
    r"""Removes training items that also occur, exactly or nearly, among held-out ones.

    Two texts overlap if they are equal after `normalise`, or if their sets of words A and B have

    .. math:: |A \cap B| / |A \cup B| \ge \text{similarity}.

    Args:
        train: items to filter; of a `ScoredPair` the prompt counts.
        held_out: items that must not occur in the result.
        similarity: in (0, 1]; 1 removes texts with the same words only.

    Returns:
        The items kept and the items removed, both in the order of ``train``.

    Raises:
        CorpusError: ``similarity`` is outside of (0, 1], or one string stands for several prompts.

    Example:
        >>> remove_overlap(["How are you?", "Who is it?"], ["how ARE you"])
        (['Who is it?'], ['How are you?'])
    """
    for name, items in (("train", train), ("held_out", held_out)):
        if isinstance(items, str):
            raise CorpusError(f"{name}={shortened(items)!r} is one string: expected a list of prompts.")
    if not 0.0 < similarity <= 1.0:
        raise CorpusError(f"similarity must be in (0, 1], got {similarity}.")
    train_texts = [normalise(_text_of(item)) for item in train]
    held_texts = {normalise(_text_of(item)) for item in held_out}
    frequency, index = _index(frozenset(held_texts), similarity)
    kept: list[_Item] = []
    removed: list[_Item] = []
    for item, text in zip(train, train_texts, strict=True):
        words = frozenset(text.split())
        near = text in held_texts or any(
            len(words & other) >= similarity * len(words | other)
            for word in _rarest(words, frequency, similarity)
            for other in index.get(word, ())
        )
        (removed if near else kept).append(item)
    return kept, removed


@functools.lru_cache(maxsize=8)
def _index(held_texts: frozenset[str], similarity: float) -> tuple[Counter[str], dict[str, list[frozenset[str]]]]:
    """How often each word occurs in held-out texts, and their sets of words by their rarest words.

    Two sets this similar share a word among the rarest few of each, so that only sets that meet in a rare word are
    compared.
    """
    held_sets = [frozenset(text.split()) for text in held_texts]
    frequency = Counter(word for words in held_sets for word in words)
    index: dict[str, list[frozenset[str]]] = defaultdict(list)
    for words in held_sets:
        for word in _rarest(words, frequency, similarity):
            index[word].append(words)
    return frequency, dict(index)


def _rarest(words: frozenset[str], frequency: Mapping[str, int], similarity: float) -> list[str]:
    """The words of which a set that is similar enough must share at least one.

    With a Jaccard similarity of at least t, two sets share at least t * |A| words; so, in one
    common order of all words, they share one of the first |A| - ceil(t * |A|) + 1 words of A.
    """
    ordered = sorted(words, key=lambda word: (frequency.get(word, 0), word))
    # The small number keeps a rounding error from shortening the prefix.
    return ordered[: len(words) - math.ceil(similarity * len(words) - 1e-9) + 1]


def _text_of(item: str | Prompt | ScoredPair) -> str:
    if isinstance(item, str):
        return item
    return item.text if isinstance(item, Prompt) else item.prompt
