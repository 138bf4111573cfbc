import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.sweeps import Selection, expand, make_axes, make_sweep

BASE = {"rate": 0.1, "seed": 0, "name": "a", "data": {"path": "", "sizes": (1, 2)}, "fast": False}


def test_cells_are_all_combinations_with_the_last_axis_fastest():
    axes = make_axes({"seed": (0, 1), "data": {"path": ("x", "y")}}, factors={"rate": (1.0, 3.0)})
    cells = expand(BASE, axes)
    assert [axis.name for axis in axes] == ["seed", "data.path", "rate"]
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert cells[1].name == "seed=0,data.path=x,rate=x3"
    assert cells[1].config == BASE | {"rate": 0.1 * 3.0, "data": {"path": "x", "sizes": (1, 2)}}
    assert BASE["data"]["path"] == ""  # the base stays as it was


def test_a_level_changes_several_fields_and_a_factor_multiplies_what_it_set():
    levels = {"method": {"big": {"rate": 2.0, "name": "b"}, "small": {"rate": 1.0, "name": "c"}}}
    axes = make_axes({"method": ("big", "small")}, levels=levels, factors={"rate": (0.5,)})
    assert [(cell.config["rate"], cell.config["name"]) for cell in expand(BASE, axes)] == [(1.0, "b"), (0.5, "c")]


def test_changes_are_in_every_cell_and_an_axis_wins_over_them():
    cells = expand(BASE, make_axes({"seed": (4, 5)}), {"name": "z", "seed": 9, "data": {"sizes": (3,)}})
    assert [cell.config["seed"] for cell in cells] == [4, 5]
    assert all(cell.config["name"] == "z" and cell.config["data"]["sizes"] == (3,) for cell in cells)


def test_names_are_folders():
    [cell] = expand(BASE, make_axes({"name": ("../a b",)}))
    assert "/" not in cell.name
    assert " " not in cell.name
    [long] = expand(BASE, make_axes({"name": ("x" * 500,)}))
    assert len(long.name) <= 150
    assert long.name != expand(BASE, make_axes({"name": ("x" * 501,)}))[0].name


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, {}, "at least one axis"),
        ({"seed": ()}, {}, "axes.seed is empty"),
        ({"name": "abc"}, {}, "axes.name='abc': expected a tuple"),
        ({"seed": (1, 1)}, {}, "axes.seed has 1 twice"),
        ({"sede": (1,)}, {}, "'sede': expected one of .* Did you mean 'seed'"),
        ({"data": {"pth": ("x",)}}, {}, "'data.pth': expected one of .* Did you mean 'data.path'"),
        ({"seed": ("x",)}, {}, "seed='x': expected a int"),
        ({"fast": (1,)}, {}, "fast=1: expected a bool"),
        ({"method": ("big",)}, {"levels": {"method": {"small": {"rate": 1.0}}}}, "axes.method='big'"),
        ({"seed": (1,)}, {"levels": {"method": {"small": {"rate": 1.0}}}}, "levels.method belongs to no axis"),
        ({"seed": (1,)}, {"factors": {"rate": ("x",)}}, "factors.rate='x': expected numbers"),
        ({"seed": (1,)}, {"factors": {"rate": ()}}, "factors.rate is empty"),
        (
            {"method": ("big",), "rate": (1.0,)},
            {"levels": {"method": {"big": {"rate": 1.0}}}},
            "rate is set by two axes, method and rate",
        ),
        (
            {"method": ("big", "same")},
            {"levels": {"method": {"big": {"rate": 1.0}, "same": {"rate": 1.0}}}},
            "method=big and method=same have the same config",
        ),
    ],
)
def test_a_matrix_that_means_nothing_is_refused(values, options, message):
    with pytest.raises(ConfigError, match=message):
        expand(BASE, make_axes(values, **options))


MATRIX = make_axes({"name": ("a", "b", "c"), "seed": (0, 1)}, factors={"rate": (1.0, 0.3)})
RULE = Selection(search=("rate",), repeat="seed", measure={"good": 1.0, "bad": -2.0}, num_best=2)


def names(cells):
    return [cell.name for cell in cells]


def test_the_search_runs_every_method_at_the_first_value_before_the_next():
    sweep = make_sweep(BASE, MATRIX, selection=RULE)
    assert names(RULE.first(sweep.cells)) == [
        f"name={name},seed=0,rate={rate}" for rate in ("x1", "x0.3") for name in "abc"
    ]
    assert sweep.num_repeats == 2
    assert len(Selection().first(sweep.cells)) == 12  # without a rule all cells


def test_the_best_value_of_each_method_is_chosen_by_the_measure_and_the_best_methods_are_repeated():
    sweep = make_sweep(BASE, MATRIX, selection=RULE)
    results = {cell.name: {"good": 0.5, "bad": 0.1} for cell in RULE.first(sweep.cells)}
    results["name=b,seed=0,rate=x0.3"] = {"good": 0.9, "bad": 0.0}
    results["name=c,seed=0,rate=x1"] = {"good": 1.0, "bad": 0.9}
    results["name=a,seed=0,rate=x1"] = {"good": None, "bad": 0.0}
    del results["name=c,seed=0,rate=x0.3"]
    assert names(RULE.best(sweep.cells, results)) == [
        "name=b,seed=0,rate=x0.3",  # 0.9
        "name=a,seed=0,rate=x0.3",  # 0.3; its other rate has no number
        "name=c,seed=0,rate=x1",  # -0.8
    ]
    assert names(RULE.repeats(sweep.cells, results)) == ["name=b,seed=1,rate=x0.3", "name=a,seed=1,rate=x0.3"]
    # What the repeats measure does not change the choice.
    results["name=c,seed=1,rate=x1"] = {"good": 9.0, "bad": 0.0}
    assert RULE.best(sweep.cells, results)[0].name == "name=b,seed=0,rate=x0.3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": ("rate",)}, "measure is empty"),
        ({"num_best": 1, "measure": {"x": 1.0}}, "num_best=1 with no selection.repeat"),
        ({"num_best": -1}, "selection.num_best=-1"),
        ({"search": ("rat",), "measure": {"x": 1.0}}, "axis='rat'.*Did you mean 'rate'"),
        ({"search": ("seed",), "repeat": "seed", "measure": {"x": 1.0}}, "is among selection.search"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_sweep(BASE, MATRIX, selection=Selection(**options))
