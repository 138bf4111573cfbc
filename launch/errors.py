"""Error reports of launchers: one message, no traceback, exit status 2."""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags

from edgesafe_jax.errors import ConfigError, EdgesafeError, describe_storage_problem, lookup
from edgesafe_jax.processes import leave_failed_run
from . import config_module, config_names

__all__ = ["ConfigError", "lookup", "named", "parse_flags", "reported", "start"]


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Prints the message of an expected error and exits with status 2.

    Expected are the errors of the library and those of the operating system that a user can mend: a full disk, a
    read-only file system, a missing permission. Other processes of the same run end, too.
    """
    try:
        yield
    except EdgesafeError as error:
        _refuse(str(error), error)
    except OSError as error:
        message = describe_storage_problem(error)
        if message is None:
            raise
        _refuse(message, error)


@contextlib.contextmanager
def named(prefix: str) -> Iterator[None]:
    """Puts a place in front of the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _refuse(message: str, error: BaseException) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    leave_failed_run(message, status=2)
    raise SystemExit(2) from error


def start(define_flags: Callable[[], None], main: Callable[[list[str]], None], *, operands: int = 0) -> None:
    """Runs a launcher as a program: defines its flags, parses the command line, calls its `main`."""
    define_flags()
    app.run(main, flags_parser=functools.partial(parse_flags, operands=operands))


def _with_path(argument: str) -> str:
    """Puts the path of a packaged config into an argument that names it."""
    found = re.fullmatch(r"(--?config=)(\w+)(:.*)?", argument)
    if found is None or found[2] not in config_names():
        return argument
    return f"{found[1]}{config_module(found[2]).__file__}{found[3] or ''}"


def parse_flags(argv: list[str], *, operands: int = 0) -> list[str]:
    """Parses the command line for `app.run`; a mistake in it is one message, too.

    `--config=NAME` or `--config=NAME:VARIANT` is a packaged config.

    An unknown field or variant of a config and a config file that does not exist come from ml_collections as errors of
    several kinds, with a traceback in their text.
    """
    try:
        rest = flags.FLAGS([_with_path(argument) for argument in argv])
        if len(rest) != 1 + operands:
            raise flags.Error(f"expected {operands} arguments that are no flags, got {rest[1:]}")
        if "config" in flags.FLAGS:
            flags.FLAGS.config.keys()  # a file that cannot be read is noticed at the first use
        return rest
    except (AttributeError, KeyError) as error:
        field: object = error
        while isinstance(field, BaseException) and field.args:
            field = field.args[0]
        message = "the config has no field " + ". ".join(str(field).splitlines())
    except SyntaxError as error:
        message = f"the config is no Python file: {error}"
    except Exception as error:  # a config is a program, which can fail in any way
        message = re.sub(r"^\w+Error: ", "", str(error).strip().splitlines()[-1].strip())
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
