"""PointMaze moves as its MuJoCo model does, its script finds the way, and nothing is drawn inside a wall."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from edgesafe_jax.dynamics import DynamicsError, is_wrong
from edgesafe_jax.offline_rl import maze
from edgesafe_jax.offline_rl.tasks import Stratum, generate

BLOCKS = "".join(
    f'<geom pos="{j + 0.5 - 2.5} {2.5 - i - 0.5} 0.25" size="0.5 0.5 0.25" type="box" contype="1" conaffinity="1"/>'
    for i, row in enumerate(maze.MAPS["umaze"])
    for j, cell in enumerate(row)
    if cell == "#"
)
XML = f"""<mujoco>
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <body name="particle">
      <geom type="sphere" size="0.1" contype="1"/>
      <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
    </body>
    {BLOCKS}
  </worldbody>
  <actuator>
    <motor joint="x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>"""
"""The model of Gymnasium-Robotics' point.xml with the blocks of its U_MAZE."""


@pytest.fixture(scope="module")
def data():
    return generate(jax.random.key(0), maze.make_point_maze(), num_episodes=40)


def _from_walls(task, positions):
    """Distance to the nearest wall, `[N]`."""
    found = np.full(len(positions), np.inf)
    for wall in task.walls:
        along = positions[:, 1 - wall.axis]
        beside = np.clip(along, wall.low, wall.high) - along
        found = np.minimum(found, np.hypot(positions[:, wall.axis] - wall.at, beside))
    return found


def test_it_moves_as_in_mujoco(data):
    model = mujoco.MjModel.from_xml_string(XML)
    world = mujoco.MjData(model)
    states, actions, after = (np.asarray(x) for x in (data.states, data.actions, data.next_states))
    truth = []
    for state, action in zip(states, actions, strict=True):
        mujoco.mj_resetData(model, world)
        world.qpos[:], world.qvel[:], world.ctrl[:] = state[:2], state[2:], action
        for _ in range(5):
            world.qvel[:] = np.clip(world.qvel, -5, 5)
            mujoco.mj_step(model, world)
        truth.append(np.concatenate([world.qpos, world.qvel]))
    gaps = np.abs(np.array(truth) - after)
    nearest = np.minimum(*(_from_walls(maze.make_point_maze(), x[:, :2]) for x in (states, after)))
    free = nearest > 0.35  # further than a step goes, so that nothing is met in between either
    assert free.mean() > 0.3
    np.testing.assert_allclose(gaps[free], 0, atol=1e-4)
    # MuJoCo's contact is soft: at most two centimetres; a rebound ends within a few steps.
    assert gaps[:, :2].max() < 0.02
    assert np.mean(np.any(gaps > np.array(maze.make_point_maze().tolerance), axis=1)) < 0.02


def test_nothing_enters_a_wall(data):
    task = maze.make_point_maze()
    assert _from_walls(task, np.asarray(data.next_states)[:, :2]).min() > maze.RADIUS - 1e-5
    touching = _from_walls(task, np.asarray(data.next_states)[:, :2]) < maze.RADIUS + 1e-4
    assert touching.mean() > 0.005  # walls are in the data
    # Into a wall, along it, and round a corner that sticks out: (0.5, 0.5) of the block in the middle.
    hit = task.step(jnp.array([0.0, 0.62, 1.0, -3.0]), jnp.zeros(2))
    assert float(hit[1]) == pytest.approx(0.6)
    assert float(hit[3]) == 0
    assert float(hit[2]) > 0.9
    corner = task.step(jnp.array([0.55, 0.62, 0.0, -2.0]), jnp.zeros(2))
    assert float(jnp.linalg.norm(corner[:2] - 0.5)) >= maze.RADIUS - 1e-5
    assert float(corner[2]) > 0.1  # pushed aside
    assert float(corner[3]) < 0  # and on its way


def test_the_script_follows_the_maze(data):
    task = maze.make_point_maze()
    last, goals = np.asarray(data.next_states)[data.ends, :2], np.asarray(data.goals)[data.ends]
    assert np.mean(np.linalg.norm(last - goals, axis=1) < task.radius) > 0.7
    # From one arm to the other the way leads round the bend, along the right.
    states = np.asarray(data.states).reshape(-1, task.horizon, 4)[:, :, :2]
    around = (states[:, 0, 1] > 0.5) & (goals[:, 1] < -0.5)
    assert around.sum() > 2
    assert states[around].max(axis=1)[:, 0].min() > 0.6
    assert np.mean(np.linalg.norm(last[around] - goals[around], axis=1) < task.radius) > 0.5


@pytest.mark.parametrize("name", maze.MAPS)
def test_starts_and_goals_are_free(name):
    task = maze.make_point_maze(name)
    draw = jax.jit(jax.vmap(lambda key: task.place(key, task.domain)))
    places = draw(jax.random.split(jax.random.key(0), 200))
    assert _from_walls(task, np.asarray(places)).min() > maze.RADIUS
    centres = np.array(maze.free_cells(name))
    nearest = np.linalg.norm(np.asarray(places)[:, None] - centres[None], axis=2).argmin(1)
    assert set(nearest) == set(range(len(centres)))  # all cells are drawn


def test_moving_across_walls_is_wrong(data):
    task = maze.make_point_maze()
    rows = data.transitions().take(np.arange(0, data.num_transitions, 10))
    # Half a metre down: much of what moved along an arm would now move through the block.
    down = jnp.broadcast_to(jnp.array([0.0, -0.5]), (len(rows.states), 1, 2))
    moved = is_wrong(task.step, task.group, down, rows, tolerance=task.tolerance)
    still = is_wrong(task.step, task.group, 0 * down, rows, tolerance=task.tolerance)
    assert still.mean() == 0
    assert moved.mean() > 0.3


def test_what_means_nothing_is_refused():
    with pytest.raises(DynamicsError, match="maze='magic': expected one of"):
        maze.make_point_maze("magic")
    task = maze.make_point_maze()
    with pytest.raises(DynamicsError, match="holds the centre of no free cell"):
        task.place(jax.random.key(0), Stratum(((0.0, -0.2), (0.2, 0.2)), task.domain).starts)
