"""Worlds of one's own: from a callable and a data file to trained policies, with a simulator and without one."""

import json

import jax
import numpy as np
import pytest

from configs import offline_rl as config_file
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.offline_rl import DatasetError, formats, tasks, worlds
from edgesafe_jax.offline_rl.datasets import concatenate
from edgesafe_jax.offline_rl.relabelling import LearningError
from launch import offline

OWN = """
from edgesafe_jax.offline_rl import tasks

def measured():
    like = tasks.make_point_mass()
    return tasks.make_data_task(
        "bench", group=like.group, achieved=like.achieved, tolerance=like.tolerance, domain=like.domain
    )

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_bench.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def data():
    return tasks.generate(jax.random.key(0), tasks.make_point_mass(), num_episodes=120)


def test_files_keep_the_name_of_the_world_and_another_world_refuses_them(tmp_path, data):
    assert data.world == "point_mass"
    read = formats.read_dataset(formats.write_ogbench(tmp_path / "data.npz", data))
    assert read.world == "point_mass"
    with pytest.raises(DatasetError, match=r"data\.npz is of the world 'point_mass', the task is 'river'"):
        tasks.fit_dataset(worlds.make_world("river"), read, source="data.npz")
    tasks.fit_dataset(worlds.make_world("river"), read.replace(world=""))  # nothing says of which world it is
    assert concatenate([data, data.replace(world="")]).world == "point_mass"
    with pytest.raises(DatasetError, match="of the worlds"):
        concatenate([data, data.replace(world="river")])


def test_minari_files_keep_it_too(tmp_path, data):
    pytest.importorskip("h5py")
    formats.write_minari(tmp_path / "minari", data, dataset_id="own/point-mass-v0")
    assert formats.read_dataset(tmp_path / "minari").world == "point_mass"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rivr", "river"),
        ("no_such_module:make", "cannot be imported"),
        ("my_bench:missing", "cannot be imported"),
        ("my_bench:number", "gives a int: expected module:callable"),
        (":make", "cannot be imported"),
    ],
)
def test_names_that_make_no_world_say_what_was_expected(own, name, message):
    with pytest.raises(ConfigError, match=message):
        worlds.make_world(name)


def test_a_world_of_data_alone_trains_and_evaluates_nothing(own, data):
    formats.write_ogbench(own / "data.npz", data.replace(world="bench"))
    config = config_file.get_config("runlocal")
    changes = {"world": "my_bench:measured", "data.path": str(own / "data.npz"), "methods": ("her_learned",)}
    config.update_from_flattened_dict(changes)
    report = offline.train_policies(config.to_dict(), own / "run")
    summary = json.loads((own / "run" / "summary.json").read_text())
    assert 0 <= summary["offline_rl/symmetry/accepted"] <= 1
    assert not any("wrong_among" in name or "in_distribution" in name for name in summary)
    assert "nothing is evaluated" in report.read_text()
    config.methods = ("her_oracle",)
    with pytest.raises(LearningError, match="'her_oracle' needs a simulator, which the task 'bench' lacks"):
        offline.train_policies(config.to_dict(), own / "other")
    with pytest.raises(tasks.TaskError, match="has no simulator"):
        tasks.generate(jax.random.key(0), worlds.make_world("my_bench:measured"), num_episodes=2)
    assert np.isfinite(summary["offline_rl/model/error of 1 step"])
