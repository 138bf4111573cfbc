"""Baselines of a learned symmetry: untested elements, and rollouts of the model."""

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import BoxDomain, Ensemble, GroupAction, TransformBank, Transitions, Verdict
from edgesafe_jax.dynamics.equivariance import check_group
from edgesafe_jax.errors import check_counts
from edgesafe_jax.offline_rl.datasets import OfflineDataset, Provenance, make_episodes
from edgesafe_jax.offline_rl.relabelling import RewardFn, TerminalFn, scalar
from edgesafe_jax.typing import Array, PRNGKey


def uniform_bank(
    key: PRNGKey, group: GroupAction, data: Transitions, domain: BoxDomain, *, num_elements: int = 64
) -> TransformBank:
    """Elements of the group's base distribution, accepted without any test wherever both ends lie in the domain.

    Args:
      key: a typed random key.
      group: the group.
      data: N transitions.
      domain: where transformed states have to lie.
      num_elements: M, elements per transition.

    Returns:
      The bank; its verdicts are all `EXTRAPOLATED`, since nothing is tested.
    """
    check_counts(num_elements=num_elements)
    check_group(group, data)
    num = len(data.states)
    keys = jax.random.split(key, num * num_elements)
    elements = jax.tree.map(
        lambda leaf: leaf.reshape(num, num_elements, *leaf.shape[1:]), jax.jit(jax.vmap(group.sample))(keys)
    )

    def usable(element: Array, state: Array, after: Array) -> Array:
        return domain.contains(group.state(element, state)) & domain.contains(group.state(element, after))

    accepted = jax.jit(jax.vmap(jax.vmap(usable, in_axes=(0, None, None))))(elements, data.states, data.next_states)
    return TransformBank(elements, accepted, jnp.full((num, num_elements), Verdict.EXTRAPOLATED, jnp.int8))


def model_rollouts(
    key: PRNGKey,
    ensemble: Ensemble,
    dataset: OfflineDataset,
    reward_fn: RewardFn,
    *,
    num_rollouts: int,
    length: int,
    terminal_fn: TerminalFn | None = None,
) -> OfflineDataset:
    """Makes short rollouts of the model from states of the data, under actions of the data.

    Args:
      key: a typed random key.
      ensemble: the model.
      dataset: where start states, goals and actions are drawn from, each on its own.
      reward_fn: the reward of a next state and a goal.
      num_rollouts: trajectories.
      length: steps of each, or up to where the world ends.
      terminal_fn: whether a next state ends the world for a goal; None: never.

    Returns:
      The rollouts, with the provenance `MODEL`.
    """
    check_counts(num_rollouts=num_rollouts, length=length)

    @jax.jit
    def rollouts(ensemble: Ensemble, states: Array, actions: Array, goals: Array) -> tuple[Array, ...]:
        after = jax.vmap(ensemble.rollout)(states, actions).mean
        before = jnp.concatenate([states[:, None], after[:, :-1]], 1)

        def judge(state: Array, goal: Array) -> tuple[Array, Array]:
            ended = jnp.array(False) if terminal_fn is None else scalar(terminal_fn(state, goal), bool)
            return scalar(reward_fn(state, goal)), ended

        return before, after, *jax.vmap(jax.vmap(judge, in_axes=(0, None)))(after, goals)

    key_starts, key_actions = jax.random.split(key)
    starts = np.asarray(jax.random.randint(key_starts, (num_rollouts,), 0, dataset.num_transitions))
    rows = np.asarray(jax.random.randint(key_actions, (num_rollouts, length), 0, dataset.num_transitions))
    actions, goals = np.asarray(dataset.actions)[rows], np.asarray(dataset.goals)[starts]
    before, after, rewards, ended = rollouts(ensemble, jnp.asarray(np.asarray(dataset.states)[starts]), actions, goals)
    made = make_episodes(
        states=before,
        actions=actions,
        next_states=after,
        rewards=rewards,
        goals=np.repeat(goals[:, None], length, axis=1),
        terminals=ended,
        provenance=Provenance.MODEL,
    )
    return made.replace(action_low=dataset.action_low, action_high=dataset.action_high)
