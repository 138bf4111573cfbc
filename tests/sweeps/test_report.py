import csv
import json

import numpy as np
import pytest

from edgesafe_jax import sweeps
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.training import open_workdir, write_summary
from edgesafe_jax.training.workdir import write_outcomes

BASE = {"rate": 1.0, "seed": 0, "name": "a", "length": 5}
RULE = sweeps.Selection(search=("rate",), repeat="seed", measure={"run/held_out": 1.0}, num_best=2)
SETTINGS = sweeps.ReportSettings(
    tables={"Safety": {"refused": "run/refused", "over": "run/over"}, "Cost": {"size": "run/size"}},
    frontier=("over", "refused"),
)
REFUSED = {"a": [1, 1, 0, 1], "b": [1, 0, 0, 0], "c": [1, 1, 1, 1]}


def measure(config, workdir, shared):
    """Numbers of a cell that are known; b is best by what is selected on."""
    open_workdir(workdir, config)
    refused = np.maximum(REFUSED[config["name"]], config["name"] == "a" and config["seed"])
    held_out = {"a": 0.5, "b": 0.9, "c": 0.1}[config["name"]] + 0.01 * config["rate"] + 0.001 * config["seed"]
    mean = refused.mean()
    values = {"held_out": held_out, "over": 0.1 * config["rate"], "size": 5 * config["length"]}
    values |= {"refused": mean, "refused_low": mean - 0.1, "refused_high": mean + 0.1}
    write_summary(workdir, "run", values)
    write_outcomes(workdir, "run", {"refused": refused})


def work(cells, root):
    sweeps.run_cells(cells, root, measure)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    axes = sweeps.make_axes({"name": ("a", "b", "c"), "seed": (0, 1)}, factors={"rate": (1.0, 3.0)})
    sweep = sweeps.make_sweep(BASE, axes, selection=RULE)
    sweeps.run_sweep(sweep, root, work, sweeps.in_this_process)
    return sweep, root


def rows_of(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_methods_are_shown_at_their_best_level_best_first(ran):
    sweep, root = ran
    tables = sweeps.write_report(sweep, root, SETTINGS, title="T")
    assert list(tables) == ["Safety", "Cost", "Over the repeats", "Differences from the best method", "Search"]
    safety = rows_of(root / "tables" / "safety.csv")
    assert [(row["name"], row["rate"]) for row in safety] == [("b", "x3"), ("a", "x3"), ("c", "x3")]
    assert (float(safety[1]["refused"]), float(safety[1]["refused low"])) == (0.75, 0.65)
    repeats = rows_of(root / "tables" / "over_the_repeats.csv")
    assert [(row["method"], row["repeats"]) for row in repeats] == [("b", "2"), ("a", "2")]
    search = rows_of(root / "tables" / "search.csv")
    assert [(row["method"], float(row["x3"])) for row in search] == [("a", 0.53), ("b", 0.93), ("c", 0.13)]
    assert len(rows_of(root / "tables" / "cells.csv")) == 8  # six of the search, two repeats


def test_differences_are_paired_over_the_same_rows_and_averaged_over_the_repeats_of_both(ran):
    sweep, root = ran
    sweeps.write_report(sweep, root, SETTINGS, title="T")
    [first, second] = rows_of(root / "tables" / "differences_from_the_best_method.csv")
    # a refuses 3 of 4 rows with one seed and all with the other, b 1 of 4 with both; c was not repeated.
    assert (first["method"], first["less"], float(first["refused"])) == ("a", "b", 0.625)
    assert (second["method"], float(second["refused"])) == ("c", 0.75)
    assert float(first["refused low"]) <= 0.625 <= float(first["refused high"])


def test_html_and_latex_hold_the_tables_and_the_frontier(ran):
    sweep, root = ran
    sweeps.write_report(sweep, root, SETTINGS, title="A matrix")
    html = (root / "report.html").read_text()
    assert "A matrix" in html
    assert "refused against over by method" in html
    assert "8 finished cells of a matrix of 12" in html
    latex = (root / "tables" / "safety.tex").read_text()
    assert r"\toprule" in latex
    assert "0.75 [0.65, 0.85]" in latex
    assert len(json.loads((root / "tables" / "numbers.json").read_text())) == 8


def test_a_curve_runs_along_an_axis_of_numbers(tmp_path):
    axes = sweeps.make_axes({"length": (5, 10, 50)})
    sweep = sweeps.make_sweep(BASE, axes)
    settings = sweeps.ReportSettings(tables={"Cost": {"size": "run/size"}}, curve="length", along=("size",))
    sweeps.run_sweep(sweep, tmp_path, work, sweeps.in_this_process)
    sweeps.write_report(sweep, tmp_path, settings, title="T")
    assert "Numbers along length" in (tmp_path / "report.html").read_text()
    assert [row["size"] for row in rows_of(tmp_path / "tables" / "cost.csv")] == ["25", "50", "250"]


def test_a_report_of_part_of_a_sweep_leaves_out_what_is_not_there(tmp_path):
    axes = sweeps.make_axes({"name": ("a", "b"), "seed": (0, 1)}, factors={"rate": (1.0, 3.0)})
    sweep = sweeps.make_sweep(BASE, axes, selection=RULE)
    with pytest.raises(ConfigError, match=r"has no finished cell: run launch\.sweep first"):
        sweeps.write_report(sweep, tmp_path, SETTINGS, title="T")
    work(sweep.cells[:1], tmp_path)
    tables = sweeps.write_report(sweep, tmp_path, SETTINGS, title="T")
    assert len(tables["Safety"].rows) == 1
    assert "Differences from the best method" not in tables


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": {}}, "report.tables has no column"),
        ({"frontier": ("over", "refusd")}, "column='refusd'.*Did you mean 'refused'"),
        ({"frontier": ("over",)}, "expected two columns"),
        ({"curve": "names"}, "report.curve='names'.*Did you mean 'name'"),
        ({"curve": "name"}, "has the level 'a': expected numbers"),
    ],
)
def test_a_report_of_what_is_not_there_is_refused(ran, changes, message):
    sweep, root = ran
    given = {"tables": SETTINGS.tables, "frontier": SETTINGS.frontier} | changes
    if "tables" in changes:
        given["frontier"] = ()
    with pytest.raises(ConfigError, match=message):
        sweeps.write_report(sweep, root, sweeps.ReportSettings(**given), title="T")
