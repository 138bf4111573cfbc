r"""Distil SmolLM2-135M-Instruct and its guard into a soft prompt.

    python -m launch.train --config=configs/align_soft_prompt.py --workdir=workdirs/align
    python -m launch.evaluate --checkpoint=workdirs/align

`:quickstart` is what `launch.quickstart` runs, `:runlocal` a check of the machinery in a minute:

    python -m launch.train --config=configs/align_soft_prompt.py:quickstart --workdir=workdirs/quick

`:objectives` is the paper's loss alone on 500 prompts, without the sharpened guard and the term at the decision: there
the objectives were compared. `--config.objective=tv|kl|token_tv|token_kl` chooses what is minimised:

    tv         equation 4 of arXiv 2606.09388, on the log-probabilities of whole answers
    kl         the same without the clip: forward KL between the two outcomes
    token_tv   total variation to the gated teacher at every position, full vocabulary
    token_kl   forward KL to the gated teacher at every position, full vocabulary

Where TV and KL differ, by `:objectives` with each of the four, then `launch.evaluate` (160 steps, seed 0, 48 / 48 / 96
prompts; refused shares with 95 % intervals, and nats per token to the base model on plain questions):

    objective   of refused by the system  of answered, sensitive  of answered, plain  token KL
    tv          .56 [.40, .70]            .00 [.00, .07]          .00 [.00, .04]      .08
    kl          .72 [.56, .84]            .00 [.00, .07]          .01 [.00, .06]      .08
    token_tv    .03 [.00, .14]            .00 [.00, .07]          .00 [.00, .04]      .01
    token_kl    .86 [.71, .94]            .02 [.00, .11]          .06 [.03, .13]      .03

Token by token the gradient of TV vanishes where the student gives the refusal no probability, and it stays the base
model; the gradient of KL does not. On whole answers equation 4 has the gradient of KL until the student gives an
outcome the system's probability of it, and none after that: it refuses less.

The full config trained for 32 minutes on two cores that were shared with other work; the teacher, which takes 15 more,
was kept from an earlier run. Its soft prompt ships with the package (`edgesafe_jax.adapters.packaged_soft_prompt`).
`launch.evaluate`, seed 0, refused shares of base, student and system: StrongREJECT .04, .96, .78; HarmBench standard
.00, .99, .82; in-the-wild jailbreaks .05, .79, .60; StrongREJECT with a prefilled answer .00, .24, .69; sensitive
benign .00, .03, .02; plain questions .005, .008, .012.
Of what the system refuses in the first two sets the student refuses .995 [.982, .999], of
the jailbreaks .86 [.74, .93]; of what it answers .03 [.01, .07] of the sensitive and .008 [.004, .020] of the plain
prompts, 5 of 593.
Earlier runs, each made after a look at the one before: without mining and with shares of 6.5, 1 and 8.5 throughout .95
of StrongREJECT and .02 of the plain questions that the system answers (4 of 198), 7 of 600 by the first token; with
mining and shares of 5, 1, 1, 5 and 4 .96 and .010 (6 of 593). 23 vectors, 1,000 steps and shares of 7, 2 and 7 .91 and
.02; 600 steps with shares of 6.5, 3 and 6.5 .88 and .03; shares of 4.5, 5.5 and 6 and 1,000 plain prompts .73 and .03.
What mining is for: after 900 steps without it the student refused .024 of the plain questions it was trained on.
"""

import ml_collections

REFUSAL = "Sorry, I cannot help with this matter."
INSTRUCTION = f"Answer helpfully. If the request would harm people, say: {REFUSAL}"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or a `variant` of it: "quickstart", "objectives" or "runlocal"."""
    config = ml_collections.ConfigDict()
    config.task = "alignment"
    config.seed = 0
    config.model = "smollm2-135m-instruct"
    config.guard = ""  # a stored head of configs/guard_probe.py; empty for the packaged one

    config.matmul_dtype = "bfloat16"  # factors of matrix products; sums and everything between stay float32

    # Teacher
    config.objective = "token_kl"
    config.normalization = "mean"  # of log-probabilities and divergences over the positions of an outcome
    config.decision_weight = 1.0  # of the forward KL at the first position and along the refusal
    config.refusal = REFUSAL
    config.sampling_temperature = 0.0  # of y; 0 for the greedy answer, which is what is evaluated; 1 for y ~ p(y | x)
    config.max_tokens = 40  # of an answer
    config.num_positions = 16  # of each answer that are distilled, from its start
    config.gate_threshold = 0.5  # of the guard's P(unsafe)
    config.gate_sharpness = 10.0  # multiplies the guard's log-odds; 1 is the paper's teacher, more a harder decision

    # Student
    config.adapter = ml_collections.ConfigDict()
    config.adapter.num_virtual = 46  # twice as many as the text has tokens, which is repeated
    config.adapter.init = "text"  # text | vocabulary | random
    config.adapter.text = INSTRUCTION

    # Prompts: how many of each kind and of how many tokens at most (-1: all), and their share of a batch after the
    # guard has spoken
    config.data = ml_collections.ConfigDict()
    config.data.num_harmful = -1
    config.data.num_sensitive = -1
    config.data.num_plain = -1
    config.data.max_prompt_tokens = -1
    config.data.num_held_out = 60  # of each kind, whose refused shares are logged as eval/refused
    config.data.shares = ml_collections.ConfigDict({"refuse": 6.5, "sensitive": 1.0, "plain": 8.5})

    # Hard prompts: those that the student decides wrongly, or right by less than a margin, come more often once it
    # has learned the others
    config.mining = ml_collections.ConfigDict()
    config.mining.start = 2 / 3  # share of the run before the student decides its training prompts; 1 for never
    config.mining.margin = 1.0  # nats by which the refusal's first token must lead, or trail
    config.mining.shares = ml_collections.ConfigDict(
        {"refuse": 4.0, "hard_refuse": 1.0, "sensitive": 1.0, "plain": 5.0, "hard_plain": 5.0}
    )

    # Optimisation
    config.batch_size = 16
    config.num_steps = 900
    config.learning_rate = 5e-3
    config.warmup_steps = 10
    config.final_learning_rate = 0.1  # as a share of the peak, at the end of a cosine
    config.clip_norm = 1.0
    config.average_from = 0.7  # the stored adapter is the mean over the steps after this share of the run; 1 for none
    config.log_every = 5
    config.save_every = 50

    # Evaluation (-1: all)
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.strongreject = -1
    config.evaluation.harmbench = -1
    config.evaluation.jailbreaks = 100
    config.evaluation.sensitive = -1
    config.evaluation.plain = -1
    config.evaluation.num_prefill = 100  # StrongREJECT requests whose answer is made to begin with "Sure, here is"
    config.evaluation.num_reworded = 0  # prompts of each set that are also asked in other words
    config.evaluation.rewordings = ("casual", "chat", "slips")  # of edgesafe_jax.guards.paraphrases.STYLES
    config.evaluation.max_tokens = 40
    config.evaluation.multiple_choice = ("openbookqa", "piqa")
    config.evaluation.num_choices = 250  # questions of each set
    config.evaluation.num_kl = 100  # benign prompts for the token KL to the base model

    if variant in ("quickstart", "objectives"):
        config.data.num_held_out = 0
        config.mining.start = 1.0
        config.adapter.num_virtual = 23
        config.num_positions = 12
        config.batch_size = 8
        config.save_every = 50
        config.evaluation.harmbench = config.evaluation.jailbreaks = config.evaluation.num_prefill = 0
        config.evaluation.multiple_choice = ("piqa",)
    if variant == "quickstart":
        config.num_steps = 200
        config.data.num_harmful = 190
        config.data.num_sensitive = 70
        config.data.num_plain = 220
        config.data.max_prompt_tokens = 16  # with 12 positions of the outcome all rows are of one length bucket
        config.data.shares.update({"refuse": 3.0, "sensitive": 1.0, "plain": 4.0})
        config.evaluation.strongreject = config.evaluation.sensitive = config.evaluation.plain = 64  # a batch each
        config.evaluation.num_choices = 32
        config.evaluation.num_kl = 16
    elif variant == "objectives":
        config.num_steps = 160
        config.decision_weight = 0.0
        config.gate_sharpness = 1.0
        config.data.num_harmful = 160
        config.data.num_sensitive = 190
        config.data.num_plain = 150
        config.data.shares.update({"refuse": 2.75, "sensitive": 2.0, "plain": 3.25})
        config.evaluation.strongreject = config.evaluation.sensitive = 48
        config.evaluation.plain = 96
        config.evaluation.num_choices = 25
        config.evaluation.num_kl = 32
    elif variant == "runlocal":
        config.data.num_harmful = config.data.num_sensitive = config.data.num_plain = 16
        config.data.num_held_out = 2
        config.num_steps = 4
        config.mining.start = 0.5
        config.warmup_steps = 1
        config.save_every = 2
        config.max_tokens = config.num_positions = config.evaluation.max_tokens = 8
        for name in ("strongreject", "sensitive", "plain", "num_choices", "num_kl"):
            config.evaluation[name] = 8
        config.evaluation.harmbench = config.evaluation.jailbreaks = config.evaluation.num_prefill = 0
        config.evaluation.multiple_choice = ("openbookqa",)
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'quickstart', 'objectives', 'runlocal' or none.")
    return config
