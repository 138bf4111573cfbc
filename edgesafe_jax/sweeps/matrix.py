"""The cells of a sweep: every combination of the levels of its axes, each the complete config of one run."""

import copy
import dataclasses
import hashlib
import itertools
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.training.workdir import flatten

_MAX_NAME = 150
"""Characters of a cell's name, which is a folder's."""


@dataclasses.dataclass(frozen=True)
class Level:
    """One value of an axis.

    Attributes:
      name: in the names of cells and in tables.
      changes: from dotted field of the base config to value, or to factor where `is_factor`.
      is_factor: whether the changes multiply what the base config and the other axes give.
    """

    name: str
    changes: Mapping[str, Any]
    is_factor: bool = False


@dataclasses.dataclass(frozen=True)
class Axis:
    """One dimension of the matrix.

    Attributes:
      name: such as "objective".
      levels: its values, in the order in which they are run.
    """

    name: str
    levels: tuple[Level, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      name: `axis=level,axis=level`; the name of its folder.
      levels: the level's name by axis.
      config: the complete config, nested.
    """

    name: str
    levels: Mapping[str, str]
    config: Mapping[str, Any]


def make_axes(
    values: Mapping[str, Any],
    *,
    levels: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    factors: Mapping[str, Any] | None = None,
) -> list[Axis]:
    """Makes axes of nested mappings that mirror the base config.

    Args:
      values: its leaves are sequences: the values of the field of that name, or the names of levels.
      levels: by axis and level, what the level changes, nested like the base config: for values that change several
        fields together.
      factors: its leaves are sequences of numbers, by which the field of that name is multiplied.

    Returns:
      The axes, those of `values` first.

    Raises:
      ConfigError: an axis without values, a value that occurs twice, a name that is no level, levels of no axis, or no
        axis at all.

    Example:
      >>> [axis] = make_axes({"optimizer": {"rate": (0.1, 0.2)}})
      >>> axis.name, axis.levels[1].changes
      ('optimizer.rate', {'optimizer.rate': 0.2})
    """
    bundles = levels or {}
    axes = []
    for name, chosen in flatten(values).items():
        bundle = bundles.get(name)
        found = []
        for value in _sequence("axes", name, chosen):
            changes = {name: value} if bundle is None else flatten(lookup(bundle, value, f"axes.{name}"))
            found.append(Level(_shown(value), changes))
        axes.append(_checked_axis("axes", name, found))
    for name, chosen in flatten(factors or {}).items():
        for factor in _sequence("factors", name, chosen):
            if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
                raise ConfigError(f"factors.{name}={factor!r}: expected numbers.")
        axes.append(
            _checked_axis("factors", name, [Level(f"x{_shown(factor)}", {name: factor}, True) for factor in chosen])
        )
    if unused := sorted(set(bundles) - set(flatten(values))):
        raise ConfigError(f"levels.{unused[0]} belongs to no axis: expected one of {', '.join(flatten(values))}.")
    if not axes:
        raise ConfigError("A sweep needs at least one axis: expected a tuple of values in axes or factors.")
    return axes


def expand(base: Mapping[str, Any], axes: Sequence[Axis], changes: Mapping[str, Any] | None = None) -> list[Cell]:
    """Makes the cells of a matrix.

    Args:
      base: a complete config, nested.
      axes: the last one changes fastest.
      changes: to the base config, for all cells; nested, or with dotted names.

    Returns:
      A cell for every combination of levels.

    Raises:
      ConfigError: a field that the base config lacks, a value of another type, a field that two axes set, or two cells
        with one config.

    Example:
      >>> cells = expand({"rate": 0.1, "seed": 0}, make_axes({"seed": (0, 1)}, factors={"rate": (1.0, 3.0)}))
      >>> [cell.name for cell in cells][:2], round(cells[1].config["rate"], 3)
      (['seed=0,rate=x1', 'seed=0,rate=x3'], 0.3)
    """
    start = flatten(base)
    fixed = _checked_changes(start, flatten(changes or {}), "changes")
    setters: dict[str, str] = {}
    for axis in axes:
        for level in axis.levels:
            _checked_changes(start, level.changes, f"axis {axis.name}, level {level.name}")
            for field in () if level.is_factor else level.changes:
                if setters.setdefault(field, axis.name) != axis.name:
                    raise ConfigError(f"{field} is set by two axes, {setters[field]} and {axis.name}: expected one.")
    cells: list[Cell] = []
    seen: dict[str, str] = {}
    for chosen in itertools.product(*(axis.levels for axis in axes)):
        config = copy.deepcopy(dict(base))
        for field, value in fixed.items():
            _set(config, field, value)
        for level in sorted(chosen, key=lambda level: level.is_factor):
            for field, value in level.changes.items():
                _set(config, field, _get(config, field) * value if level.is_factor else value)
        levels = {axis.name: level.name for axis, level in zip(axes, chosen, strict=True)}
        name = _cell_name(levels)
        if (same := seen.setdefault(repr(sorted(flatten(config).items())), name)) != name:
            raise ConfigError(f"The cells {same} and {name} have the same config: remove a level of one axis.")
        cells.append(Cell(name, levels, config))
    return cells


def _sequence(what: str, name: str, values: object) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{what}.{name}={values!r}: expected a tuple of values.")
    if not values:
        raise ConfigError(f"{what}.{name} is empty: expected at least one value, or leave the axis out.")
    return values


def _checked_axis(what: str, name: str, levels: Sequence[Level]) -> Axis:
    names = [level.name for level in levels]
    if twice := [each for each in names if names.count(each) > 1]:
        raise ConfigError(f"{what}.{name} has {twice[0]} twice: expected each value once.")
    return Axis(name, tuple(levels))


def _checked_changes(start: Mapping[str, Any], changes: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    for field, value in changes.items():
        old = lookup(start, field, f"{what}: field of the base config")
        if not _fits(old, value):
            raise ConfigError(f"{what}: {field}={value!r}: expected a {type(old).__name__} such as {old!r}.")
    return changes


def _fits(old: object, new: object) -> bool:
    """Whether a value may stand where another one stood."""
    if old is None or new is None or isinstance(old, Mapping):
        return True
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, float):
        return isinstance(new, (int, float))
    if isinstance(old, (tuple, list)):
        return isinstance(new, (tuple, list))
    return isinstance(new, type(old)) or (isinstance(old, int) and isinstance(new, float))


def _get(config: Mapping[str, Any], field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def _set(config: dict[str, Any], field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for part in parents:
        config = config[part]
    config[last] = value


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(_shown, value)) if isinstance(value, (tuple, list)) else str(value)


def _cell_name(levels: Mapping[str, str]) -> str:
    """The levels as the name of a folder; a long one is cut and ends in a digest."""
    text = ",".join(f"{axis}={level}" for axis, level in levels.items())
    safe = re.sub(r"[^\w=,.+-]", "_", text)
    if safe == text and len(text) <= _MAX_NAME:
        return text
    return f"{safe[: _MAX_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
