"""Data, learners, evaluation and baselines run with double precision switched on."""

import jax
import numpy as np
import pytest

from edgesafe_jax.dynamics import EnsembleSettings, fit_ensemble
from edgesafe_jax.offline_rl import (
    Sampling,
    make_evaluator,
    make_sampler,
    make_sampler_data,
    make_trainer,
    reward_recomputed,
    tasks,
)
from edgesafe_jax.offline_rl.baselines import model_rollouts, uniform_bank
from edgesafe_jax.offline_rl.learners import LEARNERS
from edgesafe_jax.offline_rl.maze import make_point_maze

WORLDS = {"pusher": tasks.make_pusher, "walls": tasks.make_walled_point_mass, "point_maze": make_point_maze}


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_generate_data_and_banks(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        task = WORLDS[name]()
        data = tasks.generate(jax.random.key(0), task, num_episodes=4)
        assert tasks.compare_rules(task, data) == {"rewards_replaced": 0.0, "terminals_replaced": 0.0}
        transitions = data.transitions()
        bank = uniform_bank(jax.random.key(1), task.group, transitions, tasks.arena_domain(task), num_elements=2)
        sampling = Sampling(
            achieved=task.achieved,
            reward_fn=task.reward,
            reward_policy=reward_recomputed(task.reward),
            group=task.group,
            domain=tasks.goal_domain(task),
            her_fraction=0.5,
            augment_fraction=0.5,
            add_noise=True,
            terminal_fn=task.ends,
        )
        sampled = make_sampler_data(data, bank=bank, noise_scale=0.1)
        batch = jax.jit(make_sampler(sampling), static_argnums=2)(jax.random.key(2), sampled, 32)
        assert batch.observations.shape == (32, task.sizes.state + task.sizes.goal)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_train_and_are_evaluated(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        task = tasks.make_point_mass()
        data = tasks.generate(jax.random.key(0), task, num_episodes=4)
        data = data.replace(actions=3 * data.actions)
        learner = LEARNERS[name](hidden=(4,))
        sampler = make_sampler(Sampling(achieved=task.achieved, reward_fn=task.reward, her_fraction=0.5))
        trainer = make_trainer(learner, sampler, num_updates=4, batch_size=8)
        sampled, keys = make_sampler_data(data), jax.random.split(jax.random.key(1), 2)
        agents = jax.vmap(trainer.init, in_axes=(0, None))(keys, sampled)
        agents, metrics = jax.jit(jax.vmap(trainer.run, in_axes=(0, 0, None)))(keys, agents, sampled)
        assert all(np.isfinite(np.asarray(value)).all() for value in metrics.values())
        found = make_evaluator(task, learner, num_episodes=3)(jax.random.key(2), agents, task.data)
        assert found.success.shape == (2, 3)


def test_rollouts_of_a_model():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        task = tasks.make_point_mass()
        data = tasks.generate(jax.random.key(0), task, num_episodes=6)
        parts = data.transitions()
        settings = EnsembleSettings(num_members=2, num_elites=1, hidden=(4,), num_epochs=1)
        ensemble, _ = fit_ensemble(
            jax.random.key(0), parts.take(parts.episodes < 3), parts.take(parts.episodes >= 3), settings
        )
        rolled = model_rollouts(jax.random.key(1), ensemble, data, task.reward, num_rollouts=3, length=2)
        assert rolled.num_transitions == 6
