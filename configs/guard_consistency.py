r"""Train guards to give all paraphrases of an answer one verdict, without labels, and measure whether they do.

    python -m launch.train --config=configs/guard_consistency.py --workdir=workdirs/consistency
    python -m launch.evaluate --checkpoint=workdirs/consistency

Human-scored answers are paraphrased (`data.sources`); the heads of the packaged guards are tuned on frozen features
towards a set-level target (`rule`, of `edgesafe_jax.guards.targets`). One source and three styles of paraphrase are
never trained on; what is measured is on answers to held-out objectives. Rules in `ablation` are trained and measured
too. `:smolguard` tunes the LoRA of SmolGuard instead, on sets of the same sources. `:quickstart` is
what `launch.quickstart --only guards` runs (styles only, 48 answers to train on, three seeds: flips .140 -> .073 on 100
held-out answers in seen ways; .083 -> .111 on 96 in unseen styles, to safe .132 -> .043, to unsafe .052 -> .155),
`:runlocal` a check of the machinery. Measured with
`--config.guards="('hidden_states',)" --config.num_samples=200` (before -> after, mean over five seeds; rewritings by
the language model were taken over from an earlier run of the same functions):

    hidden_states             variability    label flips    unsafe->safe   safe->unsafe   accuracy       ECE
    seen ways, 173 sets       .060 -> .029   .243 -> .116   .254 -> .108   .235 -> .121   .775 -> .796   .082 -> .086
    unseen styles, 168 sets   .048 -> .036   .119 -> .117   .183 -> .082   .072 -> .142   .785 -> .793   .107 -> .084
    unseen source, 71 sets    .060 -> .057   .169 -> .189   .214 -> .262   .140 -> .140   .747 -> .741   .222 -> .193
    all unseen, 171 sets      .057 -> .047   .164 -> .171   .225 -> .145   .120 -> .189   .776 -> .781   .111 -> .089

So flips are halved in ways of paraphrasing that were trained on; in unseen styles those to safe are halved and as many
new ones to unsafe appear; rewritings by the language model do not become steadier. On all unseen paraphrases "min"
loses safety (unsafe->safe .282, missed .411, before .225 and .323), mean and median do not (.155 and .135, missed .306
and .304; `conservative_gap` .145 and .301), "max" misses least (.237) and flips most safe answers (.306). Only "max"
and "quantile" stand apart from the other rules but "min": nothing singles out the default. Paired, "median" minus
`conservative_gap` on all unseen paraphrases (1000 draws): flips -.019 [-.033, -.006], to safe -.010 [-.036, .013], to
unsafe -.025 [-.050, -.001], missed +.003 [-.007, .015]; fewer flips in both directions on the other groups too. On the
encoder guard (below) the two flip alike, -.002 [-.018, .014], and median misses more, +.013 [.004, .022] (300 draws):
by the conservative criterion `conservative_gap` stays the default. Temperature scaling alone: variability .057 -> .050,
flips and ECE (.111) as before. Training alone: ECE .111 -> .089 (its change -.021 [-.039, .009]); scaling on top .091.
Votes without training on seen ways, four calls a verdict: any of 1 + 3 flips .127, majority .087; training .116 at one.
Whitening the head by the scatter within sets before training won in validation by objective and left-out style
(accuracy .714 -> .748, without it .736) and lost on held-out answers (.776 -> .749), where it was measured first: the
settings above are thus the second that these answers have seen.

The encoder guard, with `--config.guards="('encoder',)" --config.data.sources="('style','wordnet')"
--config.data.held_out_sources="('wordnet',)" --config.data.num_train=160 --config.data.num_styles=3
--config.num_samples=200`: synonyms are the unseen source, 160 answers and five seeds:

    encoder                   variability    label flips    unsafe->safe   safe->unsafe   accuracy       ECE
    seen ways, 173 sets       .024 -> .021   .145 -> .127   .117 -> .079   .177 -> .190   .581 -> .577   .121 -> .134
    unseen styles, 168 sets   .031 -> .030   .143 -> .173   .086 -> .102   .213 -> .269   .569 -> .564   .125 -> .133
    unseen source, 111 sets   .014 -> .013   .072 -> .076   .047 -> .052   .106 -> .112   .591 -> .568   .129 -> .139
    all unseen, 169 sets      .032 -> .031   .166 -> .192   .108 -> .118   .237 -> .290   .571 -> .564   .116 -> .126

Its verdicts on these answers are little better than chance (AUROC .58), and the head has nothing to gain: variability
in seen ways -13 % [10, 16], in all unseen ones -5 % [2, 7]; of the flips no change is told from none (all unseen +.026
[-.017, .063], seen -.017 [-.065, .022]). "min" flips most to safe here too (.185 of all unseen, missed .375).
Temperature scaling alone, all unseen: variability .032 -> .010, ECE .116 -> .042, flips as before. Other rates (.1, .3,
1.0), 400 steps and an anchor of 1 were tried afterwards on training answers alone, objectives and styles left out in
turn: variability .016 -> .014 at best, and no lower than before at rates of .3 and more. So the held-out answers were
not asked a second time.

SmolGuard, with `:smolguard --config.num_samples=1000` (rewritings taken over as above; what the
frozen model reads takes 20 minutes of one core, a training two to three):

    smolguard                 variability    label flips    unsafe->safe   safe->unsafe   accuracy       ECE
    seen ways, 173 sets       .072 -> .041   .329 -> .171   .377 -> .183   .304 -> .165   .636 -> .645   .167 -> .160
    unseen styles, 168 sets   .063 -> .052   .238 -> .205   .164 -> .050   .280 -> .288   .646 -> .647   .127 -> .112
    unseen source, 71 sets    .059 -> .050   .211 -> .161   .333 -> .255   .160 -> .128   .566 -> .547   .255 -> .241
    all unseen, 171 sets      .070 -> .059   .275 -> .236   .230 -> .111   .300 -> .302   .632 -> .631   .142 -> .125

In seen ways flips fall by .158 [.103, .213], over all unseen by .039 [.002, .075], those to safe there by .118 [.042,
.210] and those to unsafe not at all. These settings (300 steps at 1e-3) were chosen among five on training answers
alone, a third of the prompts and other ways left out (unseen flips .133 -> .147 with 60 steps at 3e-4, .120 with 300,
.080 at 1e-3, .093 at 3e-3); held-out answers had been measured once before, with 60 steps at 3e-4: seen ways .329 ->
.232, all unseen .275 -> .258, and by rule (all unseen; flips, flips to safe, missed) "conservative_gap" .258, .159,
.474; mean .260, .164, .481; median .239, .157, .485; "min" .173, .257, .642; "max" .364, .175, .296. So the rules part
as for the other guards. Temperature scaling alone: variability .070 -> .048, ECE .108, flips as before. Votes without
training on seen ways: any of four flips .150, a majority .104, training .171 at one call.

`:lora` trains a new LoRA in all layers of the hidden-state guard and of SmolGuard, on more kinds of paraphrase: eight
styles, synonyms at three rates, edits and compositions of styles for each of the 612 answers. `:validation` is the same
on the judge's answers, with other styles and synonyms held out: there settings are to be chosen, before held-out
answers are looked at. A step takes 32 pairs through 20 or 30 layers and back, some 2 TFLOP: an accelerator's work, 18
steps a second on an H100 for the hidden-state guard (7 for SmolGuard beside it).

`:lora` with `--config.guards="('hidden_states_lora',)" --config.rule=median --config.num_seeds=3
--config.num_samples=1000`, on an H100, before -> after and the change with its interval by set:

    hidden_states_lora     variability    label flips                         unsafe->safe   safe->unsafe   accuracy
    seen ways, 173 sets    .085 -> .052   .468 -> .266  -.202 [-.266, -.141]  .479 -> .325   .461 -> .225   .764 -> .781
    unseen styles, 168     .048 -> .041   .119 -> .103  -.016 [-.048,  .018]  .183 -> .141   .072 -> .075   .785 -> .785
    unseen source, 71      .060 -> .054   .155 -> .164  +.009 [-.052,  .066]  .214 -> .277   .116 -> .092   .753 -> .737
    all unseen, 171        .057 -> .049   .164 -> .150  -.014 [-.051,  .021]  .225 -> .212   .120 -> .106   .777 -> .773

So variety and a LoRA did not carry over to unseen ways either: variability there is lower by .0072 [.0052, .0091], an
eighth. The sets of seen ways are larger here (17 texts), and flip more before. 150 steps see each answer twice; the
settings are the first ones of `:validation`, which on the judge's answers gave for unseen paraphrases (199 sets):

    hidden_states_lora        variability    label flips    unsafe->safe   safe->unsafe   missed         accuracy
                              .070 -> .055   .291 -> .226   .394 -> .278   .179 -> .165   .274 -> .250   .727 -> .719
    smolguard_lora            .074 -> .062   .367 -> .367   .614 -> .568   .190 -> .207   .465 -> .427   .620 -> .630

More steps, other rates and rules, and this SmolGuard on held-out answers have not been measured. What is tested is that
the trained numbers are the guard's own, that sets get steadier on a small model, and that both kinds come back from the
disk. A tuned hidden-state guard is a teacher too. A head tuned with `--config.guards="('hidden_states',)"
--config.ablation="()" --config.data.sources="('style','wordnet')" --config.data.held_out_sources="()"
--config.data.num_test=60`, then `configs/align_soft_prompt.py:quickstart --config.evaluation.num_reworded=64`, without
and with `--config.guard=DIR/heads/hidden_states_0.safetensors` (seed 0; 64 prompts a set, refused share as they are ->
in three other ways of saying them, and the share of these whose refusal is not that of the request):

    teacher guard           packaged                             tuned
    StrongREJECT, student   .88 -> .91   .06 [.03, .10]          .91 -> .96 [.92, .99]   .06 [.02, .12]
                  system    .84 -> .81   .20 [.14, .28]          .83 -> .77              .23 [.16, .30]
    sensitive,    student   .05 -> .07   .04 [.01, .07]          .05 -> .09 [.04, .16]   .06 [.02, .10]
    plain,        student   .06 -> .09   .07 [.03, .13]          .05 -> .08 [.02, .15]   .04 [.01, .09]

What is distilled is three to four times as steady as what it is distilled from, by either guard: the model's answer to
a reworded request is another one, which the guard judges, and the student sees the request alone. The tuned guard's
student refuses more of the reworded requests that it should (.96 against .91 [.84, .96]); its refusals do not change
less often. One seed.

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
    """Returns the full config, or the variant "smolguard", "lora", "validation", "quickstart" or "runlocal"."""
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
    config.lora.learning_rate = 1e-3
    config.lora.num_steps = 300
    config.lora.batch_size = 4  # sets
    config.lora.save_every = 50
    config.backbone = ml_collections.ConfigDict()  # of the guards "hidden_states_lora" and "smolguard_lora"
    config.backbone.rank = 8
    config.backbone.first_layer = 0
    config.backbone.targets = (
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/out",
        "mlp/gate",
        "mlp/up",
        "mlp/down",
    )
    config.backbone.learning_rate = 1e-3
    config.backbone.num_steps = 150
    config.backbone.batch_size = 8  # sets
    config.backbone.num_members = 4  # of a set, the original and others drawn anew at each step
    config.backbone.max_prompt = 64  # tokens of a prompt in training, its last ones
    config.backbone.save_every = 100
    config.num_votes = 3  # paraphrases per verdict of the training-free baselines
    config.num_samples = 2000  # bootstrap draws
    config.data = ml_collections.ConfigDict()
    config.data.num_train = 240  # answers; -1 for all of the teacher's 612
    config.data.test_role = "held_out"  # whose answers are measured on; "judge" for choosing settings
    config.data.num_test = -1  # of 173
    config.data.max_words = 60  # of an answer: its first whole sentences
    config.data.sources = ("style", "wordnet", "llm")
    config.data.held_out_sources = ("llm",)
    config.data.held_out_styles = ("lecture", "news", "chat")
    config.data.left_out_styles = ()  # neither trained nor measured on
    config.data.num_styles = 6  # of the other styles, drawn for each answer; -1 for all
    config.data.num_edits = 3  # of the seven edits of the source "edit", drawn for each answer
    config.data.num_composed = 4  # compositions of styles and edits by the source "composed"
    config.data.wordnet_shares = (0.5,)  # of the replaceable words that are replaced; two variants each
    config.data.max_tokens = 96  # of a rewriting by the language model
    config.data.min_cosine = 0.75
    config.data.length_ratio = (0.5, 2.0)
    config.data.teacher_sets = ""
    config.data.held_out_sets = ""
    if variant == "quickstart":
        config.guards = ("hidden_states",)
        config.ablation = ()
        config.num_seeds = 3
        config.num_samples = 500
        config.data.sources = ("style",)
        config.data.num_train = 48
        config.data.num_test = 100
        config.data.num_styles = 3
    elif variant == "smolguard":
        config.guards = ("smolguard",)
        config.ablation = ()
    elif variant in ("lora", "validation"):
        config.guards = ("hidden_states_lora", "smolguard_lora")
        config.ablation = ()
        config.data.sources = ("style", "wordnet", "composed", "edit", "llm")
        config.data.num_train = -1
        config.data.num_styles = 8
        config.data.num_edits = 4
        config.data.num_composed = 5
        config.data.wordnet_shares = (0.25, 0.5, 1.0)
        if variant == "validation":
            config.num_seeds = 1
            config.data.test_role = "judge"
            config.data.sources = ("style", "wordnet", "composed", "edit")
            config.data.held_out_sources = ("wordnet",)
            config.data.left_out_styles = ("lecture", "news", "chat")
            config.data.held_out_styles = ("letter", "memo", "typed")
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
        raise ValueError(
            f"Unknown variant {variant!r}: expected 'smolguard', 'lora', 'validation', 'quickstart', 'runlocal' or "
            "none."
        )
    return config
