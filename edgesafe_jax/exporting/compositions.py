"""Compositions of adapters in formats that hold one adapter: what can be joined is, and the others say why not."""

from typing import TypeVar

import jax.numpy as jnp

from edgesafe_jax.adapters import Composition, Gate, LoRA, compose
from edgesafe_jax.typing import Adapter, Array

Part = TypeVar("Part", bound=Adapter)

GATED = (
    "A gate chooses for each prompt, by a hidden state of the base model, whether the adapter is used: no file of "
    "another program has such a switch. Without the gate the adapter can be exported and is used for every prompt: "
    "compose(...) the other parts and save them with save_adapter."
)
"""Why an adapter with a gate has no format."""


def part_of(adapter: Adapter, kind: type[Part]) -> Part | None:
    """The adapter itself, or the part of a composition, that is of a class; None where there is none."""
    return next((part for part in _parts(adapter) if isinstance(part, kind)), None)


def simplified(adapter: Adapter) -> Adapter:
    """Returns the same adapter with all LoRAs of a composition joined to one."""
    loras = [part for part in _parts(adapter) if isinstance(part, LoRA)]
    if len(loras) < 2:
        return adapter
    return compose(*(part for part in _parts(adapter) if not isinstance(part, LoRA)), join_loras(loras))


def join_loras(loras: list[LoRA]) -> LoRA:
    """Returns one LoRA that adds what several add, which adapt different matrices.

    Factors get the largest rank and the most layers of all, filled up with zeros; the scales go into B.
    """
    rank = max(factor.shape[-1] for lora in loras for factor in lora.down.values())
    first = min(lora.first_layer for lora in loras)

    def filled(factor: Array, lora: LoRA, axis: int) -> Array:
        widths = [(lora.first_layer - first, 0), (0, 0), (0, 0)]
        widths[axis] = (0, rank - factor.shape[axis])
        return jnp.pad(factor, widths)

    down = {name: filled(factor, lora, 2) for lora in loras for name, factor in lora.down.items()}
    up = {name: filled(lora.scale * factor, lora, 1) for lora in loras for name, factor in lora.up.items()}
    return LoRA(down, up, scale=1.0, first_layer=first)


def advice(adapter: Adapter) -> str:
    """What can be done with a composition that a format cannot hold; empty for a single adapter."""
    if part_of(adapter, Gate) is not None:
        return f" {GATED}"
    if len(_parts(adapter)) > 1:
        return " The parts can be exported one by one, each with save_adapter and a format of its own kind."
    return ""


def _parts(adapter: Adapter) -> tuple[Adapter, ...]:
    return adapter.parts if isinstance(adapter, Composition) else (adapter,)
