"""How launchers say that something is wrong: one message, no traceback, exit status 2."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TypeVar

from absl import flags

from edgesafe_jax.adapters import AdapterError
from edgesafe_jax.assets import AssetError
from edgesafe_jax.dynamics import DynamicsError
from edgesafe_jax.guards.paraphrases import ParaphraseError
from edgesafe_jax.guards.probe import GuardFileError
from edgesafe_jax.guards.registry import TemplateError
from edgesafe_jax.guards.verdicts import GuardError
from edgesafe_jax.models.generation import ContextError
from edgesafe_jax.models.loading import LoadingError
from edgesafe_jax.models.tokenization import TokenizerError
from edgesafe_jax.offline_rl import DatasetError, LearningError
from edgesafe_jax.planning import PlanningError
from edgesafe_jax.training import CheckpointError, TrainingError, WorkdirError

Value = TypeVar("Value")


class ConfigError(ValueError):
    """A config with a value that means nothing."""


EXPECTED = (
    AdapterError,
    AssetError,
    CheckpointError,
    ConfigError,
    ContextError,
    DatasetError,
    DynamicsError,
    GuardError,
    GuardFileError,
    LearningError,
    LoadingError,
    ParaphraseError,
    PlanningError,
    TemplateError,
    TokenizerError,
    TrainingError,
    WorkdirError,
)
"""Errors whose message is all that a user needs."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Prints the message of an expected error and exits with status 2."""
    try:
        yield
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line for `app.run`; what is wrong with it is one message, too.

    An unknown field or variant of a config and a config file that does not exist come from ml_collections as errors of
    several kinds, with a traceback in their text.
    """
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            flags.FLAGS.config.keys()  # a file that cannot be read is noticed at the first use
        return rest
    except (AttributeError, KeyError) as error:
        field: object = error
        while isinstance(field, BaseException) and field.args:
            field = field.args[0]
        message = "the config has no field " + ". ".join(str(field).splitlines())
    except (flags.Error, OSError, TypeError) as error:
        message = re.sub(r"^\w+Error: ", "", str(error).strip().splitlines()[-1].strip())
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def lookup(table: Mapping[str, Value], name: object, what: str) -> Value:
    """Returns an entry of a table of choices.

    Raises:
      ConfigError: there is none; the message lists the choices.
    """
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"{what}={name!r}: expected one of {', '.join(sorted(table))}.")
    return table[name]
