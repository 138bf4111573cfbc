"""A whole sweep: the search, the choice, the repeats of the best."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from edgesafe_jax.sweeps.board import Board
from edgesafe_jax.sweeps.launchers import Launcher
from edgesafe_jax.sweeps.matrix import Axis, Cell, expand
from edgesafe_jax.sweeps.runs import Work, check_cells, forget_failures, read_results, read_state
from edgesafe_jax.sweeps.selection import Selection


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A matrix of runs and the rule by which its cells are chosen.

    Attributes:
      axes: its dimensions.
      cells: every combination of their levels.
      selection: which of them are run.
    """

    axes: Sequence[Axis]
    cells: Sequence[Cell]
    selection: Selection

    @property
    def num_repeats(self) -> int:
        """Cells that are run behind the search, at most."""
        if not self.selection.num_best:
            return 0
        levels = next(len(axis.levels) for axis in self.axes if axis.name == self.selection.repeat)
        num_methods = len({self.selection.method(cell) for cell in self.cells})
        return (levels - 1) * min(self.selection.num_best, num_methods)


def make_sweep(
    base: Mapping[str, Any],
    axes: Sequence[Axis],
    *,
    changes: Mapping[str, Any] | None = None,
    selection: Selection | None = None,
) -> Sweep:
    """Makes a sweep of a base config; arguments and errors are those of `expand` and `Selection`."""
    selection = Selection() if selection is None else selection
    selection.check(axes)
    return Sweep(axes, expand(base, axes, changes), selection)


def run_sweep(
    sweep: Sweep,
    root: Path,
    work: Work,
    launcher: Launcher,
    *,
    num_processes: int = 1,
    stream: TextIO | None = None,
) -> list[str]:
    """Runs what is missing of a sweep: the search first, then the repeats of the best methods.

    Args:
      sweep: the matrix.
      root: its folder, which this process has opened.
      work: runs cells, see `runs.Work`; processes and jobs call it by its name, so it is a function of a module.
      launcher: where it runs.
      num_processes: that run cells at once, for the estimate of the time left.
      stream: where the table is shown; default stderr.

    Returns:
      Messages of the cells that failed.

    Raises:
      WorkdirError: a cell that is there was run with another config.
      ConfigError: the finished cells lack a number of the selection's measure.
    """
    check_cells(sweep.cells, root)
    forget_failures(sweep.cells, root)
    chosen = sweep.selection.first(sweep.cells)
    _launch(sweep, chosen, root, work, launcher, num_processes, sweep.num_repeats, stream)
    results = read_results(sweep.cells, root)
    sweep.selection.check_results(results)
    repeats = sweep.selection.repeats(sweep.cells, results)
    _launch(sweep, repeats, root, work, launcher, num_processes, 0, stream)
    states = {cell.name: read_state(cell, root) for cell in (*chosen, *repeats)}
    return [f"{name}: {state.message}" for name, state in states.items() if state.kind == "failed"]


def _launch(
    sweep: Sweep,
    cells: Sequence[Cell],
    root: Path,
    work: Work,
    launcher: Launcher,
    num_processes: int,
    num_further: int,
    stream: TextIO | None,
) -> None:
    missing = [cell for cell in cells if read_state(cell, root).kind != "finished"]
    if not missing:
        return
    board = Board(cells, root, sweep.selection, num_processes=num_processes, num_further=num_further, stream=stream)
    launcher(work, missing, root, board)
