"""The registry of benchmarks and what is said of the machine; nothing is timed here."""

import inspect
import json

import jax

from launch import bench
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
