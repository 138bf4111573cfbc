"""The size and the cost of adapters, and options by which a kind gets a given size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from edgesafe_jax.adapters.composition import Composition
from edgesafe_jax.adapters.kind import Cost
from edgesafe_jax.adapters.registry import ADAPTERS, kind_of, kinds_of
from edgesafe_jax.errors import ConfigError, check_counts, lookup
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter


@dataclasses.dataclass(frozen=True)
class Budget:
    """The size and the cost of an adapter, beside its base model.

    Attributes:
      parameters: trained numbers.
      bytes: of its stored arrays, float32.
      flops_per_token: operations that each token costs more (a multiply-add counts as two).
      flops_per_prompt: operations that each prompt costs more. What is computed once for all prompts, as virtual
        positions in front of them are, is not counted.
    """

    parameters: int
    bytes: int
    flops_per_token: float
    flops_per_prompt: float


def budget(adapter: Adapter, model: LanguageModel, *, prompt_tokens: int = 64) -> Budget:
    """Returns the size and the cost of an adapter.

    Args:
      adapter: of any registered kind, or a composition.
      model: its base model.
      prompt_tokens: length of a prompt with its template, for what is paid once a prompt.

    Returns:
      The budget; that of a composition is the sum of its parts'.

    Raises:
      AdapterError: an adapter of no registered kind.
      ConfigError: a prompt of no token.
    """
    check_counts(prompt_tokens=prompt_tokens)
    parts = adapter.parts if isinstance(adapter, Composition) else (adapter,)
    costs: list[Cost] = [ADAPTERS[kind_of(part)].cost(part, model.config, prompt_tokens) for part in parts]
    size = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    return Budget(size, 4 * size, sum(cost.per_token for cost in costs), sum(cost.per_prompt for cost in costs))


def match_budget(kind: str, model: LanguageModel, *, parameters: int) -> dict[str, Any]:
    """Returns options by which an adapter of a kind has as nearly as it can a number of parameters.

    Args:
      kind: of `ADAPTERS`.
      model: its base model.
      parameters: the number of trained numbers.

    Returns:
      The options that set the size: virtual positions, rank and layers. The kind's other options keep their defaults.
      `budget` says how near they come: one vector per layer, say, has an upper limit.

    Raises:
      ConfigError: an unknown kind, several kinds, or a number below one.
    """
    check_counts(parameters=parameters)
    if "+" in kind:
        raise ConfigError(f"kind={kind!r}: a budget is matched by one kind; give each of these its own.")
    return lookup(ADAPTERS, kind, "kind").match(model.config, parameters)


def options_of(kind: str, by_kind: Mapping[str, Any], model: LanguageModel, *, parameters: int = 0) -> dict[str, Any]:
    """Returns the options that `make_adapter` takes for a kind, or for several, from those of all kinds.

    Args:
      kind: of `ADAPTERS`, or several joined by `+`.
      by_kind: options by kind.
      model: the base model.
      parameters: above 0, the options that set the size are those of `match_budget` instead.

    Returns:
      The options.

    Raises:
      ConfigError: as `match_budget`, or a gate with nothing to gate.
    """
    kinds = kinds_of(kind)
    if not any(ADAPTERS[name].alone for name in kinds):
        raise ConfigError(f"kind={kind!r} changes nothing alone: expected another kind beside it, such as {kind}+lora.")
    matched = match_budget(kind, model, parameters=parameters) if parameters else {}
    if len(kinds) == 1:
        return {**by_kind.get(kind, {}), **matched}
    return {name: dict(by_kind.get(name, {})) for name in kinds}
