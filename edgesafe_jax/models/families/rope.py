"""Rotary frequencies stretched to longer contexts, as divisors of the plain ones."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.families.family import LoadingError


def _field(rope: Mapping[str, Any], name: str) -> float:
    if rope.get(name) is None:
        raise LoadingError(f"RoPE of type {rope.get('rope_type', rope.get('type'))!r} has no {name}.")
    return float(rope[name])


def _linear(rope: Mapping[str, Any], base: float, size: int, trained: int, context: int) -> list[float]:
    del base, trained, context
    return [_field(rope, "factor")] * (size // 2)


def _dynamic(rope: Mapping[str, Any], base: float, size: int, trained: int, context: int) -> list[float]:
    """A larger base for a context beyond the trained one: b (f c / t - f + 1) ** (R / (R - 2))."""
    del base
    factor = _field(rope, "factor")
    growth = factor * max(context, trained) / trained - factor + 1
    return [growth ** (2 * i / (size - 2)) for i in range(size // 2)]


def _llama3(rope: Mapping[str, Any], base: float, size: int, trained: int, context: int) -> list[float]:
    """Long wavelengths are divided by the factor, short ones left alone, those between interpolated."""
    del context
    trained = int(rope.get("original_max_position_embeddings") or trained)
    factor, low, high = (_field(rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    divisors = []
    for i in range(size // 2):
        turns = trained * base ** (-2 * i / size) / (2 * math.pi)  # within the trained context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (smooth + (1 - smooth) / factor))
    return divisors


def _longrope(rope: Mapping[str, Any], base: float, size: int, trained: int, context: int) -> list[float]:
    """One list of divisors up to the trained context and another beyond it."""
    del base
    name = "long_factor" if context > trained else "short_factor"
    divisors = rope.get(name)
    if not isinstance(divisors, list | tuple) or len(divisors) != size // 2:
        raise LoadingError(f"RoPE's {name} must be a list of {size // 2} numbers, one for each frequency.")
    return [float(divisor) for divisor in divisors]


RopeType = Callable[[Mapping[str, Any], float, int, int, int], list[float]]

ROPE_TYPES: dict[str, RopeType] = {
    "default": lambda *_: [],
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "longrope": _longrope,
}
"""From a RoPE type of transformers to its divisors, given its settings, the base, R, and the trained and the used
context in positions."""


def read_rope(rope: Mapping[str, Any], *, base: float, size: int, longest: int, context: int | None) -> dict[str, Any]:
    """Reads RoPE settings in the form of transformers.

    Types whose frequencies depend on the length of a sequence are read for one context, so that what is kept of earlier
    positions stays right as a sequence grows: as transformers computes them for sequences of that length.

    Args:
      rope: the settings.
      base: base of the frequencies.
      size: R, how many numbers of a head are rotated.
      longest: `max_position_embeddings`.
      context: the longest sequence that will be read, in positions; None for the longest that needs no other
        frequencies than the model was first trained with.

    Returns:
      The fields `max_context`, `rope_divisors` and `rope_magnitude` of a `DecoderConfig`.

    Raises:
      LoadingError: an unknown type, or a field that is missing.
      ConfigError: a context that the model does not have.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    try:
        divisors = lookup(ROPE_TYPES, kind, "RoPE type")
    except ConfigError as error:
        raise LoadingError(str(error)) from None
    trained, magnitude = longest, 1.0
    if kind == "dynamic":  # reaches beyond max_position_embeddings
        longest = int(longest * _field(rope, "factor"))
    if kind == "longrope":
        trained = int(_field(rope, "original_max_position_embeddings"))
        stretch = float(rope.get("factor") or longest / trained)
        default = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
        magnitude = float(rope.get("attention_factor") or default)
    if context is None:
        context = min(trained, longest)
    if not 1 <= context <= longest:
        raise ConfigError(f"max_context={context}: expected 1 to {longest}, which the model was made for.")
    return {
        "max_context": context,
        "rope_divisors": tuple(divisors(rope, base, size, trained, context)),
        "rope_magnitude": magnitude,
    }
