import pytest

from edgesafe_jax.benchmarks import kills
from edgesafe_jax.training import TrainingError


def test_random_kills_end_with_the_parameters_of_a_run_that_nothing_interrupts(monkeypatch):
    monkeypatch.setattr(kills, "NUM_KILLS", 3)
    monkeypatch.setattr(kills, "NUM_STEPS", 40)
    monkeypatch.setattr(kills, "KINDS", ("damage", "full disk", "kill"))
    result = kills.run(["tests.training.killed_run"])
    assert result["values"] == {"num_kills": 3, "same_parameters": 1, "same_steps_logged": 1}
    assert sum(row["times"] for row in result["rows"][:-3]) == 3


def test_a_command_that_fails_by_itself_is_named():
    with pytest.raises(TrainingError, match="the run that nothing interrupts failed"):
        kills.run(["tests.training.no_such_module"])
