"""Real time: with time enough it is the closed loop; a late plan costs what it should, by a clock that tests turn."""

import jax
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import PlanningError, make_realtime, run_realtime

NUM_STEPS, KEY = 12, jax.random.key(1)


class Clock:
    """A clock that moves by one at each look and by what is slept."""

    def __init__(self, tick):
        self.tick, self.now, self.slept = tick, 0.0, 0.0

    def __call__(self):
        self.now += self.tick
        return self.now

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


def run(planner, task, ticks):
    """An episode on a clock of which an action lasts so many looks."""
    clock = Clock(task.control_step / ticks)
    episode = run_realtime(planner, task, seed=0, num_steps=NUM_STEPS, clock=clock, sleep=clock.sleep)
    return episode, clock


def test_with_time_enough_it_is_the_closed_loop(planner, task):
    episode, clock = run(planner, task, 100)
    waiting = planning.run_episode(planner, task, seed=0, num_steps=NUM_STEPS)
    np.testing.assert_allclose(episode.actions, waiting.actions, atol=1e-4)
    np.testing.assert_allclose(episode.results.cost, waiting.results.cost, rtol=1e-3, atol=1e-4)
    assert not episode.missed.any()
    assert (episode.num_iterations == 3).all()
    assert clock.slept > 0.8 * NUM_STEPS * task.control_step * (NUM_STEPS - 1) / NUM_STEPS


def test_the_search_stops_in_time(planner, task):
    """Of an action's time eleven looks, a plan of three iterations needs thirteen."""
    episode, _ = run(planner, task, 11)
    assert not episode.missed.any()
    assert episode.num_iterations[0] == 3  # before the clock runs
    assert set(episode.num_iterations[1:].tolist()) <= {1, 2}


def test_late_plans_are_counted_and_entered_where_they_belong(planner, task):
    """One iteration fits by its own time, but what stands around it makes every plan late by the same."""
    episode, _ = run(planner, task, 3.5)
    missed = episode.missed.tolist()
    assert not missed[0]
    period = missed.index(False, 1)
    assert period > 1
    assert missed == [number % period != 0 for number in range(NUM_STEPS)]
    # Meanwhile the plan before goes on.
    alone, _ = run(planner, task, 100)
    np.testing.assert_array_equal(episode.actions[0], alone.actions[0])
    assert episode.best_cost[0] == episode.best_cost[1]


def test_skipping_moves_the_warm_start(planner, task):
    clock = Clock(0.0)
    realtime = make_realtime(planner, task.reset(KEY), control_step=1.0, clock=clock)
    _, memory, _, _ = realtime.plan(KEY, realtime.init(), task.reset(KEY), None)
    once = realtime.skip(memory, 2)
    np.testing.assert_array_equal(once.mean[:-2], memory.mean[2:])
    np.testing.assert_array_equal(once.elites[:, :-2], memory.elites[:, 2:])
    assert once.has_elites


def test_what_cannot_be_in_time_is_refused_first(planner, task):
    with pytest.raises(PlanningError, match=r"one iteration takes .* ms and an action lasts .* smaller budget"):
        run(planner, task, 2)
    with pytest.raises(PlanningError, match="no stages"):
        make_realtime(planner._replace(stages=None), None, control_step=0.1)
    with pytest.raises(PlanningError, match="control_step=0"):
        make_realtime(planner, None, control_step=0)
