"""Tokenizer and chat template of a language model.

Text of a user is never read as special tokens: a prompt that contains `<|im_end|>` is encoded as those characters, so
it cannot close its own turn. Only the template's own text produces them. (Added tokens that a tokenizer does not mark
as special, such as the runs of spaces of Gemma, are ordinary text.)
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from edgesafe_jax.models.templates import TokenizerError, render_template

SLOT = "\ue000content\ue000"
"""A private-use marker that stands for a text to be filled in while a template is rendered."""


@dataclasses.dataclass(frozen=True)
class ChatParts:
    """Token ids of a one-turn chat around the user's text.

    Attributes:
      head: ids before the user's text (the system message and the opening of the user's turn).
      tail: ids after it (the end of the turn and the opening of the assistant's).
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]


class ChatTokenizer:
    """Encodes text and one-turn chats.

    Attributes:
      eos_ids: ids that end a generation.
      end_id: the one of them that closes an assistant's turn in the chat template.
      pad_id: id that fills unused positions; never attended to.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        chat_template: str,
        eos_ids: Iterable[int],
        pad_id: int,
        bos_token: str = "",
        eos_token: str = "",
    ):
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.chat_template = chat_template
        self.eos_ids = tuple(sorted(set(eos_ids)))
        end = tokenizer.token_to_id(eos_token) if eos_token else None
        self.end_id = end if end in self.eos_ids else self.eos_ids[0]
        self.pad_id = pad_id
        self.bos_token = bos_token
        self.eos_token = eos_token

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def hash(self) -> str:
        """Sha256 of the vocabulary, the merges, the added tokens and the chat template."""
        about = json.loads(self.to_json())
        added = [[token["id"], token["content"]] for token in about["added_tokens"]]
        contents = [about["model"].get("vocab"), about["model"].get("merges"), added, self.chat_template]
        text = json.dumps(contents, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """The tokenizer as a `tokenizer.json` string."""
        return self._tokenizer.to_str()

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Encodes text.

        Args:
          text: what to encode.
          control: whether strings such as `<|im_end|>` become control tokens. True only for the text of a template.

        Returns:
          Token ids, without any added beginning or end.
        """
        self._tokenizer.encode_special_tokens = not control
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes several texts, none of whose characters become control tokens."""
        self._tokenizer.encode_special_tokens = True
        return [e.ids for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids up to the first end-of-sequence, control tokens left out."""
        kept: list[int] = []
        for token in ids:
            if int(token) in self.eos_ids:
                break
            kept.append(int(token))
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    @functools.cached_property
    def control_strings(self) -> tuple[str, ...]:
        """The strings that become control tokens in the text of a template, such as `<|im_end|>`.

        Added tokens that the template itself writes, such as `<think>`, count even if they are not marked as special.
        """
        return tuple(
            token["content"]
            for token in json.loads(self.to_json())["added_tokens"]
            if token["special"] or (token["content"].strip() and token["content"] in self.chat_template)
        )

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders messages (`role`, `content`) with the model's own template.

        Args:
          messages: the turns; a content is a text or what else the template takes.
          add_generation_prompt: whether the assistant's turn is opened at the end.
          variables: further variables of the template, such as the policy of a guard.

        Returns:
          The text of the chat.

        Raises:
          TokenizerError: the model has no chat template, or the template refuses the messages.
        """
        if not self.chat_template:
            raise TokenizerError("This model has no chat template; use an instruction-tuned model.")
        return render_template(
            self.chat_template,
            {
                **(variables or {}),
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
            },
        )

    def encode_template(self, messages: Sequence[dict[str, str]]) -> list[tuple[int, ...]]:
        """Encodes a rendered chat around the places where `SLOT` stands.

        Args:
          messages: `role` and `content`; a content may contain `SLOT`.

        Returns:
          Token ids before, between and after the slots: one piece more than there are slots.

        Raises:
          TokenizerError: the template drops or repeats a slot.
        """
        expected = sum(message["content"].count(SLOT) for message in messages)
        pieces = self.render_chat(messages).split(SLOT)
        if len(pieces) != expected + 1:
            raise TokenizerError(f"The chat template shows {len(pieces) - 1} of {expected} texts; expected each once.")
        return [tuple(self.encode(piece, control=True)) for piece in pieces]

    @functools.cached_property
    def chat_parts(self) -> ChatParts:
        """Head and tail of a one-turn chat with the template's default system message."""
        head, tail = self.encode_template([{"role": "user", "content": SLOT}])
        return ChatParts(head, tail)
