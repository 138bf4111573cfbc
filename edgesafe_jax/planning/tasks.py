"""Tasks: an environment, its cost and how long an episode lasts; the five of the iCEM paper, brax, and closed forms.

The XML and meshes of the paper's tasks come from the packages gymnasium and gymnasium-robotics, as assets of which
no code is imported; the costs are written here.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import assets
from edgesafe_jax.planning import physics
from edgesafe_jax.planning.physics import Cost, Features, MjModel, MjSpec, MujocoState, MujocoWorld, import_mujoco
from edgesafe_jax.planning.planner import PlanningError, Simulator
from edgesafe_jax.planning.simulators import Step, StepResult, make_simulator, step_result
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class Task:
    """What every task says of itself.

    Attributes:
      name: its name.
      low: lower bounds of the actions `[A]`.
      high: upper bounds `[A]`.
      episode_length: steps of an episode.
      horizon: T of a plan.
      noise_beta: exponent of the noise that suits it.
      control_step: seconds of simulated time for one action.
    """

    name: str
    low: np.ndarray
    high: np.ndarray
    episode_length: int
    horizon: int
    noise_beta: float
    control_step: float


@dataclasses.dataclass(frozen=True)
class JaxTask(Task):
    """A task whose environment is JAX.

    Attributes:
      reset: from a key to the state at the start of an episode.
      step: from a state and an action `[A]` to the next state and its `StepResult`.
    """

    reset: Callable[[PRNGKey], PyTree]
    step: Step

    def simulator(self) -> Simulator:
        """Returns the simulator of this environment."""
        return make_simulator(self.step)


@dataclasses.dataclass(frozen=True)
class MujocoTask(Task):
    """A task in C MuJoCo; the true environment is NumPy in float64.

    Attributes:
      world: the model, its features and its controls.
      cost: of a step.
      start: from a generator of random numbers to the state at the start of an episode.
    """

    world: MujocoWorld
    cost: Cost
    start: Callable[[np.random.Generator], MujocoState]

    def reset(self, key: PRNGKey) -> MujocoState:
        """Returns the state at the start of an episode."""
        return self.start(np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist()))

    def step(self, state: MujocoState, action: np.ndarray) -> tuple[MujocoState, StepResult]:
        """Takes one step of the true environment.

        Args:
          state: from `reset` or this function.
          action: `[A]`; clipped to the bounds.

        Returns:
          The next state and the step's result, in NumPy; its cost is NaN where the physics did not stay finite.
        """
        action = np.clip(np.asarray(action, np.float32), self.low, self.high)
        after, finite = self.world.step(state, action)
        features = (jnp.asarray(each.features, jnp.float32) for each in (state, after))
        before, now = (self.world.view(each) for each in features)
        result = jax.jit(self.cost)(before, jnp.asarray(action), now, jnp.asarray(state.goal, jnp.float32))
        result = jax.tree.map(np.asarray, result)
        if not finite:
            result = dataclasses.replace(result, cost=np.float32(np.nan), reward=np.float32(np.nan))
        return after, result

    def simulator(self) -> Simulator:
        """Returns the simulator of this environment, see `MujocoWorld.make_simulator`."""
        return self.world.make_simulator(self.cost)


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
    model = physics.load_model(_gymnasium("half_cheetah.xml"))
    columns = {"x": physics.position_columns(model, "rootx"), "pitch": physics.position_columns(model, "rooty")}
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
    model = physics.load_model(_gymnasium("humanoidstandup.xml"))
    columns = {"root": physics.position_columns(model, "root")}
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

    model = physics.load_model(_robotics("fetch/pick_and_place.xml"), edit)
    # The weld between the gripper and the body that an action moves holds them together without an offset.
    welds = model.eq_type == mujoco.mjtEq.mjEQ_WELD
    model.eq_data[welds, :7] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    fingers = ("robot0:l_gripper_finger_joint", "robot0:r_gripper_finger_joint")
    columns = {
        "fingers": [column for joint in fingers for column in physics.position_columns(model, joint)],
        **{name: physics.sensor_columns(model, name) for name in ("grip", "box", "link", "link_quat")},
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

        cost = 0.1 (th - 1.57)^2 + velocity_weight |qvel|^2 - 2 [th > .2] - 8 [th > 1] - 10 [th > 1.35]
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

    model = physics.load_model(_robotics("adroit_hand/adroit_door.xml"), edit)
    columns = {
        "hinge": physics.position_columns(model, "door_hinge"),
        "velocity": physics.all_velocity_columns(model),
        **{name: physics.sensor_columns(model, name) for name in ("palm", "handle")},
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

        cost = 0.1 |palm - ball| + [z > .04] (0.5 |ball - target| - 1) - 10 [d < .1] - 20 [d < .05]

    with z the height of the ball and d = |ball - target|; success = [d < .1].

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

    model = physics.load_model(_robotics("adroit_hand/adroit_relocate.xml"), edit)
    columns = {name: physics.sensor_columns(model, name) for name in ("palm", "ball")}
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


# brax -----------------------------------------------------------------------------------------------------------------

BRAX_TASKS = {"halfcheetah": 0.25, "humanoidstandup": 2.0, "pusher": 2.0, "reacher": 2.0, "ant": 1.0}
"""brax environments and the exponents of the noise: the paper's for its two tasks, elsewhere this project's choice."""


@contextlib.contextmanager
def _usual_promotion() -> Iterator[None]:
    """Inside, brax's code is traced with jax's usual promotion rules, whatever those outside are."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def brax_task(name: str, *, backend: str = "spring") -> JaxTask:
    """Makes a task of a brax environment: its cost is its reward with the sign turned.

    Episodes have a fixed length: where brax says that one is done (an ant that has fallen), it goes on.

    Args:
      name: a key of `BRAX_TASKS`.
      backend: brax's physics, ``"spring"``, ``"positional"`` or ``"generalized"``.

    Returns:
      The task; the state of its environment is brax's.

    Raises:
      PlanningError: if there is no such environment or physics.
    """
    if name not in BRAX_TASKS:
        raise PlanningError(f"brax task {name!r}: expected one of {', '.join(BRAX_TASKS)}")
    if backend not in ("spring", "positional", "generalized"):
        raise PlanningError(f"backend={backend!r}: expected spring, positional or generalized")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # brax and what it imports say that they are no longer developed
        from brax import envs

        env: Any = envs.get_environment(name, backend=backend)  # its base class does not name all that it has
    bound = np.ones(env.action_size, np.float32)  # what brax's environments take; some scale it to their actuators

    def reset(key: PRNGKey) -> PyTree:
        with _usual_promotion():
            return env.reset(key)

    def step(state: PyTree, action: Array) -> tuple[PyTree, StepResult]:
        with _usual_promotion():
            state = env.step(state, action)
        return state, step_result(-state.reward)

    return JaxTask(
        name=f"brax_{name}",
        low=-bound,
        high=bound,
        episode_length=1000,
        horizon=30,
        noise_beta=BRAX_TASKS[name],
        control_step=float(env.dt),
        reset=reset,
        step=step,
    )


# Closed forms ---------------------------------------------------------------------------------------------------------


def double_integrator(*, step_seconds: float = 0.1, action_weight: float = 0.1) -> JaxTask:
    r"""Makes a cart on a line that is to come to rest at 0: linear dynamics, quadratic cost, known optimum.

        p' = p + v dt + a dt^2 / 2 ,  v' = v + a dt ,  cost = p'^2 + 0.1 v'^2 + action_weight a^2

    Starts are uniform with |p| <= 1 and |v| <= 0.5, from where the optimal actions keep within the bounds [-5, 5].

    Args:
      step_seconds: dt.
      action_weight: of the squared acceleration.

    Returns:
      The task, see `double_integrator_cost` for its optimum.
    """

    def reset(key: PRNGKey) -> Array:
        return jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0) * jnp.asarray([1.0, 0.5], jnp.float32)

    def step(state: Array, action: Array) -> tuple[Array, StepResult]:
        position, velocity, push = state[0], state[1], action[0]
        position = position + velocity * step_seconds + 0.5 * push * step_seconds**2
        velocity = velocity + push * step_seconds
        cost = position**2 + 0.1 * velocity**2 + action_weight * push**2
        return jnp.stack([position, velocity]), step_result(cost, success=jnp.abs(position) < 0.05)

    bound = np.array([5.0], np.float32)
    return JaxTask("double_integrator", -bound, bound, 50, 30, 1.0, step_seconds, reset, step)


def double_integrator_cost(
    state: np.ndarray, num_steps: int, *, step_seconds: float = 0.1, action_weight: float = 0.1
) -> float:
    """Returns the lowest cost of `double_integrator` from a state, by the Riccati recursion.

    Args:
      state: position and velocity `[2]`.
      num_steps: steps until the end.
      step_seconds: dt.
      action_weight: of the squared acceleration.

    Returns:
      The cost.
    """
    a = np.array([[1.0, step_seconds], [0.0, 1.0]])
    b = np.array([[0.5 * step_seconds**2], [step_seconds]])
    q = np.diag([1.0, 0.1])
    value = np.zeros((2, 2))
    for _ in range(num_steps):
        ahead = q + value
        gain = np.linalg.solve(action_weight + b.T @ ahead @ b, b.T @ ahead @ a)
        value = a.T @ ahead @ (a - b @ gain)
    state = np.asarray(state, np.float64)
    return float(state @ value @ state)


TASKS: dict[str, Callable[..., MujocoTask]] = {
    "halfcheetah": half_cheetah,
    "humanoidstandup": humanoid_standup,
    "fetch_pick_and_place": fetch_pick_and_place,
    "door": door,
    "relocate": relocate,
}
"""The five tasks of the iCEM paper, by name."""
