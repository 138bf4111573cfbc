import io
import json
import os

import pytest

from edgesafe_jax import sweeps
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.sweeps import runs
from edgesafe_jax.sweeps.board import Board
from edgesafe_jax.training import WorkdirError, close_workdir, locks, open_workdir, write_summary

BASE = {"rate": 1.0, "seed": 0, "name": "a"}
RULE = sweeps.Selection(search=("rate",), repeat="seed", measure={"run/good": 1.0}, num_best=1)
GOOD = {"a": 0.2, "b": 0.8}


def measure(config, workdir, shared):
    """Stands for training: the rate 3 is better than 1."""
    open_workdir(workdir, config)
    shared.mkdir(exist_ok=True)
    with (shared / "calls.txt").open("a") as calls:
        calls.write(f"{config['name']} {config['seed']} {config['rate']:g}\n")
    if (shared.parent / f"break_{config['name']}").exists():
        raise ConfigError("broken on purpose")
    write_summary(workdir, "run", {"good": GOOD[config["name"]] + (config["rate"] == 3.0), "cores": num_cores()})


def num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def work(cells, root):
    sweeps.run_cells(cells, root, measure)


def make_sweep(names=("a", "b"), **options):
    axes = sweeps.make_axes({"name": names, "seed": (0, 1)}, factors={"rate": (1.0, 3.0)})
    return sweeps.make_sweep(BASE, axes, selection=RULE, **options)


def calls(root):
    return (root / "shared" / "calls.txt").read_text().splitlines()


def run(sweep, root, launcher=sweeps.in_this_process, **options):
    root.mkdir(exist_ok=True)
    return sweeps.run_sweep(sweep, root, work, launcher, **options)


def test_the_search_is_run_then_the_repeats_of_the_best_and_nothing_twice(tmp_path):
    stream = io.StringIO()
    assert run(make_sweep(), tmp_path, stream=stream) == []
    assert calls(tmp_path) == ["a 0 1", "b 0 1", "a 0 3", "b 0 3", "b 1 3"]
    assert "name=b,seed=1,rate=x3: finished" in stream.getvalue()
    assert "2 of 5 cells; about 1 min left" in stream.getvalue()
    results = sweeps.read_results(make_sweep().cells, tmp_path)
    assert results["name=b,seed=1,rate=x3"]["run/good"] == 1.8
    run(make_sweep(), tmp_path)
    assert len(calls(tmp_path)) == 5


def test_a_cell_that_fails_ends_no_other_and_is_tried_again(tmp_path):
    (tmp_path / "break_a").touch()
    failed = run(make_sweep(), tmp_path, stream=io.StringIO())
    assert failed == [f"name=a,seed=0,rate={rate}: broken on purpose" for rate in ("x1", "x3")]
    assert calls(tmp_path)[-1] == "b 1 3"
    (tmp_path / "break_a").unlink()
    assert run(make_sweep(), tmp_path, stream=io.StringIO()) == []
    assert calls(tmp_path)[-2:] == ["a 0 1", "a 0 3"]


def test_a_measure_that_no_cell_has_is_named(tmp_path):
    rule = sweeps.Selection(search=("rate",), measure={"run/goood": 1.0})
    sweep = sweeps.make_sweep(BASE, make_sweep().axes, selection=rule)
    with pytest.raises(ConfigError, match=r"no finished cell has the number 'run/goood'.* run/good"):
        run(sweep, tmp_path, stream=io.StringIO())


def test_an_error_of_the_code_is_kept_with_its_traceback(tmp_path):
    def broken(config, workdir, shared):
        raise ZeroDivisionError("no such number")

    [cell, *_] = make_sweep().cells
    sweeps.run_cells([cell], tmp_path, broken)
    kept = json.loads((tmp_path / "cells" / cell.name / "failed.json").read_text())
    assert "no such number" in kept["message"]
    assert "ZeroDivisionError" in kept["traceback"]
    assert runs.read_state(cell, tmp_path).kind == "failed"


def test_a_cell_that_another_process_has_is_left_to_it(tmp_path, monkeypatch):
    cells = make_sweep().cells[:2]
    taken = tmp_path / "cells" / cells[0].name
    monkeypatch.setattr(locks, "acquire", lambda folder: "process 1" if folder == taken else None)
    work(cells, tmp_path)
    assert calls(tmp_path) == ["a 0 3"]
    assert runs.read_state(cells[0], tmp_path).kind == "waiting"


def test_a_running_cell_shows_its_step_and_a_killed_one_waits(tmp_path):
    [cell, *_] = make_sweep().cells
    folder = tmp_path / "cells" / cell.name
    open_workdir(folder, cell.config)
    (folder / "metrics.jsonl").write_text('{"step": 6, "time": 0.0, "eval/x": 0.5}\n')
    state = runs.read_state(cell, tmp_path)
    assert (state.kind, state.step) == ("running", 6)
    assert runs.read_state(cell, tmp_path, since=(folder / locks.OWNER).stat().st_mtime + 1).kind == "waiting"
    assert runs.read_numbers(folder) == {"eval/x": 0.5}
    close_workdir(folder)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_table_is_redrawn_in_place(tmp_path):
    sweep = make_sweep()
    board = Board(RULE.first(sweep.cells), tmp_path, RULE, num_further=1, stream=(terminal := Terminal()))
    board()
    first = terminal.getvalue()
    assert "\x1b" not in first
    assert first.splitlines()[-1] == "0 of 5 cells"
    work(sweep.cells[:1], tmp_path)
    board()
    second = terminal.getvalue().removeprefix(first)
    assert second.startswith(f"\x1b[{first.count(chr(10))}A\x1b[J")
    rows = {line.split()[0]: line.split()[1:] for line in second.splitlines()[-3:-1]}
    assert rows["a"] == ["1", "0", "0", "1", "0", "0.20"]  # finished, running, failed, waiting, seconds, best measure
    assert rows["b"][:4] == ["0", "0", "0", "2"]
    assert "1 of 5 cells; about" in second


def test_a_cell_that_holds_another_config_is_refused_before_any_work(tmp_path):
    run(make_sweep(), tmp_path, stream=io.StringIO())
    changed = sweeps.make_sweep(BASE | {"rate": 1.5}, make_sweep().axes, selection=RULE)
    with pytest.raises(WorkdirError, match=r"rate=1\.0, now 1\.5.*delete this cell"):
        run(changed, tmp_path)
    assert len(calls(tmp_path)) == 5
    # Further levels, and fields that came later, leave the cells as they are.
    wider = sweeps.make_sweep(BASE | {"new": 1}, make_sweep(("a", "b")).axes, selection=RULE)
    assert run(wider, tmp_path) == []
    assert len(calls(tmp_path)) == 5


def test_several_processes_share_the_cells_and_the_cores(tmp_path):
    assert run(make_sweep(), tmp_path, sweeps.in_processes(2), num_processes=2, stream=io.StringIO()) == []
    assert sorted(calls(tmp_path)) == sorted(["a 0 1", "b 0 1", "a 0 3", "b 0 3", "b 1 3"])
    cores = {numbers["run/cores"] for numbers in sweeps.read_results(make_sweep().cells, tmp_path).values()}
    if num_cores() > 1:
        assert max(cores) < num_cores() or num_cores() % 2


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # submitit's
def test_jobs_of_a_cluster_run_the_cells(tmp_path):
    pytest.importorskip("submitit", reason="the extra 'sweep'")
    launcher = sweeps.as_jobs(2, cluster="debug", options={"timeout_min": 5})
    assert run(make_sweep(), tmp_path, launcher, stream=io.StringIO()) == []
    assert len(calls(tmp_path)) == 5
    with pytest.raises(ConfigError, match="cluster=moon"):
        sweeps.as_jobs(2, cluster="moon")
    with pytest.raises(ConfigError, match="coffee"):
        sweeps.as_jobs(2, cluster="local", options={"coffee": 1})
