"""The laws of a group action, and exact equivariance of a known linear system with its breaking."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    BaseRotation,
    GroupAction,
    Permutation,
    PlanarRotation,
    Product,
    Reflection,
    Sizes,
    Translation,
    act_on_segment,
    sample_elements,
)

# Two points in a plane: positions 0-1 and 4-5, velocities 2-3 and 6-7; an action for each; goals for both.
SIZES = Sizes(state=8, action=4, goal=4)
SHIFT = Translation(SIZES, state_axes=((0, 4), (1, 5)), goal_axes=((0, 2), (1, 3)), low=(-1.0, -2.0), high=(3.0, 2.0))
TURN = PlanarRotation(
    SIZES, state_pairs=((0, 1), (2, 3), (4, 5), (6, 7)), action_pairs=((0, 1), (2, 3)), goal_pairs=((0, 1), (2, 3))
)
FLIP = Reflection(SIZES, state_dims=(0, 2, 4, 6), action_dims=(0, 2), goal_dims=(0, 2))
SWAP = Permutation(
    SIZES, state_blocks=((0, 1, 2, 3), (4, 5, 6, 7)), action_blocks=((0, 1), (2, 3)), goal_blocks=((0, 1), (2, 3))
)
ONE_FLIP = Reflection(SIZES, state_dims=(0,))
BOTH = Product((SHIFT, SWAP))
BASE = BaseRotation(SIZES, state_axes=((0, 4),), goal_axes=((),), low=(-3.0,), high=(3.0,), goal_pairs=((0, 1), (2, 3)))
GROUPS = {
    "translation": SHIFT,
    "base": BASE,
    "rotation": TURN,
    "reflection": FLIP,
    "permutation": SWAP,
    "product": BOTH,
}
every_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


def points(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        kind: jax.random.normal(key, (getattr(SIZES, kind),))
        for kind, key in zip(("state", "action", "goal"), keys, strict=True)
    }


def elements(group):
    return [group.sample(jax.random.key(seed)) for seed in range(8)]


@every_group
def test_the_identity_does_nothing(group):
    for kind, x in points().items():
        np.testing.assert_allclose(getattr(group, kind)(group.identity(), x), x, atol=1e-6)


@every_group
def test_an_inverse_undoes(group):
    for element in elements(group):
        for kind, x in points().items():
            act = getattr(group, kind)
            np.testing.assert_allclose(act(group.inverse(element), act(element, x)), x, atol=1e-5)


@every_group
def test_composition_acts_as_one_after_the_other(group):
    first, second = elements(group)[:2]
    for kind, x in points().items():
        act = getattr(group, kind)
        np.testing.assert_allclose(act(group.compose(second, first), x), act(second, act(first, x)), atol=1e-5)


@every_group
def test_moved_names_what_can_change(group):
    state = points()["state"]
    changed = set()
    for element in elements(group):
        changed |= set(np.flatnonzero(np.abs(group.state(element, state) - state) > 1e-6).tolist())
    assert changed == set(group.moved)


@every_group
def test_groups_fit_the_protocol_and_compile(group):
    assert isinstance(group, GroupAction)
    assert hash(group) == hash(dataclasses.replace(group))
    drawn = sample_elements(jax.random.key(0), group, 5)
    states = jnp.ones((5, SIZES.state))
    assert jax.jit(jax.vmap(group.state))(drawn, states).shape == (5, SIZES.state)


@every_group
def test_entropy_is_minus_the_mean_log_probability(group):
    logs = jax.vmap(group.log_prob)(sample_elements(jax.random.key(0), group, 16))
    np.testing.assert_allclose(-jnp.mean(logs), group.entropy(), rtol=1e-5)


def test_entropies_in_closed_form():
    assert SHIFT.entropy() == pytest.approx(np.log(4 * 4))
    assert TURN.entropy() == pytest.approx(np.log(2 * np.pi))
    assert FLIP.entropy() == pytest.approx(np.log(2))
    three = Permutation(Sizes(3, 1), state_blocks=((0,), (1,), (2,)))
    assert three.entropy() == pytest.approx(np.log(6))
    assert BOTH.entropy() == pytest.approx(np.log(16) + np.log(2))


def test_a_group_without_its_goal_moves_states_as_before():
    for group in (SHIFT, BASE):
        element, still = elements(group)[0], group.without_goal()
        np.testing.assert_array_equal(still.goal(element, points()["goal"]), points()["goal"])
        np.testing.assert_array_equal(still.state(element, points()["state"]), group.state(element, points()["state"]))


def test_what_is_never_drawn_has_no_probability():
    assert SHIFT.log_prob(jnp.array([3.5, 0.0])) == -jnp.inf
    assert FLIP.log_prob(jnp.array(2, jnp.int32)) == -jnp.inf
    assert SWAP.log_prob(jnp.array([0, 0], jnp.int32)) == -jnp.inf


def test_draws_are_uniform():
    drawn = np.asarray(sample_elements(jax.random.key(1), SHIFT, 4000))
    np.testing.assert_allclose(drawn.mean(0), [1.0, 0.0], atol=0.08)
    np.testing.assert_allclose(drawn.std(0), 4 / np.sqrt(12), rtol=0.03)
    assert np.asarray(sample_elements(jax.random.key(1), FLIP, 4000)).mean() == pytest.approx(0.5, abs=0.03)
    three = Permutation(Sizes(3, 1), state_blocks=((0,), (1,), (2,)))
    _, counts = np.unique(np.asarray(sample_elements(jax.random.key(1), three, 6000)), axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850


def test_permutation_moves_each_object_to_its_place():
    three = Permutation(Sizes(3, 1), state_blocks=((0,), (1,), (2,)))
    moved = three.state(jnp.array([1, 2, 0], jnp.int32), jnp.array([10.0, 20.0, 30.0]))
    assert moved.tolist() == [30.0, 10.0, 20.0]


def test_a_segment_is_moved_by_one_element():
    states, actions = jnp.ones((4, 8)), jnp.ones((3, 4))
    element = jnp.array([0.5, -1.0])
    moved, acted, goal = act_on_segment(SHIFT, element, states=states, actions=actions, goal=jnp.zeros(4))
    np.testing.assert_allclose(moved[:, 0], 1.5)
    np.testing.assert_allclose(moved[:, 5], 0.0)
    np.testing.assert_allclose(acted, actions)
    np.testing.assert_allclose(goal, [0.5, -1.0, 0.5, -1.0])


def damped_points(state, action, *, spring=0.0, twist=0.0):
    """Two damped points, linear: equivariant under all groups here unless a spring or a twist breaks it."""
    pos, vel = state.reshape(2, 2, 2)[:, 0], state.reshape(2, 2, 2)[:, 1]
    vel = 0.8 * vel + 0.3 * action.reshape(2, 2) - spring * pos
    vel = vel + twist * jnp.array([[1.0, 0.0], [0.0, 0.0]])
    return jnp.stack([pos + 0.1 * vel, vel], axis=1).reshape(8)


def gap(group, element, **breaking):
    """|f(g.s, g.a) - g.f(s, a)|."""
    s, a = points()["state"], points()["action"]
    moved = damped_points(group.state(element, s), group.action(element, a), **breaking)
    return float(jnp.max(jnp.abs(moved - group.state(element, damped_points(s, a, **breaking)))))


@every_group
def test_a_linear_system_is_equivariant(group):
    assert max(gap(group, element) for element in elements(group)) < 1e-5


def test_what_breaks_the_symmetry_shows_by_its_size():
    # A spring pulls to the origin: translations by d change the velocity by -k d and the position by a tenth of that.
    element = jnp.array([2.0, -1.0])
    assert gap(SHIFT, element, spring=0.25) == pytest.approx(0.5, rel=1e-4)
    assert gap(TURN, jnp.array(1.0), spring=0.25) < 1e-5
    assert gap(FLIP, jnp.array(1, jnp.int32), spring=0.25) < 1e-5
    # A push on the first object alone distinguishes objects and directions, but no places.
    assert gap(SHIFT, element, twist=0.5) < 1e-5
    assert gap(SWAP, jnp.array([1, 0], jnp.int32), twist=0.5) == pytest.approx(0.5, rel=1e-4)
    assert gap(FLIP, jnp.array(1, jnp.int32), twist=0.5) == pytest.approx(1.0, rel=1e-4)
    assert gap(TURN, jnp.array(np.pi, jnp.float32), twist=0.5) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: dataclasses.replace(SHIFT, state_axes=((0,), (8,))),
            r"state_axes\[1\] names dimension 8 of the state, which has 8",
        ),
        (lambda: dataclasses.replace(SHIFT, goal_axes=((4,), ())), r"goal_axes\[0\] names dimension 4 of the goal"),
        (lambda: dataclasses.replace(SHIFT, low=(-1.0,)), "one entry per axis"),
        (lambda: dataclasses.replace(BASE, goal_pairs=((0, 4),)), r"goal_pairs\[0\] names dimension 4 of the goal"),
        (
            lambda: dataclasses.replace(
                BASE, state_axes=((0,), (4,)), goal_axes=((), ()), low=(-1.0, -1.0), high=(1.0, 1.0)
            ),
            "2 axes: expected one, the angle by which the base turns",
        ),
        (
            lambda: dataclasses.replace(SHIFT, high=(-1.0, 2.0)),
            r"low\[0\]=-1.0, high\[0\]=-1.0: expected low below high",
        ),
        (
            lambda: dataclasses.replace(TURN, action_pairs=((0, 9),)),
            r"action_pairs\[0\] names dimension 9 of the action",
        ),
        (lambda: dataclasses.replace(TURN, state_pairs=((0, 1), (1, 2))), "every dimension at most once"),
        (lambda: dataclasses.replace(FLIP, goal_dims=(7,)), "goal_dims names dimension 7 of the goal, which has 4"),
        (lambda: dataclasses.replace(SWAP, goal_blocks=((0, 1),)), "goal_blocks has 1 objects, state_blocks 2"),
        (
            lambda: dataclasses.replace(SWAP, state_blocks=((0, 1), (2,)), goal_blocks=(), action_blocks=()),
            r"state_blocks\[1\]=\(2,\): expected 2",
        ),
        (lambda: Product(()), "at least one"),
        (lambda: Product((SHIFT, Reflection(Sizes(3, 1), state_dims=(0,)))), "all the same"),
        (lambda: Product((SHIFT, FLIP)), r"0 \(Translation\) and 1 \(Reflection\) do not commute"),
        (lambda: Product((FLIP, SHIFT)), r"0 \(Reflection\) and 1 \(Translation\) do not commute"),
        (lambda: Product((SWAP, ONE_FLIP)), r"0 \(Permutation\) and 1 \(Reflection\) do not commute"),
        (lambda: Product((ONE_FLIP, SWAP)), r"0 \(Reflection\) and 1 \(Permutation\) do not commute"),
        (lambda: Product((SHIFT, TURN)), r"0 \(Translation\) and 1 \(PlanarRotation\) do not commute"),
    ],
)
def test_bad_groups_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
