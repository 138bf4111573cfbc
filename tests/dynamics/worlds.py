"""A small world with a known answer: a damped point on a line whose law may depend on the place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics import Sizes, Translation, make_transitions

SIZES = Sizes(state=2, action=1, goal=1)
TOLERANCE = (0.05, 0.1)
SHIFT = Translation(SIZES, state_axes=((0,),), goal_axes=((0,),), low=(-6.0,), high=(6.0,))
SHIFT_VELOCITY = Translation(SIZES, state_axes=((1,),), goal_axes=((),), low=(-2.0,), high=(2.0,))


def step(state, action, *, slope=0.0):
    """From (x, v) and a to the next state; `slope` adds a force against x."""
    x, v = state[0], state[1]
    v = 0.8 * v + 0.3 * action[0] - slope * x
    return jnp.stack([x + 0.2 * v, v])


@functools.partial(jax.jit, static_argnames=("num_episodes", "length"))
def _walks(seed, *, num_episodes, length, **world):
    def episode(key):
        first, second, third = jax.random.split(key, 3)
        state = jnp.stack([jax.random.uniform(first, minval=-1.0, maxval=1.0), 0.5 * jax.random.normal(second)])

        def act(state, key):
            action = jax.random.uniform(key, (1,), minval=-1, maxval=1)
            after = step(state, action, **world)
            return after, (state, action, after)

        return jax.lax.scan(act, state, jax.random.split(key=third, num=length))[1]

    return jax.vmap(episode)(jax.random.split(jax.random.key(seed), num_episodes))


def collect(num_episodes=120, length=15, seed=0, **world):
    """Random walks from starts in [-1, 1]."""
    states, actions, after = _walks(seed, num_episodes=num_episodes, length=length, **world)
    return make_transitions(
        states=states.reshape(-1, 2),
        actions=actions.reshape(-1, 1),
        next_states=after.reshape(-1, 2),
        episodes=np.repeat(np.arange(num_episodes), length),
    )


def wrong(group, elements, data, tolerance, **world):
    """Whether each transformed transition is further from the true world than the tolerance."""

    def gap(element, state, action, after):
        truth = step(group.state(element, state), group.action(element, action), **world)
        return jnp.any(jnp.abs(truth - group.state(element, after)) > jnp.asarray(tolerance))

    return np.asarray(jax.vmap(gap)(elements, data.states, data.actions, data.next_states))
