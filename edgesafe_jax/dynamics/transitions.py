"""Transitions by episode, and their split into parts that share no episode."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.errors import POSITIVE_COUNT, ConfigError, EdgesafeError, Range, check_ranges
from edgesafe_jax.typing import Array


class DynamicsError(EdgesafeError, ValueError):
    """Invalid data or settings; the message names the value and what was expected."""


class Transitions(struct.PyTreeNode):
    """Transitions on which a world model is fitted and tested.

    Attributes:
      states: `[N, S]` float32.
      actions: `[N, A]` float32.
      next_states: `[N, S]` float32.
      episodes: `[N]` int32, the episode of each transition; the unit that is exchangeable.
    """

    states: Array
    actions: Array
    next_states: Array
    episodes: Array

    def take(self, rows: np.ndarray) -> "Transitions":
        """Returns the transitions of the rows, an index array or a mask."""
        columns = (self.states, self.actions, self.next_states, self.episodes)
        return Transitions(*(np.asarray(column)[rows] for column in columns))  # type: ignore[arg-type]


class Segments(struct.PyTreeNode):
    """Runs of K consecutive transitions, each of one episode.

    Attributes:
      states: `[N, K+1, S]` float32.
      actions: `[N, K, A]` float32.
      episodes: `[N]` int32, the episode of each segment.
    """

    states: Array
    actions: Array
    episodes: Array

    @property
    def horizon(self) -> int:
        """K."""
        return self.actions.shape[1]


def make_segments(data: Transitions, horizon: int) -> Segments:
    """Cuts out every run of consecutive transitions of one episode; runs overlap.

    Args:
      data: transitions, those of an episode in order.
      horizon: K, transitions of a run.

    Returns:
      The segments, in the order of their first transitions, as numpy arrays.

    Raises:
      DynamicsError: if `horizon` is below 1, or no episode has as many consecutive transitions.

    Example:
      >>> x = np.arange(4.0)[:, None]
      >>> data = make_transitions(states=x, actions=x, next_states=x + 1, episodes=np.array([0, 0, 0, 1]))
      >>> make_segments(data, 2).states[:, :, 0].tolist()
      [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]
    """
    if horizon not in POSITIVE_COUNT:
        raise DynamicsError(f"horizon={horizon}: expected at least 1 step")
    states, actions, after, episodes = (
        np.asarray(x) for x in (data.states, data.actions, data.next_states, data.episodes)
    )
    broken = (episodes[1:] != episodes[:-1]) | np.any(states[1:] != after[:-1], axis=1)
    number = np.concatenate([[0], np.cumsum(broken)])  # of the run of consecutive transitions
    starts = np.flatnonzero(number[horizon - 1 :] == number[: len(number) - horizon + 1])
    if not len(starts):
        raise DynamicsError(f"horizon={horizon}: expected an episode with as many consecutive transitions")
    rows = starts[:, None] + np.arange(horizon)
    return Segments(
        states=np.concatenate([states[rows], after[rows[:, -1:]]], axis=1),  # type: ignore[arg-type]
        actions=actions[rows],  # type: ignore[arg-type]
        episodes=episodes[starts],  # type: ignore[arg-type]
    )


def as_segments(data: Transitions | Segments) -> Segments:
    """Returns segments as they are, and each transition as a segment of one step; traceable."""
    if isinstance(data, Segments):
        return data
    states = jnp.stack([jnp.asarray(data.states), jnp.asarray(data.next_states)], axis=1)
    return Segments(states=states, actions=jnp.asarray(data.actions)[:, None], episodes=jnp.asarray(data.episodes))


def make_transitions(*, states: Array, actions: Array, next_states: Array, episodes: Array) -> Transitions:
    """Makes transitions of checked arrays.

    Args:
      states: `[N, S]`.
      actions: `[N, A]`.
      next_states: `[N, S]`.
      episodes: `[N]`.

    Returns:
      The transitions, as float32 and int32 numpy arrays.

    Raises:
      DynamicsError: if a shape does not fit or a number is not finite; the message names the array and the index.

    Example:
      >>> one = np.zeros((3, 2))
      >>> make_transitions(states=one, actions=one, next_states=one, episodes=np.array([0, 0, 1])).states.shape
      (3, 2)
    """
    arrays = {"states": states, "actions": actions, "next_states": next_states}
    kept = {name: check_finite(name, array, ndim=2) for name, array in arrays.items()}
    ids = np.asarray(episodes)
    num, size = kept["states"].shape
    wanted = {"actions": (num, kept["actions"].shape[1]), "next_states": (num, size)}
    for name, shape in wanted.items():
        if kept[name].shape != shape:
            raise DynamicsError(f"{name} has shape {kept[name].shape}: expected {shape}, as states are {(num, size)}")
    if ids.shape != (num,) or not num:
        raise DynamicsError(
            f"episodes has shape {ids.shape}: expected [{num}], one episode per transition, at least one"
        )
    return Transitions(**kept, episodes=ids.astype(np.int32))  # type: ignore[arg-type]


def check_finite(name: str, array: Array | np.ndarray, *, ndim: int) -> np.ndarray:
    """Returns an array as float32.

    Raises:
      DynamicsError: if it has another number of axes or a number that is not finite; the message names the index.
    """
    found = np.asarray(array, np.float32)
    if found.ndim != ndim:
        raise DynamicsError(f"{name} has shape {found.shape}: expected {ndim} axes")
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        index = tuple(bad[0].tolist())
        raise DynamicsError(
            f"{name}[{', '.join(map(str, index))}] is {found[index]} ({len(bad)} such): expected finite numbers"
        )
    return found


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest(values: Array, axis: int = -1) -> Array:
    """Returns the largest values along an axis, with a gradient for the first of them alone.

    The gradient of `jnp.max` divides by the count of values that equal the maximum. Where a compiler computes a value a
    second time with another rounding, none does, and the gradient is not a number. The place is looked for where a
    gradient is taken only: on CPU that takes ten times as long as the maximum.

    Args:
      values: `[..., N, ...]`.
      axis: which one, of N values.

    Returns:
      The values without that axis.

    Example:
      >>> jax.grad(lambda x: largest(x))(jnp.array([1.0, 3.0, 3.0])).tolist()
      [0.0, 1.0, 0.0]
    """
    return jnp.max(values, axis)


@largest.defjvp
def _largest_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (values,), (change,) = primals, tangents
    index = jnp.argmax(values, axis, keepdims=True)
    return jnp.max(values, axis), jnp.squeeze(jnp.take_along_axis(change, index, axis), axis)


def standardizer(values: Array, sizes: Array | None = None) -> tuple[Array, Array]:
    """Returns what a normaliser subtracts and divides by: mean and standard deviation, and 1 where nothing varies.

    Divided by the rounding error of a constant, any other value would become a huge input.

    Args:
      values: `[N, M]`.
      sizes: see `varies`.

    Returns:
      Mean and scale, each `[M]`, the scale above 0.

    Example:
      >>> mean, scale = standardizer(jnp.array([[1.0, 0.5], [3.0, 0.5]]))
      >>> mean.tolist(), scale.tolist()
      ([2.0, 0.5], [1.0, 1.0])
    """
    changing = varies(values, sizes)
    middle = 0.5 * (jnp.max(values, 0) + jnp.min(values, 0))  # of a constant it is exact, where a mean is rounded
    std = jnp.std(values, 0)
    return jnp.where(changing, jnp.mean(values, 0), middle), jnp.where(changing, std, jnp.ones_like(std))


def varies(values: Array, sizes: Array | None = None) -> Array:
    """Returns whether each dimension varies by more than rounding, some millionths of its size.

    Args:
      values: `[N, M]`.
      sizes: `[M]` sizes of the numbers that the values are differences of; None: the largest of the values themselves.

    Returns:
      `[M]` booleans.
    """
    sizes = jnp.max(jnp.abs(values), 0) if sizes is None else sizes
    return jnp.max(values, 0) - jnp.min(values, 0) > 2e-6 * jnp.maximum(sizes, 1e-2)


def check_dims(what: str, dims: Iterable[int], size: int) -> None:
    """Refuses dimensions that a state of `size` lacks; indexing by them would take others in silence.

    Raises:
      DynamicsError: if there is one.
    """
    if missing := [dim for dim in dims if not 0 <= dim < size]:
        raise DynamicsError(f"{what} names dimension {missing[0]} of a state of {size}: expected 0 to {size - 1}")


def check_settings(settings: Any, ranges: Mapping[str, Range], error: type[EdgesafeError] = DynamicsError) -> None:
    """Checks the fields of a settings dataclass against declared ranges.

    Raises:
      DynamicsError: a field is outside its range; `error` names another class.
    """
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    try:
        check_ranges(values, ranges, prefix="")
    except ConfigError as found:
        raise error(str(found)) from None


def split_episodes(
    episodes: Array | np.ndarray, fractions: Mapping[str, float], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Splits transitions by episode, at random.

    Args:
      episodes: `[N]` the episode of each transition.
      fractions: from the name of a part to its fraction of the episodes; they add up to 1.
      seed: of the random order of the episodes.

    Returns:
      From name to the rows of the part, an index array. No episode is in two parts, every one is in some part.

    Raises:
      DynamicsError: if fractions are not positive or do not add up to 1, or there are fewer episodes than parts.

    Example:
      >>> parts = split_episodes(np.array([0, 0, 1, 1]), {"training": 0.5, "calibration": 0.5})
      >>> sorted(len(rows) for rows in parts.values())
      [2, 2]
    """
    ids = np.asarray(episodes)
    names = np.unique(ids)
    if min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise DynamicsError(f"fractions={dict(fractions)}: expected positive fractions that add up to 1")
    if len(names) < len(fractions):
        raise DynamicsError(
            f"{len(names)} episodes for {len(fractions)} parts ({', '.join(fractions)}): expected at least one episode "
            "a part"
        )
    order = np.random.default_rng(seed).permutation(names)
    ends = np.round(np.cumsum(list(fractions.values())) * len(names)).astype(int)
    # Every part keeps at least one episode.
    ends = np.maximum(ends, np.arange(1, len(fractions) + 1))
    ends = np.minimum(ends, len(names) - np.arange(len(fractions))[::-1])
    chosen = np.split(order, ends[:-1])
    return {name: np.flatnonzero(np.isin(ids, part)) for name, part in zip(fractions, chosen, strict=True)}
