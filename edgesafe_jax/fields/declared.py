"""What a field of an experiment's config may hold, and the one checker of all configs."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from edgesafe_jax.errors import ConfigError, Range, lookup, shortened


class Declared(Protocol):
    """What a field may hold."""

    def check(self, name: str, value: Any) -> None:
        """Raises `ConfigError` unless the field may hold a value; the message begins with `name=value`."""
        ...


Field: TypeAlias = Range | Declared
"""A range of numbers, or another declaration."""

Fields: TypeAlias = Mapping[str, Field]
"""Declarations by dotted name of the field."""


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={shortened(value)!r}: expected True or False.")


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
      empty: whether it may be empty.
      longest: most characters.
    """

    empty: bool = False
    longest: int = 100_000

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if not isinstance(value, str):
            raise ConfigError(f"{name}={shortened(value)!r}: expected a text.")
        if not self.empty and not value.strip():
            raise ConfigError(f"{name} is empty: expected a text.")
        if len(value) > self.longest:
            raise ConfigError(f"{name} has {len(value)} characters: expected at most {self.longest}.")


@dataclass(frozen=True)
class Name:
    """A name of a table.

    Attributes:
      known: the table's names.
      empty: whether the field may be empty, too.
    """

    known: Collection[str]
    empty: bool = False

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if not (self.empty and value == ""):
            lookup(dict.fromkeys(self.known), value, name)


@dataclass(frozen=True)
class File:
    """The path of a file that is read, or nothing.

    Attributes:
      of: what it holds, for the message.
    """

    of: str

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        Text(empty=True).check(name, value)
        try:
            found = not value or Path(value).exists()
        except (OSError, ValueError):  # a name that no file can have
            found = False
        if not found:
            raise ConfigError(f"{name}={shortened(value)!r} is no file: expected one with {self.of}, or nothing.")


@dataclass(frozen=True)
class Each:
    """A sequence.

    Attributes:
      of: of each member.
      least: fewest members.
      most: most members.
    """

    of: Field
    least: int = 0
    most: int = 1000

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ConfigError(f"{name}={shortened(value)!r}: expected a tuple.")
        if not value and self.least:
            known = self.of.known if isinstance(self.of, Name) else ()
            what = f"some of {', '.join(known)}" if known else f"at least {self.least} of {_describe(self.of)}"
            raise ConfigError(f"{name} is empty: expected {what}.")
        if not self.least <= len(value) <= self.most:
            raise ConfigError(f"{name} has {len(value)} members: expected {self.least} to {self.most}.")
        for member in value:
            if isinstance(self.of, Range):
                if member not in self.of:
                    raise ConfigError(f"{name}={shortened(value)}: expected {self.of.describe()}.")
            else:
                self.of.check(name, member)


@dataclass(frozen=True)
class Table:
    """A mapping whose names the user chooses.

    Attributes:
      of: of each value.
      names: what the names may be; None for any.
      least: fewest entries.
    """

    of: Field
    names: Collection[str] | None = None
    least: int = 0

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={shortened(value)!r}: expected names with values.")
        if len(value) < self.least:
            raise ConfigError(f"{name} is empty: expected at least {self.least} name with a value.")
        for key, member in value.items():
            if self.names is not None:
                lookup(dict.fromkeys(self.names), key, name)
            check_value(f"{name}.{key}", self.of, member)


@dataclass(frozen=True)
class Group:
    """A mapping with declared names, each of which may be left out.

    Attributes:
      of: by name.
    """

    of: Fields

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={shortened(value)!r}: expected some of {', '.join(self.of)}.")
        for key, member in value.items():
            check_value(f"{name}.{key}", lookup(self.of, key, name), member)


@dataclass(frozen=True)
class AnyOf:
    """One of several declarations.

    Attributes:
      of: the declarations.
      expected: text of the message.
    """

    of: tuple[Field, ...]
    expected: str

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        for field in self.of:
            try:
                return check_value(name, field, value)
            except ConfigError:
                continue
        raise ConfigError(f"{name}={shortened(value)!r}: expected {self.expected}.")


@dataclass(frozen=True)
class Free:
    """Anything here; something else checks it.

    Attributes:
      checked_by: what does, and before any work starts.
    """

    checked_by: str

    def check(self, name: str, value: Any) -> None:
        """Accepts any value."""


FLAG = Flag()
TEXT = Text()
TEXT_OR_NOTHING = Text(empty=True)


def check_value(name: str, field: Field, value: Any) -> None:
    """Checks one value.

    Args:
      name: of the field, for the message.
      field: what it may hold.
      value: what it holds.

    Raises:
      ConfigError: the field may not hold it.
    """
    if not isinstance(field, Range):
        field.check(name, value)
    elif value not in field:
        raise ConfigError(f"{name}={shortened(value)}: expected {field.describe()}.")


def check_declared(config: Mapping[str, Any], fields: Fields, *, prefix: str = "config.") -> None:
    """Checks every field of a config.

    Args:
      config: nested mappings.
      fields: what each field may hold, by dotted name.
      prefix: in front of the names in messages.

    Raises:
      ConfigError: a field is missing, undeclared, or holds what it may not; the message names it and says what was
        expected.
    """
    found = dict(leaves(config, fields))
    for name, value in found.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            raise ConfigError(f"{prefix}{name}={shortened(value)!r}: there is no such field.{hint}")
        check_value(f"{prefix}{name}", fields[name], value)
    if missing := [name for name in fields if name not in found]:
        raise ConfigError(f"{prefix}{missing[0]} is missing: expected {_describe(fields[missing[0]])}.")


def leaves(config: Mapping[str, Any], fields: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the fields of a config by dotted name: those that are declared, and below them nothing."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in fields and isinstance(value, Mapping):
            yield from leaves(value, fields, f"{name}.")
        else:
            yield name, value


def _describe(field: Field) -> str:
    if isinstance(field, Range):
        return field.describe()
    if isinstance(field, AnyOf):
        return field.expected
    return "a name" if isinstance(field, Name) else f"a value ({type(field).__name__.lower()})"
