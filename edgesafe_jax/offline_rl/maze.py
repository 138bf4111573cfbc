r"""Gymnasium-Robotics' PointMaze in JAX: a ball under force in a maze of square cells, with scripted data.

The dynamics is that of its MuJoCo model (a sphere of radius 0.1 m and density 1000 kg/m^3 on two slides, gear 100,
joint damping 1, Euler steps of 0.01 s with implicit damping, velocities clipped to 5 m/s before each step):

.. math:: v' = \frac{m\,v + \Delta t\, 100\, a}{m + \Delta t}, \qquad p' = p + \Delta t\, v', \qquad
          m = 1000 \cdot \tfrac43 \pi\, 0.1^3

Away from walls the two agree to rounding. At a wall, MuJoCo's soft contact lets the ball sink in by millimetres and
springs it back within a few steps; here the part of the motion into the wall stops at the surface, at once. An action
is held for five of these steps, 0.05 s; the original takes a new one at each.

The data are those of a waypoint controller, as the published data sets of these mazes were made: the way through the
cells by breadth-first search, a proportional-derivative law to the next cell, with noise. It keeps to that side of a
corridor on which its goal lies in its cell, so that the data meet the walls.

Reference:
  Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", 2020 (maze2d).
  de Lazcano et al., "Gymnasium Robotics", 2023 (PointMaze; the maps U_MAZE and MEDIUM_MAZE).
"""

import collections
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import DynamicsError, Sizes, Translation
from edgesafe_jax.offline_rl.tasks import Box, Stratum, Task, Wall
from edgesafe_jax.typing import Array, PRNGKey

MAPS: dict[str, tuple[str, ...]] = {
    "umaze": ("#####", "#...#", "###.#", "#...#", "#####"),
    "medium": ("########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########"),
}
"""Rows of cells from the top, `#` for a wall, of side 1 m, centred on the origin."""

RADIUS = 0.1
MASS = 1000 * 4 / 3 * math.pi * RADIUS**3
_GEAR = 100.0
_DAMPING = 1.0
_TIME_STEP = 0.01
_MAX_SPEED = 5.0
_STEPS_PER_ACTION = 5
_NOISE = 0.25
_ACTION_NOISE = 1.0


def make_point_maze(
    maze: str = "umaze", *, horizon: int = 100, data: Stratum | None = None, num_substeps: int = _STEPS_PER_ACTION
) -> Task:
    """Makes PointMaze: state (x, y, vx, vy), goal (x, y), success within 0.45 m of it, as in the original.

    Positions and goals are drawn within 0.25 m of the centres of free cells.

    Args:
      maze: the map, one of `MAPS`.
      horizon: actions of an episode.
      data: where the data start and have their goals; None: anywhere in the maze.
      num_substeps: steps of 0.01 s that an action is held for.

    Returns:
      The task; its strata are goals near by (one cell further at most) and goals for which the maze has to be followed.

    Raises:
      DynamicsError: there is no such map.
    """
    if maze not in MAPS:
        raise DynamicsError(f"maze={maze!r}: expected one of {sorted(MAPS)}")
    rows = MAPS[maze]
    free = np.array([[cell != "#" for cell in row] for row in rows])
    centres = _centres(free)
    half = (free.shape[1] / 2, free.shape[0] / 2)
    # Nothing of the ball's centre is ever in the outer cells, but for a ball's radius.
    inner: Box = ((1 - half[0], 1 - half[1]), (half[0] - 1, half[1] - 1))
    hops = jnp.asarray(_next_cells(free))
    places, solid = jnp.asarray(centres, jnp.float32), jnp.asarray(~free)

    def cell(position: Array) -> Array:
        """The number of the free cell nearest to a position."""
        return jnp.argmin(jnp.sum((places - position[None]) ** 2, axis=1))

    def behaviour(key: PRNGKey, state: Array, goal: Array) -> Array:
        position, velocity = state[:2], state[2:]
        here, there = cell(position), cell(goal)
        side = 2.2 * (goal - places[there])
        target = jnp.where(here == there, goal, places[hops[here, there]] + side)
        action = jnp.clip(2.0 * (target - position) - 0.7 * velocity, -1, 1)
        return jnp.clip(action + _ACTION_NOISE * jax.random.normal(key, (2,)), -1, 1)

    def step(state: Array, action: Array) -> Array:
        force = _GEAR * jnp.clip(action, -1.0, 1.0)

        def substep(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            position, velocity = carry
            velocity = jnp.clip(velocity, -_MAX_SPEED, _MAX_SPEED)
            velocity = (MASS * velocity + _TIME_STEP * force) / (MASS + _TIME_STEP * _DAMPING)
            position = position + _TIME_STEP * velocity
            return _collide(position, velocity, solid, places), None

        (position, velocity), _ = jax.lax.scan(substep, (state[:2], state[2:]), None, length=num_substeps)
        return jnp.concatenate([position, velocity])

    def place(key: PRNGKey, box: Box) -> Array:
        inside = [i for i, centre in enumerate(centres) if _inside(centre, box)]
        if not inside:
            raise DynamicsError(f"the box {box} holds the centre of no free cell of {maze!r}")
        key_cell, key_noise = jax.random.split(key)
        chosen = jnp.asarray(np.array(inside))[jax.random.randint(key_cell, (), 0, len(inside))]
        return places[chosen] + jax.random.uniform(key_noise, (2,), minval=-_NOISE, maxval=_NOISE)

    sizes = Sizes(4, 2, 2)
    span = (half[0] * 2 - 2, half[1] * 2 - 2)
    return Task(
        name="point_maze" if maze == "umaze" else f"point_maze_{maze}",
        sizes=sizes,
        step=step,
        achieved=lambda state: state[:2],
        start=lambda key, position: jnp.concatenate([position, jnp.zeros(2)]),
        behaviour=behaviour,
        group=Translation(
            sizes, state_axes=((0,), (1,)), goal_axes=((0,), (1,)), low=(-span[0], -span[1]), high=(span[0], span[1])
        ),
        data=data or Stratum(inner, inner),
        strata=_STRATA[maze] if maze in _STRATA else {"whole maze": Stratum(inner, inner)},
        tolerance=(0.05, 0.05, 0.25, 0.25),
        domain=inner,
        walls=_outlines(free),
        horizon=horizon,
        control_step=num_substeps * _TIME_STEP,
        radius=0.45,
        place=place,
    )


_UPPER: Box = ((-1.5, 0.5), (1.5, 1.5))
_LOWER: Box = ((-1.5, -1.5), (1.5, -0.5))
_STRATA: dict[str, dict[str, Stratum]] = {
    "umaze": {
        "upper arm": Stratum(_UPPER, _UPPER),
        "lower arm": Stratum(_LOWER, _LOWER),
        "round the bend": Stratum(((-1.5, 0.5), (-0.5, 1.5)), ((-1.5, -1.5), (-0.5, -0.5))),
        "whole maze": Stratum(((-1.5, -1.5), (1.5, 1.5)), ((-1.5, -1.5), (1.5, 1.5))),
    }
}


def _inside(centre: np.ndarray, box: Box) -> bool:
    return all(low <= x <= high for x, low, high in zip(centre, *box, strict=True))


def _centres(free: np.ndarray) -> np.ndarray:
    """Centres `[C, 2]` of the free cells, in the order of `np.argwhere`."""
    rows, columns = np.nonzero(free)
    return np.stack([columns + 0.5 - free.shape[1] / 2, free.shape[0] / 2 - (rows + 0.5)], axis=1)


def _next_cells(free: np.ndarray) -> np.ndarray:
    """From `[here, there]`, numbers of free cells, to the next cell of a shortest way, by breadth-first search."""
    cells = [tuple(each) for each in np.argwhere(free).tolist()]
    numbers = {each: i for i, each in enumerate(cells)}
    table = np.tile(np.arange(len(cells))[:, None], (1, len(cells)))
    for there, goal in enumerate(cells):
        seen, queue = {goal}, collections.deque([goal])
        while queue:
            row, column = at = queue.popleft()
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in numbers and near not in seen:
                    seen.add(near)
                    queue.append(near)
                    table[numbers[near], there] = numbers[at]
    return table


def _outlines(free: np.ndarray) -> tuple[Wall, ...]:
    """The sides between free cells and walls, for pictures."""
    found: list[Wall] = []
    for (row, column), x, y in zip(np.argwhere(free), *_centres(free).T, strict=True):
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            if not free[row + down, column + right]:
                axis, at, along = (0, x + right / 2, y) if right else (1, y - down / 2, x)
                found.append(Wall(axis=axis, at=float(at), low=float(along - 0.5), high=float(along + 0.5)))
    return tuple(found)


def _collide(position: Array, velocity: Array, solid: Array, places: Array) -> tuple[Array, Array]:
    """Takes a ball out of the walls that it touches, and what moves it into them out of its velocity.

    Only the three cells on the side of its own cell that the ball is nearest to can touch it: first the two that share
    a side with its cell, then the one that shares the corner. A ball whose centre was put inside a wall, where no
    motion leads it, is set down in the nearest free cell, at rest.
    """
    height, width = solid.shape
    x, y = position[0] + width / 2, height / 2 - position[1]
    column, row = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
    right = jnp.where(x - jnp.floor(x) > 0.5, 1, -1)
    down = jnp.where(y - jnp.floor(y) > 0.5, 1, -1)
    beside, below = solid[row, column + right], solid[row + down, column]
    # Places of the two sides, in the units of the state.
    side_x = (column + (right + 1) // 2).astype(jnp.float32) - width / 2
    side_y = height / 2 - (row + (down + 1) // 2).astype(jnp.float32)
    toward_x, toward_y = right.astype(jnp.float32), -down.astype(jnp.float32)
    hit_x = beside & (toward_x * (position[0] - side_x) > -RADIUS)
    hit_y = below & (toward_y * (position[1] - side_y) > -RADIUS)
    at = jnp.stack([
        jnp.where(hit_x, side_x - toward_x * RADIUS, position[0]),
        jnp.where(hit_y, side_y - toward_y * RADIUS, position[1]),
    ])  # fmt: skip
    stopped = jnp.stack([hit_x & (toward_x * velocity[0] > 0), hit_y & (toward_y * velocity[1] > 0)])
    velocity = jnp.where(stopped, 0.0, velocity)
    # A corner that sticks out: the ball rolls round it.
    corner = jnp.stack([side_x, side_y])
    apart = at - corner
    distance = jnp.linalg.norm(apart)
    normal = apart / jnp.maximum(distance, 1e-6)
    hit = solid[row + down, column + right] & ~beside & ~below & (distance < RADIUS)
    at = jnp.where(hit, corner + RADIUS * normal, at)
    inward = jnp.minimum(velocity @ normal, 0.0)
    velocity = jnp.where(hit, velocity - inward * normal, velocity)
    nearest = places[jnp.argmin(jnp.sum((places - position[None]) ** 2, axis=1))]
    room = 0.5 - RADIUS
    buried = solid[row, column]
    return (
        jnp.where(buried, nearest + jnp.clip(position - nearest, -room, room), at),
        jnp.where(buried, 0.0, velocity),
    )


def free_cells(maze: str) -> Sequence[tuple[float, float]]:
    """Returns the centres of the free cells of a map of `MAPS`."""
    centres = _centres(np.array([[cell != "#" for cell in row] for row in MAPS[maze]]))
    return [(float(x), float(y)) for x, y in centres]
