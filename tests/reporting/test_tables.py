import csv
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.metrics.intervals import bootstrap_interval
from edgesafe_jax.reporting import Estimate, format_cell, make_table
from edgesafe_jax.reporting.tables import to_cell

ROWS = [
    {"model": "base", "refused": Estimate(0.06, 0.03, 0.1), "bytes": 270_000_000},
    {"model": "soft | prompt", "refused": 0.93, "loss": float("nan")},
]


def test_text_is_aligned_with_numbers_to_the_right():
    assert make_table(ROWS).to_text().splitlines() == [
        "model                    refused        bytes  loss",
        "-------------  -----------------  -----------  ----",
        "base           0.06 [0.03, 0.10]  270,000,000  -",
        "soft | prompt               0.93            -  -",
    ]


def test_markdown_has_alignment_and_no_stray_bars():
    assert make_table(ROWS, ["model", "refused", "bytes", "loss"]).to_markdown().splitlines() == [
        "| model | refused | bytes | loss |",
        "| --- | ---: | ---: | --- |",
        "| base | 0.06 [0.03, 0.10] | 270,000,000 | - |",
        "| soft \\| prompt | 0.93 | - | - |",
    ]


def test_markdown_cells_stay_on_their_line():
    assert make_table([("a\nb\\|",)], ["x"]).to_markdown().splitlines()[-1] == "| a b\\\\\\| |"


def test_digits_by_column_and_rows_as_sequences():
    table = make_table([("a", 0.12345, 0.12345)], ["x", "y", "z"], digits={"y": 4})
    assert table.texts() == [["a", "0.1235", "0.12"]]
    assert table.numeric() == [False, True, True]
    assert make_table([], ["x"]).to_text() == "x\n-"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-1234567, "-1,234,567"),
        (0.0, "0.00"),
        (0.005, "0.01"),
        (0.004, "0.004"),
        (-3.21e-7, "-3.21e-07"),
        (999999.5, "999,999.50"),
        (2.5e9, "2.5e+09"),
        (Estimate(1e-4, 0.0, 0.5), "0.00 [0.00, 0.50]"),
        (Estimate(-1e-4, -0.5, 0.5), "0.00 [-0.50, 0.50]"),
        (Estimate(0.0101, 0.0046, 0.0218), "0.010 [0.005, 0.022]"),
        (Estimate(-0.05, -0.06, 0.0999), "-0.050 [-0.060, 0.100]"),
        (Estimate(3.2e-5, 3.1e-5, 3.3e-5), "0.00003 [0.00003, 0.00003]"),
        (Estimate(3.2e-7, 3.1e-7, 3.3e-7), "3.2e-07 [3.1e-07, 3.3e-07]"),
        (Estimate(0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (None, "-"),
        (float("inf"), "-"),
        (np.float32(0.5), "0.50"),
        (np.int64(1000), "1,000"),
        (jnp.float32(0.25), "0.25"),
        (jnp.int32(3), "3"),
        (jnp.bool_(True), "yes"),
        (SimpleNamespace(estimate=0.5, low=0.4, high=0.6), "0.50 [0.40, 0.60]"),
        (SimpleNamespace(value=0.5, low=0.4, high=float("nan")), "0.50"),
        (Estimate(float("nan"), 0.0, 1.0), "-"),
    ],
)
def test_cells(value, text):
    assert format_cell(to_cell(value)) == text


def test_intervals_of_the_metrics_are_cells():
    interval = bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    assert to_cell(interval) == Estimate(0.75, interval.low, interval.high)


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match=r"row 0 has 'b', which is none of the columns \['a'\]"):
        make_table([{"b": 1}], ["a"])
    with pytest.raises(ValueError, match=r"row 1 is \(1, 2\): expected 1 values"):
        make_table([(1,), (1, 2)], ["a"])
    with pytest.raises(ValueError, match="row 0 is 'a'"):
        make_table(["a"], ["a"])
    with pytest.raises(ValueError, match="needs columns"):
        make_table([])
    with pytest.raises(TypeError, match=r"cannot show \[1\] of type list"):
        make_table([([1],)], ["a"])


def test_csv_has_full_numbers_and_the_ends_of_intervals_in_columns_of_their_own():
    table = make_table([{"a": 'x, "y"', "rate": Estimate(1 / 3, 0.25, 0.5), "n": 3}, {"a": "z", "rate": None, "n": 4}])
    rows = list(csv.reader(table.to_csv().splitlines()))
    assert rows[0] == ["a", "rate", "rate low", "rate high", "n"]
    assert rows[1] == ['x, "y"', str(1 / 3), "0.25", "0.5", "3"]
    assert rows[2] == ["z", "", "", "", "4"]


def test_latex_escapes_what_it_would_read_as_commands():
    latex = make_table([{"a_b": r"50 % & $x^2$ \n {} ~#", "n": 3}]).to_latex("of_it")
    assert r"a\_b & n \\" in latex
    assert r"50 \% \& \$x\textasciicircum{}2\$ \textbackslash{}n \{\} \textasciitilde{}\# & 3 \\" in latex
    assert r"\begin{tabular}{lr}" in latex
    assert r"\caption{of\_it}" in latex
