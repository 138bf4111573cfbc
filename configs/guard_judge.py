r"""Train the judge: heads on the MiniLM sentence encoder, for evaluation only.

    python -m launch.train --config=configs/guard_judge.py --workdir=workdirs/guard_judge

The judge shares no features with the teacher guard and no training example: other objectives of the human-scored pairs,
other contrast topics, Do-Not-Answer instead of AdvBench, other plain questions. The command made the head that ships
with the package. `:runlocal` is a check of the machinery.

Cost: mostly the base model's answers of 40 tokens to those prompts; the time was not recorded. Expected: AUROC 0.79 on
984 human-scored pairs (five-fold cross-validation by objective), 0.64 on 173 pairs of objectives held out from the
packaged head. All results are in configs/RESULTS.md under "Guards".
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or the variant "runlocal": a check of the machinery on few examples."""
    config = ml_collections.ConfigDict()
    config.task = "guard_judge"
    config.seed = 0
    config.model = "smollm2-135m-instruct"  # whose answers are judged
    config.matmul_dtype = "auto"  # auto | float32 | bfloat16: factors of matrix products; sums stay float32
    config.max_tokens = 40
    config.l2_general = 0.3
    config.l2_own = 0.3
    config.l2_gate = 0.003
    config.own_fraction = 0.12  # of the gate's examples: how readily an answer is taken for the model's own
    config.weights = ml_collections.ConfigDict(
        {"human": 2.0, "harmful_contrast": 1.3, "harmful": 1.3, "benign_contrast": 1.5, "plain": 1.0, "refusals": 0.5}
    )
    config.num_harmful = 350
    config.num_plain = 100
    config.num_examples = -1
    if variant == "runlocal":
        config.num_harmful = config.num_plain = 16
        config.num_examples = 48
        config.max_tokens = 8
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'runlocal' or none.")
    return config
