"""Cells as work directories: what is missing is run, what is there is read.

======================  ==========================================================================
``config.json``         the config of the sweep; the same one resumes, another one is refused
``cells/NAME/``         one ordinary work directory per cell
``  finished.json``     written when the cell is trained and measured
``  failed.json``       the message of its error; the next call of the same command tries again
``shared/``             what several cells compute alike, once
``logs/``               output of the processes, where there are several
======================  ==========================================================================
"""

import dataclasses
import gc
import json
import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.sweeps.matrix import Cell
from edgesafe_jax.sweeps.selection import Numbers
from edgesafe_jax.training import locks, read_metrics, write_json
from edgesafe_jax.training.metric_writers import METRICS
from edgesafe_jax.training.workdir import CONFIG, SUMMARY, WorkdirError, flatten, read_config, read_summary, to_json

_log = logging.getLogger(__name__)

CELLS, SHARED, LOGS = "cells", "shared", "logs"
FINISHED, FAILED = "finished.json", "failed.json"
_MAX_MAPPINGS = 25_000
"""Memory mappings after which compiled programs are dropped: Linux gives a process 65,530 and each program has some."""

RunCell: TypeAlias = Callable[[Mapping[str, Any], Path, Path], None]
"""Trains and measures one cell: from its config, its work directory and the folder that all cells share."""

Work: TypeAlias = Callable[[Sequence[Cell], Path], None]
"""Runs what is missing of some cells under the folder of a sweep."""


@dataclasses.dataclass(frozen=True)
class CellState:
    """How far a cell is.

    Attributes:
      kind: of a running cell another process may have ended without a trace; the same command then continues it.
      seconds: that it took, or since when it runs.
      step: the last step of a running cell that is in its metrics.
      message: of a failed one.
    """

    kind: Literal["waiting", "running", "finished", "failed"]
    seconds: float = 0.0
    step: int | None = None
    message: str = ""


def folder_of(cell: Cell, root: Path) -> Path:
    """The work directory of a cell."""
    return root / CELLS / cell.name


def run_cells(cells: Sequence[Cell], root: Path, run_cell: RunCell) -> None:
    """Runs the cells that are neither finished nor failed nor in another process's hands, one after another.

    A cell that fails does not end the others. Programs that were compiled for one cell serve the next.

    Args:
      cells: in the order in which they are run.
      root: the folder of the sweep.
      run_cell: trains and measures one.
    """
    for cell in cells:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return
        _run_one(cell, root, run_cell)
        _drop_compiled_programs()


def _run_one(cell: Cell, root: Path, run_cell: RunCell) -> None:
    folder = folder_of(cell, root)
    if _settled(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if locks.acquire(folder) is not None:
        return
    try:
        if _settled(folder):
            return
        _log.info(f"== {cell.name} ==")
        started = time.time()
        run_cell(cell.config, folder, root / SHARED)
        write_json(folder / FINISHED, {"seconds": time.time() - started, "levels": cell.levels})
    except EdgesafeError as error:
        write_json(folder / FAILED, {"message": str(error), "kind": type(error).__name__})
        _log.info(f"{cell.name} failed: {error}")
    except Exception as error:
        write_json(folder / FAILED, {"message": f"{error!r}", "traceback": traceback.format_exc()})
        _log.exception(f"{cell.name} failed")
    finally:
        locks.release(folder)


def _settled(folder: Path) -> bool:
    return (folder / FINISHED).exists() or (folder / FAILED).exists()


def _drop_compiled_programs() -> None:
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MAX_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def check_cells(cells: Iterable[Cell], root: Path) -> None:
    """Checks that the cells that are there were run with the configs that they have now.

    Fields that came after a run are not compared.

    Raises:
      WorkdirError: a cell of that name holds another config.
    """
    for cell in cells:
        folder = folder_of(cell, root)
        if not (folder / CONFIG).exists():
            continue
        wanted = flatten(to_json(cell.config))
        stored = flatten(read_config(folder))
        if changed := [field for field, value in stored.items() if wanted.get(field) != value]:
            raise WorkdirError(
                f"{folder} holds a run with {changed[0]}={stored[changed[0]]!r}, now {wanted.get(changed[0])!r}: give "
                "another --workdir, or delete this cell to run it afresh"
            )


def forget_failures(cells: Iterable[Cell], root: Path) -> None:
    """Lets failed cells be run again."""
    for cell in cells:
        (folder_of(cell, root) / FAILED).unlink(missing_ok=True)


def read_state(cell: Cell, root: Path, *, since: float = 0.0) -> CellState:
    """Reads how far a cell is.

    Args:
      cell: the cell.
      root: the folder of the sweep.
      since: time, in seconds since 1970, before which a process that took the cell is taken to have ended.

    Returns:
      The state.
    """
    folder = folder_of(cell, root)
    if (folder / FINISHED).exists():
        return CellState("finished", seconds=float(_read(folder / FINISHED).get("seconds", 0.0)))
    if (folder / FAILED).exists():
        return CellState("failed", message=str(_read(folder / FAILED).get("message", "")))
    owner = folder / locks.OWNER
    if not owner.exists() or owner.stat().st_mtime < since:
        return CellState("waiting")
    lines = read_metrics(folder) if (folder / METRICS).exists() else []
    return CellState("running", seconds=time.time() - owner.stat().st_mtime, step=lines[-1]["step"] if lines else None)


def read_numbers(folder: Path) -> dict[str, float | None]:
    """Reads the numbers of a finished run: its summary, and the last of each `eval/...` in its metrics."""
    numbers: dict[str, float | None] = {}
    for line in read_metrics(folder) if (folder / METRICS).exists() else []:
        numbers |= {name: value for name, value in line.items() if name.startswith("eval/")}
    return numbers | (read_summary(folder) if (folder / SUMMARY).exists() else {})


def read_results(cells: Iterable[Cell], root: Path) -> dict[str, Numbers]:
    """Reads the numbers of all finished cells, by the cell's name."""
    return {
        cell.name: read_numbers(folder_of(cell, root)) for cell in cells if (folder_of(cell, root) / FINISHED).exists()
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
