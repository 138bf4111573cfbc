r"""How a training batch is drawn: hindsight goals first, then a symmetry on state, action and goal together.

A row (s, a, s', goal) is drawn from the data set; with probability `her_fraction` its goal is replaced by one that a
later state of the same trajectory achieves; then, with probability `augment_fraction`, one element of its bank acts on
the whole segment s, a, s' and on the goal. Acting on the state alone, or relabelling after the transformation, would
pair states with goals that no trajectory connects. All of it runs inside the training scan.

Reference:
  Andrychowicz et al., "Hindsight Experience Replay", 2017.
  Sinha, Mandlekar and Garg, "S4RL: Surprisingly Simple Self-Supervision for Offline RL", 2021 (state noise).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics import BoxDomain, GroupAction, TransformBank, act_on_segment
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.offline_rl.datasets import DatasetError, OfflineDataset, Provenance
from edgesafe_jax.typing import Array, PRNGKey, PyTree


class LearningError(EdgesafeError, ValueError):
    """Settings of batches or of training that mean nothing; the message names the value and what was expected."""


RewardFn = Callable[[Array, Array], Array]
"""From a next state `[S]` and a goal `[G]` to a reward."""


class Row(struct.PyTreeNode):
    """One transition on its way to a batch; shapes as in `edgesafe_jax.offline_rl.datasets`, without N."""

    state: Array
    action: Array
    next_state: Array
    goal: Array
    reward: Array
    terminal: Array


RewardPolicy = Callable[[Row, Row], tuple[Array, Array]]
"""From a row before and after a transformation to its reward, and whether the row may be used."""


def reward_invariant() -> RewardPolicy:
    """The reward does not change under the group: it is kept."""
    return lambda before, after: (before.reward, jnp.array(True))


def reward_recomputed(reward_fn: RewardFn) -> RewardPolicy:
    """The reward is computed anew from the transformed next state and goal."""
    return lambda before, after: (reward_fn(after.next_state, after.goal), jnp.array(True))


def reward_checked(reward_fn: RewardFn, *, tolerance: float = 1e-3) -> RewardPolicy:
    """The reward is kept; rows whose reward would change by more than `tolerance` are rejected."""

    def policy(before: Row, after: Row) -> tuple[Array, Array]:
        return before.reward, jnp.abs(reward_fn(after.next_state, after.goal) - before.reward) <= tolerance

    return policy


class SamplerData(struct.PyTreeNode):
    """The data that batches are drawn from; an argument of the compiled training, never closed over.

    Attributes:
      rows: the transitions, leaves `[N, ...]`.
      last_rows: `[N]` the last row of the trajectory of each.
      provenance: `[N]` int8.
      elements: leaves `[N, M, ...]`, or None: what each row may be transformed by, the accepted ones first ...
      num_accepted: `[N]`, or None: ... and how many those are.
      noise_std: `[S]` standard deviation of the state noise.
    """

    rows: Row
    last_rows: Array
    provenance: Array
    elements: PyTree
    num_accepted: Array | None
    noise_std: Array


class Batch(struct.PyTreeNode):
    """A batch of transitions for a learner.

    Attributes:
      observations: `[B, S+G]`, state and goal side by side.
      actions: `[B, A]`.
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
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How rows become a batch.

    Attributes:
      achieved: from a state `[S]` to the goal `[G]` that it reaches.
      reward_fn: the reward of a relabelled row.
      reward_policy: the reward of a row after the group acts on it.
      group: what the elements of the bank act by; None: no symmetry.
      domain: where transformed goals have to lie, as a box over goal dimensions; None: anywhere.
      her_fraction: fraction of rows with a hindsight goal.
      augment_fraction: fraction of rows that a symmetry acts on, where it was accepted; the rest stays real.
      add_noise: whether states get noise (S4RL).
    """

    achieved: Callable[[Array], Array]
    reward_fn: RewardFn
    reward_policy: RewardPolicy = dataclasses.field(default_factory=reward_invariant)
    group: GroupAction | None = None
    domain: BoxDomain | None = None
    her_fraction: float = 0.0
    augment_fraction: float = 0.0
    add_noise: bool = False

    def __post_init__(self):
        for name in ("her_fraction", "augment_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise LearningError(f"{name}={getattr(self, name)}: expected a fraction from 0 to 1")
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
      goals have another length than those of the data.
    """

    def one(data: SamplerData, index: Array, draws: Array) -> tuple[Row, Array]:
        row = jax.tree.map(lambda column: column[index], data.rows)
        provenance = data.provenance[index]
        if sampling.her_fraction:
            future = index + _below(draws[0], data.last_rows[index] + 1 - index)
            goal = sampling.achieved(data.rows.next_state[future])
            relabelled = row.replace(goal=goal, reward=sampling.reward_fn(row.next_state, goal))
            row = _select(draws[1] < sampling.her_fraction, relabelled, row)
        if sampling.augment_fraction and data.num_accepted is not None:
            number = _below(draws[2], data.num_accepted[index])
            element = jax.tree.map(lambda leaf: leaf[index, number], data.elements)
            moved, usable = _transform(sampling, row, element)
            use = (data.num_accepted[index] > 0) & usable & (draws[3] < sampling.augment_fraction)
            row = _select(use, moved, row)
            provenance = jnp.where(use, jnp.int8(Provenance.SYMMETRY), provenance)
        return row, provenance

    def sample(key: PRNGKey, data: SamplerData, batch_size: int) -> Batch:
        if sampling.her_fraction:
            _check_goals(sampling, data)
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
    reward, usable = sampling.reward_policy(row, moved)
    if sampling.domain is not None:
        usable = usable & sampling.domain.contains(goal)
    return moved.replace(reward=reward), usable


def _below(draw: Array, count: Array) -> Array:
    """Returns a whole number from 0 to count - 1 (0 if count is 0) of a uniform draw from [0, 1)."""
    return jnp.clip((draw * count.astype(draw.dtype)).astype(count.dtype), 0, jnp.maximum(count - 1, 0))


def _select(condition: Array, yes: Row, no: Row) -> Row:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
