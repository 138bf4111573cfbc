"""Guards by the text that a config gives: a head, a public guard with its model, a callable, or the packaged guard."""

import dataclasses
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.guards.probe import HiddenStateGuard, load_hidden_state_guard, packaged_head
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.guards.verdicts import Guard
from edgesafe_jax.models.decoder_config import flops_per_token, num_params
from edgesafe_jax.models.loading import LanguageModel, load_model

KINDS = (
    "nothing for the packaged guard, the file of a head that configs/guard_probe.py stored, FORMAT:MODEL for a public "
    f"guard (formats {', '.join(FORMATS)}; MODEL a file, a directory or a hub id), or MODULE:FUNCTION for a function "
    "of (prompts, responses) that returns P(unsafe)"
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


@dataclasses.dataclass(frozen=True)
class NamedGuard:
    """A guard that a config names.

    Attributes:
      guard: gives P(unsafe).
      identity: what its verdicts belong to; None for a function, which can change without a trace.
      cost: None where it is not known.
    """

    guard: Guard
    identity: str | None
    cost: GuardCost | None


def check_guard(spec: str) -> None:
    """Refuses a text that names no guard, before any work.

    Args:
      spec: as in a config.

    Raises:
      ConfigError: no such file, format, local model, module or function.
    """
    if not spec or Path(spec).is_file():
        return
    name, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise ConfigError(f"guard={spec!r} is no file: expected {KINDS}.")
    if name in FORMATS:
        if rest.startswith((".", "/", "~")) and not Path(rest).expanduser().exists():
            raise ConfigError(f"guard={spec!r}: there is no model at {rest}.")
        return
    _function(spec)


def load_guard(spec: str, model: LanguageModel) -> NamedGuard:
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
    name, _, rest = spec.partition(":")
    if not spec or Path(spec).is_file():
        guard = load_hidden_state_guard(model, spec or None)
        return _of_head(guard, model, Path(spec or packaged_head("teacher")))
    if name in FORMATS:
        judge = LanguageModelGuard(load_model(str(Path(rest).expanduser())), lookup(FORMATS, name, "guard format"))
        cost = GuardCost(num_params(judge.model.params), flops_per_token(judge.model.config, context=512))
        return NamedGuard(judge, f"{judge.model.hash} {judge.template_hash}", cost)
    return NamedGuard(_function(spec), None, None)


def _of_head(guard: HiddenStateGuard, model: LanguageModel, file: Path) -> NamedGuard:
    size = sum(np.size(leaf) for leaf in jax.tree.leaves((guard.head, guard.adapter)))
    read = dataclasses.replace(model.config, num_layers=max(guard.layers))
    cost = GuardCost(size, flops_per_token(read, context=512, with_head=False))
    # A head that was replaced under the same name gives other verdicts on the same answers.
    return NamedGuard(guard, hashlib.sha256(file.read_bytes()).hexdigest(), cost)


def _function(spec: str) -> Callable[..., np.ndarray]:
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
    found = getattr(module, attribute, None)
    if not callable(found):
        public = ", ".join(each for each in vars(module) if not each.startswith("_")) or "nothing"
        raise ConfigError(f"guard={spec!r}: {name} has no function {attribute!r}; it has {public}.")
    return found
