"""The worlds obey their laws, the scripts reach their goals, and policies are evaluated in all strata."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import PlanarRotation, is_wrong, sample_elements
from edgesafe_jax.offline_rl import Agent, interquartile_mean, make_bc, make_evaluator, seed_interval
from edgesafe_jax.offline_rl.baselines import model_rollouts, uniform_bank
from edgesafe_jax.offline_rl.datasets import Provenance
from edgesafe_jax.offline_rl.learning import Learner
from edgesafe_jax.offline_rl.tasks import TASKS, Law, Wall, arena_domain, generate, make_point_mass, make_reacher

every_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def data():
    return {name: generate(jax.random.key(0), make(), num_episodes=40) for name, make in TASKS.items()}


@every_task
def test_data_follow_the_dynamics(name, data):
    task, found = TASKS[name](), data[name]
    assert found.num_episodes == 40
    assert not found.terminals.any()
    after = jax.vmap(task.step)(found.states, found.actions)
    np.testing.assert_allclose(after, found.next_states, atol=1e-6)
    inside = found.states[~found.ends.astype(bool)]
    np.testing.assert_array_equal(found.next_states[~found.ends], found.states[np.flatnonzero(~found.ends) + 1])
    assert np.abs(inside[:, :2]).max() <= 2.0
    np.testing.assert_allclose(found.rewards, jax.vmap(task.reward)(found.next_states, found.goals), rtol=1e-6)


@pytest.mark.parametrize("make", [partial(make_point_mass, explores=False), TASKS["pusher"]])
def test_scripts_reach_most_goals(make):
    task = make()
    found = generate(jax.random.key(0), task, num_episodes=40)
    last = jax.vmap(task.achieved)(found.next_states[found.ends])
    assert np.mean(np.linalg.norm(last - found.goals[found.ends], axis=1) < task.radius) > 0.6


def test_exploring_data_do_not_seek_their_goals(data):
    task, found = TASKS["point_mass"](), data["point_mass"]
    actions, ways = np.asarray(found.actions), np.asarray(found.goals) - np.asarray(found.states)[:, :2]
    assert abs(np.corrcoef(actions[:, 0], ways[:, 0])[0, 1]) < 0.1
    np.testing.assert_allclose(actions.std(0), 1 / np.sqrt(3), rtol=0.05)  # uniform in [-1, 1]
    reached = np.asarray(task.achieved(np.asarray(found.next_states).T)).T
    assert reached.max() < 0.8  # far goals are nowhere in the data


@every_task
def test_joint_translation_is_a_symmetry_where_nothing_stands_in_the_way(name, data):
    task, found = TASKS[name](), data[name].transitions()
    small = jax.random.uniform(jax.random.key(1), (len(found.states), 1, 2), minval=-0.02, maxval=0.02)
    share = is_wrong(task.step, task.group, small, found, tolerance=np.full(task.sizes.state, 1e-4)).mean()
    assert share < (0.4 if task.walls else 0.1)  # what touches a bound or a wall


def test_moving_the_object_alone_is_no_symmetry(data):
    from edgesafe_jax.dynamics import Translation

    task, found = TASKS["pusher"](), data["pusher"].transitions()
    touching = np.linalg.norm(found.states[:, 4:] - found.next_states[:, 4:], axis=1) > 1e-3
    alone = Translation(task.sizes, state_axes=((4,), (5,)), goal_axes=((0,), (1,)), low=(-1.0,) * 2, high=(1.0,) * 2)
    pushed = found.take(touching)
    element = jnp.broadcast_to(jnp.array([0.5, 0.5]), (len(pushed.states), 1, 2))
    assert is_wrong(task.step, alone, element, pushed, tolerance=np.full(6, 0.01)).mean() > 0.6
    assert is_wrong(task.step, task.group, element, pushed, tolerance=np.full(6, 0.01)).mean() < 0.1


def test_walls_stop_what_would_cross_them():
    task = make_point_mass(walls=(Wall(axis=0, at=0.0, low=-1.0, high=2.0),))
    for side in (-1.0, 1.0):
        hit = task.step(jnp.array([side * 0.05, 0.5, -side * 1.0, 0.2]), jnp.zeros(2))
        assert np.sign(hit[0]) == side
        assert float(hit[2]) == 0
        assert float(hit[3]) != 0  # along the wall it goes on
        through = task.step(jnp.array([side * 0.05, -1.5, -side * 1.0, 0.0]), jnp.zeros(2))
        assert np.sign(through[0]) == -side


def test_bounds_stop_motion():
    after = make_point_mass().step(jnp.array([1.95, 0.0, 1.5, 0.0]), jnp.array([1.0, 0.0]))
    assert float(after[0]) == 2.0
    assert float(after[2]) == 0.0


_RAMPS = [
    Law(drag=lambda place: 2.0 + 0.5 * place[0]),
    Law(field=lambda place: jnp.stack([-0.5 * place[0], jnp.zeros(())])),
    Law(gain=lambda place: 3.0 + 0.8 * place[0]),
]


@pytest.mark.parametrize("law", _RAMPS)
def test_laws_that_depend_on_x_break_the_translation_in_x_alone(law):
    task = make_point_mass(law=law)
    state, action = jnp.array([0.1, 0.2, 0.8, 0.8]), jnp.array([0.3, 0.3])
    gaps = []
    for element in (jnp.array([0.5, 0.0]), jnp.array([0.0, 0.5])):
        moved = task.step(task.group.state(element, state), action)
        gaps.append(float(jnp.max(jnp.abs(moved - task.group.state(element, task.step(state, action))))))
    assert gaps[0] > 0.01
    assert gaps[1] < 1e-6


def test_every_seed_sees_the_same_episodes():
    task = TASKS["point_mass"]()
    # An agent that is handed the way to the goal reaches it; one that stands still does not.
    learner = Learner(
        init=lambda key, o, a: jnp.zeros(()),
        update=lambda key, state, batches: (state, {}),
        act=lambda gain, o: jnp.clip(gain * (3 * (o[4:] - o[:2]) - o[2:4]), -1, 1),
    )
    agents = Agent(jnp.array([1.0, 0.0]), jnp.zeros((2, 6)), jnp.ones((2, 6)))
    evaluate = make_evaluator(task, learner, num_episodes=50)
    found = evaluate(jax.random.key(0), agents, task.strata["far goals"])
    assert found.success.shape == (2, 50)
    assert np.asarray(found.success[0]).mean() > 0.95
    assert np.asarray(found.success[1]).mean() == 0
    np.testing.assert_array_equal(found.goal_distance[0], found.goal_distance[1])
    assert float(found.goal_distance.min()) > 2.0


def test_interquartile_means():
    assert interquartile_mean(np.arange(8.0)) == pytest.approx(3.5)
    assert interquartile_mean(np.array([[0.0, 100.0], [1.0, 2.0]])) == pytest.approx(1.5)
    assert interquartile_mean(np.array([3.0])) == 3.0
    success = np.array([[1, 1], [1, 1], [1, 0], [0, 0], [1, 1]])
    found = seed_interval(success)
    assert found.estimate == pytest.approx((1 + 1 + 0.5) / 3)
    assert found.low <= found.estimate <= found.high


def test_an_untested_bank_stays_in_the_domain(data):
    task, found = TASKS["point_mass"](), data["point_mass"].transitions()
    domain = arena_domain(task)
    bank = uniform_bank(jax.random.key(0), task.group, found, domain, num_elements=16)
    reached = found.states[:, None, :2] + np.asarray(bank.elements)
    assert np.abs(reached[np.asarray(bank.accepted)]).max() <= 2.0
    assert 0.1 < np.asarray(bank.accepted).mean() < 0.5
    assert sample_elements(jax.random.key(0), task.group, 3).shape == (3, 2)


def test_model_rollouts_are_the_models(data):
    from edgesafe_jax.dynamics import EnsembleSettings, fit_ensemble

    task, found = TASKS["point_mass"](), data["point_mass"]
    parts = found.transitions()
    ensemble, _ = fit_ensemble(
        jax.random.key(0),
        parts.take(parts.episodes < 30),
        parts.take(parts.episodes >= 30),
        EnsembleSettings(num_members=2, num_elites=1, hidden=(16,), num_epochs=2),
    )
    rolled = model_rollouts(jax.random.key(1), ensemble, found, task.reward, num_rollouts=7, length=3)
    assert rolled.num_episodes == 7
    assert np.all(rolled.provenance == Provenance.MODEL)
    predicted = jax.vmap(ensemble.predict)(rolled.states, rolled.actions).mean
    np.testing.assert_allclose(predicted, rolled.next_states, atol=1e-5)
    np.testing.assert_allclose(rolled.next_states[0], rolled.states[1], atol=1e-6)
    np.testing.assert_allclose(rolled.rewards, jax.vmap(task.reward)(rolled.next_states, rolled.goals), rtol=1e-5)
    assert make_bc().batches_per_call == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of brax about its own use of MJX
def test_the_reacher_can_be_turned_but_not_moved():
    task = make_reacher()
    turn = PlanarRotation(task.sizes, state_pairs=((0, 1), (2, 3)), action_pairs=(), goal_pairs=((0, 1),))
    angle, shift = jnp.array(0.7), jnp.array([0.0, 0.08])
    state, action = jnp.array([0.12, 0.03, 0.1, -0.2]), jnp.array([0.6, -0.5])
    still = jnp.array([0.12, 0.03, 0.0, 0.0])
    starts = jnp.stack([state, turn.state(angle, state), task.group.state(shift, state), still])
    actions = jnp.stack([action, action, action, jnp.zeros(2)])
    after, turned, moved, rest = jax.jit(jax.vmap(task.step))(starts, actions)
    np.testing.assert_allclose(rest, still, atol=1e-4)
    assert jnp.linalg.norm(after[2:] - state[2:]) > 0.05
    # It moves as its velocity says, for the 0.02 s of a step.
    np.testing.assert_allclose(after[:2] - state[:2], 0.02 * 0.5 * (after + state)[2:], atol=5e-4)
    np.testing.assert_allclose(turned, turn.state(angle, after), atol=1e-4)
    gap = jnp.abs(moved - task.group.state(shift, after))
    assert jnp.any(gap > 1.5 * jnp.array(task.tolerance))  # beyond what could be called equal
