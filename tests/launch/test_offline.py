"""Symmetry tests and offline policies from the command line: what they leave, and what they refuse."""

import json

import jax
import numpy as np
import pytest

from configs.offline_rl import get_config
from edgesafe_jax.offline_rl import make_dataset, tasks
from edgesafe_jax.offline_rl.formats import write_ogbench
from edgesafe_jax.offline_rl.learners import LEARNERS, make_learner
from edgesafe_jax.offline_rl.symmetry_cases import CASES
from edgesafe_jax.training import write_summary
from launch import offline, train
from tests.launch import cli

# ml_collections reads config files by it.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

RL = "--config=configs/offline_rl.py:runlocal"
TESTS = "--config=configs/dynamics_equivariance.py:runlocal"


def test_policies_are_trained_reported_and_resumed(monkeypatch, capsys, tmp_path):
    # The data come from a file, so that reading is part of it.
    data = tasks.generate(jax.random.key(0), tasks.make_point_mass(), num_episodes=120)
    path = write_ogbench(tmp_path / "data.npz", data)
    arguments = (RL, f"--workdir={tmp_path}/run", f"--config.data.path={path}", "--config.methods=('her_learned',)")
    cli.run(monkeypatch, train, *arguments)
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    for stratum in ("in_distribution", "far_goals", "far_corner", "whole_arena"):
        name = f"offline_rl/her_learned/{stratum}"
        assert 0 <= summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"] <= 1
    assert summary["offline_rl/symmetry/coverage_after"] >= 0
    assert summary["offline_rl/model/error of 5 steps"] > summary["offline_rl/model/error of 1 step"] > 0
    assert "offline_rl/symmetry_fresh/accepted" not in summary  # a file has no fresh episodes
    lines = (run / "methods" / "her_learned" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    # At most the share that the config asks for, where an element was accepted.
    assert 0 <= json.loads(lines[-1])["augmented"] <= 0.9
    assert (run / "report.html").read_text().count("data:image/png") >= 3
    assert "her_learned" in capsys.readouterr().out
    cli.run(monkeypatch, train, *arguments)  # nothing is left to train
    assert json.loads((run / "summary.json").read_text()) == summary


def test_translations_are_checked_on_fresh_episodes(monkeypatch, tmp_path):
    arguments = (RL, f"--workdir={tmp_path}/run", "--config.methods=('her_learned',)")
    cli.run(monkeypatch, train, *arguments, "--config.fresh_episodes=3")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    name = "offline_rl/symmetry_fresh"
    fractions = [summary[f"{name}/{v}"] for v in ("verified", "extrapolated", "rejected", "inconclusive")]
    assert sum(fractions) == pytest.approx(1)
    if summary[f"{name}/accepted"]:
        # Of three episodes nothing is known for sure.
        low, estimate, high = (summary[f"{name}/wrong_among_accepted{end}"] for end in ("_low", "", "_high"))
        assert low <= estimate <= high
        assert high > 0.5


def test_whole_runs_are_put_together(monkeypatch, capsys, tmp_path):
    made = []

    def one(config, workdir):
        made.append((config["seed"], config["num_runs"]))
        strata = {"far_goals": 0.1 * config["seed"], "far_goals_low": 0.0, "far_goals_high": 1.0}
        values = {f"her_learned/{name}": value for name, value in strata.items()}
        values |= {"symmetry/accepted": 0.5, "symmetry/wrong_among_accepted": 0.01 * config["seed"]}
        values |= {"symmetry_fresh/wrong_among_accepted": float("nan")}  # a run that accepted nothing
        write_summary(workdir, "offline_rl", values)

    monkeypatch.setattr(offline, "train_policies", one)
    arguments = (RL, f"--workdir={tmp_path}/run", "--config.methods=('her_learned',)", "--config.seed=1")
    cli.run(monkeypatch, train, *arguments, "--config.num_runs=3")
    assert made == [(1, 1), (2, 1), (3, 1)]
    cli.run(monkeypatch, train, *arguments, "--config.num_runs=4")  # one more; the finished ones are read
    assert made[3:] == [(4, 1)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = {key.removeprefix("offline_rl_runs/"): value for key, value in summary.items()}
    assert found["num_runs"] == 4
    assert found["her_learned/far_goals"] == pytest.approx(0.25)  # the mean of the two in the middle
    assert found["her_learned/far_goals_lowest"] == pytest.approx(0.1)
    assert 0.1 <= found["her_learned/far_goals_low"] < 0.25 < found["her_learned/far_goals_high"] <= 0.4
    assert found["symmetry/wrong_among_accepted_highest"] == pytest.approx(0.04)
    assert "symmetry_fresh/wrong_among_accepted" not in found
    assert "far goals" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    # A run of another config in its place is not taken for one of these.
    changed = (*arguments[:2], "--config.methods=('her',)")
    message = cli.refused(monkeypatch, capsys, train, *changed, "--config.seed=1", "--config.num_runs=2")
    assert "holds a run with another configuration" in message
    message = cli.refused(monkeypatch, capsys, train, RL, f"--workdir={tmp_path}/none", "--config.num_runs=0")
    assert "config.num_runs=0: expected at least 1" in message


def test_a_file_without_goals_pursues_where_it_ended(tmp_path):
    task = tasks.make_point_mass()
    data = tasks.generate(jax.random.key(0), task, num_episodes=3)
    path = write_ogbench(tmp_path / "data.npz", data.replace(goals=np.zeros((150, 0), np.float32)))
    config = get_config()
    config.data.path = str(path)
    found = offline.load_data(config, task)
    last = data.next_states[data.last_rows()][:, :2]
    np.testing.assert_allclose(found.goals, last, atol=1e-6)
    np.testing.assert_allclose(found.rewards, -np.linalg.norm(data.next_states[:, :2] - last, axis=1), atol=1e-5)


def test_symmetries_are_tested_and_reported(monkeypatch, tmp_path):
    cli.run(monkeypatch, train, TESTS, f"--workdir={tmp_path}/run", "--config.cases=('velocity_shift',)")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    fractions = [
        summary[f"dynamics/velocity_shift/{v}"] for v in ("verified", "extrapolated", "rejected", "inconclusive")
    ]
    assert sum(fractions) == pytest.approx(1)
    assert "dynamics/velocity_shift/scale_4/false acceptance" in summary
    assert summary["dynamics/velocity_shift/scale_1/could be rejected"] > 0.1
    assert 0 <= summary["dynamics/velocity_shift/model/inside the 90 % interval"] <= 1
    assert (tmp_path / "run" / "report.html").exists()


def test_what_means_nothing_is_refused(monkeypatch, capsys, tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    message = cli.refused(monkeypatch, capsys, train, RL, workdir, "--config.methods=('magic',)")
    assert "config.methods='magic'" in message
    assert "her_learned" in message
    message = cli.refused(monkeypatch, capsys, train, TESTS, workdir, "--config.cases=('magic',)")
    assert "config.cases='magic'" in message
    message = cli.refused(monkeypatch, capsys, train, RL, workdir, "--config.data.fractions.training=0.9")
    assert "expected positive fractions that add up to 1" in message
    for config in (RL, TESTS):
        message = cli.refused(monkeypatch, capsys, train, config, workdir, "--config.alpha=0.001")
        assert "config.alpha=0.001 needs 999 calibration episodes" in message
    assert not (tmp_path / "run").exists()
    message = cli.refused(monkeypatch, capsys, train, RL, workdir, "--config.updates_per_step=3")
    assert "num_updates=8: expected a multiple of updates_per_step, 3" in message


def test_data_of_another_world_are_refused(monkeypatch, capsys, tmp_path):
    states = np.zeros((4, 4))
    ends = np.array([0, 0, 0, 1])
    goals = np.zeros((4, 3))
    data = make_dataset(
        states=states, actions=np.zeros((4, 2)), rewards=np.zeros(4), next_states=states, ends=ends, goals=goals
    )
    path = write_ogbench(tmp_path / "data.npz", data)
    message = cli.refused(monkeypatch, capsys, train, RL, f"--workdir={tmp_path}/run", f"--config.data.path={path}")
    assert "goals of" in message
    assert "have 3 dimensions, the task 'point_mass' has 2" in message


def test_every_named_learner_and_case_can_be_made():
    for name in LEARNERS:
        config = get_config()
        config.learner.name = name
        assert make_learner(**config.learner).batches_per_call >= 1
    for case in CASES.values():
        task = case.task()
        assert case.group(task).sizes == task.sizes
        assert len(task.tolerance) == task.sizes.state
