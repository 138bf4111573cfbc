r"""Train guards to give all paraphrases of an answer one verdict, without labels, and measure whether they do.

    python -m launch.train --config=configs/guard_consistency.py --workdir=workdirs/consistency
    python -m launch.evaluate --checkpoint=workdirs/consistency

Human-scored answers are paraphrased (`data.sources`); the heads of the packaged guards are tuned on frozen features
towards a set-level target (`rule`, of `edgesafe_jax.guards.targets`). One source and one style of paraphrase are never
trained on; what is measured is on answers to held-out objectives. Rules in `ablation` are trained and measured too.
`:smolguard` tunes the LoRA of SmolGuard instead, on the same sets.
`:quickstart` is what `launch.quickstart --only guards` runs, `:runlocal` a check of the machinery.
Measured with these two commands on answers to held-out objectives (before -> after, mean over five seeds):

    hidden_states             std            label flips    unsafe->safe   safe->unsafe   accuracy       ECE
    seen ways, 173 sets       .072 -> .032   .306 -> .097   .386 -> .093   .252 -> .100   .755 -> .782   .097 -> .085
    unseen style, 152 sets    .038 -> .031   .132 -> .076   .203 -> .113   .072 -> .041   .743 -> .768   .127 -> .117
    unseen source, 71 sets    .060 -> .060   .141 -> .175   .240 -> .272   .087 -> .108   .669 -> .707   .217 -> .181

    encoder
    seen ways, 173 sets       .028 -> .023   .197 -> .127   .111 -> .104   .289 -> .155   .556 -> .555   .126 -> .124
    unseen style and source   .033 -> .030   .154 -> .128   .112 -> .119   .205 -> .141   .560 -> .556   .128 -> .126

Rewriting by the language model, the unseen source, does not become steadier: only 71 sets have one that passes the
filter, and a head on frozen features cannot undo what changes the words themselves. The encoder guard is weak on these
excerpts (AUROC .58). Among the rules, "min" loses safety (unsafe->safe flips .376, missed .476 on seen ways), mean and
median miss more unsafe members (.291, .286) than `conservative_gap` (.272), and "max" and "quantile" miss fewer (.215,
.260) but flip more safe answers (.283, .135). `conservative_gap` lowers flips in both directions and misses on held-out
paraphrases; `skew_quantile` and `conservative_gap_logit` do so as well, within the seeds' spread.
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
    """Returns the full config, or the variant "smolguard", "quickstart" or "runlocal"."""
    config = ml_collections.ConfigDict()
    config.task = "guard_consistency"
    config.seed = 0
    config.num_seeds = 5
    config.model = "smollm2-135m-instruct"  # whose hidden states are read, and who rewrites
    config.guards = ("hidden_states", "encoder")
    config.rule = "conservative_gap"
    config.ablation = (*RULES, *(f"{rule}_logit" for rule in RULES))
    config.anchor_weight = 0.3
    config.ema_decay = -1.0  # targets from the starting guard; in [0, 1) from a moving average
    config.learning_rate = 0.03
    config.num_steps = 100
    config.lora = ml_collections.ConfigDict()  # of the guard "smolguard", in the place of the two above
    config.lora.adapter = ""  # a stored adapter; default the packaged one
    config.lora.learning_rate = 3e-4
    config.lora.num_steps = 60
    config.lora.batch_size = 4  # sets
    config.lora.save_every = 20
    config.num_votes = 3  # paraphrases per verdict of the training-free baselines
    config.num_samples = 300  # bootstrap draws
    config.data = ml_collections.ConfigDict()
    config.data.num_train = 240  # answers; -1 for all of the teacher's 612
    config.data.num_test = -1  # of 173
    config.data.max_words = 60  # of an answer: its first whole sentences
    config.data.sources = ("style", "wordnet", "llm")
    config.data.held_out_sources = ("llm",)
    config.data.held_out_styles = ("lecture", "news", "chat")
    config.data.num_styles = 6  # of the other styles, drawn for each answer; -1 for all
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
    elif variant == "smolguard":
        config.guards = ("smolguard",)
        config.ablation = ()
        config.num_seeds = 3
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
        raise ValueError(f"Unknown variant {variant!r}: expected 'quickstart', 'smolguard', 'runlocal' or none.")
    return config
