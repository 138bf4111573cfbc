r"""Sampling of training batches: hindsight goals first, then a symmetry on state, action and goal together.

A row (s, a, s', goal) is drawn from the data set; with probability `her_fraction` its goal is replaced by one that a
later state of the same trajectory achieves; then, with probability `augment_fraction`, one element of its bank acts on
the whole segment s, a, s' and on the goal. Acting on the state alone, or relabelling after the transformation, would
pair states with goals that no trajectory connects. All of it runs inside the training scan.

One rule of rewards and terminals holds for all rows of a batch. Where goals are relabelled, or a symmetry recomputes
rewards, it is `reward_fn` and `terminal_fn` of the next state and the goal; else rewards and terminals are those of the
data.

Reference:
  Andrychowicz et al., "Hindsight Experience Replay", 2017.
  Sinha, Mandlekar and Garg, "S4RL: Surprisingly Simple Self-Supervision for Offline RL", 2021 (state noise).
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics import BoxDomain, GroupAction, TransformBank, act_on_segment
from edgesafe_jax.dynamics.transitions import check_settings
from edgesafe_jax.errors import FRACTION, EdgesafeError, check_counts
from edgesafe_jax.offline_rl.datasets import DatasetError, OfflineDataset, Provenance
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree

_log = logging.getLogger(__name__)


class LearningError(EdgesafeError, ValueError):
    """Settings of batches or of training that mean nothing; the message names the value and what was expected."""


RewardFn = Callable[[Array, Array], Array]
"""From a next state `[S]` and a goal `[G]` to a reward, one number."""
TerminalFn = Callable[[Array, Array], Array]
"""From a next state `[S]` and a goal `[G]` to whether the world ends there, one boolean."""


class Row(struct.PyTreeNode):
    """One transition on its way to a batch; shapes as in `edgesafe_jax.offline_rl.datasets`, without N."""

    state: Array
    action: Array
    next_state: Array
    goal: Array
    reward: Array
    terminal: Array


@dataclasses.dataclass(frozen=True)
class RewardPolicy:
    """The reward of a row under a group.

    Attributes:
      apply: from a row before and after a transformation to its reward, and whether the row may be used.
      recomputes: whether rewards come from the reward function, so that those of all other rows have to as well.
    """

    apply: Callable[[Row, Row], tuple[Array, Array]]
    recomputes: bool = False


def reward_invariant() -> RewardPolicy:
    """The reward does not change under the group: it is kept."""
    return RewardPolicy(lambda before, after: (before.reward, jnp.array(True)))


def reward_recomputed(reward_fn: RewardFn) -> RewardPolicy:
    """The reward is computed anew from the transformed next state and goal."""
    return RewardPolicy(lambda before, after: (scalar(reward_fn(after.next_state, after.goal)), jnp.array(True)), True)


def reward_checked(reward_fn: RewardFn, *, tolerance: float = 1e-3) -> RewardPolicy:
    """The reward is kept; rows whose reward would change by more than `tolerance` are rejected."""

    def policy(before: Row, after: Row) -> tuple[Array, Array]:
        return before.reward, jnp.abs(scalar(reward_fn(after.next_state, after.goal)) - before.reward) <= tolerance

    return RewardPolicy(policy)


def scalar(value: ArrayLike, dtype: Any = jnp.float32) -> Array:
    """Returns what a reward or terminal function gave, a Python number or an array of one, as a scalar.

    Raises:
      LearningError: it is no single number.
    """
    found = jnp.asarray(value)
    if found.size != 1:
        raise LearningError(
            f"a reward or terminal function gave an array of shape {list(found.shape)}: expected one number"
        )
    return found.reshape(()).astype(dtype)


class SamplerData(struct.PyTreeNode):
    """The data that batches are drawn from; an argument of the compiled training, never closed over.

    Attributes:
      rows: the transitions, leaves `[N, ...]`.
      last_rows: `[N]` the last row of the trajectory of each.
      provenance: `[N]` int8.
      elements: leaves `[N, M, ...]`, or None: what each row may be transformed by, the accepted ones first ...
      num_accepted: `[N]`, or None: ... and how many those are.
      noise_std: `[S]` standard deviation of the state noise.
      action_range: lower and upper ends `[A]` of the actions, which learners see scaled to [-1, 1]; None: they are
        within [-1, 1] as they are.
      has_terminals: whether a row of the data is terminal.
    """

    rows: Row
    last_rows: Array
    provenance: Array
    elements: PyTree
    num_accepted: Array | None
    noise_std: Array
    action_range: tuple[Array, Array] | None = None
    has_terminals: bool = struct.field(pytree_node=False, default=False)


class Batch(struct.PyTreeNode):
    """A batch of transitions for a learner.

    Attributes:
      observations: `[B, S+G]`, state and goal side by side.
      actions: `[B, A]`, in [-1, 1].
      rewards: `[B]`.
      next_observations: `[B, S+G]`.
      terminals: `[B]` float32, 1 where the world ended.
      provenance: `[B]` int8, see `Provenance`.
    """

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminals: Array
    provenance: Array


BatchSampler = Callable[[PRNGKey, SamplerData, int], Batch]
"""From a key, data and a batch size to a batch."""


def make_sampler_data(
    dataset: OfflineDataset, *, bank: TransformBank | None = None, noise_scale: float = 0.0
) -> SamplerData:
    """Puts a data set and what it may be augmented by into the form that samplers draw from.

    Args:
      dataset: the data.
      bank: elements for each of its rows; None: no symmetry.
      noise_scale: standard deviation of state noise, in standard deviations of the states.

    Returns:
      The data as jax arrays.

    Raises:
      DatasetError: if the bank belongs to another number of rows.
    """
    if bank is not None and bank.accepted.shape[0] != dataset.num_transitions:
        raise DatasetError(
            f"the bank has {bank.accepted.shape[0]} rows, the data set {dataset.num_transitions}: expected the same"
        )
    rows = Row(
        state=jnp.asarray(dataset.states),
        action=jnp.asarray(dataset.actions),
        next_state=jnp.asarray(dataset.next_states),
        goal=jnp.asarray(dataset.goals),
        reward=jnp.asarray(dataset.rewards),
        terminal=jnp.asarray(dataset.terminals, jnp.float32),
    )
    elements, num_accepted = None, None
    if bank is not None:
        order = jnp.argsort(~bank.accepted, axis=1, stable=True)
        elements = jax.tree.map(lambda leaf: jax.vmap(lambda each, places: each[places])(leaf, order), bank.elements)
        num_accepted = jnp.sum(bank.accepted, axis=1)
    return SamplerData(
        rows=rows,
        last_rows=jnp.asarray(dataset.last_rows()),
        provenance=jnp.asarray(dataset.provenance),
        elements=elements,
        num_accepted=num_accepted,
        noise_std=noise_scale * jnp.asarray(np.std(np.asarray(dataset.states), 0), jnp.float32),
        action_range=_action_range(dataset),
        has_terminals=bool(np.any(np.asarray(dataset.terminals))),
    )


def _action_range(dataset: OfflineDataset) -> tuple[Array, Array] | None:
    """Ends of the actions: those of the stored space, else of the data where they leave [-1, 1]."""
    low, high = (np.min(dataset.actions, 0), np.max(dataset.actions, 0))
    if dataset.action_low is not None and dataset.action_high is not None:
        low, high = np.asarray(dataset.action_low), np.asarray(dataset.action_high)
        if np.all(low == -1) and np.all(high == 1):
            return None
    else:
        outside = (low < -1) | (high > 1)
        if not outside.any():
            return None
        _log.info(
            "actions of the data reach from %s to %s: they are scaled to [-1, 1] for the learner and back", low, high
        )
        low, high = np.where(outside, low, -1.0), np.where(outside, high, 1.0)
        high = np.where(low == high, low + 1.0, high)  # an action that never changes
    return jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of the batch sampler.

    Attributes:
      achieved: from a state `[S]` to the goal `[G]` that it reaches.
      reward_fn: the reward of a next state and a goal.
      reward_policy: the reward of a row after the group acts on it.
      group: what the elements of the bank act by; None: no symmetry.
      domain: where transformed goals have to lie, as a box over goal dimensions; None: anywhere.
      her_fraction: fraction of rows with a hindsight goal.
      augment_fraction: fraction of rows that a symmetry acts on, where it was accepted; the rest stays real.
      add_noise: whether states get noise (S4RL).
      terminal_fn: whether a next state ends the world for a goal.
      keep_terminals: whether relabelled rows keep the terminals of the data, which then must not depend on the goal.
      recompute: whether rewards and terminals of all rows are those of `reward_fn` and `terminal_fn` even where no goal
        is relabelled, so that several methods learn from the same ones.
    """

    achieved: Callable[[Array], Array]
    reward_fn: RewardFn
    reward_policy: RewardPolicy = dataclasses.field(default_factory=reward_invariant)
    group: GroupAction | None = None
    domain: BoxDomain | None = None
    her_fraction: float = 0.0
    augment_fraction: float = 0.0
    add_noise: bool = False
    terminal_fn: TerminalFn | None = None
    keep_terminals: bool = False
    recompute: bool = False

    @property
    def recomputes(self) -> bool:
        """Whether rewards and terminals of all rows are computed from next state and goal."""
        transformed = self.augment_fraction > 0 and self.reward_policy.recomputes
        return self.recompute or self.her_fraction > 0 or transformed

    def __post_init__(self):
        check_settings(self, {"her_fraction": FRACTION, "augment_fraction": FRACTION}, LearningError)
        if self.terminal_fn is not None and self.keep_terminals:
            raise LearningError("terminal_fn together with keep_terminals=True: expected one of the two")
        if self.augment_fraction and self.group is None:
            raise LearningError(
                f"augment_fraction={self.augment_fraction} without a group: expected the group that acts, or 0"
            )


def make_sampler(sampling: Sampling) -> BatchSampler:
    """Makes the function that draws batches: relabel, then transform, then add noise.

    Args:
      sampling: fractions, group and rewards.

    Returns:
      The sampler. Rows whose transformation is not accepted, leads the goal out of the domain or is rejected by the
      reward policy stay as they are; `Batch.provenance` says which were changed. It raises DatasetError where hindsight
      goals have another length than those of the data, or the data have terminals and goals are relabelled without a
      rule that says which relabelled rows are terminal.
    """

    def one(data: SamplerData, index: Array, draws: Array) -> tuple[Row, Array]:
        row = jax.tree.map(lambda column: column[index], data.rows)
        provenance = data.provenance[index]
        if sampling.her_fraction:
            future = index + _below(draws[0], data.last_rows[index] + 1 - index)
            goal = sampling.achieved(data.rows.next_state[future])
            row = _select(draws[1] < sampling.her_fraction, row.replace(goal=goal), row)
        if sampling.recomputes:
            row = row.replace(reward=scalar(sampling.reward_fn(row.next_state, row.goal)))
        if sampling.augment_fraction and data.num_accepted is not None:
            number = _below(draws[2], data.num_accepted[index])
            element = jax.tree.map(lambda leaf: leaf[index, number], data.elements)
            moved, usable = _transform(sampling, row, element)
            use = (data.num_accepted[index] > 0) & usable & (draws[3] < sampling.augment_fraction)
            row = _select(use, moved, row)
            provenance = jnp.where(use, jnp.int8(Provenance.SYMMETRY), provenance)
        if sampling.recomputes and sampling.terminal_fn is not None:
            row = row.replace(terminal=scalar(sampling.terminal_fn(row.next_state, row.goal)))
        if data.action_range is not None:
            low, high = data.action_range
            row = row.replace(action=2 * (row.action - low) / (high - low) - 1)
        return row, provenance

    def sample(key: PRNGKey, data: SamplerData, batch_size: int) -> Batch:
        check_counts(batch_size=batch_size)
        if sampling.her_fraction:
            _check_goals(sampling, data)
            if data.has_terminals and sampling.terminal_fn is None and not sampling.keep_terminals:
                raise DatasetError(
                    "rows of the data are terminal and goals are relabelled: expected terminal_fn, which says whether "
                    "a next state ends the world for a goal, or keep_terminals=True where that depends on no goal"
                )
        key_rows, key_draws, key_noise = jax.random.split(key, 3)
        index = jax.random.randint(key_rows, (batch_size,), 0, data.last_rows.shape[0])
        draws = jax.random.uniform(key_draws, (batch_size, 4))
        rows, provenance = jax.vmap(one, in_axes=(None, 0, 0))(data, index, draws)
        if sampling.add_noise:
            noise = data.noise_std[None] * jax.random.normal(key_noise, rows.state.shape)
            rows = rows.replace(state=rows.state + noise, next_state=rows.next_state + noise)
            provenance = jnp.full_like(provenance, Provenance.NOISE)
        return Batch(
            observations=jnp.concatenate([rows.state, rows.goal], 1),
            actions=rows.action,
            rewards=rows.reward,
            next_observations=jnp.concatenate([rows.next_state, rows.goal], 1),
            terminals=rows.terminal,
            provenance=provenance,
        )

    return sample


def _check_goals(sampling: Sampling, data: SamplerData) -> None:
    """Refuses goals that a hindsight goal would be broadcast to."""
    achieved = jax.eval_shape(sampling.achieved, data.rows.next_state[0]).shape
    if achieved != data.rows.goal.shape[1:]:
        raise DatasetError(
            f"goals have {data.rows.goal.shape[1]} dimensions and `achieved` gives {list(achieved)}: expected the goal "
            "that a state achieves to be as long as those of the data"
        )


def _transform(sampling: Sampling, row: Row, element: PyTree) -> tuple[Row, Array]:
    assert sampling.group is not None  # checked by `Sampling`
    states, actions, goal = act_on_segment(
        sampling.group,
        element,
        states=jnp.stack([row.state, row.next_state]),
        actions=row.action[None],
        goal=row.goal,
    )
    moved = row.replace(state=states[0], action=actions[0], next_state=states[1], goal=goal)
    reward, usable = sampling.reward_policy.apply(row, moved)
    if sampling.domain is not None:
        usable = usable & sampling.domain.contains(goal)
    return moved.replace(reward=reward), usable


def _below(draw: Array, count: Array) -> Array:
    """Returns a whole number from 0 to count - 1 (0 if count is 0) of a uniform draw from [0, 1)."""
    return jnp.clip((draw * count.astype(draw.dtype)).astype(count.dtype), 0, jnp.maximum(count - 1, 0))


def _select(condition: Array, yes: Row, no: Row) -> Row:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
