"""The task interface: an environment, its cost and the length of an episode."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.planning.physics import Cost, MujocoState, MujocoWorld
from edgesafe_jax.planning.planner import Outcomes, PlanningError, Simulator
from edgesafe_jax.planning.simulators import Step, StepResult, as_result, make_simulator
from edgesafe_jax.typing import Array, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class Task:
    """Properties of every task.

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


def check_action(task: Task, shape: tuple[int, ...]) -> None:
    """Refuses actions `[..., A]` of another length than a task's.

    Raises:
      PlanningError: if there is not one number for each bound.
    """
    if shape[-1:] != task.low.shape:
        raise PlanningError(f"{task.name}: actions of shape {list(shape)}, expected {len(task.low)} numbers each")


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
        simulate = make_simulator(self.step)

        def checked(env_state: PyTree, actions: Array) -> Outcomes:
            check_action(self, actions.shape)
            return simulate(env_state, actions)

        return checked


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
        check_action(self, np.shape(action))
        action = np.clip(np.asarray(action, np.float32), self.low, self.high)
        after, finite = self.world.step(state, action)
        features = (jnp.asarray(each.features, jnp.float32) for each in (state, after))
        before, now = (self.world.view(each) for each in features)
        result = jax.jit(self._result)(before, jnp.asarray(action), now, jnp.asarray(state.goal, jnp.float32))
        result = jax.tree.map(np.asarray, result)
        if not finite:
            result = dataclasses.replace(result, cost=np.float32(np.nan), reward=np.float32(np.nan))
        return after, result

    def _result(self, *moment: Any) -> StepResult:
        return as_result(self.cost(*moment), ())

    def simulator(self) -> Simulator:
        """Returns the simulator of this environment, see `MujocoWorld.make_simulator`."""
        return self.world.make_simulator(self.cost)
