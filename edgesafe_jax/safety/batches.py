"""The order of the data: which rows of the teacher are in the batch of each step."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgesafe_jax.errors import ConfigError, check_counts

BatchOrder = Callable[[int], np.ndarray]
"""From a step to the row numbers of its batch, `[B]`."""


def row_counts(batch_size: int, mixture: Mapping[str, float]) -> dict[str, int]:
    """Divides the rows of a batch among groups, whole rows, largest remainder first.

    Args:
      batch_size: B.
      mixture: weight of each group by its name, in any unit.

    Returns:
      Rows by group, at least one each, B in all.

    Raises:
      ConfigError: a batch size below 1, or a weight that is not positive or too small for a row.
    """
    check_counts(batch_size=batch_size)
    for name, weight in mixture.items():
        if not weight > 0:
            raise ConfigError(f"Weight of {name!r} is {weight}: expected more than 0.")
    names = sorted(mixture)
    total = sum(mixture[name] for name in names)
    exact = {name: batch_size * mixture[name] / total for name in names}
    counts = {name: int(exact[name]) for name in names}
    for name in sorted(names, key=lambda n: counts[n] - exact[n])[: batch_size - sum(counts.values())]:
        counts[name] += 1
    for name in names:
        if not counts[name]:
            raise ConfigError(
                f"Weight of {name!r} is {mixture[name]} of {total}: not one row of a batch of {batch_size}. Raise "
                "batch_size or the weight."
            )
    return counts


def make_batch_order(
    lengths: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    groups: Mapping[str, Sequence[int]],
    mixture: Mapping[str, float],
) -> BatchOrder:
    """Makes the rows of each step a function of the step alone, so that an interrupted run continues exactly.

    Every batch takes rows of all groups in the given proportions, and of one length bucket where it can: within a
    group, rows are dealt in a fixed random order, sorted by length within windows of some batches.

    Args:
      lengths: `[N]`, positions of each row.
      batch_size: B.
      seed: of the order.
      groups: row numbers by group name; every group has at least one row.
      mixture: weight of each group in a batch, see `row_counts`.

    Returns:
      `order(step)`, B row numbers.

    Raises:
      ConfigError: an empty group, other names in the mixture, or weights that are not positive or too small for a row.
    """
    if set(groups) != set(mixture) or not groups:
        raise ConfigError(f"groups {sorted(groups)} and mixture {sorted(mixture)} must have the same names.")
    for name in groups:
        if not len(groups[name]):
            raise ConfigError(f"Group {name!r} has no rows: expected at least one of each kind.")
    counts = row_counts(batch_size, mixture)
    names = sorted(groups)
    window = 16  # batches within which rows are sorted by length

    @functools.lru_cache(maxsize=4 * len(names))
    def dealt(name: str, number: int) -> list[np.ndarray]:
        """The rows of one group for one window of batches."""
        rows = np.asarray(groups[name])
        needed = window * counts[name]
        begin = number * needed
        chosen = []
        for position in range(begin, begin + needed):
            epoch, index = divmod(position, len(rows))
            chosen.append(int(rows[_permutation(len(rows), seed, epoch, name)[index]]))
        chosen.sort(key=lambda row: lengths[row])
        return np.array_split(np.array(chosen), window)

    def order(step: int) -> np.ndarray:
        number, index = divmod(step, window)
        # One random order of the window's batches for all groups: short rows meet short rows.
        index = int(np.random.default_rng([seed, number, 7]).permutation(window)[index])
        return np.concatenate([dealt(name, number)[index] for name in names])

    return order


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int, name: str) -> np.ndarray:
    return np.random.default_rng([seed, epoch, *name.encode()]).permutation(size)
