"""Several adapters as one."""

import itertools
from collections.abc import Sequence

import flax.struct
import numpy as np

from edgesafe_jax.adapters.gate import Gate
from edgesafe_jax.adapters.kind import AdapterError
from edgesafe_jax.models.chats import Chat
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import IN_FRONT, Adapter, Array, LowRank


@flax.struct.dataclass
class Composition(Adapter):
    """Adapters that act together, each at places of its own; see `compose`.

    Attributes:
      parts: at least two adapters.
    """

    parts: tuple[Adapter, ...]

    @property
    def num_virtual(self) -> int:
        """The positions of all parts."""
        return sum(part.num_virtual for part in self.parts)

    @property
    def placement(self) -> str:
        """Of the part with virtual embeddings."""
        return next((part.placement for part in self.parts if part.virtual_embeddings() is not None), IN_FRONT)

    def virtual_embeddings(self) -> Array | None:
        """Those of the part that has any."""
        return next((found for part in self.parts if (found := part.virtual_embeddings()) is not None), None)

    def prefix(self) -> tuple[Array, Array] | None:
        """That of the part that has one."""
        return next((found for part in self.parts if (found := part.prefix()) is not None), None)

    def low_rank(self) -> LowRank | None:
        """The factors of all parts."""
        factors: dict[str, dict[str, tuple[Array, Array]]] = {}
        for part in self.parts:
            for module, leaves in (part.low_rank() or {}).items():
                factors.setdefault(module, {}).update(leaves)
        return factors or None

    def steering(self) -> Array | None:
        """The sum of the vectors of all parts, which steer different layers."""
        found = [vectors for part in self.parts if (vectors := part.steering()) is not None]
        return sum(found[1:], found[0]) if found else None

    def routes(
        self, model: LanguageModel, prompts: Sequence[str | Chat]
    ) -> list[tuple[np.ndarray, Adapter | None]] | None:
        """Where a gate is among the parts: the prompts on which it opens with the other parts, the others with none."""
        gates = [part for part in self.parts if isinstance(part, Gate)]
        if not gates:
            return None
        opened = gates[0].opens(model, prompts)
        gated = compose(*(part for part in self.parts if part is not gates[0]))
        return [(np.flatnonzero(opened), gated), (np.flatnonzero(~opened), None)]

    def slots(self) -> frozenset[str]:
        """The places of all parts."""
        return frozenset().union(*(part.slots() for part in self.parts))


def compose(*adapters: Adapter) -> Adapter:
    """Makes one adapter of several, such as a soft prompt and a LoRA; it is trained, stored and used like any other.

    Args:
      *adapters: the parts; a composition among them is taken apart.

    Returns:
      A `Composition`, or the adapter itself where there is one.

    Raises:
      AdapterError: no adapter, or two that use one place of the decoder.
    """
    parts = [part for each in adapters for part in (each.parts if isinstance(each, Composition) else (each,))]
    if not parts:
        raise AdapterError("compose() got no adapter: expected at least one.")
    for first, second in itertools.combinations(parts, 2):
        if shared := sorted(first.slots() & second.slots()):
            raise AdapterError(
                f"Two adapters, a {type(first).__name__} and a {type(second).__name__}, use the same place of the "
                f"decoder ({', '.join(shared)}): expected places of their own. Leave one out, or move it."
            )
    return parts[0] if len(parts) == 1 else Composition(tuple(parts))
