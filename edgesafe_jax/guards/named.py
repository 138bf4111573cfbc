"""Guards by the text that a config gives: a head, a public guard with its model, a callable, or the packaged guard."""

import dataclasses
import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.probe import load_hidden_state_guard, packaged_head
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.guards.verdicts import Guard
from edgesafe_jax.models.decoder_config import flops_per_token, num_params
from edgesafe_jax.models.loading import LanguageModel, load_model

KINDS = (
    "nothing for the packaged guard, the file of a head that configs/guard_probe.py or guard_unseen.py stored, "
    f"FORMAT:MODEL for a public guard (formats {', '.join(FORMATS)}; MODEL a file, a directory or a hub id), or "
    "MODULE:FUNCTION for a function of (prompts, responses) that returns P(unsafe)"
)


@dataclasses.dataclass(frozen=True)
class GuardCost:
    """What a guard costs behind a language model.

    Attributes:
      parameters: of its own.
      flops_per_token: of each token that it reads.
    """

    parameters: int
    flops_per_token: float


def check_guard(spec: str) -> None:
    """Refuses a text that names no guard, before any work.

    Args:
      spec: as in a config.

    Raises:
      ConfigError: no such file, format, local model, module or function.
    """
    if _is_head(spec):
        return
    name, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise ConfigError(f"guard={spec!r} is no file: expected {KINDS}.")
    if name in FORMATS:
        if rest.startswith((".", "/", "~")) and not Path(rest).expanduser().exists():
            raise ConfigError(f"guard={spec!r}: there is no model at {rest}.")
        return
    _function(spec)


def load_guard(spec: str, model: LanguageModel) -> Guard:
    """Loads the guard that a config names.

    Args:
      spec: as for `check_guard`.
      model: the language model whose answers it judges; heads read its hidden states.

    Returns:
      The guard.

    Raises:
      ConfigError: see `check_guard`.
      GuardFileError: a head of another model or a damaged one.
    """
    check_guard(spec)
    if _is_head(spec):
        return load_hidden_state_guard(model, spec or None)
    name, _, rest = spec.partition(":")
    if name in FORMATS:
        return LanguageModelGuard(load_model(str(Path(rest).expanduser())), FORMATS[name])
    return _function(spec)


def guard_identity(spec: str, guard: Guard) -> str | None:
    """What the verdicts of a guard belong to; None for a function, which can change without a trace."""
    if _is_head(spec):
        # A head that was replaced under the same name gives other verdicts on the same answers.
        return hashlib.sha256(Path(spec or packaged_head("teacher")).read_bytes()).hexdigest()
    if isinstance(guard, LanguageModelGuard):
        return f"{guard.model.hash} {guard.template_hash}"
    return None


def guard_cost(guard: Any, model: LanguageModel, *, context: int = 512) -> GuardCost | None:
    """What a guard costs behind a language model.

    Args:
      guard: any guard.
      model: the language model whose hidden states a head reads.
      context: positions that a token sees.

    Returns:
      The cost; None for a function.
    """
    if isinstance(guard, LanguageModelGuard):
        return GuardCost(num_params(guard.model.params), flops_per_token(guard.model.config, context=context))
    if not hasattr(guard, "head"):
        return None
    size = sum(np.size(leaf) for leaf in jax.tree.leaves((guard.head, guard.adapter)))
    read = dataclasses.replace(model.config, num_layers=max(guard.layers))
    return GuardCost(size, flops_per_token(read, context=context, with_head=False))


def _is_head(spec: str) -> bool:
    return not spec or Path(spec).is_file()


def _function(spec: str) -> Guard:
    """Imports MODULE:FUNCTION; modules of the current folder are found, too."""
    name, _, attribute = spec.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"guard={spec!r}: cannot import {name!r} ({error}). Expected {KINDS}.") from error
    except ValueError as error:
        raise ConfigError(f"guard={spec!r}: {name!r} is no module ({error}). Expected {KINDS}.") from error
    finally:
        sys.path.remove(here)
    found: Any = getattr(module, attribute, None)
    if not callable(found):
        public = ", ".join(each for each in vars(module) if each.isidentifier() and each[0] != "_") or "nothing"
        raise ConfigError(f"guard={spec!r}: {name} has no function {attribute!r}; it has {public}.")
    return cast(Guard, found)
