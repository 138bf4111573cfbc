"""Simulators made of JAX functions: environments, learned models and ensembles of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from edgesafe_jax.planning.planner import Outcomes, PlanningError, Simulator, checked_count
from edgesafe_jax.planning.risk import Risk
from edgesafe_jax.typing import Array, ArrayLike, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of one step of an environment.

    Attributes:
      cost: of the step `[]`.
      violation: how far the step leaves the state constraints `[]`; 0 where it keeps them or there are none.
      success: whether the goal is reached after the step `[]`.
      reward: what the environment itself pays for the step, by which episodes are judged `[]`.
      done: whether the episode ends with the step `[]`: nothing after it costs, pays or violates anything. False, the
        constant, where an environment never ends.
    """

    cost: Array
    violation: Array
    success: Array
    reward: Array
    done: Array | bool = False


def step_result(
    cost: ArrayLike,
    *,
    violation: ArrayLike = 0.0,
    success: ArrayLike = False,
    reward: ArrayLike | None = None,
    done: ArrayLike = False,
) -> StepResult:
    """Makes a `StepResult`, of which all but the cost may be left out.

    Args:
      cost: `[...]`, an array or a number.
      violation: `[...]`, not negative.
      success: `[...]`.
      reward: `[...]`; None for the cost with its sign turned.
      done: `[...]`, whether the episode ends with this step.

    Returns:
      The result, all of the shape of the cost.

    Example:
      >>> bool(step_result(2.0, done=True).done)
      True
    """
    cost = jnp.asarray(cost)
    if not jnp.issubdtype(cost.dtype, jnp.floating):
        cost = cost.astype(jnp.float32)
    return StepResult(
        cost,
        jnp.broadcast_to(jnp.asarray(violation, cost.dtype), cost.shape),
        jnp.broadcast_to(jnp.asarray(success, bool), cost.shape),
        -cost if reward is None else jnp.asarray(reward),
        done if done is False else jnp.broadcast_to(jnp.asarray(done, bool), cost.shape),
    )


Step: TypeAlias = Callable[[PyTree, Array], tuple[PyTree, StepResult]]
"""One step of one environment: from its state and an action `[A]` to the next state and its `StepResult`."""


def as_result(result: StepResult | ArrayLike, shape: tuple[int, ...]) -> StepResult:
    """Returns what a step or a cost function returned as a `StepResult` of arrays of one shape.

    Numbers, bools and a further axis of one entry are taken as they are meant; a bare cost is a result without more.

    Args:
      result: a `StepResult`, or the cost alone.
      shape: that each part has to have: `[]` of one step, `[N, T]` of many.

    Returns:
      The result; `done` stays the constant False where it is.

    Raises:
      PlanningError: if it is no result, or a part has another shape.
    """
    try:
        result = result if isinstance(result, StepResult) else step_result(result)
    except (TypeError, ValueError) as error:
        raise PlanningError(
            f"the result of a step is a {type(result).__name__}: expected a StepResult, which step_result makes of a "
            "cost, or the cost alone"
        ) from error

    def part(name: str, dtype: Any) -> Array:
        value = jnp.asarray(getattr(result, name))
        if value.shape == (*shape, 1):
            value = jnp.reshape(value, shape)
        if value.shape not in ((), shape):
            raise PlanningError(f"the step's {name} has shape {list(value.shape)}: expected {list(shape)}")
        return jnp.broadcast_to(value, shape).astype(dtype)

    return StepResult(
        part("cost", jnp.float32),
        part("violation", jnp.float32),
        part("success", bool),
        part("reward", jnp.float32),
        False if result.done is False else part("done", bool),
    )


def until_done(result: StepResult, ended: Array | bool) -> StepResult:
    """Returns a result that costs, pays and violates nothing where the episode ended before the step."""
    return dataclasses.replace(
        result,
        cost=jnp.where(ended, 0.0, result.cost),
        violation=jnp.where(ended, 0.0, result.violation),
        reward=jnp.where(ended, 0.0, result.reward),
        done=jnp.asarray(ended) | result.done,
    )


_SIGNATURE = "step(state, action [A]) -> (next state, like the state, StepResult)"


def _kinds(state: PyTree) -> str:
    """The structure of a state with its shapes, for a comparison and a message."""
    return str(jax.tree.map(lambda leaf: list(jnp.shape(leaf)), state))


def make_ending_step(step: Step) -> Callable[[tuple[PyTree, Array], Array], tuple[tuple[PyTree, Array], StepResult]]:
    """Makes a step that respects `StepResult.done`.

    Args:
      step: one step of one environment.

    Returns:
      A step whose state is that of the environment with whether the episode has ended `[]`. After the end the state
      stays that of the end, and cost, violation and reward are 0.
    """

    def ending(carry: tuple[PyTree, Array], action: Array) -> tuple[tuple[PyTree, Array], StepResult]:
        state, ended = carry
        found = step(state, action)
        if not isinstance(found, tuple) or len(found) != 2:
            raise PlanningError(f"the step returned a {type(found).__name__}: expected {_SIGNATURE}")
        after, result = found
        if (given := _kinds(state)) != (made := _kinds(after)):
            raise PlanningError(f"the step made a state of {made} from one of {given}: expected {_SIGNATURE}")
        result = as_result(result, ())
        if result.done is False:  # it never ends
            return (after, ended), dataclasses.replace(result, done=ended)
        after = jax.tree.map(lambda new, old: jnp.where(ended, old, new), after, state)
        return (after, ended | result.done), until_done(result, ended)

    return ending


def make_simulator(step: Step, *, terminal_cost: Callable[[PyTree], Array] | None = None) -> Simulator:
    """Makes a simulator of a step function: one scan over time, vectorised over the sequences.

    The cost of a trajectory is summed up to the step that says ``done``.

    Args:
      step: one step of one environment (brax, MJX, a learned model, any traceable function).
      terminal_cost: cost-to-go of the last state, such as a learned value with its sign turned; not counted where the
        episode ended.

    Returns:
      The simulator.

    Raises:
      PlanningError: (when it is called) if a part of the step's result is not one number.

    Example:
      >>> def step(position, action):
      ...     position = position + action[0]
      ...     return position, step_result(position**2)
      >>> make_simulator(step)(jnp.float32(1.0), jnp.full((2, 3, 1), -0.5)).cost.tolist()
      [0.5, 0.5]
    """
    ending = make_ending_step(step)

    def one(env_state: PyTree, actions: Array) -> Outcomes:
        def advance(carry: tuple[PyTree, Array, Array], action: Array) -> tuple[tuple[PyTree, Array, Array], None]:
            current, cost, violation = carry
            current, result = ending(current, action)
            return (current, cost + result.cost, violation + jnp.maximum(result.violation, 0.0)), None

        zero = jnp.zeros((), jnp.float32)
        start = (jax.tree.map(jnp.asarray, env_state), jnp.zeros((), bool))
        ((state, ended), cost, violation), _ = jax.lax.scan(advance, (start, zero, zero), actions)
        if terminal_cost is not None:
            cost = cost + jnp.where(ended, 0.0, as_result(terminal_cost(state), ()).cost)
        return Outcomes(cost, violation)

    return lambda env_state, actions: jax.vmap(one, in_axes=(None, 0))(env_state, actions)


@runtime_checkable
class Members(Protocol):
    """Several models in one object, such as `edgesafe_jax.dynamics.Ensemble`."""

    @property
    def num_members(self) -> int:
        """M, how many models there are."""
        ...

    def member(self, index: Array | int) -> PyTree:
        """Returns one of the models; the index may be traced."""
        ...


def make_ensemble_simulator(
    step: Callable[[PyTree, PyTree, Array], tuple[PyTree, StepResult]],
    models: PyTree,
    *,
    risk: Risk,
    terminal_cost: Callable[[PyTree], Array] | None = None,
) -> Simulator:
    """Makes a simulator that asks M models (an ensemble, or randomised parameters) and weighs the risk.

    Each model simulates the whole sequence; the risk is taken over the M costs of a trajectory, which is NaN where one
    of them is not finite. The violation is that of the worst model.

    Args:
      step: from one model, the state and an action to the next state and its result.
      models: pytree whose leaves have a leading axis M, or an object of several models such as
        `edgesafe_jax.dynamics.Ensemble` (`Members`), of which ``step`` is given each by itself.
      risk: from costs `[M, N]` to `[N]`, see `edgesafe_jax.planning.risk`.
      terminal_cost: cost-to-go of the last state.

    Returns:
      The simulator.

    Raises:
      PlanningError: if the leaves of `models` differ in their first axis or there are none.
    """
    if not isinstance(models, Members):
        sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(models)}
        if len(sizes) != 1 or None in sizes:
            raise PlanningError(f"models: the first axes of the leaves are {sorted(map(str, sizes))}: expected one M")

    def simulate(env_state: PyTree, actions: Array) -> Outcomes:
        def under(model: PyTree) -> Outcomes:
            run = make_simulator(lambda state, action: step(model, state, action), terminal_cost=terminal_cost)
            return run(env_state, actions)

        if isinstance(models, Members):
            outcomes = jax.vmap(lambda index: under(models.member(index)))(jnp.arange(models.num_members))
        else:
            outcomes = jax.vmap(under)(models)
        return _at_risk(outcomes, risk)

    return simulate


def combine_simulators(simulators: Sequence[Simulator], *, risk: Risk) -> Simulator:
    """Makes one simulator of several that share the state, such as C MuJoCo with randomised masses and frictions.

    Args:
      simulators: M of them, asked one after the other.
      risk: from costs `[M, N]` to `[N]`, see `edgesafe_jax.planning.risk`.

    Returns:
      The simulator; cost and violation as in `make_ensemble_simulator`.

    Raises:
      PlanningError: if there are none.

    Example:
      >>> def at(place):
      ...     return lambda state, actions: Outcomes(jnp.abs(actions[:, 0, 0] - place), jnp.zeros(len(actions)))
      >>> from edgesafe_jax.planning.risk import worst_cost
      >>> combine_simulators([at(0.0), at(3.0)], risk=worst_cost)(None, jnp.ones((1, 1, 1))).cost.tolist()
      [2.0]
    """
    if not simulators:
        raise PlanningError("simulators: expected at least one")

    def simulate(env_state: PyTree, actions: Array) -> Outcomes:
        each = [simulator(env_state, actions) for simulator in simulators]
        return _at_risk(jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), risk)

    return simulate


def _at_risk(outcomes: Outcomes, risk: Risk) -> Outcomes:
    """From outcomes `[M, N]` to `[N]`."""
    # Not left to the risk: a fraction of the worst models may leave out one that is not finite.
    finite = jnp.all(jnp.isfinite(outcomes.cost), axis=0)
    return Outcomes(jnp.where(finite, risk(outcomes.cost), jnp.nan), jnp.max(outcomes.violation, axis=0))


def repeat_actions(simulator: Simulator, num_repeats: int) -> Simulator:
    """Holds each action of a plan for several steps, so that a plan of T actions looks T * num_repeats steps ahead.

    The environment must then hold what a planner returns as long: ``run_episode(..., action_repeat=num_repeats)``.
    Coloured noise keeps its exponent in plan steps, so it is slower in time than without repeats.

    Args:
      simulator: of single steps.
      num_repeats: steps of the environment for one action.

    Returns:
      The simulator of longer steps.

    Raises:
      PlanningError: if `num_repeats` is below 1.
    """
    num_repeats = checked_count(num_repeats, "num_repeats")
    return lambda env_state, actions: simulator(env_state, jnp.repeat(actions, num_repeats, axis=1))
