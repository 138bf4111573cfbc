"""Data sets on disk: Minari's HDF5 directories and npz files in the layouts of OGBench and D4RL.

Both keep observations of a trajectory in one row more than it has transitions: Minari one array an episode, OGBench one
row at each end whose action leads nowhere. OGBench's ``terminals`` mark ends of trajectories, not of the world, and
become `ends` here. The name of the world is kept beside the arrays (``edgesafe_world``). Minari needs h5py (the extra
``offline``); neither library is needed to read or write its files.
"""

import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax.offline_rl.datasets import DatasetError, OfflineDataset, make_dataset

_log = logging.getLogger(__name__)

_MAIN = "main_data.hdf5"
_METADATA = "metadata.json"
_MINARI_VERSION = "0.5.4"
_WORLD = "edgesafe_world"


def read_dataset(path: str | os.PathLike[str]) -> OfflineDataset:
    """Reads a data set: a file in the layout of OGBench or D4RL by its suffix ``.npz``, else a Minari directory.

    Raises:
      DatasetError: there is nothing at the path, or it cannot be read.
    """
    if not Path(path).exists():
        raise DatasetError(f"{path} does not exist: expected an .npz file or the directory of a Minari data set")
    return read_ogbench(path) if str(path).endswith(".npz") else read_minari(path)


def read_minari(
    path: str | os.PathLike[str], *, observation_key: str | Sequence[str] = "observation"
) -> OfflineDataset:
    """Reads a Minari data set in the HDF5 format.

    Spaces are those that the data set stores. Dictionaries, nested ones too, are flattened: their entries side by side,
    in the order of their names. The ends of a bounded action space become the data set's action range. An episode whose
    arrays do not fit one another is left out, with a warning that names it.

    Args:
      path: the data set's directory, or the ``data`` directory in it that holds ``main_data.hdf5``.
      observation_key: where observations are dictionaries, the entry, or entries, that are the state; the entry
        ``desired_goal``, if there is one, is the goal.

    Returns:
      The data set: `terminals` are Minari's terminations; a trajectory ends where its episode does.

    Raises:
      DatasetError: there is no such file, h5py is not installed, a space is not one of numbers (discrete actions,
        texts), or no episode has arrays that fit one another.
    """
    file = _find(Path(path), (_MAIN, f"data/{_MAIN}"))
    keys = (observation_key,) if isinstance(observation_key, str) else tuple(observation_key)
    spaces = _stored_spaces(file.parent / _METADATA)
    action_space = spaces.get("action_space")
    for name, space in _used_spaces(spaces, keys):
        if space.get("type") != "Box":
            what = f"{space.get('type')}({space.get('n', space.get('nvec', ''))})"
            raise DatasetError(f"{file.parent}: {name} is {what}: expected numbers in a Box, alone or in dictionaries")
    h5py = _h5py()
    parts: dict[str, list[np.ndarray]] = {}
    refused: list[str] = []
    try:
        content = h5py.File(file, "r")
    except OSError as error:
        raise DatasetError(f"{file} cannot be read as HDF5: {error}") from error
    with content:
        names = sorted((name for name in content if name.startswith("episode_")), key=lambda n: int(n.split("_")[1]))
        if not names:
            raise DatasetError(f"{file} has no group episode_0: expected a Minari data set with at least one episode")
        for name in names:
            try:
                episode = _minari_episode(content[name], keys)
            except _BadEpisode as error:
                refused.append(f"{name}: {error}")
                continue
            for key, array in episode.items():
                parts.setdefault(key, []).append(array)
    if refused and not parts:
        raise DatasetError(f"{file}: {refused[0]}; and no other episode can be used")
    if refused:
        _log.warning("%s: %d of %d episodes are left out: %s", file, len(refused), len(names), "; ".join(refused[:5]))
    arrays: dict[str, Any] = {key: np.concatenate(found) for key, found in parts.items()}
    dataset = make_dataset(**arrays, action_range=_bounded(action_space, arrays["actions"].shape[1]))
    return dataset.replace(world=str(_metadata(file.parent / _METADATA).get(_WORLD, "")))


class _BadEpisode(Exception):
    """An episode whose arrays do not fit one another."""


def _minari_episode(group: Any, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the arrays of one episode."""
    missing = [name for name in ("observations", "actions", "rewards", "terminations") if name not in group]
    if missing:
        raise _BadEpisode(f"it has no {missing[0]}")
    actions = _flatten(group["actions"])
    num = len(actions)
    stored: Any = group["observations"]
    goals = None
    if hasattr(stored, "keys"):
        for key in keys:
            if key not in stored:
                raise DatasetError(
                    f"{group.file.filename}:{group.name.strip('/')}: observations are a dictionary of "
                    f"{sorted(stored)}; {key!r} is none of them: choose with observation_key"
                )
        goals = _flatten(stored["desired_goal"]) if "desired_goal" in stored else None
        observations = np.concatenate([_flatten(stored[key]) for key in keys], axis=1)
    else:
        observations = _flatten(stored)
    if len(observations) != num + 1 or not num:
        raise _BadEpisode(f"{len(observations)} observations for {num} actions: expected one more, at least one action")
    if goals is not None and len(goals) != num + 1:
        raise _BadEpisode(f"{len(goals)} goals for {num} actions: expected one more")
    for name in ("rewards", "terminations"):
        if group[name].shape != (num,):
            raise _BadEpisode(f"{name} of shape {group[name].shape} for {num} actions: expected [{num}]")
    episode = {
        "states": observations[:-1],
        "actions": actions,
        "rewards": np.asarray(group["rewards"]),
        "next_states": observations[1:],
        "terminals": np.asarray(group["terminations"]),
        "ends": np.arange(num) == num - 1,
    }
    return episode if goals is None else {**episode, "goals": goals[:-1]}


def _flatten(stored: Any) -> np.ndarray:
    """Returns an array `[T, ...]` or a dictionary of them as one matrix `[T, M]`, entries by name."""
    if not hasattr(stored, "keys"):
        array = np.asarray(stored)
        if array.dtype.kind not in "fiub":
            raise DatasetError(f"{stored.name} holds {array.dtype}: expected numbers")
        return array.reshape(len(array), -1)
    parts = [_flatten(stored[name]) for name in sorted(stored)]
    if not parts or len({len(part) for part in parts}) > 1:
        raise _BadEpisode(f"the entries {sorted(stored)} have {[len(part) for part in parts]} rows: expected as many")
    return np.concatenate(parts, axis=1)


def _metadata(file: Path) -> dict[str, Any]:
    """Reads the metadata of a Minari data set; where there is none, nothing."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error


def _stored_spaces(file: Path) -> dict[str, dict[str, Any]]:
    """Reads the spaces of a data set's metadata; without metadata there are none."""
    metadata = _metadata(file)
    found = {what: metadata.get(what) for what in ("observation_space", "action_space")}
    try:
        return {what: json.loads(space) if isinstance(space, str) else space for what, space in found.items() if space}
    except ValueError as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error


def _leaf_spaces(space: Mapping[str, Any], name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the spaces within dictionaries and tuples, with dotted names."""
    inner = space.get("subspaces")
    if space.get("type") not in ("Dict", "Tuple") or inner is None:
        return [(name, space)]
    named = inner.items() if isinstance(inner, Mapping) else ((f"_index_{i}", each) for i, each in enumerate(inner))
    return [leaf for key, each in named for leaf in _leaf_spaces(each, f"{name}.{key}")]


def _used_spaces(spaces: Mapping[str, Any], keys: tuple[str, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the spaces that are read: those of the actions, of the chosen entries of observations and of the goal."""
    used = dict(spaces)
    observed = used.get("observation_space", {})
    if observed.get("type") == "Dict":
        used.pop("observation_space")
        chosen = (*keys, "desired_goal")
        used |= {f"observation_space.{k}": v for k, v in observed.get("subspaces", {}).items() if k in chosen}
    return [leaf for name, space in used.items() for leaf in _leaf_spaces(space, name)]


def _bounded(space: Mapping[str, Any] | None, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the ends of an action space, in the order in which actions are flattened; None where one is infinite."""
    if space is None:
        return None
    leaves = sorted(_leaf_spaces(space, ""), key=lambda leaf: leaf[0].split("."))
    ends = []
    for end in ("low", "high"):
        try:
            each = [
                np.broadcast_to(np.asarray(leaf[end], np.float64), tuple(leaf.get("shape") or ())).reshape(-1)
                for _, leaf in leaves
            ]
        except (KeyError, ValueError, TypeError):
            return None
        ends.append(np.concatenate(each))
    low, high = ends
    usable = low.shape == high.shape == (size,) and np.all(np.isfinite(ends)) and np.all(low < high)
    return (low, high) if usable else None


def write_minari(path: str | os.PathLike[str], dataset: OfflineDataset, *, dataset_id: str) -> Path:
    """Writes a data set as Minari does, so that `minari.MinariDataset` opens it.

    Args:
      path: a directory that does not exist or is empty; the files come into ``data`` in it.
      dataset: the data; with goals, observations become dictionaries of ``observation`` and ``desired_goal``.
      dataset_id: Minari's name for it, such as ``edgesafe/point-mass-v0``.

    Returns:
      The ``data`` directory, which is what Minari opens.

    Raises:
      DatasetError: if the directory has files in it, or h5py is not installed.
    """
    h5py = _h5py()
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise DatasetError(f"{path} is not empty: expected a new directory")
    folder = path / "data"
    folder.mkdir(parents=True)
    starts, stops = _bounds(np.asarray(dataset.ends))
    with h5py.File(folder / _MAIN, "w", track_order=True) as content:
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            group = content.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": int(stop - start)})
            observations = _with_last(dataset.states, dataset.next_states, start, stop)
            if dataset.goals.shape[1]:
                goals = _with_last(dataset.goals, dataset.goals, start, stop)
                group.create_dataset("observations/observation", data=observations)
                group.create_dataset("observations/desired_goal", data=goals)
            else:
                group.create_dataset("observations", data=observations)
            terminals = np.asarray(dataset.terminals[start:stop])
            group.create_dataset("actions", data=np.asarray(dataset.actions[start:stop]))
            group.create_dataset("rewards", data=np.asarray(dataset.rewards[start:stop]))
            group.create_dataset("terminations", data=terminals)
            group.create_dataset("truncations", data=np.asarray(dataset.ends[start:stop]) & ~terminals)
    state = _box(dataset.states.shape[1])
    goal = {"observation": state, "desired_goal": _box(dataset.goals.shape[1])}
    metadata = {
        "total_episodes": len(starts),
        "total_steps": dataset.num_transitions,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps({"type": "Dict", "subspaces": goal} if dataset.goals.shape[1] else state),
        "action_space": json.dumps(_box(dataset.actions.shape[1], dataset.action_low, dataset.action_high)),
        "dataset_id": dataset_id,
        "minari_version": _MINARI_VERSION,
        _WORLD: dataset.world,
    }
    (folder / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    return folder


_UNKNOWN = ("dones", "dones_float", "terminations", "truncations", "next_states", "discounts")
"""Arrays that would change what the others mean, in layouts that are not read."""


def read_ogbench(path: str | os.PathLike[str]) -> OfflineDataset:
    """Reads an npz file in the layout of OGBench or of D4RL.

    ==========================  =====================  ======================  =========================================
    arrays                      world ends             trajectory ends         transitions
    ==========================  =====================  ======================  =========================================
    OGBench                     ``masks`` is 0, or     ``terminals``           to the next row; a row at an end has none
                                never without them
    OGBench with                ``masks`` is 0         ``terminals``           all rows
    ``next_observations``
    D4RL (``timeouts``)         ``terminals``          ``terminals`` or        all rows with ``next_observations``, else
                                                       ``timeouts``            to the next row
    ==========================  =====================  ======================  =========================================

    Args:
      path: the file.

    Returns:
      The data set; rewards are 0 unless the file has some, and there are goals only if the file has ``goals``
      (OGBench's own files have neither). A trajectory is cut after a row where the world ends.

    Raises:
      DatasetError: if an array is missing, of another length or of a meaning that is not known, or the last row ends no
        trajectory.
    """
    arrays = _load_npz(path)
    for name in ("observations", "actions", "terminals"):
        if name not in arrays:
            raise DatasetError(f"{path} has {sorted(arrays)} but not {name!r}: expected an OGBench or D4RL data set")
    if unknown := [name for name in _UNKNOWN if name in arrays]:
        raise DatasetError(
            f"{path} has {unknown[0]!r}, whose meaning beside 'terminals' is not known: expected OGBench's arrays "
            "(terminals, masks) or D4RL's (terminals, timeouts, next_observations); rename or remove it"
        )
    num = len(arrays["terminals"])
    if len(arrays["observations"]) != num or len(arrays["actions"]) != num:
        raise DatasetError(
            f"{path}: {len(arrays['observations'])} observations, {len(arrays['actions'])} actions, {num} terminals: "
            "expected as many of each"
        )
    for name in ("next_observations", "timeouts", "masks", "rewards", "goals"):
        if name in arrays and len(arrays[name]) != num:
            raise DatasetError(f"{path}: {len(arrays[name])} {name}, {num} terminals: expected as many of each")
    world, last, rows = _ends(path, arrays)
    following = "next_observations" in arrays
    states = arrays["observations"].reshape(num, -1)
    return make_dataset(
        states=states[rows],
        actions=arrays["actions"][rows].reshape(len(rows), -1),
        rewards=arrays["rewards"][rows] if "rewards" in arrays else np.zeros(len(rows)),
        next_states=arrays["next_observations"].reshape(num, -1)[rows] if following else states[rows + 1],
        ends=last | world,
        terminals=world,
        goals=arrays["goals"][rows].reshape(len(rows), -1) if "goals" in arrays else None,
        action_range=(arrays["action_low"], arrays["action_high"]) if "action_low" in arrays else None,
    ).replace(world=str(arrays.get(_WORLD, "")))


def _load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        with Path(path).open("rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read as npz: {error}") from error


def _ends(path: Any, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where the world ends and where trajectories end, of the rows that are transitions, and these rows."""
    flags = {name: _boolean(path, name, arrays[name]) for name in ("terminals", "timeouts", "masks") if name in arrays}
    terminals, num = flags["terminals"], len(flags["terminals"])
    every = np.arange(num)
    if "timeouts" in flags:  # D4RL
        world = ~flags["masks"] if "masks" in flags else terminals
        last = terminals | flags["timeouts"]
        if "next_observations" in arrays:
            last[-1] = True
            return world, last, every
        # What follows the last row of a trajectory is in another one.
        if world.any():
            raise DatasetError(
                f"{path}: terminals[{np.argmax(world)}] ends the world and the file has no next_observations: expected "
                "them, for the row that follows is the start of another trajectory"
            )
        last[-1] = True
        rows = np.flatnonzero(~last)
        if not len(rows):
            raise DatasetError(
                f"{path}: every row ends a trajectory and the file has no next_observations: expected them"
            )
        return world[rows], last[rows + 1], rows
    if not terminals.any() or not terminals[-1]:
        raise DatasetError(f"{path}: terminals[{num - 1}] is 0: expected 1 in the last row of every trajectory")
    if "next_observations" in arrays:
        if "masks" not in flags:
            raise DatasetError(
                f"{path} has 'next_observations' without 'timeouts' or 'masks': it is not known whether 'terminals' "
                "end the world (D4RL) or a trajectory (OGBench); expected one of the two beside them"
            )
        return ~flags["masks"], terminals, every
    rows = np.flatnonzero(~terminals)
    world = ~flags["masks"][rows] if "masks" in flags else np.zeros(len(rows), bool)
    return world, terminals[rows + 1], rows


def _boolean(path: Any, name: str, array: np.ndarray) -> np.ndarray:
    flat = array.reshape(len(array), -1)
    if flat.shape[1] != 1 or not np.all((flat == 0) | (flat == 1)):
        raise DatasetError(f"{path}: {name} of shape {array.shape}: expected one 0 or 1 a row")
    return flat[:, 0].astype(bool)


def write_ogbench(path: str | os.PathLike[str], dataset: OfflineDataset) -> Path:
    """Writes a data set as an OGBench npz file, with ``rewards`` and any ``goals`` beside OGBench's arrays.

    Args:
      path: the file, with the suffix ``.npz``.
      dataset: the data; OGBench has no terminals, so it may have none.

    Returns:
      The file.

    Raises:
      DatasetError: if the suffix is another or the data have terminals, which would be lost.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DatasetError(f"{path}: expected the suffix .npz")
    if np.any(dataset.terminals):
        raise DatasetError(
            f"terminals[{np.argmax(dataset.terminals)}] is true: OGBench files cannot say that the world ended; "
            "write Minari instead"
        )
    starts, stops = _bounds(np.asarray(dataset.ends))
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("observations", "actions", "terminals", "rewards", "goals")
    }
    for start, stop in zip(starts, stops, strict=True):
        columns["observations"].append(_with_last(dataset.states, dataset.next_states, start, stop))
        for name in ("actions", "rewards", "goals"):
            array = getattr(dataset, name)
            columns[name].append(_with_last(array, array, start, stop))
        columns["terminals"].append(np.arange(stop - start + 1) == stop - start)
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    if not arrays["goals"].shape[1]:
        del arrays["goals"]
    if dataset.action_low is not None and dataset.action_high is not None:
        arrays |= {"action_low": np.asarray(dataset.action_low), "action_high": np.asarray(dataset.action_high)}
    if dataset.world:
        arrays[_WORLD] = np.array(dataset.world)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DatasetError("Minari files need h5py: pip install 'edgesafe-jax[offline]'") from error
    return h5py


def _find(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (path / name).is_file():
            return path / name
    if not path.exists():
        raise DatasetError(f"{path} does not exist: expected the directory of a Minari data set")
    raise DatasetError(f"{path} holds none of {', '.join(names)}: expected the directory of a Minari data set")


def _bounds(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row of each trajectory, and the row after its last."""
    stops = np.flatnonzero(ends) + 1
    return np.concatenate([[0], stops[:-1]]), stops


def _with_last(before: Any, after: Any, start: int, stop: int) -> np.ndarray:
    """Rows of a trajectory and one more at the end, from `after`."""
    return np.concatenate([np.asarray(before[start:stop]), np.asarray(after[stop - 1 : stop])])


def _box(size: int, low: Any = None, high: Any = None) -> dict[str, Any]:
    """Minari's description of vectors, unbounded without ends."""
    infinite = np.full(size, np.inf)
    low, high = -infinite if low is None else np.asarray(low), infinite if high is None else np.asarray(high)
    return {"type": "Box", "dtype": "float32", "shape": [size], "low": low.tolist(), "high": high.tolist()}
