"""The fields of the configs of guards, `configs/guard_*.py`."""

from edgesafe_jax.adapters.lora import TARGETS
from edgesafe_jax.errors import COUNT_OR_ALL, FRACTION, POSITIVE, POSITIVE_COUNT, PROBABILITY, ConfigError, Range
from edgesafe_jax.fields.declared import FLAG, TEXT, TEXT_OR_NOTHING, AnyOf, Each, Field, Fields, File, Name
from edgesafe_jax.fields.kinds import MODEL, QUANTIZATION, SIZE, TOKENS, WEIGHT, up_to
from edgesafe_jax.guards.examples import GuardRole
from edgesafe_jax.guards.makers import MAKERS
from edgesafe_jax.guards.sources import SOURCES
from edgesafe_jax.guards.styles import STYLES
from edgesafe_jax.guards.targets import RULES
from edgesafe_jax.guards.tunables import TUNABLES
from edgesafe_jax.models.loading import LanguageModel

_KINDS = ("human", "harmful_contrast", "harmful", "benign_contrast", "plain", "refusals")
_WEIGHTS: Fields = {f"weights.{kind}": WEIGHT for kind in _KINDS}
_PENALTY = Range(0, 1e6, above=True, expected="above 0, and at most 1e6")
_LAYERS = up_to(4096)
_RANK = up_to(4096)
_LAYER_OR_DEPTH = AnyOf(
    (Range(0, 1, above=True), _LAYERS),
    "a fraction of the depth, above 0 and at most 1, or a whole number of layers from 1",
)


def check_first_layer(name: str, first_layer: int, model: LanguageModel) -> None:
    """Raises `ConfigError` for a first layer, counted from 0, that a model does not have.

    Args:
      name: of the field.
      first_layer: its value.
      model: the model.
    """
    last = model.config.num_layers - 1
    if first_layer > last:
        raise ConfigError(f"{name}={first_layer}: expected at most {last}, the last layer of {model.name}.")


def head_fields(role: GuardRole) -> Fields:
    """Returns the fields of a head guard, without `task`.

    Args:
      role: "teacher" for a guard of hidden states, "judge" for one that may read another model or sentence embeddings.
    """
    fields: dict[str, Field] = {
        **MODEL,
        "max_tokens": TOKENS,
        **dict.fromkeys(("l2_general", "l2_own", "l2_gate"), _PENALTY),
        "own_fraction": PROBABILITY,
        **_WEIGHTS,
        "num_harmful": POSITIVE_COUNT,
        "num_plain": POSITIVE_COUNT,
        **dict.fromkeys(("num_examples", "num_measured"), COUNT_OR_ALL),
        "layers": Each(_LAYER_OR_DEPTH, least=1),
        "max_response": TOKENS,
    }
    return fields | ({"quantization": QUANTIZATION} if role == "teacher" else {"reads": TEXT_OR_NOTHING})


def _lora(prefix: str) -> dict[str, Field]:
    """The fields of `LoraTuning`."""
    return {
        f"{prefix}.learning_rate": POSITIVE,
        **dict.fromkeys((f"{prefix}.num_steps", f"{prefix}.save_every"), POSITIVE_COUNT),
        f"{prefix}.batch_size": SIZE,
    }


def consistency_fields() -> Fields:
    """Returns the fields of a consistency run, without `task`."""
    count = Range(0, 10_000, integer=True)
    return {
        **MODEL,
        "num_seeds": up_to(10_000),
        "guards": Each(Name(TUNABLES), least=1),
        "rule": Name(RULES),
        "ablation": Each(Name(RULES)),
        "anchor_weight": Range(0, 1e6),
        "ema_decay": Range(0, 1, below=True, also=(-1,), expected="below 1 and not negative, or -1 for fixed targets"),
        "learning_rate": POSITIVE,
        "num_steps": POSITIVE_COUNT,
        "lora.adapter": File("a stored adapter"),
        **_lora("lora"),
        **_lora("backbone"),
        "backbone.rank": _RANK,
        "backbone.first_layer": Range(0, 4096, integer=True),
        "backbone.targets": Each(Name(TARGETS), least=1),
        "backbone.num_members": SIZE,
        "backbone.max_prompt": TOKENS,
        "num_votes": up_to(10_000),
        "num_samples": up_to(10_000_000),
        "data.num_train": COUNT_OR_ALL,
        "data.num_test": COUNT_OR_ALL,
        "data.test_role": Name(("held_out", "judge")),
        "data.max_words": TOKENS,
        "data.sources": Each(Name(SOURCES), least=1),
        "data.held_out_sources": Each(Name(SOURCES)),
        "data.held_out_styles": Each(Name(STYLES)),
        "data.left_out_styles": Each(Name(STYLES)),
        "data.num_styles": COUNT_OR_ALL,
        "data.num_ways": COUNT_OR_ALL,
        "data.num_edits": count,
        "data.num_composed": count,
        "data.wordnet_rates": Each(FRACTION),
        "data.max_tokens": TOKENS,
        "data.min_cosine": Range(-1, 1),
        "data.length_ratio": Each(POSITIVE, least=2, most=2),
        "data.teacher_sets": File("sets of paraphrases as JSON lines"),
        "data.held_out_sets": File("sets of paraphrases as JSON lines"),
    }


def unseen_fields() -> Fields:
    """Returns the fields of the study of ways of left-out makers, without `task`."""
    makers = ("style", "edit", *MAKERS)
    return {
        **MODEL,
        "num_train": COUNT_OR_ALL,
        **dict.fromkeys(("num_curve", "num_chosen", "num_test"), Range(2, 10_000, integer=True)),
        "curve_fraction": Range(0, 1, above=True),
        **dict.fromkeys((f"num_ways.{maker}" for maker in makers), POSITIVE_COUNT),
        "left_out": Each(TEXT),
        "measured": FLAG,
        **dict.fromkeys(("max_words", "max_response", "max_prompt"), TOKENS),
        **dict.fromkeys(("counts", "num_answers"), Each(POSITIVE_COUNT, least=1)),
        "num_readings": Each(Range(0, 10_000, integer=True), least=1),
        **dict.fromkeys(("num_draws", "num_seeds"), up_to(10_000)),
        "num_samples": up_to(10_000_000),
    }


def smolguard_fields() -> Fields:
    """Returns the fields of a training of SmolGuard, without `task`."""
    return {
        **MODEL,
        **dict.fromkeys(("max_prompt", "max_response"), TOKENS),
        "first_layer": _LAYERS,
        "rank": _RANK,
        "targets": Each(Name(TARGETS), least=1),
        "learning_rate": POSITIVE,
        "num_epochs": Range(0, 1e6, above=True, expected="above 0, and at most 1e6"),
        "batch_size": SIZE,
        **dict.fromkeys(("eval_every", "save_every", "log_every"), POSITIVE_COUNT),
        **dict.fromkeys(("data.num_human", "data.num_contrast", "data.num_harmful"), COUNT_OR_ALL),
        "data.harmful_pool": POSITIVE_COUNT,
        "data.max_tokens": TOKENS,
        **{f"data.{name}": field for name, field in _WEIGHTS.items()},
        **dict.fromkeys(("evaluation.num_human", "evaluation.num_prompts"), COUNT_OR_ALL),
        "evaluation.num_questions": COUNT_OR_ALL,
    }
