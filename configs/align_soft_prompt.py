r"""Distil SmolLM2-135M-Instruct and its guard into a soft prompt.

    python -m launch.train --config=configs/align_soft_prompt.py --workdir=workdirs/align
    python -m launch.evaluate --checkpoint=workdirs/align

Cost: 15 minutes for the teacher's answers and 32 of training on two cores. Expected: of StrongREJECT the student
refuses 0.96 [0.93, 0.98] (base model 0.04), of plain questions 0.008 [0.004, 0.019] (base model 0.005). The result
ships with the package (`edgesafe_jax.adapters.packaged_soft_prompt`).

`config.objective` is one of

    tv         equation 4 of arXiv 2606.09388, on the log-probabilities of whole answers
    kl         the same without the clip: forward KL between the two outcomes
    token_tv   total variation to the gated teacher at every position, full vocabulary
    token_kl   forward KL to the gated teacher at every position, full vocabulary; also token_reverse_kl, token_js,
               token_skew_kl and token_skew_reverse_kl
    gkd        a divergence along answers that the student samples
    refusal_perplexity, dpo, reinforce, ppo   direct objectives, without the teacher's distribution

Our additions to the paper, each optional: a term at the decision between answer and refusal
(`--config.decision_weight=0` removes it), a sharpened guard (`--config.gate_sharpness=1`), greedy answers of the
teacher (`--config.sampling_temperature=1` samples them) and mining of hard prompts (`--config.mining.start=1`).

`--config.evaluation.split=final` measures on the half of the prompts that no choice was made on: once, at the end.

Variants: `:quickstart` is what `launch.quickstart` runs (6 minutes), `:objectives` the paper's loss alone on 500
prompts, `:gated` a soft prompt behind a gate, trained on more forms of requests and to turn back within answers (it
refuses all of StrongREJECT behind "Sure, here is", and 0.32 of sensitive benign prompts), `:runlocal` a check of the
machinery in a minute. All results are in configs/RESULTS.md under "Safe language models".
"""

import ml_collections

REFUSAL = "Sorry, I cannot help with this matter."
INSTRUCTION = f"Answer helpfully. If the request would harm people, say: {REFUSAL}"

FORMS = {
    "matched_harmful": -1,
    "matched_benign": -1,
    "indirect_harmful": -1,
    "indirect_benign": -1,
    "past_harmful": -1,
    "past_benign": 100,
    "yes_no": 200,
}
"""Prompts of other forms than a plain question or request: how many of each; all of them have a final half."""

ATTACKS = {
    "prefill": 100,  # the answer is made to begin with "Sure, here is"
    "prefill_1": 0,  # with the first token of the bare model's harmful answer, and so on
    "prefill_5": 0,
    "prefill_10": 0,
    "templates": 0,
    "rewordings": 0,
    "two_turns": 0,
    "long_context": 0,
    "gcg": 0,
}
"""Attacks: how many harmful requests each is made of."""

_NO_FORMS = {f"evaluation.{name}": 0 for name in FORMS}
_SMALL = {
    **_NO_FORMS,
    "data.num_held_out": 0,
    "mining.start": 1.0,
    "adapter.soft_prompt.num_virtual": 23,
    "num_positions": 12,
    "batch_size": 8,
    "save_every": 50,
    "evaluation.harmbench": 0,
    "evaluation.jailbreaks": 0,
    "evaluation.attacks.prefill": 0,
    "evaluation.multiple_choice": ("piqa",),
}
VARIANTS = {
    "quickstart": {
        **_SMALL,
        "num_steps": 200,
        "data.num_harmful": 190,
        "data.num_sensitive": 70,
        "data.num_plain": 220,
        "data.max_prompt_tokens": 16,  # with 12 positions of the outcome all rows are of one length bucket
        "data.mixture.refuse": 3.0,
        "data.mixture.sensitive": 1.0,
        "data.mixture.plain": 4.0,
        "evaluation.strongreject": 64,  # a batch
        "evaluation.sensitive": 32,
        "evaluation.attacks.prefill": 32,
        "evaluation.plain": 64,
        "evaluation.num_choices": 32,
        "evaluation.num_kl": 16,
    },
    "gated": {
        "adapter.kind": "gate+soft_prompt",
        "adapter.soft_prompt.num_virtual": 23,
        "adapter.gate.layer": 16,
        "adapter.gate.penalty": 0.02,
        "adapter.gate.recall": 0.98,
        "recovery": 0.5,
        "data.mixture.refuse": 4.0,  # of the rows of prompts on which the gate opens
        "data.mixture.sensitive": 3.0,
        "data.mixture.plain": 1.0,
        "data.num_forms": 200,
        "data.num_everyday": -1,
        "data.forms_per_prompt": 3,
        "data.num_sensitive": -1,
        "data.num_plain": 700,
        "data.num_held_out": 0,
        "data.max_prompt_tokens": 48,
        "mining.start": 1.0,
        "num_positions": 12,
        "batch_size": 8,
        "num_steps": 400,
    },
    "objectives": {
        **_SMALL,
        "num_steps": 160,
        "decision_weight": 0.0,
        "gate_sharpness": 1.0,
        "data.num_harmful": 160,
        "data.num_sensitive": 190,
        "data.num_plain": 150,
        "data.mixture.refuse": 2.75,
        "data.mixture.sensitive": 2.0,
        "data.mixture.plain": 3.25,
        "evaluation.strongreject": 48,
        "evaluation.sensitive": 48,
        "evaluation.plain": 96,
        "evaluation.num_choices": 25,
        "evaluation.num_kl": 32,
    },
    "runlocal": {
        **_NO_FORMS,
        "data.num_harmful": 16,
        "data.num_sensitive": 16,
        "data.num_plain": 16,
        "data.num_held_out": 2,
        "num_steps": 4,
        "mining.start": 0.5,
        "warmup_steps": 1,
        "save_every": 2,
        "max_tokens": 8,
        "num_positions": 8,
        "evaluation.max_tokens": 8,
        "evaluation.strongreject": 8,
        "evaluation.sensitive": 8,
        "evaluation.plain": 8,
        "evaluation.num_choices": 8,
        "evaluation.num_kl": 8,
        "evaluation.harmbench": 0,
        "evaluation.jailbreaks": 0,
        "evaluation.attacks.prefill": 0,
        "evaluation.multiple_choice": ("openbookqa",),
    },
}
"""What each variant changes, by dotted field."""


def _adapter() -> ml_collections.ConfigDict:
    """Returns the kind of the student's adapter and the options of every kind; only those of the kind are read."""
    adapter = ml_collections.ConfigDict()
    adapter.kind = "soft_prompt"  # soft_prompt | prefix | lora | steering, or several by +, such as gate+lora
    adapter.num_parameters = 0  # above 0: rank, layers and virtual positions with nearest to so many, instead of these
    adapter.soft_prompt = ml_collections.ConfigDict()
    adapter.soft_prompt.num_virtual = 46  # twice as many as the text has tokens, which is repeated
    adapter.soft_prompt.init = "text"  # text | vocabulary | random
    adapter.soft_prompt.text = INSTRUCTION
    adapter.soft_prompt.placement = "before_chat_template"  # or after_bos | system | before_answer
    adapter.prefix = ml_collections.ConfigDict()
    adapter.prefix.num_virtual = 23
    adapter.prefix.init = "text"  # text | vocabulary | random
    adapter.prefix.text = INSTRUCTION
    adapter.lora = ml_collections.ConfigDict()
    adapter.lora.rank = 8
    adapter.lora.alpha = 8.0  # the factors' product is multiplied by alpha / rank
    adapter.lora.targets = ("attention/query", "attention/value")
    adapter.lora.first_layer = 0  # layers below stay as they are
    adapter.steering = ml_collections.ConfigDict()
    adapter.steering.layers = ()  # counted from 0; none for the middle one
    adapter.steering.init = "zeros"  # zeros | contrastive: mean difference of what the teacher refuses or not
    adapter.steering.contrast = 1.0  # factor of that difference
    adapter.gate = ml_collections.ConfigDict()
    adapter.gate.layer = -1  # whose hidden state decides, counted from 0; -1 for the one at two thirds of the depth
    adapter.gate.width = 0  # of its hidden layer; 0 for a linear gate
    adapter.gate.penalty = 1e-3  # factor of the squared weights
    adapter.gate.recall = 0.98  # fraction of what the teacher refuses on which it shall open
    return adapter


def _data() -> ml_collections.ConfigDict:
    """Returns the training prompts: how many of each kind and of how many tokens at most (-1: all)."""
    data = ml_collections.ConfigDict()
    data.path = ""  # JSON lines of one's own prompts, which replace the packaged ones and their mixtures
    data.column = "prompt"  # of the text, or of a chat: a list of messages with role and content
    data.label_column = ""  # of labels, whose answered prompts share a batch evenly; empty for one group
    data.num_harmful = -1
    data.num_sensitive = -1
    data.num_plain = -1
    data.num_forms = 0  # of each kind, which are there once more in another form, such as a question
    data.num_everyday = 0  # questions about everyday acts, among the plain prompts
    data.forms_per_prompt = 0  # other forms of each, which a gate is fitted on with the prompt's own verdict
    data.refuse_harmful = False  # whether the teacher refuses requests labelled harmful whatever the answer
    data.max_prompt_tokens = -1
    data.num_held_out = 60  # of each kind, whose refusal rates are logged as eval/refused
    data.num_reserved_questions = 1000  # of NQ-open, kept out of training
    # Rows of a batch, in any unit, after the guard has spoken
    data.mixture = ml_collections.ConfigDict({"refuse": 6.5, "sensitive": 1.0, "plain": 8.5})
    return data


def _objective_options() -> ml_collections.ConfigDict:
    """Options by objective; only those of `config.objective` are used."""
    return ml_collections.ConfigDict(
        {
            "token_reverse_kl": {"floor": 0.001},  # of the uniform distribution, mixed into the teacher
            "token_js": {"mixture": 0.5},  # weight of the teacher
            "token_skew_kl": {"skew": 0.1},
            "token_skew_reverse_kl": {"skew": 0.1},
            "gkd": {"on_policy": 0.5, "divergence": "jensen_shannon", "mixture": 0.5},
            "dpo": {"beta": 0.1},
            "reinforce": {"reference_kl": 0.0, "samples_per_prompt": 2},
            "ppo": {
                "clip": 0.2,
                "reference_kl": 0.0,  # cost of a nat of KL to the base model; a safe answer is worth 1
                "discount": 1.0,
                "decay": 0.95,
                "updates_per_sample": 4,
                "value_learning_rate": 3e-4,
            },
        }
    )


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or a `variant` of it: "quickstart", "objectives" or "runlocal"."""
    config = ml_collections.ConfigDict()
    config.task = "alignment"
    config.seed = 0
    config.model = "smollm2-135m-instruct"
    config.quantization = ""  # "keep": matrices of a GGUF file as they are; "ggml": inputs rounded too; "int8"
    config.template_variables = ""  # of the chat template, as JSON, such as {"enable_thinking": false}
    config.chat_template = ""  # a file with a Jinja template; empty for the model's own
    config.guard = (
        ""  # a head of configs/guard_probe.py | FORMAT:MODEL of a public guard | MODULE:FUNCTION; or packaged
    )

    config.matmul_dtype = "auto"  # auto | float32 | bfloat16: factors of matrix products; sums stay float32

    # Teacher
    config.objective = "token_kl"
    config.normalization = "mean"  # of log-probabilities and divergences over the positions of an outcome
    config.decision_weight = 1.0  # of the forward KL at the first position and along the refusal; distillation only
    config.kl_to_base = 0.0  # weight of the KL to the base model along benign answers, beside any objective
    config.recovery = 0.0  # fraction of rows whose answer has begun: refusals with the base model's unsafe one
    config.objective_options = _objective_options()
    config.refusal = REFUSAL
    config.sampling_temperature = 0.0  # of y; 0 for the greedy answer, which is what is evaluated; 1 for y ~ p(y | x)
    config.max_tokens = 40  # of an answer
    config.num_positions = 16  # of each answer that are distilled, from its start
    config.gate_threshold = 0.5  # of the guard's P(unsafe)
    config.gate_sharpness = 10.0  # multiplies the guard's log-odds; 1 is the paper's teacher, more a harder decision

    # Student
    config.adapter = _adapter()

    config.data = _data()

    # Hard prompts: those that the student decides wrongly, or right by less than a margin, come more often once it
    # has learned the others
    config.mining = ml_collections.ConfigDict()
    config.mining.start = 2 / 3  # fraction of the run before the student decides its training prompts; 1 for never
    config.mining.margin = 1.0  # nats by which the refusal's first token must lead, or trail
    config.mining.mixture = ml_collections.ConfigDict(
        {"refuse": 4.0, "hard_refuse": 1.0, "sensitive": 1.0, "plain": 5.0, "hard_plain": 5.0}
    )

    # Optimisation
    config.batch_size = 16
    config.num_steps = 900
    config.learning_rate = 5e-3
    config.warmup_steps = 10
    config.final_learning_rate = 0.1  # as a fraction of the peak, at the end of a cosine
    config.clip_norm = 1.0
    config.average_from = 0.7  # the adapter that is stored is the mean over the steps after this fraction of the run
    config.parallel = ml_collections.ConfigDict({"fsdp": 1, "tensor": 1})  # devices that share one copy of the model
    config.wandb = ""  # project of Weights & Biases that metrics are logged to, with the extra `wandb`; empty for none
    config.log_every = 5
    config.save_every = 50

    # Evaluation (-1: all)
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.split = "selection"  # selection | final: the half that no choice was made on, for a last table
    config.evaluation.files = ""  # NAME=PATH,...: data sets in their public formats, names in corpora.READERS
    config.evaluation.strongreject = -1
    config.evaluation.harmbench = -1
    config.evaluation.jailbreaks = 100
    config.evaluation.jailbreak_chars = 1000  # longest prompt of these
    config.evaluation.sensitive = -1
    config.evaluation.plain = -1
    config.evaluation.update(FORMS)
    config.evaluation.attacks = ml_collections.ConfigDict(ATTACKS)
    config.evaluation.search = ml_collections.ConfigDict({"num_steps": 20, "num_candidates": 32})  # of gcg, a request
    config.evaluation.usefulness = ml_collections.ConfigDict({"instructions": 0, "gsm8k": 0, "perplexity": 0})  # items
    config.evaluation.usefulness_tokens = 128  # longest answer in these
    config.evaluation.num_reworded = 0  # prompts of each set that are also asked in other words
    config.evaluation.rewordings = ("casual", "chat", "slips")  # of edgesafe_jax.guards.styles.STYLES
    config.evaluation.judges = ("refused", "refused_by_meaning", "teacher", "judge")
    config.evaluation.judge = ""  # a head of configs/guard_judge.py; empty for the packaged one
    config.evaluation.max_tokens = 40
    config.evaluation.multiple_choice = ("openbookqa", "piqa")
    config.evaluation.num_choices = 250  # questions of each set
    config.evaluation.num_kl = 100  # benign prompts for the token KL to the base model
    if variant and variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}: expected one of {tuple(VARIANTS)} or none.")
    config.update_from_flattened_dict(VARIANTS.get(variant, {}))
    return config
