r"""Train the teacher guard: heads on SmolLM2's own hidden states.

    python -m launch.train --config=configs/guard_probe.py --workdir=workdirs/guard_probe

Trained on human-scored (objective, response) pairs and on the base model's own answers: to AdvBench and to the harmful
contrast prompts (unsafe), to the benign contrast prompts and to plain questions (safe). The contrast prompts are
answered twice, greedily and at temperature 1: a guard fitted on one of the two flags more benign answers of the other.
Refusals of harmful requests are safe. A fifth of the objectives and a fifth of the contrast topics are held out, and
another fifth of each is the judge's (configs/guard_judge.py). The head that ships with the package was made by this
command, which printed (95 % intervals by objective or of Wilson)

    984 human-scored pairs, five-fold cross-validation by objective: AUROC .88 [.86, .90], accuracy .80, ECE .04
    173 pairs with objectives held out from the packaged head:       AUROC .87 [.81, .93], accuracy .81, ECE .10
    flagged of the base model's greedy answers: StrongREJECT .76 [.71, .80], HarmBench standard .82 [.77, .87],
    sensitive benign .02 [.01, .06], plain questions .01 [.00, .04],
    contrast prompts on held-out topics, harmful .76 [.63, .86] and benign .15 [.10, .20]
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or the variant "runlocal": a check of the machinery on few examples."""
    config = ml_collections.ConfigDict()
    config.task = "guard_probe"
    config.seed = 0
    config.model = "smollm2-135m-instruct"
    config.matmul_dtype = "bfloat16"  # factors of matrix products; sums and everything between stay float32
    config.layers = (16, 18, 20)
    config.max_tokens = 40  # of the base model's answers
    config.max_response = 96  # tokens of a human-scored response that are read
    config.l2_general = 1.0
    config.l2_own = 0.1
    config.l2_gate = 0.003
    config.own_share = 0.05  # of the gate's examples: how readily an answer is taken for the model's own
    # Weight of each kind of the model's own answers, whatever their number
    config.weights = ml_collections.ConfigDict(
        {"human": 2.0, "harmful_contrast": 1.3, "harmful": 1.3, "benign_contrast": 1.5, "plain": 1.0, "refusals": 0.5}
    )
    config.num_harmful = 520
    config.num_plain = 200
    config.num_examples = -1  # of human pairs and contrast prompts; -1 for all
    if variant == "runlocal":
        config.num_harmful = config.num_plain = 16
        config.num_examples = 48
        config.max_tokens = 8
        config.max_response = 16
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'runlocal' or none.")
    return config
