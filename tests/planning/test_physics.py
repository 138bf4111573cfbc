"""C MuJoCo behind a callback: the same physics as a plain loop, whole states, batches, devices, and bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from edgesafe_jax import parallel, planning
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.planning import MujocoWorld, PlanningError, load_model, physics, step_result

SETTINGS = planning.IcemSettings(num_elites=4)

XML = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body name="wall" mocap="true" pos="1 0 0"><geom type="box" size=".05 .5 .5"/></body>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" damping="0.1"/>
      <geom name="box" type="box" size=".1 .1 .1" mass="1"/>
      <body name="pole" pos="0 0 .1">
        <joint name="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 .5" size=".02" mass=".1"/>
        <site name="tip" pos="0 0 .5"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <general joint="slide" dyntype="filterexact" dynprm="0.1" gainprm="20" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
  <sensor><framepos name="tip" objtype="site" objname="tip"/></sensor>
</mujoco>
"""
EXPLODING = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body><joint name="slide" type="slide" axis="1 0 0" stiffness="-1e5"/><geom size=".1" mass=".1"/></body>
  </worldbody>
  <actuator><motor joint="slide" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


def make_world(xml=XML, num_threads=2, **options):
    model = mujoco.MjModel.from_xml_string(xml)
    columns = {"x": physics.position_columns(model, "slide"), "v": physics.velocity_columns(model, "slide")}
    if model.nsensor:
        columns["tip"] = physics.sensor_columns(model, "tip")
    return MujocoWorld(model, frame_skip=3, features=columns, num_threads=num_threads, **options)


def cost(before, action, after, goal):
    moved = after["x"][..., 0] - before["x"][..., 0]
    away = after["tip"][..., 0] - goal[0]
    return step_result(away**2 + moved + 0.1 * action[..., 0] ** 2, violation=after["x"][..., 0] - 0.5)


@pytest.fixture(scope="module")
def world():
    return make_world()


def start_of(world, seed, goal=0.3):
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(world.model)
    data.qpos[:] = rng.normal(size=world.model.nq) * 0.1
    data.qvel[:] = rng.normal(size=world.model.nv)
    data.act[:] = rng.normal(size=world.model.na)
    data.mocap_pos[:] = [[0.4 + 0.1 * seed, 0, 0]]
    mujoco.mj_forward(world.model, data)
    return world.state_of(data, [goal]), data


def by_hand(world, data, actions, goal):
    """The same episode with MuJoCo alone, in float64; returns cost and violation."""
    total = violation = 0.0
    for action in actions:
        before = data.qpos[0]
        data.ctrl[:] = action
        mujoco.mj_step(world.model, data, nstep=world.frame_skip)
        total += (data.sensor("tip").data[0] - goal) ** 2 + data.qpos[0] - before + 0.1 * action[0] ** 2
        violation += max(data.qpos[0] - 0.5, 0.0)
    return total, violation


@pytest.mark.parametrize("seed", range(3))
def test_simulator_and_environment_are_the_physics_of_a_plain_loop(world, seed):
    state, data = start_of(world, seed)
    rng = np.random.default_rng(10 + seed)
    actions = np.float32(rng.uniform(-1, 1, (4, 12, 1)))
    outcomes = jax.jit(world.make_simulator(cost))(state, actions)
    for number, sequence in enumerate(actions):
        _, fresh = start_of(world, seed)
        total, violation = by_hand(world, fresh, sequence, 0.3)
        np.testing.assert_allclose(outcomes.cost[number], total, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(outcomes.violation[number], violation, rtol=2e-4, atol=2e-4)
    assert np.ptp(outcomes.cost) > 0.1
    for action in actions[0]:
        state, finite = world.step(state, action)
        data.ctrl[:] = action
        mujoco.mj_step(world.model, data, nstep=3)
        assert finite
    # Steps through stored states are those of one continuous simulation, to the last bit but one of a double.
    np.testing.assert_allclose(state.physics, world.state_of(data).physics, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state.mocap, world.state_of(data).mocap)


def test_activations_and_placed_bodies_are_part_of_the_state(world):
    state, _ = start_of(world, 0)
    actions = np.zeros((1, 30, 1), np.float32)
    simulate = jax.jit(world.make_simulator(cost))
    base = simulate(state, actions).cost[0]
    physics_column = 1 + world.model.nq + world.model.nv
    other = state.physics.copy()
    other[physics_column] += 1.0
    pushed = simulate(dataclasses.replace(state, physics=other), actions).cost[0]
    away = simulate(dataclasses.replace(state, mocap=state.mocap + np.eye(1, 7)[0] * 5), actions).cost[0]
    assert abs(pushed - base) > 1e-3
    moving = dataclasses.replace(state, physics=other)
    blocked = simulate(moving, actions).cost[0]
    free = simulate(dataclasses.replace(moving, mocap=state.mocap + np.eye(1, 7)[0] * 5), actions).cost[0]
    assert abs(blocked - free) > 1e-3
    assert np.isfinite(away)


def test_a_batch_of_problems_is_one_call_and_the_same_as_each_alone(world, monkeypatch):
    states = [start_of(world, seed, goal=0.1 * seed)[0] for seed in range(5)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    actions = np.float32(np.random.default_rng(0).uniform(-1, 1, (5, 6, 4, 1)))
    simulate, calls = world.make_simulator(cost), []
    rollout = world.rollout
    monkeypatch.setattr(world, "rollout", lambda **kw: calls.append(kw["actions"].shape) or rollout(**kw))
    together = jax.jit(jax.vmap(simulate))(batch, actions)
    assert calls == [(30, 4, 1)]
    for number, state in enumerate(states):
        alone = simulate(state, actions[number])
        np.testing.assert_allclose(together.cost[number], alone.cost, rtol=1e-5, atol=1e-6)
    shared = jax.jit(jax.vmap(simulate, in_axes=(0, None)))(batch, actions[0])
    np.testing.assert_allclose(shared.cost[0], together.cost[0], rtol=1e-5)
    same_start = jax.jit(jax.vmap(simulate, in_axes=(None, 0)))(states[0], actions)
    np.testing.assert_allclose(same_start.cost[0], together.cost[0], rtol=1e-5)


def test_the_number_of_threads_changes_nothing(world):
    state, _ = start_of(world, 1)
    actions = np.float32(np.random.default_rng(1).uniform(-1, 1, (7, 5, 1)))
    results = [make_world(num_threads=n).make_simulator(cost)(state, actions).cost for n in (1, 3)]
    np.testing.assert_array_equal(results[0], results[1])


def test_control_with_feedback_stops_at_every_action():
    def follow(actions, features):
        return actions - 0.5 * features["v"]

    looking = make_world(control=follow, feedback=True)
    state, data = start_of(looking, 2)
    actions = np.float32(np.random.default_rng(2).uniform(-0.5, 0.5, (3, 8, 1)))
    outcomes = looking.make_simulator(cost)(state, actions)
    total = 0.0
    for action in actions[1]:
        before = data.qpos[0]
        data.ctrl[:] = action - 0.5 * data.qvel[:1]
        mujoco.mj_step(looking.model, data, nstep=3)
        total += (data.sensor("tip").data[0] - 0.3) ** 2 + data.qpos[0] - before + 0.1 * action[0] ** 2
        state, _ = looking.step(state, action)
    np.testing.assert_allclose(outcomes.cost[1], total, rtol=1e-3)
    np.testing.assert_allclose(state.physics, looking.state_of(data).physics, rtol=1e-6, atol=1e-8)


def test_randomised_models_share_one_state(world):
    heavy = mujoco.MjModel.from_xml_string(XML)
    heavy.body_mass[:] *= 3.0
    other = MujocoWorld(
        heavy, frame_skip=3, features={"x": [1], "v": [3], "tip": physics.sensor_columns(heavy, "tip")}, num_threads=1
    )
    state, _ = start_of(world, 0)
    actions = np.float32(np.random.default_rng(0).uniform(-1, 1, (3, 8, 1)))
    costs = [each.make_simulator(cost)(state, actions).cost for each in (world, other)]
    assert np.max(np.abs(costs[0] - costs[1])) > 1e-3
    both = planning.combine_simulators([each.make_simulator(cost) for each in (world, other)], risk=planning.worst_cost)
    np.testing.assert_allclose(jax.jit(both)(state, actions).cost, np.maximum(*costs), rtol=1e-5)


def test_what_explodes_costs_nan_and_the_others_go_on():
    wild = make_world(EXPLODING)
    data = mujoco.MjData(wild.model)
    mujoco.mj_forward(wild.model, data)
    simulate = wild.make_simulator(lambda before, action, after, goal: step_result(after["x"][..., 0]))
    actions = np.zeros((4, 40, 1), np.float32)
    actions[1] = actions[3] = 1.0
    outcomes = simulate(wild.state_of(data), actions)
    np.testing.assert_array_equal(np.isnan(outcomes.cost), [False, True, False, True])
    planner = planning.make_icem(simulate, low=[-1.0], high=[1.0], horizon=40, num_samples=8, settings=SETTINGS)
    _, _, made = jax.jit(planner.plan)(jax.random.key(0), planner.init(), wild.state_of(data))
    assert int(made.num_nonfinite) > 0
    state, finite = wild.state_of(data), True
    for _ in range(40):
        state, finite = wild.step(state, np.float32([1.0]))
        if not finite:
            break
    assert not finite


def test_problems_over_eight_devices_share_one_simulator(world):
    simulate = world.make_simulator(cost)
    planner = planning.make_icem(simulate, low=[-1.0], high=[1.0], horizon=5, num_samples=8, settings=SETTINGS)
    states = jax.tree.map(lambda *x: np.stack(x), *[start_of(world, seed)[0] for seed in range(8)])
    keys = jax.random.split(jax.random.key(0), 8)
    memory = jax.vmap(lambda _: planner.init())(jnp.arange(8))
    spread = parallel.pmap_problems(planner.plan)(keys, memory, states)
    plan = jax.jit(planner.plan)
    for number in (0, 7):
        alone = plan(keys[number], planner.init(), jax.tree.map(lambda x, n=number: x[n], states))
        np.testing.assert_allclose(spread[0][number], alone[0], atol=1e-4)


def test_an_environment_that_explodes_ends_the_episode():
    wild = make_world(EXPLODING)

    def start(rng):
        data = mujoco.MjData(wild.model)
        data.qpos[:] = 0.01
        mujoco.mj_forward(wild.model, data)
        return wild.state_of(data)

    def cost(before, action, after, goal):
        return step_result(after["x"][..., 0])

    bound = np.ones(1, np.float32)
    task = planning.MujocoTask("wild", -bound, bound, 100, 5, 1.0, 0.03, wild, cost, start)
    planner = planning.make_icem(
        task.simulator(), low=task.low, high=task.high, horizon=5, num_samples=8, settings=SETTINGS
    )
    with pytest.raises(planning.DivergedError, match=r"wild: the cost of step \d+ of 100 in the true environment"):
        planning.run_episode(planner, task, seed=0)
    with pytest.raises(PlanningError, match="action_repeat=0"):
        planning.run_episode(planner, task, seed=0, action_repeat=0)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_state_of_another_model_is_refused_before_compilation(world):
    other = make_world(EXPLODING)
    data = mujoco.MjData(other.model)
    mujoco.mj_forward(other.model, data)
    state, actions = other.state_of(data), np.zeros((2, 3, 1), np.float32)
    with pytest.raises(PlanningError, match="state of another model"):
        jax.jit(world.make_simulator(cost)).lower(state, actions)
    with pytest.raises(PlanningError, match="state of another model"):
        world.step(state, actions[0, 0])
    mine, _ = start_of(world, 0)
    batch = dataclasses.replace(mine, physics=np.stack([mine.physics] * 2))
    with pytest.raises(PlanningError, match=r"physics has shape \[2, 6\].*`jax.vmap` maps over states"):
        world.step(batch, actions[0, 0])
    with pytest.raises(PlanningError, match=r"the state's goal has shape \[\]: expected one axis"):
        world.step(dataclasses.replace(mine, goal=np.float64(0.3)), actions[0, 0])
    with pytest.raises(PlanningError, match="expected a MujocoState, got ndarray"):
        world.make_simulator(cost)(np.zeros(3), actions)


def test_a_missing_xml(tmp_path):
    with pytest.raises(PlanningError, match=r"nothing\.xml: no such XML"):
        load_model(tmp_path / "nothing.xml")


def test_a_missing_mesh_is_named(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_text('<mujoco><asset><mesh name="m" file="arm.stl"/></asset></mujoco>')
    with pytest.raises(PlanningError, match=r"robot\.xml cannot be compiled.*arm\.stl"):
        load_model(file)


@pytest.mark.parametrize("text", ["<mujoco><worldbody></mujoco>", "<robots/>"])
def test_what_is_no_model(tmp_path, text):
    file = tmp_path / "broken.xml"
    file.write_text(text)
    with pytest.raises(PlanningError, match=r"broken\.xml cannot be compiled"):
        load_model(file)


def test_numbers_out_of_range(world):
    model = world.model
    with pytest.raises(PlanningError, match="frame_skip=0"):
        MujocoWorld(model, frame_skip=0, features={})
    with pytest.raises(PlanningError, match="num_threads=0"):
        MujocoWorld(model, frame_skip=1, features={}, num_threads=0)
    with pytest.raises(PlanningError, match=r"features\['far'\]=\[99\]"):
        MujocoWorld(model, frame_skip=1, features={"far": [99]})


def test_a_pose_is_drawn_from_the_bodies_that_move(world):
    state, data = start_of(world, 0)
    ends, radii = planning.figure_segments(world.model, state)
    assert ends.shape == (12 + 12 + 1, 2, 3)  # the edges of the wall and of the cart, and the pole's capsule
    np.testing.assert_allclose(np.linalg.norm(ends[-1, 1] - ends[-1, 0]), 0.5, rtol=1e-6)
    np.testing.assert_allclose(radii[-1], 0.02)
    np.testing.assert_allclose(ends[12:24].mean((0, 1)), data.body("cart").xpos, atol=1e-9)
    np.testing.assert_allclose(ends[:12].mean((0, 1)), data.mocap_pos[0], atol=1e-9)
    without, _ = planning.figure_segments(world.model, state.physics)
    np.testing.assert_allclose(without[:12].mean((0, 1)), [1.0, 0.0, 0.0], atol=1e-9)
    apart, _ = planning.figure_segments(world.model, state.physics, mocap=state.mocap)
    np.testing.assert_array_equal(apart, ends)


# The whole state ------------------------------------------------------------------------------------------------------

HANGING = """
<mujoco>
  <option timestep="0.01"/>
  <size nuserdata="3"/>
  <worldbody>
    <body name="box" pos="0 0 .8"><freejoint name="free"/><geom type="box" size=".1 .1 .1" mass="1"/></body>
  </worldbody>
  <equality><weld name="held" body1="box" active="false"/></equality>
</mujoco>
"""


def hanging(change):
    model = mujoco.MjModel.from_xml_string(HANGING)
    world = MujocoWorld(
        model, frame_skip=5, features={"z": physics.position_columns(model, "free")[2:3]}, num_threads=1
    )
    data = mujoco.MjData(model)
    change(data)
    mujoco.mj_forward(model, data)
    return world, data


def switch_on(data):
    data.eq_active[0] = 1


def push_body(data):
    data.xfrc_applied[1, 2] = 9.81


def push_joint(data):
    data.qfrc_applied[2] = 12.0


def write(data):
    data.userdata[:] = [1.0, 2.0, 3.0]


@pytest.mark.parametrize("change", [switch_on, push_body, push_joint, write])
def test_everything_that_the_future_depends_on_is_part_of_the_state(change):
    world, data = hanging(change)
    state, actions = world.state_of(data), np.zeros((2, 10, 0), np.float32)
    simulate = world.make_simulator(lambda before, action, after, goal: step_result(after["z"][..., 0]))
    cost = float(jax.jit(simulate)(state, actions).cost[1])
    expected = 0.0
    for _ in range(10):
        mujoco.mj_step(world.model, data, nstep=5)
        state, finite = world.step(state, np.zeros(0))
        assert finite
        expected += data.qpos[2]
    np.testing.assert_allclose(state.physics, world.state_of(data).physics, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(state.user, world.state_of(data).user)
    assert cost == pytest.approx(expected, rel=1e-4)
    assert (data.qpos[2] > 0.7) == (change is not write)  # else the box has fallen


# Shapes and warnings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [0, 2])
def test_actions_of_another_length_than_the_actuators_are_refused_before_compilation(world, num):
    state, _ = start_of(world, 0)
    planner = planning.make_random_shooting(
        world.make_simulator(cost), low=-np.ones(num + 2), high=np.ones(num + 2), horizon=3, num_samples=4
    )
    with pytest.raises(PlanningError, match="expected 1 numbers, one for each actuator"):
        jax.jit(planner.plan).lower(jax.random.key(0), planner.init(), state)
    with pytest.raises(PlanningError, match="expected 1 numbers, one for each actuator"):
        world.step(state, np.zeros(num))
    task = planning.double_integrator()
    with pytest.raises(PlanningError, match="expected 1 numbers each"):
        task.simulator()(jnp.zeros(2), jnp.zeros((2, 3, num)))


def test_a_control_of_the_wrong_length_is_refused_before_compilation():
    wrong = make_world(control=lambda actions, features: np.concatenate([actions, actions], axis=1))
    state, _ = start_of(wrong, 0)
    with pytest.raises(PlanningError, match=r"control returned shape \[1, 2\].*expected \[1, 1\], or 8 with"):
        jax.jit(wrong.make_simulator(cost)).lower(state, np.zeros((2, 3, 1), np.float32))


def test_a_warning_of_another_kind_is_not_taken_for_a_state_that_is_not_finite(caplog):
    balls = "".join(
        f'<body pos="{i % 5 * 0.1} {i // 5 * 0.1} .05"><freejoint/><geom size=".06" mass=".1"/></body>'
        for i in range(25)
    )
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><option timestep="0.002"/><size memory="80K"/><worldbody><geom type="plane" size="5 5 1"/>'
        f'<body><joint name="slide" type="slide" axis="1 0 0"/><geom size=".01" mass="1" contype="0" conaffinity="0"/>'
        f"</body>{balls}</worldbody><actuator><motor joint='slide'/></actuator></mujoco>"
    )
    crowded = MujocoWorld(model, frame_skip=2, features={"x": physics.position_columns(model, "slide")}, num_threads=1)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    state = crowded.state_of(data)
    simulate = crowded.make_simulator(lambda before, action, after, goal: step_result(-after["x"][..., 0]))
    outcomes = simulate(state, np.ones((2, 5, 1), np.float32))
    _, finite = crowded.step(state, np.ones(1))
    assert "MuJoCo warns" in caplog.text
    assert finite
    assert np.isfinite(outcomes.cost).all()
    assert outcomes.cost[0] < 0


def test_names_and_files_that_there_are_not(world, tmp_path):
    with pytest.raises(EdgesafeError, match=r"joint='slid': expected one of hinge, slide\. Did you mean 'slide'"):
        physics.position_columns(world.model, "slid")
    with pytest.raises(EdgesafeError, match="joint='nope'"):
        physics.velocity_columns(world.model, "nope")
    with pytest.raises(EdgesafeError, match="sensor='nope': expected one of tip"):
        physics.sensor_columns(world.model, "nope")
    with pytest.raises(PlanningError, match=r"x\.xml: no such XML"):
        MujocoWorld("x.xml", frame_skip=1, features={})
    with pytest.raises(PlanningError, match="model is a NoneType"):
        MujocoWorld(None, frame_skip=1, features={})
    file = tmp_path / "cart.xml"
    file.write_text(XML)
    assert MujocoWorld(file, frame_skip=1, features={}).model.nu == 1


def test_what_comes_after_the_end_costs_nothing(world):
    def falls(before, action, after, goal):
        return step_result(1.0 + 0.0 * after["x"][..., 0], done=after["x"][..., 0] > 0.05)

    state, _ = start_of(world, 0)
    actions = np.concatenate([np.ones((1, 60, 1)), -np.ones((1, 60, 1))]).astype(np.float32)
    simulate = world.make_simulator(falls, terminal_cost=lambda last, goal: 100.0 + 0.0 * last["x"][..., 0])
    outcomes = simulate(state, actions)
    steps = 0
    while True:
        state, _ = world.step(state, actions[0, steps])
        steps += 1
        if world.view(state.features)["x"][0] > 0.05:
            break
    assert float(outcomes.cost[0]) == steps
    bound = np.ones(1, np.float32)
    task = planning.MujocoTask("cart", -bound, bound, 60, 5, 1.0, 0.03, world, falls, lambda rng: start_of(world, 0)[0])
    pushing = planning.Planner(lambda: 0, lambda key, memory, env: (jnp.ones(1), memory, PUSH), 1)
    episode = planning.run_episode(pushing, task, seed=0)
    assert float(episode.results.cost.sum()) == steps == len(episode.actions)
    assert bool(episode.results.done[-1])


PUSH = planning.Plan(jnp.ones((5, 1)), *[jnp.zeros(())] * 4)
