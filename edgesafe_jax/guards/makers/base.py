"""What all makers of paraphrases share."""

import importlib
import random
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeAlias

import numpy as np

from edgesafe_jax.errors import EdgesafeError

Ways: TypeAlias = Mapping[str, Callable[[str], str]]
"""Functions from a text to a text with the same content, by name."""


class MakerError(EdgesafeError, ImportError):
    """A package of a maker of paraphrases is not installed."""


def engine(module: str, maker: str) -> ModuleType:
    """Imports a module of a package that the extra `paraphrases` installs.

    Args:
      module: its full name.
      maker: who needs it, for the message.

    Returns:
      The module.

    Raises:
      MakerError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the package's own making, such as invalid escapes
            return importlib.import_module(module)
    except ImportError as error:
        raise MakerError(
            f"The maker {maker!r} needs the package {module.partition('.')[0]} ({error}): install the extra with "
            "pip install 'edgesafe-jax[paraphrases]', or take the maker out of the sources."
        ) from error


def seeded(name: str, change: Callable[[str], str]) -> Callable[[str], str]:
    """Makes a function that draws from the global generators a function of its text alone.

    Args:
      name: of the way; two ways draw differently.
      change: draws from `random` or from `numpy.random`.

    Returns:
      A function with the same result for the same text; it leaves the global generators as they were.
    """

    def way(text: str) -> str:
        state, array_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        seed = random.Random(f"{name}/{text}").getrandbits(32)
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            return change(text)
        finally:
            random.setstate(state)
            np.random.set_state(array_state)  # noqa: NPY002

    return way
