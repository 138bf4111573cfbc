"""Real time: with time enough it is the closed loop; a late plan costs what it should, by a clock that tests turn."""

import dataclasses

import jax
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import PlanningError, make_realtime, run_realtime

NUM_STEPS, KEY = 12, jax.random.key(1)


class Clock:
    """A clock that moves by one for each part of a plan, by more for some, and by what is slept."""

    def __init__(self, slow=()):
        self.now, self.slept, self.num_parts, self.slow = 0.0, 0.0, 0, dict(slow)

    def __call__(self):
        return self.now

    def work(self, result):
        self.now += self.slow.get(self.num_parts, 1.0)
        self.num_parts += 1
        return result

    def sleep(self, seconds):
        self.slept += seconds
        self.now += seconds


@pytest.fixture(scope="module")
def task():
    return planning.double_integrator()


@pytest.fixture(scope="module")
def planner(task):
    return planning.make_icem(
        task.simulator(), low=task.low, high=task.high, horizon=8, num_iterations=3, num_samples=12
    )


@pytest.fixture
def run(planner, task, monkeypatch):
    """Runs an episode of which an action lasts as long as so many parts of a plan, of which there are five."""

    def episode(parts, slow=()):
        clock = Clock(slow)
        monkeypatch.setattr(jax, "block_until_ready", clock.work)
        lasting = dataclasses.replace(task, control_step=float(parts))
        return run_realtime(planner, lasting, seed=0, num_steps=NUM_STEPS, clock=clock, sleep=clock.sleep), clock

    return episode


def test_with_time_enough_it_is_the_closed_loop(run, planner, task):
    episode, clock = run(8)
    waiting = planning.run_episode(planner, task, seed=0, num_steps=NUM_STEPS)
    np.testing.assert_allclose(episode.actions, waiting.actions, atol=1e-4)
    np.testing.assert_allclose(episode.results.cost, waiting.results.cost, rtol=1e-3, atol=1e-4)
    assert not episode.missed.any()
    assert (episode.num_iterations == 3).all()
    assert clock.slept == pytest.approx((8 - 5) * (NUM_STEPS - 1))


@pytest.mark.parametrize(("parts", "num_iterations"), [(5.5, 3), (4.5, 2), (3.5, 1)])
def test_the_search_stops_in_time(run, parts, num_iterations):
    episode, _ = run(parts)
    assert not episode.missed.any()
    assert episode.num_iterations.tolist() == [3] + [num_iterations] * (NUM_STEPS - 1)


def test_a_late_plan_is_counted_and_entered_where_it_belongs(run, planner):
    """The fourth plan in the loop is late by two actions: it has twelve units where there are five and a half."""
    before = 1 + 4 * 5 + 5  # the environment, four measurements, the plan before the start
    whole, _ = run(5.5)
    episode, _ = run(5.5, {before + 3 * 5: 10.0})
    assert np.flatnonzero(episode.missed).tolist() == [4, 5]
    assert episode.num_iterations.tolist() == [3] * 6 + [1] + [3] * (NUM_STEPS - 7)
    np.testing.assert_array_equal(episode.actions[:4], whole.actions[:4])
    # Meanwhile the plan before goes on.
    assert episode.best_cost[3] == episode.best_cost[4] == episode.best_cost[5] != episode.best_cost[6]
    assert episode.plan_seconds[6] == 12.0


def test_skipping_moves_the_warm_start(planner, task):
    clock = Clock()
    realtime = make_realtime(planner, task.reset(KEY), control_step=1.0, clock=clock)
    _, memory, _, _ = realtime.plan(KEY, realtime.init(), task.reset(KEY), None)
    once = realtime.skip(memory, 2)
    np.testing.assert_array_equal(once.mean[:-2], memory.mean[2:])
    np.testing.assert_array_equal(once.elites[:, :-2], memory.elites[:, 2:])
    assert once.has_elites


def test_what_cannot_be_in_time_is_refused_first(planner, run):
    with pytest.raises(PlanningError, match=r"one iteration takes .* ms and an action lasts .* smaller budget"):
        run(2)
    with pytest.raises(PlanningError, match="no stages"):
        make_realtime(planner._replace(stages=None), None, control_step=0.1)
    with pytest.raises(PlanningError, match="control_step=0"):
        make_realtime(planner, None, control_step=0)
