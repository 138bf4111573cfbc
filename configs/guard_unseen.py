r"""Train a guard that stays steady in other words, and measure it in ways of saying of makers that it has not seen.

    pip install 'edgesafe-jax[paraphrases]'
    python -m launch.train --config=configs/guard_unseen.py:guard --workdir=workdirs/steady
    python -m launch.train --config=configs/align_soft_prompt.py --config.guard=workdirs/steady/guard.safetensors ...

Human-scored answers are said in ways of seven makers: styles, edits and registers of this project, WordNet's synonyms,
and the packages nlpaug, typo and six of conventions of writing. The steady guard reads the canonical form of an answer;
its head is the packaged teacher's, trained towards one verdict for each answer and calibrated on the same answers.
Without `:guard` a study follows: each maker is left out in turn, leads (`LEADS` of `edgesafe_jax.guards.unseen`) are
compared on the judge's answers and on held-out ones; curves show the variability against the number of different ways
and of answers in training, and a table where flips are.

Cost: mostly the hidden states of some 8,000 texts, 5,000 of them for the guard alone; the time was not recorded.
Expected, on held-out answers in ways of left-out makers: variability down by 0.32 [0.28, 0.38], relative to the spread
of scores by 0.41 [0.36, 0.46], flips by 0.35 [0.16, 0.55], accuracy and ECE unchanged within their intervals; in ways
of makers that were seen 0.46, 0.52 and 0.53. One reader has read how many paraphrases keep the content. All results are
in configs/RESULTS.md, under "Guards".

Variants: `:guard` trains and stores the guard alone, `:runlocal` is a check of the machinery.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or the variant "guard" (no study), or "runlocal": a check of the machinery."""
    config = ml_collections.ConfigDict()
    config.task = "guard_unseen"
    config.seed = 0
    config.model = "smollm2-135m-instruct"  # whose hidden states are read
    config.matmul_dtype = "auto"  # auto | float32 | bfloat16: factors of matrix products; sums stay float32
    config.num_train = 400  # answers of the teacher's role that are trained on, of 612; -1 for all
    config.num_chosen = 40  # of the judge's, on which leads are chosen and the stack is fitted
    config.num_test = 100  # held-out answers
    config.num_curve = 56  # answers of the teacher's role of the curve over ways
    config.curve_fraction = 0.6  # of each maker's ways, for each of these
    config.num_ways = ml_collections.ConfigDict(  # of each maker, for each of the others; WordNet's has one
        {"style": 3, "edit": 2, "register": 3, "nlpaug": 2, "typo": 2, "conventions": 2}
    )
    config.left_out = ("edit/shortened",)  # ways that do not keep the content
    config.max_words = 60  # of an answer: its first whole sentences
    config.max_response = 192  # tokens of a text that are read
    config.max_prompt = 128  # tokens of a prompt that are read, its last ones
    config.counts = (1, 2, 4, 8, 16, 32)  # ways of the curve over ways
    config.num_answers = (25, 50, 100, 200, 400)  # of the curve over training answers
    config.num_draws = 2  # of the ways, or of the answers
    config.num_readings = (0, 1, 3, 5)  # rewordings of the randomised readings
    config.num_seeds = 5
    config.num_samples = 200  # bootstrap draws
    config.measured = True  # whether the study follows the training of the guard
    if variant == "runlocal":
        config.num_train = config.num_curve = config.num_chosen = config.num_test = 6
        config.curve_fraction = 0.2
        config.counts, config.num_answers, config.num_draws, config.num_readings = (1, 2), (3,), 1, (0, 1)
        config.num_seeds, config.num_samples = 2, 10
    elif variant == "guard":
        config.measured = False
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'guard', 'runlocal' or none.")
    return config
