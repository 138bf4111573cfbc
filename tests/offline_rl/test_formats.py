"""Files that the formats' own libraries write are read, and what is written here they read; all arrays survive."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from edgesafe_jax.offline_rl.datasets import DatasetError, make_dataset
from edgesafe_jax.offline_rl.formats import read_dataset, read_minari, read_ogbench, write_minari, write_ogbench

ARRAYS = ("states", "actions", "rewards", "next_states", "terminals", "ends", "goals")
needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs the extra 'offline'")


def some_data(*, goals=True, terminal=False):
    rng = np.random.default_rng(0)
    lengths = (4, 1, 3)
    parts = []
    for number, length in enumerate(lengths):
        path = rng.normal(size=(length + 1, 3)).astype(np.float32)
        parts.append((path[:-1], path[1:], np.full((length, 2), number, np.float32)))
    num = sum(lengths)
    ends = np.isin(np.arange(num), np.cumsum(lengths) - 1)
    return make_dataset(
        states=np.concatenate([p[0] for p in parts]),
        next_states=np.concatenate([p[1] for p in parts]),
        goals=np.concatenate([p[2] for p in parts]) if goals else None,
        actions=rng.normal(size=(num, 2)),
        rewards=rng.normal(size=num),
        ends=ends,
        terminals=ends & (np.arange(num) == 4) if terminal else None,
    )


def assert_same(left, right):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


@needs_h5py
@pytest.mark.parametrize("goals", [True, False])
def test_minari_files_keep_everything(tmp_path, goals):
    data = some_data(goals=goals, terminal=True)
    folder = write_minari(tmp_path / "set", data, dataset_id="edgesafe/test-v0")
    assert_same(read_minari(folder), data)
    assert_same(read_minari(tmp_path / "set"), data)


@pytest.mark.parametrize("goals", [True, False])
def test_ogbench_files_keep_everything(tmp_path, goals):
    data = some_data(goals=goals)
    assert_same(read_ogbench(write_ogbench(tmp_path / "set.npz", data)), data)


def test_an_ogbench_row_at_an_end_is_no_transition(tmp_path):
    # Two trajectories of two and one transitions, as OGBench documents its layout.
    observations = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    np.savez(
        tmp_path / "a.npz",
        observations=observations,
        actions=np.array([[0.1], [0.2], [9.0], [0.3], [9.0]]),
        terminals=np.array([0, 0, 1, 0, 1]),
    )
    data = read_ogbench(tmp_path / "a.npz")
    assert data.states[:, 0].tolist() == [0, 1, 10]
    assert data.next_states[:, 0].tolist() == [1, 2, 11]
    assert data.ends.tolist() == [False, True, True]
    assert not data.terminals.any()
    assert data.actions.max() < 1


def test_ogbench_itself_reads_what_is_written(tmp_path):
    ogbench = pytest.importorskip("ogbench.utils", exc_type=ImportError)
    data = some_data()
    theirs = ogbench.load_dataset(write_ogbench(tmp_path / "set.npz", data))
    np.testing.assert_array_equal(theirs["observations"], data.states)
    np.testing.assert_array_equal(theirs["next_observations"], data.next_states)
    np.testing.assert_array_equal(theirs["actions"], data.actions)
    np.testing.assert_array_equal(theirs["terminals"].astype(bool), data.ends)


@needs_h5py
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("goals", [True, False])
def test_minari_itself_reads_what_is_written(tmp_path, goals):
    minari = pytest.importorskip("minari", exc_type=ImportError)
    data = some_data(goals=goals, terminal=True)
    theirs = minari.MinariDataset(write_minari(tmp_path / "set", data, dataset_id="edgesafe/test-v0"))
    assert theirs.total_steps == data.num_transitions
    episodes = list(theirs.iterate_episodes())
    assert [len(each.rewards) for each in episodes] == [4, 1, 3]
    first = episodes[0].observations["observation"] if goals else episodes[0].observations
    np.testing.assert_array_equal(first[:-1], data.states[:4])
    np.testing.assert_array_equal(np.concatenate([e.terminations for e in episodes]), data.terminals)
    np.testing.assert_array_equal(np.concatenate([e.truncations for e in episodes]), data.ends & ~data.terminals)


@needs_h5py
@pytest.mark.filterwarnings("ignore")
def test_what_minari_collects_is_read(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", exc_type=ImportError)
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    class Walk(gymnasium.Env):
        """A walk on a line that ends at 2."""

        observation_space = gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.place, self.steps = 0.0, 0
            return np.array([self.place], np.float32), {}

        def step(self, action):
            self.place, self.steps = self.place + float(action[0]), self.steps + 1
            return np.array([self.place], np.float32), self.place, self.place >= 2, self.steps >= 3, {}

    env = minari.DataCollector(Walk())
    for size in (1.0, 0.5):
        env.reset(seed=0)
        done = False
        while not done:
            *_, terminated, truncated, _ = env.step(np.array([size], np.float32))
            done = terminated or truncated
    env.create_dataset(dataset_id="walk/test-v0")
    data = read_minari(tmp_path / "walk" / "test-v0")
    np.testing.assert_allclose(data.states[:, 0], [0, 1, 0, 0.5, 1])
    np.testing.assert_allclose(data.next_states[:, 0], [1, 2, 0.5, 1, 1.5])
    assert data.terminals.tolist() == [False, True, False, False, False]
    assert data.ends.tolist() == [False, True, False, False, True]


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.npz").write_text("no archive")
    with pytest.raises(DatasetError, match=r"a\.npz cannot be read"):
        read_ogbench(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", observations=np.zeros((2, 1)), actions=np.zeros((2, 1)))
    with pytest.raises(DatasetError, match="not 'terminals'"):
        read_ogbench(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", observations=np.zeros((2, 1)), actions=np.zeros((2, 1)), terminals=np.zeros(2))
    with pytest.raises(DatasetError, match=r"terminals\[1\] is 0"):
        read_ogbench(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", observations=np.zeros((3, 1)), actions=np.zeros((2, 1)), terminals=np.ones(2))
    with pytest.raises(DatasetError, match="3 observations, 2 actions"):
        read_ogbench(tmp_path / "d.npz")


def test_ogbench_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(DatasetError, match=r"terminals\[4\] is true"):
        write_ogbench(tmp_path / "set.npz", some_data(terminal=True))
    with pytest.raises(DatasetError, match=r"suffix \.npz"):
        write_ogbench(tmp_path / "set.hdf5", some_data())


@needs_h5py
def test_minari_directories_that_do_not_fit_are_refused(tmp_path):
    import h5py

    with pytest.raises(DatasetError, match=r"holds none of main_data\.hdf5"):
        read_minari(tmp_path)
    folder = write_minari(tmp_path / "set", some_data(), dataset_id="edgesafe/test-v0")
    with pytest.raises(DatasetError, match="is not empty"):
        write_minari(tmp_path / "set", some_data(), dataset_id="edgesafe/test-v0")
    with pytest.raises(DatasetError, match=r"'achieved_goal' is none of them"):
        read_minari(folder, observation_key="achieved_goal")
    assert json.loads((folder / "metadata.json").read_text())["total_episodes"] == 3
    with h5py.File(folder / "main_data.hdf5", "a") as content:
        del content["episode_1/actions"]
        content["episode_1/actions"] = np.zeros((5, 2))
        for name in ("episode_0", "episode_2"):
            del content[name]
    with pytest.raises(DatasetError, match=r"episode_1: 2 observations for 5 actions"):
        read_minari(folder)


# Layouts that look alike: two trajectories of two steps, the second of which ends the world.
OBSERVATIONS = np.array([[0.0], [1.0], [10.0], [11.0]])
D4RL = {
    "observations": OBSERVATIONS,
    "actions": np.array([[0.1], [0.2], [0.3], [0.4]]),
    "rewards": np.array([1.0, 2.0, 3.0, 4.0]),
    "next_observations": OBSERVATIONS + 1,
    "terminals": np.array([0, 0, 0, 1]),
    "timeouts": np.array([0, 1, 0, 0]),
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"terminals": np.array([False, False, False, True])},
        {"terminals": np.array([[0], [0], [0], [1]])},
        # OGBench's own loader: terminals end trajectories, masks say where the world ended.
        {"timeouts": None, "terminals": np.array([0, 1, 0, 1]), "masks": np.array([1.0, 1.0, 1.0, 0.0])},
    ],
)
def test_files_with_the_layout_of_d4rl_keep_transitions_rewards_and_ends(tmp_path, changes):
    arrays = {name: array for name, array in {**D4RL, **changes}.items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    data = read_ogbench(tmp_path / "a.npz")
    assert data.states[:, 0].tolist() == [0, 1, 10, 11]
    assert data.next_states[:, 0].tolist() == [1, 2, 11, 12]
    assert data.rewards.tolist() == [1, 2, 3, 4]
    assert data.ends.tolist() == [False, True, False, True]
    assert data.terminals.tolist() == [False, False, False, True]


def test_timeouts_without_next_observations_end_trajectories(tmp_path):
    arrays = {**D4RL, "terminals": np.zeros(4)}
    del arrays["next_observations"]
    np.savez(tmp_path / "a.npz", **arrays)
    data = read_ogbench(tmp_path / "a.npz")
    assert data.states[:, 0].tolist() == [0, 10]
    assert data.next_states[:, 0].tolist() == [1, 11]
    assert data.ends.tolist() == [True, True]
    np.savez(tmp_path / "b.npz", **{**arrays, "terminals": D4RL["terminals"]})
    with pytest.raises(DatasetError, match=r"terminals\[3\] ends the world and the file has no next_observations"):
        read_ogbench(tmp_path / "b.npz")


def test_masks_of_ogbench_end_the_world(tmp_path):
    observations = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    np.savez(
        tmp_path / "a.npz",
        observations=observations,
        actions=np.zeros((5, 1)),
        terminals=np.array([0, 0, 1, 0, 1]),
        masks=np.array([1, 0, 1, 1, 1]),
    )
    data = read_ogbench(tmp_path / "a.npz")
    assert data.terminals.tolist() == [False, True, False]
    assert data.ends.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeouts": None}, "'next_observations' without 'timeouts' or 'masks'"),
        ({"dones": np.zeros(4)}, "has 'dones', whose meaning beside 'terminals' is not known"),
        ({"dones_float": np.zeros(4)}, "has 'dones_float'"),
        ({"next_states": np.zeros((4, 1))}, "has 'next_states'"),
        ({"truncations": np.zeros(4)}, "has 'truncations'"),
        ({"timeouts": np.zeros(3)}, "3 timeouts, 4 terminals"),
        ({"rewards": np.zeros(5)}, "5 rewards, 4 terminals"),
        ({"next_observations": np.zeros((2, 1))}, "2 next_observations, 4 terminals"),
        ({"masks": np.array([0.5, 1, 1, 1])}, r"masks of shape \(4,\): expected one 0 or 1 a row"),
    ],
)
def test_arrays_without_a_known_meaning_are_refused_by_name(tmp_path, changes, message):
    arrays = {name: array for name, array in {**D4RL, **changes}.items() if array is not None}
    if "timeouts" in changes and changes["timeouts"] is None:
        arrays["terminals"] = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        read_ogbench(tmp_path / "a.npz")


def test_a_truncated_archive_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **D4RL)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"a\.npz cannot be read as npz"):
        read_ogbench(tmp_path / "a.npz")


def minari_files(tmp_path, episodes, *, action_space=None, observation_space=None):
    """Writes episodes, nested dictionaries of arrays, as Minari does."""
    import h5py

    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)

    def put(group, name, value):
        if isinstance(value, dict):
            for key, each in value.items():
                put(group.require_group(name), key, each)
        else:
            group[name] = value

    with h5py.File(folder / "main_data.hdf5", "w") as content:
        for number, episode in enumerate(episodes):
            for name, value in episode.items():
                put(content.require_group(f"episode_{number}"), name, value)
    spaces = {"action_space": action_space, "observation_space": observation_space}
    stored = {name: json.dumps(space) for name, space in spaces.items() if space is not None}
    (folder / "metadata.json").write_text(json.dumps({"data_format": "hdf5", **stored}))
    return tmp_path / "set"


def episode(num=3, **changes):
    plain = {
        "observations": np.arange(2.0 * (num + 1)).reshape(num + 1, 2),
        "actions": np.linspace(-2, 2, num)[:, None],
        "rewards": np.zeros(num),
        "terminations": np.zeros(num, bool),
        "truncations": np.zeros(num, bool),
    }
    return {**plain, **changes}


def box(size, low, high):
    return {"type": "Box", "dtype": "float32", "shape": [size], "low": [low] * size, "high": [high] * size}


@needs_h5py
def test_the_stored_action_space_is_read(tmp_path):
    data = read_minari(minari_files(tmp_path, [episode()], action_space=box(1, -3.0, 3.0)))
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-3.0], [3.0])
    again = read_minari(write_minari(tmp_path / "copy", data, dataset_id="a/b-v0"))
    assert again.action_high.tolist() == [3.0]
    assert read_ogbench(write_ogbench(tmp_path / "copy.npz", data)).action_low.tolist() == [-3.0]
    unbounded = minari_files(tmp_path / "other", [episode()], action_space=box(1, -np.inf, np.inf))
    assert read_minari(unbounded).action_low is None


@needs_h5py
@pytest.mark.parametrize(
    ("space", "shown"),
    [
        ({"type": "Discrete", "n": 4, "start": 0}, r"action_space is Discrete\(4\)"),
        ({"type": "MultiDiscrete", "nvec": [2, 3]}, r"action_space is MultiDiscrete\(\[2, 3\]\)"),
        ({"type": "MultiBinary", "n": 2}, r"action_space is MultiBinary\(2\)"),
        (
            {"type": "Dict", "subspaces": {"a": box(1, -1, 1), "b": {"type": "Discrete", "n": 2}}},
            r"action_space\.b is D",
        ),
        ({"type": "Tuple", "subspaces": [{"type": "Text"}]}, r"action_space\._index_0 is Text"),
    ],
)
def test_spaces_that_are_not_numbers_are_refused_by_name(tmp_path, space, shown):
    with pytest.raises(DatasetError, match=shown):
        read_minari(minari_files(tmp_path, [episode()], action_space=space))
    with pytest.raises(DatasetError, match=shown.replace("action", "observation")):
        read_minari(minari_files(tmp_path / "other", [episode()], observation_space=space), observation_key=("a", "b"))


@needs_h5py
def test_nested_dictionaries_are_flattened_by_name(tmp_path):
    nested = episode(
        observations={
            "observation": np.arange(8.0).reshape(4, 2),
            "desired_goal": {"kettle": np.full((4, 3), 2.0), "burner": np.full((4, 1), 1.0)},
            "text": np.array([b"a"] * 4),
        },
        actions={"arm": np.full((3, 2), 0.5), "base": {"x": np.zeros((3, 1)), "left": np.ones((3, 1))}},
    )
    spaces = {
        "action_space": {
            "type": "Dict",
            "subspaces": {
                "base": {"type": "Dict", "subspaces": {"x": box(1, -1.0, 1.0), "left": box(1, -2.0, 2.0)}},
                "arm": box(2, -3.0, 3.0),
            },
        },
        "observation_space": {"type": "Dict", "subspaces": {"observation": box(2, -9, 9), "text": {"type": "Text"}}},
    }
    data = read_minari(minari_files(tmp_path, [nested], **spaces))
    assert data.goals[0].tolist() == [1.0, 2.0, 2.0, 2.0]
    assert data.actions[0].tolist() == [0.5, 0.5, 1.0, 0.0]
    assert data.action_high.tolist() == [3.0, 3.0, 2.0, 1.0]


@needs_h5py
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((3, 2))}, "3 observations for 3 actions: expected one more"),
        ({"rewards": np.zeros(2)}, r"rewards of shape \(2,\) for 3 actions"),
        ({"terminations": np.zeros(7, bool)}, r"terminations of shape \(7,\)"),
        ({"actions": {"a": np.zeros((3, 1)), "b": np.zeros((2, 1))}}, r"have \[3, 2\] rows"),
    ],
)
def test_one_bad_episode_is_left_out_and_named(tmp_path, caplog, changes, message):
    import re

    path = minari_files(tmp_path, [episode(), episode(**changes), episode(2)])
    data = read_minari(path)
    assert data.num_episodes == 2
    assert data.num_transitions == 5
    assert "1 of 3 episodes are left out: episode_1: " in caplog.text
    assert re.search(message, caplog.text)


def test_a_path_that_does_not_exist_is_said_before_h5py_is_missed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for name in ("nowhere", "nowhere.npz"):
        with pytest.raises(DatasetError, match=r"nowhere.* does not exist"):
            read_dataset(tmp_path / name)
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        read_minari(tmp_path / "nowhere")
    (tmp_path / "main_data.hdf5").write_bytes(b"")
    for act in (
        lambda: read_minari(tmp_path),
        lambda: write_minari(tmp_path / "new", some_data(), dataset_id="a/b-v0"),
    ):
        with pytest.raises(DatasetError, match=r"need h5py: pip install 'edgesafe-jax\[offline\]'"):
            act()


@needs_h5py
def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    (tmp_path / "main_data.hdf5").write_text("no hdf5")
    with pytest.raises(DatasetError, match="cannot be read as HDF5"):
        read_minari(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(DatasetError, match=r"metadata\.json cannot be read"):
        read_minari(tmp_path)
