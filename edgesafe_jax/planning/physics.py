"""C MuJoCo on threads as a simulator inside `jax.jit`: any XML, the whole state, many problems in one call."""

import dataclasses
import logging
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

from edgesafe_jax.errors import lookup
from edgesafe_jax.planning.planner import Outcomes, PlanningError, Simulator, checked_count
from edgesafe_jax.planning.simulators import StepResult, as_result, until_done
from edgesafe_jax.typing import Array

_logger = logging.getLogger(__name__)

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
      user: the rest of MuJoCo's integration state: controls, forces that are applied to joints and bodies, which
        equality constraints are active, and user data `[U]`.
      features: named quantities of this moment, see `MujocoWorld` `[F]`.
      goal: what the cost of this episode depends on `[G]`.
    """

    physics: Any
    warmstart: Any
    mocap: Any
    user: Any
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
    start = int(_named(model, "joint", joint).qposadr[0])
    return [1 + start + offset for offset in range(_joint_sizes(model, joint)[0])]


def velocity_columns(model: MjModel, joint: str) -> list[int]:
    """Returns where the velocities of a joint lie among the columns of a `MujocoWorld`."""
    start = int(_named(model, "joint", joint).dofadr[0])
    return [1 + model.nq + start + offset for offset in range(_joint_sizes(model, joint)[1])]


def all_velocity_columns(model: MjModel) -> list[int]:
    """Returns where all velocities lie among the columns of a `MujocoWorld`."""
    return list(range(1 + model.nq, 1 + model.nq + model.nv))


def sensor_columns(model: MjModel, sensor: str) -> list[int]:
    """Returns where the readings of a sensor lie among the columns of a `MujocoWorld`."""
    found = _named(model, "sensor", sensor)
    start = _physics_size(model) + int(found.adr[0])
    return list(range(start, start + int(found.dim[0])))


def _named(model: MjModel, kind: str, name: str) -> Any:
    """Returns the joint or sensor of a model with a name.

    Raises:
      ConfigError: there is none; the message lists the names and the closest match.
    """
    number = {"joint": model.njnt, "sensor": model.nsensor}[kind]
    found = (getattr(model, kind)(index) for index in range(number))
    return lookup({each.name: each for each in found if each.name}, name, kind)


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
        model: MjModel | str | os.PathLike[str],
        *,
        frame_skip: int,
        features: Mapping[str, Sequence[int]],
        control: Control | None = None,
        feedback: bool = False,
        num_threads: int | None = None,
    ):
        """Prepares the threads.

        Args:
          model: the compiled model, or the path of an XML.
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

        if isinstance(model, str | os.PathLike):
            model = load_model(model)
        if not isinstance(model, mujoco.MjModel):
            raise PlanningError(f"model is a {type(model).__name__}: expected a compiled model or the path of an XML")
        self.model: MjModel = model
        self.frame_skip = checked_count(frame_skip, "frame_skip")
        num_threads = available_threads() if num_threads is None else checked_count(num_threads, "num_threads")
        states = mujoco.mjtState
        self._physics = states.mjSTATE_FULLPHYSICS.value
        self._placed = states.mjSTATE_MOCAP_POS.value | states.mjSTATE_MOCAP_QUAT.value
        self._user = states.mjSTATE_USER.value & ~self._placed
        self.physics_size = mujoco.mj_stateSize(model, self._physics)
        self.user_size = mujoco.mj_stateSize(model, self._user)
        self.mocap_size = 7 * self.model.nmocap
        num_columns = self.physics_size + self.model.nsensordata
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
        self._user_parts = _user_parts(model)
        self._not_finite = [kind.value for kind in _not_finite_warnings()]
        self._pool = Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._lock = threading.Lock()
        self._told = False

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

        physics, mocap, user = np.empty(self.physics_size), np.empty(self.mocap_size), np.empty(self.user_size)
        for part, kinds in ((physics, self._physics), (mocap, self._placed), (user, self._user)):
            mujoco.mj_getState(self.model, data, part, kinds)
        return MujocoState(
            physics=physics,
            warmstart=data.qacc_warmstart.copy(),
            mocap=mocap,
            user=user,
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

        Raises:
          PlanningError: if the state is one of another model, or there is not one number for each actuator.
        """
        mujoco = import_mujoco()

        self.check(state)
        action = np.asarray(action, np.float64)
        self.check_actions(action.shape)
        with self._lock:
            data = self._data
            self._set(data, state.physics, state.warmstart, state.user)
            control = action[None]
            if self._control is not None:
                control = self._control(control, self.view(np.asarray(state.features)[None]))
            self._set_control(data, control[0], state.mocap)
            mujoco.mj_step(self.model, data, nstep=self.frame_skip)
            return self.state_of(data, state.goal), self._is_finite(data)

    def _set(self, data: MjData, physics: np.ndarray, warmstart: np.ndarray, user: np.ndarray) -> None:
        mujoco = import_mujoco()

        mujoco.mj_resetData(self.model, data)
        mujoco.mj_setState(self.model, data, physics, self._physics)
        mujoco.mj_setState(self.model, data, user, self._user)
        data.qacc_warmstart[:] = warmstart

    def _set_control(self, data: MjData, control: np.ndarray, mocap: np.ndarray) -> None:
        """Sets controls `[C]` and, from them or from what is kept, the placed bodies."""
        mujoco = import_mujoco()

        data.ctrl[:] = control[: self.model.nu]
        placed = control[self.model.nu :] if len(control) > self.model.nu else mocap
        mujoco.mj_setState(self.model, data, np.asarray(placed, np.float64), self._placed)

    def _is_finite(self, data: MjData) -> bool:
        """Whether no state, acceleration or control was found not finite; other warnings are told once."""
        numbers = [int(warning.number) for warning in data.warning]
        others = [number for kind, number in enumerate(numbers) if kind not in self._not_finite]
        if any(others) and not self._told:
            self._told = True
            _logger.warning(
                "MuJoCo warns of a simulation (contacts or constraints that do not fit in memory, or a singular "
                "inertia): it goes on without them. A larger <size memory=.../> in the XML may help."
            )
        return not any(numbers[kind] for kind in self._not_finite)

    def check_actions(self, shape: tuple[int, ...]) -> None:
        """Refuses actions with another number of entries than the actuators, or the control, take.

        Raises:
          PlanningError: if there is not one number for each actuator, or `control` returns another shape.
        """
        num_actuators = self.model.nu
        if self._control is None:
            if not shape or shape[-1] != num_actuators:
                raise PlanningError(
                    f"actions of shape {list(shape)}: expected {num_actuators} numbers, one for each actuator of the "
                    "model; do the planner's bounds have as many?"
                )
            return
        features = self.view(np.zeros((1, self.num_features))) if self._feedback else {}
        control = np.shape(self._control(np.zeros((1, *shape[-1:])), features))
        if control not in ((1, num_actuators), (1, num_actuators + self.mocap_size)):
            placing = (
                f", or {num_actuators + self.mocap_size} with the bodies that it places" if self.mocap_size else ""
            )
            raise PlanningError(
                f"control returned shape {list(control)} for one action: expected [1, {num_actuators}]{placing}"
            )

    def rollout(
        self,
        *,
        physics: np.ndarray,
        warmstart: np.ndarray,
        mocap: np.ndarray,
        user: np.ndarray,
        features: np.ndarray,
        actions: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Simulates N sequences of actions.

        Args:
          physics: where they start `[N, S]`.
          warmstart: `[N, V]`.
          mocap: `[N, 7 m]`.
          user: `[N, U]`.
          features: at the start `[N, F]`.
          actions: `[N, T, A]`.

        Returns:
          Features after each action `[N, T, F]`, float32, and the number of actions after which the physics was still
          finite `[N]`, int32.
        """
        num, length = actions.shape[:2]
        physics, warmstart, mocap, user, actions = (
            np.asarray(x, np.float64) for x in (physics, warmstart, mocap, user, actions)
        )
        found = np.empty((num, length, self.num_features), np.float32)
        with self._lock:
            if not self._feedback:
                control = actions
                if self._control is not None:
                    control = self._control(actions.reshape(num * length, -1), {}).reshape(num, length, -1)
                num_finite, _ = self._run(physics, warmstart, mocap, user, control, found)
            else:
                assert self._control is not None
                num_finite, current = np.zeros(num, np.int32), np.asarray(features)
                last = physics
                for time in range(length):
                    control = self._control(actions[:, time], self.view(current))[:, None]
                    finite, last = self._run(last, warmstart, mocap, user, control, found[:, time : time + 1])
                    num_finite += finite * (num_finite == time)
                    current = found[:, time]
        # Features beyond float32 are not finite either.
        in_range = np.logical_and.accumulate(np.isfinite(found).all(axis=-1), axis=-1).sum(axis=-1)
        return found, np.minimum(num_finite, in_range).astype(np.int32)

    def _run(
        self,
        physics: np.ndarray,
        warmstart: np.ndarray,
        mocap: np.ndarray,
        user: np.ndarray,
        control: np.ndarray,
        found: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Calls MuJoCo once; writes features `[N, T, F]`, returns finite actions `[N]`, last physics `[N, S]`."""
        num, length = control.shape[:2]
        steps = length * self.frame_skip
        states = np.empty((num, steps, self.physics_size))
        sensors = np.empty((num, steps, self.model.nsensordata))
        spec, inputs = self._inputs(mocap, user, control)
        self._pool.rollout(
            self.model,
            self._thread_data,
            np.ascontiguousarray(physics),
            np.repeat(inputs, self.frame_skip, axis=1),
            control_spec=spec,
            initial_warmstart=np.ascontiguousarray(warmstart),
            state=states,
            sensordata=sensors,
            chunk_size=1,
        )
        # MuJoCo stops a rollout at a warning of any kind, and its clock stands still; where a state is not finite it
        # starts afresh before it stops.
        expected = physics[:, :1] + float(self.model.opt.timestep) * (np.arange(steps) + 1)[None]
        on_time = np.abs(states[:, :, 0] - expected) < 0.5 * float(self.model.opt.timestep)
        num_steps = np.logical_and.accumulate(on_time, axis=1).sum(axis=1)
        for row in np.flatnonzero((num_steps > 0) & (num_steps < steps)):
            if states[row, num_steps[row], 0] == states[row, num_steps[row] - 1, 0]:
                start = (physics[row], warmstart[row], mocap[row], user[row])
                num_steps[row] = self._run_past_warnings(start, control[row], states[row], sensors[row])
        of_state = self._columns < self.physics_size
        last = slice(self.frame_skip - 1, None, self.frame_skip)
        found[:, :, of_state] = states[:, last, self._columns[of_state]]
        found[:, :, ~of_state] = sensors[:, last, self._columns[~of_state] - self.physics_size]
        return (num_steps // self.frame_skip).astype(np.int32), states[:, -1]

    def _run_past_warnings(
        self, start: tuple[np.ndarray, ...], control: np.ndarray, states: np.ndarray, sensors: np.ndarray
    ) -> int:
        """Simulates one sequence that MuJoCo stopped at a warning step by step; returns its finite steps."""
        mujoco = import_mujoco()

        data, (physics, warmstart, mocap, user) = self._data, start
        self._set(data, physics, warmstart, user)
        for step in range(len(states)):
            self._set_control(data, control[step // self.frame_skip], mocap)
            mujoco.mj_step(self.model, data)
            if not self._is_finite(data):
                return step
            mujoco.mj_getState(self.model, data, states[step], self._physics)
            sensors[step] = data.sensordata
        return len(states)

    def _inputs(self, mocap: np.ndarray, user: np.ndarray, control: np.ndarray) -> tuple[int, np.ndarray]:
        """Which inputs MuJoCo is given at each action, and these `[N, T, ...]`.

        They are controls and placed bodies; forces, constraints and user data where they are not what a model starts
        with, which is what MuJoCo takes where it is given none.
        """
        states = import_mujoco().mjtState
        num, length = control.shape[:2]
        kinds, parts = states.mjSTATE_CTRL.value, [control[:, :, : self.model.nu]]
        placed = control[:, :, self.model.nu :]
        if not placed.shape[2]:
            placed = np.broadcast_to(mocap[:, None], (num, length, self.mocap_size))
        for kind, columns, default in self._user_parts:
            if kind == states.mjSTATE_USERDATA.value and self.mocap_size:
                kinds, parts = kinds | self._placed, [*parts, placed]
            values = user[:, columns]
            if np.any(values != default[None]):
                kinds, parts = kinds | kind, [*parts, np.broadcast_to(values[:, None], (num, length, values.shape[1]))]
        return kinds, np.concatenate(parts, axis=2)

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
            "user": self.user_size,
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

        The cost of a sequence is summed up to the action whose result says ``done``.

        Args:
          cost: of a step, written for leading axes.
          terminal_cost: cost-to-go `[N]` of the last features, given the goal; not counted where the episode ended.

        Returns:
          The simulator; its state is a `MujocoState`.
        """

        def host(*arrays: Any) -> tuple[Any, Any]:
            *starts, actions = map(np.asarray, arrays)
            num, length, dim = actions.shape[-3:]
            lead = np.broadcast_shapes(actions.shape[:-3], *(x.shape[:-1] for x in starts))
            rows = math.prod(lead) * num

            def flat(array: np.ndarray) -> np.ndarray:
                size = array.shape[-1]
                return np.broadcast_to(array[..., None, :], (*lead, num, size)).reshape(rows, size)

            names = ("physics", "warmstart", "mocap", "user", "features")
            found, num_finite = self.rollout(
                **dict(zip(names, map(flat, starts), strict=True)),
                actions=np.broadcast_to(actions, (*lead, num, length, dim)).reshape(rows, length, dim),
            )
            return found.reshape(*lead, num, length, self.num_features), num_finite.reshape(*lead, num)

        def simulate(state: MujocoState, actions: Array) -> Outcomes:
            self.check(state)
            self.check_actions(actions.shape)
            num, length = actions.shape[:2]
            shapes = (
                jax.ShapeDtypeStruct((num, length, self.num_features), jnp.float32),
                jax.ShapeDtypeStruct((num,), jnp.int32),
            )
            start = jnp.asarray(state.features, jnp.float32)
            goal = jnp.asarray(state.goal, jnp.float32)
            arguments = [jnp.asarray(x) for x in (state.physics, state.warmstart, state.mocap, state.user)]
            found, num_finite = _call_host(host, shapes, *arguments, start, actions)
            before = jnp.concatenate([jnp.broadcast_to(start, (num, 1, self.num_features)), found[:, :-1]], axis=1)
            result = as_result(cost(self.view(before), actions, self.view(found), goal), (num, length))
            ended: Array | bool = False
            if result.done is not False:
                done = jnp.asarray(result.done) & (jnp.arange(length)[None] < num_finite[:, None])
                ends = done.astype(jnp.int32)
                result = until_done(result, jnp.cumsum(ends, axis=1) > ends)
                ended = jnp.any(done, axis=1)
            total = jnp.sum(result.cost, axis=1)
            if terminal_cost is not None:
                to_go = jnp.reshape(terminal_cost(self.view(found[:, -1]), goal), (num,)).astype(jnp.float32)
                total = total + (to_go if ended is False else jnp.where(ended, 0.0, to_go))
            violation = jnp.sum(jnp.maximum(result.violation, 0.0), axis=1)
            return Outcomes(jnp.where((num_finite == length) | ended, total, jnp.nan), violation)

        return simulate


def _user_parts(model: MjModel) -> list[tuple[int, slice, np.ndarray]]:
    """What `MujocoState.user` holds beside the controls: MuJoCo's name of each part, its place and its default."""
    states = import_mujoco().mjtState
    sizes = (
        (states.mjSTATE_QFRC_APPLIED, np.zeros(model.nv)),
        (states.mjSTATE_XFRC_APPLIED, np.zeros(6 * model.nbody)),
        (states.mjSTATE_EQ_ACTIVE, np.asarray(model.eq_active0, np.float64)),
        (states.mjSTATE_USERDATA, np.zeros(model.nuserdata)),
    )
    parts, start = [], model.nu
    for kind, default in sizes:
        parts.append((kind.value, slice(start, start + len(default)), default))
        start += len(default)
    return parts


def _not_finite_warnings() -> tuple[Any, ...]:
    """The warnings of MuJoCo that say that something is not finite."""
    kinds = import_mujoco().mjtWarning
    return kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC, kinds.mjWARN_BADCTRL


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
