"""A fixed data set of transitions, its checks, and what is derived from where trajectories end.

===============  ==========  ==============================================================================
array            shape       meaning
===============  ==========  ==============================================================================
``states``       [N, S]      the state before each action, float32; rows of a trajectory in order
``actions``      [N, A]      the action, float32
``rewards``      [N]         the reward of the transition, float32
``next_states``  [N, S]      the state after it, float32
``terminals``    [N]         the world ended here: the value of the next state is zero, so no bootstrapping
``ends``         [N]         last row of a trajectory, for whatever reason: a time limit, a terminal, a cut
``goals``        [N, G]      the goal that the behaviour pursued, float32; [N, 0] without goals
``provenance``   [N]         where the row comes from, int8: 0 real, 1 symmetry, 2 noise, 3 model
``action_low``   [A]         lower ends of the action space, or None where nothing says what they are
``action_high``  [A]         its upper ends
``world``        text        the name of the world that the data are of; empty where nothing says it
===============  ==========  ==============================================================================

A terminal is always an end; an end is a terminal only where the world says so. A time limit that is
marked as terminal teaches that the state at the limit has value zero.
"""

import enum
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics import Transitions, check_finite, make_transitions
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.typing import Array, ArrayLike


class DatasetError(EdgesafeError, ValueError):
    """A data set that does not fit its description."""


class Provenance(enum.IntEnum):
    """The origin of a row."""

    REAL = 0
    SYMMETRY = 1
    NOISE = 2
    MODEL = 3


class OfflineDataset(struct.PyTreeNode):
    """Transitions in trajectory order; the table above says what each array holds."""

    states: Array
    actions: Array
    rewards: Array
    next_states: Array
    terminals: Array
    ends: Array
    goals: Array
    provenance: Array
    action_low: Array | None = None
    action_high: Array | None = None
    world: str = struct.field(pytree_node=False, default="")

    @property
    def num_transitions(self) -> int:
        """N."""
        return self.states.shape[0]

    @property
    def num_episodes(self) -> int:
        """The number of trajectories."""
        return int(np.sum(np.asarray(self.ends)))

    def episodes(self) -> np.ndarray:
        """Returns the trajectory of each row, int32 `[N]`, from 0."""
        ends = np.asarray(self.ends)
        return np.concatenate([[0], np.cumsum(ends)[:-1]]).astype(np.int32)

    def last_rows(self) -> np.ndarray:
        """Returns for each row the last row of its trajectory, int32 `[N]`."""
        return np.flatnonzero(np.asarray(self.ends))[self.episodes()].astype(np.int32)

    def transitions(self) -> Transitions:
        """Returns states, actions, next states and episodes, for a model of the world."""
        return make_transitions(
            states=self.states,
            actions=self.actions,
            next_states=self.next_states,
            episodes=jnp.asarray(self.episodes()),
        )


def make_dataset(
    *,
    states: Array | np.ndarray,
    actions: Array | np.ndarray,
    rewards: Array | np.ndarray,
    next_states: Array | np.ndarray,
    ends: Array | np.ndarray,
    terminals: Array | np.ndarray | None = None,
    goals: Array | np.ndarray | None = None,
    provenance: int | Array | np.ndarray = Provenance.REAL,
    action_range: tuple[ArrayLike, ArrayLike] | None = None,
) -> OfflineDataset:
    """Makes a data set of checked arrays.

    Args:
      states: `[N, S]`.
      actions: `[N, A]`.
      rewards: `[N]`.
      next_states: `[N, S]`.
      ends: `[N]` last rows of trajectories.
      terminals: `[N]` where the world ended; None: nowhere.
      goals: `[N, G]`; None: no goals.
      provenance: `[N]` or one number for all rows.
      action_range: lower and upper ends of the action space, numbers or `[A]`; None: unknown.

    Returns:
      The data set, as numpy arrays.

    Raises:
      DatasetError: if a shape does not fit, a number is not finite, no trajectory ends, the last row is no end, a
        terminal is no end, or an action lies outside its range; the message says which array and index and what was
        expected.

    Example:
      >>> data = make_dataset(states=np.zeros((4, 2)), actions=np.zeros((4, 1)), rewards=np.zeros(4),
      ...     next_states=np.zeros((4, 2)), ends=np.array([False, True, False, True]))
      >>> data.num_episodes, data.episodes().tolist(), data.last_rows().tolist()
      (2, [0, 0, 1, 1], [1, 1, 3, 3])
    """
    num = len(states)
    terminals = np.zeros(num, bool) if terminals is None else terminals
    goals = np.zeros((num, 0), np.float32) if goals is None else goals
    try:
        vectors = {
            name: check_finite(name, array, ndim=2)
            for name, array in (
                ("states", states),
                ("actions", actions),
                ("next_states", next_states),
                ("goals", goals),
            )
        }
        rewards = check_finite("rewards", rewards, ndim=1)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    if vectors["next_states"].shape != vectors["states"].shape:
        raise DatasetError(
            f"next_states has shape {vectors['next_states'].shape}: expected that of states, {vectors['states'].shape}"
        )
    flags = {"ends": _flags("ends", ends), "terminals": _flags("terminals", terminals)}
    codes = np.broadcast_to(np.asarray(provenance, np.int8), (num,)) if np.ndim(provenance) == 0 else provenance
    codes = np.asarray(codes, np.int8)
    for name, array in {**vectors, "rewards": rewards, **flags, "provenance": codes}.items():
        if len(array) != num or (name in ("rewards", "ends", "terminals", "provenance") and array.ndim != 1):
            raise DatasetError(f"{name} has shape {array.shape}: expected {num} rows, as states have")
    if not flags["ends"].any():
        raise DatasetError(f"ends is nowhere true in {num} rows: expected true in the last row of every trajectory")
    if not flags["ends"][-1]:
        raise DatasetError(
            f"ends[{num - 1}] is false: the last row ends a trajectory; cut off the unfinished one or end it"
        )
    odd = np.flatnonzero(flags["terminals"] & ~flags["ends"])
    if len(odd):
        raise DatasetError(
            f"terminals[{odd[0]}] is true and ends[{odd[0]}] is false: a terminal always ends a trajectory"
        )
    low, high = (None, None) if action_range is None else _checked_range(vectors["actions"], *action_range)
    return OfflineDataset(**vectors, rewards=rewards, **flags, provenance=codes, action_low=low, action_high=high)  # type: ignore[arg-type]


def _checked_range(actions: np.ndarray, low: ArrayLike, high: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the action space, each `[A]`."""
    size = actions.shape[1]
    try:
        ends = [np.broadcast_to(np.asarray(end, np.float32), (size,)) for end in (low, high)]
    except ValueError:
        raise DatasetError(f"action_range has ends {low} and {high}: expected numbers or {size} of them") from None
    if not (np.all(np.isfinite(ends)) and np.all(ends[0] < ends[1])):
        raise DatasetError(f"action_range has ends {ends[0]} and {ends[1]}: expected finite ones, low below high")
    slack = 1e-4 * (ends[1] - ends[0])
    bad = np.argwhere((actions < ends[0] - slack) | (actions > ends[1] + slack))
    if len(bad):
        row, column = bad[0]
        raise DatasetError(
            f"actions[{row}, {column}] is {actions[row, column]}: expected {ends[0][column]} to {ends[1][column]}, the "
            "action space"
        )
    return ends[0], ends[1]


def _flags(name: str, array: Array | np.ndarray) -> np.ndarray:
    found = np.asarray(array)
    bad = np.argwhere((found != 0) & (found != 1))
    if len(bad):
        index = tuple(bad[0].tolist())
        raise DatasetError(f"{name}[{', '.join(map(str, index))}] is {found[index]}: expected true or false")
    return found.astype(bool)


def make_episodes(
    *,
    states: Array | np.ndarray,
    actions: Array | np.ndarray,
    next_states: Array | np.ndarray,
    rewards: Array | np.ndarray,
    goals: Array | np.ndarray,
    terminals: Array | np.ndarray,
    provenance: int = Provenance.REAL,
) -> OfflineDataset:
    """Makes a data set of episodes of one length; what follows a terminal is left out.

    Args:
      states: `[E, T, S]`.
      actions: `[E, T, A]`.
      next_states: `[E, T, S]`.
      rewards: `[E, T]`.
      goals: `[E, T, G]`.
      terminals: `[E, T]` where the world ended.
      provenance: of all rows.

    Returns:
      The data set.
    """
    ended = np.asarray(terminals, bool)
    kept = np.cumsum(ended, axis=1) - ended == 0
    last = ended | (np.arange(ended.shape[1]) == ended.shape[1] - 1)
    columns = {"states": states, "actions": actions, "next_states": next_states, "rewards": rewards, "goals": goals}
    rows: dict[str, Any] = {name: np.asarray(column)[kept] for name, column in columns.items()}
    return make_dataset(
        **rows,
        terminals=ended[kept],
        ends=last[kept],
        provenance=provenance,
    )


def concatenate(parts: Sequence[OfflineDataset]) -> OfflineDataset:
    """Returns one data set of several with the same state, action and goal sizes.

    Raises:
      DatasetError: if there is none, or sizes differ.
    """
    if not parts:
        raise DatasetError("no data sets to put together: expected at least one")
    for name in ("states", "actions", "goals"):
        sizes = [getattr(part, name).shape[1] for part in parts]
        if len(set(sizes)) > 1:
            raise DatasetError(f"{name} have {sizes} dimensions in the parts: expected the same in all")
    ends = [[end if end is None else np.asarray(end).tolist() for end in (p.action_low, p.action_high)] for p in parts]
    if any(each != ends[0] for each in ends):
        raise DatasetError(f"the parts have action ranges {ends}: expected the same in all")
    worlds = {part.world for part in parts} - {""}
    if len(worlds) > 1:
        raise DatasetError(f"the parts are of the worlds {sorted(worlds)}: expected one")
    bare = [part.replace(action_low=None, action_high=None, world="".join(worlds)) for part in parts]
    joined = jax.tree.map(lambda *arrays: np.concatenate([np.asarray(a) for a in arrays]), *bare)
    return joined.replace(action_low=parts[0].action_low, action_high=parts[0].action_high)
