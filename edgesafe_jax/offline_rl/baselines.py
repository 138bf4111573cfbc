"""What a learned symmetry is compared with: untested and true elements, and rollouts of the model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import (
    BoxDomain,
    Ensemble,
    GroupAction,
    Segments,
    TransformBank,
    Transitions,
    Verdict,
    as_segments,
)
from edgesafe_jax.offline_rl.datasets import OfflineDataset, Provenance, make_dataset
from edgesafe_jax.offline_rl.relabelling import RewardFn
from edgesafe_jax.typing import Array, PRNGKey


def uniform_bank(
    group: GroupAction, data: Transitions, domain: BoxDomain, *, key: PRNGKey, num_elements: int = 64
) -> TransformBank:
    """Elements of the group's base distribution, accepted without any test wherever both ends lie in the domain.

    Args:
      group: the group.
      data: N transitions.
      domain: where transformed states have to lie.
      key: a typed random key.
      num_elements: M, elements a transition.

    Returns:
      The bank; its verdicts are all `EXTRAPOLATED`, since nothing is tested.
    """
    num = len(data.states)
    keys = jax.random.split(key, num * num_elements)
    elements = jax.tree.map(
        lambda leaf: leaf.reshape(num, num_elements, *leaf.shape[1:]), jax.jit(jax.vmap(group.sample))(keys)
    )

    def usable(element: Array, state: Array, after: Array) -> Array:
        return domain.contains(group.state(element, state)) & domain.contains(group.state(element, after))

    accepted = jax.jit(jax.vmap(jax.vmap(usable, in_axes=(0, None, None))))(elements, data.states, data.next_states)
    return TransformBank(elements, accepted, jnp.full((num, num_elements), Verdict.EXTRAPOLATED, jnp.int8))


def true_gaps(
    step: Callable[[Array, Array], Array], group: GroupAction, elements: Array, data: Transitions | Segments
) -> np.ndarray:
    """How far transformed transitions, or segments, end from the true world, where there is a simulator of it.

    Args:
      step: the true dynamics, from a state `[S]` and an action `[A]` to the next state.
      group: the group.
      elements: leaves `[N, M, ...]`.
      data: N transitions, or segments of several steps.

    Returns:
      `[N, M, S]`, |g.s' - step(g.s, g.a)|, or the same after all steps of the segment.
    """

    def gap(element: Array, states: Array, actions: Array) -> Array:
        acted = jax.vmap(group.action, in_axes=(None, 0))(element, actions)
        truth, _ = jax.lax.scan(lambda s, a: (step(s, a), None), group.state(element, states[0]), acted)
        return jnp.abs(truth - group.state(element, states[-1]))

    segments = as_segments(data)
    over_elements = jax.vmap(gap, in_axes=(0, None, None))
    return np.asarray(jax.jit(jax.vmap(over_elements))(elements, segments.states, segments.actions))


def is_wrong(
    step: Callable[[Array, Array], Array],
    group: GroupAction,
    elements: Array,
    data: Transitions,
    *,
    tolerance: np.ndarray | tuple[float, ...],
) -> np.ndarray:
    """Returns `[N, M]` whether any of the `true_gaps` is above the tolerance `[S]`."""
    return np.any(true_gaps(step, group, elements, data) > np.asarray(tolerance, np.float32), axis=-1)


def model_rollouts(
    ensemble: Ensemble, dataset: OfflineDataset, reward_fn: RewardFn, *, key: PRNGKey, num_rollouts: int, length: int
) -> OfflineDataset:
    """Short rollouts of the model from states of the data, under actions of the data.

    Args:
      ensemble: the model.
      dataset: where start states, goals and actions are drawn from, each on its own.
      reward_fn: the reward of a next state and a goal.
      key: a typed random key.
      num_rollouts: trajectories.
      length: steps of each.

    Returns:
      The rollouts, with the provenance `MODEL`; none is terminal.
    """

    @jax.jit
    def rollouts(ensemble: Ensemble, states: Array, actions: Array, goals: Array) -> tuple[Array, Array, Array]:
        after = jax.vmap(ensemble.rollout)(states, actions).mean
        before = jnp.concatenate([states[:, None], after[:, :-1]], 1)
        rewards = jax.vmap(jax.vmap(reward_fn, in_axes=(0, None)))(after, goals)
        return before, after, rewards

    key_starts, key_actions = jax.random.split(key)
    starts = np.asarray(jax.random.randint(key_starts, (num_rollouts,), 0, dataset.num_transitions))
    rows = np.asarray(jax.random.randint(key_actions, (num_rollouts, length), 0, dataset.num_transitions))
    actions, goals = np.asarray(dataset.actions)[rows], np.asarray(dataset.goals)[starts]
    before, after, rewards = rollouts(ensemble, jnp.asarray(np.asarray(dataset.states)[starts]), actions, goals)
    num = num_rollouts * length
    return make_dataset(
        states=np.asarray(before).reshape(num, -1),
        actions=actions.reshape(num, -1),
        rewards=np.asarray(rewards).reshape(num),
        next_states=np.asarray(after).reshape(num, -1),
        ends=np.arange(num) % length == length - 1,
        goals=np.repeat(goals, length, axis=0),
        provenance=Provenance.MODEL,
    )
