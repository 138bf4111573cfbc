"""Brax's ant on a plane: the position of its torso is part of the state, and the goal.

The state is brax's `q` and `qd` (x, y, z, a quaternion and eight joints; the velocities of all), 29 numbers, of which
x and y do not matter to the dynamics: moving them with the goal is a true symmetry, of a body with contacts and 37
inputs to its model (the point mass has six).

A step is one of brax's (0.05 s) on its `spring` physics, begun from links that fit their joints exactly, so that the
next state depends on this one and the action alone. Every episode of the data has its own linear feedback, drawn
at random (from the bits of its goal, which it does not seek), from the joints to their torques, with noise: in 60 steps
the torso moves by 1.2 m in the median of 100 episodes and by 2.6 m or more in a tenth, where uniform noise at full
torque moves it by 1.0 and 1.8.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from edgesafe_jax.dynamics import Sizes, Translation
from edgesafe_jax.offline_rl.tasks import Box, Stratum, Task
from edgesafe_jax.typing import Array, PRNGKey

FIELD: Box = ((-3.0, -3.0), (3.0, 3.0))
_CORNER: Box = ((-2.5, -2.5), (-1.3, -1.3))
_ELSEWHERE: Box = ((1.3, 1.3), (2.5, 2.5))

# Differences of a step that do not matter: about half of what a step of the data changes.
_TOLERANCE = (0.02,) * 3 + (0.02,) * 4 + (0.1,) * 8 + (0.25,) * 3 + (0.5,) * 3 + (1.5,) * 8


def make_ant() -> Task:
    """Makes the ant: state `[29]`, action `[8]`, goal (x, y) of the torso."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # brax and what it imports say that they are no longer developed
        from brax import envs

        env: Any = envs.get_environment("ant", backend="spring")
    num_q = env.sys.q_size()
    rest = jnp.asarray(env.sys.init_q, jnp.float32)

    def step(state: Array, action: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            before = env.pipeline_init(state[:num_q], state[num_q:])
            after = env.pipeline_step(before, jnp.clip(action, -1.0, 1.0))
        return jnp.concatenate([after.q, after.qd])

    def start(key: PRNGKey, position: Array) -> Array:
        key_q, key_qd = jax.random.split(key)
        q = rest + 0.1 * jax.random.uniform(key_q, rest.shape, minval=-1.0, maxval=1.0)
        q = q.at[:2].set(position).at[3:7].divide(jnp.linalg.norm(q[3:7]))
        return jnp.concatenate([q, 0.1 * jax.random.normal(key_qd, (env.sys.qd_size(),))])

    def behaviour(key: PRNGKey, state: Array, goal: Array) -> Array:
        own = jax.random.split(jax.random.key(jax.lax.bitcast_convert_type(goal[0], jnp.uint32)), 3)
        joints, speeds = state[7:num_q] - rest[7:], state[num_q + 6 :]
        torque = jax.random.normal(own[0], (8, 8)) @ joints + 0.3 * jax.random.normal(own[1], (8, 8)) @ speeds
        torque = torque + 0.3 * jax.random.normal(own[2], (8,)) + 0.3 * jax.random.normal(key, (8,))
        return jnp.clip(torque, -1.0, 1.0)

    sizes = Sizes(num_q + env.sys.qd_size(), env.sys.act_size(), 2)
    span = FIELD[1][0] - FIELD[0][0]
    return Task(
        name="ant",
        sizes=sizes,
        step=step,
        achieved=lambda state: state[:2],
        start=start,
        behaviour=behaviour,
        group=Translation(
            sizes, state_axes=((0,), (1,)), goal_axes=((0,), (1,)), low=(-span, -span), high=(span, span)
        ),
        data=Stratum(_CORNER, _CORNER),
        strata={"in distribution": Stratum(_CORNER, _CORNER), "elsewhere": Stratum(_ELSEWHERE, _ELSEWHERE)},
        tolerance=_TOLERANCE,
        domain=FIELD,
        horizon=60,
        control_step=0.05,
        radius=0.4,
    )
