"""One rule of rewards and terminals for all rows of a batch, and actions of any range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.offline_rl import (
    DatasetError,
    LearningError,
    Sampling,
    concatenate,
    make_bc,
    make_dataset,
    make_iql,
    make_sampler,
    make_sampler_data,
    make_td3_bc,
    make_trainer,
    reward_recomputed,
    tasks,
)

RADIUS = 0.08


def line(*, terminal=True, num=60):
    """Nineteen states on a line from .05 to .95, steps of .05; the goal is the end, and reaching it ends an episode."""
    place = np.tile(0.05 * np.arange(1, 20), num).astype(np.float32)
    last = np.tile(np.arange(19) == 18, num)
    return make_dataset(
        states=place[:, None],
        actions=np.full((19 * num, 1), 0.5),
        rewards=last,
        next_states=place[:, None] + 0.05,
        ends=last,
        terminals=last if terminal else None,
        goals=np.ones((19 * num, 1)),
    )


def near(state, goal):
    return jnp.abs(state[0] - goal[0]) < RADIUS


def sampling(**changes):
    rules = {"achieved": lambda s: s, "reward_fn": lambda s, g: near(s, g).astype(jnp.float32), "her_fraction": 1.0}
    return Sampling(**{**rules, **changes})


def draw(data, settings, num=4096):
    return make_sampler(settings)(jax.random.key(0), make_sampler_data(data), num)


def test_relabelled_rows_are_terminal_where_their_goal_is_reached():
    batch = draw(line(), sampling(terminal_fn=near))
    reached = np.abs(np.asarray(batch.next_observations[:, 0] - batch.observations[:, 1])) < RADIUS
    assert 0.05 < reached.mean() < 0.95
    np.testing.assert_array_equal(batch.rewards, reached)
    np.testing.assert_array_equal(batch.terminals, reached)


def test_terminals_without_a_rule_are_refused_where_goals_are_relabelled():
    with pytest.raises(
        DatasetError, match="rows of the data are terminal and goals are relabelled: expected terminal_fn"
    ):
        draw(line(), sampling())
    kept = draw(line(), sampling(keep_terminals=True))
    np.testing.assert_array_equal(np.asarray(kept.terminals) == 1, np.asarray(kept.observations[:, 0]) > 0.94)
    with pytest.raises(LearningError, match="expected one of the two"):
        sampling(terminal_fn=near, keep_terminals=True)
    assert not np.any(np.asarray(draw(line(terminal=False), sampling()).terminals))


@pytest.mark.parametrize("make", [make_td3_bc, make_iql])
def test_values_of_relabelled_goals_stay_below_the_reward_that_ends_an_episode(make):
    trainer = make_trainer(
        make(hidden=(32,), learning_rate=3e-3, target_rate=0.05, discount=0.95),
        make_sampler(sampling(terminal_fn=near)),
        num_updates=1500,
        batch_size=64,
    )
    data = make_sampler_data(line())
    _, metrics = jax.jit(trainer.run)(jax.random.key(1), trainer.init(jax.random.key(0), data), data)
    assert float(metrics["value"]) < 1.1


@pytest.mark.parametrize("her_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("policy", [False, True])
def test_one_reward_rule_holds_for_all_rows(her_fraction, policy):
    data = line(terminal=False)
    dense = {"reward_fn": lambda s, g: -jnp.abs(s[0] - g[0]), "her_fraction": her_fraction}
    if policy:
        dense["reward_policy"] = reward_recomputed(dense["reward_fn"])
    batch = draw(data, sampling(**dense))
    rule = -np.abs(np.asarray(batch.next_observations[:, 0] - batch.observations[:, 1]))
    own = np.asarray(batch.observations[:, 0]) > 0.94
    expected = rule if her_fraction else own
    np.testing.assert_allclose(batch.rewards, expected, atol=1e-6)
    recomputed = draw(data, sampling(**dense, recompute=True))
    rule = -np.abs(np.asarray(recomputed.next_observations[:, 0] - recomputed.observations[:, 1]))
    np.testing.assert_allclose(recomputed.rewards, rule, atol=1e-6)


@pytest.mark.parametrize(
    "value",
    [lambda x: x > 0, lambda x: 1.0, lambda x: True, lambda x: x[None], lambda x: x.astype(jnp.int32)],
    ids=["bool", "float", "python bool", "[1]", "int"],
)
def test_rewards_of_any_kind_of_number_are_taken(value):
    batch = draw(line(), sampling(reward_fn=lambda s, g: value(s[0] - g[0]), terminal_fn=near))
    assert batch.rewards.dtype == jnp.float32
    assert batch.rewards.shape == (4096,)


@pytest.mark.parametrize("name", ["reward_fn", "terminal_fn"])
def test_a_vector_is_no_reward_and_no_terminal(name):
    rules = {"terminal_fn": near, name: lambda s, g: jnp.zeros(2)}
    with pytest.raises(LearningError, match=r"an array of shape \[2\]: expected one number"):
        draw(line(), sampling(**rules))


def test_a_task_says_what_ends_an_episode():
    import dataclasses

    task = tasks.make_point_mass(explores=False)
    task = dataclasses.replace(task, terminal=lambda s, g: jnp.linalg.norm(s[:2] - g) < task.radius)
    data = tasks.generate(jax.random.key(0), task, num_episodes=20)
    reached = np.linalg.norm(data.next_states[:, :2] - data.goals, axis=1) < task.radius
    np.testing.assert_array_equal(data.terminals, reached)
    assert reached.sum() > 10
    assert np.all(data.ends[reached])  # nothing of an episode follows its end
    assert data.num_episodes == 20
    assert tasks.compare_rules(task, data) == {"rewards_replaced": 0.0, "terminals_replaced": 0.0}
    sparse = dataclasses.replace(task, reward_fn=lambda s, g: task.terminal(s, g), terminal=None)
    found = tasks.compare_rules(sparse, data)
    assert found["rewards_replaced"] > 0.9
    assert found["terminals_replaced"] == pytest.approx(reached.mean())


def cloned(actions, states, **ranges):
    data = make_dataset(
        states=states, actions=actions, rewards=np.zeros(600), next_states=states, ends=np.ones(600), **ranges
    )
    learner = make_bc(hidden=(16, 16), learning_rate=3e-3)
    trainer = make_trainer(learner, make_sampler(sampling(her_fraction=0.0)), num_updates=400, batch_size=128)
    sampled = make_sampler_data(data)
    agent, _ = jax.jit(trainer.run)(jax.random.key(1), trainer.init(jax.random.key(0), sampled), sampled)
    batch = make_sampler(sampling(her_fraction=0.0))(jax.random.key(2), sampled, 256)
    assert np.abs(np.asarray(batch.actions)).max() <= 1 + 1e-6
    return [float(agent.act(learner, jnp.array([s]))[0]) for s in (-0.8, 0.0, 0.8)]


@pytest.mark.parametrize("ranges", [{}, {"action_range": (-3.0, 3.0)}, {"action_range": (-10.0, 10.0)}])
def test_actions_beyond_one_are_learned_in_their_own_range(ranges):
    states = np.random.default_rng(0).uniform(-1, 1, (600, 1))
    np.testing.assert_allclose(cloned(3 * states, states, **ranges), [-2.4, 0.0, 2.4], atol=0.3)


def test_actions_of_a_range_off_the_middle_are_learned():
    states = np.random.default_rng(0).uniform(-1, 1, (600, 1))
    np.testing.assert_allclose(cloned(5 + 2 * states, states), [3.4, 5.0, 6.6], atol=0.3)


def test_actions_out_of_their_space_are_refused():
    states = np.zeros((600, 1))
    states[7] = 3.0
    with pytest.raises(DatasetError, match=r"actions\[7, 0\] is 3\.0: expected -1\.0 to 1\.0, the action space"):
        cloned(states, states, action_range=(-1, 1))
    with pytest.raises(DatasetError, match="low below high"):
        cloned(states, states, action_range=(1, 1))


def test_parts_of_other_action_spaces_are_refused():
    rows = {"states": np.zeros((2, 1)), "rewards": np.zeros(2), "next_states": np.zeros((2, 1)), "ends": np.ones(2)}
    parts = [make_dataset(**rows, actions=np.zeros((2, 1)), action_range=(-1, end)) for end in (1, 2)]
    with pytest.raises(DatasetError, match="the parts have action ranges"):
        concatenate(parts)
    assert concatenate(parts[1:] * 2).action_high.tolist() == [2.0]


def test_policies_divide_by_nothing_that_does_not_vary():
    data = line()
    column = np.full((data.num_transitions, 1), 0.4, np.float32)
    data = data.replace(
        states=np.concatenate([data.states, column], 1), next_states=np.concatenate([data.next_states, column], 1)
    )
    sampler = make_sampler(sampling(her_fraction=0.0))  # the goal does not vary either
    agent = make_trainer(make_bc(hidden=(4,)), sampler, num_updates=1).init(jax.random.key(0), make_sampler_data(data))
    assert agent.std[1:].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(agent.normalize(jnp.array([0.5, 0.41, 1.0]))[1:], [0.01, 0.0], atol=1e-6)
