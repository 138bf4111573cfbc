"""A language model with a guard behind it, distilled into an adapter that needs no guard.

Alfarra et al., "Distilling Safe LLM Systems via Soft Prompts for On Device Settings", arXiv 2606.09388.

`align` does all of it with a user's own model, guard, prompts and adapter. From a step of the training to the gradient
of its loss, in the order of the calls:

1. `safety/training.py`: the loop, the step, the mean over the batch (`make_step`, `make_loss`);
2. `safety/teacher.py`: the rows of a batch, and the model along them (`TeacherBatch`, `outcome_hidden`);
3. `safety/objectives`: the loss of each row (`OBJECTIVES`, `Outcomes`);
4. `losses/fused.py`: divergences from hidden states, in chunks (`linear_divergence`);
5. `losses/divergences.py`: the divergences and their gradients (`forward_kl`, `total_variation`).

`launch.train --config=configs/align_soft_prompt.py` calls the first through `launch/alignment.py`. An objective is one
class and one entry of `OBJECTIVES`, a judge one entry of `JUDGES`, an evaluation set one entry of `EVALUATION_SETS`, an
attack one file and one entry of `ATTACKS`, a measure of usefulness one file and one entry of `USEFULNESS`.
"""

from edgesafe_jax.safety.attacks import ATTACKS, Attack, Attempt, SearchBudget
from edgesafe_jax.safety.comparison import compare, read_values
from edgesafe_jax.safety.evaluation import (
    Evaluation,
    EvaluationSettings,
    costs,
    evaluate,
    evaluate_attack,
    evaluate_set,
    multiple_choice,
)
from edgesafe_jax.safety.judging import JUDGES, Judge, make_judges
from edgesafe_jax.safety.objectives import OBJECTIVES, Needs, Objective, Outcomes
from edgesafe_jax.safety.prompts import EVALUATION_SETS, evaluation_prompts, training_prompts
from edgesafe_jax.safety.settings import AlignSettings, MiningSettings
from edgesafe_jax.safety.system import REFUSAL, SafeSystem, SequenceTeacher, sharpened
from edgesafe_jax.safety.training import Aligned, align
from edgesafe_jax.safety.usefulness import USEFULNESS, Measure

__all__ = [
    "ATTACKS",
    "EVALUATION_SETS",
    "JUDGES",
    "OBJECTIVES",
    "REFUSAL",
    "USEFULNESS",
    "AlignSettings",
    "Aligned",
    "Attack",
    "Attempt",
    "Evaluation",
    "EvaluationSettings",
    "Judge",
    "Measure",
    "MiningSettings",
    "Needs",
    "Objective",
    "Outcomes",
    "SafeSystem",
    "SearchBudget",
    "SequenceTeacher",
    "align",
    "compare",
    "costs",
    "evaluate",
    "evaluate_attack",
    "evaluate_set",
    "evaluation_prompts",
    "make_judges",
    "multiple_choice",
    "read_values",
    "sharpened",
    "training_prompts",
]
