"""Planners where inputs are extreme: outliers among the costs, targets that change, 64-bit numbers, wrong counts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import Outcomes, PlanningError

LOW, HIGH = np.float32([-1.0, -1.0]), np.float32([1.0, 1.0])
KW = {"low": LOW, "high": HIGH, "horizon": 8}


def to_target(target, actions):
    return Outcomes(jnp.sum((actions - target) ** 2, axis=(1, 2)), jnp.zeros(actions.shape[0]))


# MPPI -----------------------------------------------------------------------------------------------------------------


def effective_samples(costs, temperature=0.1):
    weight = planning.path_integral_weights(Outcomes(jnp.float32(costs), jnp.zeros(len(costs))), temperature)
    return 1.0 / float(jnp.sum(weight**2)), np.asarray(weight)


@pytest.mark.parametrize("penalty", [1e3, 1e6, 1e20, 3e38])
@pytest.mark.parametrize("number", [1, 10, 49, 60, 90])
def test_penalties_leave_the_weights_of_the_other_trajectories_as_they_are(penalty, number):
    costs = np.random.default_rng(0).normal(size=100)
    _, alone = effective_samples(np.concatenate([costs[number:], np.full(number, np.inf)]))
    samples, weight = effective_samples(np.concatenate([costs[number:], np.full(number, penalty)]))
    assert samples < 0.7 * (100 - number)
    assert np.argmax(weight) == np.argmax(alone)
    assert np.sum(weight[100 - number :]) < 1e-6
    # A penalty counts among the trajectories, so that the better half is a little larger than without.
    assert 0.25 < samples / (1.0 / np.sum(alone**2)) < 4.0


def test_the_scale_of_normal_costs_is_their_standard_deviation():
    costs = 5.0 * np.random.default_rng(1).normal(size=20_000)
    scale = planning.mppi.cost_scale(jnp.float32(costs), jnp.ones(len(costs), bool))
    assert float(scale) == pytest.approx(5.0, rel=0.03)


def test_a_collision_does_not_take_the_temperature_from_mppi():
    def with_collision(target, actions):
        outcomes = to_target(target, actions)
        return Outcomes(outcomes.cost.at[1].set(1e20), outcomes.violation)

    target = jnp.float32(0.7)
    costs = []
    for simulator in (to_target, with_collision):
        planner = planning.make_mppi(simulator, **KW, num_iterations=4)
        plan, state = jax.jit(planner.plan), planner.init()
        for step in range(6):
            _, state, made = plan(jax.random.fold_in(jax.random.key(0), step), state, target)
        costs.append(float(to_target(target, made.actions[None]).cost[0]))
    assert costs[1] < 2.0 * costs[0] + 0.05


# PETS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pets_cem", "cem", "icem", "mppi"])
def test_a_target_that_flips_is_followed(name):
    planner = planning.PLANNERS[name](to_target, **KW, budget=100, noise_beta=0.5)
    plan, state, actions = jax.jit(planner.plan), planner.init(), []
    for step in range(60):
        target = jnp.float32(1.0 if step < 25 else -1.0)
        action, state, _ = plan(jax.random.fold_in(jax.random.key(1), step), state, target)
        actions.append(np.asarray(action))
    assert np.mean(actions[15:25]) > 0.4
    assert np.mean(actions[45:]) < -0.4


def test_the_last_entry_of_the_moved_mean_of_pets_is_the_middle():
    planner = planning.make_pets_cem(to_target, low=[-1.0], high=[3.0], horizon=5)
    _, state, _ = jax.jit(planner.plan)(jax.random.key(0), planner.init(), jnp.float32(2.5))
    assert float(state.mean[-1, 0]) == 1.0
    assert np.all(np.abs(state.mean[:-1, 0] - 1.0) > 0.1)


# 64 bits --------------------------------------------------------------------------------------------------------------


def step64(position, action):
    position = position + action[0]
    return position, planning.step_result(position**2, violation=jnp.abs(position) - 3.0, done=position > 2.5)


# The ablations are iCEM with other settings.
@pytest.mark.parametrize("name", [name for name in planning.PLANNERS if not name.startswith("icem_")])
def test_every_planner_runs_with_64_bits(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for simulator in (
            planning.make_simulator(step64),
            planning.combine_simulators([planning.make_simulator(step64)] * 2, risk=planning.make_cvar(0.5)),
        ):
            planner = planning.PLANNERS[name](
                simulator, low=[-1.0], high=[1.0], horizon=4, budget=50, noise_beta=jnp.float64(1.0)
            )
            plan = jax.jit(planner.plan)
            _, state, _ = plan(jax.random.key(0), planner.init(), jnp.float64(1.0))
            action, state, made = plan(jax.random.key(1), state, jnp.float64(1.0))
            chex.assert_tree_all_finite((action, made))
            assert action.dtype == jnp.float32


def test_everything_around_a_planner_runs_with_64_bits():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        task = planning.double_integrator()
        planner = planning.make_planner("icem", task.simulator(), task, budget=50, horizon=4)
        episode = planning.run_episode(planner, task, seed=0, num_steps=3)
        assert np.isfinite(episode.results.cost).all()
        knots = planning.make_knots(8, 3)
        planner = planning.make_icem(
            to_target,
            **KW,
            knots=knots,
            proposal=lambda key, env: jnp.zeros((2, 3, 2)),
            settings=planning.IcemSettings(population="padded"),
        )
        jax.jit(planner.plan)(jax.random.key(0), planner.init(), jnp.float64(0.5))
        costs = jnp.ones((3, 5))
        for risk in (planning.mean_cost, planning.worst_cost, planning.make_cvar(0.4), planning.make_exponential(1.0)):
            assert risk(costs).shape == (5,)
        models = jnp.asarray([0.5, 1.0])
        simulator = planning.make_ensemble_simulator(
            lambda model, state, action: step64(state, model * action), models, risk=planning.mean_cost
        )
        assert simulator(jnp.float64(0.1), jnp.ones((2, 3, 1))).cost.shape == (2,)


# Counts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, np.nan, np.inf, True, "3", None])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: planning.make_icem(to_target, low=LOW, high=HIGH, horizon=value),
        lambda value: planning.make_icem(to_target, **KW, num_iterations=value),
        lambda value: planning.make_cem(to_target, **KW, num_samples=value),
        lambda value: planning.make_mppi(to_target, **KW, num_samples=value),
        lambda value: planning.make_random_shooting(to_target, **KW, num_samples=value),
        lambda value: planning.make_knots(value, 2),
        lambda value: planning.make_knots(8, value),
        lambda value: planning.repeat_actions(to_target, value),
        lambda value: planning.make_planner("cem", to_target, planning.double_integrator(), budget=value),
    ],
)
def test_counts_that_are_none_are_refused(make, value):
    with pytest.raises(PlanningError, match="expected"):
        make(value)


@pytest.mark.parametrize("name", ["temperature", "std", "iteration_decay", "horizon_decay"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, "a"])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(PlanningError, match=f"{name}="):
        planning.make_mppi(to_target, **KW, settings=planning.MppiSettings(**{name: value}))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda state, action: state, r"the step returned a .*expected step\(state, action \[A\]\)"),
        (lambda state, action: (state, {"cost": 0.0}), "the result of a step is a dict: expected a StepResult"),
        (lambda state, action: (jnp.append(state, 0.0), 0.0), r"a state of \[3\] from one of \[2\]: expected step"),
    ],
)
def test_a_step_of_another_kind_shows_the_signature(step, message):
    with pytest.raises(planning.PlanningError, match=message):
        planning.make_simulator(step)(jnp.zeros(2), jnp.zeros((3, 4, 1)))


def test_a_simulator_of_another_kind_shows_the_signature():
    planner = planning.make_icem(lambda state, actions: actions[:, 0, 0], low=[-1.0], high=[1.0], horizon=4)
    with pytest.raises(
        planning.PlanningError, match=r"expected simulator\(env_state, actions \[N, T, A\]\) -> Outcomes"
    ):
        planner.plan(jax.random.key(0), planner.init(), None)
