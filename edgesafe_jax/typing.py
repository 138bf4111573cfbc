"""One word per kind of array, and the glossary of dimension letters.

Shapes in docstrings and shape-suffixed names use these letters throughout the package:

===  ==========================================================================
B    batch: independent sequences or problems
T    positions of a sequence (time)
P    virtual positions of a soft prompt
D    width of the residual stream (embedding dimension)
F    width of the feed-forward layer
H    attention heads
K    key/value heads (grouped-query attention)
E    width of one attention head
L    layers of the decoder
V    vocabulary
N    a plain count of items (samples, pairs, bootstrap draws)
===  ==========================================================================
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.typing.ArrayLike
PRNGKey: TypeAlias = jax.Array
"""A typed random key, as made by ``jax.random.key``."""
PyTree: TypeAlias = Any
Params: TypeAlias = Mapping[str, Any]
"""Frozen network parameters: a plain nested dictionary of arrays."""
ProgressFn: TypeAlias = Callable[[int, int], None]
"""Called during long work with (items done, items in total)."""
LowRank: TypeAlias = Mapping[str, Mapping[str, tuple[Array, Array]]]
"""Additions to a decoder's matrices: from module and matrix to its factors `[L, inputs, R]` and `[L, R, outputs]`."""


IN_FRONT = "before_chat_template"
"""Placement of virtual positions in front of everything that the chat template renders."""


@runtime_checkable
class Adapter(Protocol):
    """Trained parameters that a frozen decoder accepts beside its own.

    An adapter is a pytree (so that `jax.grad`, `optax` and `jit` take it as it is) whose leaves are the trained
    numbers. It can have virtual embeddings, which later positions see; keys and values that every position sees;
    low-rank factors that are added to the matrices of the layers; and vectors that are added to the outputs of layers.
    A kind derives from this class and overrides what it has.
    """

    @property
    def num_virtual(self) -> int:
        """P, the number of positions that it adds to every sequence."""
        return 0

    @property
    def placement(self) -> str:
        """Where the virtual embeddings stand, a name in `edgesafe_jax.models.placements.PLACEMENTS`."""
        return IN_FRONT

    def virtual_embeddings(self) -> Array | None:
        """Returns the embeddings `[P, D]` of the virtual positions, or None where there are none."""
        return None

    def prefix(self) -> tuple[Array, Array] | None:
        """Returns keys and values `[L, K, P, E]` in front of every sequence, as they are attended to, or None."""
        return None

    def low_rank(self) -> LowRank | None:
        """Returns what is added to the matrices of the layers, or None."""
        return None

    def steering(self) -> Array | None:
        """Returns what is added to the output of each layer at every position, `[L, D]`, or None."""
        return None

    def routes(self, model: Any, prompts: Sequence[Any]) -> "Sequence[tuple[np.ndarray, Adapter | None]] | None":
        """Returns what each prompt runs with, where a gate decides it; None where all run with this adapter.

        Args:
          model: the base model.
          prompts: N user texts or chats.

        Returns:
          Row numbers with the adapter that these run with, None for the bare model; every row once.
        """
        del model, prompts
        return None

    def slots(self) -> frozenset[str]:
        """Returns the places of the decoder that it uses; two adapters with one in common do not compose."""
        ...
