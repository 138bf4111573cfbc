"""Two halves of a set of prompts: one for choices, the other for the final table alone."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from edgesafe_jax.corpora.overlap import normalise
from edgesafe_jax.corpora.records import Prompt
from edgesafe_jax.errors import lookup

Half = Literal["selection", "final"]
"""Which half: ``"selection"`` is read whenever something is measured or chosen, ``"final"`` only by request."""


def half_of(text: str) -> Half:
    """Returns the half that a text belongs to, by the hash of the normalised text.

    Args:
        text: a prompt.

    Returns:
        ``"selection"`` or ``"final"``.

    Example:
        >>> half_of("How are you?") == half_of("how ARE you")
        True
    """
    digest = hashlib.sha256(f"half:{normalise(text)}".encode()).digest()
    return "final" if digest[0] & 1 else "selection"


def take_half(
    prompts: Sequence[Prompt], half: Half, *, key: Callable[[Prompt], str] = lambda prompt: prompt.text
) -> list[Prompt]:
    """Returns the prompts of one half, in their order.

    Args:
        prompts: the whole set.
        half: which half.
        key: the text that decides; prompts with one key stay together.

    Returns:
        About half of the prompts.

    Raises:
        ConfigError: another half.
    """
    half = lookup({name: name for name in get_args(Half)}, half, "half")
    return [prompt for prompt in prompts if half_of(key(prompt)) == half]
