"""The arm: its law against Lagrange's equations, its limits, and where turning its base is a symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.dynamics import is_wrong
from edgesafe_jax.offline_rl import arm, tasks

TASK = arm.make_arm()
STEP = jax.jit(jax.vmap(TASK.step))


@pytest.fixture(scope="module")
def data():
    return tasks.generate(jax.random.key(0), TASK, num_episodes=20).transitions()


def test_the_fingertip_determines_the_joints():
    joints = jnp.stack(jnp.meshgrid(jnp.linspace(-1.5, 1.5, 5), jnp.linspace(0.4, 2.4, 5)), -1).reshape(-1, 2)
    np.testing.assert_allclose(jax.vmap(arm.joints_at)(jax.vmap(arm.fingertip)(joints)), joints, atol=1e-3)
    by_radius = np.cos(0.6) * np.array([np.cos(1.1), np.sin(1.1)])
    np.testing.assert_allclose(arm.fingertip(jnp.array([0.5, 1.2])), by_radius, rtol=1e-5)


def test_the_law_is_that_of_lagrange():
    """d/dt dT/dw - dT/dq = torque - damping, with the kinetic energy of two point masses, by automatic derivatives."""

    def kinetic(joints, speeds):
        elbow = jax.jvp(lambda q: arm.LINK * jnp.stack([jnp.cos(q[0]), jnp.sin(q[0])]), (joints,), (speeds,))[1]
        tip = jax.jvp(arm.fingertip, (joints,), (speeds,))[1]
        return 0.5 * (elbow @ elbow + tip @ tip)

    @jax.jit
    def accelerations(joints, speeds, torque):
        inertia = jax.hessian(kinetic, 1)(joints, speeds)
        turning = jax.jacobian(jax.grad(kinetic, 1), 0)(joints, speeds) @ speeds
        force = torque - jnp.array([1.0, 0.5]) * speeds - turning + jax.grad(kinetic, 0)(joints, speeds)
        return jnp.linalg.solve(inertia, force), (arm.substep(joints, speeds, torque)[1] - speeds) / 0.01

    wanted, found = accelerations(jnp.array([0.7, 1.3]), jnp.array([0.9, -1.4]), jnp.array([1.2, -0.3]))
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


def test_the_desk_stops_the_fingertip_and_lets_it_slide():
    at_edge = jnp.concatenate([arm.joints_at(jnp.array([0.6, -0.3])), jnp.zeros(2)])
    state = at_edge[None]
    for _ in range(10):
        state = STEP(state, jnp.array([[-1.0, -1.0]]))
        assert arm.fingertip(state[0, :2])[1] > -0.301
    assert abs(float(arm.fingertip(state[0, :2])[0]) - 0.6) > 0.1


def test_joints_stop_at_their_limits():
    state = jnp.array([[2.3, 2.4, 3.0, 3.0]])
    for _ in range(3):
        state = STEP(state, jnp.ones((1, 2)))
    np.testing.assert_allclose(state[0], [2.4, 2.5, 0.0, 0.0], atol=1e-6)


def test_turning_the_base_is_a_symmetry_but_at_the_desk(data):
    turned = jnp.broadcast_to(jnp.array([1.2]), (len(data.states), 1, 1))
    wrong = is_wrong(TASK.step, TASK.group, turned, data, tolerance=(1e-4,) * 4)[:, 0]
    lowest = np.asarray(jax.vmap(lambda s: arm.fingertip(s[:2])[1])(jnp.asarray(data.next_states)))
    free = lowest > -0.25
    assert free.mean() > 0.5
    assert not wrong[free].any()
    assert wrong[lowest < -0.2999].mean() > 0.9


def test_the_goal_turns_with_the_arm():
    state, element = jnp.array([0.3, 1.0, 0.0, 0.0]), jnp.array([0.8])
    turned = TASK.achieved(TASK.group.state(element, state))
    np.testing.assert_allclose(turned, TASK.group.goal(element, TASK.achieved(state)), atol=1e-6)


def test_nowhere_in_the_declared_angles_is_the_desk_in_reach():
    base, elbow = jnp.meshgrid(jnp.linspace(TASK.domain[0][0], TASK.domain[1][0], 50), jnp.linspace(*arm.ELBOW, 50))
    tips = jax.vmap(arm.fingertip)(jnp.stack([base.reshape(-1), elbow.reshape(-1)], 1))
    assert float(tips[:, 1].min()) > arm.DESK
