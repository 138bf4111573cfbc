"""iCEM against an oracle in NumPy, its bookkeeping, its population modes, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import IcemSettings, Outcomes, PlanningError, icem, make_knots, population_sizes
from tests.planning.oracle import Oracle

LOW, HIGH = np.float32([-1.0, -0.5]), np.float32([1.0, 2.0])


def make_icem(simulator, **options):
    """`planning.make_icem`, where fields of its settings may be given by name."""
    own = {field.name: options.pop(field.name) for field in dataclasses.fields(IcemSettings) if field.name in options}
    return planning.make_icem(simulator, **options, settings=IcemSettings(**own))


def path_cost(start, actions):
    """A point in the plane that moves by its actions and shall be at (3, -2); works on NumPy and JAX arrays."""
    away = start + actions.cumsum(1) - np.float32([[[3.0, -2.0]]])
    return (away**2).sum((1, 2)) + 0.1 * (actions**2).sum((1, 2))


def point(start, actions):
    return Outcomes(path_cost(start, actions), jnp.zeros(actions.shape[0]))


def recorded(seen):
    """A simulator that writes down what it is asked."""

    def simulator(start, actions):
        jax.debug.callback(lambda asked: seen.append(np.asarray(asked)), actions, ordered=True)
        return point(start, actions)

    return simulator


def draws_of(options, key, dim=2):
    """The functions with which the oracle draws what the planner draws, from the same keys."""
    from edgesafe_jax.planning.noise import colored_noise

    kept = int(options["xi"] * max(2, min(options["elites"], options["samples"] // 2)))
    total = options["iterations"] * options["samples"]
    keys = jax.random.split(key, total + kept + 1)[:-1]
    beta, shape = jnp.float32(options["beta"]), (dim, options["horizon"])
    noise = np.asarray(jax.vmap(lambda each: colored_noise(each, beta, shape).T)(keys), float)
    rows = noise[:total].reshape(options["iterations"], options["samples"], *shape[::-1])
    return (lambda i, n, mean, std: mean[None] + std[None] * rows[i, :n]), (
        lambda n, mean, std: mean[None] + std[None] * noise[total : total + n]
    )


DEFAULTS = {"iterations": 3, "samples": 40, "elites": 10, "std": 0.5, "alpha": 0.1, "gamma": 1.25, "xi": 0.3}
CASES = {
    "defaults": {},
    "one iteration": {"iterations": 1},
    "few samples": {"samples": 7, "elites": 5},
    "many": {"samples": 100, "iterations": 5, "gamma": 1.6},
    "no memory over iterations": {"keep": False},
    "no memory over steps": {"shift": False},
    "no mean": {"mean": False},
    "execute the mean": {"execute": "mean"},
    "no momentum, no decay": {"alpha": 0.0, "gamma": 1.0},
    "all elites are carried": {"xi": 1.0},
    "no elite is carried": {"xi": 0.0},
    "white": {"beta": 0.0},
}


def build(simulator, case, **more):
    o = {"horizon": 6, "beta": 2.0, **DEFAULTS, **case}
    choices = {"keep": True, "shift": True, "mean": True, "execute": "best", **o}
    planner = make_icem(
        simulator,
        low=LOW,
        high=HIGH,
        horizon=o["horizon"],
        num_iterations=o["iterations"],
        num_samples=o["samples"],
        num_elites=o["elites"],
        noise_beta=o["beta"],
        init_std=o["std"],
        momentum=o["alpha"],
        decay=o["gamma"],
        elite_fraction=o["xi"],
        keep_elites=choices["keep"],
        shift_elites=choices["shift"],
        mean_in_last_iteration=choices["mean"],
        execute=choices["execute"],
        **more,
    )
    oracle = Oracle(low=LOW, high=HIGH, **{k: v for k, v in o.items() if k != "beta"})
    return planner, oracle, o


@pytest.mark.parametrize(
    ("name", "population"),
    [*((name, "unrolled") for name in CASES), *((name, "padded") for name in ("defaults", "one iteration", "many"))],
)
def test_the_planner_does_what_the_oracle_does(name, population):
    planner, oracle, options = build(point, CASES[name], population=population)
    plan, state = jax.jit(planner.plan), planner.init()
    position = np.zeros(2, np.float32)
    for step in range(4):
        key = jax.random.fold_in(jax.random.key(11), step)
        start = position[None, None]
        action, state, made = plan(key, state, start)
        expected, best, mu, _ = oracle.step(*draws_of(options, key), lambda x, s=start: path_cost(s, x))
        np.testing.assert_allclose(action, expected, atol=2e-4)
        np.testing.assert_allclose(made.best_cost, best, rtol=1e-3)
        np.testing.assert_allclose(state.mean, oracle.mu, atol=2e-4)
        if options.get("execute") == "mean":
            np.testing.assert_allclose(made.actions, mu, atol=2e-4)
        position = position + np.asarray(action)


def test_kept_elites_are_not_simulated_again_and_sizes_decay():
    seen = []
    planner, oracle, options = build(recorded(seen), {})
    state, start, plan = planner.init(), np.zeros((1, 1, 2), np.float32), jax.jit(planner.plan)
    for step in range(2):
        key = jax.random.fold_in(jax.random.key(3), step)
        seen.clear()
        _, state, _ = plan(key, state, start)
        jax.effects_barrier()
        oracle.step(*draws_of(options, key), lambda x: path_cost(start, x))
        assert [len(batch) for batch in seen] == [43, 32, 25]  # at the first step three of them are not ranked
        for batch, expected in zip(seen[1:], oracle.simulated[1:], strict=True):
            np.testing.assert_allclose(batch, expected, atol=2e-4)
        # No sequence of an earlier iteration is among those of a later one.
        later = {row.tobytes() for row in seen[1]} | {row.tobytes() for row in seen[2]}
        assert not {row.tobytes() for row in seen[0]} & later
    assert planner.num_trajectories == 100
    # At the second step the last candidates are the best three of the first step, one step later.
    assert oracle.sizes == [43, 32, 25]
    np.testing.assert_allclose(seen[0][40:], oracle.simulated[0][40:], atol=2e-4)


def test_the_mean_replaces_one_candidate_of_the_last_iteration_only():
    with_mean, without = [], []
    for seen, mean in ((with_mean, True), (without, False)):
        planner, _, _ = build(recorded(seen), {"mean": mean})
        jax.jit(planner.plan)(jax.random.key(5), planner.init(), np.zeros((1, 1, 2), np.float32))
        jax.effects_barrier()
    for early, late in zip(with_mean[:2], without[:2], strict=True):
        np.testing.assert_allclose(early, late, atol=1e-5)
    np.testing.assert_allclose(with_mean[2][1:], without[2][1:], atol=1e-5)
    assert np.max(np.abs(with_mean[2][0] - without[2][0])) > 0.01


def test_elites_of_an_episode_are_not_those_of_the_next():
    planner, _, _ = build(point, {})
    start, plan = np.zeros((1, 1, 2), np.float32), jax.jit(planner.plan)
    fresh = plan(jax.random.key(1), planner.init(), start)
    _, state, _ = plan(jax.random.key(0), planner.init(), start)
    assert bool(state.has_elites)
    assert not bool(planner.init().has_elites)
    again = plan(jax.random.key(1), planner.init(), start)
    jax.tree.map(np.testing.assert_array_equal, fresh, again)


def test_the_paper_table_of_sizes():
    assert population_sizes(40, 3, decay=1.25, least=20) == [40, 32, 25]
    assert population_sizes(100, 4, decay=1.25, least=20) == [100, 80, 64, 51]
    assert population_sizes(25, 2, decay=1.25, least=20) == [25, 20]
    assert population_sizes(7, 3, decay=2.0, least=6) == [7, 6, 6]
    for budget, (iterations, samples) in planning.BUDGETS.items():
        assert 0.5 * budget <= sum(population_sizes(samples, iterations, least=20)) <= 1.11 * budget


@pytest.mark.parametrize("population", ["unrolled", "padded"])
def test_what_is_not_finite_ranks_last_and_is_counted(population):
    def cost(start, actions):
        value = path_cost(start, actions)
        return jnp.where(actions[:, 0, 0] > 0.0, jnp.nan, jnp.where(actions[:, 0, 0] < -0.5, -jnp.inf, value))

    def simulator(start, actions):
        return Outcomes(cost(start, actions), jnp.zeros(actions.shape[0]))

    planner, oracle, options = build(simulator, {}, population=population)
    key, start = jax.random.key(2), np.zeros((1, 1, 2), np.float32)
    action, state, made = jax.jit(planner.plan)(key, planner.init(), start)
    expected, *_ = oracle.step(*draws_of(options, key), lambda x: np.asarray(cost(start, jnp.float32(x))))
    np.testing.assert_allclose(action, expected, atol=2e-4)
    np.testing.assert_allclose(state.mean, oracle.mu, atol=2e-4)
    assert -0.5 <= action[0] <= 0.0
    bad = sum(int(np.sum(~np.isfinite(np.asarray(cost(start, jnp.float32(x)))))) for x in oracle.simulated)
    assert int(made.num_nonfinite) == bad > 0


@pytest.mark.parametrize("execute", ["best", "mean"])
def test_without_a_finite_trajectory_the_search_stays_where_it_was(execute):
    def simulator(start, actions):
        return Outcomes(jnp.full(actions.shape[0], jnp.nan), jnp.zeros(actions.shape[0]))

    planner, _, _ = build(simulator, {"execute": execute})
    action, state, made = jax.jit(planner.plan)(jax.random.key(0), planner.init(), np.zeros((1, 1, 2), np.float32))
    np.testing.assert_allclose(action, (LOW + HIGH) / 2)
    np.testing.assert_allclose(state.mean, planner.init().mean)
    assert made.best_cost == np.inf
    assert not bool(state.has_elites)
    assert int(made.num_nonfinite) == 40 + 32 + 25


def test_sequences_within_the_constraints_go_first():
    def simulator(start, actions):
        reach = jnp.max(jnp.cumsum(actions[..., 0], axis=1), axis=1)
        return Outcomes(path_cost(start, actions), jnp.maximum(reach - 1.0, 0.0))

    free, _, _ = build(point, {"iterations": 5, "samples": 200})
    bound, _, _ = build(simulator, {"iterations": 5, "samples": 200})
    start = np.zeros((1, 1, 2), np.float32)
    far = jax.jit(free.plan)(jax.random.key(0), free.init(), start)[2]
    near = jax.jit(bound.plan)(jax.random.key(0), bound.init(), start)[2]
    assert np.max(np.cumsum(far.actions[:, 0])) > 2.0
    assert 0.8 < np.max(np.cumsum(near.actions[:, 0])) <= 1.0 + 1e-6
    assert int(near.num_infeasible) > 0
    assert near.best_cost > far.best_cost


def test_the_order_of_trajectories():
    inf, nan = np.inf, np.nan
    outcomes = Outcomes(jnp.array([5.0, nan, 1.0, -inf, 0.0, 2.0, 1.0]), jnp.array([0.0, 0.0, 3.0, 0.0, 0.5, 0.0, nan]))
    assert planning.rank(outcomes)[:4].tolist() == [5, 0, 4, 2]
    assert set(planning.rank(outcomes)[4:].tolist()) == {1, 3, 6}


def test_problems_in_a_batch_are_planned_as_alone():
    planner, _, _ = build(point, {})
    keys = jax.random.split(jax.random.key(0), 5)
    starts = jax.random.normal(jax.random.key(1), (5, 1, 1, 2))
    states = jax.vmap(lambda _: planner.init())(jnp.arange(5))
    batch = jax.jit(jax.vmap(planner.plan))(keys, states, starts)
    plan = jax.jit(planner.plan)
    for index in range(5):
        alone = plan(keys[index], planner.init(), starts[index])
        jax.tree.map(lambda b, a, i=index: np.testing.assert_allclose(b[i], a, atol=1e-4), batch, alone)


def test_one_compilation_serves_an_episode():
    planner, _, _ = build(point, {})
    traced = []

    @jax.jit
    def plan(*arguments):
        traced.append(1)
        return planner.plan(*arguments)

    state = planner.init()
    for step in range(3):
        _, state, _ = plan(jax.random.key(step), state, np.full((1, 1, 2), step, np.float32))
    assert len(traced) == 1


def test_actions_keep_the_bounds_with_knots_too():
    seen = []
    planner = make_icem(recorded(seen), low=LOW, high=HIGH, horizon=12, knots=make_knots(12, 4), init_std=3.0)
    _, state, made = jax.jit(planner.plan)(jax.random.key(0), planner.init(), np.zeros((1, 1, 2), np.float32))
    jax.effects_barrier()
    actions = np.concatenate(seen)
    assert actions.shape[1:] == (12, 2)
    assert np.all((actions >= LOW - 1e-6) & (actions <= HIGH + 1e-6))
    assert state.mean.shape == (4, 2)
    assert made.actions.shape == (12, 2)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_knots_reproduce_what_they_can_represent(order):
    maps = make_knots(13, 5, order=order)
    times = np.linspace(0, 12, 5)
    if order == 0:
        expected = np.repeat(times, [3, 3, 3, 3, 1])
        shifted = times  # held for three steps, so one step later the same
    else:
        expected, shifted = np.arange(13.0), np.minimum(times + 1, 12)
    np.testing.assert_allclose(maps.expand @ times, expected, atol=1e-5)
    np.testing.assert_allclose(maps.shift @ times, shifted, atol=1e-5)
    np.testing.assert_allclose(maps.expand.sum(1), 1.0, atol=1e-5)


def test_knots_of_every_step_are_the_actions():
    maps = make_knots(4, 4)
    np.testing.assert_array_equal(maps.expand, np.eye(4))
    np.testing.assert_array_equal(maps.shift @ np.arange(4.0), [1, 2, 3, 3])
    assert make_knots(1, 1).shift.tolist() == [[1.0]]


@pytest.mark.parametrize("arguments", [(10, 1), (10, 11), (10, 4, 2)])
def test_knots_that_do_not_fit(arguments):
    horizon, num, *order = arguments
    with pytest.raises(PlanningError, match="expected"):
        make_knots(horizon, num, **({"order": order[0]} if order else {}))


def test_a_proposal_is_taken_where_it_is_best():
    perfect = jnp.broadcast_to(jnp.float32([0.5, -0.5])[None, None], (1, 6, 2))  # one candidate per call
    target = perfect.cumsum(1)

    def simulator(start, actions):
        return Outcomes(jnp.sum((start + actions.cumsum(1) - target) ** 2, axis=(1, 2)), jnp.zeros(actions.shape[0]))

    planner = make_icem(simulator, low=LOW, high=HIGH, horizon=6, proposal=lambda key, start: perfect)
    action, _, made = jax.jit(planner.plan)(jax.random.key(0), planner.init(), jnp.zeros((1, 1, 2)))
    assert made.best_cost < 1e-9
    np.testing.assert_allclose(action, [0.5, -0.5], atol=1e-6)
    wrong = make_icem(simulator, low=LOW, high=HIGH, horizon=6, proposal=lambda key, start: perfect[:, :3])
    with pytest.raises(PlanningError, match=r"\[1, 3, 2\]: expected \[N, 6, 2\]"):
        jax.jit(wrong.plan)(jax.random.key(0), wrong.init(), jnp.zeros((1, 1, 2)))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"low": HIGH, "high": LOW}, "reversed"),
        ({"low": LOW, "high": LOW}, "low < high"),
        ({"high": [np.inf, 1.0]}, "expected finite bounds"),
        ({"low": [np.nan, 0.0]}, "expected finite bounds"),
        ({"low": [-1.0]}, "two vectors"),
        ({"low": -1.0, "high": 1.0}, "two vectors"),
        ({"horizon": 0}, "horizon=0"),
        ({"horizon": 2.5}, r"horizon=2\.5"),
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"num_samples": 8, "num_elites": 9}, "num_elites=9: expected at most num_samples=8"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"num_elites": 1}, "num_elites=1"),
        ({"init_std": 0.0}, "init_std=0"),
        ({"momentum": 1.0}, "momentum=1"),
        ({"decay": 0.9}, r"decay=0\.9"),
        ({"elite_fraction": 1.5}, r"elite_fraction=1\.5"),
        ({"execute": "worst"}, "'worst': expected one of best, mean"),
        ({"population": "lazy"}, "'lazy': expected one of unrolled, padded"),
        ({"knots": make_knots(9, 3)}, "horizon of 9: expected 6"),
    ],
)
def test_bad_options_are_refused_when_the_planner_is_made(options, match):
    with pytest.raises(PlanningError, match=match):
        make_icem(point, **{"low": LOW, "high": HIGH, "horizon": 6, **options})


def test_a_simulator_of_the_wrong_shape_is_refused_before_compilation():
    def simulator(start, actions):
        return Outcomes(jnp.zeros((5, actions.shape[0])), jnp.zeros(actions.shape[0]))

    planner = make_icem(simulator, low=LOW, high=HIGH, horizon=6)
    with pytest.raises(PlanningError, match=r"cost of shape \[5, 43\].*expected \[43\].*risk"):
        jax.jit(planner.plan).lower(jax.random.key(0), planner.init(), np.zeros((1, 1, 2), np.float32))


@pytest.mark.parametrize(("fraction", "num_elites", "expected"), [(0.58, 50, 29), (0.29, 100, 29), (0.3, 10, 3)])
def test_as_many_elites_are_carried_as_the_fraction_says(monkeypatch, fraction, num_elites, expected):
    """0.58 times 50 is 28.999... in floating point."""
    monkeypatch.setattr(icem, "make_search", lambda simulator, method, *others, **options: method)
    method = make_icem(
        lambda state, actions: None,
        low=LOW,
        high=HIGH,
        horizon=6,
        num_samples=500,
        num_elites=num_elites,
        elite_fraction=fraction,
    )
    assert method.num_carried == expected
