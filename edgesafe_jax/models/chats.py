"""Chats of several turns and with a system prompt, beside one-turn chats that are given as a text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from edgesafe_jax.errors import ConfigError, check_texts, shortened
from edgesafe_jax.models.tokenization import SLOT, ChatTokenizer

Chat: TypeAlias = Sequence[Mapping[str, str]]
"""Messages with `role` and `content`; the last one is the user's."""


def check_chats(name: str, prompts: Iterable[str | Chat]) -> list[str | Chat]:
    """Returns prompts, each a text or a chat, as a list; chats as lists of dictionaries, which JSON keeps as they are.

    Args:
      name: of the argument.
      prompts: user texts and chats.

    Raises:
      ConfigError: one string or one chat where several are expected, something else than these, a message without role
        or content, or a chat that does not end with the user.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        check_texts(name, prompts)  # which raises
    found: list[str | Chat] = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(prompt)
            continue
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise ConfigError(
                f"{name}[{number}] is a {type(prompt).__name__}: expected a string or a list of messages."
            )
        for message in prompt:
            given = isinstance(message, Mapping) and [message.get(part) for part in ("role", "content")]
            if not given or not all(isinstance(part, str) for part in given):
                raise ConfigError(
                    f"{name}[{number}] has {shortened(message)}: expected a text each for role and content."
                )
        if not prompt or prompt[-1]["role"] != "user":
            raise ConfigError(f"{name}[{number}] does not end with a message of the role 'user'.")
        found.append([dict(message) for message in prompt])
    return found


def flat_text(prompt: str | Chat) -> str:
    """Returns what was said in a chat as one text: that of a guard's prompt; a text as it is."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def encode_wholes(tokenizer: ChatTokenizer, prompts: Sequence[str | Chat]) -> tuple[list[int], list[list[int]]]:
    """Encodes prompts up to where the assistant begins, apart from what all of them begin with.

    Args:
      tokenizer: of the model.
      prompts: N user texts or chats, as `check_chats` returns them.

    Returns:
      The shared head, and N rows of ids behind it. Of texts alone, and of chats that begin as these, the head is
      `chat_parts.head`.

    Raises:
      ConfigError: the chats have no first token in common.
      TokenizerError: the template refuses a chat.
    """
    usual = list(tokenizer.chat_parts.head)
    texts = iter(tokenizer.encode_prompts([prompt.strip() for prompt in prompts if isinstance(prompt, str)]))
    wholes = []
    for prompt in prompts:
        if isinstance(prompt, str):
            wholes.append([*usual, *next(texts)])
        else:
            form = [{"role": message["role"], "content": SLOT} for message in prompt]
            head, [row] = tokenizer.encode_chats(form, [[message["content"].strip() for message in prompt]])
            wholes.append([*head, *row.ids])
    length = len(usual)
    for whole in wholes:
        length = min(length, len(whole) - 1)
        while whole[:length] != wholes[0][:length]:
            length -= 1
    if usual and not length:
        raise ConfigError("The chats begin with different tokens: give all of them a system message, or none.")
    return wholes[0][:length] if wholes else usual, [whole[length:] for whole in wholes]
