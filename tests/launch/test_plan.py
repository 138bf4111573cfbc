"""Planning as it is launched: episodes and studies in a work directory, resumed, reported, and refused."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgesafe_jax import planning as library
from edgesafe_jax.planning import mpc, runs, study
from edgesafe_jax.reporting import episodes
from launch import plan, planning
from tests.launch import cli

CONFIG = "configs/plan_icem.py:runlocal"
STUDY = "configs/plan_study.py:runlocal"

# ml_collections loads config files in a way that Python 3.12 no longer has.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two episodes."""
    workdir = tmp_path_factory.mktemp("plan") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        cli.run(monkeypatch, plan, f"--config={CONFIG}", f"--workdir={workdir}", "--config.num_episodes=2")
    return workdir


def test_a_run_leaves_its_returns_its_summary_and_a_report(finished):
    summary = json.loads((finished / "summary.json").read_text())
    returns = [row["return"] for row in json.loads((finished / "returns.json").read_text())]
    assert summary["planning/return"] == pytest.approx(np.mean(returns))
    assert summary["planning/num_episodes"] == 2
    assert summary["planning/return_low"] <= summary["planning/return"] <= summary["planning/return_high"]
    assert summary["planning/success"] == 1.0
    assert summary["planning/trajectories_per_plan"] == 25 + 20 + 3
    report = (finished / "report.html").read_text()
    assert "double_integrator with icem, budget 50" in report
    assert "data:image/png;base64," in report


def test_the_episode_is_that_of_the_library(finished):
    task = library.double_integrator()
    planner = library.make_icem(
        task.simulator(),
        low=task.low,
        high=task.high,
        horizon=15,
        num_iterations=2,
        num_samples=25,
        noise_beta=task.noise_beta,
    )
    episode = library.run_episode(planner, task, seed=1, num_steps=30)
    kept = np.load(finished / "episodes" / "seed_1.npz")
    np.testing.assert_allclose(kept["actions"], episode.actions, atol=1e-4)
    np.testing.assert_allclose(kept["reward"], episode.results.reward, atol=1e-4)


def test_a_run_in_real_time_says_rate_and_misses(tmp_path, monkeypatch, capsys):
    now = iter(np.arange(0.0, 1e6, 0.01))  # of the 0.1 s of an action ten looks at the clock
    clock = functools.partial(next, now)
    monkeypatch.setattr(
        runs, "run_realtime", functools.partial(library.run_realtime, clock=clock, sleep=lambda _: None)
    )
    cli.run(monkeypatch, plan, f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.realtime=True")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["planning/control_rate_hz"] == pytest.approx(1 / library.double_integrator().control_step)
    assert 0 <= summary["planning/missed_fraction"] < 1
    assert 1 <= summary["planning/iterations_per_plan"] <= 2
    assert "% of the deadlines missed" in capsys.readouterr().out


def test_a_finished_run_is_reported_again_without_planning(finished, monkeypatch):
    monkeypatch.setattr(mpc, "run_episode", None)
    before = (finished / "returns.json").read_text()
    cli.run(monkeypatch, plan, f"--config={CONFIG}", f"--workdir={finished}", "--config.num_episodes=2")
    assert (finished / "returns.json").read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.budget=60"], r"config\.budget=60: expected one of 50, 70, 100"),
        (["--config.environment=cooking"], r"config\.environment.*'cooking': expected one of double_integrator"),
        (["--config.simulator=paper"], r"config\.simulator='paper': expected one of brax, closed_form, mujoco"),
        (["--config.planner=ilqg"], r"config\.planner='ilqg': expected one of cem, dial"),
        (["--config.num_steps=0"], r"config\.num_steps=0: expected at least 1, or -1"),
        (["--config.num_episodes=0"], r"config\.num_episodes=0"),
        (["--config.horizon=-2"], r"config\.horizon=-2"),
        (["--config.icem.momentum=1.5"], r"momentum=1\.5: expected"),
        (["--config.icem.execute=worst"], r"execute='worst': expected one of best, mean"),
        (["--config.icem.cooking=1"], "cooking"),
    ],
)
def test_a_config_that_means_nothing_is_one_message(monkeypatch, capsys, tmp_path, changes, message):
    told = cli.refused(monkeypatch, capsys, plan, f"--config={CONFIG}", f"--workdir={tmp_path}/w", *changes)
    assert re.search(message, told)
    assert not (tmp_path / "w").exists()


def test_another_config_in_the_same_directory_is_refused(finished, monkeypatch, capsys):
    told = cli.refused(monkeypatch, capsys, plan, f"--config={CONFIG}", f"--workdir={finished}", "--config.seed=4")
    assert "seed: 0 there, 4 now" in told


def test_every_planner_can_be_made_with_every_budget():
    task = library.double_integrator()
    for name in library.PLANNERS:
        for budget in library.BUDGETS:
            made = library.make_planner(name, task.simulator(), task, budget=budget)
            assert 0.5 * budget <= made.num_trajectories <= 1.15 * budget + 3


def test_a_study_is_resumed_cell_by_cell(monkeypatch, tmp_path, capsys):
    run, calls = library.run_episode, []

    def counted(*arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(mpc, "run_episode", counted)
    with pytest.raises(KeyboardInterrupt):
        cli.run(monkeypatch, plan, f"--config={STUDY}", f"--workdir={tmp_path}/s")
    cli.run(monkeypatch, plan, f"--config={STUDY}", f"--workdir={tmp_path}/s")
    assert len(calls) == 1 + 6  # three cells of two seeds, and the one that was interrupted
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    for cell in ("icem/50", "cem/50", "cem/100"):
        assert f"planning_study/double_integrator/{cell}/return" in summary
    assert "iCEM needs" in capsys.readouterr().out
    assert "Return against the budget" in (tmp_path / "s" / "report.html").read_text()


def test_a_study_in_two_processes_is_that_of_one(monkeypatch, tmp_path, capsys):
    one, two = (
        [f"--config={STUDY}", f"--workdir={tmp_path}/{run}", "--config.cells.double_integrator.cem=(50,)"]
        for run in ("one", "two")
    )
    cli.run(monkeypatch, plan, *one)
    cli.run(monkeypatch, plan, *two, "--config.max_minutes=0")
    assert "0 of 4 episodes are done" in capsys.readouterr().out
    cli.run(monkeypatch, plan, *two, "--config.num_processes=2")
    kept = sorted(file.name for file in (tmp_path / "one" / "cells").glob("*.json"))
    assert len(kept) == 4
    for name in kept:
        alone, pooled = (json.loads((tmp_path / run / "cells" / name).read_text()) for run in ("one", "two"))
        assert pooled["return"] == pytest.approx(alone["return"], rel=1e-3)


def test_the_order_of_a_study_is_by_seed_and_the_longest_first():
    cells = [study.Cell("run", "cem", budget, seed, 10) for budget in (50, 500) for seed in (0, 1)]
    ordered = [(cell.seed, cell.budget) for cell in study.in_order(cells)]
    assert ordered == [(0, 500), (0, 50), (1, 500), (1, 50)]


def test_an_episode_that_diverges_is_counted_and_leaves_no_return(monkeypatch, tmp_path, capsys):
    run = library.run_episode

    def sometimes(*arguments, **options):
        if options["seed"] == 1:
            raise library.DivergedError("the cost is not finite")
        return run(*arguments, **options)

    monkeypatch.setattr(mpc, "run_episode", sometimes)
    cli.run(monkeypatch, plan, f"--config={STUDY}", f"--workdir={tmp_path}/s")
    cells = tmp_path / "s" / "cells"
    kept = [json.loads((cells / f"double_integrator-icem-50-{seed}.json").read_text()) for seed in (0, 1)]
    assert [row["return"] is None for row in kept] == [False, True]
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert summary["planning_study/double_integrator/icem/50/return"] == pytest.approx(kept[0]["return"])
    assert "diverged" in capsys.readouterr().out
    rows, values = study.study_results({("run", "icem", 50): [{"seed": 0, "return": None, "success": False}]})
    assert (rows[0]["diverged"], values) == (1, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.num_seeds=0"], r"config\.num_seeds=0"),
        (["--config.num_processes=0"], r"config\.num_processes=0: expected at least 1"),
        ([f"--config.cells.double_integrator.{name}=()" for name in ("icem", "cem")], "at least one planner"),
        (["--config.environments.double_integrator=0"], r"double_integrator=0: expected at least 1 step"),
        (["--config.simulator=mujoco"], "'double_integrator': expected one of acrobot_swingup"),
        (
            ["--config.cells.double_integrator.icem=(60,)"],
            r"config\.cells\.double_integrator\.icem=\(60,\): expected one of 50, 70",
        ),
    ],
)
def test_a_study_that_means_nothing_is_one_message(monkeypatch, capsys, tmp_path, changes, message):
    told = cli.refused(monkeypatch, capsys, plan, f"--config={STUDY}", f"--workdir={tmp_path}/w", *changes)
    assert re.search(message, told)


def cell(*returns):
    return [
        {"seed": seed, "return": value, "success": False, "plan_seconds": 0.0} for seed, value in enumerate(returns)
    ]


def test_planners_are_compared_with_icem_seed_by_seed_at_the_same_budget():
    cells = {
        ("run", "icem", 50): cell(10.0, 20.0, 60.0),
        ("run", "cem", 50): cell(7.0, 17.0, 57.0),
        ("run", "cem", 100): cell(1.0, 2.0, 3.0),
        ("walk", "cem", 50): cell(1.0, 2.0, 3.0),
        ("jump", "icem", 50): cell(1.0),
        ("jump", "cem", 50): cell(2.0),
    }
    rows, values = study.study_results(cells)
    difference = rows[1]["minus icem"]
    # Seeds differ by 50, the planners by 3 on each of them.
    assert (difference.estimate, difference.low, difference.high) == (-3.0, -3.0, -3.0)
    assert rows[1]["return"].high - rows[1]["return"].low > 10
    assert [row["minus icem"] for row in (rows[0], *rows[2:])] == [None] * 5
    assert rows[1]["icem / it"].estimate == pytest.approx(90 / 81)
    assert values["run/cem/50/return"] == 27.0


def test_samples_to_reach_the_best_rival():
    cells = {
        ("run", "icem", 50): cell(0.0, 2.0),
        ("run", "icem", 200): cell(10.0, 12.0),
        ("run", "icem", 400): cell(20.0, 20.0),
        ("run", "icem_white", 400): cell(99.0),
        ("run", "cem", 100): cell(50.0),
        ("run", "cem", 2000): cell(6.0, 6.0),
        ("run", "mppi", 2000): cell(5.0),
        ("easy", "icem", 50): cell(9.0),
        ("easy", "cem", 300): cell(8.0),
        ("hard", "icem", 50): cell(1.0),
        ("hard", "icem", 100): cell(2.0),
        ("hard", "cem", 300): cell(8.0),
        ("alone", "icem", 50): cell(9.0),
        ("partly", "icem", 50): cell(0.0, 90.0),
        ("partly", "icem", 200): cell(10.0),
        ("partly", "cem", 2000): cell(5.0, 80.0, 70.0),
        ("apart", "icem", 50): cell(9.0),
        ("apart", "cem", 300): [{"seed": 1, "return": 1.0, "success": False}],
    }
    run, easy, hard, partly = study.samples_to_reach(cells)
    # Half of the way from 1 at 50 to 11 at 200, in the logarithm: 100 samples for what CEM reaches with 2000.
    assert (run["best rival"], run["its budget"], run["its return"]) == ("cem", 2000, 6.0)
    assert (run["iCEM needs"], run["factor"]) == ("100", "20.0")
    # The first seed alone needs 6 of 0 to 10, the second 4 of 2 to 12 on the same logarithm.
    assert run["factor, 95 %"] == f"[{2000 / (50 * 4**0.6):.1f}, {2000 / (50 * 4**0.4):.1f}]"
    assert "factor, 95 %" not in easy
    assert (easy["iCEM needs"], easy["factor"]) == ("<50", ">6.0")
    assert (hard["iCEM needs"], hard["factor"]) == (">100", "<3.0")
    # Of a study that was cut short the first seed alone counts, the only one that all of these budgets have.
    assert (partly["seeds"], partly["its return"], partly["iCEM needs"], partly["factor"]) == (1, 5.0, "100", "20.0")


@pytest.mark.assets
def test_an_episode_in_mujoco_is_drawn_and_moves(monkeypatch, tmp_path):
    small = ("--config.num_steps=6", "--config.horizon=4", "--config.budget=50")
    cli.run(monkeypatch, plan, "--config=configs/plan_icem.py:halfcheetah", f"--workdir={tmp_path}/w", *small)
    with Image.open(tmp_path / "w" / "episodes" / "seed_0.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (6, 50)  # a step of HalfCheetah lasts 0.05 s
    assert "episodes/seed_0.gif" in (tmp_path / "w" / "report.html").read_text()


def test_a_long_episode_is_a_short_animation_at_its_own_speed(monkeypatch):
    asked = {}
    monkeypatch.setattr(episodes, "pose_animation", lambda poses, **options: asked.update(poses=poses, **options))
    monkeypatch.setattr(episodes, "figure_segments", lambda model, physics, mocap: physics)
    task = SimpleNamespace(control_step=0.015, world=SimpleNamespace(model=None))
    episodes.episode_animation({"physics": np.arange(1000)}, task)
    assert list(asked["poses"]) == list(range(0, 1000, 14))
    assert asked["frame_seconds"] == pytest.approx(14 * 0.015)
    episodes.episode_animation({"physics": np.arange(20)}, task)
    assert asked["frame_seconds"] == pytest.approx(0.045)


@pytest.mark.assets
def test_the_quickstart_compares_two_planners_and_draws_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(planning, "COMPARED_STEPS", 8)
    planning.compare(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"planning/icem/return", "planning/cem/return"}
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3
    kept = (tmp_path / "planning" / "icem.npz").stat().st_mtime_ns
    planning.compare(tmp_path)
    assert (tmp_path / "planning" / "icem.npz").stat().st_mtime_ns == kept
    assert "trajectories a step" in capsys.readouterr().out
