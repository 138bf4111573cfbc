"""Which rows a batch holds: a function of the step alone, in the proportions that were asked for."""

import functools

import numpy as np
import pytest

from edgesafe_jax.safety.batches import make_batch_order


def lengths_of(num_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 100, num_rows)


GROUPS = {"refuse": range(48), "plain": range(48, 80), "sensitive": range(80, 131)}
MIXTURE = {"refuse": 3.0, "plain": 2.0, "sensitive": 3.0}


def test_batch_order_is_a_function_of_the_step_alone():
    make = functools.partial(make_batch_order, lengths_of(131), batch_size=8, groups=GROUPS, mixture=MIXTURE)
    order = make(seed=3)
    forwards = [order(step) for step in range(100)]
    again = make(seed=3)
    for step in (99, 0, 57, 16, 15, 57):
        np.testing.assert_array_equal(again(step), forwards[step])
    assert any(np.any(make(seed=4)(step) != forwards[step]) for step in range(3))


def test_batches_keep_the_mixture():
    order = make_batch_order(lengths_of(131), batch_size=8, seed=0, groups=GROUPS, mixture=MIXTURE)
    for step in range(50):
        rows = order(step)
        counts = {name: sum(row in group for row in rows) for name, group in GROUPS.items()}
        assert counts == {"refuse": 3, "plain": 2, "sensitive": 3}


@pytest.mark.parametrize(
    ("batch_size", "mixture", "expected"),
    [
        (8, {"a": 1, "b": 1, "c": 1}, [3, 3, 2]),
        (7, {"a": 0.5, "b": 0.3, "c": 0.2}, [4, 2, 1]),  # 3.5, 2.1, 1.4: the largest remainder is a's
        (4, {"a": 10, "b": 10, "c": 20}, [1, 1, 2]),
    ],
)
def test_mixture_are_rounded_to_whole_rows(batch_size, mixture, expected):
    groups = {"a": range(20), "b": range(20, 40), "c": range(40, 60)}
    order = make_batch_order(lengths_of(60), batch_size=batch_size, seed=0, groups=groups, mixture=mixture)
    counts = np.bincount(order(5) // 20, minlength=3)
    assert counts.sum() == batch_size
    assert counts.tolist() == expected


def test_every_row_of_a_group_comes_once_an_epoch():
    order = make_batch_order(lengths_of(131), batch_size=8, seed=1, groups=GROUPS, mixture=MIXTURE)

    def counts(steps):
        return np.bincount(np.concatenate([order(step) for step in steps]), minlength=131)

    # A window of 16 batches takes 48, 32 and 48 rows: of the first two groups exactly an epoch.
    for window in (0, 1, 5):
        seen = counts(range(16 * window, 16 * window + 16))
        np.testing.assert_array_equal(seen[:80], 1)
        assert seen[80:].max() <= 2  # at the border of two epochs
    np.testing.assert_array_equal(counts(range(16 * 51))[80:], 48)
    first, second = (np.concatenate([order(step) for step in range(s, s + 16)]) for s in (0, 16))
    assert np.any(first != second)


def test_batches_hold_rows_of_like_length():
    lengths = lengths_of(131)
    order = make_batch_order(lengths, batch_size=8, seed=0, groups=GROUPS, mixture=MIXTURE)
    spread = np.mean([np.ptp(lengths[order(step)]) for step in range(96)])
    rng = np.random.default_rng(0)
    at_random = np.mean([np.ptp(lengths[rng.choice(131, 8)]) for _ in range(96)])
    assert spread < at_random / 2
    # Yet long and short batches follow one another in no order.
    means = [lengths[order(step)].mean() for step in range(16)]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_a_group_smaller_than_its_rows_is_repeated():
    order = make_batch_order(
        lengths_of(10), batch_size=6, seed=0, groups={"a": [0, 1], "b": range(2, 10)}, mixture={"a": 1, "b": 1}
    )
    seen = np.bincount(np.concatenate([order(step) for step in range(16)]), minlength=10)
    np.testing.assert_array_equal(seen[:2], 24)
    np.testing.assert_array_equal(seen[2:], 6)


def test_bad_groups_and_mixture():
    make = functools.partial(make_batch_order, lengths_of(4), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="must have the same names"):
        make(groups={"a": [0]}, mixture={"b": 1.0})
    with pytest.raises(ValueError, match="must have the same names"):
        make(groups={}, mixture={})
    with pytest.raises(ValueError, match="Group 'b' has no rows"):
        make(groups={"a": [0], "b": []}, mixture={"a": 1.0, "b": 1.0})
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="Weight of 'b' is"):
            make(groups={"a": [0], "b": [1]}, mixture={"a": 1.0, "b": wrong})
    with pytest.raises(ValueError, match=r"Weight of 'b' is 1\.0 of 20\.0: not one row of a batch of 2"):
        make(groups={"a": [0], "b": [1]}, mixture={"a": 19.0, "b": 1.0})
