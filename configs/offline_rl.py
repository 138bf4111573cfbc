r"""Learn how far a translation is a symmetry, augment the data by it, and train policies for goals outside the data.

    python -m launch.train --config=configs/offline_rl.py --workdir=workdirs/offline_rl

Cost: about nine minutes of one core for ten runs of three methods (`--config.num_runs=10 --config.num_seeds=1
--config.methods="('her_learned','her','none')"`). Expected there: success at far goals 1.00 [1.00, 1.00] with learned,
tested translations, 0.002 [0.00, 0.07] with hindsight goals alone. `config.num_runs` makes whole runs, each with its
own data, model, translations and policies; finished runs are kept and more can be added.

`config.world` is a named task or one's own, "module:callable"; `config.learner.name` td3_bc, iql, awr or bc;
`config.data.path` reads a Minari directory or an .npz file of OGBench or D4RL of that world. All rows get the task's
rewards and terminals. `config.planners` plan on the model beside them. `config.methods` are compared:

    none                    the data as they are
    s4rl                    noise on the states
    her                     hindsight goals
    translation             untested translations of state and goal over the whole domain
    her_translation         the same after hindsight relabelling
    her_state_only          the same with the goal left where it was: a false augmentation
    her_learned             hindsight goals, then learned and tested translations
    her_tested              hindsight goals, then the translations of all that pass the test
    her_oracle              hindsight goals, then the translations that the true simulator allows
    her_model               hindsight goals on data and rollouts of the model
    full_coverage           data from the whole domain

Variants: `:river` a band with a current, `:patches` ice and sand, `:arm` a planar arm beside a desk, `:walls` the arena
with a wall, `:maze` Gymnasium-Robotics' PointMaze, `:ant` brax's ant, `:quickstart` the river in small, which
`launch.quickstart --only offline_rl` runs, `:runlocal` a check of the machinery. All results, with what the gain
depends on, are in configs/RESULTS.md under "Offline RL".
"""

import ml_collections

VARIANTS = {
    "walls": {
        "world": "point_mass_walls",
        "methods": ("none", "her", "her_translation", "her_learned", "her_oracle"),
        "symmetry.declare_domain": False,
        "data.num_episodes": 400,
        "alpha": 0.01,  # near a wall a wrong translation costs more
    },
    "maze": {
        "world": "point_maze",
        "methods": ("none", "her", "her_translation", "her_learned", "her_oracle"),
        "symmetry.declare_domain": False,
        "data.num_episodes": 300,
        "alpha": 0.01,
        "model.hidden": (128, 128, 128),
        "model.num_epochs": 80,
        "model.batch_size": 128,
        "symmetry.num_elements": 16,
        "learner.discount": 0.98,
        "num_seeds": 4,
    },
    "ant": {
        "world": "ant",
        "methods": ("none", "her", "her_learned", "her_oracle"),
        "data.num_episodes": 600,
        "model.hidden": (256, 256),
        "model.batch_size": 256,
        "learner.hidden": (256, 256),
        "learner.learning_rate": 3e-4,
        "symmetry.num_elements": 16,
        "num_seeds": 4,
        "num_episodes": 100,
    },
    "river": {
        "world": "river",
        "alpha": 0.02,
        "methods": ("her", "her_translation", "her_learned", "her_oracle"),
        "data.num_episodes": 400,
        "model.learning_rate": 3e-3,
        "model.num_epochs": 80,
        "model.batch_size": 128,
        "symmetry.along": (0,),
        "symmetry.num_steps": 1000,
        "symmetry.num_elements": 8,
        "num_updates": 6000,
        "normalize": True,
        "num_runs": 5,
        "num_seeds": 1,
    },
    "patches": {
        "world": "patches",
        "alpha": 0.03,
        "methods": ("her", "her_translation", "her_learned", "her_tested", "her_oracle"),
        "data.num_episodes": 400,
        "model.learning_rate": 3e-3,
        "model.num_epochs": 80,
        "model.batch_size": 128,
        "symmetry.by_kind": True,
        "symmetry.num_steps": 1000,
        "symmetry.num_elements": 16,
        "num_updates": 12000,
        "normalize": True,
        "num_runs": 5,
        "num_seeds": 1,
    },
    "arm": {
        "world": "arm",
        "alpha": 0.02,
        "methods": ("her", "her_translation", "her_tested"),
        "data.num_episodes": 400,
        "model.learning_rate": 3e-3,
        "model.num_epochs": 80,
        "model.batch_size": 128,
        "symmetry.num_elements": 16,
        "augment_fraction": 0.7,
        "num_updates": 16000,
        "normalize": True,
        "num_runs": 5,
        "num_seeds": 1,
    },
    "quickstart": {
        "world": "river",
        "methods": ("her", "her_translation", "her_learned"),
        "data.num_episodes": 400,
        "model.learning_rate": 3e-3,
        "model.num_epochs": 50,
        "model.batch_size": 128,
        "symmetry.along": (0,),
        "symmetry.num_steps": 600,
        "symmetry.num_elements": 6,
        "fresh_episodes": 0,
        "num_updates": 5000,
        "normalize": True,
        "num_seeds": 1,
        "num_episodes": 100,
    },
    "runlocal": {
        "alpha": 0.4,
        "data.num_episodes": 120,
        "model.hidden": (8,),
        "model.num_epochs": 2,
        "symmetry.num_steps": 2,
        "symmetry.num_elements": 2,
        "methods": ("her", "her_learned", "her_model"),
        "learner.hidden": (8,),
        "num_updates": 8,
        "updates_per_step": 4,
        "num_seeds": 2,
        "num_episodes": 4,
    },
}
"""What each variant changes, by dotted field."""


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or a `variant` of it, one of `VARIANTS`."""
    config = ml_collections.ConfigDict()
    config.task = "offline_rl"
    config.seed = 0
    config.num_runs = 1  # more: whole runs with the seeds that follow, and their table
    config.world = "point_mass"

    # Data
    config.data = ml_collections.ConfigDict()
    config.data.path = ""
    config.data.num_episodes = 200
    config.data.fractions = ml_collections.ConfigDict({"training": 0.5, "validation": 0.1, "calibration": 0.4})

    # Model of the world
    config.model = ml_collections.ConfigDict()
    config.model.hidden = (128, 128)
    config.model.learning_rate = 1e-3
    config.model.num_epochs = 100
    config.model.batch_size = 64
    config.model.patience = 15

    # Test of the symmetry
    config.alpha = 0.05  # over all dimensions of the state

    # Learned translations
    config.symmetry = ml_collections.ConfigDict()
    config.symmetry.declare_domain = True  # whether the arena is declared to be the same beyond the data
    config.symmetry.along = ()  # axes of the translations along which alone it is; () for all directions
    config.symmetry.by_kind = False  # whether it depends on the place only through what is seen of it
    config.symmetry.max_violation = 0.1
    config.symmetry.num_steps = 1500
    config.symmetry.num_elements = 32  # of each transition

    # Policies
    config.methods = (
        "none",
        "s4rl",
        "her",
        "translation",
        "her_translation",
        "her_state_only",
        "her_learned",
        "her_oracle",
        "her_model",
        "full_coverage",
    )
    config.fresh_episodes = 100  # on which learned translations are checked; of a file there are none
    config.her_fraction = 0.8
    config.augment_fraction = 0.8
    config.noise_scale = 0.01  # of s4rl, in standard deviations of the states
    config.rollouts = ml_collections.ConfigDict({"per_row": 0.2, "length": 5})  # of her_model
    config.learner = ml_collections.ConfigDict()
    config.learner.name = "td3_bc"
    config.learner.hidden = (64, 64)
    config.learner.learning_rate = 1e-3
    config.learner.discount = 0.95
    config.normalize = False  # observations; the positions are of order one as they are
    config.batch_size = 256
    config.num_updates = 8000
    config.updates_per_step = 1000  # between two lines of metrics, in one scan
    config.num_seeds = 10
    config.num_episodes = 200  # of each stratum, for every seed

    # Planning on the model, beside the policies: icem_model, icem_symmetrised, icem_true
    config.planners = ()
    config.plan = ml_collections.ConfigDict()
    config.plan.horizon = 12
    config.plan.num_iterations = 3
    config.plan.num_samples = 40  # of the first iteration
    config.plan.worst_fraction = 0.5  # of the members, by whose mean cost plans are ranked
    config.plan.shift = 0.6  # length of the translations that are tested along each axis
    config.plan.num_factors = 6  # verified translations that are composed into one
    config.plan.num_averaged = 2  # elements that a prediction averages
    config.plan.exceptions = 0.3  # transitions that a verified translation may leave unverified
    config.plan.num_episodes = 20  # of each stratum
    if variant and variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}: expected one of {tuple(VARIANTS)} or none.")
    config.update_from_flattened_dict(VARIANTS.get(variant, {}))
    return config
