"""The offline algorithms by name; a new one is a file with a maker of a `Learner` and an entry here."""

import inspect
from collections.abc import Callable
from typing import Any

from edgesafe_jax.errors import lookup
from edgesafe_jax.offline_rl.awr import make_awr
from edgesafe_jax.offline_rl.bc import make_bc
from edgesafe_jax.offline_rl.iql import make_iql
from edgesafe_jax.offline_rl.learning import Learner
from edgesafe_jax.offline_rl.td3_bc import make_td3_bc

LEARNERS: dict[str, Callable[..., Learner]] = {
    "td3_bc": make_td3_bc,
    "iql": make_iql,
    "awr": make_awr,
    "bc": make_bc,
}
"""Makers of learners, by name."""


def make_learner(name: str, **settings: Any) -> Learner:
    """Makes a learner by name, of those settings that it has (behaviour cloning has no discount).

    Args:
      name: one of `LEARNERS`.
      **settings: keyword arguments of its maker; those that it lacks are left out.

    Returns:
      The learner.

    Raises:
      ConfigError: there is no such learner.
    """
    make = lookup(LEARNERS, name, "learner")
    known = inspect.signature(make).parameters
    return make(**{key: value for key, value in settings.items() if key in known})
