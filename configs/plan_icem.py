r"""Plan with iCEM, or another planner, in the closed loop.

    python -m launch.plan --config=configs/plan_icem.py:halfcheetah --workdir=workdirs/plan

Cost: 14 s of processor time for 150 steps of HalfCheetah at budget 100. Expected: a return of 650 there (seed 0) and of
946 at budget 300. The work directory holds the returns, a report and, with C MuJoCo, the first episode as a GIF.

`--config.budget` picks iterations and population from the paper's table (trajectories per step: 50, 70, 100, 150, 200,
250, 300, 400, 500, 1000, 2000, 4000); `--config.num_steps=-1` runs the paper's whole episode.

Variants are the tasks `:halfcheetah`, `:humanoidstandup`, `:fetch_pick_and_place`, `:door`, `:door_no_velocity`
(without the velocities in the cost, see `edgesafe_jax.planning.door`), `:relocate`, planned with C MuJoCo, and
`:runlocal`, a check of the machinery. `--config.environment` may name a task of dm_control's suite too, such as
walker_walk, see `edgesafe_jax.planning.suite_tasks`. With `--config.simulator=brax` it is one of halfcheetah,
humanoidstandup, pusher, reacher, ant; brax compiles for long, and `--config.icem.population=padded` compiles one
iteration instead of one per population size:

    python -m launch.plan --config=configs/plan_icem.py --workdir=workdirs/brax --config.simulator=brax
        --config.icem.population=padded --config.num_steps=100 --config.budget=50 --config.environment=reacher

takes 24 s and returns -18.2. More seeds: configs/plan_study.py. All results are in configs/RESULTS.md under "Planning".
"""

import ml_collections

NUM_STEPS = {
    "halfcheetah": 150,
    "humanoidstandup": 100,
    "fetch_pick_and_place": 50,
    "door": 200,
    "door_no_velocity": 100,
    "relocate": 200,
}


def get_config(variant: str = "halfcheetah") -> ml_collections.ConfigDict:
    """Returns the config of a task, or "runlocal": a check of the machinery."""
    config = ml_collections.ConfigDict()
    config.task = "planning"
    config.seed = 0
    config.num_episodes = 1  # with seeds from `seed` on
    config.environment = "halfcheetah"
    config.cost = ""  # of an environment that is an XML file: module:function, see edgesafe_jax.planning.xml_task
    config.simulator = "mujoco"  # mujoco (C, on threads) | brax | closed_form
    config.planner = "icem"  # a key of edgesafe_jax.planning.PLANNERS: cem, pets_cem, mppi, dial, ...
    config.budget = 100  # trajectories at each step, about
    config.num_steps = 150  # of an episode; -1 for the task's
    config.realtime = False  # whether the environment goes on at its own rate, without waiting for the planner
    config.horizon = -1  # actions of a plan; -1 for the task's
    config.noise_beta = -1.0  # exponent of the noise; -1 for the task's

    # Components of iCEM
    config.icem = ml_collections.ConfigDict()
    config.icem.num_elites = 10
    config.icem.noise_convention = "classic"  # classic | corrected
    config.icem.init_std = 0.5
    config.icem.momentum = 0.1
    config.icem.decay = 1.25
    config.icem.elite_fraction = 0.3
    config.icem.keep_elites = True
    config.icem.shift_elites = True
    config.icem.mean_in_last_iteration = True
    config.icem.execute = "best"  # best | mean
    config.icem.population = "unrolled"  # unrolled | padded

    if variant in NUM_STEPS:
        config.environment = variant
        config.num_steps = NUM_STEPS[variant]
    elif variant == "runlocal":
        config.simulator = "closed_form"
        config.environment = "double_integrator"
        config.budget = 50
        config.num_steps = 30
        config.horizon = 15
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected one of {', '.join(NUM_STEPS)}, or 'runlocal'.")
    return config
