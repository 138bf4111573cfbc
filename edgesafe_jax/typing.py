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

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax

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


@runtime_checkable
class Adapter(Protocol):
    """Trained parameters that a frozen decoder accepts beside its own.

    An adapter is a pytree (so that `jax.grad`, `optax` and `jit` take it as it is) whose leaves are the trained
    numbers. The decoder puts its virtual embeddings in front of the sequence, where every later position sees them, and
    adds its low-rank factors to the matrices of the layers. An adapter has the one, the other or both.
    """

    @property
    def num_virtual(self) -> int:
        """P, the number of virtual positions in front of the sequence."""
        ...

    def virtual_embeddings(self) -> Array | None:
        """Returns the embeddings `[P, D]` of the virtual positions, or None where there are none."""
        ...

    def low_rank(self) -> LowRank | None:
        """Returns what is added to the matrices of the layers, or None."""
        ...
