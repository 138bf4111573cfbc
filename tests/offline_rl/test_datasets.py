"""The array format: ends apart from terminals, and every kind of bad input."""

import numpy as np
import pytest

from edgesafe_jax.offline_rl import DatasetError, Provenance, concatenate, make_dataset


def arrays(**changes):
    fine = {
        "states": np.zeros((6, 3)),
        "actions": np.zeros((6, 2)),
        "rewards": np.arange(6.0),
        "next_states": np.ones((6, 3)),
        "ends": np.array([0, 0, 1, 0, 1, 1]),
        "goals": np.zeros((6, 2)),
    }
    return {**fine, **changes}


def spoiled(shape, index, value):
    array = np.zeros(shape)
    array[index] = value
    return array


def test_trajectories_follow_from_their_ends():
    data = make_dataset(**arrays())
    assert data.num_episodes == 3
    assert data.episodes().tolist() == [0, 0, 0, 1, 1, 2]
    assert data.last_rows().tolist() == [2, 2, 2, 4, 4, 5]
    assert data.transitions().episodes.tolist() == [0, 0, 0, 1, 1, 2]


def test_a_time_limit_is_no_terminal():
    assert not make_dataset(**arrays()).terminals.any()
    data = make_dataset(**arrays(terminals=np.array([0, 0, 0, 0, 1, 0])))
    assert data.terminals.tolist() == [False] * 4 + [True, False]
    assert data.num_episodes == 3


def test_goals_are_optional():
    assert make_dataset(**arrays(goals=None)).goals.shape == (6, 0)


def test_parts_are_put_together_with_their_provenance():
    real, model = make_dataset(**arrays()), make_dataset(**arrays(), provenance=Provenance.MODEL)
    both = concatenate([real, model])
    assert both.num_transitions == 12
    assert both.num_episodes == 6
    assert both.provenance.tolist() == [0] * 6 + [3] * 6
    assert both.last_rows().tolist() == [2, 2, 2, 4, 4, 5, 8, 8, 8, 10, 10, 11]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": np.zeros(6)}, "ends is nowhere true in 6 rows: expected true in the last row of every trajectory"),
        ({"ends": np.array([0, 0, 1, 0, 0, 0])}, r"ends\[5\] is false"),
        ({"ends": np.array([0, 0, 1, 0, 2, 1])}, r"ends\[4\] is 2: expected true or false"),
        ({"terminals": np.array([0, 1, 0, 0, 0, 0])}, r"terminals\[1\] is true and ends\[1\] is false"),
        ({"states": spoiled((6, 3), (2, 1), np.nan)}, r"states\[2, 1\] is nan \(1 such\): expected finite"),
        ({"actions": spoiled((6, 2), (5, 0), np.inf)}, r"actions\[5, 0\] is inf"),
        ({"rewards": spoiled(6, 3, np.nan)}, r"rewards\[3\] is nan"),
        ({"goals": spoiled((6, 2), (0, 1), np.nan)}, r"goals\[0, 1\] is nan"),
        ({"next_states": np.zeros((6, 2))}, r"next_states has shape \(6, 2\): expected that of states, \(6, 3\)"),
        ({"actions": np.zeros((5, 2))}, r"actions has shape \(5, 2\): expected 6 rows"),
        ({"goals": np.zeros((5, 2))}, r"goals has shape \(5, 2\): expected 6 rows"),
        ({"goals": np.zeros(6)}, r"goals has shape \(6,\): expected 2 axes"),
        ({"rewards": np.zeros((6, 1))}, r"rewards has shape \(6, 1\): expected 1 axes"),
    ],
)
def test_bad_data_are_refused(changes, message):
    with pytest.raises(DatasetError, match=message):
        make_dataset(**arrays(**changes))


def test_parts_of_other_sizes_are_refused():
    other = make_dataset(**arrays(goals=np.zeros((6, 3))))
    with pytest.raises(DatasetError, match=r"goals have \[2, 3\] dimensions in the parts"):
        concatenate([make_dataset(**arrays()), other])
    with pytest.raises(DatasetError, match="at least one"):
        concatenate([])
