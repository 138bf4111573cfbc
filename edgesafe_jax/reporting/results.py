"""Measured results as data: one JSON file per experiment, from which the results page and README's table are made.

A file has these fields, all of them required except `isa`, `notes` and `headlines`:

==============  ======================================================================================
``title``       what was measured, one line
``room``        a key of `ROOMS`; the page is ordered by it
``command``     the command or commands that measure it, one per line
``commit``      the git commit that was measured, or null where it is not known
``date``        the day, YYYY-MM-DD
``device``      where it ran, such as "CPU, 2 cores" or "1 x NVIDIA H100"
``isa``         instruction set of a CPU, such as "AVX2", or null where it is not known
``versions``    from package to version
``notes``       sentences on how it was measured and what it shows
``headlines``   the rows of README's table that come from this file (`Headline`)
``numbers``     the numbers, a list of objects (`Number`)
==============  ======================================================================================

A number's name is a path: its last part names the column, its first the table (where there are three parts or more),
what is between them the row. ``strongreject/student/refused`` is the column "refused" of the row "student" in the
table "strongreject".
"""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.reporting.html import write_file
from edgesafe_jax.reporting.tables import make_table

ROOMS: dict[str, str] = {
    "quickstart": "Quickstart",
    "safety": "Safe language models",
    "exporting": "On the device",
    "guards": "Guards",
    "offline_rl": "Offline RL",
    "dynamics": "Tests of symmetries",
    "planning": "Planning",
    "performance": "Performance",
}
"""The parts of the results page, in order, and their titles."""

MACHINE = ("device", "num_devices", "cpu_count", "platform", "isa", "xla_flags", "load_before")
"""What a benchmark says of its machine beside the versions of packages."""

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "mujoco", "brax")
MAX_HEADLINES = 12
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclasses.dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
      name: path of its table, row and column, unique in the file.
      value: the estimate.
      low: lower end of its 95 % interval; None where there is none.
      high: upper end; a number may have one end alone, such as an upper bound.
      n: how many samples, episodes or seeds it was taken over.
      open: "low", "high" or "both" where these ends are only bounds: the interval goes beyond what was measured.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    open: str | None = None

    def text(self) -> str:
        """The value and its interval as shown in tables."""
        ends = [end for end in (self.value, self.low, self.high) if end is not None]
        digits = max(map(_num_decimals, ends))
        value = _text(self.value, digits)
        low = "" if self.low is None else ("<" if self.open in ("low", "both") else "") + _text(self.low, digits)
        high = "" if self.high is None else (">" if self.open in ("high", "both") else "") + _text(self.high, digits)
        if low and high:
            return f"{value} [{low}, {high}]"
        if low:
            return f"{value} (at least {low})"
        return f"{value} (at most {high})" if high else value


@dataclasses.dataclass(frozen=True)
class Headline:
    """A row of README's table.

    Attributes:
      text: what was measured.
      name: the number, by its name in the same file.
      baseline: what it is compared with; empty for nothing.
      against: the baseline's number, by its name in the same file.
    """

    text: str
    name: str
    baseline: str = ""
    against: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """An experiment's results; the fields are those of the file."""

    title: str
    room: str
    command: str
    commit: str | None
    date: str
    device: str
    isa: str | None = None
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    headlines: tuple[Headline, ...] = ()
    numbers: tuple[Number, ...]

    def number(self, name: str) -> Number:
        """Returns a number by its name.

        Raises:
          ConfigError: there is none of this name; the message has the closest match.
        """
        return lookup({number.name: number for number in self.numbers}, name, "number")


def read_result(path: str | os.PathLike[str]) -> Result:
    """Reads and checks a results file.

    Args:
      path: the JSON file.

    Returns:
      Its content.

    Raises:
      ConfigError: it cannot be read, is not JSON, or a field is missing, unknown or of the wrong kind.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory: expected a results file NAME.json.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    return parse_result(content, str(path))


def parse_result(content: object, where: str) -> Result:
    """Checks the content of a results file.

    Args:
      content: what the JSON file holds.
      where: the file, for messages.

    Returns:
      The result.

    Raises:
      ConfigError: a field is missing, unknown or of the wrong kind.
    """
    fields = _fields(content, Result, where)
    for name in ("title", "room", "command", "date", "device"):
        _check(isinstance(fields[name], str) and fields[name], f"{where}: {name}", fields[name], "a text")
    for name in ("commit", "isa"):
        value = fields.get(name)
        _check(value is None or (isinstance(value, str) and value), f"{where}: {name}", value, "a text or null")
    lookup(ROOMS, fields["room"], f"{where}: room")
    _check(_is_date(fields["date"]), f"{where}: date", fields["date"], "a date such as 2026-01-31")
    versions, notes = fields["versions"], fields.get("notes", [])
    _check(
        isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values()),
        f"{where}: versions",
        versions,
        "an object from package to version",
    )
    _check(
        isinstance(notes, list) and all(isinstance(note, str) for note in notes),
        f"{where}: notes",
        notes,
        "a list of texts",
    )
    for name in ("numbers", "headlines"):
        _check(isinstance(fields.get(name, []), list), f"{where}: {name}", fields.get(name), "a list of objects")
    numbers = [_number(number, f"{where}: numbers[{index}]") for index, number in enumerate(fields["numbers"])]
    _check(bool(numbers), f"{where}: numbers", [], "at least one number")
    names = [number.name for number in numbers]
    for name in names:
        _check(names.count(name) == 1, f"{where}: the name", name, "each name once")
    headlines = []
    for index, headline in enumerate(fields.get("headlines", [])):
        entry = f"{where}: headlines[{index}]"
        given = _fields(headline, Headline, entry)
        for name, value in given.items():
            _check(isinstance(value, str) or (name == "against" and value is None), f"{entry}.{name}", value, "a text")
        headlines.append(Headline(**given))
        for name in filter(None, (headlines[-1].name, headlines[-1].against)):
            lookup(dict.fromkeys(names), name, entry)
    given = fields | {"numbers": tuple(numbers), "notes": tuple(notes), "headlines": tuple(headlines)}
    return Result(**given)


def read_results(folder: str | os.PathLike[str]) -> dict[str, Result]:
    """Reads all results files of a folder.

    Args:
      folder: the folder of `NAME.json` files.

    Returns:
      From name to result, in the order of the page: by room, then by name.

    Raises:
      ConfigError: there are none, or one of them is wrong, or they have more headlines than README's table may hold.
    """
    results = {path.stem: read_result(path) for path in sorted(Path(folder).glob("*.json"))}
    if not results:
        raise ConfigError(f"{folder} has no results files: expected NAME.json.")
    order = list(ROOMS)
    results = dict(sorted(results.items(), key=lambda item: (order.index(item[1].room), item[0])))
    count = sum(len(result.headlines) for result in results.values())
    if count > MAX_HEADLINES:
        raise ConfigError(f"{folder} has {count} headlines: expected at most {MAX_HEADLINES} in all files together.")
    return results


def write_result(path: str | os.PathLike[str], result: Result) -> None:
    """Writes a results file atomically, with each number on a line of its own.

    Args:
      path: the JSON file; its directory exists.
      result: the content.

    Raises:
      ConfigError: the result would not be read back.
    """
    content = {
        key: value
        for key, value in dataclasses.asdict(result).items()
        if value is not None and (value != () or key == "numbers")
    }
    content |= {"commit": result.commit, "isa": result.isa, "versions": dict(result.versions)}
    fields = []
    for name in (field.name for field in dataclasses.fields(Result) if field.name in content):
        value = content[name]
        if isinstance(value, Sequence) and not isinstance(value, str):
            rows = [_without_none(row) for row in value]
            fields.append(f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {_json(row)}" for row in rows) + "\n  ]")
        else:
            fields.append(f"  {json.dumps(name)}: {_json(value)}")
    text = "{\n" + ",\n".join(fields) + "\n}\n"
    parse_result(json.loads(text), str(path))
    write_file(Path(path), text)


def environment(checkout: str | os.PathLike[str], packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Describes where a run is made, for the fields of a results file that say so.

    Args:
      checkout: folder of the git checkout.
      packages: whose versions are recorded.

    Returns:
      `commit` (None outside a git checkout), `date` (today), `device`, `isa` (None for an accelerator) and `versions`.
    """
    git = ["git", "-C", os.fspath(checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    devices = jax.devices()
    on_cpu = devices[0].platform == "cpu"
    return {
        "commit": commit or None,
        "date": datetime.date.today().isoformat(),
        "device": f"CPU, {os.cpu_count()} cores" if on_cpu else f"{len(devices)} x {devices[0].device_kind}",
        "isa": platform.machine() if on_cpu else None,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def numbers_from_summary(summary: Mapping[str, Any]) -> tuple[Number, ...]:
    """Returns the numbers of a run's `summary.json`.

    Args:
      summary: from name to number; `NAME_low` and `NAME_high` are the ends of the interval of `NAME`. Numbers that are
        None, which were not finite, are left out.

    Returns:
      The numbers in the order of the summary.
    """
    found = {name: value for name, value in summary.items() if value is not None}
    ends = {f"{name}_{end}" for name in found for end in ("low", "high") if f"{name}_{end}" in found}
    return tuple(
        Number(name, value, low=found.get(f"{name}_low"), high=found.get(f"{name}_high"))
        for name, value in found.items()
        if name not in ends
    )


def benchmark_fields(file: str | os.PathLike[str], checkout: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields of a results file, without its title, for what a suite of `launch.bench` wrote.

    Args:
      file: `bench_SUITE.json`.
      checkout: folder of the git checkout.

    Returns:
      `command`, `commit`, `date`, `device`, `isa`, `versions`, `notes` and `numbers`.

    Raises:
      ConfigError: the file is no such file.
    """
    path = Path(file)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        machine, values = dict(content["machine"]), dict(content["values"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected what launch.bench --workdir writes, a machine and values.") from error
    flags = f"XLA_FLAGS={shlex.quote(machine['xla_flags'])} " if machine.get("xla_flags") else ""
    suite = path.stem.removeprefix("bench_")
    versions = {name: version for name, version in machine.items() if name not in MACHINE}
    return environment(checkout) | {
        "command": f"{flags}python -m launch.bench --suite={suite} --workdir=DIR",
        "isa": machine.get("isa"),
        "versions": versions,
        "notes": (f"Load average before the run: {machine.get('load_before', math.nan):.2f}.",),
        "numbers": numbers_from_summary(values),
    }


def results_page(results: Mapping[str, Result]) -> str:
    """Returns the page of all results in Markdown.

    Args:
      results: from name to result, in the order of the page.

    Returns:
      The text: for each experiment its title, command, device, tables and notes.
    """
    parts = [
        "# Measured results",
        "Generated from `configs/results/*.json` by `python -m launch.results`; edit those files, not this page. "
        "Numbers in brackets are 95 % intervals. Rates are fractions of 1.",
    ]
    room = ""
    for name, result in results.items():
        if result.room != room:
            room = result.room
            parts.append(f"## {ROOMS[room]}")
        parts += [f"### {result.title}", f"```\n{result.command}\n```", _origin(name, result)]
        parts += _tables(result.numbers)
        parts += ["\n".join(f"- {note}" for note in result.notes)] if result.notes else []
    return "\n\n".join(parts) + "\n"


def headline_table(results: Mapping[str, Result]) -> str:
    """Returns README's table of headline results in Markdown.

    Args:
      results: from name to result, in the order of the table.

    Returns:
      The table, one row for each headline.

    Raises:
      ConfigError: no result has a headline.
    """
    rows = []
    for result in results.values():
        for headline in result.headlines:
            against = "" if headline.against is None else result.number(headline.against).text()
            compared = f"{headline.baseline}: {against}" if against else headline.baseline
            measured = result.number(headline.name).text()
            rows.append(
                {"": ROOMS[result.room], "measured": headline.text, "result": measured, "compared with": compared}
            )
    if not rows:
        raise ConfigError("no results file has a headline: add one to `headlines` of a file.")
    return make_table(rows).to_markdown()


def insert_table(text: str, table: str, where: str) -> str:
    """Replaces what is between the markers of a text.

    Args:
      text: the text, with `BEGIN` and `END` once each.
      table: what belongs between them.
      where: the file, for messages.

    Returns:
      The new text.

    Raises:
      ConfigError: a marker is missing, or they are not in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ConfigError(f"{where}: expected the markers {BEGIN} and {END} once each, in this order.")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _fields(content: object, kind: type, where: str) -> dict[str, Any]:
    """Returns the fields of an object; all required ones are there, and no others than those of the dataclass."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is a {type(content).__name__}: expected an object.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in content:
        lookup(fields, name, f"{where}: field")
    for name, field in fields.items():
        if name not in content and field.default is dataclasses.MISSING:
            raise ConfigError(f"{where}: the field {name!r} is missing.")
    return content


def _check(right: object, what: str, value: object, expected: str) -> None:
    if not right:
        raise ConfigError(f"{what} {json.dumps(value)}: expected {expected}.")


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return len(text) == 10


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(content: object, where: str) -> Number:
    fields = _fields(content, Number, where)
    name, low, high = fields["name"], fields.get("low"), fields.get("high")
    _check(isinstance(name, str) and all(name.split("/")), f"{where}.name", name, "a path such as set/system/quantity")
    _check(_is_number(fields["value"]), f"{where}.value of {name!r}", fields["value"], "a finite number")
    for end in ("low", "high"):
        value = fields.get(end)
        _check(value is None or _is_number(value), f"{where}.{end} of {name!r}", value, "a finite number or null")
    _check(low is None or high is None or low <= high, f"{where}.low of {name!r}", low, f"at most high={high}")
    n = fields.get("n")
    _check(
        n is None or (isinstance(n, int) and not isinstance(n, bool) and n > 0),
        f"{where}.n of {name!r}",
        n,
        "a positive whole number or null",
    )
    ends = {None: (), "low": (low,), "high": (high,), "both": (low, high)}
    _check(fields.get("open") in ends, f"{where}.open of {name!r}", fields.get("open"), "low, high, both or null")
    _check(
        None not in ends[fields.get("open")], f"{where}.open of {name!r}", fields.get("open"), "an end that is given"
    )
    return Number(**fields)


def _without_none(row: Any) -> Any:
    return {key: value for key, value in row.items() if value is not None} if isinstance(row, Mapping) else row


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _origin(name: str, result: Result) -> str:
    device = result.device + (f" ({result.isa})" if result.isa else "")
    commit = f"commit {result.commit}" if result.commit else "commit not recorded"
    versions = ", ".join(f"{package} {version}" for package, version in result.versions.items())
    return f"`{name}.json`; {result.date}, {commit}; {device}; {versions}."


def _split(name: str) -> tuple[str, str, str]:
    """Returns table, row and column of a number."""
    parts = name.split("/")
    if len(parts) == 1:
        return "", name, "value"
    return (parts[0], "/".join(parts[1:-1]), parts[-1]) if len(parts) > 2 else ("", parts[0], parts[1])


def _tables(numbers: Sequence[Number]) -> list[str]:
    """Returns the tables of some numbers; rows of a table that share no column stand in tables of their own."""
    tables: dict[str, dict[str, dict[str, Number]]] = {}
    for number in numbers:
        table, row, column = _split(number.name)
        tables.setdefault(table, {}).setdefault(row, {})[column] = number
    texts = []
    for title, rows in tables.items():
        for group in _sharing_columns(rows):
            columns = list(dict.fromkeys(column for row in group for column in rows[row]))
            cells = [_cells(row, rows[row]) for row in group]
            with_n = ["n"] if any("n" in row for row in cells) else []
            table = make_table(cells, ["", *with_n, *columns]).to_markdown()
            texts.append(f"{title}:\n\n{table}" if title else table)
    return texts


def _sharing_columns(rows: Mapping[str, Mapping[str, Number]]) -> list[list[str]]:
    """Groups rows so that those of different groups share no column."""
    groups: list[tuple[set[str], list[str]]] = []
    for row, cells in rows.items():
        columns, members = set(cells), [row]
        joined = [group for group in groups if group[0] & columns]
        groups = [group for group in groups if group not in joined]
        for group in reversed(joined):
            columns, members = columns | group[0], group[1] + members
        groups.append((columns, members))
    order = list(rows)
    return sorted((members for _, members in groups), key=lambda members: order.index(members[0]))


def _cells(row: str, numbers: Mapping[str, Number]) -> dict[str, str]:
    """Returns the cells of a row; n is a column where all numbers of the row have the same."""
    counts = {number.n for number in numbers.values()}
    common = next(iter(counts)) if len(counts) == 1 else None
    cells = {"": row} | ({"n": f"{common:,}"} if common else {})
    for column, number in numbers.items():
        cells[column] = number.text() + (f" (n = {number.n:,})" if number.n and not common else "")
    return cells


def _num_decimals(value: float) -> int:
    """How many decimals a number needs: none for integers; two at least up to 1, one above; three at most, or four."""
    if isinstance(value, int) or abs(value) >= 1000:
        return 0
    digits = 4 if abs(value) < 0.1 else 3
    return max(len(f"{value:.{digits}f}".rstrip("0").partition(".")[2]), 2 if abs(value) <= 1 else 1)


def _text(value: float, digits: int) -> str:
    if value and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.2g}"
    return f"{value:,.{digits}f}"
