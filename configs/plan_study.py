r"""Planners over budgets and seeds: samples to reach a return, equal budgets, and iCEM without its components.

    python -m launch.plan --config=configs/plan_study.py --workdir=workdirs/study

`:halfcheetah` is what was measured (below), `:ablation` takes iCEM's components away one at a time, `:runlocal` is a
check of the machinery. Each cell (environment, planner, budget) is kept as it is done, and the same command goes on.

`configs/plan_study.py:halfcheetah`, 150 steps, gymnasium's reward, seeds 0 to 4, mean and 95 % bootstrap interval over
the seeds; about 9 minutes of processor time:

    budget        100                  300
    icem   653 [619, 703]      887 [851, 923]
    cem    151 [120, 205]      489 [475, 502]

iCEM at 100 (97 drawn, 3 carried over) is above CEM at 300. The other tasks of the default study and `:ablation` have
not been run.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the study of the five tasks, or a `variant` of it: "halfcheetah", "ablation" or "runlocal"."""
    config = ml_collections.ConfigDict()
    config.task = "planning_study"
    config.simulator = "mujoco"
    config.num_seeds = 5
    # Steps of an episode, by environment
    config.environments = ml_collections.ConfigDict(
        {"halfcheetah": 1000, "humanoidstandup": 1000, "fetch_pick_and_place": 50, "door": 200, "relocate": 200}
    )
    # Budgets, by planner
    config.cells = ml_collections.ConfigDict(
        {
            "icem": (50, 100, 300, 500, 1000),
            "cem": (50, 100, 300, 500, 2000),
            "pets_cem": (50, 100, 300, 500, 2000),
            "mppi_colored": (100, 300),
        }
    )
    if variant == "halfcheetah":
        config.environments = ml_collections.ConfigDict({"halfcheetah": 150})
        config.cells = ml_collections.ConfigDict({"icem": (100, 300), "cem": (100, 300, 500, 1000)})
    elif variant == "equal_budget":
        config.num_seeds = 3
        config.environments = ml_collections.ConfigDict(
            {"fetch_pick_and_place": 50, "door": 100, "relocate": 100, "humanoidstandup": 60}
        )
        config.cells = ml_collections.ConfigDict({"icem": (100,), "cem": (100,)})
    elif variant == "ablation":
        config.environments = ml_collections.ConfigDict({"halfcheetah": 150})
        names = ("", "_white", "_no_shift", "_no_keep", "_no_decay", "_no_mean", "_execute_mean")
        config.cells = ml_collections.ConfigDict({f"icem{name}": (100,) for name in names})
    elif variant == "runlocal":
        config.simulator = "closed_form"
        config.num_seeds = 2
        config.environments = ml_collections.ConfigDict({"double_integrator": 20})
        config.cells = ml_collections.ConfigDict({"icem": (50,), "cem": (50, 100)})
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'halfcheetah', 'ablation', 'runlocal' or none.")
    return config
