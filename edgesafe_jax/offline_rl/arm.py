r"""A planar arm of two links beside a desk: turning it about its base, together with the goal, is a symmetry but there.

The arm moves in a horizontal plane. Its state is (q1, q2, w1, w2), the angles of base and elbow and their speeds, its
goal the place (x, y) of the fingertip, its actions the torques as fractions of the largest. With point masses at elbow
and fingertip the law is that of the double pendulum without gravity,

.. math:: M(q_2)\,\dot w = \text{diag}(\tau)\, a - c(q_2, w) - \text{diag}(d)\, w ,

integrated by ten steps of 0.01 s for each action. The angle of the base is in none of its terms. The joints stop at
their limits, and the fingertip at the edge of a desk, y = -0.3, by an impulse that takes away what moves it into the
desk; so the desk breaks the symmetry for base angles from which the fingertip reaches it, those below about -0.45 rad.

The data start and have their goals in the sector beside the desk. The law is declared to go on through all base angles
from which the desk is out of reach (`Task.domain`); which transitions of the data may be turned there is left to the
test. Those that the desk has stopped may not.

Boxes of starts and goals are sectors: angle and radius of the fingertip.

Reference:
  Murray, Li and Sastry, "A Mathematical Introduction to Robotic Manipulation", 1994, section 4.2 (two-link arm).
"""

import jax
import jax.numpy as jnp

from edgesafe_jax.dynamics import BaseRotation, Sizes
from edgesafe_jax.offline_rl.tasks import Box, Stratum, Task, Wall, uniform_place
from edgesafe_jax.typing import Array, PRNGKey

LINK = 0.5
"""Length of each link, m."""
DESK = -0.3
"""The fingertip does not go below this y."""
BASE, ELBOW = (-2.4, 2.4), (0.3, 2.5)
"""Limits of the joints, rad; the elbow bends one way, so that the place of the fingertip determines both angles."""
_TORQUE, _DAMPING = (2.5, 1.0), (1.0, 0.5)
_TIME_STEP, _SUBSTEPS = 0.01, 10
_NOISE = 0.4

_DATA: Box = ((-0.9, 0.5), (0.9, 0.95))
_BESIDE: Box = ((-0.2, 0.5), (0.9, 0.95))
_EDGE: Box = ((-0.45, 0.5), (-0.3, 0.65))
_ELSEWHERE: Box = ((1.4, 0.5), (2.6, 0.95))


def fingertip(joints: Array) -> Array:
    """Returns the place `[2]` of the fingertip for joint angles `[2]`."""
    angles = jnp.cumsum(joints)
    return LINK * jnp.stack([jnp.sum(jnp.cos(angles)), jnp.sum(jnp.sin(angles))])


def joints_at(place: Array) -> Array:
    """Returns the joint angles `[2]` at which the fingertip is at a place `[2]`, within the limits."""
    elbow = 2 * jnp.arccos(jnp.clip(jnp.linalg.norm(place) / (2 * LINK), 0.0, 1.0))
    elbow = jnp.clip(elbow, *ELBOW)
    return jnp.stack([jnp.clip(jnp.arctan2(place[1], place[0]) - elbow / 2, *BASE), elbow])


def _inertia(elbow: Array) -> Array:
    """Returns M `[2, 2]` for masses of 1 kg."""
    lower = LINK**2
    inner = LINK**2 * jnp.cos(elbow)
    return jnp.array([[3 * lower, lower], [lower, lower]]) + inner * jnp.array([[2.0, 1.0], [1.0, 0.0]])


def substep(joints: Array, speeds: Array, torque: Array) -> tuple[Array, Array]:
    """Moves the arm by 0.01 s under torques `[2]`; returns its angles and speeds after limits and desk."""
    inertia = _inertia(joints[1])
    twist = LINK**2 * jnp.sin(joints[1])
    coriolis = twist * jnp.stack([-speeds[1] * (2 * speeds[0] + speeds[1]), speeds[0] ** 2])
    force = torque - coriolis - jnp.asarray(_DAMPING) * speeds
    speeds = speeds + _TIME_STEP * jnp.linalg.solve(inertia, force)
    after = joints + _TIME_STEP * speeds
    # At the desk an impulse along its normal takes the fingertip back to the edge and stops what moves it inward.
    normal = jax.jacobian(fingertip)(after)[1]
    push = jnp.linalg.solve(inertia, normal)
    push = push / (normal @ push + 1e-6)
    depth = jnp.maximum(DESK - fingertip(after)[1], 0.0)
    speeds = speeds - jnp.where(depth > 0, jnp.minimum(normal @ speeds, 0.0), 0.0) * push
    after = after + depth * push
    bounded = jnp.clip(after, jnp.array([BASE[0], ELBOW[0]]), jnp.array([BASE[1], ELBOW[1]]))
    return bounded, jnp.where(bounded == after, speeds, 0.0)


def make_arm() -> Task:
    """Makes the arm: state `[4]`, action `[2]`, goal (x, y) of the fingertip."""

    def step(state: Array, action: Array) -> Array:
        torque = jnp.asarray(_TORQUE) * jnp.clip(action, -1, 1)
        begin = (state[:2], state[2:])
        end, _ = jax.lax.scan(lambda now, _: (substep(*now, torque), None), begin, None, length=_SUBSTEPS)
        return jnp.concatenate(end)

    def behaviour(key: PRNGKey, state: Array, goal: Array) -> Array:
        action = 2.5 * (joints_at(goal) - state[:2]) - 0.8 * state[2:]
        return jnp.clip(jnp.clip(action, -1, 1) + _NOISE * jax.random.normal(key, (2,)), -1, 1)

    def place(key: PRNGKey, box: Box) -> Array:
        angle, radius = uniform_place(key, box)
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def start(key: PRNGKey, place: Array) -> Array:
        joints = joints_at(place.at[1].max(DESK))
        return jnp.concatenate([joints, 0.2 * jax.random.normal(key, (2,))])

    sizes = Sizes(4, 2, 2)
    span = BASE[1] - BASE[0]
    return Task(
        name="arm",
        sizes=sizes,
        step=step,
        achieved=lambda state: fingertip(state[:2]),
        start=start,
        behaviour=behaviour,
        group=BaseRotation(
            sizes, state_axes=((0,),), goal_axes=((),), low=(-span,), high=(span,), goal_pairs=((0, 1),)
        ),
        data=Stratum(_DATA, _DATA),
        strata={
            "in distribution": Stratum(_BESIDE, _BESIDE),
            "at the desk": Stratum(_BESIDE, _EDGE),
            "unseen sectors": Stratum(_ELSEWHERE, _ELSEWHERE),
            "from the data": Stratum(_BESIDE, _ELSEWHERE),
        },
        tolerance=(0.04, 0.04, 0.25, 0.25),
        domain=((-0.4, 0.3), (2.3, 1.0)),
        goal_box=((-1.0, -1.0), (1.0, 1.0)),
        borders=(Wall(axis=1, at=DESK, low=-1.0, high=1.0),),
        horizon=40,
        radius=0.1,
        place=place,
    )
