"""Splits by episode, and arrays that are refused."""

import numpy as np
import pytest

from edgesafe_jax.dynamics import DynamicsError, as_segments, make_segments, make_transitions, split_episodes

SHARES = {"training": 0.5, "validation": 0.1, "calibration": 0.4}


def arrays(num=6):
    return {
        "states": np.zeros((num, 3)),
        "actions": np.zeros((num, 2)),
        "next_states": np.ones((num, 3)),
        "episodes": np.repeat(np.arange(num // 2), 2),
    }


def test_parts_share_no_episode_and_leave_none_out():
    episodes = np.repeat(np.arange(20), 5)
    parts = split_episodes(episodes, SHARES, seed=3)
    assert {name: len(np.unique(episodes[rows])) for name, rows in parts.items()} == {
        "training": 10,
        "validation": 2,
        "calibration": 8,
    }
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(100))
    named = [set(episodes[rows].tolist()) for rows in parts.values()]
    assert not named[0] & named[1]
    assert not named[0] & named[2]
    assert not named[1] & named[2]


def test_a_split_depends_on_its_seed_alone():
    episodes = np.arange(40)
    first, again, other = (split_episodes(episodes, SHARES, seed=s)["training"].tolist() for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_every_part_gets_an_episode_where_there_are_just_enough():
    parts = split_episodes(np.array([7, 8, 9]), {"a": 0.98, "b": 0.01, "c": 0.01})
    assert [len(rows) for rows in parts.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("episodes", "shares", "message"),
    [
        ([0, 0, 1], SHARES, r"2 episodes for 3 parts \(training, validation, calibration\)"),
        ([0, 1, 2], {"a": 0.5, "b": 0.6}, "add up to 1"),
        ([0, 1, 2], {"a": 1.0, "b": 0.0}, "positive"),
    ],
)
def test_bad_splits_are_refused(episodes, shares, message):
    with pytest.raises(ValueError, match=message):
        split_episodes(np.array(episodes), shares)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": np.full((6, 3), np.nan)}, r"states\[0, 0\] is nan \(18 such\)"),
        ({"next_states": np.where(np.arange(18).reshape(6, 3) == 7, np.inf, 0)}, r"next_states\[2, 1\] is inf"),
        ({"actions": np.zeros((5, 2))}, r"actions has shape \(5, 2\): expected \(6, 2\)"),
        ({"next_states": np.zeros((6, 2))}, r"next_states has shape \(6, 2\): expected \(6, 3\)"),
        ({"states": np.zeros(6)}, "states has shape .*: expected 2 axes"),
        ({"episodes": np.zeros(5)}, r"episodes has shape \(5,\): expected \[6\]"),
    ],
)
def test_bad_arrays_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_transitions(**{**arrays(), **changes})


def counted(episodes, gaps=()):
    """Transitions from place i to i + 1; at a gap the next row does not follow."""
    x = np.arange(len(episodes), dtype=float)[:, None]
    after = x + 1
    after[list(gaps)] += 0.5
    return make_transitions(states=x, actions=10 * x, next_states=after, episodes=np.array(episodes))


def test_segments_stay_in_their_episode_and_are_consecutive():
    found = make_segments(counted([0, 0, 0, 0, 1, 1, 1, 1, 1], gaps=(5,)), 3)
    assert found.states[:, :, 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [6, 7, 8, 9]]
    assert found.actions[:, :, 0].tolist() == [[0, 10, 20], [10, 20, 30], [60, 70, 80]]
    assert found.episodes.tolist() == [0, 0, 1]
    assert found.horizon == 3


def test_a_transition_is_a_segment_of_one_step():
    data = counted([0, 0, 1])
    one, cut = as_segments(data), make_segments(data, 1)
    for name in ("states", "actions", "episodes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(cut, name))
    assert as_segments(cut) is cut


@pytest.mark.parametrize("horizon", [0, 3, 4])
def test_segments_that_there_are_not(horizon):
    with pytest.raises(DynamicsError, match=f"horizon={horizon}: expected"):
        make_segments(counted([0, 0, 1]), horizon)
