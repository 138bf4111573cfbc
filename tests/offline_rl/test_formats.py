"""Files that the formats' own libraries write are read, and what is written here they read; all arrays survive."""

import importlib.util
import json

import numpy as np
import pytest

from edgesafe_jax.offline_rl.datasets import DatasetError, make_dataset
from edgesafe_jax.offline_rl.formats import read_minari, read_ogbench, write_minari, write_ogbench

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
    with pytest.raises(DatasetError, match=r"episode_1: 2 observations for 5 actions"):
        read_minari(folder)
