"""Tokenizer and chat template of a language model, from a GGUF file or a Hugging Face directory.

Text of a user is never read as special tokens: a prompt that contains `<|im_end|>` is encoded as those characters, so
it cannot close its own turn. Only the template's own text produces them. (Added tokens that a tokenizer does not mark
as special, such as the runs of spaces of Gemma, are ordinary text.)
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import tokenizers

from edgesafe_jax.errors import EdgesafeError

SLOT = "\ue000content\ue000"
"""A private-use marker that stands for a text to be filled in while a template is rendered."""

_CONTROL_TYPES = (3, 4)  # GGUF token types: control, user-defined

_DIGIT_PRE_TOKENIZERS = ("smollm",)
_PLAIN_PRE_TOKENIZERS = ("gpt-2", "default")


class TokenizerError(EdgesafeError, ValueError):
    """A tokenizer that cannot be read, or text that it cannot take."""


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
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.globals["strftime_now"] = lambda fmt: "26 Jul 2024"  # fixed: a prompt must not depend on the day
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        try:
            return environment.from_string(self.chat_template).render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=None,
                **(variables or {}),
            )
        except jinja2.TemplateError as error:
            raise TokenizerError(f"The chat template cannot be rendered ({type(error).__name__}: {error}).") from error

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


def _raise_template_error(message: str) -> None:
    raise TokenizerError(f"The chat template refuses these messages: {message}")


def tokenizer_from_gguf(metadata: dict[str, Any]) -> ChatTokenizer:
    """Builds the tokenizer from the metadata of a GGUF file.

    Args:
      metadata: contents of the `tokenizer.*` fields.

    Returns:
      The tokenizer, with the chat template of the same file.

    Raises:
      TokenizerError: a tokenizer model or a pre-tokenizer that is not supported, or a missing field.
    """

    def field(name: str) -> Any:
        if f"tokenizer.{name}" not in metadata:
            raise TokenizerError(f"The GGUF metadata has no tokenizer.{name}; is the file complete?")
        return metadata[f"tokenizer.{name}"]

    model, pre = field("ggml.model"), field("ggml.pre")
    if model != "gpt2" or pre not in _DIGIT_PRE_TOKENIZERS + _PLAIN_PRE_TOKENIZERS:
        raise TokenizerError(
            f"GGUF tokenizer model {model!r} with pre-tokenizer {pre!r} is not supported: expected 'gpt2' with one of "
            f"{_DIGIT_PRE_TOKENIZERS + _PLAIN_PRE_TOKENIZERS}. Use the model's Hugging Face directory, which has a "
            "tokenizer.json."
        )
    tokens, types, merges = field("ggml.tokens"), field("ggml.token_type"), field("ggml.merges")
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=[tuple(m.split(" ", 1)) for m in merges], fuse_unk=False)
    )
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGIT_PRE_TOKENIZERS:
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind in _CONTROL_TYPES]
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in control])
    eos = int(field("ggml.eos_token_id"))
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return ChatTokenizer(
        tokenizer,
        chat_template=metadata.get("tokenizer.chat_template", ""),
        eos_ids=[eos],
        pad_id=int(metadata.get("tokenizer.ggml.padding_token_id", eos)),
        bos_token=tokens[int(bos)] if bos is not None else "",
        eos_token=tokens[eos],
    )


def tokenizer_from_directory(path: Path) -> ChatTokenizer:
    """Reads the tokenizer of a Hugging Face directory (`tokenizer.json`, `tokenizer_config.json`).

    Raises:
      TokenizerError: a file is missing or names an unknown token.
    """
    if not (path / "tokenizer.json").exists():
        raise TokenizerError(f"{path} has no tokenizer.json; save the model with a fast tokenizer.")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises the bare class
        raise TokenizerError(f"{path / 'tokenizer.json'} is damaged ({error}); copy or download it again.") from error
    settings = _read_json(path / "tokenizer_config.json")
    generation = _read_json(path / "generation_config.json")
    model = _read_json(path / "config.json")

    def text(name: str) -> str:
        value = settings.get(name) or ""
        return value["content"] if isinstance(value, dict) else value

    template = settings.get("chat_template") or ""
    if (path / "chat_template.jinja").exists():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default", "")
    eos: list[int] = []
    for source in (generation.get("eos_token_id"), model.get("eos_token_id")):
        if source is not None:
            eos.extend(source if isinstance(source, list) else [source])
    if text("eos_token"):
        token = tokenizer.token_to_id(text("eos_token"))
        if token is None:
            raise TokenizerError(f"eos_token {text('eos_token')!r} of {path} is not in its tokenizer.json.")
        eos.append(token)
    if not eos:
        raise TokenizerError(f"{path} names no end-of-sequence token in tokenizer_config.json or config.json.")
    pad = tokenizer.token_to_id(text("pad_token")) if text("pad_token") else None
    return ChatTokenizer(
        tokenizer,
        chat_template=template,
        eos_ids=eos,
        pad_id=eos[0] if pad is None else pad,
        bos_token=text("bos_token"),
        eos_token=text("eos_token"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
