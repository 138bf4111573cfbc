"""The order of the data as a function of the step: a resumed run needs no iterator state."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from edgesafe_jax.errors import check_counts


def make_data_order(num_items: int, batch_size: int, *, seed: int) -> Callable[[int], np.ndarray]:
    """Makes the function from a step to the indices of its batch.

    Each epoch is a new permutation of all items; epochs follow one another without a gap, so that a batch may hold the
    last items of one epoch and the first of the next.

    Args:
      num_items: N, items in the data set.
      batch_size: B, items per step; may exceed N.
      seed: of the permutations.

    Returns:
      A pure function from the step (counted from 0) to the indices `[B]`, int64.

    Raises:
      ConfigError: a size is less than 1.

    Example:
      >>> order = make_data_order(4, 2, seed=0)
      >>> sorted([*order(0).tolist(), *order(1).tolist()])
      [0, 1, 2, 3]
    """
    check_counts(num_items=num_items, batch_size=batch_size)

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_items)

    def order(step: int) -> np.ndarray:
        positions = step * batch_size + np.arange(batch_size)
        return np.array([permutation(int(p // num_items))[p % num_items] for p in positions])

    return order
