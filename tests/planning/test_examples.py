"""The examples in the docstrings of planning run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["noise", "planner", "knots", "icem", "mppi", "risk", "simulators", "mpc"])
def test_the_examples_run(name):
    module = importlib.import_module(f"edgesafe_jax.planning.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
