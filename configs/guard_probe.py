r"""Train the teacher guard: heads on SmolLM2's own hidden states.

    python -m launch.train --config=configs/guard_probe.py --workdir=workdirs/guard_probe

The training pairs are human-scored (objective, response) pairs and the base model's own answers: to AdvBench and to the
harmful contrast prompts (unsafe), to the benign contrast prompts and to plain questions (safe). The contrast prompts
are answered twice, greedily and at temperature 1: a guard fitted on one of the two flags more benign answers of the
other. Refusals of harmful requests are safe. A fifth of the objectives and a fifth of the contrast topics are held
out, and another fifth of each belongs to the judge (configs/guard_judge.py). The command made the head that ships with
the package. `:runlocal` is a check of the machinery.

Cost: mostly the base model's answers of 40 tokens to the prompts above; the time was not recorded. Expected: AUROC 0.88
[0.86, 0.90] on 984 human-scored pairs (five-fold cross-validation by objective), 0.87 [0.81, 0.93] on 173 pairs of
objectives held out from the packaged head; 0.76 of the base model's answers to StrongREJECT flagged, 0.02 of those to
sensitive benign prompts. All results are in configs/RESULTS.md under "Guards".
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or the variant "runlocal": a check of the machinery on few examples."""
    config = ml_collections.ConfigDict()
    config.task = "guard_probe"
    config.seed = 0
    config.model = "smollm2-135m-instruct"
    config.quantization = ""  # "keep": matrices of a GGUF file as they are; "ggml": inputs rounded too; "int8"
    config.matmul_dtype = "auto"  # auto | float32 | bfloat16: factors of matrix products; sums stay float32
    config.layers = (0.53, 0.6, 0.67)  # fractions of the model's depth, or whole numbers of layers from 1
    config.max_tokens = 40  # of the base model's answers
    config.max_response = 96  # tokens of a human-scored response that are read
    config.l2_general = 1.0
    config.l2_own = 0.1
    config.l2_gate = 0.003
    config.own_fraction = 0.05  # of the gate's examples: how readily an answer is taken for the model's own
    # Weight of each kind of the model's own answers, whatever their number
    config.weights = ml_collections.ConfigDict(
        {"human": 2.0, "harmful_contrast": 1.3, "harmful": 1.3, "benign_contrast": 1.5, "plain": 1.0, "refusals": 0.5}
    )
    config.num_harmful = 520
    config.num_plain = 200
    config.num_examples = -1  # of human pairs and contrast prompts; -1 for all
    config.num_measured = -1  # prompts of each set whose answers are judged in the end; -1 for all
    if variant == "runlocal":
        config.num_harmful = config.num_plain = 16
        config.num_examples = 48
        config.max_tokens = 8
        config.max_response = 16
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'runlocal' or none.")
    return config
