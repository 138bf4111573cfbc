"""The order of the data as a function of the step, so that a resumed run needs no iterator state."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np


def make_data_order(num_items: int, batch_size: int, *, seed: int) -> Callable[[int], np.ndarray]:
    """Makes the function that says which items the batch of a step holds.

    The items are dealt in a new random order each epoch, one epoch after the other without a gap: a batch at the
    border takes the last items of one and the first of the next.

    Args:
      num_items: N, items in the data set.
      batch_size: B, items a step; may exceed N.
      seed: of the shuffling.

    Returns:
      A pure function from the step (counted from 0) to the indices `[B]`, int64.

    Raises:
      ValueError: if a size is less than 1.

    Example:
      >>> order = make_data_order(4, 2, seed=0)
      >>> sorted([*order(0).tolist(), *order(1).tolist()])
      [0, 1, 2, 3]
    """
    if num_items < 1 or batch_size < 1:
        raise ValueError(
            f"num_items={num_items}, batch_size={batch_size}: expected both at least 1; is the data empty?"
        )

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_items)

    def order(step: int) -> np.ndarray:
        positions = step * batch_size + np.arange(batch_size)
        return np.array([permutation(int(p // num_items))[p % num_items] for p in positions])

    return order
