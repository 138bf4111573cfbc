"""Tasks of dm_control's suite: its rewards at given states, its control steps, and starts to plan from."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.planning.suite_tasks import DEFINITIONS, suite_task, tolerance

STATES = ((1, 0.1, 4.0), (3, 0.8, 20.0))
"""Seed, and noise on positions and on velocities."""

# Control step, and the rewards that dm_control 1.0.50 computes in these states.
EXPECTED = {
    "cartpole_balance": (0.01, 0.5245471, 0.07173655),
    "cartpole_swingup": (0.01, 0.5245471, 0.07173655),
    "pendulum_swingup": (0.02, 1, 0),
    "acrobot_swingup": (0.01, 1, 0.0641635),
    "cheetah_run": (0.01, 0.09624783, 1),
    "walker_stand": (0.025, 0.9999318, 0.9930727),
    "walker_walk": (0.025, 0.1666553, 0.9930727),
    "walker_run": (0.025, 0.1666553, 0.7018097),
    "hopper_stand": (0.02, 0.9631585, 0.9333236),
    "hopper_hop": (0.02, 0.9283056, 0),
    "finger_spin": (0.02, 0, 0),
    "reacher_easy": (0.02, 1, 0),
    "ball_in_cup_catch": (0.02, 0, 0),
}


def given_state(task, seed, position_noise, velocity_noise):
    rng, model = np.random.default_rng(seed), task.world.model
    data = mujoco.MjData(model)
    data.qpos[:] += position_noise * rng.normal(size=model.nq)
    data.qvel[:] = velocity_noise * rng.normal(size=model.nv)
    action = rng.uniform(task.low, task.high)
    mujoco.mj_forward(model, data)
    return task.world.state_of(data, (0.2, 0.05) if task.name == "reacher_easy" else ()), action


def features_of(task, state):
    return task.world.view(jnp.asarray(state.features, jnp.float32))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_rewards_and_steps_are_those_of_the_suite(name):
    task = suite_task(name, num_threads=1)
    control_step, *rewards = EXPECTED[name]
    assert task.control_step == pytest.approx(control_step)
    assert (task.name, task.episode_length) == (name, 1000)
    for given, reward in zip(STATES, rewards, strict=True):
        state, action = given_state(task, *given)
        goal, features = jnp.asarray(state.goal, jnp.float32), features_of(task, state)
        result = task.cost(features, jnp.asarray(action, jnp.float32), features, goal)
        assert result.reward == pytest.approx(reward, abs=1e-5)
        assert result.cost == -result.reward
    first, second, other = (task.reset(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.physics, second.physics)
    assert (first.physics != other.physics).any()
    assert np.isfinite(first.physics).all()


def test_tolerance_by_hand():
    x = jnp.array([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0])
    np.testing.assert_array_equal(tolerance(x, 0, 1), [0, 1, 1, 1, 0, 0, 0])
    near = jnp.array([1.0, 1.5, 2.0])
    np.testing.assert_allclose(tolerance(near, 0, 1, margin=1), [1, 0.1**0.25, 0.1], rtol=1e-5)
    linear = tolerance(near, 0, 1, margin=1, shape="linear", at_margin=0.5)
    np.testing.assert_allclose(linear, [1, 0.75, 0.5])
    quadratic = tolerance(near, 0, 1, margin=1, shape="quadratic", at_margin=0)
    np.testing.assert_allclose(quadratic, [1, 0.75, 0])
    assert tolerance(jnp.float32(9.0), 1, np.inf, margin=1) == 1


def test_the_goal_of_a_reacher_is_within_reach_and_a_plan_goes_there():
    task = planning.make_task("mujoco", "reacher_easy", num_threads=1)
    state = task.reset(jax.random.key(0))
    assert 0.05 <= np.linalg.norm(state.goal) <= 0.2
    outcomes = task.simulator()(state, jnp.zeros((2, 3, 2)))
    assert outcomes.cost.shape[0] == 2
    assert np.isfinite(outcomes.cost).all()


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match=r"cheetah_runs.*cheetah_run"):
        suite_task("cheetah_runs")
