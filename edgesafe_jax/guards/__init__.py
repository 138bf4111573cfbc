"""Guards, the paraphrases that they are tested with, and their training.

A guard is a callable from prompts and responses to P(unsafe) of the responses (`Guard`); any such callable can be used.

* `load_hidden_state_guard(model)`: the packaged teacher, a head on the model's own hidden states; with a path one of
  your own, such as the guard of `configs/guard_unseen.py` that stays steady in other words;
* `LanguageModelGuard(model, FORMATS["llama-guard-3"])`: a public guard with its own prompt format;
* `load_judge(load_sentence_encoder().encode, model=model)`: the packaged judge, fitted on other examples;
* `load_smolguard(model)`, `load_encoder_guard(load_sentence_encoder().encode)`, `fit_keywords(...)`: further ones.

`make_sets` paraphrases answers, `score_sets` and `robustness.robustness` measure how steady verdicts are over them,
`tune_guard` trains a guard (a `Tunable`) towards one verdict for each set, chosen by a rule of `RULES`. The packaged
guards that can be tuned are `TUNABLES`; teacher and judge are fitted by `edgesafe_jax.guards.fitting`, SmolGuard by
`edgesafe_jax.guards.smolguard`.
"""

from edgesafe_jax.guards.activated import load_smolguard
from edgesafe_jax.guards.keywords import KeywordGuard, fit_keywords, refusal_keywords
from edgesafe_jax.guards.makers import MAKERS, MakerError
from edgesafe_jax.guards.paraphrases import (
    Paraphrase,
    ParaphraseError,
    ParaphraseSet,
    make_sets,
    read_sets,
    select,
    write_sets,
)
from edgesafe_jax.guards.probe import (
    EncoderGuard,
    GuardFileError,
    HiddenStateGuard,
    load_encoder_guard,
    load_hidden_state_guard,
    load_judge,
    load_sentence_encoder,
)
from edgesafe_jax.guards.registry import FORMATS, Field, GuardFormat, TemplateError
from edgesafe_jax.guards.robustness import SetScores, score_sets
from edgesafe_jax.guards.scoring import LanguageModelGuard, Verdicts
from edgesafe_jax.guards.sources import SOURCES, batched_source, composed_source, llm_source, style_source
from edgesafe_jax.guards.styles import EDITS, STYLES
from edgesafe_jax.guards.targets import RULES, TargetError, set_target
from edgesafe_jax.guards.tunables import TUNABLES
from edgesafe_jax.guards.tuning import Tunable, tune_guard
from edgesafe_jax.guards.verdicts import Guard, GuardError, checked, judged_once

__all__ = [
    "EDITS",
    "FORMATS",
    "MAKERS",
    "RULES",
    "SOURCES",
    "STYLES",
    "TUNABLES",
    "EncoderGuard",
    "Field",
    "Guard",
    "GuardError",
    "GuardFileError",
    "GuardFormat",
    "HiddenStateGuard",
    "KeywordGuard",
    "LanguageModelGuard",
    "MakerError",
    "Paraphrase",
    "ParaphraseError",
    "ParaphraseSet",
    "SetScores",
    "TargetError",
    "TemplateError",
    "Tunable",
    "Verdicts",
    "batched_source",
    "checked",
    "composed_source",
    "fit_keywords",
    "judged_once",
    "llm_source",
    "load_encoder_guard",
    "load_hidden_state_guard",
    "load_judge",
    "load_sentence_encoder",
    "load_smolguard",
    "make_sets",
    "read_sets",
    "refusal_keywords",
    "score_sets",
    "select",
    "set_target",
    "style_source",
    "tune_guard",
    "write_sets",
]
