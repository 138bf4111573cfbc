"""Encoding text among which only chosen strings become control tokens.

A copy of the tokenizer holds its control tokens under private names. Text that a user wrote is encoded with the copy as
it is: no string of it can be a control token. The text of a template is rewritten to the private names first. So a
whole chat goes through the tokenizer at once, with all that depends on what stands before a text (prepended spaces,
merges across the border), and still only the template's own strings become control tokens.
"""

import contextlib
import dataclasses
import functools
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers

from edgesafe_jax.errors import shortened
from edgesafe_jax.models.files import is_failure
from edgesafe_jax.models.templates import TokenizerError

_BATCH = 512  # texts whose encodings, with their offsets, are held at once


@contextlib.contextmanager
def failures_named() -> Iterator[None]:
    """Turns what the tokenizers library raises for a text, panics included, into a `TokenizerError`."""
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        raise TokenizerError(
            f"The tokenizer fails on a text ({shortened(error, 200)}): its regular expressions or its vocabulary "
            "cannot take it. Use the tokenizer of the model's own publisher."
        ) from error


@dataclasses.dataclass(frozen=True)
class Filled:
    """A chat with texts in its slots, encoded as a whole.

    Attributes:
      ids: token ids.
      spans: for each text the positions [start, end) of the tokens that hold characters of it.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class ProtectedTokenizer:
    """Encodes text whose control strings are only characters.

    Args:
      tokenizer: the tokenizer; it is not changed.

    Raises:
      TokenizerError: the control tokens cannot be renamed.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        about = json.loads(tokenizer.to_str())
        special = [token for token in about["added_tokens"] if token["special"]]
        # Nobody can write these names in advance: they are drawn anew in every process.
        nonce = secrets.token_hex(8)
        self._private = {token["content"]: f"\ue001{nonce}{token['id']}\ue001" for token in special}
        ids = {self._private[token["content"]]: token["id"] for token in special}
        for token in about["added_tokens"]:
            token["content"] = self._private.get(token["content"], token["content"])
        _rename(about["model"], self._private)
        about["post_processor"] = None  # nothing is added around a text here
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(about))
        if wrong := [name for name, index in ids.items() if self._tokenizer.token_to_id(name) != index]:
            raise TokenizerError(f"{len(wrong)} control tokens of the tokenizer cannot be told from text.")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts, none of whose characters become control tokens."""
        return [encoding.ids for encoding in self._encodings(texts)]

    def encode_filled(self, pieces: Sequence[str], fills: Sequence[Sequence[str]]) -> list[Filled]:
        """Encodes chats with a template's text around the texts that are filled in.

        Args:
          pieces: the template's text before, between and after the slots; its control strings become control tokens.
          fills: N rows of texts, one less than there are pieces; their control strings are only characters.

        Returns:
          N encoded chats.
        """
        outer = [self._pattern.sub(lambda match: self._private[match[0]], piece) for piece in pieces]
        texts, places = [], []
        for row in fills:
            whole, spans = outer[0], []
            for text, piece in zip(row, outer[1:], strict=True):
                spans.append((len(whole), len(whole) + len(text)))
                whole += text + piece
            texts.append(whole)
            places.append(spans)
        filled = []
        for encoding, spans in zip(self._encodings(texts), places, strict=True):
            offsets = encoding.offsets
            filled.append(Filled(encoding.ids, [_covered(offsets, *span) for span in spans]))
        return filled

    def shared_beginning(self, pieces: Sequence[str], texts: Sequence[str]) -> tuple[list[int], str]:
        """Finds the ids with which a one-turn chat begins whatever its text is.

        Merges do not cross the borders of the words that a pre-tokenizer makes, and these borders depend on kinds of
        characters. So what stands before the word in which the text begins is the same for all texts.

        Args:
          pieces: the template's text before and after the slot.
          texts: texts that begin with all kinds of characters.

        Returns:
          The ids, and the template's text between them and the slot.
        """
        before, after = (self._pattern.sub(lambda match: self._private[match[0]], piece) for piece in pieces)
        encodings = self._encodings([before + text + after for text in texts])
        length = min(_first_of_word(encoding, len(before)) for encoding in encodings)
        shared, end = [], 0
        for tokens in zip(*(zip(e.ids[:length], e.offsets, strict=False) for e in encodings), strict=True):
            if len(set(tokens)) > 1:
                break
            shared.append(tokens[0][0])
            end = tokens[0][1][1]
        return shared, pieces[0][len(pieces[0]) - len(before[end:]) :]

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._private, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        found = []
        for start in range(0, len(texts), _BATCH):
            with failures_named():
                found += self._tokenizer.encode_batch(list(texts[start : start + _BATCH]), add_special_tokens=False)
        return found


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames entries of a model's vocabulary, so that no text is mapped onto them."""
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: pairs of piece and score
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {names.get(piece, piece): index for piece, index in vocab.items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]


def _first_of_word(encoding: Any, place: int) -> int:
    """The first token of the word that holds the first character from a place on."""
    for index, (_, right) in enumerate(encoding.offsets):
        if right > place:
            return encoding.word_ids.index(encoding.word_ids[index])
    return len(encoding.ids)


def _covered(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The positions of the tokens that hold characters of [start, end); where there are none, where they would be."""
    inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > start]
    if inside:
        return inside[0], inside[-1] + 1
    first = next((i for i, (left, _) in enumerate(offsets) if left >= end), len(offsets))
    return first, first
