"""The page of callables in `help(edgesafe_jax.planning)` names what it describes."""

import re

from edgesafe_jax import planning


def test_the_page_of_callables_names_every_kind_that_the_front_door_exports():
    named = set(re.findall(r"^`(\w+)`  ", planning.__doc__, flags=re.MULTILINE))
    assert named == {"Simulator", "Step", "Cost", "Control", "Risk", "Proposal", "Planner"}
    assert named <= set(planning.__all__)
    for name in named:
        assert hasattr(planning, name)
