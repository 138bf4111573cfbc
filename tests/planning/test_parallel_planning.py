"""Plans on several devices: the same as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import parallel, planning


@pytest.fixture(scope="module")
def task():
    return planning.double_integrator()


def make(task, simulator):
    return planning.make_icem(simulator, low=task.low, high=task.high, horizon=8, num_iterations=2, num_samples=21)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), one, other)


def test_problems_spread_over_eight_devices_are_planned_as_on_one(task):
    planner = make(task, task.simulator())
    keys = jax.random.split(jax.random.key(0), 16)
    starts, memory = jax.vmap(task.reset)(keys), jax.vmap(lambda _: planner.init())(jnp.arange(16))
    spread = parallel.pmap_problems(planner.plan)
    one = jax.jit(jax.vmap(planner.plan))
    first, second = spread(keys, memory, starts), one(keys, memory, starts)
    assert len(first[0].sharding.device_set) == 8
    close(first, second)
    close(spread(keys, first[1], starts), one(keys, second[1], starts))  # with the memory of a step


@pytest.mark.parametrize("num_devices", [2, 8])
def test_a_population_spread_over_devices_gives_the_plan_of_one(task, num_devices):
    simulated = []
    base = task.simulator()

    def counting(state, actions):
        simulated.append(actions.shape[0])
        return base(state, actions)

    alone = make(task, base)
    split = make(task, parallel.split_population(counting, num_devices=num_devices))
    plan = parallel.pmap_population(split.plan, num_devices=num_devices)
    one = jax.jit(alone.plan)
    state, start = alone.init(), task.reset(jax.random.key(1))
    for step in range(2):
        key = jax.random.key(step)
        ours, theirs = plan(key, state, start), one(key, state, start)
        close(ours, theirs)
        state = theirs[1]
    # Iterations of 21 + 3 and 20 candidates: each device simulates its share, rounded up.
    assert set(simulated) == {-(-24 // num_devices), -(-20 // num_devices)}


def test_more_devices_than_there_are(task):
    for make_it in (
        lambda: parallel.pmap_problems(lambda x: x, num_devices=9),
        lambda: parallel.pmap_population(lambda k, s, e: k, num_devices=9),
        lambda: parallel.split_population(task.simulator(), num_devices=9),
    ):
        with pytest.raises(ValueError, match=r"num_devices=9: there are 8 \(cpu\)"):
            make_it()


def test_problems_that_do_not_split():
    with pytest.raises(ValueError, match=r"\[12\] do not split over 8 devices"):
        parallel.pmap_problems(lambda x: x)(jnp.zeros(12))
