r"""Measure guards in the ways of saying of makers that they were not trained with.

    pip install 'edgesafe-jax[paraphrases]'
    python -m launch.train --config=configs/guard_unseen.py --workdir=workdirs/guard_unseen

Human-scored answers are said in ways of seven makers: styles, edits and registers of this project, WordNet's synonyms,
and the packages nlpaug, typo and six of conventions of writing. Each maker is left out in turn. Leads (`LEADS` of
`edgesafe_jax.guards.unseen`) are trained on the teacher's answers, chosen on the judge's and looked at on held-out
ones; a curve shows the variability against the number of different ways in training, and a table where flips are.

Cost: mostly the hidden states of some 5,000 texts; the time was not recorded. Expected: the leads have not been
measured on held-out answers yet. One reader has read how many paraphrases of each maker keep the content; see
configs/RESULTS.md, under "Guards".

Variant `:runlocal`: a check of the machinery.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or the variant "runlocal": a check of the machinery on few answers."""
    config = ml_collections.ConfigDict()
    config.task = "guard_unseen"
    config.seed = 0
    config.model = "smollm2-135m-instruct"  # whose hidden states are read
    config.matmul_dtype = "auto"  # auto | float32 | bfloat16: factors of matrix products; sums stay float32
    config.num_train = 56  # answers of the teacher's role
    config.num_chosen = 40  # of the judge's, on which leads are chosen and the stack is fitted
    config.num_test = 100  # held-out answers
    config.train_fraction = 0.6  # of each maker's ways, for a training answer
    config.num_ways = ml_collections.ConfigDict(  # of each maker, for the other answers; WordNet's has one
        {"style": 3, "edit": 2, "register": 3, "nlpaug": 2, "typo": 2, "conventions": 2}
    )
    config.left_out = ("edit/shortened",)  # ways that do not keep the content
    config.canonical = True  # whether canonical forms of the texts are read too
    config.max_words = 60  # of an answer: its first whole sentences
    config.max_response = 192  # tokens of a text that are read
    config.max_prompt = 128  # tokens of a prompt that are read, its last ones
    config.counts = (1, 2, 4, 8, 16, 32)  # ways of the curve
    config.num_draws = 2  # of the ways of the curve
    config.num_readings = (0, 1, 3, 5)  # rewordings of the randomised readings
    config.num_seeds = 5
    config.num_samples = 200  # bootstrap draws
    if variant == "runlocal":
        config.num_train = config.num_chosen = config.num_test = 6
        config.train_fraction = 0.2
        config.counts, config.num_draws, config.num_readings = (1, 2), 1, (0, 1)
        config.num_seeds, config.num_samples = 2, 10
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'runlocal' or none.")
    return config
