"""Numbers of a model that are not finite: found once per call, and traced to the tensor that brought them in."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models.matmul import unpack_bfloat16
from edgesafe_jax.typing import PyTree


class NonFiniteError(EdgesafeError, FloatingPointError):
    """A model computed NaN or infinity where a result would be made of it."""


def check_finite(values: Any, what: str, *, sources: Sequence[tuple[str, PyTree]] = ()) -> None:
    """Checks what a model computed for N rows.

    Args:
      values: `[N, ...]` numbers, or `[N]` bool, whether each row was finite.
      what: what they are, such as "the logits of prompt"; the row's number follows it in the message.
      sources: trees that they were computed from, such as `("parameters", params)`; searched only for the message.

    Raises:
      NonFiniteError: a row is not finite; the message names the first one and the tensors that are not finite.
    """
    values = np.asarray(values)
    rows = values if values.dtype == bool else np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if rows.all():
        return
    row, count = int(np.flatnonzero(~rows)[0]), int((~rows).sum())
    found = [f"{name} {leaf}" for name, tree in sources for leaf in non_finite_leaves(tree)]
    if found:
        cause = f"Not finite: {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}."
    elif sources:
        named = " and ".join(name for name, _ in sources)
        cause = f"The {named} are finite: a number overflowed on the way; use float32, or a smaller adapter."
    else:
        cause = ""
    raise NonFiniteError(f"{what} {row} are not finite ({count} of {len(rows)} rows). {cause}".rstrip())


def non_finite_leaves(tree: PyTree) -> list[str]:
    """Returns the paths of the leaves of a tree that hold NaN or infinity, joined by slashes."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        numbers = unpack_bfloat16(jnp.asarray(leaf))
        if jnp.issubdtype(numbers.dtype, jnp.floating) and not bool(jnp.all(jnp.isfinite(numbers))):
            keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
            found.append("/".join(map(str, keys)))
    return found
