"""The live table of a sweep: how far its cells are, and how long the rest takes."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from edgesafe_jax.reporting import make_table
from edgesafe_jax.sweeps.matrix import Cell
from edgesafe_jax.sweeps.runs import CellState, folder_of, read_numbers, read_state
from edgesafe_jax.sweeps.selection import Selection


class Board:
    """Shows the state of a sweep whenever it is called.

    On a terminal a table is redrawn in place; elsewhere each cell that ends adds a line.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        root: Path,
        selection: Selection,
        *,
        num_processes: int = 1,
        num_further: int = 0,
        stream: TextIO | None = None,
    ):
        """Starts a board.

        Args:
          cells: that it shows.
          root: the folder of the sweep.
          selection: whose measure it shows.
          num_processes: that run cells at once.
          num_further: cells that come behind these, for the time left.
          stream: where it is shown; default stderr.
        """
        self._cells, self._root, self._selection = list(cells), root, selection
        self._num_processes, self._num_further = num_processes, num_further
        self._stream = sys.stderr if stream is None else stream
        self._since = time.time()
        self._shown: set[str] = {cell.name for cell in cells if read_state(cell, root).kind == "finished"}
        self._num_lines = 0

    def __call__(self) -> None:
        """Shows the state."""
        states = {cell.name: read_state(cell, self._root, since=self._since) for cell in self._cells}
        if self._stream.isatty():
            text = f"{self.table(states)}\n{self.line(states)}\n"
            up = f"\x1b[{self._num_lines}A\x1b[J" if self._num_lines else ""
            self._num_lines = text.count("\n")
            print(up + text, end="", file=self._stream, flush=True)
            return
        for cell in self._cells:
            state = states[cell.name]
            if state.kind in ("finished", "failed") and cell.name not in self._shown:
                self._shown.add(cell.name)
                what = f"in {state.seconds:.0f} s" if state.kind == "finished" else f"({state.message})"
                print(f"{cell.name}: {state.kind} {what}. {self.line(states)}", file=self._stream, flush=True)

    def table(self, states: dict[str, CellState]) -> str:
        """Counts by the level of the first axis, with the best measure."""
        axis = next(iter(self._cells[0].levels))
        rows = []
        for level in dict.fromkeys(cell.levels[axis] for cell in self._cells):
            cells = [cell for cell in self._cells if cell.levels[axis] == level]
            kinds = [states[cell.name].kind for cell in cells]
            row: dict[str, object] = {axis: level}
            row |= {kind: kinds.count(kind) for kind in ("finished", "running", "failed", "waiting")}
            seconds = [states[cell.name].seconds for cell in cells if states[cell.name].kind == "finished"]
            row["seconds a cell"] = round(sum(seconds) / len(seconds)) if seconds else None
            if self._selection.measure:
                row["best measure"] = self._best(cells, states)
            rows.append(row)
        return make_table(rows).to_text()

    def _best(self, cells: Sequence[Cell], states: dict[str, CellState]) -> float | None:
        scores = [
            self._selection.score(read_numbers(folder_of(cell, self._root)))
            for cell in cells
            if states[cell.name].kind == "finished"
        ]
        return max((score for score in scores if not math.isnan(score)), default=None)

    def line(self, states: dict[str, CellState]) -> str:
        """How many cells are done, what runs, and an estimate of the time left."""
        kinds = [state.kind for state in states.values()]
        done = kinds.count("finished")
        text = f"{done} of {len(kinds) + self._num_further} cells"
        if kinds.count("failed"):
            text += f", {kinds.count('failed')} failed"
        running = [(name, state) for name, state in states.items() if state.kind == "running"]
        for name, state in running[:2] if self._stream.isatty() else ():
            text += f"; {name}" + (f" at step {state.step + 1}" if state.step is not None else "")
        seconds = [state.seconds for state in states.values() if state.kind == "finished"]
        if seconds:
            each = sum(seconds) / len(seconds)
            left = each * (kinds.count("waiting") + self._num_further)
            left += sum(max(each - state.seconds, 0.1 * each) for _, state in running)
            text += f"; about {_duration(left / self._num_processes)} left" if left else ""
        return text


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
