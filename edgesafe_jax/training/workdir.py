"""The work directory of a run.

======================  ==================================================================
``config.json``         the configuration; the same one resumes, another one is refused
``metrics.jsonl``       one JSON line per training step (`edgesafe_jax.training.MetricWriter`)
``checkpoints/``        the last few states (`edgesafe_jax.training.Checkpoints`)
``tensorboard/``        the same scalars for TensorBoard
``summary.json``        the results, flat: ``section/quantity: number``
``outcomes.json``       for some of them the value of each row that they are the mean of, for paired comparisons
``report/``             one JSON fragment per section, from which ``report.html`` is built
``report.html``         one self-contained page
``.lock``               held by the process that writes here; ``.owner.json`` names it
======================  ==================================================================

JSON has no NaN and no infinity: a number that is not finite is written as ``null``.
"""

import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesafe_jax.assets import write_atomically
from edgesafe_jax.assets.cache import is_running
from edgesafe_jax.assets.digests import find_damage, write_checked
from edgesafe_jax.errors import ConfigError, EdgesafeError, storage_errors
from edgesafe_jax.parallel import is_main_process
from edgesafe_jax.training import locks

_log = logging.getLogger(__name__)

CONFIG = "config.json"
SUMMARY = "summary.json"
OUTCOMES = "outcomes.json"
_MISSING = "(missing)"
_TEMPORARY = re.compile(r"\..+\.(\d+)(?:-[0-9a-f]+)?\.tmp(?:\.\w+)?$")
"""A file of an atomic write, with its process's number: ``.report.1234-0a1b2c3d.tmp.json``, ``.x.html.1234.tmp``."""


class WorkdirError(EdgesafeError, ValueError):
    """A work directory that cannot be used for this run."""


def to_json(value: Any) -> Any:
    """Returns `value` as plain JSON types.

    Arrays and numpy scalars become lists and numbers, tuples become lists, paths become strings and numbers
    that are not finite become None.

    Args:
      value: mappings with string keys, sequences, arrays, numbers, strings, paths, None.

    Returns:
      The same value made of dict, list, str, int, float, bool and None.

    Raises:
      TypeError: for anything else.

    Example:
      >>> to_json({"rate": float("nan"), "shape": (2, 3)})
      {'rate': None, 'shape': [2, 3]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and jax arrays and scalars
        return to_json(value.tolist())
    if isinstance(value, Sequence):
        return [to_json(item) for item in value]
    raise TypeError(f"cannot write {value!r} of type {type(value).__name__} as JSON")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file atomically: a reader sees the old file or the new one, never a part.

    Args:
      path: the file; missing parent directories are made.
      text: the content, written as UTF-8.

    Raises:
      StorageError: the operating system refuses, for instance on a full disk.
    """
    with storage_errors(path):
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, *, checked: bool = False) -> None:
    """Writes a value as JSON, atomically.

    Args:
      path: the file; missing parent directories are made.
      value: what `to_json` accepts; a number that is not finite is written as ``null``.
      checked: whether its digest is written beside it, see `write_checked`.
    """
    text = json.dumps(to_json(value), indent=2, allow_nan=False) + "\n"
    if checked:
        write_checked(Path(path), lambda part: part.write_text(text, encoding="utf-8"))
    else:
        write_text(path, text)


def check_whole(path: str | os.PathLike[str], way_out: str) -> None:
    """Checks a file of `write_checked` that cannot be made again.

    Args:
      path: the file.
      way_out: what the user can do, for the message.

    Raises:
      WorkdirError: the file is missing or damaged.
    """
    damage = find_damage(Path(path)) if Path(path).exists() else "is missing"
    if damage:
        raise WorkdirError(f"{path} {damage}: {way_out}")


def open_workdir(path: str | os.PathLike[str], config: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> Path:
    """Creates the work directory of a run, or opens it again if it holds the same configuration.

    The directory is then locked: until `close_workdir`, or until this process ends in whatever way, no other process
    can open it. Reading needs no lock. Of the connected processes of one run, process 0 holds the lock for all.
    Temporary files of killed writes are removed.

    Args:
      path: the directory; parents are created.
      config: the configuration of the run; nested mappings are compared key by key, named with dots.
      ignore: keys (``"a.b"``, or ``"a"`` for all below it) in which a resumed run may differ, such as how often
        to log. The file then holds the newest values.

    Returns:
      The directory.

    Raises:
      WorkdirError: another process has the directory open, or it holds another configuration, a configuration that
        cannot be read, or checkpoints without a configuration.
      StorageError: the directory cannot be written.

    Example:
      >>> import tempfile
      >>> run = open_workdir(tempfile.mkdtemp() + "/run", {"seed": 0})
      >>> open_workdir(run, {"seed": 0}) == run
      True
      >>> close_workdir(run)
    """
    path = Path(path)
    wanted = to_json(config)
    with storage_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise WorkdirError(f"{path} is a file, not a directory: give another --workdir") from error
        if not is_main_process():
            return path
        owner = locks.acquire(path)
    if owner:
        raise WorkdirError(
            f"{path} is in use by {owner}: wait for it to end or stop it, and the same command continues, or give "
            "another --workdir"
        )
    try:
        _write_config(path, wanted, ignore)
        _remove_leftovers(path)
    except BaseException:
        locks.release(path)
        raise
    return path


def check_folder(path: str | os.PathLike[str], name: str) -> Path:
    """Checks that a folder can be made or written into; nothing stays behind.

    Args:
      path: the folder; it need not exist.
      name: of the setting that gave it, for the message.

    Returns:
      The folder.

    Raises:
      ConfigError: the path is empty.
      WorkdirError: it, or a part of it, is a file.
      StorageError: it may not be written.
    """
    if not os.fspath(path).strip() or "\0" in os.fspath(path):
        raise ConfigError(f"{name}={os.fspath(path)!r}: expected the name of a folder.")
    path = Path(path)
    with storage_errors(path):
        nearest = next(folder for folder in (path, *path.absolute().parents) if _is_there(folder))
        if not nearest.is_dir():
            raise WorkdirError(f"{nearest} is a file, not a directory: give another {name}")
        try:
            with tempfile.TemporaryFile(dir=nearest) as file:
                file.write(bytes(4096))
        except FileNotFoundError as error:  # a file system of the kernel, such as /proc
            raise WorkdirError(f"no file can be made in {nearest}: give another {name}") from error
    return path


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_output(path: str | os.PathLike[str], name: str) -> Path:
    """Checks that a file can be written; nothing stays behind.

    Args:
      path: the file.
      name: of the setting that gave it, for the message.

    Returns:
      The file.

    Raises:
      ConfigError: the path is empty, or a folder.
      WorkdirError: a part of it is a file.
      StorageError: it may not be written.
    """
    file = Path(path)
    if not os.fspath(path).strip() or "\0" in os.fspath(path) or file.is_dir():
        raise ConfigError(f"{name}={os.fspath(path)!r}: expected the name of a file.")
    check_folder(file.parent, name)
    return file


def close_workdir(path: str | os.PathLike[str]) -> None:
    """Lets other processes open a work directory again; the end of the process does so too.

    Args:
      path: a work directory; nothing happens if this process has not opened it.
    """
    locks.release(Path(path))


def _remove_leftovers(path: Path) -> None:
    """Deletes the temporary files of writes that were killed: those whose process is gone."""
    for folder, folders, files in os.walk(path):
        # Orbax removes what killed saves left among the checkpoints.
        folders[:] = [name for name in folders if name != "checkpoints"]
        for name in files:
            found = _TEMPORARY.match(name)
            if found and not is_running(int(found[1])):
                (Path(folder) / name).unlink(missing_ok=True)


def _write_config(path: Path, wanted: Any, ignore: Sequence[str]) -> None:
    """Writes the configuration of a run, or compares it with the one that is there."""
    config_file = path / CONFIG
    if not config_file.exists():
        if (path / "checkpoints").exists():
            raise WorkdirError(
                f"{path} has checkpoints but no {CONFIG}, so it is unknown which run they belong to: "
                "give another --workdir, or delete this one"
            )
        write_json(config_file, wanted)
        return
    differences = _differences(flatten(read_config(path)), flatten(wanted), ignore)
    if differences:
        raise WorkdirError(
            f"{path} holds a run with another configuration:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\ngive another --workdir, or delete this one to start it afresh"
        )
    if ignore:
        write_json(config_file, wanted)


def read_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the configuration of a run.

    Args:
      workdir: a work directory.

    Returns:
      The configuration as it was written.

    Raises:
      WorkdirError: there is none or it cannot be read.
    """
    return _read_mapping(Path(workdir) / CONFIG)


def nearest_config(
    config: Mapping[str, Any], candidates: Mapping[str, Mapping[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Finds which of several configurations differs least from that of a run.

    Args:
      config: the configuration of the run.
      candidates: from name to configuration; at least one.

    Returns:
      The candidate's name, and the fields, named with dots, that the run has otherwise, with the run's values.
    """
    given = flatten(to_json(config))
    changes: dict[str, dict[str, Any]] = {}
    for name, candidate in candidates.items():
        start = flatten(to_json(candidate))
        changes[name] = {key: value for key, value in given.items() if start.get(key, _MISSING) != value}
    nearest = min(changes, key=lambda name: len(changes[name]))
    return nearest, changes[nearest]


def read_summary(workdir: str | os.PathLike[str]) -> dict[str, float | None]:
    """Reads the numbers of a finished run.

    Args:
      workdir: a work directory.

    Returns:
      From ``section/quantity`` to number, None where it was not finite.

    Raises:
      WorkdirError: if there is no summary or it cannot be read.
    """
    return _read_mapping(Path(workdir) / SUMMARY)


def write_summary(workdir: str | os.PathLike[str], section: str, values: Mapping[str, Any]) -> dict[str, float | None]:
    """Writes the numbers of one section into the run's ``summary.json``.

    The file is flat, ``section/quantity: number``. The section's former entries are replaced, those of other
    sections are kept. A number that is not finite is written as ``null``.

    Args:
      workdir: the work directory.
      section: a name without ``/``.
      values: quantity name to number.

    Returns:
      The whole summary, as it is in the file.

    Raises:
      ConfigError: the section's name is empty or has a ``/``, or a value is not one number.

    Example:
      >>> import tempfile
      >>> write_summary(tempfile.mkdtemp(), "alignment", {"refusal/harmful": 0.9})
      {'alignment/refusal/harmful': 0.9}
    """
    if not section or "/" in section:
        raise ConfigError(f"section {section!r}: expected a name that is not empty and has no '/'")
    numbers = {name: to_json(value) for name, value in values.items()}
    for name, number in numbers.items():
        if not (number is None or isinstance(number, (int, float))):
            raise ConfigError(f"{section}/{name}: expected a number, got {values[name]!r}")
    file = Path(workdir) / SUMMARY
    summary = _read_mapping(file) if file.exists() else {}
    summary = {key: value for key, value in summary.items() if not key.startswith(f"{section}/")}
    summary |= {f"{section}/{name}": number for name, number in numbers.items()}
    write_json(file, summary)
    return summary


def write_outcomes(workdir: str | os.PathLike[str], section: str, values: Mapping[str, Any]) -> None:
    """Writes the values of single rows behind numbers of the summary, under the same names.

    Args:
      workdir: the work directory.
      section: the section of the numbers; its former outcomes are replaced.
      values: quantity name to `[N]` values, in the order of the rows.
    """
    file = Path(workdir) / OUTCOMES
    kept = {name: rows for name, rows in read_outcomes(workdir).items() if not name.startswith(f"{section}/")}
    write_json(file, kept | {f"{section}/{name}": to_json(rows) for name, rows in values.items()})


def read_outcomes(workdir: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Reads what `write_outcomes` wrote; nothing where there is none."""
    file = Path(workdir) / OUTCOMES
    return _read_mapping(file) if file.exists() else {}


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"cannot read {file} ({error}): is this a work directory? If the file is damaged, delete it"
        ) from error
    if not isinstance(value, dict):
        raise WorkdirError(f"{file} holds {type(value).__name__}, expected a JSON object: delete it")
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by dotted name; an empty mapping is a leaf.

    Example:
      >>> flatten({"data": {"path": "", "mixture": {}}, "seed": 0})
      {'data.path': '', 'data.mixture': {}, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], ignore: Sequence[str]) -> list[str]:
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        if any(key == name or key.startswith(f"{name}.") for name in ignore):
            continue
        old, new = found.get(key, _MISSING), wanted.get(key, _MISSING)
        if old != new or isinstance(old, bool) != isinstance(new, bool):
            lines.append(f"{key}: {_shown(old)} there, {_shown(new)} now")
    return lines


def _shown(value: Any) -> str:
    return value if value == _MISSING else json.dumps(value)
