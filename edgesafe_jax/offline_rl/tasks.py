r"""Goal-reaching tasks with known dynamics, their scripted data and their strata.

But for brax's reacher, the bodies are points in a square arena with inelastic bounds. A velocity `v` under an action
`a` in [-1, 1]^2 follows

.. math:: v' = v + \Delta t\,(\text{gain}(p)\, a - \text{drag}(p)\, v + \text{field}(p)), \qquad p' = p + \Delta t\, v'

and a wall or a bound stops the part of the motion that is normal to it. Because the dynamics is known, so is what a
test of a symmetry should have said.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import BoxDomain, Sizes, Translation
from edgesafe_jax.errors import EdgesafeError, check_counts
from edgesafe_jax.offline_rl.datasets import DatasetError, OfflineDataset, make_episodes
from edgesafe_jax.offline_rl.relabelling import scalar
from edgesafe_jax.typing import Array, PRNGKey

Box = tuple[tuple[float, float], tuple[float, float]]
"""Lower corner and upper corner."""

ARENA: Box = ((-2.0, -2.0), (2.0, 2.0))
CORNER: Box = ((-2.0, -2.0), (-0.8, -0.8))
FAR_CORNER: Box = ((0.8, 0.8), (2.0, 2.0))
LEFT: Box = ((-2.0, -2.0), (-0.2, 2.0))
RIGHT: Box = ((0.2, -2.0), (2.0, 2.0))
_TIME_STEP = 0.1
GAIN = 3.0
DRAG = 2.0
_SKIN = 1e-3
_CONTACT = 0.25


@dataclasses.dataclass(frozen=True)
class Stratum:
    """The boxes of start positions and goals.

    Attributes:
      starts: box of the start positions.
      goals: box of the goals.
    """

    starts: Box
    goals: Box


@dataclasses.dataclass(frozen=True)
class Wall:
    """An axis-parallel wall that nothing crosses.

    Attributes:
      axis: the coordinate that is constant along it, 0 for a vertical wall.
      at: the value of that coordinate.
      low: lower end along the other coordinate.
      high: upper end.
    """

    axis: int
    at: float
    low: float
    high: float


def uniform_place(key: PRNGKey, box: Box) -> Array:
    """Draws a position `[2]` uniformly from a box."""
    return jax.random.uniform(key, (2,), minval=jnp.asarray(box[0]), maxval=jnp.asarray(box[1]))


class TaskError(EdgesafeError, ValueError):
    """A task that lacks a callable, or has one that returns another shape than it should."""


def unknown(*arguments: Any) -> Any:
    """Stands for the true dynamics, the starts or the behaviour of a world of which there are data alone.

    Raises:
      TaskError: always.
    """
    raise TaskError("the task has no simulator (`make_data_task`): expected one where episodes are made or judged")


@dataclasses.dataclass(frozen=True)
class Task:
    """A world, how success is judged, and who made the data.

    Attributes:
      name: how configs name it.
      sizes: of state, action and goal.
      step: the true dynamics, from a state `[S]` and an action `[A]` to the next state.
      achieved: the goal `[G]` that a state reaches.
      start: a start state from a key and a position `[2]`.
      behaviour: the action of the data from a key, a state and a goal.
      group: the joint translation of all that moves and of the goal.
      data: stratum of the data.
      strata: where policies are evaluated.
      tolerance: differences of a next state that do not matter, for each dimension in its units; a step moves a point
        by up to 0.15.
      domain: box of positions in which the user declares the dynamics to be the same everywhere.
      goal_box: box of the goals; None: the domain.
      walls: what stands in the way.
      borders: where the dynamics changes and nothing stands in the way; for pictures.
      relations: pairs of state dimensions whose differences the dynamics depends on, see `fit_ensemble`.
      kinds: what is seen of a place in the whole domain, as a map gives it: from a state to memberships in kinds, see
        `edgesafe_jax.dynamics.Kinds`; None: nothing.
      horizon: steps of an episode.
      control_step: seconds between two actions, within which a plan has to be made.
      radius: an episode succeeds if the final distance to the goal is below it.
      place: a position `[2]` in a box, of starts and goals; uniform where nothing stands in the box.
      terminal: whether a state `[S]` ends the world for a goal `[G]`; None: nothing ends before the horizon.
      reward_fn: the reward of a next state `[S]` for a goal `[G]`; None: minus the distance to the goal.
    """

    name: str
    sizes: Sizes
    step: Callable[[Array, Array], Array]
    achieved: Callable[[Array], Array]
    start: Callable[[PRNGKey, Array], Array]
    behaviour: Callable[[PRNGKey, Array, Array], Array]
    group: Translation
    data: Stratum
    strata: Mapping[str, Stratum]
    tolerance: tuple[float, ...]
    domain: Box = ARENA
    goal_box: Box | None = None
    walls: tuple[Wall, ...] = ()
    borders: tuple[Wall, ...] = ()
    relations: tuple[tuple[int, int], ...] = ()
    kinds: Callable[[Array], Array] | None = None
    horizon: int = 50
    control_step: float = _TIME_STEP
    radius: float = 0.2
    place: Callable[[PRNGKey, Box], Array] = uniform_place
    terminal: Callable[[Array, Array], Array] | None = None
    reward_fn: Callable[[Array, Array], Array] | None = None

    @property
    def simulated(self) -> bool:
        """Whether its true dynamics is known, so that policies can be evaluated and verdicts counted."""
        return self.step is not unknown

    def ends(self, state: Array, goal: Array) -> Array:
        """Returns whether a state `[S]` ends the world for a goal `[G]`, a boolean."""
        return jnp.array(False) if self.terminal is None else scalar(self.terminal(state, goal), bool)

    def reward(self, next_state: Array, goal: Array) -> Array:
        """Returns the reward after a step, a scalar."""
        if self.reward_fn is not None:
            return scalar(self.reward_fn(next_state, goal))
        return -jnp.linalg.norm(self.achieved(next_state) - goal)


def make_data_task(
    name: str,
    *,
    group: Translation,
    achieved: Callable[[Array], Array],
    tolerance: tuple[float, ...],
    domain: Box,
    radius: float = 0.2,
    relations: tuple[tuple[int, int], ...] = (),
    terminal: Callable[[Array, Array], Array] | None = None,
    reward_fn: Callable[[Array, Array], Array] | None = None,
    kinds: Callable[[Array], Array] | None = None,
) -> Task:
    """Makes the task of a world of which there are data and no simulator: policies are trained, nothing is evaluated.

    Args:
      name: of the world; data that name another one are refused.
      group: the joint translation of all that moves and of the goal.
      achieved: the goal `[G]` that a state reaches.
      tolerance: differences of a next state that do not matter, see `Task`.
      domain: box of positions in which the user declares the dynamics to go on.
      radius: a goal is reached within it.
      relations: see `Task`.
      terminal: see `Task`.
      reward_fn: see `Task`.
      kinds: see `Task`.

    Returns:
      The task.
    """
    return Task(
        name=name,
        sizes=group.sizes,
        step=unknown,
        achieved=achieved,
        start=unknown,
        behaviour=unknown,
        group=group,
        data=Stratum(domain, domain),
        strata={},
        tolerance=tolerance,
        domain=domain,
        radius=radius,
        relations=relations,
        terminal=terminal,
        reward_fn=reward_fn,
        kinds=kinds,
    )


class Law(NamedTuple):
    """How a place `[2]` acts on a point mass; None: as in the open arena.

    Attributes:
      gain: acceleration of a full action, 1/s^2.
      drag: 1/s.
      field: acceleration `[2]` without an action.
    """

    gain: Callable[[Array], Array] | None = None
    drag: Callable[[Array], Array] | None = None
    field: Callable[[Array], Array] | None = None


OPEN = Law()
"""The law of the open arena."""


def make_point_mass(
    *,
    name: str = "point_mass",
    walls: tuple[Wall, ...] = (),
    borders: tuple[Wall, ...] = (),
    law: Law = OPEN,
    data: Stratum | None = None,
    strata: Mapping[str, Stratum] | None = None,
    explores: bool = True,
) -> Task:
    """Makes a point mass with drag: state (x, y, vx, vy), goal (x, y).

    Args:
      name: of the task.
      walls: what stands in the arena.
      borders: lines for pictures, where `law` changes.
      law: gain, drag and field by place; one that depends on x breaks the translation in x.
      data: stratum of the data; None: starts and goals in one corner.
      strata: evaluation strata; None: the four of the open arena.
      explores: whether the actions of the data are drawn uniformly, whatever the goal, so that a policy has to be
        learned rather than copied; else they are those of a noisy controller that goes to the goal.

    Returns:
      The task.
    """
    if strata is None:
        strata = {
            "in distribution": Stratum(CORNER, CORNER),
            "far goals": Stratum(CORNER, FAR_CORNER),
            "far corner": Stratum(FAR_CORNER, FAR_CORNER),
            "whole arena": Stratum(ARENA, ARENA),
        }

    def explore(key: PRNGKey, state: Array, goal: Array) -> Array:
        return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

    def reach(key: PRNGKey, state: Array, goal: Array) -> Array:
        return _noisy(key, 3.0 * (goal - state[:2]) - state[2:])

    def step(state: Array, action: Array) -> Array:
        position, velocity = state[:2], state[2:]
        gain = GAIN if law.gain is None else law.gain(position)
        drag = DRAG if law.drag is None else law.drag(position)
        force = gain * jnp.clip(action, -1, 1) - drag * velocity
        if law.field is not None:
            force = force + law.field(position)
        return jnp.concatenate(_stop(position, velocity + _TIME_STEP * force, walls))

    return Task(
        name=name,
        sizes=Sizes(4, 2, 2),
        step=step,
        achieved=lambda state: state[:2],
        start=lambda key, position: jnp.concatenate([position, 0.3 * jax.random.normal(key, (2,))]),
        behaviour=explore if explores else reach,
        group=_translation(Sizes(4, 2, 2), state_axes=((0,), (1,))),
        data=data or Stratum(CORNER, CORNER),
        strata=strata,
        tolerance=(0.05, 0.05, 0.25, 0.25),
        walls=walls,
        borders=borders,
    )


def make_walled_point_mass() -> Task:
    """Makes the point mass with a wall at x = 0 that has a gap at y < -1; the data bump into it from both sides."""
    return make_point_mass(
        name="point_mass_walls",
        walls=(Wall(axis=0, at=0.0, low=-1.0, high=2.0),),
        data=Stratum(ARENA, ARENA),
        explores=False,
        strata={
            "left side": Stratum(LEFT, LEFT),
            "right side": Stratum(RIGHT, RIGHT),
            "across the wall": Stratum(((-2.0, -0.8), (-0.2, 2.0)), ((0.2, -0.8), (2.0, 2.0))),
        },
    )


def make_pusher() -> Task:
    """Makes a point mass that pushes a disc: state (x, y, vx, vy, ox, oy), goal (x, y) of the object.

    The object moves only where the agent would come closer than the contact distance, and then to that distance.
    """
    sizes = Sizes(6, 2, 2)

    def step(state: Array, action: Array) -> Array:
        velocity = state[2:4] + _TIME_STEP * (GAIN * jnp.clip(action, -1, 1) - DRAG * state[2:4])
        position, velocity = _stop(state[:2], velocity, ())
        apart = state[4:] - position
        distance = jnp.linalg.norm(apart)
        pushed = position + apart / jnp.maximum(distance, 1e-6) * _CONTACT
        placed = jnp.where(distance < _CONTACT, pushed, state[4:])
        return jnp.concatenate([position, velocity, jnp.clip(placed, -2.0, 2.0)])

    def behaviour(key: PRNGKey, state: Array, goal: Array) -> Array:
        position, placed = state[:2], state[4:]
        toward = (goal - placed) / jnp.maximum(jnp.linalg.norm(goal - placed), 1e-6)
        behind = placed - 1.1 * _CONTACT * toward
        aligned = (placed - position) @ toward > 0.9 * jnp.linalg.norm(placed - position)
        side = jnp.stack([-toward[1], toward[0]]) * jnp.sign(
            toward[0] * (position - placed)[1] - toward[1] * (position - placed)[0]
        )
        blocked = (position - placed) @ toward > -0.5 * _CONTACT
        around = behind + jnp.where(blocked, 1.6 * _CONTACT, 0.0) * side
        target = jnp.where(aligned, placed + 0.3 * toward, around)
        arrived = jnp.linalg.norm(goal - placed) < 0.05
        return _noisy(key, jnp.where(arrived, -state[2:4], 4.0 * (target - position) - state[2:4]))

    def start(key: PRNGKey, position: Array) -> Array:
        key_agent, key_speed = jax.random.split(key)
        angle = jax.random.uniform(key_agent, maxval=2 * jnp.pi)
        beside = position + 0.45 * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return jnp.concatenate([jnp.clip(beside, -2.0, 2.0), 0.3 * jax.random.normal(key_speed, (2,)), position])

    inner: Box = ((-1.7, -1.7), (-0.8, -0.8))
    far: Box = ((0.8, 0.8), (1.7, 1.7))
    return Task(
        name="pusher",
        sizes=sizes,
        step=step,
        achieved=lambda state: state[4:],
        start=start,
        behaviour=behaviour,
        group=_translation(sizes, state_axes=((0, 4), (1, 5))),
        data=Stratum(inner, inner),
        strata={"in distribution": Stratum(inner, inner), "far corner": Stratum(far, far)},
        tolerance=(0.05, 0.05, 0.25, 0.25, 0.05, 0.05),
        relations=((4, 0), (5, 1)),
    )


def make_reacher() -> Task:
    """Makes brax's reacher as seen from its fingertip: state (x, y, vx, vy), goal (x, y); a negative control.

    The arm turns about its base and its elbow, which the data keep bent one way, so that place and velocity of the tip
    determine the joints. Moving tip and goal together looks like the translation of a point mass, and is none: the same
    torques at another place push the tip another way. Turning both about the base is a symmetry.

    A step is one of brax's (0.02 s) on its `spring` physics, from links that fit their joints exactly, so that the next
    state depends on this one and the action alone. The actions of the data are noise, with a spring at the elbow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # brax and what it imports say that they are no longer developed
        from brax import envs

        env: Any = envs.get_environment("reacher", backend="spring")
    upper, lower = 0.1, 0.11  # lengths of the links, m

    def tip(joints: Array) -> Array:
        angles = jnp.cumsum(joints)
        return jnp.stack([f(angles[0]) * upper + f(angles[1]) * lower for f in (jnp.cos, jnp.sin)])

    def joints_at(position: Array) -> Array:
        cosine = (jnp.sum(position**2) - upper**2 - lower**2) / (2 * upper * lower)
        elbow = jnp.arccos(jnp.clip(cosine, -0.999, 0.999))
        inner = jnp.arctan2(lower * jnp.sin(elbow), upper + lower * jnp.cos(elbow))
        return jnp.stack([jnp.arctan2(position[1], position[0]) - inner, elbow])

    def seen(joints: Array, speeds: Array) -> Array:
        return jnp.concatenate(jax.jvp(tip, (joints,), (speeds,)))

    def step(state: Array, action: Array) -> Array:
        joints = joints_at(state[:2])
        speeds = jnp.linalg.solve(jax.jacobian(tip)(joints), state[2:])
        target = jnp.zeros(2)  # brax's own goal, which nothing here depends on
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            before = env.pipeline_init(jnp.concatenate([joints, target]), jnp.concatenate([speeds, target]))
            after = env.pipeline_step(before, action)
        return seen(after.q[:2], after.qd[:2])

    def behaviour(key: PRNGKey, state: Array, goal: Array) -> Array:
        elbow = joints_at(state[:2])[1]
        spring = jnp.stack([jnp.zeros(()), 0.3 * (1.6 - elbow)])
        return jnp.clip(spring + 0.5 * jax.random.normal(key, (2,)), -1.0, 1.0)

    sizes, front = Sizes(4, 2, 2), ((0.08, -0.08), (0.16, 0.08))
    return Task(
        name="reacher",
        sizes=sizes,
        step=step,
        achieved=lambda state: state[:2],
        start=lambda key, position: jnp.concatenate([position, jnp.zeros(2)]),
        behaviour=behaviour,
        group=_translation(sizes, state_axes=((0,), (1,))),
        data=Stratum(front, front),
        strata={"in distribution": Stratum(front, front)},
        tolerance=(0.002, 0.002, 0.02, 0.02),
        domain=((-0.21, -0.21), (0.21, 0.21)),
        horizon=20,
        control_step=0.02,
        radius=0.02,
    )


def check_task(task: Task) -> None:
    """Checks the shapes that a task's callables return, before anything is compiled.

    Raises:
      TaskError: one of them is another; the message names the callable and both shapes.
    """
    sizes, key = task.sizes, jax.random.key(0)
    state, action, goal = (jnp.zeros(size) for size in (sizes.state, sizes.action, sizes.goal))
    place = jnp.zeros(2)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...] | None]] = {
        "step": (task.step, (state, action), (sizes.state,)),
        "achieved": (task.achieved, (state,), (sizes.goal,)),
        "start": (task.start, (key, place), (sizes.state,)),
        "behaviour": (task.behaviour, (key, state, goal), (sizes.action,)),
        "place": (lambda key: task.place(key, task.data.starts), (key,), (2,)),
    }
    if not task.simulated:
        calls = {"achieved": calls["achieved"]}
    for name in ("reward_fn", "terminal"):
        if (function := getattr(task, name)) is not None:
            calls[name] = (function, (state, goal), None)
    for name, (function, arguments, wanted) in calls.items():
        found = jax.eval_shape(lambda *given, call=function: jnp.asarray(call(*given)), *arguments).shape
        if found != wanted if wanted is not None else math.prod(found) != 1:
            expected = "one number" if wanted is None else f"{list(wanted)}"
            raise TaskError(f"{name} of the task {task.name!r} returns the shape {list(found)}: expected {expected}")
    if task.group.sizes != sizes:
        raise TaskError(f"the group of the task {task.name!r} acts on {task.group.sizes}: expected {sizes}")
    if len(task.tolerance) != sizes.state:
        raise TaskError(
            f"tolerance of the task {task.name!r} has {len(task.tolerance)} entries: expected {sizes.state}, one a "
            "dimension of the state"
        )


def generate(key: PRNGKey, task: Task, *, num_episodes: int, stratum: Stratum | None = None) -> OfflineDataset:
    """Lets the scripted behaviour act in the true dynamics.

    Args:
      key: a typed random key.
      task: the task.
      num_episodes: trajectories, each of `task.horizon` steps or up to where the task says that it ends.
      stratum: starts and goals; None: those of the task's data.

    Returns:
      The data set, with the task's reward.
    """
    check_counts(num_episodes=num_episodes)
    check_task(task)
    stratum = stratum or task.data

    def episode(key: PRNGKey) -> tuple[Array, ...]:
        key_start, key_goal, key_steps = jax.random.split(key, 3)
        state = sample_start(key_start, task, stratum)
        goal = sample_goal(key_goal, task, stratum)

        def act(state: Array, key: PRNGKey) -> tuple[Array, tuple[Array, ...]]:
            action = task.behaviour(key, state, goal)
            after = task.step(state, action)
            return after, (state, action, after, task.reward(after, goal), goal, task.ends(after, goal))

        return jax.lax.scan(act, state, jax.random.split(key_steps, task.horizon))[1]

    columns = jax.jit(jax.vmap(episode))(jax.random.split(key, num_episodes))
    names = ("states", "actions", "next_states", "rewards", "goals", "terminals")
    return make_episodes(**dict(zip(names, columns, strict=True))).replace(world=task.name)


def fit_dataset(task: Task, dataset: OfflineDataset, *, source: str = "the data set") -> OfflineDataset:
    """Checks a data set of one's own against a task, and gives it goals and rewards where it has no goals.

    Without goals, as in OGBench's own files, each trajectory is said to have pursued where it ended, and rewards are
    the task's.

    Args:
      task: the task.
      dataset: the data.
      source: what messages call them.

    Returns:
      The data set, with goals.

    Raises:
      DatasetError: the data name another world, or states, actions or goals have other sizes than the task's.
    """
    if dataset.world and dataset.world != task.name:
        raise DatasetError(
            f"{source} is of the world {dataset.world!r}, the task is {task.name!r}: expected data of the same world"
        )
    sizes = {"states": task.sizes.state, "actions": task.sizes.action, "goals": task.sizes.goal}
    if not dataset.goals.shape[1]:
        del sizes["goals"]
    for name, wanted in sizes.items():
        size = getattr(dataset, name).shape[1]
        if size != wanted:
            raise DatasetError(
                f"{name} of {source} have {size} dimensions, the task {task.name!r} has {wanted}: expected the same"
            )
    if dataset.goals.shape[1]:
        return dataset
    goals = jax.vmap(task.achieved)(jnp.asarray(dataset.next_states)[dataset.last_rows()])
    rewards = jax.vmap(task.reward)(jnp.asarray(dataset.next_states), goals)
    return dataset.replace(goals=np.asarray(goals), rewards=np.asarray(rewards))


def compare_rules(task: Task, dataset: OfflineDataset) -> dict[str, float]:
    """Compares the rewards and terminals of a data set, which has goals, with the task's rules.

    Returns:
      ``rewards_replaced`` and ``terminals_replaced``: fractions of the rows whose own ones differ from those that the
      task gives for their next state and goal, and which policies are not trained on.
    """
    after, goals = jnp.asarray(dataset.next_states), jnp.asarray(dataset.goals)
    rewards, ends = jax.jit(jax.vmap(lambda s, g: (task.reward(s, g), task.ends(s, g))))(after, goals)
    same = np.isclose(np.asarray(rewards), np.asarray(dataset.rewards), rtol=1e-3, atol=1e-4)
    return {
        "rewards_replaced": float(np.mean(~same)),
        "terminals_replaced": float(np.mean(np.asarray(ends) != np.asarray(dataset.terminals))),
    }


def sample_start(key: PRNGKey, task: Task, stratum: Stratum) -> Array:
    """Draws a start state `[S]` of a stratum."""
    key_place, key_rest = jax.random.split(key)
    return task.start(key_rest, task.place(key_place, stratum.starts))


def sample_goal(key: PRNGKey, task: Task, stratum: Stratum) -> Array:
    """Draws a goal `[G]` of a stratum."""
    return task.place(key, stratum.goals)


def arena_domain(task: Task) -> BoxDomain:
    """Returns the task's domain as a box over all dimensions of the state that the group moves."""
    axes = task.group.state_axes
    dims = tuple(index for indices in axes for index in indices)
    low, high = (tuple(corner[axis] for axis, indices in enumerate(axes) for _ in indices) for corner in task.domain)
    return BoxDomain(dims, low, high)


def goal_domain(task: Task) -> BoxDomain:
    """Returns the box of the goals, over their dimensions."""
    return BoxDomain((0, 1), *(task.goal_box or task.domain))


def _noisy(key: PRNGKey, action: Array) -> Array:
    return jnp.clip(jnp.clip(action, -1, 1) + 0.3 * jax.random.normal(key, action.shape), -1, 1)


def _translation(sizes: Sizes, state_axes: tuple[tuple[int, ...], ...]) -> Translation:
    span = ARENA[1][0] - ARENA[0][0]
    return Translation(sizes, state_axes=state_axes, goal_axes=((0,), (1,)), low=(-span,) * 2, high=(span,) * 2)


def _stop(position: Array, velocity: Array, walls: tuple[Wall, ...]) -> tuple[Array, Array]:
    """Moves a point for one step; returns its position and velocity after walls and bounds."""
    after = position + _TIME_STEP * velocity
    for wall in walls:
        before_side, after_side = position[wall.axis] - wall.at, after[wall.axis] - wall.at
        crossed = before_side / jnp.where(before_side == after_side, 1.0, before_side - after_side)
        other = 1 - wall.axis
        crossing = position[other] + crossed * (after[other] - position[other])
        hit = (before_side * after_side <= 0) & (crossing >= wall.low) & (crossing <= wall.high)
        stopped = wall.at + jnp.where(before_side > 0, _SKIN, -_SKIN)
        after = after.at[wall.axis].set(jnp.where(hit, stopped, after[wall.axis]))
        velocity = velocity.at[wall.axis].multiply(jnp.where(hit, 0.0, 1.0))
    low, high = jnp.asarray(ARENA[0]), jnp.asarray(ARENA[1])
    bounded = jnp.clip(after, low, high)
    return bounded, jnp.where(bounded == after, velocity, 0.0)


TASKS: Mapping[str, Callable[[], Task]] = {
    "point_mass": make_point_mass,
    "point_mass_walls": make_walled_point_mass,
    "pusher": make_pusher,
}
"""Makers of this module's tasks that policies are trained on, by name; all of them: `worlds.WORLDS`."""
