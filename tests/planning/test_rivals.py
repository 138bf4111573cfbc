"""The other planners, the risks and the simulators: closed forms, invariants, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import Outcomes, PlanningError, StepResult

LOW, HIGH, TARGET = np.float32([-1.0]), np.float32([3.0]), 1.7


def bowl(limit, actions):
    """Its optimum is known, every action equals TARGET; not finite where the first action is above the limit."""
    cost = jnp.sum((actions - TARGET) ** 2, axis=(1, 2))
    return Outcomes(jnp.where(actions[:, 0, 0] > limit, jnp.nan, cost), jnp.zeros(actions.shape[0]))


KW = {"low": LOW, "high": HIGH, "horizon": 5}
MAKERS = {
    "icem": lambda sim, **kw: planning.make_icem(sim, **KW, **kw),
    "cem": lambda sim, **kw: planning.make_cem(sim, **KW, **kw),
    "pets": lambda sim, **kw: planning.make_pets_cem(sim, **KW, **kw),
    "planet": lambda sim, **kw: planning.make_planet_cem(sim, **KW, num_samples=100, num_elites=10, **kw),
    "mppi": lambda sim, **kw: planning.make_mppi(sim, **KW, num_iterations=3, **kw),
    "mppi_colored": lambda sim, **kw: planning.make_mppi(sim, **KW, num_iterations=3, noise_beta=1.0, **kw),
    "dial": lambda sim, **kw: planning.make_dial(sim, **KW, **kw),
    "predictive": lambda sim, **kw: planning.make_predictive_sampling(sim, **KW, **kw),
    "shooting": lambda sim, **kw: planning.make_random_shooting(sim, **KW, **kw),
}


@functools.cache
def compiled(name):
    planner = MAKERS[name](bowl)
    return planner, jax.jit(planner.plan)


@pytest.mark.parametrize("name", MAKERS)
def test_every_planner_comes_near_a_known_optimum(name):
    planner, plan = compiled(name)
    state = planner.init()
    for step in range(8):
        action, state, made = plan(jax.random.fold_in(jax.random.key(0), step), state, jnp.float32(np.inf))
    assert float(made.best_cost) < (3.0 if name == "shooting" else 0.5)
    assert action.shape == (1,)
    assert made.actions.shape == (5, 1)
    np.testing.assert_allclose(action, made.actions[0])
    actions = np.asarray(made.actions)
    assert np.all((actions >= LOW) & (actions <= HIGH))
    assert int(made.num_nonfinite) == int(made.num_infeasible) == 0
    jax.tree.map(lambda new, old: np.testing.assert_equal(new.shape, old.shape), state, planner.init())


@pytest.mark.parametrize("name", MAKERS)
def test_no_planner_follows_what_is_not_finite(name):
    planner, plan = compiled(name)
    state = planner.init()
    for step in range(3):
        action, state, made = plan(jax.random.fold_in(jax.random.key(1), step), state, jnp.float32(1.0))
        assert np.isfinite(action).all()
        assert float(action[0]) <= 1.05
        assert np.isfinite(made.best_cost)
    assert int(made.num_nonfinite) > 0


@pytest.mark.parametrize("name", ["mppi", "dial", "predictive", "shooting"])
def test_without_a_finite_trajectory_the_plan_stays(name):
    planner, plan = compiled(name)
    action, state, made = plan(jax.random.key(0), planner.init(), jnp.float32(-np.inf))
    np.testing.assert_allclose(action, (LOW + HIGH) / 2)
    np.testing.assert_allclose(state, planner.init())
    assert made.best_cost == np.inf


def test_predictive_sampling_keeps_the_last_plan_among_its_candidates():
    # The cost of the plan that was executed, one step later, is never beaten by accident: it can only fall.
    planner = planning.make_predictive_sampling(bowl, **KW, num_samples=4)
    plan, state, last = jax.jit(planner.plan), planner.init(), np.inf
    for step in range(10):
        _, state, made = plan(jax.random.fold_in(jax.random.key(2), step), state, jnp.float32(np.inf))
        kept = float(jnp.sum((made.actions[1:] - TARGET) ** 2) + (made.actions[-1, 0] - TARGET) ** 2)
        assert float(made.best_cost) <= last + 1e-5
        last = kept


def test_path_integral_weights():
    cost = jnp.array([1.0, 2.0, 4.0, jnp.nan])
    none = jnp.zeros(4)
    weight = planning.path_integral_weights(Outcomes(cost, none), 0.5)
    scale = np.std([1.0, 2.0, 4.0]) / np.sqrt(1 - 2 / np.pi)  # of so few, all are the better half
    scaled = np.exp(-np.array([1.0, 2.0, 4.0]) / (0.5 * scale))
    np.testing.assert_allclose(weight[:3], scaled / scaled.sum(), rtol=1e-5)
    assert weight[3] == 0
    # The unit of the costs does not matter, nor does what all have in common.
    np.testing.assert_allclose(planning.path_integral_weights(Outcomes(100 * cost - 7, none), 0.5), weight, rtol=1e-4)
    # What keeps the constraints goes first; where none does, the least violation does.
    weight = planning.path_integral_weights(Outcomes(cost, jnp.array([1.0, 0.0, 0.0, 0.0])), 0.5)
    assert weight[0] == 0
    weight = planning.path_integral_weights(Outcomes(cost, jnp.array([3.0, 2.0, 1.0, 1.0])), 0.1)
    assert weight[2] > 0.9
    equal = planning.path_integral_weights(Outcomes(jnp.ones(4), none), 0.1)
    np.testing.assert_allclose(equal, 0.25)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (planning.make_mppi, {"settings": planning.MppiSettings(temperature=0.0)}, "temperature=0"),
        (planning.make_mppi, {"settings": planning.MppiSettings(std=-1.0)}, "std=-1"),
        (planning.make_mppi, {"settings": planning.MppiSettings(iteration_decay=0.0)}, "iteration_decay=0"),
        (planning.make_mppi, {"settings": planning.MppiSettings(horizon_decay=1.5)}, r"horizon_decay=1\.5"),
        (planning.make_mppi, {"num_samples": 1}, "num_samples=1"),
        (planning.make_mppi, {"knots": planning.make_knots(9, 3)}, "horizon of 9"),
        (planning.make_mppi, {"low": HIGH, "high": LOW}, "reversed"),
        (planning.make_predictive_sampling, {"std": 0.0}, "std=0"),
        (planning.make_predictive_sampling, {"horizon": 0}, "horizon=0"),
        (planning.make_random_shooting, {"high": [np.inf]}, "finite bounds"),
        (planning.make_cem, {"num_elites": 40}, "num_elites=40"),
        (planning.make_dial, {"num_knots": 1}, "num_knots=1"),
    ],
)
def test_bad_options(make, options, match):
    with pytest.raises(PlanningError, match=match):
        make(bowl, **{**KW, **options})


# Risk -----------------------------------------------------------------------------------------------------------------

COSTS = np.float32([[1.0, 10.0], [2.0, -1.0], [3.0, 0.0], [4.0, 1.0]])  # [M, N]


def test_risks_in_closed_form():
    np.testing.assert_allclose(planning.mean_cost(COSTS), [2.5, 2.5])
    np.testing.assert_allclose(planning.worst_cost(COSTS), [4.0, 10.0])
    np.testing.assert_allclose(planning.make_cvar(0.5)(COSTS), [3.5, 5.5])
    np.testing.assert_allclose(planning.make_cvar(0.375)(COSTS), [(4 + 0.5 * 3) / 1.5, (10 + 0.5 * 1) / 1.5], rtol=1e-6)
    expected = np.log(np.mean(np.exp(0.7 * COSTS.astype(float)), axis=0)) / 0.7
    np.testing.assert_allclose(planning.make_exponential(0.7)(COSTS), expected, rtol=1e-5)


def test_risks_meet_at_their_ends():
    costs = jax.random.normal(jax.random.key(0), (5, 7))
    np.testing.assert_allclose(planning.make_cvar(1.0)(costs), planning.mean_cost(costs), rtol=1e-5)
    np.testing.assert_allclose(planning.make_cvar(0.2)(costs), planning.worst_cost(costs), rtol=1e-5)
    np.testing.assert_allclose(planning.make_cvar(0.01)(costs), planning.worst_cost(costs), rtol=1e-5)
    np.testing.assert_allclose(planning.make_exponential(1e-3)(costs), planning.mean_cost(costs), atol=2e-3)
    np.testing.assert_allclose(planning.make_exponential(500.0)(costs), planning.worst_cost(costs), atol=5e-3)
    for risk in (planning.make_cvar(0.4), planning.make_exponential(3.0)):
        assert np.all(risk(costs) >= planning.mean_cost(costs) - 1e-5)
        assert np.all(risk(costs) <= planning.worst_cost(costs) + 1e-5)


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, np.nan])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(PlanningError, match="fraction="):
        planning.make_cvar(fraction)


def test_an_aversion_of_zero():
    with pytest.raises(PlanningError, match="mean_cost"):
        planning.make_exponential(0)


# Simulators -----------------------------------------------------------------------------------------------------------


def drift(model, position, action):
    position = position + model * action[0]
    return position, planning.step_result(position**2, violation=position - 1.0)


def test_a_simulator_sums_costs_and_violations_over_time():
    simulator = planning.make_simulator(lambda s, a: drift(1.0, s, a), terminal_cost=lambda s: 100 * s)
    actions = jnp.float32([[[1.0], [1.0], [-3.0]], [[0.0], [0.5], [0.0]]])
    outcomes = jax.jit(simulator)(jnp.float32(0.5), actions)
    np.testing.assert_allclose(outcomes.cost, [1.5**2 + 2.5**2 + 0.5**2 - 50, 0.25 + 1 + 1 + 100], rtol=1e-5)
    np.testing.assert_allclose(outcomes.violation, [0.5 + 1.5, 0.0], rtol=1e-5)


def test_the_risk_is_taken_over_whole_trajectories():
    # Each model is worst at one time: the worst trajectory costs less than the sum of the worst times.
    models = jnp.float32([[1.0, 0.0], [0.0, 1.0]])

    def step(model, time, action):
        return time + 1, planning.step_result(jnp.where(time == 0, model[0], model[1]) * action[0])

    simulator = planning.make_ensemble_simulator(step, models, risk=planning.worst_cost)
    outcomes = simulator(jnp.int32(0), jnp.ones((3, 2, 1)))
    np.testing.assert_allclose(outcomes.cost, [1.0, 1.0, 1.0])


def test_an_ensemble_is_each_of_its_models():
    models = jnp.float32([0.5, 1.0, 2.0])
    actions = jax.random.normal(jax.random.key(0), (4, 6, 1))
    costs = [planning.make_simulator(lambda s, a, m=m: drift(m, s, a))(jnp.float32(0.1), actions) for m in models]
    ensemble = planning.make_ensemble_simulator(drift, models, risk=planning.make_cvar(0.5))
    outcomes = ensemble(jnp.float32(0.1), actions)
    expected = planning.make_cvar(0.5)(jnp.stack([each.cost for each in costs]))
    np.testing.assert_allclose(outcomes.cost, expected, rtol=1e-5)
    np.testing.assert_allclose(outcomes.violation, np.max([each.violation for each in costs], axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    "risk", [planning.mean_cost, planning.worst_cost, planning.make_cvar(0.5), planning.make_exponential(1.0)]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_makes_the_plan_rank_last(risk, bad):
    simulator = planning.make_ensemble_simulator(drift, jnp.float32([0.5, bad, 1.0, 2.0]), risk=risk)
    outcomes = simulator(jnp.float32(0.1), jnp.ones((2, 3, 1)))
    assert not np.isfinite(outcomes.cost).any()


def test_simulators_with_one_state_are_combined():
    each = [planning.make_simulator(lambda s, a, m=m: drift(m, s, a)) for m in jnp.float32([0.5, 1.0, 2.0])]
    ensemble = planning.make_ensemble_simulator(drift, jnp.float32([0.5, 1.0, 2.0]), risk=planning.worst_cost)
    actions = jax.random.normal(jax.random.key(0), (4, 6, 1))
    ours = planning.combine_simulators(each, risk=planning.worst_cost)(jnp.float32(0.1), actions)
    theirs = ensemble(jnp.float32(0.1), actions)
    np.testing.assert_allclose(ours.cost, theirs.cost, rtol=1e-5)
    np.testing.assert_allclose(ours.violation, theirs.violation, rtol=1e-5)
    with pytest.raises(PlanningError, match="at least one"):
        planning.combine_simulators([], risk=planning.worst_cost)


@pytest.mark.parametrize("models", [{}, jnp.float32(1.0), {"a": jnp.ones(3), "b": jnp.ones(4)}])
def test_models_without_one_leading_axis(models):
    with pytest.raises(PlanningError, match="expected one M"):
        planning.make_ensemble_simulator(drift, models, risk=planning.mean_cost)


def test_repeated_actions_are_held():
    simulator = planning.make_simulator(lambda s, a: drift(1.0, s, a))
    actions = jnp.float32([[[1.0], [-2.0]]])
    held = planning.repeat_actions(simulator, 2)(jnp.float32(0.0), actions)
    direct = simulator(jnp.float32(0.0), jnp.float32([[[1.0], [1.0], [-2.0], [-2.0]]]))
    np.testing.assert_allclose(held.cost, direct.cost)
    with pytest.raises(PlanningError, match="num_repeats=0"):
        planning.repeat_actions(simulator, 0)


# Closed loop ----------------------------------------------------------------------------------------------------------


def test_icem_comes_near_the_riccati_optimum_in_the_closed_loop():
    task = planning.double_integrator()
    planner = planning.make_icem(
        task.simulator(),
        low=task.low,
        high=task.high,
        horizon=25,
        noise_beta=2.0,
        num_iterations=6,
        num_samples=200,
        settings=planning.IcemSettings(execute="mean"),
    )
    episode = planning.run_episode(planner, task, seed=3, num_steps=40)
    start = np.asarray(task.reset(jax.random.split(jax.random.key(3))[0]))
    optimum = planning.double_integrator_cost(start, 40)
    assert optimum <= float(episode.results.cost.sum()) <= 1.1 * optimum
    assert episode.results.cost.shape == (40,)
    assert episode.states.shape == (40, 2)
    assert bool(episode.results.success[-1])


def test_the_riccati_optimum_is_the_cost_of_the_best_actions():
    task, start, steps = planning.double_integrator(), jnp.float32([0.7, -0.2]), 8
    simulator = task.simulator()

    def cost(actions):
        return simulator(start, actions[None]).cost[0]

    hessian, gradient = jax.hessian(cost), jax.grad(cost)
    zero = jnp.zeros((steps, 1))
    best = -np.linalg.solve(hessian(zero).reshape(steps, steps), gradient(zero).reshape(steps))
    found = float(cost(jnp.float32(best)[:, None]))
    assert found == pytest.approx(planning.double_integrator_cost(np.asarray(start), steps), rel=1e-4)


def test_an_action_is_repeated_in_the_closed_loop():
    task = planning.double_integrator()
    planner = planning.make_icem(
        planning.repeat_actions(task.simulator(), 2), low=task.low, high=task.high, horizon=8, num_iterations=2
    )
    episode = planning.run_episode(planner, task, seed=0, num_steps=5, action_repeat=2)
    state, costs = task.reset(jax.random.split(jax.random.key(0))[0]), []
    for action in episode.actions:
        for _ in range(2):
            state, result = task.step(state, jnp.asarray(action))
            assert isinstance(result, StepResult)
            costs.append(float(result.cost))
    np.testing.assert_allclose(episode.results.cost, np.sum(np.reshape(costs, (5, 2)), axis=1), rtol=1e-4)
    assert planning.run_episode(planner, task, seed=0, action_repeat=10).actions.shape == (5, 1)


@pytest.mark.parametrize("options", [{"num_steps": 0}, {"num_steps": 3, "action_repeat": 0}])
def test_episodes_of_no_length(options):
    task = planning.double_integrator()
    planner = planning.make_icem(task.simulator(), low=task.low, high=task.high, horizon=4)
    with pytest.raises(PlanningError, match="expected a whole number of at least 1"):
        planning.run_episode(planner, task, seed=0, **options)
