"""Data sets on disk: Minari's HDF5 directories and OGBench's npz files.

Both keep observations of a trajectory in one row more than it has transitions: Minari one array an episode, OGBench one
row at each end whose action leads nowhere. OGBench's ``terminals`` mark ends of trajectories, not of the world, and
become `ends` here. Minari needs h5py (the extra ``offline``); neither library is needed to read or write its files.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesafe_jax.offline_rl.datasets import DatasetError, OfflineDataset, make_dataset

if TYPE_CHECKING:
    import h5py

_MAIN = "main_data.hdf5"
_METADATA = "metadata.json"
_MINARI_VERSION = "0.5.4"


def read_dataset(path: str | os.PathLike[str]) -> OfflineDataset:
    """Reads a data set: an OGBench file by its suffix ``.npz``, else a Minari directory."""
    return read_ogbench(path) if str(path).endswith(".npz") else read_minari(path)


def read_minari(path: str | os.PathLike[str], *, observation_key: str = "observation") -> OfflineDataset:
    """Reads a Minari data set in the HDF5 format.

    Args:
      path: the data set's directory, or the ``data`` directory in it that holds ``main_data.hdf5``.
      observation_key: where observations are dictionaries, as those of goal environments, the entry that is the state;
        the entry ``desired_goal``, if there is one, is the goal.

    Returns:
      The data set: `terminals` are Minari's terminations; a trajectory ends where its episode does.

    Raises:
      DatasetError: if there is no such file, or its arrays do not fit one another.
      ImportError: if h5py is not installed.
    """
    h5py = _h5py()
    file = _find(Path(path), (_MAIN, f"data/{_MAIN}"))
    parts: dict[str, list[np.ndarray]] = {}
    with h5py.File(file, "r") as content:
        names = sorted((name for name in content if name.startswith("episode_")), key=lambda n: int(n.split("_")[1]))
        if not names:
            raise DatasetError(f"{file} has no group episode_0: expected a Minari data set with at least one episode")
        for name in names:
            for key, array in _minari_episode(content[name], f"{file}:{name}", observation_key).items():
                parts.setdefault(key, []).append(array)
    return make_dataset(**{key: np.concatenate(arrays) for key, arrays in parts.items()})


def _minari_episode(group: "h5py.Group", where: str, observation_key: str) -> dict[str, np.ndarray]:
    stored: Any = group["observations"]
    goals = None
    if hasattr(stored, "keys"):
        if observation_key not in stored:
            raise DatasetError(
                f"{where}: observations are a dictionary of {sorted(stored)}; {observation_key!r} is none of them: "
                "choose with observation_key"
            )
        goals = np.asarray(stored["desired_goal"]) if "desired_goal" in stored else None
        stored = stored[observation_key]
    observations, actions = np.asarray(stored), np.asarray(group["actions"])
    num = len(actions)
    if len(observations) != num + 1 or not num:
        raise DatasetError(
            f"{where}: {len(observations)} observations for {num} actions: expected one more, at least one action"
        )
    episode = {
        "states": observations[:-1].reshape(num, -1),
        "actions": actions.reshape(num, -1),
        "rewards": np.asarray(group["rewards"]),
        "next_states": observations[1:].reshape(num, -1),
        "terminals": np.asarray(group["terminations"]),
        "ends": np.arange(num) == num - 1,
    }
    return episode if goals is None else {**episode, "goals": goals[:-1].reshape(num, -1)}


def write_minari(path: str | os.PathLike[str], dataset: OfflineDataset, *, dataset_id: str) -> Path:
    """Writes a data set as Minari does, so that `minari.MinariDataset` opens it.

    Args:
      path: a directory that does not exist or is empty; the files come into ``data`` in it.
      dataset: the data; with goals, observations become dictionaries of ``observation`` and ``desired_goal``.
      dataset_id: Minari's name for it, such as ``edgesafe/point-mass-v0``.

    Returns:
      The ``data`` directory, which is what Minari opens.

    Raises:
      DatasetError: if the directory has files in it.
      ImportError: if h5py is not installed.
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
        "action_space": json.dumps(_box(dataset.actions.shape[1])),
        "dataset_id": dataset_id,
        "minari_version": _MINARI_VERSION,
    }
    (folder / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    return folder


def read_ogbench(path: str | os.PathLike[str]) -> OfflineDataset:
    """Reads an OGBench npz file.

    Args:
      path: the file.

    Returns:
      The data set; rewards are 0 unless the file has some, nothing is terminal and there are goals only if the file has
      ``goals`` (OGBench's own files have neither).

    Raises:
      DatasetError: if an array is missing or the last row ends no trajectory.
    """
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as npz: {error}") from error
    for name in ("observations", "actions", "terminals"):
        if name not in arrays:
            raise DatasetError(f"{path} has {sorted(arrays)} but not {name!r}: expected an OGBench data set")
    last = arrays["terminals"].astype(bool)
    num = len(last)
    if len(arrays["observations"]) != num or len(arrays["actions"]) != num:
        raise DatasetError(
            f"{path}: {len(arrays['observations'])} observations, {len(arrays['actions'])} actions, {num} terminals: "
            "expected as many of each"
        )
    if not last.any() or not last[-1]:
        raise DatasetError(f"{path}: terminals[{num - 1}] is 0: expected 1 in the last row of every trajectory")
    rows = np.flatnonzero(~last)
    observations = arrays["observations"].reshape(num, -1)
    return make_dataset(
        states=observations[rows],
        actions=arrays["actions"][rows].reshape(len(rows), -1),
        rewards=arrays["rewards"][rows] if "rewards" in arrays else np.zeros(len(rows)),
        next_states=observations[rows + 1],
        ends=last[rows + 1],
        goals=arrays["goals"][rows] if "goals" in arrays else None,
    )


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
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Minari files need h5py: pip install 'edgesafe-jax[offline]'") from error
    return h5py


def _find(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (path / name).is_file():
            return path / name
    raise DatasetError(f"{path} holds none of {', '.join(names)}: expected the directory of a Minari data set")


def _bounds(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row of each trajectory, and the row after its last."""
    stops = np.flatnonzero(ends) + 1
    return np.concatenate([[0], stops[:-1]]), stops


def _with_last(before: Any, after: Any, start: int, stop: int) -> np.ndarray:
    """Rows of a trajectory and one more at the end, from `after`."""
    return np.concatenate([np.asarray(before[start:stop]), np.asarray(after[stop - 1 : stop])])


def _box(size: int) -> dict[str, Any]:
    """Minari's description of unbounded vectors."""
    infinite = [float("inf")] * size
    return {"type": "Box", "dtype": "float32", "shape": [size], "low": [-x for x in infinite], "high": infinite}
