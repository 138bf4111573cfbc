"""Several suites in one run: their numbers under their names, and the ratios among them in a table."""

import pytest

from edgesafe_jax.benchmarks import everything
from edgesafe_jax.errors import ConfigError
from launch import bench


def test_numbers_of_all_and_a_table_of_ratios():
    first = {"a/median_seconds": 2.0, "a/ratio": 0.5, "a/ratio_low": 0.4, "a/ratio_high": 0.6, "ratio_of_names": 1.0}
    second = {"b/step_over_peer": 3.0, "b/over": 1.0}
    found = everything.run({"one": lambda: {"values": first}, "two": lambda: {"values": second}})
    assert [(row["suite"], row["ratio"], row["value"].estimate) for row in found["rows"]] == [
        ("one", "a/ratio", 0.5),
        ("two", "b/step_over_peer", 3.0),
    ]
    assert (found["rows"][0]["value"].low, found["rows"][0]["value"].high) == (0.4, 0.6)
    assert {name for name in found["values"] if name.startswith("one/")} == {f"one/{n}" for n in first} | {
        "one/suite_seconds"
    }
    assert found["values"]["two/b/over"] == 1.0


def test_all_are_suites_of_the_launcher():
    assert set(everything.SUITES) <= bench.SUITES.keys()
    with pytest.raises(ConfigError, match="suites is empty"):
        everything.run({})
