"""Batches: hindsight goals, then one element on the whole segment and the goal, with rewards that fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import BoxDomain, Sizes, TransformBank, Translation
from edgesafe_jax.offline_rl import (
    DatasetError,
    LearningError,
    Provenance,
    Sampling,
    make_dataset,
    make_sampler,
    make_sampler_data,
    reward_checked,
    reward_recomputed,
)

# Trajectories of three steps: row i goes from (i, trajectory) to (i + 1, trajectory); the goal is 100.
GROUP = Translation(Sizes(2, 1, 1), state_axes=((0,),), goal_axes=((0,),), low=(-50.0,), high=(50.0,))


def line(num=4):
    place = np.arange(3 * num, dtype=np.float32) % 3 + 10 * (np.arange(3 * num) // 3)
    states = np.stack([place, np.full(3 * num, 7.0)], 1)
    return make_dataset(
        states=states,
        next_states=states + np.array([1.0, 0.0]),
        actions=np.zeros((3 * num, 1)),
        rewards=np.full(3 * num, -5.0),
        ends=np.arange(3 * num) % 3 == 2,
        goals=np.full((3 * num, 1), 100.0),
    )


def bank_of(data, elements, accepted):
    num = data.num_transitions
    elements = jnp.broadcast_to(jnp.asarray(elements, jnp.float32)[None, :, None], (num, len(elements), 1))
    accepted = jnp.broadcast_to(jnp.asarray(accepted)[None], (num, len(accepted)))
    return TransformBank(elements, accepted, jnp.zeros(accepted.shape, jnp.int8))


def achieved(state):
    return state[:1]


def reward(state, goal):
    return -jnp.abs(state[0] - goal[0])


def draw(data, bank=None, num=512, noise_scale=0.0, **fractions):
    sampler = make_sampler(Sampling(achieved=achieved, reward_fn=reward, **fractions))
    return sampler(jax.random.key(0), make_sampler_data(data, bank=bank, noise_scale=noise_scale), num)


def test_without_fractions_rows_are_those_of_the_data():
    batch = draw(line())
    np.testing.assert_allclose(batch.next_observations[:, 0], batch.observations[:, 0] + 1)
    np.testing.assert_allclose(batch.observations[:, 2], 100)
    np.testing.assert_allclose(batch.rewards, -5)
    assert np.all(np.asarray(batch.provenance) == Provenance.REAL)
    assert set(np.unique(np.asarray(batch.observations[:, 0])).tolist()) == set(line().states[:, 0].tolist())


def test_hindsight_goals_are_reached_later_in_the_same_trajectory():
    batch = draw(line(), her_fraction=1.0, num=2048)
    start, goal = np.asarray(batch.observations[:, 0]), np.asarray(batch.observations[:, 2])
    assert np.all(goal >= start + 1)
    assert np.all(goal <= 10 * np.floor(start / 10) + 3)
    np.testing.assert_allclose(batch.rewards, -np.abs(start + 1 - goal))
    # From the first row of a trajectory each of the three later states is drawn alike.
    first = goal[start == 0]
    np.testing.assert_allclose([np.mean(first == g) for g in (1, 2, 3)], 1 / 3, atol=0.12)


def test_the_fraction_of_hindsight_goals():
    batch = draw(line(), her_fraction=0.25, num=4096)
    assert np.mean(np.asarray(batch.observations[:, 2]) != 100) == pytest.approx(0.25, abs=0.03)


def test_one_element_moves_state_next_state_and_goal_together():
    data = line()
    batch = draw(data, bank_of(data, [40.0], [True]), group=GROUP, her_fraction=1.0, augment_fraction=1.0)
    start, goal = np.asarray(batch.observations[:, 0]), np.asarray(batch.observations[:, 2])
    assert start.min() >= 40
    np.testing.assert_allclose(batch.next_observations[:, 0], start + 1)
    np.testing.assert_allclose(batch.observations[:, 1], 7)  # not masked, not moved
    # Relabelled first: the goal is still one that the same trajectory reaches, moved with it.
    assert np.all((goal - start >= 1) & (goal - start <= 3))
    np.testing.assert_allclose(batch.rewards, -(goal - start - 1))
    assert np.all(np.asarray(batch.provenance) == Provenance.SYMMETRY)


def test_only_accepted_elements_are_used_each_alike():
    data = line()
    bank = bank_of(data, [40.0, 80.0, -30.0, -20.0], [True, False, True, False])
    batch = draw(data, bank, group=GROUP, augment_fraction=1.0, num=4096)
    moved = np.asarray(batch.observations[:, 2]) - 100
    assert set(np.unique(moved).tolist()) == {40.0, -30.0}
    assert np.mean(moved == 40) == pytest.approx(0.5, abs=0.04)


def test_a_fraction_stays_real():
    data = line()
    batch = draw(data, bank_of(data, [40.0], [True]), group=GROUP, augment_fraction=0.7, num=4096)
    real = np.asarray(batch.provenance) == Provenance.REAL
    assert real.mean() == pytest.approx(0.3, abs=0.03)
    assert np.all(np.asarray(batch.observations[:, 2])[real] == 100)


def test_rows_without_an_accepted_element_stay_real():
    data = line()
    batch = draw(data, bank_of(data, [40.0, 30.0], [False, False]), group=GROUP, augment_fraction=1.0)
    assert np.all(np.asarray(batch.provenance) == Provenance.REAL)
    np.testing.assert_allclose(batch.observations[:, 2], 100)


def test_goals_that_would_leave_the_domain_stay_where_they_are():
    data = line()
    domain = BoxDomain(dims=(0,), low=(0.0,), high=(120.0,))
    batch = draw(data, bank_of(data, [40.0, 15.0], [True, True]), group=GROUP, domain=domain, augment_fraction=1.0)
    assert set(np.unique(np.asarray(batch.observations[:, 2])).tolist()) == {100.0, 115.0}


def test_reward_policies():
    data = line()
    bank = bank_of(data, [40.0], [True])
    kept = draw(data, bank, group=GROUP, augment_fraction=1.0)
    np.testing.assert_allclose(kept.rewards, -5)
    again = draw(data, bank, group=GROUP, augment_fraction=1.0, reward_policy=reward_recomputed(reward))
    np.testing.assert_allclose(again.rewards, -np.abs(again.next_observations[:, 0] - again.observations[:, 2]))
    # -5 is not what the function says: every transformed row is rejected.
    checked = draw(data, bank, group=GROUP, augment_fraction=1.0, reward_policy=reward_checked(reward))
    assert np.all(np.asarray(checked.provenance) == Provenance.REAL)
    # With hindsight the rewards are those of the function, which is invariant: none is.
    fits = draw(data, bank, group=GROUP, her_fraction=1.0, augment_fraction=1.0, reward_policy=reward_checked(reward))
    assert np.all(np.asarray(fits.provenance) == Provenance.SYMMETRY)


def test_noise_moves_both_ends_alike_and_is_flagged():
    batch = draw(line(), add_noise=True, noise_scale=0.1)
    np.testing.assert_allclose(batch.next_observations[:, 0], batch.observations[:, 0] + 1, rtol=1e-5, atol=1e-5)
    shift = np.asarray(batch.observations[:, 0]) - np.round(np.asarray(batch.observations[:, 0]))
    assert np.std(shift) > 0.1
    assert np.all(np.asarray(batch.provenance) == Provenance.NOISE)


def test_terminals_pass_to_the_batch_as_they_are():
    data = line()
    data = data.replace(terminals=data.ends & (np.arange(12) == 5))
    batch = draw(data, num=2048)
    ended = np.asarray(batch.terminals) == 1
    assert ended.any()
    assert np.all(np.asarray(batch.observations[:, 0])[ended] == 12)


def test_goals_of_another_length_are_refused():
    # A hindsight goal of two numbers in a column of one would be broadcast.
    sampler = make_sampler(Sampling(achieved=lambda state: state[:2], reward_fn=reward, her_fraction=0.5))
    with pytest.raises(DatasetError, match=r"goals have 1 dimensions and `achieved` gives \[2\]"):
        sampler(jax.random.key(0), make_sampler_data(line()), 8)


def test_bad_settings_are_refused():
    with pytest.raises(LearningError, match=r"her_fraction=1\.5"):
        Sampling(achieved=achieved, reward_fn=reward, her_fraction=1.5)
    with pytest.raises(LearningError, match="without a group"):
        Sampling(achieved=achieved, reward_fn=reward, augment_fraction=0.5)
    with pytest.raises(DatasetError, match="the bank has 12 rows, the data set 6"):
        make_sampler_data(line(2), bank=bank_of(line(4), [1.0], [True]))
