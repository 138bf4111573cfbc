"""The tasks: their costs and controls against a plain loop over MuJoCo, written from the environments' description."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import PlanningError

LENGTHS = {"halfcheetah": 1000, "humanoidstandup": 1000, "fetch_pick_and_place": 50, "door": 200, "relocate": 200}
BETAS = {"halfcheetah": 0.25, "humanoidstandup": 2.0, "fetch_pick_and_place": 3.0, "door": 2.5, "relocate": 3.5}
CONTROL_STEPS = {
    "halfcheetah": 0.05,
    "humanoidstandup": 0.015,
    "fetch_pick_and_place": 0.04,
    "door": 0.01,
    "relocate": 0.01,
}


@pytest.fixture(scope="module")
def made():
    return {name: make(num_threads=2) for name, make in planning.TASKS.items()}


def loaded(task, state):
    """Simulation data in a given state, without any code of the task."""
    data = mujoco.MjData(task.world.model)
    mujoco.mj_setState(task.world.model, data, state.physics, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
    if task.world.model.nmocap:
        size = task.world.model.nmocap
        data.mocap_pos[:] = state.mocap[: 3 * size].reshape(size, 3)
        data.mocap_quat[:] = state.mocap[3 * size :].reshape(size, 4)
    mujoco.mj_forward(task.world.model, data)
    return data


def scaled(model, action):
    low, high = model.actuator_ctrlrange.T
    return (low + high) / 2 + action * (high - low) / 2


def half_cheetah(model, data, action, goal):
    before = data.qpos[0]
    data.ctrl[:] = action
    mujoco.mj_step(model, data, 5)
    reward = (data.qpos[0] - before) / 0.05 - 0.1 * np.sum(action**2)
    return -reward + 10 * (abs(data.qpos[2]) > np.pi / 2), None


def humanoid(model, data, action, goal):
    data.ctrl[:] = action
    mujoco.mj_step(model, data, 5)
    return -data.qpos[2] + 0.1 * np.sum(action**2), None


def fetch(model, data, action, goal):
    link = model.body("robot0:gripper_link").id
    data.mocap_pos[0] = data.xpos[link] + 0.05 * action[:3]
    data.mocap_quat[0] = data.xquat[link] + [1, 0, 1, 0]
    fingers = [data.joint(f"robot0:{side}_gripper_finger_joint").qpos[0] for side in "lr"]
    data.ctrl[:] = np.array(fingers) + action[3]
    mujoco.mj_step(model, data, 20)
    box, grip = data.site("object0").xpos, data.site("robot0:grip").xpos
    away = np.linalg.norm(box - goal)
    return away + 0.1 * np.linalg.norm(grip - box), away <= 0.05


def door(model, data, action, goal):
    data.ctrl[:] = scaled(model, action)
    mujoco.mj_step(model, data, 5)
    th = data.joint("door_hinge").qpos[0]
    value = 0.1 * (th - 1.57) ** 2 + 1e-5 * np.sum(data.qvel**2)
    return value - 2 * (th > 0.2) - 8 * (th > 1) - 10 * (th > 1.35), th > 1.35


def relocate(model, data, action, goal):
    data.ctrl[:] = scaled(model, action)
    mujoco.mj_step(model, data, 5)
    ball, palm = data.body("Object").xpos, data.site("S_grasp").xpos
    away = np.linalg.norm(ball - goal)
    lifted = ball[2] > 0.04
    value = 0.1 * np.linalg.norm(palm - ball) + lifted * (0.5 * away - 1)
    return value - 10 * (away < 0.1) - 20 * (away < 0.05), away < 0.1


BY_HAND = {
    "halfcheetah": half_cheetah,
    "humanoidstandup": humanoid,
    "fetch_pick_and_place": fetch,
    "door": door,
    "relocate": relocate,
}


@pytest.mark.assets
@pytest.mark.parametrize("name", LENGTHS)
def test_a_task_is_the_physics_and_the_cost_of_its_description(made, name):
    task = made[name]
    assert (task.name, task.episode_length, task.noise_beta, task.horizon) == (name, LENGTHS[name], BETAS[name], 30)
    assert task.control_step == pytest.approx(CONTROL_STEPS[name])
    state = task.reset(jax.random.key(4))
    rng = np.random.default_rng(0)
    # Fetch is compared at its gentle actions: its plain loop and MuJoCo's rollouts start the solver differently.
    share = 0.3 if name == "fetch_pick_and_place" else 1.0
    actions = np.float32(rng.uniform(share * task.low, share * task.high, (6, len(task.low))))
    data, total = loaded(task, state), 0.0
    data.qacc_warmstart[:] = state.warmstart
    now, costs, success = state, [], []
    for action in actions:
        now, result = task.step(now, action)
        value, reached = BY_HAND[name](task.world.model, data, action, state.goal)
        costs.append(float(result.cost))
        success.append(bool(result.success))
        total += value
        assert float(result.cost) == pytest.approx(value, rel=2e-3, abs=2e-3)
        assert reached is None or success[-1] == reached
    outcomes = jax.jit(task.simulator())(state, np.stack([actions, -actions]))
    np.testing.assert_allclose(outcomes.cost[0], total, rtol=5e-3, atol=5e-3)
    assert abs(outcomes.cost[0] - outcomes.cost[1]) > 1e-4
    assert np.all(outcomes.violation == 0)
    if name == "halfcheetah":
        assert float(result.reward) == pytest.approx(-float(result.cost), abs=1e-4)


@pytest.mark.assets
@pytest.mark.parametrize("name", LENGTHS)
def test_starts_depend_on_the_key_alone(made, name):
    task = made[name]
    one, same, other = (task.reset(jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    parts = [np.concatenate([s.physics, s.mocap, s.goal]) for s in (one, other)]
    assert np.any(parts[0] != parts[1])
    assert all(np.isfinite(part).all() for part in parts)


@pytest.mark.assets
def test_a_fallen_cheetah_costs_ten_and_earns_no_less(made):
    task = made["halfcheetah"]
    state = task.reset(jax.random.key(0))
    state.physics[3] = 3.0  # time, x, z, pitch
    _, result = task.step(state, np.zeros(6, np.float32))
    assert float(result.cost) == pytest.approx(10 - float(result.reward), abs=1e-4)


@pytest.mark.assets
def test_fetch_starts_at_rest_above_the_table_with_a_free_box(made):
    task = made["fetch_pick_and_place"]
    starts = [task.reset(jax.random.key(seed)) for seed in range(20)]
    views = [task.world.view(state.features) for state in starts]
    for state, view in zip(starts, views, strict=True):
        assert 0.1 <= np.linalg.norm(view["box"][:2] - view["grip"][:2]) <= 0.15 * np.sqrt(2) + 1e-6
        assert np.max(np.abs(state.goal[:2] - view["grip"][:2])) <= 0.15 + 1e-6
        assert 0.42 < view["box"][2] < 0.43
        assert 0.42 < state.goal[2] < 0.88
    assert 3 <= sum(state.goal[2] > 0.45 for state in starts) <= 17  # about half of the goals are in the air
    state = starts[0]
    for _ in range(5):
        state, _ = task.step(state, np.zeros(4, np.float32))
    after = task.world.view(state.features)
    np.testing.assert_allclose(after["grip"], views[0]["grip"], atol=0.02)


@pytest.mark.assets
def test_the_door_stands_where_the_state_says(made):
    task = made["door"]
    states = [task.reset(jax.random.key(seed)) for seed in range(3)]
    handles = [task.world.view(state.features)["handle"] for state in states]
    assert np.ptp([handle[0] for handle in handles]) > 0.01
    data = loaded(task, states[1])
    np.testing.assert_allclose(data.site("S_handle").xpos, handles[1], atol=1e-9)
    frame = data.body("frame").xpos
    assert np.all((frame >= [-0.3, 0.25, 0.252]) & (frame <= [-0.2, 0.35, 0.35]))


@pytest.mark.assets
def test_the_door_may_leave_velocities_out(made):
    free = planning.door(num_threads=1, velocity_weight=0.0)
    state = free.reset(jax.random.key(0))
    action = np.linspace(-1.0, 1.0, len(free.low), dtype=np.float32)
    after, without = free.step(state, action)
    _, with_them = made["door"].step(state, action)
    squares = np.sum(free.world.view(after.features)["velocity"] ** 2)
    assert 1e-5 * squares > 0.01
    assert float(with_them.cost - without.cost) == pytest.approx(1e-5 * squares, rel=1e-3)
    assert (made["door"].name, free.name) == ("door", "door_no_velocity")


@pytest.mark.assets
def test_icem_runs_further_than_it_would_by_chance(made):
    task = made["halfcheetah"]
    planner = planning.make_icem(task.simulator(), low=task.low, high=task.high, horizon=20, noise_beta=0.25)
    steps = []
    episode = planning.run_episode(planner, task, seed=0, num_steps=25, on_step=lambda *done: steps.append(done))
    assert steps == [(number, 25) for number in range(1, 26)]
    assert float(episode.results.reward.sum()) > 20.0  # random actions earn about -10
    assert episode.states.physics.shape == (25, 19)
    assert episode.states.physics.dtype == np.float64
    assert episode.plan_seconds.shape == (25,)
    start = task.reset(jax.random.split(jax.random.key(0))[0]).physics[1]
    distance = episode.states.physics[-1, 1] - start
    expected = distance / 0.05 - 0.1 * np.sum(episode.actions**2)
    np.testing.assert_allclose(episode.results.reward.sum(), expected, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of brax about its own use of MJX
def test_a_brax_task_steps_and_pays_its_reward():
    task = planning.brax_task("reacher")
    assert task.low.shape == task.high.shape == (2,)
    state = jax.jit(task.reset)(jax.random.key(0))
    after, result = jax.jit(task.step)(state, jnp.float32([0.1, -0.1]))
    np.testing.assert_allclose(result.cost, -after.reward)
    assert task.control_step == pytest.approx(0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_brax_takes_the_same_actions_whatever_its_actuators():
    # Its humanoid scales [-1, 1] to actuators of +-0.4 itself.
    task = planning.brax_task("humanoidstandup")
    np.testing.assert_array_equal(task.high, np.ones(17, np.float32))
    np.testing.assert_array_equal(task.low, -task.high)


@pytest.mark.parametrize(
    ("name", "backend", "match"), [("hopper", "spring", "hopper"), ("ant", "mjx", "backend='mjx'")]
)
def test_a_brax_task_that_there_is_not(name, backend, match):
    with pytest.raises(PlanningError, match=match):
        planning.brax_task(name, backend=backend)


def test_the_table_of_tasks():
    assert set(planning.TASKS) == set(LENGTHS) == set(BY_HAND)
    assert set(planning.BRAX_TASKS) == {"halfcheetah", "humanoidstandup", "pusher", "reacher", "ant"}
