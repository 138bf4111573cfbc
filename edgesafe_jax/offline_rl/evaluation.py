"""Evaluation of policies in the true dynamics, by stratum, all seeds and episodes at once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.errors import check_counts
from edgesafe_jax.metrics import bootstrap_interval
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.offline_rl.datasets import DatasetError
from edgesafe_jax.offline_rl.learning import Agent, Learner, check_agent
from edgesafe_jax.offline_rl.tasks import Stratum, Task, check_task, sample_goal, sample_start
from edgesafe_jax.typing import Array, PRNGKey


class Episodes(struct.PyTreeNode):
    """Outcomes of episodes.

    Attributes:
      success: `[..., N]` whether the final distance to the goal is below the task's radius.
      final_distance: `[..., N]` in the units of the goal.
      goal_distance: `[..., N]` distance from the start to the goal.
    """

    success: Array
    final_distance: Array
    goal_distance: Array


def make_evaluator(task: Task, learner: Learner, *, num_episodes: int) -> Callable[[PRNGKey, Agent, Stratum], Episodes]:
    """Makes the evaluation of one stratum, compiled once for agents of one shape and each stratum.

    Args:
      task: the task, whose true dynamics act.
      learner: the algorithm of the agents.
      num_episodes: N.

    Returns:
      From a key, agents with a leading axis of seeds `[R, ...]` and a stratum to episodes `[R, N]`. Every seed sees the
      same starts and goals.
    """
    check_counts(num_episodes=num_episodes)
    check_task(task)

    def episode(key: PRNGKey, agent: Agent, stratum: Stratum) -> Episodes:
        key_start, key_goal = jax.random.split(key)
        start, goal = sample_start(key_start, task, stratum), sample_goal(key_goal, task, stratum)

        def step(state: Array, _: None) -> tuple[Array, None]:
            action = agent.act(learner, jnp.concatenate([state, goal]))
            after = task.step(state, action)
            return after if task.terminal is None else jnp.where(task.ends(state, goal), state, after), None

        last, _ = jax.lax.scan(step, start, None, length=task.horizon)
        distance = jnp.linalg.norm(task.achieved(last) - goal)
        return Episodes(distance < task.radius, distance, jnp.linalg.norm(task.achieved(start) - goal))

    @functools.partial(jax.jit, static_argnums=2)
    def compiled(key: PRNGKey, agents: Agent, stratum: Stratum) -> Episodes:
        keys = jax.random.split(key, num_episodes)
        many = jax.vmap(episode, in_axes=(0, None, None))
        return jax.vmap(many, in_axes=(None, 0, None))(keys, agents, stratum)

    def evaluate(key: PRNGKey, agents: Agent, stratum: Stratum) -> Episodes:
        check_agent(agents)
        return compiled(key, agents, stratum)

    return evaluate


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: the lowest and the highest quarter of the values are left out.

    Args:
      values: any shape, at least one value; `floor(n / 4)` values are left out at each end.

    Returns:
      The mean of the rest.

    Raises:
      DatasetError: there is no value.

    Example:
      >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 9.0]))
      1.5

    Reference:
      Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021.
    """
    if not np.size(values):
        raise DatasetError("values has no entry: expected at least one")
    ordered = np.sort(np.asarray(values, np.float64).reshape(-1))
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))


def seed_interval(success: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interquartile mean over seeds of the success rate, with a bootstrap interval over seeds.

    Args:
      success: `[R, N]` of R seeds and N episodes each.
      confidence: coverage aimed at.

    Returns:
      The estimate and its interval, none of one seed. Episodes are shared by the seeds and are not resampled: the
      interval speaks of training again, not of other episodes.
    """
    return interval_over(np.asarray(success, np.float64).mean(axis=1), confidence=confidence)


def interval_over(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Interquartile mean of seeds or runs with a bootstrap interval over them.

    Args:
      values: `[R]`.
      confidence: coverage aimed at.

    Returns:
      The estimate and its interval; of a single value there is none, see `bootstrap_interval`.
    """
    return bootstrap_interval(values, statistic=interquartile_mean, confidence=confidence)
