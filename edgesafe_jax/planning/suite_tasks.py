"""Thirteen tasks of dm_control's suite in C MuJoCo.

The XML comes from the package dm_control, an asset of which no code is imported; rewards and starts are written here
after the suite's definitions. A step lasts as long as there, an episode has 1000, and the cost is the negative reward,
which lies between 0 and 1. What a reward reads are positions, velocities and sensors of the last physics step. Horizons
cover about a second; neither they nor the exponents of the noise are tuned.

Reference: Tassa et al., "DeepMind Control Suite", arXiv 1801.00690.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from edgesafe_jax import assets
from edgesafe_jax.errors import lookup
from edgesafe_jax.planning import physics
from edgesafe_jax.planning.physics import Features, MjData, MjModel, MjSpec, MujocoState, import_mujoco
from edgesafe_jax.planning.simulators import StepResult, step_result
from edgesafe_jax.planning.tasks import MujocoTask
from edgesafe_jax.typing import Array

INFINITY = math.inf
ATTEMPTS = 1000
"""Draws of a start without contacts, before the last one is taken."""


def tolerance(
    x: Array,
    low: float,
    high: float,
    *,
    margin: float = 0.0,
    shape: str = "gaussian",
    at_margin: float = 0.1,
) -> Array:
    """Returns how well numbers lie between bounds: 1 inside, less outside.

    With d the distance from the bounds over the margin and v the value at d = 1, it is `v^(d^2)` (gaussian),
    `max(0, 1 - (1 - v) d)` (linear) or `max(0, 1 - (1 - v) d^2)` (quadratic).

    Args:
      x: `[...]`.
      low: lower bound.
      high: upper bound.
      margin: distance at which the value is `at_margin`; 0 for nothing outside.
      shape: `"gaussian"`, `"linear"` or `"quadratic"`.
      at_margin: v.

    Returns:
      `[...]`, from 0 to 1.

    Reference: arXiv 1801.00690, section 3.
    """
    outside = jnp.maximum(jnp.maximum(low - x, x - high), 0.0)
    if not margin:
        return (outside == 0).astype(jnp.float32)
    distance = outside / margin
    if shape == "gaussian":
        return at_margin ** (distance**2)
    return jnp.maximum(0.0, 1 - (1 - at_margin) * (distance if shape == "linear" else distance**2))


Reward = Callable[[Features, Array, Array], Array]
"""From features, the action `[..., A]` and the goal `[G]` to the reward `[...]`."""


@dataclasses.dataclass(frozen=True)
class Definition:
    """What sets a task apart.

    Attributes:
      file: its XML.
      reward: of a step.
      start: sets positions and velocities of simulation data; returns the goal.
      joints: by feature, joints whose positions are read.
      sensors: by feature, sensors that the XML has.
      frames: by feature, what is measured of which object: type of sensor, type of object and name.
      tune: changes the compiled model, or None.
      frame_skip: physics steps of an action.
      horizon: of a plan.
      noise_beta: exponent of the noise.
    """

    file: str
    reward: Reward
    start: Callable[[MjModel, MjData, np.random.Generator], tuple[float, ...]]
    joints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frames: Mapping[str, tuple[str, str, str]] = dataclasses.field(default_factory=dict)
    tune: Callable[[MjModel], None] | None = None
    frame_skip: int = 1
    horizon: int = 50
    noise_beta: float = 2.0


def _draw_joints(model: MjModel, data: MjData, rng: np.random.Generator) -> None:
    """Draws hinges, within their limits or all round, and limited slides; the suite's own distribution."""
    mujoco = import_mujoco()
    for joint in range(model.njnt):
        limited, hinge = bool(model.jnt_limited[joint]), model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE
        low, high = model.jnt_range[joint] if limited else (-np.pi, np.pi)
        if limited or hinge:
            data.qpos[model.jnt_qposadr[joint]] = rng.uniform(low, high)


def _joints(model: MjModel, data: MjData, rng: np.random.Generator) -> tuple[float, ...]:
    _draw_joints(model, data, rng)
    return ()


def _first(features: Any) -> Array:
    return features[..., 0]


# Poles ----------------------------------------------------------------------------------------------------------------


def _cartpole(features: Features, action: Array, goal: Array) -> Array:
    del goal
    upright = (1 + jnp.cos(_first(features["pole"]))) / 2
    centred = (1 + tolerance(_first(features["cart"]), 0, 0, margin=2)) / 2
    gentle = (4 + tolerance(_first(action), 0, 0, margin=1, at_margin=0, shape="quadratic")) / 5
    slow = (1 + jnp.min(tolerance(features["velocity"][..., 1:], 0, 0, margin=5), axis=-1)) / 2
    return upright * gentle * slow * centred


def _cartpole_start(model: MjModel, data: MjData, rng: np.random.Generator, *, swing_up: bool) -> tuple[float, ...]:
    if swing_up:
        data.qpos[:] = np.array([0.0, np.pi]) + 0.01 * rng.normal(size=2)
    else:
        data.qpos[:] = rng.uniform(-0.1, 0.1), rng.uniform(-0.034, 0.034)
    data.qvel[:] = 0.01 * rng.normal(size=model.nv)
    return ()


def _pendulum(features: Features, action: Array, goal: Array) -> Array:
    del action, goal
    return tolerance(jnp.cos(_first(features["pole"])), math.cos(math.radians(8)), 1)


def _acrobot(features: Features, action: Array, goal: Array) -> Array:
    del action, goal
    away = jnp.linalg.norm(features["target"] - features["tip"], axis=-1)
    return tolerance(away, 0, 0.2, margin=1)


# Runners --------------------------------------------------------------------------------------------------------------


def _cheetah(features: Features, action: Array, goal: Array) -> Array:
    del action, goal
    return tolerance(_first(features["speed"]), 10, INFINITY, margin=10, at_margin=0, shape="linear")


def _cheetah_start(model: MjModel, data: MjData, rng: np.random.Generator) -> tuple[float, ...]:
    mujoco = import_mujoco()
    limited = model.jnt_limited == 1
    data.qpos[limited] = rng.uniform(*model.jnt_range[limited].T)
    mujoco.mj_step(model, data, nstep=200)
    data.time = 0.0
    return ()


def _walker(features: Features, action: Array, goal: Array, *, speed: float) -> Array:
    del action, goal
    standing = tolerance(features["torso"][..., 2], 1.2, INFINITY, margin=0.6)
    stand = (3 * standing + (1 + features["axis"][..., 2]) / 2) / 4
    if not speed:
        return stand
    moving = tolerance(_first(features["speed"]), speed, INFINITY, margin=speed / 2, at_margin=0.5, shape="linear")
    return stand * (5 * moving + 1) / 6


def _hopper(features: Features, action: Array, goal: Array, *, hop: bool) -> Array:
    del goal
    standing = tolerance(features["torso"][..., 2] - features["foot"][..., 2], 0.6, 2)
    if hop:
        return standing * tolerance(_first(features["speed"]), 2, INFINITY, margin=1, at_margin=0.5, shape="linear")
    gentle = jnp.mean(tolerance(action, 0, 0, margin=1, at_margin=0, shape="quadratic"), axis=-1)
    return standing * (4 + gentle) / 5


# Hands ----------------------------------------------------------------------------------------------------------------


def _finger(features: Features, action: Array, goal: Array) -> Array:
    del action, goal
    return (_first(features["spin"]) <= -15).astype(jnp.float32)


def _finger_start(model: MjModel, data: MjData, rng: np.random.Generator) -> tuple[float, ...]:
    mujoco = import_mujoco()
    for _ in range(ATTEMPTS):
        _draw_joints(model, data, rng)
        mujoco.mj_forward(model, data)
        if not data.ncon:
            break
    return ()


def _finger_model(model: MjModel) -> None:
    model.dof_damping[model.joint("hinge").dofadr[0]] = 0.03


def _reacher(features: Features, action: Array, goal: Array) -> Array:
    del action
    place = features["finger"][..., :2]
    away = jnp.linalg.norm(place - jnp.broadcast_to(goal, place.shape), axis=-1)
    return tolerance(away, 0, 0.05 + 0.01)


def _reacher_start(model: MjModel, data: MjData, rng: np.random.Generator) -> tuple[float, ...]:
    _draw_joints(model, data, rng)
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.2)
    return radius * math.sin(angle), radius * math.cos(angle)


def _catch(features: Features, action: Array, goal: Array) -> Array:
    del action, goal
    away = jnp.abs(features["target"] - features["ball"])
    return jnp.all(away[..., jnp.array([0, 2])] < 0.05 - 0.025, axis=-1).astype(jnp.float32)


def _catch_start(model: MjModel, data: MjData, rng: np.random.Generator) -> tuple[float, ...]:
    mujoco = import_mujoco()
    for _ in range(ATTEMPTS):
        data.joint("ball_x").qpos[0], data.joint("ball_z").qpos[0] = rng.uniform(-0.2, 0.2), rng.uniform(0.2, 0.5)
        mujoco.mj_forward(model, data)
        if not data.ncon:
            break
    return ()


# All ------------------------------------------------------------------------------------------------------------------

_SPEED = {"speed": "torso_subtreelinvel"}
_TORSO = {"torso": ("FRAMEPOS", "XBODY", "torso")}
_POLE = Definition("cartpole.xml", _cartpole, _joints, joints={"cart": "slider", "pole": "hinge_1"}, horizon=100)
_WALKER = Definition(
    "walker.xml",
    functools.partial(_walker, speed=0),
    _joints,
    sensors=_SPEED,
    frames={**_TORSO, "axis": ("FRAMEZAXIS", "XBODY", "torso")},
    frame_skip=10,
    horizon=40,
)
_HOPPER = Definition(
    "hopper.xml",
    functools.partial(_hopper, hop=False),
    _joints,
    sensors=_SPEED,
    frames={"torso": ("FRAMEPOS", "BODY", "torso"), "foot": ("FRAMEPOS", "BODY", "foot")},
    frame_skip=4,
)

DEFINITIONS: dict[str, Definition] = {
    "cartpole_balance": dataclasses.replace(_POLE, start=functools.partial(_cartpole_start, swing_up=False)),
    "cartpole_swingup": dataclasses.replace(_POLE, start=functools.partial(_cartpole_start, swing_up=True)),
    "pendulum_swingup": Definition("pendulum.xml", _pendulum, _joints, joints={"pole": "hinge"}),
    "acrobot_swingup": Definition(
        "acrobot.xml",
        _acrobot,
        _joints,
        frames={"target": ("FRAMEPOS", "SITE", "target"), "tip": ("FRAMEPOS", "SITE", "tip")},
        horizon=100,
    ),
    "cheetah_run": Definition("cheetah.xml", _cheetah, _cheetah_start, sensors=_SPEED, horizon=100),
    "walker_stand": _WALKER,
    "walker_walk": dataclasses.replace(_WALKER, reward=functools.partial(_walker, speed=1)),
    "walker_run": dataclasses.replace(_WALKER, reward=functools.partial(_walker, speed=8)),
    "hopper_stand": _HOPPER,
    "hopper_hop": dataclasses.replace(_HOPPER, reward=functools.partial(_hopper, hop=True)),
    "finger_spin": Definition(
        "finger.xml", _finger, _finger_start, sensors={"spin": "hinge_velocity"}, tune=_finger_model, frame_skip=2
    ),
    "reacher_easy": Definition(
        "reacher.xml", _reacher, _reacher_start, frames={"finger": ("FRAMEPOS", "GEOM", "finger")}
    ),
    "ball_in_cup_catch": Definition(
        "ball_in_cup.xml",
        _catch,
        _catch_start,
        frames={"target": ("FRAMEPOS", "SITE", "target"), "ball": ("FRAMEPOS", "XBODY", "ball")},
        frame_skip=10,
    ),
}
"""The tasks by name. An entry adds one."""


def suite_task(name: str, num_threads: int | None = None) -> MujocoTask:
    """Makes a task of the suite.

    Args:
      name: a key of `DEFINITIONS`.
      num_threads: of the simulator; None takes one per processor.

    Returns:
      The task.

    Raises:
      ConfigError: there is no such task.
    """
    definition = lookup(DEFINITIONS, name, "task of the suite")
    mujoco = import_mujoco()

    def edit(spec: MjSpec) -> None:
        for feature, (kind, of, named) in definition.frames.items():
            spec.add_sensor(
                name=f"{feature}_frame",
                type=getattr(mujoco.mjtSensor, f"mjSENS_{kind}"),
                objtype=getattr(mujoco.mjtObj, f"mjOBJ_{of}"),
                objname=named,
            )

    model = physics.load_model(assets.fetch("dm-control") / "dm_control" / "suite" / definition.file, edit)
    if definition.tune is not None:
        definition.tune(model)
    columns = {
        "velocity": physics.all_velocity_columns(model),
        **{feature: physics.position_columns(model, joint) for feature, joint in definition.joints.items()},
        **{feature: physics.sensor_columns(model, sensor) for feature, sensor in definition.sensors.items()},
        **{feature: physics.sensor_columns(model, f"{feature}_frame") for feature in definition.frames},
    }
    world = physics.MujocoWorld(model, frame_skip=definition.frame_skip, features=columns, num_threads=num_threads)

    def cost(before: Features, action: Array, after: Features, goal: Array) -> StepResult:
        del before
        reward = definition.reward(after, action, goal)
        return step_result(-reward, reward=reward)

    def start(rng: np.random.Generator) -> MujocoState:
        data = mujoco.MjData(model)
        goal = definition.start(model, data, rng)
        mujoco.mj_forward(model, data)
        return world.state_of(data, goal)

    low, high = np.asarray(model.actuator_ctrlrange, np.float32).T
    plan = (definition.horizon, definition.noise_beta)
    return MujocoTask(name, low, high, 1000, *plan, world.control_step, world, cost, start)
