r"""Train guards to give all paraphrases of an answer one verdict, without labels, and measure whether they do.

    python -m launch.train --config=configs/guard_consistency.py --workdir=workdirs/consistency
    python -m launch.evaluate --checkpoint=workdirs/consistency

Human-scored answers are paraphrased (`data.sources`); the heads of the packaged guards are tuned on frozen features
towards a set-level target (`rule`, of `edgesafe_jax.guards.targets`). One source and one style of paraphrase are never
trained on; what is measured is on answers to held-out objectives. Rules in `ablation` are trained and measured too.
`:quickstart` is what `launch.quickstart --only guards` runs, `:runlocal` a check of the machinery.
`--config.data.teacher_sets=FILE.jsonl` and `--config.data.held_out_sets=FILE.jsonl` bring in a user's own sets.
"""

import ml_collections

RULES = (
    "mean",
    "median",
    "min",
    "max",
    "quantile",
    "trimmed_mean",
    "skew_quantile",
    "conservative_gap",
    "medcouple",
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or the variant "quickstart" or "runlocal"."""
    config = ml_collections.ConfigDict()
    config.task = "guard_consistency"
    config.seed = 0
    config.num_seeds = 5
    config.model = "smollm2-135m-instruct"  # whose hidden states are read, and who rewrites
    config.guards = ("hidden_states", "encoder")
    config.max_response = 128  # tokens of an answer that the hidden-state guard reads
    config.rule = "conservative_gap"
    config.ablation = (*RULES, *(f"{rule}_logit" for rule in RULES))
    config.anchor_weight = 0.3
    config.ema_decay = -1.0  # targets from the starting guard; in [0, 1) from a moving average
    config.learning_rate = 0.1
    config.num_steps = 100
    config.num_votes = 3  # paraphrases per verdict of the training-free baselines
    config.num_samples = 300  # bootstrap draws
    config.data = ml_collections.ConfigDict()
    config.data.num_train = 180  # answers; -1 for all of the teacher's 612
    config.data.num_test = -1  # of 173
    config.data.max_words = 60  # of an answer: its first whole sentences
    config.data.sources = ("style", "wordnet", "llm")
    config.data.held_out_sources = ("llm",)
    config.data.held_out_styles = ("lecture",)
    config.data.max_tokens = 96  # of a rewriting by the language model
    config.data.min_cosine = 0.75
    config.data.length_ratio = (0.5, 2.0)
    config.data.teacher_sets = ""
    config.data.held_out_sets = ""
    if variant == "quickstart":
        config.guards = ("encoder",)
        config.ablation = ()
        config.num_seeds = 2
        config.data.sources = ("style",)
        config.data.num_train = 48
        config.data.num_test = 48
    elif variant == "runlocal":
        config.guards = ("encoder",)
        config.ablation = ("mean",)
        config.num_seeds = 2
        config.num_steps = 20
        config.num_samples = 20
        config.data.sources = ("style",)
        config.data.num_train = config.data.num_test = 8
        config.data.max_words = 30
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'quickstart', 'runlocal' or none.")
    return config
