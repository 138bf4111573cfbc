"""What is run of a matrix, and in which order: the search at one seed first, then more seeds of the best."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

from edgesafe_jax.errors import COUNT, ConfigError, check_ranges, lookup
from edgesafe_jax.sweeps.matrix import Axis, Cell

Numbers = Mapping[str, float | None]
"""The numbers of a finished cell by name."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """How cells are chosen: on numbers that the final tables do not show.

    A method is a combination of the levels of all axes but `search` and `repeat`.

    Attributes:
      search: axes of which the best combination of each method is chosen, such as the learning rate.
      repeat: the axis whose further levels only the best methods run, such as the seed; empty for none.
      measure: from name of a number to weight; the weighted sum is to be large.
      num_best: methods that run all levels of `repeat`.

    Raises:
      ConfigError: a negative count, or nothing to choose by.
    """

    search: tuple[str, ...] = ()
    repeat: str = ""
    measure: Mapping[str, float] = dataclasses.field(default_factory=dict)
    num_best: int = 0

    def __post_init__(self):
        check_ranges({"num_best": self.num_best}, {"num_best": COUNT}, prefix="selection.")
        if (self.search or self.num_best) and not self.measure:
            raise ConfigError("selection.measure is empty: expected weights of numbers by name, to choose by.")
        if self.num_best and not self.repeat:
            raise ConfigError(f"selection.num_best={self.num_best} with no selection.repeat: expected an axis, or 0.")

    def check(self, axes: Sequence[Axis]) -> None:
        """Raises ConfigError where the selection names an axis that is not there."""
        known = {axis.name: axis for axis in axes}
        for name in (*self.search, *([self.repeat] if self.repeat else ())):
            lookup(known, name, "selection: axis")
        if self.repeat in self.search:
            raise ConfigError(f"selection.repeat={self.repeat!r} is among selection.search: expected another axis.")

    def method(self, cell: Cell) -> tuple[str, ...]:
        """The levels of a cell that make its method."""
        return tuple(level for axis, level in cell.levels.items() if axis not in (*self.search, self.repeat))

    def score(self, numbers: Numbers) -> float:
        """The measure of a cell; NaN where one of its numbers is missing."""
        found = [numbers.get(name) for name in self.measure]
        if any(value is None for value in found):
            return math.nan
        return sum(weight * float(value) for weight, value in zip(self.measure.values(), found, strict=True) if value)

    def check_results(self, results: Mapping[str, Numbers]) -> None:
        """Raises ConfigError where finished cells lack a number of the measure, so that none can be chosen."""
        for name in self.measure:
            if results and all(numbers.get(name) is None for numbers in results.values()):
                known = dict.fromkeys(each for numbers in results.values() for each in numbers)
                close = difflib.get_close_matches(name, known, n=3) or list(known)[:3]
                raise ConfigError(
                    f"selection.measure: no finished cell has the number {name!r}; the nearest that there are: "
                    f"{', '.join(close) or 'none'}."
                )

    def first(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of the search, and of all repeats where no number of best methods is given.

        Args:
          cells: all cells of the matrix, in its order.

        Returns:
          Every method at the first level of `search`, then at the next one, and so on.
        """
        chosen = self._searched(cells) if self.num_best else list(cells)
        order = ([self.repeat] if self.repeat else []) + list(self.search)
        ranks = {axis: list(dict.fromkeys(cell.levels[axis] for cell in cells)) for axis in order}
        return sorted(chosen, key=lambda cell: [ranks[axis].index(cell.levels[axis]) for axis in order])

    def _searched(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells at the first level of `repeat`."""
        if not self.repeat:
            return list(cells)
        return [cell for cell in cells if cell.levels[self.repeat] == cells[0].levels[self.repeat]]

    def best(self, cells: Sequence[Cell], results: Mapping[str, Numbers]) -> list[Cell]:
        """The best finished cell of each method at the first level of `repeat`, best method first.

        Args:
          cells: all cells.
          results: numbers of the finished ones by the cell's name.

        Returns:
          At most one cell per method; methods without a measured cell are left out.
        """
        best: dict[tuple[str, ...], tuple[float, Cell]] = {}
        for cell in self._searched(cells):
            score = self.score(results[cell.name]) if cell.name in results else math.nan
            known = best.get(self.method(cell))
            if not math.isnan(score) and (known is None or score > known[0]):
                best[self.method(cell)] = score, cell
        return [cell for _, cell in sorted(best.values(), key=lambda pair: -pair[0])]

    def repeats(self, cells: Sequence[Cell], results: Mapping[str, Numbers]) -> list[Cell]:
        """The further levels of `repeat` for the best methods.

        Args:
          cells: all cells.
          results: numbers of the finished ones by the cell's name.

        Returns:
          The cells, those of the best method first.
        """
        if not self.num_best:
            return []
        found = []
        for cell in self.best(cells, results)[: self.num_best]:
            fixed = {axis: level for axis, level in cell.levels.items() if axis != self.repeat}
            found += [other for other in cells if other is not cell and fixed.items() <= other.levels.items()]
        return found
