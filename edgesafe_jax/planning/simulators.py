"""Simulators made of JAX functions: environments, learned models and ensembles of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

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
    """

    cost: Array
    violation: Array
    success: Array
    reward: Array


def step_result(
    cost: Array, *, violation: ArrayLike = 0.0, success: ArrayLike = False, reward: Array | None = None
) -> StepResult:
    """Makes a `StepResult`, of which all but the cost may be left out.

    Args:
      cost: `[...]`.
      violation: `[...]`, not negative.
      success: `[...]`.
      reward: `[...]`; None for the cost with its sign turned.

    Returns:
      The result, all of the shape of the cost.
    """
    return StepResult(
        cost,
        jnp.broadcast_to(jnp.asarray(violation, cost.dtype), cost.shape),
        jnp.broadcast_to(jnp.asarray(success, bool), cost.shape),
        -cost if reward is None else reward,
    )


Step: TypeAlias = Callable[[PyTree, Array], tuple[PyTree, StepResult]]
"""One step of one environment: from its state and an action `[A]` to the next state and its `StepResult`."""


def make_simulator(step: Step, *, terminal_cost: Callable[[PyTree], Array] | None = None) -> Simulator:
    """Makes a simulator of a step function: one scan over time, vectorised over the sequences.

    Args:
      step: one step of one environment (brax, MJX, a learned model, any traceable function).
      terminal_cost: cost-to-go of the last state, such as a learned value with its sign turned.

    Returns:
      The simulator.

    Example:
      >>> def step(position, action):
      ...     position = position + action[0]
      ...     return position, step_result(position**2)
      >>> make_simulator(step)(jnp.float32(1.0), jnp.full((2, 3, 1), -0.5)).cost.tolist()
      [0.5, 0.5]
    """

    def one(env_state: PyTree, actions: Array) -> Outcomes:
        def advance(carry: tuple[PyTree, Array, Array], action: Array) -> tuple[tuple[PyTree, Array, Array], None]:
            state, cost, violation = carry
            state, result = step(state, action)
            return (state, cost + result.cost, violation + jnp.maximum(result.violation, 0.0)), None

        zero = jnp.zeros((), jnp.float32)
        (state, cost, violation), _ = jax.lax.scan(advance, (env_state, zero, zero), actions)
        if terminal_cost is not None:
            cost = cost + terminal_cost(state)
        return Outcomes(cost, violation)

    return lambda env_state, actions: jax.vmap(one, in_axes=(None, 0))(env_state, actions)


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
      models: pytree whose leaves have a leading axis M.
      risk: from costs `[M, N]` to `[N]`, see `edgesafe_jax.planning.risk`.
      terminal_cost: cost-to-go of the last state.

    Returns:
      The simulator.

    Raises:
      PlanningError: if the leaves of `models` differ in their first axis or there are none.
    """
    sizes = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(models)}
    if len(sizes) != 1 or None in sizes:
        raise PlanningError(f"models: the first axes of the leaves are {sorted(map(str, sizes))}: expected one M")

    def simulate(env_state: PyTree, actions: Array) -> Outcomes:
        def under(model: PyTree) -> Outcomes:
            run = make_simulator(lambda state, action: step(model, state, action), terminal_cost=terminal_cost)
            return run(env_state, actions)

        return _at_risk(jax.vmap(under)(models), risk)

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
