"""Checks that the metrics share, on NumPy arrays. Each returns its argument as an array, or raises `ConfigError`."""

import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.typing import ArrayLike

FloatArray = np.ndarray
BoolArray = np.ndarray


def check_numbers(value: ArrayLike, name: str, *, ndim: int | None = 1) -> FloatArray:
    """Returns finite numbers as float64."""
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        try:
            array = array.astype(np.float64)  # bfloat16 and its kin are no NumPy numbers.
        except (TypeError, ValueError):
            raise ConfigError(f"{name} has dtype {array.dtype}, expected numbers.") from None
    array = array.astype(np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ConfigError(f"{name} has shape {array.shape}, expected {ndim} {'axis' if ndim == 1 else 'axes'}.")
    if array.size == 0:
        raise ConfigError(f"{name} is empty, expected at least one entry.")
    if not np.all(np.isfinite(array)):
        offending = array[~np.isfinite(array)].ravel()[0]
        raise ConfigError(
            f"{name} holds {offending}, expected finite numbers; drop such entries first and say how many."
        )
    return array


def check_probs(value: ArrayLike, name: str) -> FloatArray:
    """Returns probabilities as float64 [N]."""
    array = check_numbers(value, name)
    outside = (array < 0) | (array > 1)
    if np.any(outside):
        raise ConfigError(
            f"{name} holds {array[outside][0]:g}, expected probabilities in [0, 1]; turn logits "
            "into probabilities first."
        )
    return array


def check_binary(value: ArrayLike, name: str) -> BoolArray:
    """Returns 0 and 1 as booleans [N]."""
    array = check_numbers(value, name)
    other = (array != 0) & (array != 1)
    if np.any(other):
        raise ConfigError(
            f"{name} holds {array[other][0]:g}, expected 0 and 1 (or booleans); compare with a threshold first."
        )
    return array == 1


def check_same_length(**arrays: np.ndarray) -> None:
    """Checks that arrays have as many entries; an error names the first two that differ."""
    (first_name, first), *others = arrays.items()
    for name, array in others:
        if len(array) != len(first):
            raise ConfigError(
                f"{name} has {len(array)} entries but {first_name} has {len(first)}; expected one for each."
            )
