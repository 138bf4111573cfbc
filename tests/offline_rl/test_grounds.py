"""Uneven grounds: where their translations are symmetries and where not, by their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import is_wrong
from edgesafe_jax.offline_rl import tasks
from edgesafe_jax.offline_rl.grounds import make_river


@pytest.fixture(scope="module")
def river():
    task = make_river()
    return task, tasks.generate(jax.random.key(0), task, num_episodes=40)


def _rest(*place):
    return jnp.array([*place, 0.0, 0.0])


def test_the_current_acts_between_the_banks_alone():
    step = make_river().step
    np.testing.assert_allclose(step(_rest(0.5, 0.0), jnp.zeros(2))[2:], [-0.27, 0.0], atol=1e-5)
    np.testing.assert_allclose(step(_rest(0.5, 0.0), jnp.array([0.9, 0.0])), _rest(0.5, 0.0), atol=1e-5)
    np.testing.assert_allclose(step(_rest(0.5, 0.5), jnp.zeros(2))[2:], [-0.135, 0.0], atol=1e-6)  # at a bank, half
    np.testing.assert_allclose(step(_rest(0.5, 0.9), jnp.zeros(2)), _rest(0.5, 0.9), atol=1e-4)


def test_the_data_stay_on_the_left_at_all_heights(river):
    _, data = river
    places = np.asarray(data.states)[:, :2]
    assert np.mean(places[:, 0] < -0.4) > 0.99
    assert np.histogram(places[:, 1], bins=8, range=(-2, 2))[0].min() > 40


def test_moving_along_the_river_is_a_symmetry_and_across_the_banks_is_none(river):
    task, data = river
    free = np.all(np.abs(np.asarray(data.next_states)[:, :2]) < 1.99, axis=1)
    found = data.transitions().take(free & (np.abs(np.asarray(data.states)[:, 1]) < 0.3))
    for element, wrong in (((1.5, 0.0), 0.0), ((0.0, 1.2), 1.0)):
        elements = jnp.broadcast_to(jnp.array(element), (len(found.states), 1, 2))
        assert is_wrong(task.step, task.group, elements, found, tolerance=task.tolerance).mean() == wrong
