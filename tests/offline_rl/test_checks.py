"""Counts, names and shapes of callables are checked before any work, and failed training is an error."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import DynamicsError, Sizes, Translation, is_wrong, sample_elements
from edgesafe_jax.errors import ConfigError, EdgesafeError
from edgesafe_jax.offline_rl import (
    LearningError,
    Sampling,
    interquartile_mean,
    make_evaluator,
    make_sampler,
    make_sampler_data,
    make_trainer,
    seed_interval,
    tasks,
)
from edgesafe_jax.offline_rl.baselines import uniform_bank
from edgesafe_jax.offline_rl.learners import make_learner
from edgesafe_jax.offline_rl.pipeline import PipelineSettings, PolicySettings, SymmetrySettings, choose_methods
from edgesafe_jax.offline_rl.runs import over_runs, report_runs
from edgesafe_jax.reporting import make_table

TASK = tasks.make_point_mass()
VECTOR = jnp.zeros(3)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("step", lambda s, a: s[:3], r"step of the task 'point_mass' returns the shape \[3\]: expected \[4\]"),
        ("step", lambda s, a: s[None], r"step .* the shape \[1, 4\]: expected \[4\]"),
        ("achieved", lambda s: s, r"achieved .* the shape \[4\]: expected \[2\]"),
        ("start", lambda key, place: place, r"start .* the shape \[2\]: expected \[4\]"),
        ("behaviour", lambda key, s, g: VECTOR, r"behaviour .* the shape \[3\]: expected \[2\]"),
        ("place", lambda key, box: VECTOR, r"place .* the shape \[3\]: expected \[2\]"),
        ("reward_fn", lambda s, g: VECTOR, r"reward_fn .* the shape \[3\]: expected one number"),
        ("terminal", lambda s, g: s > 0, r"terminal .* the shape \[4\]: expected one number"),
        ("tolerance", (0.1, 0.1), "tolerance .* has 2 entries: expected 4"),
        ("group", Translation(Sizes(3, 2, 2), ((0,),), ((0,),), (-1.0,), (1.0,)), "the group of the task"),
    ],
)
def test_callables_of_a_task_are_checked_before_anything_is_compiled(name, function, message):
    task = dataclasses.replace(TASK, **{name: function})
    for use in (
        lambda: tasks.generate(jax.random.key(0), task, num_episodes=1),
        lambda: make_evaluator(task, make_learner("bc"), num_episodes=1),
    ):
        with pytest.raises(tasks.TaskError, match=message):
            use()


@pytest.mark.parametrize("reward", [lambda s, g: True, lambda s, g: 1.0, lambda s, g: s[:1], lambda s, g: s[0] > 0])
def test_rewards_of_a_task_may_be_any_kind_of_number(reward):
    task = dataclasses.replace(TASK, reward_fn=reward, terminal=lambda s, g: False)
    data = tasks.generate(jax.random.key(0), task, num_episodes=2)
    assert data.rewards.dtype == np.float32
    assert tasks.compare_rules(task, data)["rewards_replaced"] == 0


def test_simulators_and_groups_of_other_sizes_are_refused():
    data = tasks.generate(jax.random.key(0), TASK, num_episodes=1).transitions()
    elements = jnp.zeros((len(data.states), 1, 2))
    with pytest.raises(DynamicsError, match=r"the simulator turns a state of shape \[4\] into"):
        is_wrong(lambda s, a: s[:2], TASK.group, elements, data, tolerance=TASK.tolerance)
    with pytest.raises(DynamicsError, match=r"elements of shape \(3, 1, 2\) for 50 samples"):
        is_wrong(TASK.step, TASK.group, elements[:3], data, tolerance=TASK.tolerance)
    other = tasks.make_pusher().group
    with pytest.raises(DynamicsError, match="the group acts on a state of 6, the data have 4"):
        uniform_bank(jax.random.key(0), other, data, tasks.arena_domain(TASK))


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize(
    "use",
    [
        lambda n: tasks.generate(jax.random.key(0), TASK, num_episodes=n),
        lambda n: make_evaluator(TASK, make_learner("bc"), num_episodes=n),
        lambda n: make_trainer(make_learner("bc"), plain(), num_updates=2, batch_size=n),
        lambda n: make_trainer(make_learner("bc"), plain(), num_updates=n),
        lambda n: plain()(jax.random.key(0), None, n),
        lambda n: sample_elements(jax.random.key(0), TASK.group, n),
        lambda n: PolicySettings(num_seeds=n),
        lambda n: SymmetrySettings(num_elements=n),
        lambda n: make_learner("td3_bc", policy_delay=n),
        lambda n: make_learner("awr", num_actions=n),
        lambda n: make_learner("iql", hidden=(8, n)),
    ],
)
def test_counts_are_whole_and_positive(use, count):
    with pytest.raises(EdgesafeError, match="expected"):
        use(count)


def plain():
    return make_sampler(Sampling(achieved=TASK.achieved, reward_fn=TASK.reward))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PipelineSettings(fresh_episodes=-1), "fresh_episodes=-1"),
        (lambda: PolicySettings(her_fraction=1.5), r"her_fraction=1\.5"),
        (lambda: PolicySettings(num_updates=8, updates_per_step=3), "num_updates=8: expected a multiple of"),
        (lambda: make_learner("td3_bc", discount=1.2), r"discount=1\.2"),
        (lambda: make_learner("bc", learning_rate=0.0), r"learning_rate=0\.0"),
        (lambda: make_learner("iql", temperature=math.nan), "temperature=nan"),
    ],
)
def test_settings_out_of_their_range_are_refused(make, message):
    with pytest.raises(LearningError, match=message):
        make()


def test_one_string_is_no_list_of_methods():
    with pytest.raises(ConfigError, match="methods='her' is one string: expected a list of strings"):
        choose_methods("her")
    with pytest.raises(ConfigError, match=r"methods='her_learnt': expected one of .* Did you mean 'her_learned'\?"):
        choose_methods(["her_learnt"])
    with pytest.raises(ConfigError, match=r"learner='td3': expected one of .* Did you mean 'td3_bc'\?"):
        make_learner("td3")


@pytest.mark.parametrize("name", ["td3_bc", "bc"])
def test_training_that_failed_is_an_error(name):
    data = tasks.generate(jax.random.key(0), TASK, num_episodes=2)
    learner = make_learner(name, hidden=(4,))
    trainer = make_trainer(learner, plain(), num_updates=8, batch_size=8)
    sampled = make_sampler_data(data)
    agent = jax.tree.map(
        lambda leaf: leaf * np.float32(1e38) if leaf.dtype == np.float32 else leaf,
        trainer.init(jax.random.key(0), sampled),
    )
    with pytest.raises(LearningError, match=r"training failed: .* is not finite; try a smaller learning rate"):
        trainer.run(jax.random.key(1), agent, sampled)
    broken, _ = jax.jit(trainer.run)(jax.random.key(1), agent, sampled)
    agents = jax.tree.map(lambda leaf: leaf[None], broken)
    with pytest.raises(LearningError, match="training failed"):
        make_evaluator(TASK, learner, num_episodes=1)(jax.random.key(0), agents, TASK.data)


def test_of_one_seed_or_run_there_is_no_interval():
    for found in (seed_interval(np.array([[1, 1, 1, 0]])), over_runs([0.75])):
        assert found.estimate == 0.75
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert make_table([{"success": found}]).to_text().endswith("0.75 [no interval]")
    report = report_runs([{"offline_rl/her/all": 0.75}], ["her"])
    assert report.values["her/all"] == 0.75
    assert "her/all_low" not in report.values
    with pytest.raises(EdgesafeError, match="at least one"):
        interquartile_mean(np.array([]))
