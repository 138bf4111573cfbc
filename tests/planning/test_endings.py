"""Episodes that end, and what a step may return: numbers, bools, axes of one entry; the library's own ensembles."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import PlanningError, StepResult, step_result


def pole(angle, action):
    """Falls to the side it leans to unless it is pushed back; pays 1 a step until it has fallen."""
    angle = 1.3 * angle + 0.2 * action[0]
    return angle, step_result(-1.0, done=jnp.abs(angle) > 1.0)


def test_nothing_is_paid_after_the_end():
    simulator = jax.jit(planning.make_simulator(pole))
    balanced = simulator(jnp.float32(0.0), jnp.zeros((1, 30, 1)))
    pushed = simulator(jnp.float32(0.0), jnp.ones((1, 30, 1)))
    assert float(balanced.cost[0]) == -30.0
    angle, steps = 0.0, 0
    while abs(angle) <= 1.0:
        angle, steps = 1.3 * angle + 0.2, steps + 1
    assert float(pushed.cost[0]) == -steps


def test_the_end_is_that_of_cost_violation_state_and_cost_to_go():
    def step(position, action):
        position = position + action[0]
        return position, step_result(position, violation=position, success=position > 1.5, done=position > 1.5)

    simulator = planning.make_simulator(step, terminal_cost=lambda position: 100.0 * position)
    outcomes = simulator(jnp.float32(0.0), jnp.float32([[[1.0], [1.0], [1.0]], [[0.5], [0.5], [0.25]]]))
    np.testing.assert_allclose(outcomes.cost, [1 + 2, 0.5 + 1 + 1.25 + 125.0])
    np.testing.assert_allclose(outcomes.violation, [1 + 2, 0.5 + 1 + 1.25])


def falling_task():
    return planning.JaxTask(
        "pole", np.float32([-1.0]), np.float32([1.0]), 100, 5, 0.0, 0.1, lambda key: jnp.float32(0.3), pole
    )


@pytest.mark.parametrize("action_repeat", [1, 3])
def test_an_episode_stops_at_its_end(action_repeat):
    task = falling_task()
    pushing = planning.Planner(lambda: 0, lambda key, state, env: (jnp.ones(1), state, PLAN), 1)
    episode = planning.run_episode(pushing, task, seed=0, action_repeat=action_repeat)
    angle, steps = 0.3, 0
    while abs(angle) <= 1.0:
        angle, steps = 1.3 * angle + 0.2, steps + 1
    assert float(episode.results.reward.sum()) == steps
    assert len(episode.actions) == -(-steps // action_repeat)
    assert episode.results.done.tolist() == [False] * (len(episode.actions) - 1) + [True]
    np.testing.assert_allclose(episode.states[-1], angle, rtol=1e-5)
    whole = planning.scan_episode(jax.random.key(0), pushing, pole, jnp.float32(0.3), num_steps=20)
    assert float(whole.results.reward.sum()) == steps
    assert whole.results.reward.shape == (20,)


PLAN = planning.Plan(jnp.ones((5, 1)), *[jnp.zeros(())] * 4)


@pytest.mark.parametrize("name", ["icem", "cem", "mppi", "predictive_sampling"])
def test_planners_keep_a_pole_from_falling(name):
    task = falling_task()
    planner = planning.make_planner(name, task.simulator(), task, budget=50, horizon=8)
    episode = planning.run_episode(planner, task, seed=0, num_steps=25)
    assert float(episode.results.reward.sum()) == 25.0
    assert not episode.results.done.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_brax_task_ends_where_brax_says_so(monkeypatch):
    from brax import envs

    def stepped(state, action):
        height = state.height + action[0]
        return SimpleNamespace(height=height, reward=jnp.ones(()), done=(height < 0.2).astype(jnp.float32))

    env = SimpleNamespace(action_size=1, dt=0.05, reset=lambda key: None, step=stepped)
    monkeypatch.setattr(envs, "get_environment", lambda name, backend: env)
    task = planning.brax_task("ant")
    start = SimpleNamespace(height=jnp.float32(0.5))
    assert not bool(task.step(start, jnp.float32([0.1]))[1].done)
    assert bool(task.step(start, jnp.float32([-0.4]))[1].done)


# What a step may return -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cost",
    [
        lambda position: position > 0.5,
        lambda position: 1.0,
        lambda position: 1,
        lambda position: True,
        lambda position: position[None],
        lambda position: np.float64(2.0),
        lambda position: jnp.int32(2),
    ],
)
@pytest.mark.parametrize("wrap", [step_result, lambda cost: cost, lambda cost: StepResult(cost, 0.0, False, 0)])
def test_costs_of_any_kind_of_number(cost, wrap):
    def step(position, action):
        position = position + action[0]
        return position, wrap(cost(position))

    outcomes = planning.make_simulator(step)(jnp.float32(0.0), jnp.ones((3, 4, 1)))
    expected = sum(float(np.squeeze(cost(jnp.float32(number)))) for number in (1, 2, 3, 4))
    np.testing.assert_allclose(outcomes.cost, [expected] * 3)


def test_a_cost_of_several_numbers_is_refused():
    simulator = planning.make_simulator(lambda position, action: (position, step_result(jnp.ones(2))))
    with pytest.raises(PlanningError, match=r"the step's cost has shape \[2\]: expected \[\]"):
        simulator(jnp.float32(0.0), jnp.ones((3, 4, 1)))


def test_the_librarys_own_ensemble_is_a_simulator():
    from edgesafe_jax import dynamics

    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(400, 2)), rng.uniform(-1, 1, (400, 1))
    data = dynamics.Transitions(
        states=np.float32(states),
        actions=np.float32(actions),
        next_states=np.float32(states + 0.5 * actions),
        episodes=np.arange(400) // 20,
    )
    parts = dynamics.split_episodes(data.episodes, {"training": 0.8, "validation": 0.2})
    settings = dynamics.EnsembleSettings(num_members=3, num_elites=2, hidden=(16,), num_epochs=5)
    ensemble, _ = dynamics.fit_ensemble(
        jax.random.key(0), data.take(parts["training"]), data.take(parts["validation"]), settings
    )

    def step(model, state, action):
        state = model.predict(state, action).mean
        return state, step_result(jnp.sum(state**2))

    start, sequences = jnp.float32([0.3, -0.2]), jnp.float32(rng.uniform(-1, 1, (5, 4, 1)))
    simulator = planning.make_ensemble_simulator(step, ensemble, risk=planning.worst_cost)
    costs = []
    for number in range(ensemble.num_members):
        one = ensemble.member(number)
        alone = planning.make_simulator(lambda state, action, one=one: step(one, state, action))
        costs.append(alone(start, sequences).cost)
    assert len(costs) == 2
    assert np.max(np.abs(costs[0] - costs[1])) > 1e-4
    np.testing.assert_allclose(jax.jit(simulator)(start, sequences).cost, np.maximum(*costs), rtol=1e-4)
