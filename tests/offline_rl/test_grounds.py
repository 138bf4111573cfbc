"""Uneven grounds: where their translations are symmetries and where not, by their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import is_wrong
from edgesafe_jax.offline_rl import tasks
from edgesafe_jax.offline_rl.grounds import make_patches, make_river
from edgesafe_jax.offline_rl.pipeline import SymmetrySettings, see_kinds
from edgesafe_jax.offline_rl.relabelling import LearningError


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


def test_ice_slopes_and_sand_drags():
    step = make_patches().step
    moving = jnp.array([-1.4, -0.7, 1.0, 0.0])
    np.testing.assert_allclose(step(moving, jnp.zeros(2))[2:], [1 - 0.1 * (2 * 1 + 2.7), 0.0], atol=1e-6)
    np.testing.assert_allclose(step(moving.at[1].set(0.5), jnp.zeros(2))[2:], [1 - 0.1 * 4, 0.0], atol=1e-6)
    np.testing.assert_allclose(step(_rest(1.0, 0.5), jnp.array([0.9, 0.0])), _rest(1.0, 0.5), atol=1e-5)


def test_the_map_of_the_patches_shows_where_the_law_changes():
    task = make_patches()
    places = jax.random.uniform(jax.random.key(0), (500, 2), minval=-1.9, maxval=1.9)
    states = jnp.concatenate([places, jnp.zeros((500, 2))], 1)
    sand, ice = np.asarray(jax.vmap(task.kinds)(states) > 0.5).T
    slides = np.asarray(jax.vmap(lambda state: task.step(state, jnp.zeros(2))[2])(states))
    np.testing.assert_allclose(slides[ice], -0.27, atol=0.02)
    np.testing.assert_allclose(slides[sand], 0.0, atol=0.02)
    assert 0.2 < np.mean(ice) < 0.5
    assert 0.4 < np.mean(sand) < 0.8


def test_translations_within_a_kind_are_symmetries_and_between_kinds_none():
    task = make_patches()
    data = tasks.generate(jax.random.key(0), task, num_episodes=20).transitions()
    free = np.all(np.abs(np.asarray(data.next_states)[:, :2]) < 1.99, axis=1)
    found = data.take(free)
    kind = jax.vmap(lambda state: jnp.where(jnp.max(task.kinds(state)) > 0.7, jnp.argmax(task.kinds(state)), -1))
    places = jax.random.uniform(jax.random.key(1), (len(found.states), 8, 2), minval=-1.8, maxval=1.8)
    elements = places - found.states[:, None, :2]
    led = jax.vmap(jax.vmap(lambda place: kind(_rest(*place)[None])[0]))(places)
    own = np.asarray(kind(found.states))[:, None]
    clear, same = (own >= 0) & (np.asarray(led) >= 0), np.asarray(led) == own
    wrong = is_wrong(task.step, task.group, elements, found, tolerance=task.tolerance)
    assert wrong[clear & same].mean() < 0.005  # some reach a bound at once
    assert wrong[clear & ~same].mean() > 0.95


def test_a_law_by_kind_needs_a_map(river):
    task, data = river
    assert see_kinds(task, data.transitions(), SymmetrySettings()) is None
    with pytest.raises(LearningError, match=r"needs `Task\.kinds`, which the task 'river' lacks"):
        see_kinds(task, data.transitions(), SymmetrySettings(by_kind=True))
    for bad in ({"along": (0,)}, {"declare_domain": False}):
        with pytest.raises(LearningError, match="expected a declared domain and no axes"):
            SymmetrySettings(by_kind=True, **bad)
