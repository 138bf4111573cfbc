"""Typed readers of the prompt, guard and usefulness data that `assets` provides.

Every reader returns a list in a fixed order. Some sets are for training, others for evaluation only:

=====================  ======  ==============================================================
reader                 rows    use
=====================  ======  ==============================================================
`advbench`                520  harmful requests, training
`do_not_answer`           939  harmful and delicate requests in five classes, training
`matched_pairs`           300  150 harmful requests, each with a benign one of the same form
`questions`             3,569  plain questions (NQ-open), training and held out
`human_scored`          1,547  (prompt, response) pairs scored by people, for guards
`strongreject`            313  harmful requests, evaluation
`harmbench`               400  harmful behaviours, evaluation
`jailbreaks`              666  in-the-wild jailbreak texts, evaluation
`sensitive_benign`        150  benign questions about delicate topics, evaluation
`borderline`              150  requests that are neither clearly harmful nor benign
`multiple_choice`      11,258  six usefulness sets with labelled options, evaluation
=====================  ======  ==============================================================

`forms` has prompts of other forms (indirect wordings, questions about how something was done, yes-or-no questions),
`readers` reads further data sets from files in their public formats, and `take_half` divides a set by the hash of its
texts into a half for choices and a half for a final table.

Some evaluation sets were built from training sets; `remove_overlap` takes the shared prompts out of
the training side. A new set is a reader and an entry of `PROMPT_SETS` or `MULTIPLE_CHOICE`.
"""

from edgesafe_jax.corpora.choices import MULTIPLE_CHOICE, ChoiceSet, multiple_choice
from edgesafe_jax.corpora.halves import Half, half_of, take_half
from edgesafe_jax.corpora.jailbreaking import fill_template, jailbreak_prompts, jailbreak_templates
from edgesafe_jax.corpora.overlap import normalise, remove_overlap
from edgesafe_jax.corpora.prompts import (
    DO_NOT_ANSWER_CLASSES,
    PROMPT_SETS,
    HarmBenchKind,
    HarmBenchSplit,
    advbench,
    borderline,
    do_not_answer,
    harmbench,
    jailbreaks,
    matched_answers,
    matched_pairs,
    questions,
    read_prompts,
    sensitive_benign,
    strongreject,
)
from edgesafe_jax.corpora.readers import READERS, Reader, Records, read_file, read_files
from edgesafe_jax.corpora.records import (
    Choice,
    CorpusError,
    Instructed,
    Label,
    MissingCorpusError,
    Problem,
    Prompt,
    ScoredPair,
)
from edgesafe_jax.corpora.scored import ScoredKind, human_scored

__all__ = [
    "DO_NOT_ANSWER_CLASSES",
    "MULTIPLE_CHOICE",
    "PROMPT_SETS",
    "READERS",
    "Choice",
    "ChoiceSet",
    "CorpusError",
    "Half",
    "HarmBenchKind",
    "HarmBenchSplit",
    "Instructed",
    "Label",
    "MissingCorpusError",
    "Problem",
    "Prompt",
    "Reader",
    "Records",
    "ScoredKind",
    "ScoredPair",
    "advbench",
    "borderline",
    "do_not_answer",
    "fill_template",
    "half_of",
    "harmbench",
    "human_scored",
    "jailbreak_prompts",
    "jailbreak_templates",
    "jailbreaks",
    "matched_answers",
    "matched_pairs",
    "multiple_choice",
    "normalise",
    "questions",
    "read_file",
    "read_files",
    "read_prompts",
    "remove_overlap",
    "sensitive_benign",
    "strongreject",
    "take_half",
]
