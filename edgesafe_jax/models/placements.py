"""Where the virtual positions of an adapter stand in a chat.

Among the ids of a chat the id -1 - p stands for the p-th virtual embedding, see `Decoder.embed`. Virtual positions in
front of everything need no ids: the decoder puts them there.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.templates import TokenizerError
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.typing import IN_FRONT, Adapter, Array

AFTER_BOS, SYSTEM, BEFORE_ANSWER = "after_bos", "system", "before_answer"

PLACEMENTS = {
    IN_FRONT: "in front of everything that the template renders, the token that begins a text included",
    AFTER_BOS: "behind that token",
    SYSTEM: "where the text of a system message stands, in place of the template's default one",
    BEFORE_ANSWER: "behind everything, where the answer begins",
}
"""The placements, and what each means."""


def head_of(model: LanguageModel, adapter: Adapter | None, shared: Sequence[int] | None = None) -> np.ndarray:
    """Returns the ids with which all chats begin, with those of virtual positions among them.

    Args:
      model: gives tokenizer and template.
      adapter: whose virtual positions are placed; None for the bare model.
      shared: what the chats begin with, see `encode_wholes`; None for the head of one-turn chats.

    Returns:
      `[T]` int32; what `encode_prompts` gives follows it.

    Raises:
      ConfigError: the virtual positions have their place inside the head, and the chats have another one.
      TokenizerError: the template has no such place.
    """
    usual = model.tokenizer.chat_parts.head
    shared = usual if shared is None else tuple(shared)
    virtual = None if adapter is None else adapter.virtual_embeddings()
    if adapter is None or virtual is None:
        return np.array(shared, np.int32)
    inside = adapter.placement in (AFTER_BOS, SYSTEM)
    if inside and shared != usual:
        raise ConfigError(
            f"The virtual positions at placement={adapter.placement!r} have no place in a chat with a system message "
            "of its own: leave the message out."
        )
    before, after = around(model.tokenizer, adapter.placement)
    return np.array([*before, *virtual_ids(len(virtual)), *after] if inside else shared, np.int32)


def virtual_ids(num: int) -> list[int]:
    """Returns the ids that stand for `num` virtual embeddings."""
    return list(range(-1, -num - 1, -1))


def answer_ids(adapter: Adapter | None) -> list[int]:
    """Returns the ids of the virtual positions behind each prompt; none for other placements."""
    virtual = None if adapter is None else adapter.virtual_embeddings()
    if adapter is None or virtual is None or adapter.placement != BEFORE_ANSWER:
        return []
    return virtual_ids(len(virtual))


def around(tokenizer: ChatTokenizer, placement: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids of the head of a chat before and after the virtual positions.

    Args:
      tokenizer: with the chat template.
      placement: a name in `PLACEMENTS`.

    Raises:
      ConfigError: an unknown placement.
      TokenizerError: the template has no such place.
    """
    lookup(PLACEMENTS, placement, "placement")
    if placement == SYSTEM:
        return tokenizer.around_system
    head = tokenizer.chat_parts.head
    if placement != AFTER_BOS:
        return (), head
    bos = tokenizer.encode(tokenizer.bos_token, control=True) if tokenizer.bos_token else []
    if len(bos) != 1 or head[:1] != tuple(bos):
        raise TokenizerError(
            f"placement={AFTER_BOS!r}: the chats of this model do not begin with a token for the beginning of a text. "
            f"Use {IN_FRONT!r}."
        )
    return head[:1], head[1:]


def check_placement(tokenizer: ChatTokenizer, placement: str) -> None:
    """Raises `ConfigError` for an unknown placement, `TokenizerError` where the template has no such place."""
    lookup(PLACEMENTS, placement, "placement")
    if placement != IN_FRONT:  # which needs no template
        around(tokenizer, placement)


def insert_virtual(tokens: Array, where: Array, last: Array, num: int) -> tuple[Array, Array]:
    """Inserts the ids of virtual positions behind each prompt of a padded batch.

    Args:
      tokens: `[B, T]` int32.
      where: `[B, T]` bool, which of them exist.
      last: `[B]` int32, the last position of each prompt.
      num: P.

    Returns:
      Tokens and mask, `[B, T + P]`.
    """
    column = jnp.arange(tokens.shape[1] + num, dtype=jnp.int32)[None]
    passed = column - last[:, None]
    virtual = (passed > 0) & (passed <= num)
    source = jnp.clip(jnp.where(passed > num, column - num, column), 0, tokens.shape[1] - 1)
    return (
        jnp.where(virtual, -passed, jnp.take_along_axis(tokens, source, axis=1)),
        virtual | jnp.take_along_axis(where, source, axis=1),
    )
