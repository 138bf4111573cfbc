"""Planning to goals on models of the world."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import Prediction
from edgesafe_jax.offline_rl import tasks
from edgesafe_jax.offline_rl.planned import PlanSettings, axis_shifts, make_plan_evaluator, seconds_per_plan
from edgesafe_jax.offline_rl.relabelling import LearningError

SETTINGS = PlanSettings(horizon=8, num_iterations=2, num_samples=24, num_episodes=4)
TASK = dataclasses.replace(tasks.make_point_mass(), horizon=30)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Truth:
    """Two members that both know the true world, or one pulled aside by a current."""

    pulled: bool = False
    num_members: int = 2

    def member(self, index):
        return _Member(jnp.where(self.pulled & (index == 1), 1.0, 0.0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Member:
    pull: jax.Array

    def predict(self, state, action):
        after = TASK.step(state, action) + self.pull * jnp.array([0.0, 0.0, 0.0, 3.0])
        return Prediction(after, jnp.zeros(4), jnp.zeros(4))


@pytest.fixture(scope="module")
def found():
    evaluate = make_plan_evaluator(TASK, SETTINGS)
    models = {"true": None, "members": _Truth(), "pulled": _Truth(pulled=True)}
    stratum = TASK.strata["in distribution"]
    return {name: evaluate(jax.random.key(3), model, stratum) for name, model in models.items()}


def test_plans_on_the_true_world_reach_their_goals(found):
    assert found["true"].success.shape == (1, 4)
    assert np.all(np.asarray(found["true"].success))


def test_members_that_know_the_world_plan_as_the_world_itself(found):
    np.testing.assert_allclose(found["members"].final_distance, found["true"].final_distance, atol=1e-3)
    np.testing.assert_array_equal(found["members"].goal_distance, found["true"].goal_distance)


def test_a_member_that_is_wrong_is_weighed_by_the_risk(found):
    assert np.mean(np.asarray(found["pulled"].final_distance)) > np.mean(np.asarray(found["true"].final_distance))


def test_a_plan_is_timed_by_itself():
    assert 0 < seconds_per_plan(TASK, None, SETTINGS, num_plans=2) < 1


def test_shifts_go_along_the_axes_both_ways():
    assert axis_shifts(TASK.group, 0.5).tolist() == [[0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]


def test_settings_out_of_range_are_refused():
    for bad in ({"shift": 0.0}, {"num_samples": 0}, {"worst_fraction": 1.5}, {"exceptions": -0.1}):
        with pytest.raises(LearningError, match=next(iter(bad))):
            PlanSettings(**bad)
