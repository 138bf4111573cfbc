"""The registry of benchmarks and what is said of the machine; nothing is timed here."""

import inspect
import json

import jax
import pytest

from edgesafe_jax import planning
from launch import bench, bench_batches, benchmarking
from tests.launch import cli


def test_the_machine_is_described():
    about = bench.machine()
    assert about["num_devices"] == jax.device_count()
    assert about["jax"] == jax.__version__
    assert about["device"] == str(jax.devices()[0])
    assert about["cpu_count"] >= 1
    assert about["load_before"] >= 0
    assert json.loads(json.dumps(about)) == about


def test_suites_can_be_called_without_arguments():
    assert "align" in bench.SUITES
    for suite in bench.SUITES.values():
        inspect.signature(suite).bind()


def test_a_suite_is_printed_and_kept(monkeypatch, capsys, tmp_path):
    result = {"rows": [{"step": "a step", "median (s)": 0.25}], "values": {"a_step/median_seconds": 0.25}}
    monkeypatch.setattr(bench, "SUITES", {"align": lambda: result})
    cli.run(monkeypatch, bench, f"--workdir={tmp_path}/b")
    shown = capsys.readouterr().out
    assert "a step" in shown
    assert "0.250" in shown
    assert f"jax={jax.__version__}" in shown
    stored = json.loads((tmp_path / "b" / "bench_align.json").read_text())
    assert stored["rows"] == result["rows"]
    assert stored["machine"]["jax"] == jax.__version__
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert summary == {"bench_align/a_step/median_seconds": 0.25}


def test_batches_of_problems_in_one_call_and_over_devices(monkeypatch, capsys):
    monkeypatch.setattr(bench_batches, "_products_per_second", lambda rows, size: 1e9)
    task = planning.double_integrator()
    wanted = [bench_batches._Batch(2), bench_batches._Batch(2, population="padded", devices=2, singles=False)]
    rows, values, points = bench_batches._batches(task, wanted, budget=50, step_flops=1000, num_runs=1)
    assert [row["devices"] for row in rows] == [1, 2]
    assert "batch / single plans" in rows[0]
    assert "batch / single plans" not in rows[1]
    for row, label in zip(rows, ("2", "2/padded/2_devices"), strict=True):
        rate = values[f"double_integrator/{label}/plans_per_second"]
        assert row["samples / s"] == pytest.approx(rate * row["trajectories"] * task.horizon)
        fraction = values[f"double_integrator/{label}/fraction_of_square_products"]
        assert fraction == pytest.approx(row["samples / s"] * 1000 / 1e9)
    assert len(points) == 2
    assert capsys.readouterr().err.count("problems=2") == 2


def test_products_are_counted(monkeypatch):
    monkeypatch.setattr(benchmarking, "timed", lambda run: (0.5, 0.5, None))
    rows, size = 10_000, 100
    repeats = 100  # of 2e8 operations, about 2e10 in all, in half a second
    assert bench_batches._products_per_second(rows, size) == pytest.approx(2 * rows * size**2 * repeats / 0.5)
