"""The fields of configs with the task "alignment"."""

from dataclasses import dataclass
from typing import Any, get_args

from edgesafe_jax.adapters import ADAPTERS
from edgesafe_jax.adapters.kind import Option
from edgesafe_jax.corpora import MULTIPLE_CHOICE
from edgesafe_jax.errors import COUNT, COUNT_OR_ALL, Range
from edgesafe_jax.fields.declared import (
    FLAG,
    TEXT,
    TEXT_OR_NOTHING,
    Each,
    Field,
    Fields,
    File,
    Free,
    Name,
    Table,
    check_value,
)
from edgesafe_jax.fields.kinds import ANY_COUNT, MODEL, QUANTIZATION, SIZE, TOKENS, WEIGHT, up_to
from edgesafe_jax.guards.styles import STYLES
from edgesafe_jax.safety.attacks import ATTACKS
from edgesafe_jax.safety.judging import JUDGES
from edgesafe_jax.safety.objectives import OBJECTIVES
from edgesafe_jax.safety.prompts import EVALUATION_SETS, Half
from edgesafe_jax.safety.settings import NORMALIZATIONS, RANGES
from edgesafe_jax.safety.usefulness import USEFULNESS

_ALIGN = {name: allowed for name, allowed in RANGES.items() if name != "num_held_out"}


@dataclass(frozen=True)
class AdapterOption:
    """An option of an adapter, declared where its kind is registered.

    Attributes:
      option: the declaration.
    """

    option: Option

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if isinstance(self.option.default, tuple):
            check_value(name, Each(Range(0, 4096, integer=True) if not self.option.default else TEXT), value)
        self.option.check(name, value)


def alignment_fields() -> Fields:
    """Returns the fields of an alignment, without `task`."""
    return {**MODEL, **_training_fields(), **_adapter_fields(), **_evaluation_fields()}


def _training_fields() -> dict[str, Field]:
    by_objective = "the objective, when the settings are made"
    return {
        "quantization": QUANTIZATION,
        "template_variables": TEXT_OR_NOTHING,
        "chat_template": File("a Jinja template"),
        "guard": TEXT_OR_NOTHING,
        "objective": Name(OBJECTIVES),
        "normalization": Name(NORMALIZATIONS),
        "objective_options": Table(Table(Free(by_objective)), names=OBJECTIVES),
        "refusal": TEXT,
        **_ALIGN,
        "parallel.fsdp": SIZE,
        "parallel.tensor": SIZE,
        "wandb": TEXT_OR_NOTHING,
        "batch_size": SIZE,
        "max_tokens": TOKENS,
        "num_positions": TOKENS,
        "mining.mixture": Table(WEIGHT),
        "data.path": TEXT_OR_NOTHING,
        "data.column": TEXT,
        "data.label_column": TEXT_OR_NOTHING,
        **dict.fromkeys((f"data.num_{kind}" for kind in ("harmful", "sensitive", "plain")), COUNT_OR_ALL),
        "data.num_forms": ANY_COUNT,
        "data.num_everyday": ANY_COUNT,
        "data.forms_per_prompt": COUNT,
        "data.refuse_harmful": FLAG,
        "data.max_prompt_tokens": COUNT_OR_ALL,
        "data.num_held_out": COUNT,
        "data.num_reserved_questions": COUNT,
        "data.mixture": Table(WEIGHT),
    }


def _adapter_fields() -> dict[str, Field]:
    options = {
        f"adapter.{kind}.{name}": AdapterOption(option)
        for kind, entry in ADAPTERS.items()
        for name, option in entry.options.items()
    }
    return {"adapter.kind": TEXT, "adapter.num_parameters": COUNT, **options}


def _evaluation_fields() -> dict[str, Field]:
    return {
        "evaluation.split": Name(get_args(Half)),
        "evaluation.files": TEXT_OR_NOTHING,
        **{f"evaluation.{name}": ANY_COUNT for name in EVALUATION_SETS},
        "evaluation.jailbreak_chars": TOKENS,
        "evaluation.attacks": Table(ANY_COUNT, names=ATTACKS),
        "evaluation.search.num_steps": up_to(100_000),
        "evaluation.search.num_candidates": SIZE,
        "evaluation.usefulness": Table(ANY_COUNT, names=USEFULNESS),
        "evaluation.usefulness_tokens": TOKENS,
        "evaluation.num_reworded": ANY_COUNT,
        "evaluation.rewordings": Each(Name(STYLES)),
        "evaluation.judges": Each(Name(JUDGES)),
        "evaluation.judge": File("the head of a judge, as configs/guard_judge.py stores it"),
        "evaluation.max_tokens": TOKENS,
        "evaluation.multiple_choice": Each(Name(MULTIPLE_CHOICE)),
        "evaluation.num_choices": COUNT_OR_ALL,
        "evaluation.num_kl": ANY_COUNT,
    }
