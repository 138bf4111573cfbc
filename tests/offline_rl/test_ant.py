"""Brax's ant can be moved over its plane with its goal, and not lifted off it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.offline_rl.ant import make_ant


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of brax about its own use of MJX
def test_the_ant_can_be_moved_over_the_plane_and_not_lifted():
    task = make_ant()
    assert (task.sizes.state, task.sizes.action, task.sizes.goal) == (29, 8, 2)
    assert len(task.tolerance) == 29
    start = task.start(jax.random.key(0), jnp.array([-2.0, -1.5]))
    np.testing.assert_allclose(task.achieved(start), [-2.0, -1.5])
    assert float(jnp.linalg.norm(start[3:7])) == pytest.approx(1.0)
    goal = jnp.array([-1.6, -1.9])
    action = task.behaviour(jax.random.key(1), start, goal)
    assert action.shape == (8,)
    assert float(jnp.abs(action).max()) <= 1
    shift = jnp.array([3.0, -0.7])
    lowered, lifted = start.at[2].set(0.3), start.at[2].set(1.5)
    states = jnp.stack([start, task.group.state(shift, start), lowered, lifted])
    after = jax.jit(jax.vmap(task.step))(states, jnp.stack([action] * 4))
    assert bool(jnp.all(jnp.isfinite(after)))
    np.testing.assert_allclose(after[1], task.group.state(shift, after[0]), atol=1e-4)
    np.testing.assert_allclose(after[0, :2] - start[:2], 0, atol=0.1)  # a step is 0.05 s
    # In the air it falls by what gravity gives it in that time; on the ground the legs bear it.
    vertical = 17  # the velocity along z
    assert float(after[3, vertical]) < float(after[2, vertical]) - 0.2
    assert float(task.reward(start, goal)) == pytest.approx(-float(jnp.linalg.norm(start[:2] - goal)))
