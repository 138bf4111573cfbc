"""The five tasks of the iCEM paper in C MuJoCo.

The XML and meshes come from the packages gymnasium and gymnasium-robotics, as assets of which no code is imported; the
costs are written here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from edgesafe_jax import assets
from edgesafe_jax.planning.physics import (
    Features,
    MjModel,
    MjSpec,
    MujocoState,
    MujocoWorld,
    all_velocity_columns,
    import_mujoco,
    load_model,
    position_columns,
    sensor_columns,
)
from edgesafe_jax.planning.simulators import StepResult, step_result
from edgesafe_jax.planning.tasks import MujocoTask
from edgesafe_jax.typing import Array, ArrayLike


def _squares(values: Array) -> Array:
    return jnp.sum(values**2, axis=-1)


def _distance(one: Array, other: Array) -> Array:
    return jnp.sqrt(_squares(one - other))


def _if(condition: Array, value: ArrayLike) -> Array:
    """A term of a cost that counts under a condition."""
    return jnp.where(condition, value, 0.0)


def _gymnasium(file: str) -> Path:
    return assets.fetch("gymnasium") / "gymnasium" / "envs" / "mujoco" / "assets" / file


def _robotics(file: str) -> Path:
    return assets.fetch("gymnasium-robotics") / "gymnasium_robotics" / "envs" / "assets" / file


def _limits(model: MjModel) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.asarray(model.actuator_ctrlrange, np.float32).T
    return low, high


# HalfCheetah and HumanoidStandup --------------------------------------------------------------------------------------


def half_cheetah(num_threads: int | None = None) -> MujocoTask:
    r"""Makes HalfCheetah running, gymnasium's XML.

        cost = -v_x + 0.1 |a|^2 + 10 [|pitch| > pi / 2] ,   reward = v_x - 0.1 |a|^2 (gymnasium's own)

    with v_x the mean velocity of the trunk over a step of 0.05 s.

    Args:
      num_threads: of the simulator; None takes one per processor.

    Returns:
      The task.
    """
    model = load_model(_gymnasium("half_cheetah.xml"))
    columns = {"x": position_columns(model, "rootx"), "pitch": position_columns(model, "rooty")}
    world = MujocoWorld(model, frame_skip=5, features=columns, num_threads=num_threads)
    step_seconds = world.control_step

    def cost(before: Features, action: Array, after: Features, goal: Array) -> StepResult:
        del goal
        reward = (after["x"] - before["x"])[..., 0] / step_seconds - 0.1 * _squares(action)
        fallen = jnp.abs(after["pitch"][..., 0]) > jnp.pi / 2
        return step_result(-reward + _if(fallen, 10.0), reward=reward)

    def start(rng: np.random.Generator) -> MujocoState:
        return _perturbed(world, lambda size: rng.uniform(-0.1, 0.1, size), lambda size: 0.1 * rng.normal(size=size))

    low, high = _limits(model)
    return MujocoTask("halfcheetah", low, high, 1000, 30, 0.25, step_seconds, world, cost, start)


def humanoid_standup(num_threads: int | None = None) -> MujocoTask:
    r"""Makes HumanoidStandup, gymnasium's XML.

        cost = -z + 0.1 |a|^2 ,   z the height of the torso in metres

    Args:
      num_threads: of the simulator; None takes one per processor.

    Returns:
      The task.
    """
    model = load_model(_gymnasium("humanoidstandup.xml"))
    columns = {"root": position_columns(model, "root")}
    world = MujocoWorld(model, frame_skip=5, features=columns, num_threads=num_threads)

    def cost(before: Features, action: Array, after: Features, goal: Array) -> StepResult:
        del before, goal
        return step_result(-after["root"][..., 2] + 0.1 * _squares(action))

    def start(rng: np.random.Generator) -> MujocoState:
        return _perturbed(world, *[lambda size: rng.uniform(-0.01, 0.01, size)] * 2)

    low, high = _limits(model)
    return MujocoTask("humanoidstandup", low, high, 1000, 30, 2.0, world.control_step, world, cost, start)


def _perturbed(
    world: MujocoWorld, position: Callable[[int], np.ndarray], velocity: Callable[[int], np.ndarray]
) -> MujocoState:
    """The model's first pose with noise on it."""
    mujoco = import_mujoco()

    data = mujoco.MjData(world.model)
    data.qpos[:] += position(world.model.nq)
    data.qvel[:] = velocity(world.model.nv)
    mujoco.mj_forward(world.model, data)
    return world.state_of(data)


# Fetch ----------------------------------------------------------------------------------------------------------------


def fetch_pick_and_place(num_threads: int | None = None, *, shaped: bool = True) -> MujocoTask:
    r"""Makes Fetch pick-and-place, gymnasium-robotics' XML.

        cost = |box - goal| (+ 0.1 |gripper - box| where shaped) ,   success = [|box - goal| <= 0.05]

    An action moves the gripper by up to 5 cm in each direction and its fingers; the gripper's target is set from where
    it is at each action, so that rollouts stop there.

    Args:
      num_threads: of the simulator; None takes one per processor.
      shaped: whether the distance of gripper and box counts.

    Returns:
      The task.
    """
    mujoco = import_mujoco()

    def edit(spec: MjSpec) -> None:
        for name, kind, of in (
            ("grip", mujoco.mjtObj.mjOBJ_SITE, "robot0:grip"),
            ("box", mujoco.mjtObj.mjOBJ_SITE, "object0"),
            ("link", mujoco.mjtObj.mjOBJ_XBODY, "robot0:gripper_link"),
        ):
            spec.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_FRAMEPOS, objtype=kind, objname=of)
        spec.add_sensor(
            name="link_quat",
            type=mujoco.mjtSensor.mjSENS_FRAMEQUAT,
            objtype=mujoco.mjtObj.mjOBJ_XBODY,
            objname="robot0:gripper_link",
        )

    model = load_model(_robotics("fetch/pick_and_place.xml"), edit)
    # The weld between the gripper and the body that an action moves holds them together without an offset.
    welds = model.eq_type == mujoco.mjtEq.mjEQ_WELD
    model.eq_data[welds, :7] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    fingers = ("robot0:l_gripper_finger_joint", "robot0:r_gripper_finger_joint")
    columns = {
        "fingers": [column for joint in fingers for column in position_columns(model, joint)],
        **{name: sensor_columns(model, name) for name in ("grip", "box", "link", "link_quat")},
    }
    downwards = np.array([1.0, 0.0, 1.0, 0.0])

    def control(actions: np.ndarray, features: Features) -> np.ndarray:
        place = features["link"] + 0.05 * actions[:, :3]
        return np.concatenate(
            [features["fingers"] + actions[:, 3:], place, features["link_quat"] + downwards[None]], axis=1
        )

    world = MujocoWorld(model, frame_skip=20, features=columns, control=control, feedback=True, num_threads=num_threads)

    def cost(before: Features, action: Array, after: Features, goal: Array) -> StepResult:
        del before, action
        away = _distance(after["box"], jnp.broadcast_to(goal, after["box"].shape))
        reach = 0.1 * _distance(after["grip"], after["box"]) if shaped else 0.0
        return step_result(away + reach, success=away <= 0.05)

    ready, grip, height = _fetch_ready(model)

    def start(rng: np.random.Generator) -> MujocoState:
        place = grip[:2]
        while np.linalg.norm(place - grip[:2]) < 0.1:
            place = grip[:2] + rng.uniform(-0.15, 0.15, 2)
        goal = np.append(grip[:2] + rng.uniform(-0.15, 0.15, 2), height)
        goal[2] += rng.uniform(0.0, 0.45) * (rng.uniform() < 0.5)
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, ready, mujoco.mjtState.mjSTATE_INTEGRATION.value)
        data.joint("object0:joint").qpos[:2] = place
        mujoco.mj_forward(model, data)
        return world.state_of(data, goal)

    low, high = -np.ones(4, np.float32), np.ones(4, np.float32)
    return MujocoTask("fetch_pick_and_place", low, high, 50, 30, 3.0, world.control_step, world, cost, start)


def _fetch_ready(model: MjModel) -> tuple[np.ndarray, np.ndarray, float]:
    """The arm above the table: the state, where the gripper is, and how high the box lies."""
    mujoco = import_mujoco()

    data = mujoco.MjData(model)
    for joint, value in (("robot0:slide0", 0.405), ("robot0:slide1", 0.48), ("robot0:slide2", 0.0)):
        data.joint(joint).qpos[:] = value
    data.joint("object0:joint").qpos[:] = (1.25, 0.53, 0.4, 1.0, 0.0, 0.0, 0.0)
    mujoco.mj_forward(model, data)
    data.mocap_pos[0] = np.array([-0.498, 0.005, -0.231]) + data.site("robot0:grip").xpos
    data.mocap_quat[0] = (1.0, 0.0, 1.0, 0.0)
    mujoco.mj_step(model, data, nstep=200)
    mujoco.mj_forward(model, data)
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION.value))
    data.qvel[:] = 0.0
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION.value)
    return state, data.site("robot0:grip").xpos.copy(), float(data.site("object0").xpos[2])


# Adroit ---------------------------------------------------------------------------------------------------------------


def _adroit(model: MjModel, columns: Mapping[str, list[int]], num_threads: int | None) -> MujocoWorld:
    """A hand whose actions in [-1, 1] are scaled to the ranges of its actuators."""
    wrist = [model.actuator(name).id for name in ("A_WRJ1", "A_WRJ0")]
    fingers = range(model.actuator("A_FFJ3").id, model.actuator("A_THJ0").id + 1)
    for gain, chosen in ((10.0, range(wrist[0], wrist[1] + 1)), (1.0, fingers)):
        model.actuator_gainprm[list(chosen), :3] = (gain, 0.0, 0.0)
        model.actuator_biasprm[list(chosen), :3] = (0.0, -gain, 0.0)
    low, high = model.actuator_ctrlrange.T
    middle, half = (low + high) / 2, (high - low) / 2
    return MujocoWorld(
        model,
        frame_skip=5,
        features=columns,
        control=lambda actions, features: middle[None] + np.clip(actions, -1.0, 1.0) * half[None],
        num_threads=num_threads,
    )


def door(num_threads: int | None = None, *, shaped: bool = False, velocity_weight: float = 1e-5) -> MujocoTask:
    r"""Makes Adroit's door, gymnasium-robotics' XML; sparse unless shaped.

        cost = 0.1 (th - 1.57)^2 + velocity_weight |qvel|^2 - 2 [th > 0.2] - 8 [th > 1] - 10 [th > 1.35]
               (+ 0.1 |palm - handle| where shaped) ,   success = [th > 1.35]

    with th the angle of the hinge in radians. The weight is 1e-5 in the task's own reward, where a hand that moves
    pays before the door does. In the code of the iCEM paper the term has no effect: it takes the last entries of an
    observation for the velocities, and the observation holds none.

    Where the door stands is part of the state (its frame is a body that the user places), so that one model serves
    all episodes.

    Args:
      num_threads: of the simulator; None takes one per processor.
      shaped: whether the distance of palm and handle counts.
      velocity_weight: of the squared velocities; 0 for the paper's code.

    Returns:
      The task.
    """
    mujoco = import_mujoco()

    def edit(spec: MjSpec) -> None:
        spec.body("frame").mocap = True
        for name, site in (("palm", "S_grasp"), ("handle", "S_handle")):
            kind = mujoco.mjtSensor.mjSENS_FRAMEPOS
            spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname=site)

    model = load_model(_robotics("adroit_hand/adroit_door.xml"), edit)
    columns = {
        "hinge": position_columns(model, "door_hinge"),
        "velocity": all_velocity_columns(model),
        **{name: sensor_columns(model, name) for name in ("palm", "handle")},
    }
    world = _adroit(model, columns, num_threads)
    frame = int(model.body("frame").mocapid[0])

    def cost(before: Features, action: Array, after: Features, goal: Array) -> StepResult:
        del before, action, goal
        angle = after["hinge"][..., 0]
        value = 0.1 * (angle - 1.57) ** 2 + velocity_weight * _squares(after["velocity"])
        for threshold, bonus in ((0.2, 2.0), (1.0, 8.0), (1.35, 10.0)):
            value = value - _if(angle > threshold, bonus)
        if shaped:
            value = value + 0.1 * _distance(after["palm"], after["handle"])
        return step_result(value, success=angle > 1.35)

    def start(rng: np.random.Generator) -> MujocoState:
        data = mujoco.MjData(model)
        data.mocap_pos[frame] = rng.uniform((-0.3, 0.25, 0.252), (-0.2, 0.35, 0.35))
        mujoco.mj_forward(model, data)
        return world.state_of(data)

    bound = np.ones(model.nu, np.float32)
    name = "door" if velocity_weight else "door_no_velocity"
    return MujocoTask(name, -bound, bound, 200, 30, 2.5, world.control_step, world, cost, start)


def relocate(num_threads: int | None = None) -> MujocoTask:
    r"""Makes Adroit's relocation of a ball, gymnasium-robotics' XML.

        cost = 0.1 |palm - ball| + [z > 0.04] (0.5 |ball - target| - 1) - 10 [d < 0.1] - 20 [d < 0.05]

    with z the height of the ball and d = |ball - target|; success = [d < 0.1].

    Args:
      num_threads: of the simulator; None takes one per processor.

    Returns:
      The task.
    """
    mujoco = import_mujoco()

    def edit(spec: MjSpec) -> None:
        for name, kind, of in (
            ("palm", mujoco.mjtObj.mjOBJ_SITE, "S_grasp"),
            ("ball", mujoco.mjtObj.mjOBJ_XBODY, "Object"),
        ):
            spec.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_FRAMEPOS, objtype=kind, objname=of)

    model = load_model(_robotics("adroit_hand/adroit_relocate.xml"), edit)
    columns = {name: sensor_columns(model, name) for name in ("palm", "ball")}
    world = _adroit(model, columns, num_threads)

    def cost(before: Features, action: Array, after: Features, goal: Array) -> StepResult:
        del before, action
        ball = after["ball"]
        away = _distance(ball, jnp.broadcast_to(goal, ball.shape))
        lifted = ball[..., 2] > 0.04
        value = 0.1 * _distance(after["palm"], ball) + _if(lifted, 0.5 * away - 1.0)
        return step_result(value - _if(away < 0.1, 10.0) - _if(away < 0.05, 20.0), success=away < 0.1)

    def start(rng: np.random.Generator) -> MujocoState:
        data = mujoco.MjData(model)
        data.joint("OBJTx").qpos[0] = rng.uniform(-0.15, 0.15)
        data.joint("OBJTy").qpos[0] = rng.uniform(-0.15, 0.3)
        mujoco.mj_forward(model, data)
        return world.state_of(data, rng.uniform((-0.2, -0.2, 0.15), (0.2, 0.2, 0.35)))

    bound = np.ones(model.nu, np.float32)
    return MujocoTask("relocate", -bound, bound, 200, 30, 3.5, world.control_step, world, cost, start)
