"""Tokenizer and chat template of a language model.

Text of a user is never read as special tokens: a prompt that contains `<|im_end|>` is encoded as those characters, so
it cannot close its own turn. Only the template's own text produces them. (Added tokens that a tokenizer does not mark
as special, such as the runs of spaces of Gemma, are ordinary text.)

A chat is encoded as a whole, so that its tokens are those of transformers' `apply_chat_template`: a tokenizer that
prepends a space, or that merges across the border of template and text, sees what it was trained on.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from edgesafe_jax.errors import check_texts
from edgesafe_jax.models.protected import Filled, ProtectedTokenizer, failures_named
from edgesafe_jax.models.templates import TokenizerError, render_template

SLOT = "\ue000content\ue000"
"""A private-use marker that stands for a text to be filled in while a template is rendered."""


@dataclasses.dataclass(frozen=True)
class ChatParts:
    """Token ids of a one-turn chat around the user's text.

    Attributes:
      head: ids before the user's text that are the same whatever it is (the system message and the opening of the
        user's turn).
      tail: ids after it (the end of the turn and the opening of the assistant's), as they stand behind a letter.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]


SLOTS = (
    *("a", "Z", "is", "1", ".", "(", '"', "'s", "-", "<", "$", "_", "", "é", "e\u0301", "\u0301", "ﬁ"),
    *("日本", "한", "и", "ע", "ก", "अ", "😀", "\u200d", "\u200b", "\ufeff", "▁", "½", "\x00"),
)
"""Beginnings of a user's text, to see which tokens of the template do not depend on it."""

_ANSWER = [{"role": "user", "content": SLOT}, {"role": "assistant", "content": SLOT}]


class ChatTokenizer:
    """Encodes text and one-turn chats.

    Attributes:
      pad_id: id that fills unused positions; never attended to.
      suppressed_ids: ids that are never generated, as the model's files name them.
      template_variables: what the chat template is given beside the messages, such as `{"enable_thinking": False}`.
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
        template_variables: Mapping[str, Any] | None = None,
        suppressed_ids: Iterable[int] = (),
    ):
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.chat_template = chat_template
        self._eos_ids = frozenset(eos_ids)
        self.pad_id = pad_id
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.template_variables = dict(template_variables or {})
        self.suppressed_ids = tuple(sorted(set(suppressed_ids)))

    def with_variables(self, variables: Mapping[str, Any] | None) -> "ChatTokenizer":
        """Returns the tokenizer with further variables for its chat template.

        Raises:
          TokenizerError: a variable that a chat sets itself, such as `messages`.
        """
        if not variables:
            return self
        if taken := sorted({"messages", "add_generation_prompt", "bos_token", "eos_token"} & variables.keys()):
            raise TokenizerError(f"template_variables sets {taken[0]!r}, which a chat sets itself.")
        return self._changed(template_variables={**self.template_variables, **variables})

    def with_template(self, chat_template: str) -> "ChatTokenizer":
        """Returns the tokenizer with another chat template, for a model without one or with one's own.

        Args:
          chat_template: Jinja text, as a tokenizer's configuration holds it.

        Raises:
          TokenizerError: the template cannot be rendered, or does not show the user's text.
        """
        changed = self._changed(chat_template=chat_template)
        text = changed.render_chat([{"role": "user", "content": SLOT}], add_generation_prompt=True)
        if SLOT not in text:
            raise TokenizerError(f"The chat template {chat_template[:60]!r} does not show the user's text.")
        return changed

    def _changed(self, **changes: Any) -> "ChatTokenizer":
        fields = {
            "chat_template": self.chat_template,
            "eos_ids": self._eos_ids,
            "pad_id": self.pad_id,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "template_variables": self.template_variables,
            "suppressed_ids": self.suppressed_ids,
        }
        return ChatTokenizer(self._tokenizer, **{**fields, **changes})

    @functools.cached_property
    def end_id(self) -> int:
        """The id that closes an assistant's turn: what the chat template puts behind its text.

        Where the template puts none there, it is the end-of-sequence token.
        """
        try:
            end = self.pieces(_ANSWER, add_generation_prompt=False)[2] if self.chat_template else ""
        except TokenizerError:  # a template for other chats
            end = ""
        special = {token["id"] for token in self._added_tokens if token["special"]}
        for token in self.encode(end, control=True):
            if token in special or token in self._eos_ids:
                return token
        declared = self._tokenizer.token_to_id(self.eos_token) if self.eos_token else None
        return declared if declared in self._eos_ids else min(self._eos_ids)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a generation: the declared ones and `end_id`."""
        return tuple(sorted(self._eos_ids | {self.end_id}))

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def max_id(self) -> int:
        """The largest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def hash(self) -> str:
        """Sha256 of the vocabulary, the merges, the added tokens and the chat template with its variables."""
        about = json.loads(self.to_json())
        added = [[token["id"], token["content"]] for token in about["added_tokens"]]
        contents: list[Any] = [about["model"].get("vocab"), about["model"].get("merges"), added, self.chat_template]
        if self.template_variables:
            contents.append(self.template_variables)
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
        if not control:
            return self.encode_batch([text])[0]
        with failures_named():
            return self._tokenizer.encode(_checked([text])[0], add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes several texts, each by itself, none of whose characters become control tokens."""
        return self._protected.encode_batch(_checked(texts))

    def encode_filled(self, pieces: Sequence[str], fills: Sequence[Sequence[str]]) -> list[Filled]:
        """Encodes chats as a whole: a template's text around the texts that are filled in.

        Args:
          pieces: text of the template before, between and after the slots, as `pieces` gives it.
          fills: N rows of texts, one text for each slot. None of their characters become control tokens.

        Returns:
          N chats with the positions of the texts in them.
        """
        return self._protected.encode_filled(pieces, [_checked(row) for row in fills])

    def encode_chats(
        self, messages: Sequence[Mapping[str, Any]], fills: Sequence[Sequence[str]], *, open_turn: bool = True
    ) -> tuple[list[int], list[Filled]]:
        """Encodes chats of one form, apart from what all of them begin with.

        Args:
          messages: `role` and `content`; a content may contain `SLOT`.
          fills: N rows of texts, one text for each slot. None of their characters become control tokens.
          open_turn: whether the assistant's turn is opened at the end.

        Returns:
          The ids with which every chat of this form begins, and what follows them in each one.

        Raises:
          TokenizerError: the template drops or repeats a slot, or refuses the messages.
        """
        pieces = self.pieces(messages, add_generation_prompt=open_turn)
        if pieces not in self._heads:
            self._heads[pieces] = self._protected.shared_beginning(pieces[:2], SLOTS)
        head, between = self._heads[pieces]
        rows = []
        for fill, filled in zip(fills, self.encode_filled(pieces, fills), strict=True):
            if filled.ids[: len(head)] == head:
                spans = [(start - len(head), end - len(head)) for start, end in filled.spans]
                rows.append(Filled(filled.ids[len(head) :], spans))
            else:  # the text's first characters would merge with the template's: the shared tokens stay as they are
                rows.append(self.encode_filled([between, *pieces[1:]], [fill])[0])
        return head, rows

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes one-turn chats up to where the assistant begins.

        Args:
          texts: N user texts.

        Returns:
          N rows of ids that stand behind `chat_parts.head`.
        """
        return [row.ids for row in self.encode_chats(_ANSWER[:1], [[text] for text in _checked(texts)])[1]]

    def encode_answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes the beginnings of an assistant's turn, as they stand behind `encode_prompts`, without their end.

        Args:
          texts: N answers or beginnings of answers.

        Returns:
          N rows of ids.
        """
        texts, before = _checked(texts), self._answer_prefix
        rows = []
        for text, filled in zip(texts, self.encode_filled([before, ""], [[text] for text in texts]), strict=True):
            prefix = self._answer_prefix_ids
            joined = tuple(filled.ids[: len(prefix)]) == prefix
            rows.append(filled.ids[len(prefix) :] if joined else self.encode(text))
        return rows

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
            for token in self._added_tokens
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
                **self.template_variables,
                **(variables or {}),
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
            },
        )

    def pieces(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> tuple[str, ...]:
        """Renders a chat and splits it where `SLOT` stands.

        Args:
          messages: `role` and `content`; a content may contain `SLOT`.
          add_generation_prompt: whether the assistant's turn is opened at the end.

        Returns:
          The text before, between and after the slots: one piece more than there are slots.

        Raises:
          TokenizerError: the template drops or repeats a slot.
        """
        expected = sum(message["content"].count(SLOT) for message in messages)
        found = self.render_chat(messages, add_generation_prompt=add_generation_prompt).split(SLOT)
        if len(found) != expected + 1:
            raise TokenizerError(f"The chat template shows {len(found) - 1} of {expected} texts; expected each once.")
        return tuple(found)

    @functools.cached_property
    def chat_parts(self) -> ChatParts:
        """Head and tail of a one-turn chat with the template's default system message."""
        head, [plain] = self.encode_chats(_ANSWER[:1], [["a"]])
        return ChatParts(tuple(head), tuple(plain.ids[plain.spans[0][1] :]))

    @functools.cached_property
    def around_system(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a one-turn chat before and after the text of its system message, up to what `encode_prompts` gives.

        Raises:
          TokenizerError: the template takes no system message, or renders the user's turn otherwise behind one.
        """
        try:
            before, between, tail = self.pieces([{"role": "system", "content": SLOT}, *_ANSWER[:1]])
        except TokenizerError as error:
            raise TokenizerError(f"The chat template takes no system message: {error}") from error
        plain = self.pieces(_ANSWER[:1])
        self.encode_chats(_ANSWER[:1], [["a"]])
        rest = self._heads[plain][1]  # what `encode_prompts` gives begins with it
        if tail != plain[1] or not between.endswith(rest):
            raise TokenizerError("The chat template renders the user's turn otherwise behind a system message.")
        after = between[: len(between) - len(rest)]
        return tuple(self.encode(before, control=True)), tuple(self.encode(after, control=True))

    @functools.cached_property
    def _heads(self) -> dict[tuple[str, ...], tuple[list[int], str]]:
        return {}

    @functools.cached_property
    def _answer_prefix(self) -> str:
        """The text of a one-turn chat up to where the answer begins."""
        head, tail = self.pieces(_ANSWER[:1])
        try:
            middle = self.pieces(_ANSWER, add_generation_prompt=False)[1]
        except TokenizerError:  # a template for other chats
            middle = tail
        # A template may write a space in front of an answer that it does not write where one begins.
        return f"{head}a{middle if middle.startswith(tail) and not middle[len(tail) :].strip() else tail}"

    @functools.cached_property
    def _answer_prefix_ids(self) -> tuple[int, ...]:
        head, tail = self.pieces(_ANSWER[:1])
        return tuple(self.encode_filled([head, tail], [["a"]])[0].ids)

    @functools.cached_property
    def _protected(self) -> ProtectedTokenizer:
        return ProtectedTokenizer(self._tokenizer)

    @functools.cached_property
    def _added_tokens(self) -> list[dict[str, Any]]:
        return json.loads(self.to_json())["added_tokens"]


def _checked(texts: Iterable[str]) -> list[str]:
    found = check_texts("texts", texts)
    for number, text in enumerate(found):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"Text {number} has half of a surrogate pair at character {error.start}, which is no text: remove "
                "it, or replace it with text.encode('utf-8', 'replace').decode()."
            ) from None
    return found
