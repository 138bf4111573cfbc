"""Sweeps from the command line, on a tiny model."""

import json

import pytest

from edgesafe_jax.safety import teacher
from launch import alignment, report, sweep
from tests.launch import cli
from tests.launch.test_alignment import tiny_system  # noqa: F401

pytestmark = [
    pytest.mark.assets,  # the prompt sets
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),  # ml_collections reads configs with it
]

STUDY = "--config=configs/study_alignment.py:runlocal"
SMALL = (
    "--config.axes.method=('soft_prompt',)",
    "--config.changes.num_steps=1",
)


@pytest.fixture
def sampled(monkeypatch):
    """How often a teacher was sampled."""
    calls = []
    made = teacher.make_teacher_data

    def counted(*arguments, **options):
        calls.append(options["with_hidden"])
        return made(*arguments, **options)

    monkeypatch.setattr(teacher, "make_teacher_data", counted)
    return calls


def test_a_sweep_shares_its_teacher_repeats_the_best_and_resumes(tmp_path, monkeypatch, capsys, sampled):
    arguments = (STUDY, *SMALL, f"--workdir={tmp_path}/run")
    cli.run(monkeypatch, sweep, *arguments)
    cells = {path.name: path for path in (tmp_path / "run" / "cells").iterdir()}
    assert len(cells) == 3  # two objectives, and the second seed of the better one
    for folder in cells.values():
        assert alignment.stored_adapter(folder).exists()
        assert "alignment/strongreject/student/refused" in json.loads((folder / "summary.json").read_text())
        assert not (folder / "teacher.json").exists()
    assert len(list((tmp_path / "run" / "shared").glob("teacher_*"))) == 2  # of two seeds
    assert sampled.count(True) == 2
    assert len(list((tmp_path / "run" / "shared").glob("answers_*.json"))) == 3  # of the three sets, once
    assert "python -m launch.report" in capsys.readouterr().out

    # One cell is gone: the same command runs it alone, with the teacher that is there.
    first = next(folder for name, folder in cells.items() if "tv,seed=0" in name)
    adapter = alignment.stored_adapter(first).read_bytes()
    (first / "finished.json").unlink()
    (first / "adapter" / "adapter.safetensors").unlink()
    cli.run(monkeypatch, sweep, *arguments)
    assert alignment.stored_adapter(first).read_bytes() == adapter
    assert sampled.count(True) == 2

    capsys.readouterr()
    message = cli.refused(monkeypatch, capsys, sweep, *arguments, "--config.axes.objective=('kl',)")
    assert "axes.objective" in message
    assert "another configuration" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.base=align_soft",), "config.base='align_soft'"),
        (("--config.variant=fast",), "variant 'fast'"),
        (("--config.axes.objective=()",), "config.axes.objective is empty"),
        (("--config.axes.objective=('magic',)",), "objective=magic,seed=0,learning_rate=x1: config.objective='magic'"),
        (("--config.axes.method=('lara',)",), "config.axes.method='lara'"),
        (("--config.selection.search=('rate',)",), "config.selection: axis='rate'"),
        (("--config.factors.learning_rate=(-1.0,)",), "config.learning_rate=-0.005"),
        (("--processes=0",), "--processes=0"),
        (("--cluster=moon",), "--cluster=moon"),
        (("--cluster=local", "--cluster_options=five"), "--cluster_options=five: expected NAME=VALUE"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused_before_work_starts(tmp_path, monkeypatch, capsys, arguments, message):
    assert message in cli.refused(monkeypatch, capsys, sweep, STUDY, f"--workdir={tmp_path}/run", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_config_of_another_task_is_no_sweep(tmp_path, monkeypatch, capsys):
    given = "--config=configs/align_soft_prompt.py:runlocal"
    assert "expected 'sweep'" in cli.refused(monkeypatch, capsys, sweep, given, f"--workdir={tmp_path}/run")


PLANNERS = """
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.base, config.variant = "sweep", "plan_icem", "runlocal"
    config.changes = ml_collections.ConfigDict({"num_steps": 2, "horizon": 3})
    config.axes = ml_collections.ConfigDict({"planner": ("icem", "random_shooting"), "seed": (0,)})
    config.levels, config.factors = ml_collections.ConfigDict(), ml_collections.ConfigDict()
    config.selection = ml_collections.ConfigDict({"repeat": "seed", "measure": {"planning/return": 1.0}})
    config.report = ml_collections.ConfigDict()
    config.report.tables = {"Returns": {"return": "planning/return"}}
    return config
"""


def test_planners_are_swept_and_reported_by_the_same_commands(tmp_path, monkeypatch, capsys):
    (tmp_path / "planners.py").write_text(PLANNERS)
    cli.run(monkeypatch, sweep, f"--config={tmp_path}/planners.py", f"--workdir={tmp_path}/run")
    cli.run(monkeypatch, report, f"{tmp_path}/run")
    assert "random_shooting" in capsys.readouterr().out
    assert (tmp_path / "run" / "tables" / "returns.tex").exists()
