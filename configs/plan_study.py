r"""Planners over budgets and seeds: samples to reach a return, equal budgets, and iCEM without its components.

    python -m launch.plan --config=configs/plan_study.py --workdir=workdirs/study

Each episode (environment, planner, budget, seed) is kept when it is done, and the same command continues.
`--config.num_processes=16` runs so many episodes at once, each in its own process on one thread; after
`--config.max_minutes` no further episode starts, and the report covers those that are done.

The study without a variant, the paper's five tasks at full length and budgets up to 2000, takes some 200 hours of
processor time and has not been run. Variants, with their processor time:

    `:budgets`       five tasks at budgets of 50 to 500, shorter episodes, five seeds: 212 minutes
    `:rivals`        CEM at 2000 and iCEM on the same seeds, four tasks: 6.8 hours
    `:halfcheetah`   the first task of `:budgets`: 16 minutes
    `:ablation`      iCEM without one component, HalfCheetah at budget 100: 8 minutes
    `:equal_budget`  three tasks at budget 50: 14 minutes
    `:door`          Door at budget 50 without the velocities in its cost: 7 minutes
    `:runlocal`      a check of the machinery

Expected of `:budgets` on HalfCheetah at budget 100: iCEM 653 [619, 703], CEM 151 [120, 205]; of `:rivals`: iCEM needs
4.5 to 37 times fewer trajectories than CEM at 2000. All results are in configs/RESULTS.md under "Planning".
"""

import ml_collections

_PAPER = {
    "icem": (50, 100, 300, 500, 1000),
    "cem": (50, 100, 300, 500, 2000),
    "pets_cem": (50, 100, 300, 500, 2000),
    "mppi_colored": (100, 300),
}
_COMPONENTS = (
    "icem",
    "icem_no_decay",
    "icem_no_mean",
    "icem_white",
    "icem_no_shift",
    "icem_execute_mean",
    "icem_no_keep",
)
_LENGTHS = {"halfcheetah": 1000, "humanoidstandup": 1000, "fetch_pick_and_place": 50, "door": 200, "relocate": 200}

# By variant and environment: steps of an episode, and budgets by planner.
STUDIES = {
    "": {name: (steps, _PAPER) for name, steps in _LENGTHS.items()},
    "halfcheetah": {"halfcheetah": (150, {"icem": (100, 300), "cem": (100, 300, 500)})},
    "ablation": {"halfcheetah": (150, dict.fromkeys(_COMPONENTS, (100,)))},
    "budgets": {
        "halfcheetah": (150, {"icem": (50, 100, 300, 500), "cem": (50, 100, 300, 500, 2000), "pets_cem": (2000,)}),
        "fetch_pick_and_place": (50, {"icem": (50, 100, 300), "cem": (50, 100, 300)}),
        "humanoidstandup": (60, {"icem": (50, 100), "cem": (50, 100, 300)}),
        "door_no_velocity": (100, {"icem": (50, 100), "cem": (50, 100, 300)}),
        "relocate": (200, {"icem": (100,), "cem": (100,)}),
    },
    "rivals": {
        "fetch_pick_and_place": (50, {"icem": (50, 100, 300, 500), "cem": (2000,)}),
        "door_no_velocity": (100, {"icem": (50, 100, 300), "cem": (2000,)}),
        "humanoidstandup": (60, {"icem": (50, 100), "cem": (2000,)}),
        "relocate": (200, {"icem": (50, 100, 300), "cem": (2000,)}),
    },
    "door": {"door_no_velocity": (100, {"icem": (50,), "cem": (50,)})},
    "equal_budget": {
        name: (steps, {"icem": (50,), "cem": (50,)})
        for name, steps in {"fetch_pick_and_place": 50, "humanoidstandup": 60, "relocate": 100, "door": 100}.items()
    },
    "runlocal": {"double_integrator": (20, {"icem": (50,), "cem": (50, 100)})},
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the study of the five tasks, or a variant of `STUDIES`."""
    config = ml_collections.ConfigDict()
    config.task = "planning_study"
    config.simulator = "mujoco"
    config.num_seeds = 5
    config.num_processes = 1  # more of them plan one episode each, on one thread
    config.max_minutes = -1.0  # after which no episode starts; the same command goes on
    if variant not in STUDIES:
        raise ValueError(f"Unknown variant {variant!r}: expected one of {', '.join(filter(None, STUDIES))} or none.")
    # Steps of an episode, and budgets by planner
    config.environments = ml_collections.ConfigDict({name: steps for name, (steps, _) in STUDIES[variant].items()})
    config.cells = ml_collections.ConfigDict({name: planners for name, (_, planners) in STUDIES[variant].items()})
    if variant == "equal_budget":
        config.num_seeds = 3
    elif variant == "runlocal":
        config.simulator = "closed_form"
        config.num_seeds = 2
    return config
