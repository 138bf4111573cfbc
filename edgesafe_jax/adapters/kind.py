"""The declaration of an adapter kind, from which the registry makes, stores and reads adapters of every kind."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.errors import ConfigError, EdgesafeError, Range, lookup
from edgesafe_jax.models.chats import Chat
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter

REQUIRED: Any = object()
"""The default of an option that must be given."""


LENGTH = Range(1, 16_384, integer=True, expected="at least 1, and at most 16384")
"""Virtual positions of an adapter; the model's own context may allow fewer."""


class AdapterError(EdgesafeError, ValueError):
    """A stored adapter that is damaged, of another kind, or trained on another model."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of an adapter kind, or one static field of its file.

    Attributes:
      default: value where none is given; `REQUIRED` for none.
      allowed: a range of numbers, the names to choose from, or None where the kind's own `init` checks the value. The
        default itself is always allowed.
    """

    default: Any = REQUIRED
    allowed: Range | tuple[str, ...] | None = None

    def check(self, name: str, value: Any) -> None:
        """Raises `ConfigError` unless a value is allowed."""
        if value is self.default:
            return
        if isinstance(self.allowed, tuple):
            lookup(dict.fromkeys(self.allowed), value, name)
        elif self.allowed is not None and value not in self.allowed:
            raise ConfigError(f"{name}={value!r}: expected {self.allowed.describe()}.")


def check_length(num_virtual: int | None, config: DecoderConfig) -> None:
    """Raises `ConfigError` where virtual positions leave no room in the model's context."""
    if num_virtual is not None and num_virtual >= config.max_context:
        raise ConfigError(
            f"num_virtual={num_virtual}: expected fewer than the {config.max_context} positions of the model's context."
        )


@dataclasses.dataclass(frozen=True)
class Examples:
    """Prompts with what a teacher does on them, from which parts of an adapter are fitted before the training.

    Attributes:
      prompts: N user texts or chats.
      refusal_prob: `[N]`, the teacher's P(refuse).
      request: `[N]` numbers, equal where prompts ask for the same in other words: a fit that sets prompts aside sets
        aside all of them. None where each prompt stands alone.
    """

    prompts: Sequence[str | Chat]
    refusal_prob: np.ndarray
    request: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations beside the base model's.

    Attributes:
      per_token: of each token.
      per_prompt: of each prompt, beside those of its tokens.
    """

    per_token: float
    per_prompt: float = 0.0


def attention_cost(config: DecoderConfig, positions: int) -> float:
    """Operations of one token's attention to so many further positions: scores and mixing, `4 L H E P`."""
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * positions


@dataclasses.dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter: how one is made, and what its file holds.

    Attributes:
      type: class of the adapters.
      init: `init(key, model, **options)` makes an adapter to train.
      options: the options of `init`.
      to_arrays: from an adapter to its arrays and static fields, as they are stored.
      shapes: `shapes(model, arrays, fields)`, the shape that each array of such a file must have for a model. It raises
        `AdapterError` where names or fields mean nothing.
      from_arrays: from checked arrays and static fields to the adapter.
      fields: the static fields.
      cost: `cost(adapter, config, prompt_tokens)`, the operations that it adds to a decoder.
      match: `match(config, parameters)`, the options with which it has nearest to so many parameters.
      fit: `fit(adapter, model, examples)`, what is known of an adapter once the teacher is; None for kinds that begin
        as `init` makes them.
      alone: whether it changes something without another adapter beside it.
    """

    type: type
    init: Callable[..., Adapter]
    options: Mapping[str, Option]
    to_arrays: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    shapes: Callable[[LanguageModel, Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, tuple[int, ...]]]
    from_arrays: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Adapter]
    fields: Mapping[str, Option]
    cost: Callable[[Any, DecoderConfig, int], Cost]
    match: Callable[[DecoderConfig, int], dict[str, Any]]
    fit: Callable[[Any, LanguageModel, Examples], Adapter] | None = None
    alone: bool = True


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it is stored.

    Attributes:
      kind: name in `ADAPTERS`.
      arrays: by name, float32, see `AdapterKind.to_arrays`.
      fields: the static fields.
    """

    kind: str
    arrays: Mapping[str, np.ndarray]
    fields: Mapping[str, Any]


def fill(declared: Mapping[str, Option], given: Mapping[str, Any], noun: str) -> dict[str, Any]:
    """Returns checked values of all declared options.

    Args:
      declared: the options.
      given: some of their values.
      noun: what an option is called in messages.

    Raises:
      ConfigError: an unknown or missing option, or a value that is not allowed.
    """
    for name in given:
        lookup(declared, name, noun)
    values = {name: given.get(name, option.default) for name, option in declared.items()}
    for name, value in values.items():
        if value is REQUIRED:
            raise ConfigError(f"The {noun} {name} is missing.")
        declared[name].check(name, value)
    return values
