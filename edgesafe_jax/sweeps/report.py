"""The report of a sweep: tables by method, the frontier, the search and curves, as HTML, CSV and LaTeX."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import metrics, reporting
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.reporting import Estimate, Point, Section, Table, make_table
from edgesafe_jax.sweeps.matrix import Cell
from edgesafe_jax.sweeps.runs import folder_of, read_results
from edgesafe_jax.sweeps.selection import Numbers, Selection
from edgesafe_jax.sweeps.sweep import Sweep
from edgesafe_jax.training import write_json
from edgesafe_jax.training.workdir import read_outcomes, write_text

TABLES = "tables"
MAX_NAMED = 12
"""Methods that the frontier names; further ones would cover each other."""


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """What a report shows.

    Attributes:
      tables: by caption and column, the name of a number of the cells.
      frontier: two columns: one that is to be small, for x, and one that is to be large, for y; empty for no picture.
      curve: an axis whose levels are numbers, along which the columns of `along` are drawn; empty for none.
      along: columns.
    """

    tables: Mapping[str, Mapping[str, str]]
    frontier: tuple[str, ...] = ()
    curve: str = ""
    along: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, str]:
        """All columns by name."""
        return {column: name for table in self.tables.values() for column, name in table.items()}

    def check(self, sweep: Sweep) -> None:
        """Raises ConfigError where a column or an axis is named that is not there."""
        if not self.columns:
            raise ConfigError("report.tables has no column: expected at least one number by the name of its column.")
        for column in (*self.frontier, *self.along):
            lookup(self.columns, column, "report: column")
        if len(self.frontier) not in (0, 2):
            raise ConfigError(f"report.frontier={self.frontier}: expected two columns, or none.")
        if self.curve:
            axis = lookup({axis.name: axis for axis in sweep.axes}, self.curve, "report.curve")
            if wrong := [level.name for level in axis.levels if not _is_number(level.name)]:
                raise ConfigError(f"report.curve={self.curve!r} has the level {wrong[0]!r}: expected numbers.")


def write_report(sweep: Sweep, root: Path, settings: ReportSettings, *, title: str) -> dict[str, Table]:
    """Writes `report.html`, and each table as `tables/NAME.csv` and `tables/NAME.tex`.

    Args:
      sweep: the matrix.
      root: its folder.
      settings: what is shown.
      title: of the report.

    Returns:
      The tables by caption.

    Raises:
      ConfigError: nothing is finished, or the settings name what is not there.
    """
    settings.check(sweep)
    results = read_results(sweep.cells, root)
    if not results:
        raise ConfigError(f"{root} has no finished cell: run launch.sweep first.")
    selection = sweep.selection
    best = selection.best(sweep.cells, results) or [cell for cell in sweep.cells if cell.name in results]
    section = Section("Sweep", order=0).text(_summary(sweep, results))
    tables: dict[str, Table] = {}
    for caption, columns in settings.tables.items():
        tables[caption] = make_table([_row(selection, cell, results, columns) for cell in best])
    if rows := _repeat_rows(sweep, best, results, settings.columns):
        tables["Over the repeats"] = make_table(rows)
    if rows := _paired_rows(sweep, best, results, root, settings.columns):
        tables["Differences from the best method"] = make_table(rows)
    if selection.search:
        tables["Search"] = make_table(_search_rows(sweep, results))
    if settings.frontier:
        _add_frontier(section, selection, best, results, settings)
    for caption, table in tables.items():
        section.table(table.rows, table.columns, caption=caption)
    if settings.curve:
        _add_curve(section, sweep, results, settings)
    every = make_table(
        [
            {**cell.levels, **_values(results[cell.name], settings.columns)}
            for cell in sweep.cells
            if cell.name in results
        ]
    )
    for caption, table in {**tables, "cells": every}.items():
        stem = root / TABLES / re.sub(r"\W+", "_", caption).strip("_").lower()
        write_text(stem.with_suffix(".csv"), table.to_csv())
        write_text(stem.with_suffix(".tex"), table.to_latex(caption))
    write_json(root / TABLES / "numbers.json", {cell: dict(numbers) for cell, numbers in results.items()})
    reporting.write_fragment(root, "sweep", section)
    reporting.build_report(root, title)
    return tables


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.removeprefix("x")))
    except ValueError:
        return False


def _summary(sweep: Sweep, results: Mapping[str, Numbers]) -> str:
    rule = sweep.selection
    text = f"{len(results)} finished cells of a matrix of {len(sweep.cells)}: "
    text += ", ".join(f"{axis.name} ({len(axis.levels)})" for axis in sweep.axes) + "."
    if rule.search:
        measure = " ".join(f"{weight:+g} {name}" for name, weight in rule.measure.items())
        text += f" Of each method the best {' and '.join(rule.search)} is shown, by {measure}."
    if rule.num_best:
        text += f" The best {rule.num_best} methods ran every {rule.repeat}."
    return f"{text} Brackets are 95 % intervals over the rows that a cell was measured on."


def _name(selection: Selection, cell: Cell) -> str:
    return ", ".join(selection.method(cell)) or cell.name


def _estimate(numbers: Numbers, name: str) -> Estimate | float | None:
    value, low, high = (numbers.get(each) for each in (name, f"{name}_low", f"{name}_high"))
    if value is None or low is None or high is None:
        return value
    return Estimate(value, low, high)


def _values(numbers: Numbers, columns: Mapping[str, str]) -> dict[str, Any]:
    return {column: _estimate(numbers, name) for column, name in columns.items()}


def _row(
    selection: Selection, cell: Cell, results: Mapping[str, Numbers], columns: Mapping[str, str]
) -> dict[str, Any]:
    levels = {axis: level for axis, level in cell.levels.items() if axis != selection.repeat}
    return levels | _values(results[cell.name], columns)


def _family(sweep: Sweep, cell: Cell, results: Mapping[str, Numbers]) -> list[Cell]:
    """A cell with its finished repeats."""
    fixed = {axis: level for axis, level in cell.levels.items() if axis != sweep.selection.repeat}
    return [other for other in sweep.cells if other.name in results and fixed.items() <= other.levels.items()]


def _repeat_rows(
    sweep: Sweep, best: Sequence[Cell], results: Mapping[str, Numbers], columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Means over the repeats of a method, with the least and the largest value."""
    rows = []
    for cell in best:
        family = _family(sweep, cell, results) if sweep.selection.repeat else []
        if len(family) < 2:
            continue
        row: dict[str, Any] = {"method": _name(sweep.selection, cell), "repeats": len(family)}
        for column, name in columns.items():
            values = [value for other in family if (value := results[other.name].get(name)) is not None]
            shown = f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else None
            row[column] = shown
        rows.append(row)
    return rows


def _paired_rows(
    sweep: Sweep, best: Sequence[Cell], results: Mapping[str, Numbers], root: Path, columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Differences of each method from the first, over the same rows, where cells keep the outcome of each row.

    An outcome is the mean over the repeats that both methods ran; intervals are over the rows.
    """
    selection, rows = sweep.selection, []
    for cell in best[1:]:
        pairs = _shared_repeats(sweep, cell, best[0], results)
        ours, theirs = ([read_outcomes(folder_of(other, root)) for other in side] for side in zip(*pairs, strict=True))
        row: dict[str, Any] = {}
        for column, name in columns.items():
            found = [[np.array(kept[name], float) for kept in side if name in kept] for side in (ours, theirs)]
            if (
                all(len(side) == len(pairs) for side in found)
                and len({len(kept) for side in found for kept in side}) == 1
            ):
                values, baseline = (np.mean(side, axis=0) for side in found)
                row[column] = metrics.paired_bootstrap_interval(values=values, baseline=baseline)
        if row:
            rows.append({"method": _name(selection, cell), "less": _name(selection, best[0]), **row})
    return rows


def _shared_repeats(sweep: Sweep, cell: Cell, other: Cell, results: Mapping[str, Numbers]) -> list[tuple[Cell, Cell]]:
    """The finished repeats of two methods, by level; the cells themselves where nothing is repeated."""
    if not (repeat := sweep.selection.repeat):
        return [(cell, other)]
    of_other = {each.levels[repeat]: each for each in _family(sweep, other, results)}
    family = _family(sweep, cell, results)
    return [(each, of_other[each.levels[repeat]]) for each in family if each.levels[repeat] in of_other]


def _search_rows(sweep: Sweep, results: Mapping[str, Numbers]) -> list[dict[str, Any]]:
    """The selection's measure of each method by the levels of the search."""
    rule = sweep.selection
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in rule.first(sweep.cells):
        row = rows.setdefault(rule.method(cell), {"method": _name(rule, cell)})
        level = ", ".join(cell.levels[axis] for axis in rule.search)
        row.setdefault(level, rule.score(results[cell.name]) if cell.name in results else None)
    return list(rows.values())


def _add_frontier(
    section: Section,
    selection: Selection,
    best: Sequence[Cell],
    results: Mapping[str, Numbers],
    settings: ReportSettings,
) -> None:
    x, y = settings.frontier
    points = []
    for cell in best[:MAX_NAMED]:
        row = _values(results[cell.name], settings.columns)
        if row[x] is not None and row[y] is not None:
            points.append(Point(_name(selection, cell), row[x], row[y]))
    if not points:
        return
    ends = [end for p in points for end in (p.y if isinstance(p.y, Estimate) else (p.y,)) if end is not None]
    limits = (0.0, 1.0) if min(ends) >= 0 and max(ends) <= 1 else None
    picture = reporting.safety_usefulness(points, xlabel=x, ylabel=y, ylim=limits)
    caption = "Up and to the left is better. Bars are 95 % intervals."
    section.figure(picture, alt=f"{y} against {x} by method", caption=caption)


def _add_curve(section: Section, sweep: Sweep, results: Mapping[str, Numbers], settings: ReportSettings) -> None:
    """Columns along an axis of numbers, each level at its best cell."""
    series: dict[str, list[tuple[float, Any]]] = {}
    for cell in sweep.selection.best(sweep.cells, results):
        for column in settings.along or settings.columns:
            value = _estimate(results[cell.name], settings.columns[column])
            if value is not None:
                series.setdefault(column, []).append((float(cell.levels[settings.curve].removeprefix("x")), value))
    if series:
        series = {name: sorted(points, key=lambda point: point[0]) for name, points in series.items()}
        picture = reporting.curves(series, xlabel=settings.curve, ylabel="measured", log_x=_spans(series))
        section.figure(picture, alt=f"Numbers along {settings.curve}", caption=f"Along {settings.curve}.")


def _spans(series: Mapping[str, Sequence[tuple[float, Any]]]) -> bool:
    """Whether the places are better seen on a logarithmic axis."""
    places = [x for points in series.values() for x, _ in points]
    return min(places) > 0 and max(places) >= 10 * min(places)
