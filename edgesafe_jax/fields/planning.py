"""The fields of configs with the tasks "planning" and "planning_study"."""

from typing import get_args

from edgesafe_jax.errors import POSITIVE, Range
from edgesafe_jax.fields.declared import FLAG, TEXT, TEXT_OR_NOTHING, Each, Fields, Name, Table
from edgesafe_jax.fields.kinds import RUN, SIZE, up_to
from edgesafe_jax.planning import BUDGETS, ENVIRONMENTS, PLANNERS
from edgesafe_jax.planning.icem import Execute
from edgesafe_jax.planning.noise import Convention
from edgesafe_jax.planning.search import Population

_STEPS = Range(1, 1_000_000, integer=True, expected="at least 1 step, and at most 1,000,000")
_OR_THE_TASKS = Range(1, 1_000_000, integer=True, also=(-1,), expected="at least 1, or -1 for the task's")
_BUDGET = Range(0, 0, also=tuple(BUDGETS), below=True, expected=f"one of {', '.join(map(str, BUDGETS))}")


def planning_fields() -> Fields:
    """Returns the fields of episodes of one planner, without `task`."""
    return {
        **RUN,
        "num_episodes": up_to(1_000_000),
        "environment": TEXT,
        "cost": TEXT_OR_NOTHING,
        "simulator": Name(ENVIRONMENTS),
        "planner": Name(PLANNERS),
        "budget": _BUDGET,
        "num_steps": _OR_THE_TASKS,
        "realtime": FLAG,
        "horizon": _OR_THE_TASKS,
        "noise_beta": Range(0, 100, also=(-1,), expected="0 to 100, or -1 for the task's"),
        "icem.num_elites": SIZE,
        "icem.noise_convention": Name(get_args(Convention)),
        "icem.init_std": POSITIVE,
        "icem.momentum": Range(0, 1, below=True),
        "icem.decay": Range(1, 1e6),
        "icem.elite_fraction": Range(0, 1),
        **dict.fromkeys(("icem.keep_elites", "icem.shift_elites", "icem.mean_in_last_iteration"), FLAG),
        "icem.execute": Name(get_args(Execute)),
        "icem.population": Name(get_args(Population)),
    }


def planning_study_fields() -> Fields:
    """Returns the fields of a study of planners, without `task`."""
    return {
        "simulator": Name(ENVIRONMENTS),
        "num_seeds": up_to(10_000),
        "num_processes": up_to(10_000),
        "max_minutes": Range(0, 1e9, also=(-1,), expected="0 minutes or more, or -1 for no limit"),
        "environments": Table(_STEPS, least=1),
        "cells": Table(Table(Each(_BUDGET), names=PLANNERS), least=1),
    }
