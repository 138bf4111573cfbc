"""launch.results: page and table are those of the files, and a run is taken in."""

import json
import shutil
from pathlib import Path

import pytest

from configs import plan_icem
from edgesafe_jax.reporting import results as files
from edgesafe_jax.training import workdir as workdirs
from launch import results
from tests.launch import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what the command reads and writes."""
    shutil.copytree(ROOT / "configs" / "results", tmp_path / "configs" / "results")
    shutil.copy(ROOT / "configs" / "RESULTS.md", tmp_path / "configs")
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return tmp_path


def test_page_and_table_are_those_of_the_files(monkeypatch, capsys):
    cli.run(monkeypatch, results, "--check")  # of this checkout: run `python -m launch.results` where it fails
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("stale", ["configs/RESULTS.md", "README.md"])
def test_check_fails_and_writes_nothing_where_page_or_table_is_stale(checkout, monkeypatch, capsys, stale):
    path = checkout / stale
    path.write_text(path.read_text().replace("0.96 [0.93, 0.98]", "0.97 [0.93, 0.98]"))
    before = path.read_text()
    with pytest.raises(SystemExit) as caught:
        cli.run(monkeypatch, results, "--check")
    assert caught.value.code == 1
    assert capsys.readouterr().out == f"{path} disagrees with {checkout / 'configs' / 'results'}\n"
    assert path.read_text() == before
    cli.run(monkeypatch, results)
    assert path.read_text() == (ROOT / stale).read_text()


def test_a_missing_page_is_written(checkout, monkeypatch):
    (checkout / "configs" / "RESULTS.md").unlink()
    cli.run(monkeypatch, results)
    assert (checkout / "configs" / "RESULTS.md").read_text() == (ROOT / "configs" / "RESULTS.md").read_text()


def make_run(path, config, summary):
    workdir = workdirs.open_workdir(path, config)
    workdirs.write_json(workdir / "summary.json", summary)
    return workdir


def test_a_run_is_taken_in_with_the_command_that_makes_it(checkout, monkeypatch):
    config = plan_icem.get_config("door").to_dict() | {"budget": 50}
    run = make_run(
        checkout / "run", config, {"planning/return": 3.0, "planning/return_low": 2.0, "planning/return_high": 4.0}
    )
    cli.run(monkeypatch, results, f"--add={run}", "--name=my_run")
    result = files.read_result(checkout / "configs" / "results" / "my_run.json")
    assert result.command == (
        "python -m launch.plan --config=configs/plan_icem.py:door --config.budget=50 --workdir=DIR"
    )
    assert result.room == "planning"
    assert result.numbers == (files.Number("planning/return", 3.0, 2.0, 4.0),)
    assert "my_run" in (checkout / "configs" / "RESULTS.md").read_text()


def test_a_benchmark_is_taken_in_with_its_machine(checkout, monkeypatch, capsys):
    machine = {"device": "cpu", "isa": "avx2", "xla_flags": "--xla_cpu_max_isa=AVX2", "load_before": 0.5, "jax": "9.9"}
    values = {"align/step/ratio": 0.4, "align/step/ratio_low": 0.3, "align/step/ratio_high": 0.5}
    run = checkout / "run"
    run.mkdir()
    workdirs.write_json(run / "bench_all.json", {"machine": machine, "rows": [], "values": values})
    cli.run(monkeypatch, results, f"--add={run}", "--name=performance")
    result = files.read_result(checkout / "configs" / "results" / "performance.json")
    assert result.command == ("XLA_FLAGS=--xla_cpu_max_isa=AVX2 python -m launch.bench --suite=all --workdir=DIR")
    assert (result.room, result.isa, result.versions) == ("performance", "avx2", {"jax": "9.9"})
    assert result.notes == ("Load average before the run: 0.50.",)
    assert result.numbers == (files.Number("align/step/ratio", 0.4, 0.3, 0.5),)
    (run / "bench_all.json").write_text("[]")
    assert "bench_all.json: expected what" in cli.refused(monkeypatch, capsys, results, f"--add={run}")


def test_a_run_that_replaces_a_file_keeps_its_words(checkout, monkeypatch):
    path = checkout / "configs" / "results" / "plan_ablation.json"
    before = files.read_result(path)
    run = make_run(checkout / "run", plan_icem.get_config().to_dict(), {"planning/return": 3.0})
    cli.run(monkeypatch, results, f"--add={run}", "--name=plan_ablation")
    after = files.read_result(path)
    assert (after.title, after.notes) == (before.title, before.notes)
    assert after.numbers == (files.Number("planning/return", 3.0),)


def test_a_run_without_the_numbers_of_the_headlines_does_not_replace_a_file(checkout, monkeypatch, capsys):
    path = checkout / "configs" / "results" / "plan_budgets.json"
    before = path.read_text()
    run = make_run(checkout / "run", plan_icem.get_config().to_dict(), {"planning/return": 3.0})
    message = cli.refused(monkeypatch, capsys, results, f"--add={run}", "--name=plan_budgets")
    assert "headlines[0]" in message
    assert path.read_text() == before


def test_the_picture_is_drawn_from_the_files(checkout, monkeypatch):
    picture = checkout / "configs" / "results" / "overview.png"
    picture.unlink()
    cli.run(monkeypatch, results, "--picture")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=x"], "--name=x: expected letters"),
        (["--add=run", "--name=a/b"], "--name=a/b: expected letters"),
        (["--add=nowhere"], "cannot read nowhere/config.json"),
        (["--ad=run"], "ad"),
    ],
)
def test_bad_arguments_are_one_message(checkout, monkeypatch, capsys, arguments, message):
    assert message in cli.refused(monkeypatch, capsys, results, *arguments)


def test_bad_runs_are_one_message(checkout, monkeypatch, capsys):
    config = plan_icem.get_config().to_dict()
    unfinished = workdirs.open_workdir(checkout / "unfinished", config)
    assert "summary.json" in cli.refused(monkeypatch, capsys, results, f"--add={unfinished}")
    empty = make_run(checkout / "empty", config, {})
    assert "at least one number" in cli.refused(monkeypatch, capsys, results, f"--add={empty}", "--name=x")
    other = make_run(checkout / "other", {"task": "cooking"}, {"a": 1})
    assert "config.task='cooking'" in cli.refused(monkeypatch, capsys, results, f"--add={other}")


def test_a_bad_file_is_one_message(checkout, monkeypatch, capsys):
    path = checkout / "configs" / "results" / "plan_ablation.json"
    content = json.loads(path.read_text())
    del content["device"]
    path.write_text(json.dumps(content))
    assert "the field 'device' is missing" in cli.refused(monkeypatch, capsys, results, "--check")


def test_readme_without_markers_is_one_message(checkout, monkeypatch, capsys):
    (checkout / "README.md").write_text("nothing")
    assert "expected the markers" in cli.refused(monkeypatch, capsys, results)
