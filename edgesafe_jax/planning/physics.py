"""C MuJoCo on threads as a simulator inside `jax.jit`: any XML, the whole state, many problems in one call."""

import dataclasses
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.planner import Outcomes, PlanningError, Simulator, checked_count
from edgesafe_jax.planning.simulators import StepResult
from edgesafe_jax.typing import Array

MjModel: TypeAlias = Any
"""A compiled ``mujoco.MjModel``."""

MjData: TypeAlias = Any
"""Simulation data, ``mujoco.MjData``."""

MjSpec: TypeAlias = Any
"""A model before it is compiled, ``mujoco.MjSpec``."""

Features: TypeAlias = Mapping[str, Any]
"""Named parts `[..., k]` of what a cost or a control may read; JAX arrays in a cost, NumPy arrays in a control."""

Control: TypeAlias = Callable[[np.ndarray, Features], np.ndarray]
"""From actions `[N, A]` and the features at that time to the control vectors `[N, C]` of MuJoCo."""

Cost: TypeAlias = Callable[[Features, Array, Features, Array], StepResult]
"""From the features before a step, the action `[..., A]`, the features after it and the goal `[G]` to its result."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MujocoState:
    """Everything that the future of a simulation depends on, and the features that costs read.

    Made of NumPy arrays in float64 by the true environment; inside a planner of JAX arrays (float32 unless
    ``jax_enable_x64`` is on), where a batch of problems has leading axes.

    Attributes:
      physics: time, positions, velocities, activations and plugin state, ``mjSTATE_FULLPHYSICS`` `[S]`.
      warmstart: accelerations from which the constraint solver starts `[V]`.
      mocap: positions, then orientations, of the bodies that the user places `[7 m]`.
      features: named quantities of this moment, see `MujocoWorld` `[F]`.
      goal: what the cost of this episode depends on `[G]`.
    """

    physics: Any
    warmstart: Any
    mocap: Any
    features: Any
    goal: Any


def import_mujoco() -> Any:
    """Returns the module mujoco, which is imported when it is first needed and has no types for its attributes."""
    import mujoco

    return mujoco


def load_model(path: str | os.PathLike[str], edit: Callable[[MjSpec], None] | None = None) -> MjModel:
    """Compiles an XML.

    Args:
      path: the XML file; meshes, textures and includes are found relative to it.
      edit: changes what was read before it is compiled, such as adding sensors for a cost.

    Returns:
      The model.

    Raises:
      PlanningError: if the XML or one of its meshes is missing, or it is not a model.
    """
    mujoco = import_mujoco()

    path = Path(path)
    if not path.is_file():
        raise PlanningError(f"{path}: no such XML; give the path of a MuJoCo model")
    try:
        with warnings.catch_warnings():
            # Deprecated attributes in the XML of others: they keep their meaning in this version.
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            spec = mujoco.MjSpec.from_file(str(path))
            if edit is not None:
                edit(spec)
            return spec.compile()
    except (ValueError, KeyError) as error:
        raise PlanningError(f"{path} cannot be compiled ({error}); is a mesh, texture or include missing?") from error


def position_columns(model: MjModel, joint: str) -> list[int]:
    """Returns where the positions of a joint lie among the columns of a `MujocoWorld`."""
    start = int(model.joint(joint).qposadr[0])
    return [1 + start + offset for offset in range(_joint_sizes(model, joint)[0])]


def velocity_columns(model: MjModel, joint: str) -> list[int]:
    """Returns where the velocities of a joint lie among the columns of a `MujocoWorld`."""
    start = int(model.joint(joint).dofadr[0])
    return [1 + model.nq + start + offset for offset in range(_joint_sizes(model, joint)[1])]


def all_velocity_columns(model: MjModel) -> list[int]:
    """Returns where all velocities lie among the columns of a `MujocoWorld`."""
    return list(range(1 + model.nq, 1 + model.nq + model.nv))


def sensor_columns(model: MjModel, sensor: str) -> list[int]:
    """Returns where the readings of a sensor lie among the columns of a `MujocoWorld`."""
    found = model.sensor(sensor)
    start = _physics_size(model) + int(found.adr[0])
    return list(range(start, start + int(found.dim[0])))


def _joint_sizes(model: MjModel, joint: str) -> tuple[int, int]:
    """Numbers of positions and of velocities: free, ball, slide, hinge."""
    return ((7, 6), (4, 3), (1, 1), (1, 1))[int(model.joint(joint).type[0])]


def _physics_size(model: MjModel) -> int:
    mujoco = import_mujoco()

    return mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)


def available_threads() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class MujocoWorld:
    """A MuJoCo model with what is read from it and how actions control it.

    The *columns* of a moment are its full physics state followed by its sensor readings; `features` names those that
    costs and controls see. Sensor readings are those of the last substep's start, as in MuJoCo itself.

    It keeps a pool of threads, each with simulation data of its own, and may be called from several threads at once.
    """

    def __init__(
        self,
        model: MjModel,
        *,
        frame_skip: int,
        features: Mapping[str, Sequence[int]],
        control: Control | None = None,
        feedback: bool = False,
        num_threads: int | None = None,
    ):
        """Prepares the threads.

        Args:
          model: the compiled model.
          frame_skip: steps of the physics for one action.
          features: from name to columns, see `position_columns`, `velocity_columns` and `sensor_columns`.
          control: from actions to the control vector: what goes to the actuators, followed by positions and
            orientations of the bodies that the user places, where the action moves them; None hands the action to
            the actuators.
          feedback: whether `control` reads the features, so that rollouts have to stop at each action.
          num_threads: threads; None takes one per processor.

        Raises:
          PlanningError: if a number is below 1, or a column does not exist.
        """
        mujoco = import_mujoco()
        from mujoco.rollout import Rollout

        self.model = model
        self.frame_skip = checked_count(frame_skip, "frame_skip")
        num_threads = available_threads() if num_threads is None else checked_count(num_threads, "num_threads")
        self._physics = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
        self._placed = mujoco.mjtState.mjSTATE_MOCAP_POS.value | mujoco.mjtState.mjSTATE_MOCAP_QUAT.value
        self._spec = mujoco.mjtState.mjSTATE_CTRL.value | (self._placed if model.nmocap else 0)
        self.physics_size = mujoco.mj_stateSize(model, self._physics)
        self.mocap_size = 7 * model.nmocap
        num_columns = self.physics_size + model.nsensordata
        self._slices: dict[str, slice] = {}
        columns: list[int] = []
        for name, found in features.items():
            if not all(0 <= column < num_columns for column in found):
                raise PlanningError(f"features[{name!r}]={list(found)}: expected columns below {num_columns}")
            self._slices[name] = slice(len(columns), len(columns) + len(found))
            columns += found
        self._columns = np.asarray(columns, int)
        self._control = control
        self._feedback = feedback
        self._data = mujoco.MjData(model)
        self._thread_data = [mujoco.MjData(model) for _ in range(num_threads)]
        self._pool = Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._lock = threading.Lock()

    @property
    def control_step(self) -> float:
        """Seconds of simulated time for one action."""
        return float(self.model.opt.timestep) * self.frame_skip

    @property
    def num_features(self) -> int:
        """F, how many numbers the features are."""
        return len(self._columns)

    def view(self, features: Any) -> dict[str, Any]:
        """Returns the named parts of features `[..., F]`."""
        return {name: features[..., part] for name, part in self._slices.items()}

    def state_of(self, data: MjData, goal: Sequence[float] | np.ndarray = ()) -> MujocoState:
        """Returns the state of simulation data, whose derived quantities must be up to date (``mj_forward``).

        Args:
          data: of this model.
          goal: what the cost depends on `[G]`.

        Returns:
          The state, in float64.
        """
        mujoco = import_mujoco()

        physics = np.empty(self.physics_size)
        mocap = np.empty(self.mocap_size)
        mujoco.mj_getState(self.model, data, physics, self._physics)
        mujoco.mj_getState(self.model, data, mocap, self._placed)
        return MujocoState(
            physics=physics,
            warmstart=data.qacc_warmstart.copy(),
            mocap=mocap,
            features=np.concatenate([physics, data.sensordata])[self._columns],
            goal=np.asarray(goal, np.float64),
        )

    def step(self, state: MujocoState, action: np.ndarray) -> tuple[MujocoState, bool]:
        """Takes one step of the true environment.

        Args:
          state: a state made by `state_of` or by this function, in NumPy.
          action: `[A]`.

        Returns:
          The next state, and whether the physics stayed finite.
        """
        mujoco = import_mujoco()

        self.check(state)
        with self._lock:
            data = self._data
            mujoco.mj_resetData(self.model, data)
            mujoco.mj_setState(self.model, data, state.physics, self._physics)
            control = np.asarray(action, np.float64)[None]
            if self._control is not None:
                control = self._control(control, self.view(np.asarray(state.features)[None]))
            control = np.concatenate([control[0], state.mocap])[: self.model.nu + self.mocap_size]
            mujoco.mj_setState(self.model, data, control, self._spec)
            data.qacc_warmstart[:] = state.warmstart
            mujoco.mj_step(self.model, data, nstep=self.frame_skip)
            return self.state_of(data, state.goal), not any(warning.number for warning in data.warning)

    def rollout(
        self,
        *,
        physics: np.ndarray,
        warmstart: np.ndarray,
        mocap: np.ndarray,
        features: np.ndarray,
        actions: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Simulates N sequences of actions.

        Args:
          physics: where they start `[N, S]`.
          warmstart: `[N, V]`.
          mocap: `[N, 7 m]`.
          features: at the start `[N, F]`.
          actions: `[N, T, A]`.

        Returns:
          Features after each action `[N, T, F]`, float32, and which sequences stayed finite to their end `[N]`.
        """
        num, length = actions.shape[:2]
        physics, warmstart, mocap, actions = (np.asarray(x, np.float64) for x in (physics, warmstart, mocap, actions))
        found = np.empty((num, length, self.num_features), np.float32)
        with self._lock:
            if not self._feedback:
                control = actions
                if self._control is not None:
                    control = self._control(actions.reshape(num * length, -1), {}).reshape(num, length, -1)
                last = self._run(physics, warmstart, control, mocap, found)
            else:
                assert self._control is not None
                last, current = physics, np.asarray(features)
                for time in range(length):
                    control = self._control(actions[:, time], self.view(current))[:, None]
                    last = self._run(last, warmstart, control, mocap, found[:, time : time + 1])
                    current = found[:, time]
        elapsed = last[:, 0] - physics[:, 0]
        step = float(self.model.opt.timestep)
        # MuJoCo stops a rollout at a warning (such as a state that is not finite) and its clock stands still.
        finite = elapsed > (length * self.frame_skip - 0.5) * step
        return found, finite & np.isfinite(found).all(axis=(1, 2))

    def _run(
        self, physics: np.ndarray, warmstart: np.ndarray, control: np.ndarray, mocap: np.ndarray, found: np.ndarray
    ) -> np.ndarray:
        """One call of MuJoCo: writes the features `[N, T, F]`, returns the last physics state `[N, S]`."""
        num, length = control.shape[:2]
        wanted = self.model.nu + self.mocap_size
        if control.shape[2] < wanted:
            place = np.broadcast_to(mocap[:, None], (num, length, self.mocap_size))
            control = np.concatenate([control, place], axis=2)
        steps = length * self.frame_skip
        states = np.empty((num, steps, self.physics_size))
        sensors = np.empty((num, steps, self.model.nsensordata))
        self._pool.rollout(
            self.model,
            self._thread_data,
            np.ascontiguousarray(physics),
            np.repeat(control, self.frame_skip, axis=1),
            control_spec=self._spec,
            initial_warmstart=np.ascontiguousarray(warmstart),
            state=states,
            sensordata=sensors,
            chunk_size=1,
        )
        of_state = self._columns < self.physics_size
        last = slice(self.frame_skip - 1, None, self.frame_skip)
        found[:, :, of_state] = states[:, last, self._columns[of_state]]
        found[:, :, ~of_state] = sensors[:, last, self._columns[~of_state] - self.physics_size]
        return states[:, -1]

    def check(self, state: MujocoState) -> None:
        """Refuses a state that is not one of this model.

        Raises:
          PlanningError: if a part of it has another size.
        """
        if not isinstance(state, MujocoState):
            raise PlanningError(f"expected a MujocoState, got {type(state).__name__}; make one with state_of or reset")
        sizes = {
            "physics": self.physics_size,
            "warmstart": self.model.nv,
            "mocap": self.mocap_size,
            "features": self.num_features,
        }
        for name, size in sizes.items():
            shape = np.shape(getattr(state, name))
            if shape != (size,):
                raise PlanningError(
                    f"the state's {name} has shape {list(shape)}, this model needs [{size}]: it is the state of "
                    "another model, or of several at once: `jax.vmap` maps over states"
                )
        if np.ndim(state.goal) != 1:
            raise PlanningError(f"the state's goal has shape {list(np.shape(state.goal))}: expected one axis, [G]")

    def make_simulator(
        self, cost: Cost, *, terminal_cost: Callable[[Features, Array], Array] | None = None
    ) -> Simulator:
        """Makes a simulator for planners of this world.

        The rollouts run on the host through a callback; under `jax.vmap` all problems go into one call. Costs are
        computed in JAX. A sequence whose physics does not stay finite costs NaN, so that it ranks last.

        Args:
          cost: of a step, written for leading axes.
          terminal_cost: cost-to-go `[N]` of the last features, given the goal.

        Returns:
          The simulator; its state is a `MujocoState`.
        """

        def host(physics: Any, warmstart: Any, mocap: Any, features: Any, actions: Any) -> tuple[Any, Any]:
            physics, warmstart, mocap, features, actions = map(
                np.asarray, (physics, warmstart, mocap, features, actions)
            )
            starts = (physics, warmstart, mocap, features)
            num, length, dim = actions.shape[-3:]
            lead = np.broadcast_shapes(actions.shape[:-3], *(x.shape[:-1] for x in starts))
            rows = math.prod(lead) * num

            def flat(array: np.ndarray) -> np.ndarray:
                size = array.shape[-1]
                return np.broadcast_to(array[..., None, :], (*lead, num, size)).reshape(rows, size)

            found, finite = self.rollout(
                physics=flat(physics),
                warmstart=flat(warmstart),
                mocap=flat(mocap),
                features=flat(features),
                actions=np.broadcast_to(actions, (*lead, num, length, dim)).reshape(rows, length, dim),
            )
            return found.reshape(*lead, num, length, self.num_features), finite.reshape(*lead, num)

        def simulate(state: MujocoState, actions: Array) -> Outcomes:
            self.check(state)
            num, length = actions.shape[:2]
            shapes = (
                jax.ShapeDtypeStruct((num, length, self.num_features), jnp.float32),
                jax.ShapeDtypeStruct((num,), jnp.bool_),
            )
            start = jnp.asarray(state.features, jnp.float32)
            goal = jnp.asarray(state.goal, jnp.float32)
            arguments = [jnp.asarray(x) for x in (state.physics, state.warmstart, state.mocap)]
            found, finite = _call_host(host, shapes, *arguments, start, actions)
            before = jnp.concatenate([jnp.broadcast_to(start, (num, 1, self.num_features)), found[:, :-1]], axis=1)
            result = cost(self.view(before), actions, self.view(found), goal)
            total = jnp.sum(result.cost, axis=1)
            if terminal_cost is not None:
                total = total + terminal_cost(self.view(found[:, -1]), goal)
            violation = jnp.sum(jnp.maximum(result.violation, 0.0), axis=1)
            return Outcomes(jnp.where(finite, total, jnp.nan), violation)

        return simulate


def _call_host(host: Callable[..., tuple[Any, Any]], shapes: tuple[Any, Any], *arguments: Array) -> tuple[Array, Array]:
    """Calls a function of the host from inside jit, with all problems of a vmap at once.

    On a CPU the function reads and writes the buffers in place: `jax.pure_callback` copies its arguments with the
    threads that wait for it, and several devices of one CPU then wait for each other for ever.
    """
    from jax.experimental.buffer_callback import buffer_callback

    def in_place(context: Any, outputs: tuple[Any, Any], *inputs: Any) -> None:
        del context
        for output, result in zip(outputs, host(*inputs), strict=True):
            np.asarray(output)[...] = result

    return jax.lax.platform_dependent(
        *arguments,
        cpu=buffer_callback(in_place, shapes, vmap_method="expand_dims"),
        default=lambda *given: jax.pure_callback(host, shapes, *given, vmap_method="expand_dims"),
    )
