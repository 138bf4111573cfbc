"""The learner protocol, and its whole training in one scan.

An *update* is one gradient step of the critic (of the policy for a learner without a critic) on one batch; a learner
that moves its policy every second critic step takes two batches a call, so that nothing is computed and thrown away.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.core import Tracer

from edgesafe_jax.dynamics import standardizer
from edgesafe_jax.errors import (
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_COUNT,
    ConfigError,
    Range,
    check_counts,
    check_ranges,
)
from edgesafe_jax.offline_rl.datasets import Provenance
from edgesafe_jax.offline_rl.relabelling import Batch, BatchSampler, LearningError, SamplerData
from edgesafe_jax.typing import Array, Params, PRNGKey, PyTree


class Learner(NamedTuple):
    """An offline algorithm as three pure functions.

    Attributes:
      init: from a key, an observation `[M]` and an action `[A]` (only their sizes matter) to a state.
      update: from a key, a state and batches (leaves `[batches_per_call, B, ...]`) to the next state and metrics.
      act: from a state and an observation `[M]` to the deterministic action `[A]` in [-1, 1].
      batches_per_call: updates that one call of `update` makes.
    """

    init: Callable[[PRNGKey, Array, Array], PyTree]
    update: Callable[[PRNGKey, PyTree, Batch], tuple[PyTree, Mapping[str, Array]]]
    act: Callable[[PyTree, Array], Array]
    batches_per_call: int = 1


class Agent(struct.PyTreeNode):
    """A learner's state with the normaliser of its observations.

    Attributes:
      learner: the learner's state.
      mean: `[M]` subtracted from observations.
      std: `[M]` that they are divided by.
      action_range: ends `[A]` of the world's actions, which the learner's [-1, 1] are scaled to; None: they are these.
    """

    learner: PyTree
    mean: Array
    std: Array
    action_range: tuple[Array, Array] | None = None

    def act(self, learner: Learner, observation: Array) -> Array:
        """Returns the policy's action `[A]` in the units of the world, for an observation `[M]` in its units."""
        action = learner.act(self.learner, self.normalize(observation))
        if self.action_range is None:
            return action
        low, high = self.action_range
        return low + (action + 1) / 2 * (high - low)

    def normalize(self, observations: Array) -> Array:
        """Returns observations `[..., M]` normalised."""
        return (observations - jnp.broadcast_to(self.mean, observations.shape)) / jnp.broadcast_to(
            self.std, observations.shape
        )


class Trainer(NamedTuple):
    """Training as two pure functions, for one seed; `jax.vmap` over keys and agents trains many at once.

    Attributes:
      init: from a key and data to an agent; its normaliser is fitted on batches as the sampler draws them, after
        relabelling and augmentation.
      run: from a key, an agent and data to the trained agent and the mean of each metric; ``augmented`` is the fraction
        of rows that are not as they were in the data (moved, noisy or made by a model), goals aside.
    """

    init: Callable[[PRNGKey, SamplerData], Agent]
    run: Callable[[PRNGKey, Agent, SamplerData], tuple[Agent, Mapping[str, Array]]]


def make_trainer(
    learner: Learner,
    sampler: BatchSampler,
    *,
    num_updates: int,
    batch_size: int = 256,
    normalize: bool = True,
    normalizer_samples: int = 8192,
) -> Trainer:
    """Makes the training of a learner.

    Args:
      learner: the algorithm.
      sampler: how batches are drawn.
      num_updates: updates of one `run`, a multiple of `learner.batches_per_call`.
      batch_size: rows of a batch.
      normalize: whether observations are normalised; else the agent is given them in the units of the world.
      normalizer_samples: rows that the normaliser is fitted on.

    Returns:
      The pair of functions; neither is jitted.

    Raises:
      LearningError: if `num_updates` is no such multiple, or less than 1.

    Example:
      >>> from edgesafe_jax.offline_rl import make_bc, make_sampler, Sampling
      >>> sampler = make_sampler(Sampling(achieved=lambda s: s[:2], reward_fn=lambda s, g: jnp.zeros(())))
      >>> trainer = make_trainer(make_bc(hidden=(8,)), sampler, num_updates=100)
      >>> callable(trainer.init) and callable(trainer.run)
      True
    """
    check_counts(batch_size=batch_size, normalizer_samples=normalizer_samples)
    count = learner.batches_per_call
    if num_updates not in POSITIVE_COUNT or num_updates % count:
        raise LearningError(f"num_updates={num_updates}: expected a multiple of {count}, at least {count}")

    def init(key: PRNGKey, data: SamplerData) -> Agent:
        key_rows, key_learner = jax.random.split(key)
        rows = sampler(key_rows, data, normalizer_samples)
        mean, std = standardizer(rows.observations)
        if not normalize:
            mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
        return Agent(
            learner.init(key_learner, rows.observations[0], rows.actions[0]), mean, std, action_range=data.action_range
        )

    def run(key: PRNGKey, agent: Agent, data: SamplerData) -> tuple[Agent, Mapping[str, Array]]:
        def step(state: PyTree, key: PRNGKey) -> tuple[PyTree, Mapping[str, Array]]:
            key_rows, key_update = jax.random.split(key)
            rows = sampler(key_rows, data, count * batch_size)
            rows = rows.replace(
                observations=agent.normalize(rows.observations),
                next_observations=agent.normalize(rows.next_observations),
            )
            batches = jax.tree.map(lambda leaf: leaf.reshape(count, batch_size, *leaf.shape[1:]), rows)
            state, metrics = learner.update(key_update, state, batches)
            changed = jnp.mean((rows.provenance != Provenance.REAL).astype(jnp.float32))
            return state, {**metrics, "augmented": changed}

        state, metrics = jax.lax.scan(step, agent.learner, jax.random.split(key, num_updates // count))
        trained, means = agent.replace(learner=state), jax.tree.map(jnp.mean, metrics)
        check_agent(trained, means)
        return trained, means

    return Trainer(init, run)


def check_agent(agent: Agent, metrics: Mapping[str, Array] | None = None) -> None:
    """Refuses agents whose training failed; within a compiled function it does nothing.

    Args:
      agent: one agent, or several with leading axes.
      metrics: of its training.

    Raises:
      LearningError: a parameter or a metric is not finite.
    """
    named = jax.tree_util.tree_leaves_with_path((agent, dict(metrics or {})))
    if any(isinstance(leaf, Tracer) for _, leaf in named):
        return
    for path, leaf in named:
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.all(jnp.isfinite(leaf))):
            name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise LearningError(
                f"training failed: {name} is not finite; try a smaller learning rate or look at the data"
            )


def check_learner(**settings: Any) -> None:
    """Checks settings that learners have in common.

    Raises:
      LearningError: a number is out of range.
    """
    try:
        check_ranges(settings, {name: _RANGES[name] for name in settings}, prefix="")
    except ConfigError as error:
        raise LearningError(str(error)) from None


_RANGES = {
    "hidden": POSITIVE_COUNT,
    "learning_rate": POSITIVE,
    "discount": FRACTION,
    "target_rate": FRACTION,
    "policy_noise": NON_NEGATIVE,
    "noise_clip": NON_NEGATIVE,
    "policy_delay": POSITIVE_COUNT,
    "bc_weight": NON_NEGATIVE,
    "expectile": Range(0, 1, above=True, below=True, expected="a number inside (0, 1)"),
    "temperature": POSITIVE,
    "max_weight": POSITIVE,
    "num_actions": POSITIVE_COUNT,
}


class MLP(nn.Module):
    """Dense layers with ReLU between them.

    Attributes:
      sizes: widths, the output's last.
    """

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """From `[..., M]` to `[..., sizes[-1]]`."""
        x = inputs
        for width in self.sizes[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.sizes[-1])(x)


class NetworkState(struct.PyTreeNode):
    """The parameters of one network with the state of their optimiser."""

    params: Params
    opt_state: optax.OptState


def start_training(params: Params, optimizer: optax.GradientTransformation) -> NetworkState:
    """Returns parameters with a fresh optimiser state."""
    return NetworkState(params, optimizer.init(params))


def descend(network: NetworkState, gradient: PyTree, optimizer: optax.GradientTransformation) -> NetworkState:
    """Takes one optimiser step."""
    with jax.numpy_dtype_promotion("standard"):  # Optax itself relies on it: decay ** count.
        updates, opt_state = optimizer.update(gradient, network.opt_state, network.params)
        return NetworkState(optax.apply_updates(network.params, updates), opt_state)  # type: ignore[arg-type]


def init_critics(key: PRNGKey, network: MLP, observation: Array, action: Array) -> tuple[Params, Params]:
    """Returns the parameters of two critics of (observation, action)."""
    inputs = jnp.concatenate([observation, action])
    first, second = jax.random.split(key)
    return network.init(first, inputs)["params"], network.init(second, inputs)["params"]


def critic_values(network: MLP, params: tuple[Params, Params], observations: Array, actions: Array) -> Array:
    """Returns the values `[2, B]` of both critics."""
    inputs = jnp.concatenate([observations, actions], -1)
    return jnp.stack([network.apply({"params": each}, inputs)[..., 0] for each in params])  # type: ignore[index]


def polyak(target: PyTree, online: PyTree, rate: float) -> PyTree:
    """Returns (1 - rate) target + rate online."""
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)
