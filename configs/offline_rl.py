r"""Learn how far a translation is a symmetry, augment the data by it, and train policies for goals outside the data.

    python -m launch.train --config=configs/offline_rl.py --workdir=workdirs/offline_rl

`:quickstart` is what `launch.quickstart --only offline_rl` runs, `:runlocal` a check of the machinery, `:walls` the
arena with a wall, `:maze` Gymnasium-Robotics' PointMaze, `:ant` brax's ant:

    python -m launch.train --config=configs/offline_rl.py:walls --workdir=workdirs/offline_rl_walls

`--config.num_runs=10` makes ten whole runs with the seeds from `config.seed` on, each with data, a model, translations,
policies and evaluation episodes of its own, and their table; a finished run is kept, and more can be added.

`--config.world=point_mass|point_mass_walls|pusher|point_maze|ant` chooses the task, `--config.learner.name=td3_bc|iql|
awr|bc` the algorithm; `--config.data.path` reads a Minari directory or an OGBench .npz file instead of generating data
(with states and goals of the chosen world). `methods` are compared:

    none                    the data as they are
    s4rl                    noise on the states
    her                     hindsight goals
    translation             untested translations of state and goal over the whole domain
    her_translation         the same after hindsight relabelling
    her_state_only          the same with the goal left where it was: a false augmentation
    her_learned             hindsight goals, then learned and tested translations
    her_oracle              hindsight goals, then the translations that the true simulator allows
    her_model               hindsight goals on data and rollouts of the model
    full_coverage           data from the whole domain

The open point mass: data of uniform random actions from starts in one corner of the arena, the reward minus the
distance to a goal in that corner, observations in the units of the arena. Success, interquartile mean over ten whole
runs and 95 % bootstrap intervals over runs, by

    python -m launch.train --config=configs/offline_rl.py --config.num_runs=10 --config.num_seeds=1
        --config.methods="('her_learned','her','none')" --workdir=workdirs/offline_rl_runs

    method        in distribution     far goals           far corner          whole arena
    her_learned   1.000 [1.00, 1.00]  1.000 [1.00, 1.00]  1.000 [1.00, 1.00]  1.000 [1.00, 1.00]
    her           1.000 [1.00, 1.00]  0.002 [0.00, 0.07]  0.002 [0.00, 0.14]  0.596 [0.51, 0.73]
    none          0.982 [0.91, 1.00]  0.000 [0.00, 0.01]  0.002 [0.00, 0.01]  0.101 [0.07, 0.13]

about nine minutes of one core. her_learned is 1.00 in every stratum of all ten, which by Wilson's interval says that at
least .72 of such runs are; her reached .21 of the far goals and .69 of the far corner in its best run.

Ten policies on the data, the model and the translations of one seed (`--config.num_seeds=10`, measured before
transformations that leave the declared domain were refused; intervals over training the policy again alone):

    her_learned   1.000 [1.00, 1.00]  1.000 [1.00, 1.00]  1.000 [1.00, 1.00]  1.000 [1.00, 1.00]
    her           1.000 [1.00, 1.00]  0.000 [0.00, 0.00]  0.000 [0.00, 0.00]  0.518 [0.48, 0.58]
    none          0.997 [0.97, 1.00]  0.000 [0.00, 0.00]  0.000 [0.00, 0.01]  0.150 [0.13, 0.17]

The other methods, three policies each on one seed's data, of the same time (`--config.num_seeds=3` and their names):

    method           in distribution       far goals             far corner            whole arena
    her_translation  1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  1.000 [1.000, 1.000]
    her_oracle       1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  1.000 [1.000, 1.000]
    full_coverage    1.000 [1.000, 1.000]  0.388 [0.175, 0.555]  1.000 [1.000, 1.000]  0.945 [0.920, 0.980]
    translation      1.000 [1.000, 1.000]  0.165 [0.010, 0.380]  1.000 [1.000, 1.000]  0.803 [0.775, 0.825]
    her_model        1.000 [1.000, 1.000]  0.045 [0.000, 0.100]  0.028 [0.000, 0.050]  0.643 [0.620, 0.690]
    s4rl             1.000 [1.000, 1.000]  0.003 [0.000, 0.010]  0.003 [0.000, 0.010]  0.130 [0.080, 0.170]
    her_state_only   1.000 [1.000, 1.000]  0.002 [0.000, 0.005]  0.020 [0.000, 0.055]  0.103 [0.100, 0.105]

Untested translations do as well as tested ones: in this world nothing but the bounds breaks the symmetry, so the test
has little to remove.

Why full coverage falls short at far goals: by the goals of its own that a fifth of its rows keep, not by its coverage.
With hindsight goals in all rows (`--config.her_fraction=1`) two policies of a probe both reach 1.00, with .8 of the
rows .74 and .61, with none .00. More data of the kind do no better (.38 and .24 with 800 episodes instead of 200),
longer trajectories, with farther hindsight goals, worse (.02 and .08 with 50 episodes of 200 steps). Untested
translations on top change little with .8 (.35, .65) and have nothing to add with all (1.00, 1.00). It is no matter of
stitching: hindsight goals are at most 1.6 away, far goals 2.2 and more, and a policy that has seen near goals alone
ends within .06 of the far ones in nine of ten episodes.

Of the learned and tested translations .88 [.87, .88] were accepted in those ten runs (.22 [.21, .24] verified in the
support of the data, the others by the declared domain); none of the accepted was wrong in the true world in any run,
neither on its data nor on 100 fresh episodes of each, where .07 of the proposed were. (No episode of 1,000 with a wrong
one: by Wilson's interval at most .004 of the episodes have one.)
Learned translations are fitted to pass the test, among others on the transitions that it was calibrated with, so its
level promises nothing of them: hence the check on fresh episodes. They raise the share of cells visited from .27 to 1.
Without the declaration (`--config.symmetry.declare_domain=False`) nothing beyond the data is accepted, and no such gain
is to be expected.

The arena with a wall that has a gap at one end, data from the whole of it, nothing declared: `:walls` with
`--config.num_seeds=4 --config.methods="('her','her_learned')"`:

    method        left side           right side          across the wall
    her           1.000 [0.97, 1.00]  1.000 [1.00, 1.00]  0.003 [0.00, 0.01]
    her_learned   1.000 [1.00, 1.00]  1.000 [1.00, 1.00]  0.007 [0.00, 0.02]

.67 of the proposed translations were accepted, of which .001 [.001, .010] were wrong (of the proposed .18); on fresh
episodes .70 accepted, .002 [.001, .037] wrong. So translations do no harm beside the wall, where hindsight goals
suffice already, and no good across it: no policy here goes round by the gap.

PointMaze, data of a noisy controller that knows the way, from the whole maze, nothing declared; three whole runs of two
policies each (`:maze` with `--config.num_runs=3 --config.num_seeds=2`; with so few the intervals are the range):

    method           upper arm             lower arm             round the bend        whole maze
    none             1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  0.226 [0.003, 0.615]  0.920 [0.860, 0.978]
    her              1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  0.061 [0.000, 0.182]  0.896 [0.857, 0.948]
    her_translation  1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  0.000 [0.000, 0.000]  0.879 [0.847, 0.930]
    her_learned      1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  0.100 [0.000, 0.258]  0.918 [0.900, 0.950]
    her_oracle       1.000 [1.000, 1.000]  1.000 [1.000, 1.000]  0.006 [0.000, 0.018]  0.882 [0.855, 0.930]

.57 [.49, .70] of the proposed translations were accepted, of which .0004 [.0002, .0006] were wrong (of the proposed
.03), on fresh episodes .57 and .0004 [.0002, .0007]. Tested translations do no harm here and, round the bend, no good
that three runs could tell.

`:ant` is brax's ant, whose place on the plane is part of its state; two policies each (`--config.num_seeds=2`; the
intervals are the range), of 600 random episodes:

    method        in distribution       elsewhere
    none          0.280 [0.240, 0.320]  0.040 [0.000, 0.080]
    her           0.315 [0.270, 0.360]  0.125 [0.120, 0.130]
    her_learned   0.360 [0.310, 0.410]  0.150 [0.120, 0.180]
    her_oracle    0.380 [0.300, 0.460]  0.300 [0.270, 0.330]

All translations are symmetries here and would help; .005 of the proposed are accepted, for the model of the ant is too
poor to tell (configs/dynamics_equivariance.py). No policy walks well on such data.

How hard it is to leave the data depends on what the networks see. With normalised observations
(`--config.normalize=True`) the policy of hindsight goals alone reaches everything in this world (1.0 in all strata, a
probe of two seeds), and so it did in a slower one with data of a controller that goes to its goals. The setting above
was chosen, in such probes, as one in which hindsight goals do not suffice; learning rate and discount were chosen on
this task too. So the numbers show what tested translations add where a policy does not extrapolate by itself, not that
it never does.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or a `variant` of it: "walls", "maze", "ant", "quickstart" or "runlocal"."""
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
    config.model.num_epochs = 100
    config.model.batch_size = 64
    config.model.patience = 15

    # Test of the symmetry
    config.alpha = 0.05  # over all dimensions of the state

    # Learned translations
    config.symmetry = ml_collections.ConfigDict()
    config.symmetry.declare_domain = True  # whether the arena is declared to be the same beyond the data
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
    if variant:
        if variant not in _VARIANTS:
            raise ValueError(f"Unknown variant {variant!r}: expected one of {tuple(_VARIANTS)} or none.")
        _VARIANTS[variant](config)
    return config


def _walls(config: ml_collections.ConfigDict) -> None:
    config.world = "point_mass_walls"
    config.methods = ("none", "her", "her_translation", "her_learned", "her_oracle")
    config.symmetry.declare_domain = False
    config.data.num_episodes = 400
    config.alpha = 0.01  # near a wall a wrong translation costs more


def _maze(config: ml_collections.ConfigDict) -> None:
    config.world = "point_maze"
    config.methods = ("none", "her", "her_translation", "her_learned", "her_oracle")
    config.symmetry.declare_domain = False
    config.data.num_episodes = 300
    config.alpha = 0.01
    config.model.hidden = (128, 128, 128)
    config.model.num_epochs = 80
    config.model.batch_size = 128
    config.symmetry.num_elements = 16
    config.learner.discount = 0.98
    config.num_seeds = 4


def _ant(config: ml_collections.ConfigDict) -> None:
    config.world = "ant"
    config.methods = ("none", "her", "her_learned", "her_oracle")
    config.data.num_episodes = 600
    config.model.hidden = (256, 256)
    config.model.batch_size = 256
    config.learner.hidden = (256, 256)
    config.learner.learning_rate = 3e-4
    config.symmetry.num_elements = 16
    config.num_seeds = 4
    config.num_episodes = 100


def _quickstart(config: ml_collections.ConfigDict) -> None:
    config.model.num_epochs = 60
    config.symmetry.num_steps = 600
    config.symmetry.num_elements = 16
    config.methods = ("none", "her", "her_learned")
    config.num_updates = 6000
    config.num_seeds = 2
    config.num_episodes = 100


def _runlocal(config: ml_collections.ConfigDict) -> None:
    config.alpha = 0.4
    config.data.num_episodes = 120
    config.model.hidden = (8,)
    config.model.num_epochs = config.symmetry.num_steps = config.symmetry.num_elements = 2
    config.methods = ("her", "her_learned", "her_model")
    config.learner.hidden = (8,)
    config.num_updates = 8
    config.updates_per_step = 4
    config.num_seeds = 2
    config.num_episodes = 4


_VARIANTS = {"walls": _walls, "maze": _maze, "ant": _ant, "quickstart": _quickstart, "runlocal": _runlocal}
