r"""Train the judge: a head on hidden states of a language model, for evaluation only.

    python -m launch.train --config=configs/guard_judge.py --workdir=workdirs/guard_judge
    python -m launch.evaluate --checkpoint=DIR --set=judge=workdirs/guard_judge/judge.safetensors

No training example is the teacher guard's: other objectives of the human-scored pairs, other contrast topics,
Do-Not-Answer instead of AdvBench, other plain questions. What is read was chosen by five-fold cross-validation on the
judge's own 199 human-scored pairs, nothing on the held-out ones.

The head reads the guarded model's own hidden states, in the layers that the teacher reads, mean over the answer alone.
Variants: `:gemma` reads those of Gemma 3 270M (opt-in: whoever uses it accepts the Gemma Terms of Use), `:encoder` the
vectors of the MiniLM sentence encoder, neither of which has a feature in common with the teacher; `:runlocal` is a
check of the machinery.

Cost: the base model's 1,230 answers of 40 tokens and the hidden states of 1,700 pairs; the time was not recorded.
Expected: AUROC 0.87 [0.81, 0.92] on 173 human-scored pairs of held-out objectives, `:gemma` 0.82 [0.76, 0.88], the head
of `:encoder` 0.64. All results are in configs/RESULTS.md under "Guards".
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the full config, or a `variant` of it: "gemma", "encoder" or "runlocal"."""
    config = ml_collections.ConfigDict()
    config.task = "guard_judge"
    config.seed = 0
    config.model = "smollm2-135m-instruct"  # whose answers are judged
    config.reads = "smollm2-135m-instruct"  # whose hidden states are read; empty for the sentence encoder
    config.layers = (0.53, 0.6, 0.67)  # of these: fractions of the depth, or whole numbers of layers from 1
    config.max_response = 96  # tokens of a human-scored response that are read
    config.matmul_dtype = "auto"  # auto | float32 | bfloat16: factors of matrix products; sums stay float32
    config.max_tokens = 40
    config.l2_general = 0.3
    config.l2_own = 0.1
    config.l2_gate = 0.003
    config.own_fraction = 0.05  # of the gate's examples: how readily an answer is taken for the model's own
    config.weights = ml_collections.ConfigDict(
        {"human": 2.0, "harmful_contrast": 1.3, "harmful": 1.3, "benign_contrast": 1.5, "plain": 1.0, "refusals": 0.5}
    )
    config.num_harmful = 120
    config.num_plain = 200
    config.num_examples = -1
    config.num_measured = 64  # prompts of each set whose answers are judged in the end; -1 for all
    if variant == "gemma":
        config.reads = "gemma-3-270m"
        config.layers = (13,)
    elif variant == "encoder":
        config.reads = ""
        config.own_fraction = 0.12
        config.l2_own = 0.3
        config.num_harmful = 350
        config.num_plain = 100
    elif variant == "runlocal":
        config.num_harmful = config.num_plain = 16
        config.num_examples = 48
        config.max_tokens = 8
        config.max_response = 16
    elif variant:
        raise ValueError(f"Unknown variant {variant!r}: expected 'gemma', 'encoder', 'runlocal' or none.")
    return config
