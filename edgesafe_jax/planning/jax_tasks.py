"""Tasks whose environment is JAX: brax's, and one with a known optimum."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.planner import PlanningError
from edgesafe_jax.planning.simulators import StepResult, step_result
from edgesafe_jax.planning.tasks import JaxTask
from edgesafe_jax.typing import Array, PRNGKey, PyTree

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

    An episode ends where brax says that it is done, such as an ant that has fallen.

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
        return state, step_result(-state.reward, done=state.done > 0)

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
