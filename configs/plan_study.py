r"""Planners over budgets and seeds: samples to reach a return, equal budgets, and iCEM without its components.

    python -m launch.plan --config=configs/plan_study.py --workdir=workdirs/study

Each episode (environment, planner, budget, seed) is kept as it is done, and the same command goes on.
`--config.num_processes=16` plans so many episodes at once, each in a process of its own on one thread;
`--config.max_minutes` is a limit after which none starts, and the report is made of those that there are.

`:budgets`, `:rivals` but for seeds of relocate, `:ablation`, `:equal_budget` and `:door` were measured: mean return and
its 95 % bootstrap interval over seeds. The study without a variant, the paper's five tasks at full length and budgets
up to 2000 (some 200 hours of processor time), has not been run. `:runlocal` is a check of the machinery.

`:budgets`, the paper's claims at a size for one machine (212 minutes of processor time), seeds 0 to 4, episodes of
HumanoidStandup and Door shortened (60 steps of 1000, 100 of 200):

    budget                          50                      100                 300                500
    halfcheetah (150)     icem     382 [351, 417]     653 [619, 703]     887 [851, 923]     957 [937, 989]
                          cem       71 [66, 75]       151 [120, 205]     489 [475, 502]     634 [594, 665]
    fetch_pick_and_place  icem    -6.4 [-10.9, -2.1] -5.2 [-8.4, -2.0]  -3.5 [-5.8, -1.3]
      (50)                cem    -11.0 [-17.4, -4.6] -7.7 [-12.5, -3.0] -5.1 [-7.9, -2.3]
    humanoidstandup (60)  icem    27.8 [22.4, 35.5]  41.2 [35.8, 44.8]
                          cem     17.5 [17.1, 17.9]  20.9 [20.7, 21.2]  22.9 [22.7, 23.1]
    door_no_velocity      icem    1157 [1047, 1254]  1235 [1114, 1355]
      (100)               cem      -24 [-24, -24]     -24 [-24, -24]     -24 [-24, -24]
    relocate (200)        icem                       3017 [965, 5073]
                          cem                          12 [-3, 29]

    success               icem: Fetch 4, 4 and 5 of 5, Door 5 and 5, Relocate 3
                          cem:  Fetch 1, 3 and 4 of 5, Door none, Relocate 1

Seed by seed iCEM does better at every budget beyond the interval (relocate: 3006 [969, 5046]; Fetch at 300: 1.6 [1.0,
2.2]). HalfCheetah: CEM returns 909 [874, 937] at 2000 and CEM as in PETS 590 [546, 637]; iCEM needs 354 trajectories
for 909, a factor of 5.7 [4.5, 6.9], and has 5.4, 4.3, 1.8 and 1.5 times CEM's return at budgets of 50 to 500.
Of the others CEM was measured up to 300 here: for what it does there iCEM needs 106 trajectories on Fetch (2.8 [2.0,
more than 6]), and fewer than 50 on HumanoidStandup and Door (more than 6).

`:rivals`, CEM at 2000 on the other four, seeds 0 to 4, relocate on seed 0 alone (14 to 43 minutes of processor time an
episode, 6.8 hours in all), beside iCEM on the same seeds, and how many times fewer trajectories it needs for the same:

                          CEM at 2000        iCEM at 50          at 100             at 300             factor
    fetch_pick_and_place  -3.4 [-5.5, -1.3]  -6.4 [-10.9, -2.1]  -5.2 [-8.4, -2.0]  -3.5 [-5.8, -1.3]  4.5 [<4, 9.9]
    door_no_velocity      1166 [1083, 1248]  1157 [1047, 1254]   1235 [1114, 1355]  1418 [1369, 1458]  37 [16, >40]
    humanoidstandup       31.7 [28.8, 35.5]  27.8 [22.4, 35.5]   41.2 [35.8, 44.8]                     33 [30, >40]
    relocate (seed 0)     5011               4                   41                 5310               7.1

Fetch with iCEM at 500 returns -3.4 [-5.4, -1.4]; what CEM does at 2000 lies between that and 300, where the curve is
flat, so that the factor is told within wide ends. Both succeed in all five episodes. On Door iCEM at 50 does what CEM
does at 2000; at 300 CEM has not opened it once. On relocate an episode either picks the object up or not.

`:halfcheetah` is the first task of `:budgets` at budgets of 100 to 500 (16 minutes): iCEM at 100 (97 drawn, 3 carried
over) does as well as CEM at 500.

`:ablation`, the same at budget 100 without one component, and the difference from iCEM seed by seed; 8 minutes:

    icem                653 [619, 703]
    icem_no_decay       628 [578, 679]     -24 [-118,  45]     the same population in each iteration
    icem_no_mean        605 [570, 641]     -48 [-100,  13]     without the mean in the last iteration
    icem_white          594 [549, 640]     -58 [-125,   9]     beta 0 instead of 0.25
    icem_no_shift       578 [541, 615]     -75 [-121, -30]     no elites from the step before
    icem_execute_mean   576 [557, 606]     -77 [-142, -22]     the mean's first action instead of the best's
    icem_no_keep        555 [542, 573]     -98 [-130, -74]     no elites from the iteration before

Memory and the best sequence's action each help beyond the interval; for the others five seeds do not tell. No single
one is the distance to CEM.

`:equal_budget`, other tasks at budget 50, seeds 0 to 2; 14 minutes. Fetch and HumanoidStandup are part of `:budgets`;
100 steps of Relocate, iCEM 672 [21, 1974] and CEM 32 [15, 61], one seed of three decides; of Door -24.49 [-24.49,
-24.48] and -24.47 [-24.48, -24.47].

With the velocities in its cost Door does not follow the paper: both planners all but hold still. Of 300 plans of noise
of beta 2.5 from the start not one turns the hinge beyond 0.021 rad, where the first bonus is paid at 0.2, and the
velocities of a plan that moves cost 0.4, more than it gains. The paper's code does not count them (see
`edgesafe_jax.planning.door`); `:door` leaves them out, too.

`:door`, Door at budget 50 without that term, is part of `:budgets` (7 minutes of processor time). CEM's return is
the same to the last digit on all seeds, as of a door that nothing touches.
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
