"""Batches of planning problems: what is counted; nothing is timed here."""

import pytest

from edgesafe_jax import planning
from edgesafe_jax.benchmarks import batches, harness


def test_batches_of_problems_in_one_call_and_over_devices(monkeypatch, capsys):
    monkeypatch.setattr(batches, "_products_per_second", lambda rows, size: 1e9)
    task = planning.double_integrator()
    wanted = [batches._Batch(2), batches._Batch(2, population="padded", devices=2, singles=False)]
    rows, values, points = batches._batches(task, wanted, budget=50, step_flops=1000, num_runs=1)
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
    monkeypatch.setattr(harness, "timed", lambda run: (0.5, 0.5, None))
    rows, size = 10_000, 100
    repeats = 100  # of 2e8 operations, about 2e10 in all, in half a second
    assert batches._products_per_second(rows, size) == pytest.approx(2 * rows * size**2 * repeats / 0.5)
