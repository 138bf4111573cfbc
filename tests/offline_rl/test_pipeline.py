"""A data set of one's own, a task of one's own and a method of one's own, without a launcher."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import EnsembleSettings, ReachSettings, WorldModelSettings
from edgesafe_jax.offline_rl import make_learner, make_sampler_data, tasks
from edgesafe_jax.offline_rl.methods import METHODS, Method
from edgesafe_jax.offline_rl.pipeline import PipelineSettings, PolicySettings, SymmetrySettings, run_pipeline
from edgesafe_jax.offline_rl.report import report_policies, save_report

SETTINGS = PipelineSettings(
    model=WorldModelSettings(
        ensemble=EnsembleSettings(num_members=2, num_elites=1, hidden=(8,), num_epochs=2, batch_size=64), alpha=0.4
    ),
    symmetry=SymmetrySettings(num_elements=2, reach=ReachSettings(num_steps=2, hidden=(8,))),
    policies=PolicySettings(num_updates=4, updates_per_step=4, batch_size=16, num_seeds=1, num_episodes=3),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    task = tasks.make_point_mass()
    own = tasks.generate(jax.random.key(0), task, num_episodes=120)
    near = np.linalg.norm(own.next_states[:, :2] - own.goals, axis=1) < task.radius
    sparse = own.replace(rewards=near.astype(np.float32), actions=np.float32(2 * own.actions))
    seen = {}

    def half(inputs):
        seen["seed"] = inputs.seed
        return make_sampler_data(inputs.dataset)

    METHODS["half"] = Method(half, her=True)
    try:
        ending = dataclasses.replace(task, terminal=lambda s, g: jnp.linalg.norm(s[:2] - g) < task.radius)
        workdir = tmp_path_factory.mktemp("run")
        found = run_pipeline(
            ending,
            sparse,
            make_learner("td3_bc", hidden=(8,)),
            SETTINGS,
            workdir,
            methods=("none", "half", "her_learned"),
        )
    finally:
        del METHODS["half"]
    assert seen == {"seed": 0}
    return found, near, workdir


def test_every_method_is_evaluated_in_every_stratum(results):
    found, _, workdir = results
    assert set(found.episodes) == {"none", "half", "her_learned"}
    for strata in found.episodes.values():
        assert set(strata) == set(found.task.strata)
        assert all(episodes.success.shape == (1, 3) for episodes in strata.values())
    assert (workdir / "methods" / "half" / "metrics.jsonl").exists()
    assert set(found.banks) == {"symmetry"}


def test_the_summary_says_how_many_rewards_and_terminals_are_the_tasks(results):
    found, near, workdir = results
    assert found.replaced["rewards_replaced"] > 0.9
    assert found.replaced["terminals_replaced"] == pytest.approx(near.mean())
    save_report(workdir, "mine", report_policies(found))
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["mine/data/rewards_replaced"] == found.replaced["rewards_replaced"]
    assert "mine/none/far_goals_low" not in summary  # of one seed there is no interval
    assert "no interval can be given" in (workdir / "report.html").read_text()
    assert "Rewards and terminals of all rows" in (workdir / "report.html").read_text()


def test_policies_act_in_the_range_of_the_data(results):
    found, _, _ = results
    low, high = found.agents["none"].action_range
    assert low.shape == (1, 2)
    assert float(high.max()) > 1.9
    assert float(low.min()) < -1.9
