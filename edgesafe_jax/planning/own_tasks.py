"""A task made of a user's MuJoCo XML and a cost function that is named on a command line."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.physics import (
    Cost,
    MujocoState,
    MujocoWorld,
    all_velocity_columns,
    import_mujoco,
    load_model,
    sensor_columns,
)
from edgesafe_jax.planning.planner import PlanningError
from edgesafe_jax.planning.simulators import StepResult, as_result
from edgesafe_jax.planning.tasks import MujocoTask
from edgesafe_jax.typing import Array

CONTROL_STEP = 0.05
"""Seconds for one action, about: a whole number of the model's own steps."""

_SIGNATURE = (
    "cost(before, action [..., A], after, goal [G]) -> cost [...] or StepResult, where before and after map "
    "'qpos', 'qvel' and the names of the sensors to [..., k]"
)


def import_named(spec: str) -> Any:
    """Imports what `"module:name"` names; modules of the current directory are found too.

    Raises:
      ImportError, AttributeError: there is no such module, or nothing of that name in it.
    """
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), name)


def find_cost(spec: str) -> Cost:
    """Imports a cost function, from the current directory too.

    Args:
      spec: `"module:function"`.

    Returns:
      The function.

    Raises:
      PlanningError: there is no such module or function; the message shows the expected signature.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise PlanningError(f"cost={spec!r}: expected module:function with {_SIGNATURE}")
    try:
        found = import_named(spec)
    except (ImportError, AttributeError) as error:
        raise PlanningError(f"cost={spec!r} cannot be imported ({error}): expected {_SIGNATURE}") from error
    if not callable(found):
        raise PlanningError(f"cost={spec!r} is a {type(found).__name__}: expected {_SIGNATURE}")
    return cast(Cost, found)


def xml_task(path: str | os.PathLike[str], cost: Cost | str, num_threads: int | None = None) -> MujocoTask:
    """Makes a task of a MuJoCo XML: actions are its actuators, the start its first keyframe or its initial pose.

    Args:
      path: the XML.
      cost: of a step, or where it is found as `"module:function"`.
      num_threads: of the simulator; None takes one per processor.

    Returns:
      The task. Actuators without a control range take [-1, 1].

    Raises:
      PlanningError: the XML cannot be compiled or has no actuator, or the cost cannot be imported or does not give one
        number for a step.
    """
    model = load_model(path)
    if not model.nu:
        raise PlanningError(f"{path} has no actuator: expected one or more, which the actions drive")
    cost = find_cost(cost) if isinstance(cost, str) else cost
    sensors = [model.sensor(index).name for index in range(model.nsensor)]
    features = {"qpos": list(range(1, 1 + model.nq)), "qvel": all_velocity_columns(model)}
    features |= {name: sensor_columns(model, name) for name in sensors if name}
    frame_skip = max(1, round(CONTROL_STEP / model.opt.timestep))
    world = MujocoWorld(model, frame_skip=frame_skip, features=features, num_threads=num_threads)
    limited = np.asarray(model.actuator_ctrllimited, bool)
    low, high = np.where(limited, np.asarray(model.actuator_ctrlrange, np.float32).T, np.array([[-1], [1]], np.float32))
    _check_cost(world, cost, len(low))

    def start(rng: np.random.Generator) -> MujocoState:
        del rng
        mujoco = import_mujoco()
        data = mujoco.MjData(model)
        if model.nkey:
            mujoco.mj_resetDataKeyframe(model, data, 0)
        mujoco.mj_forward(model, data)
        return world.state_of(data)

    return MujocoTask(Path(path).stem, low, high, 1000, 30, 2.0, world.control_step, world, cost, start)


def _check_cost(world: MujocoWorld, cost: Cost, num_actions: int) -> None:
    """Calls the cost on shapes alone, before anything is compiled."""

    def one(features: Array, action: Array) -> StepResult:
        now = world.view(features)
        return as_result(cost(now, action, now, jnp.zeros((0,), jnp.float32)), ())

    try:
        jax.eval_shape(one, jnp.zeros((world.num_features,), jnp.float32), jnp.zeros((num_actions,), jnp.float32))
    except PlanningError as error:
        raise PlanningError(f"{error}. A cost is {_SIGNATURE}") from error
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise PlanningError(
            f"the cost failed on one step ({type(error).__name__}: {error}): expected {_SIGNATURE}"
        ) from error
