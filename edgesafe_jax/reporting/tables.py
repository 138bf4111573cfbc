"""One table, shown as text for the terminal, as Markdown and (by `edgesafe_jax.reporting.html`) as HTML."""

import csv
import io
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_NONE = "-"


class Estimate(NamedTuple):
    """A number with its confidence interval, shown like ``0.91 [0.88, 0.94]``.

    Attributes:
      value: the estimate.
      low: the lower end, or None where one sample gives no interval, shown like ``0.91 [no interval]``.
      high: the upper end, or None as well.
    """

    value: float
    low: float | None
    high: float | None


Cell = str | int | float | Estimate | None
"""A cell of a table: text, a whole number, a number, a number with its interval, or nothing."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
      columns: the names of the columns, in order.
      rows: the cells, as many a row as there are columns.
      digits: decimals of numbers and intervals, by column.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: tuple[int, ...]

    def texts(self) -> list[list[str]]:
        """Returns each cell as text."""
        return [
            [format_cell(cell, digits=digits) for cell, digits in zip(row, self.digits, strict=True)]
            for row in self.rows
        ]

    def numeric(self) -> list[bool]:
        """Returns for each column whether it holds numbers only, so that it is set to the right."""
        columns = [[row[index] for row in self.rows] for index in range(len(self.columns))]
        return [
            any(cell is not None for cell in column) and not any(isinstance(cell, str) for cell in column)
            for column in columns
        ]

    def to_text(self) -> str:
        """Returns the table in aligned columns, numbers to the right, without a line break at the end."""
        texts, numeric = self.texts(), self.numeric()
        widths = [max(map(len, column)) for column in zip(self.columns, *texts, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(cells, widths, numeric, strict=True)
            ]
            return "  ".join(padded).rstrip()

        return "\n".join([line(self.columns), line(["-" * width for width in widths]), *map(line, texts)])

    def to_markdown(self) -> str:
        """Returns the table in Markdown, without a line break at the end."""
        rule = ["---:" if right else "---" for right in self.numeric()]
        lines = [[_escape(name) for name in self.columns], rule]
        lines += [[_escape(cell) for cell in row] for row in self.texts()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_csv(self) -> str:
        """Returns the table as CSV: numbers in full, an interval as two more columns, NAME low and NAME high."""
        estimates = [any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.columns))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head: list[str] = []
        for column, split in zip(self.columns, estimates, strict=True):
            head += [column, f"{column} low", f"{column} high"] if split else [column]
        writer.writerow(head)
        for row in self.rows:
            cells: list[Cell] = []
            for cell, split in zip(row, estimates, strict=True):
                cells += list(cell) if isinstance(cell, Estimate) else [cell, None, None] if split else [cell]
            writer.writerow(["" if cell is None else cell for cell in cells])
        return text.getvalue()

    def to_latex(self, caption: str = "") -> str:
        """Returns the table as a LaTeX `table` in the style of the package booktabs, with a line break at the end."""
        kinds = "".join("r" if right else "l" for right in self.numeric())
        body = "\n".join(f"{' & '.join(map(_latex, row))} \\\\" for row in self.texts())
        head = f"{' & '.join(map(_latex, self.columns))} \\\\"
        lines = [
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            head,
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        title = [rf"\caption{{{_latex(caption)}}}"] if caption else []
        return "\n".join([r"\begin{table}", r"\centering", *title, *lines, r"\end{table}"]) + "\n"


def make_table(
    rows: Iterable[Mapping[str, Any] | Sequence[Any]],
    columns: Sequence[str] | None = None,
    *,
    digits: int | Mapping[str, int] = 2,
) -> Table:
    """Makes a table.

    Args:
      rows: mappings from column to value, or sequences in the order of `columns`. A value is text, a number (Python,
        numpy or jax), an interval (`edgesafe_jax.metrics.Interval`, `Estimate`, or any object with `low`, `high` and
        `estimate` or `value`) or None, which is shown as ``-``, as is a number that is not finite.
      columns: the columns in order; None takes the keys of the mappings, in the order in which they come.
      digits: decimals, the same for all columns or by column (2 where not named).

    Returns:
      The table.

    Raises:
      ValueError: if a row has another length than `columns`, or a key that is no column, or there are no columns.
      TypeError: if a value is none of the above.

    Example:
      >>> print(make_table([{"model": "base", "refused": Estimate(0.06, 0.03, 0.1)}]).to_text())
      model            refused
      -----  -----------------
      base   0.06 [0.03, 0.10]
    """
    rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row))
    if not columns:
        raise ValueError("a table needs columns: give them, or give rows that are mappings")
    cells = []
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            if unknown := [key for key in row if key not in columns]:
                raise ValueError(f"row {number} has {unknown[0]!r}, which is none of the columns {list(columns)}")
            row = [row.get(name) for name in columns]
        elif isinstance(row, str) or len(row) != len(columns):
            raise ValueError(
                f"row {number} is {row!r}: expected {len(columns)} values, one per column of {list(columns)}"
            )
        cells.append(tuple(to_cell(value) for value in row))
    by_column = tuple(digits if isinstance(digits, int) else digits.get(name, 2) for name in columns)
    return Table(tuple(columns), tuple(cells), by_column)


def to_cell(value: Any) -> Cell:
    """Returns a value as a cell.

    Args:
      value: as for `make_table`.

    Returns:
      The cell; a number that is not finite becomes None.

    Raises:
      TypeError: if it is no text, number or interval.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if hasattr(value, "low") and hasattr(value, "high"):
        estimate = value.value if hasattr(value, "value") else value.estimate
        ends = [math.nan if end is None else float(end) for end in (estimate, value.low, value.high)]
        if all(map(math.isfinite, ends)):
            return Estimate(*ends)
        none = math.isfinite(ends[0]) and math.isnan(ends[1]) and math.isnan(ends[2])
        return Estimate(ends[0], None, None) if none else to_cell(ends[0])
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item()  # A numpy or jax scalar.
    if isinstance(value, bool):
        return to_cell(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(
        f"cannot show {value!r} of type {type(value).__name__} in a table: expected text, a number or an interval"
    )


def format_cell(cell: Cell, *, digits: int = 2) -> str:
    """Returns a cell as text.

    Whole numbers get commas. Numbers get `digits` decimals, or three significant figures where that would show
    nothing but zeros or more than six figures before the point; for an estimate with its ends see `format_estimate`.

    Args:
      cell: from `to_cell`.
      digits: decimals.

    Returns:
      The text.

    Example:
      >>> [format_cell(cell) for cell in (134515008, 0.5, 3.2e-5, Estimate(0.91, 0.88, 0.94), None)]
      ['134,515,008', '0.50', '3.2e-05', '0.91 [0.88, 0.94]', '-']
    """
    if cell is None:
        return _NONE
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        return " ".join(format_estimate(cell, digits=digits))
    if isinstance(cell, int):
        return f"{cell:,}"
    if cell and (abs(cell) < 0.5 * 10.0**-digits or abs(cell) >= 1e6):
        return f"{cell:.3g}"
    return f"{cell:,.{digits}f}"


def format_estimate(estimate: Estimate, *, digits: int = 2) -> tuple[str, str]:
    """Returns an estimate and its interval as text, the ends with as many decimals as the estimate.

    Small ones get up to three more than `digits` decimals, so that the largest has two significant figures.

    Args:
      estimate: with its ends.
      digits: decimals at least.

    Returns:
      The two.

    Example:
      >>> format_estimate(Estimate(0.0101, 0.0046, 0.0218))
      ('0.010', '[0.005, 0.022]')
      >>> format_estimate(Estimate(0.75, None, None))
      ('0.75', '[no interval]')
    """
    if estimate.low is None or estimate.high is None:
        return format_cell(float(estimate.value), digits=digits), "[no interval]"
    ends = (estimate.value, estimate.low, estimate.high)
    largest = max(map(abs, ends))
    if 0 < largest < 10.0 ** (1 - digits):
        digits = min(1 - math.floor(math.log10(largest)), digits + 3)
    if 0 < largest < 0.5 * 10.0**-digits or largest >= 1e6:
        value, low, high = (format_cell(float(end), digits=digits) for end in ends)
    else:
        value, low, high = (f"{round(end, digits) + 0.0:,.{digits}f}" for end in ends)  # no minus before zeros
    return value, f"[{low}, {high}]"


def _latex(text: str) -> str:
    """Escapes what LaTeX reads as commands."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {char: f"\\{char}" for char in "&%$#_{}"}
    return "".join(special.get(char, char) for char in text.replace("\n", " "))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
