"""An XML and a cost from a command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import planning
from edgesafe_jax.planning import PlanningError

XML = """
<mujoco><option timestep="0.01"/><worldbody><body name="cart"><joint name="x" type="slide" axis="1 0 0" damping="1"/>
<geom size="0.1" mass="1"/></body></worldbody>
<actuator><motor joint="x" ctrlrange="-2 3" ctrllimited="true"/><motor joint="x"/></actuator>
<sensor><jointpos name="place" joint="x"/></sensor></mujoco>
"""
COSTS = """
def at_one(before, action, after, goal):
    return (after["place"][..., 0] - 1.0) ** 2

def three_numbers(before, action, after, goal):
    return after["qpos"][..., :1] * action[..., :1].repeat(3, -1)

def unknown_sensor(before, action, after, goal):
    return after["elbow"][..., 0]

def few_arguments(state):
    return 0.0

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cart.xml").write_text(XML)
    (tmp_path / "cart_costs.py").write_text(COSTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_xml_with_a_cost_is_a_task(folder):
    task = planning.make_task("mujoco", str(folder / "cart.xml"), cost="cart_costs:at_one", num_threads=1)
    np.testing.assert_array_equal(task.low, [-2, -1])
    np.testing.assert_array_equal(task.high, [3, 1])
    assert task.control_step == pytest.approx(0.05)
    state = task.reset(jax.random.key(0))
    after, result = task.step(state, np.float32([1.0, 0.0]))
    # The sensor reads the start of the last substep, as MuJoCo does.
    place = task.world.view(after.features)["place"][0]
    assert result.cost == pytest.approx((place - 1.0) ** 2, rel=1e-5)
    outcomes = jax.jit(task.simulator())(state, jnp.array([[[3.0, 1.0]] * 20, [[-2.0, -1.0]] * 20]))
    assert outcomes.cost[0] < outcomes.cost[1]


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ("", "cost='': expected module:function"),
        ("cart_costs:at_two", "cannot be imported.*at_two"),
        ("no_such_module:cost", "cannot be imported.*no_such_module"),
        ("cart_costs:NUMBER", "is a int: expected cost"),
        ("cart_costs:three_numbers", r"shape \[3\]: expected \[\]. A cost is cost\(before, action"),
        ("cart_costs:unknown_sensor", "KeyError: 'elbow'.*expected cost"),
        ("cart_costs:few_arguments", "TypeError.*expected cost"),
    ],
)
def test_costs_of_another_kind_show_the_signature(folder, cost, message):
    with pytest.raises(PlanningError, match=message):
        planning.xml_task(folder / "cart.xml", cost, num_threads=1)


def test_an_xml_without_actuators(tmp_path):
    (tmp_path / "stone.xml").write_text("<mujoco><worldbody/></mujoco>")
    with pytest.raises(PlanningError, match=r"stone\.xml has no actuator"):
        planning.xml_task(tmp_path / "stone.xml", lambda *_: 0.0)
