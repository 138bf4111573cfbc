"""The packaged guards that can be tuned, by name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from edgesafe_jax.adapters import LoRA, init_lora, save_adapter
from edgesafe_jax.errors import lookup
from edgesafe_jax.guards.activated import ActivatedScorer, PairReader, load_smolguard, save_guard
from edgesafe_jax.guards.adapted import probe_rows, probe_scorer, verdict_rows, verdict_scorer
from edgesafe_jax.guards.evaluation import Scored, write_scores
from edgesafe_jax.guards.fitting import hidden_state_features, sentence_features
from edgesafe_jax.guards.kept import kept_features
from edgesafe_jax.guards.pairs import Pairs, Scorer
from edgesafe_jax.guards.paraphrases import ParaphraseSet
from edgesafe_jax.guards.probe import load_head, load_hidden_state_guard, packaged_head, save_adapted_guard
from edgesafe_jax.guards.tuning import (
    Groups,
    HeadTunable,
    LoraTunable,
    Tunable,
    TuningSettings,
    early_warmup_cosine,
    tune_guard,
    warmup_cosine,
)
from edgesafe_jax.guards.verdicts import Encode
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.progress import ProgressBar


@dataclasses.dataclass(frozen=True)
class TuningInputs:
    """Inputs of the entries of `TUNABLES`.

    Attributes:
      settings: how it is tuned.
      model: returns the language model; called if the guard needs it.
      encode: the sentence encoder.
      workdir: where features, checkpoints and metrics are kept.
    """

    settings: TuningSettings
    model: Callable[[], LanguageModel]
    encode: Encode
    workdir: Path


def _hidden_states(inputs: TuningInputs) -> Tunable:
    head, about = load_head(packaged_head("teacher"))
    features = hidden_state_features(inputs.model(), layers=about["layers"], max_response=about["max_response"])
    return HeadTunable(inputs.settings, head, about, kept_features(features, inputs.workdir / "features"))


def _encoder(inputs: TuningInputs) -> Tunable:
    head, about = load_head(packaged_head("encoder"))
    features = kept_features(sentence_features(inputs.encode), inputs.workdir / "features")
    return HeadTunable(inputs.settings, head, about, features)


def _smolguard(inputs: TuningInputs) -> Tunable:
    guard = load_smolguard(inputs.model(), inputs.settings.adapter)
    start = guard.adapter
    assert start is not None
    reader = PairReader(guard, start.first_layer)

    def read(prompts: Sequence[str], responses: Sequence[str], name: str, training: bool) -> Pairs:
        del training
        return reader.read_kept(prompts, responses, inputs.workdir / "states", name)

    def save(path: Path, lora: LoRA, training: Mapping[str, Any]) -> None:
        save_guard(path, dataclasses.replace(guard, adapter=lora), training)

    return LoraTunable(
        inputs.settings,
        inputs.settings.verdict,
        ActivatedScorer(),
        reader.upper,
        read,
        lambda seed: start,
        warmup_cosine,
        save,
        inputs.workdir,
        batch_size=16,
    )


def _new_lora(
    inputs: TuningInputs,
    decoder: DecoderConfig,
    scorer: Scorer,
    frozen: Any,
    read: Callable[[Sequence[str], Sequence[str], str, bool], Pairs],
    save: Callable[[Path, LoRA, Mapping[str, Any]], None],
) -> Tunable:
    """A guard with a new LoRA in the layers of its decoder."""
    layers = inputs.settings.layers

    def initial(seed: int) -> LoRA:
        return init_lora(
            jax.random.key(seed), decoder, rank=layers.rank, targets=layers.targets, first_layer=layers.first_layer
        )

    return LoraTunable(
        inputs.settings,
        layers.tuning,
        scorer,
        frozen,
        read,
        initial,
        early_warmup_cosine,
        save,
        inputs.workdir,
        one_length=True,
    )


def _hidden_states_lora(inputs: TuningInputs) -> Tunable:
    guard = load_hidden_state_guard(inputs.model())
    _, about = load_head(packaged_head("teacher"))
    scorer, frozen = probe_scorer(guard)

    def read(prompts: Sequence[str], responses: Sequence[str], name: str, training: bool) -> Pairs:
        del name
        return probe_rows(_cut(guard, inputs) if training else guard, prompts, responses)

    def save(path: Path, lora: LoRA, training: Mapping[str, Any]) -> None:
        save_adapted_guard(path, dataclasses.replace(guard, adapter=lora), {**about, **training})

    return _new_lora(inputs, scorer.decoder.config, scorer, frozen, read, save)


def _smolguard_lora(inputs: TuningInputs) -> Tunable:
    guard = load_smolguard(inputs.model(), inputs.settings.adapter)
    scorer, frozen = verdict_scorer(guard)

    def read(prompts: Sequence[str], responses: Sequence[str], name: str, training: bool) -> Pairs:
        del name
        return verdict_rows(_cut(guard, inputs) if training else guard, prompts, responses)

    def save(path: Path, lora: LoRA, training: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(path, lora, guard.model, training=training)

    return _new_lora(inputs, guard.model.config, scorer, frozen, read, save)


def _cut(guard: Any, inputs: TuningInputs) -> Any:
    """The guard that reads at most as many tokens of a prompt as training does."""
    return dataclasses.replace(guard, max_prompt=min(inputs.settings.layers.max_prompt, guard.max_prompt))


TUNABLES: Mapping[str, Callable[[TuningInputs], Tunable]] = {
    "hidden_states": _hidden_states,
    "encoder": _encoder,
    "smolguard": _smolguard,
    "hidden_states_lora": _hidden_states_lora,
    "smolguard_lora": _smolguard_lora,
}
"""The packaged guards that can be tuned: teacher and judge through their heads, SmolGuard through its adapter, and the
teacher and SmolGuard through a new LoRA in all layers."""

MOVING_TARGETS = ("hidden_states", "encoder")
"""Those of them that take targets from a moving average."""


def tune_guards(
    names: Sequence[str],
    train_sets: Sequence[ParaphraseSet],
    groups: Groups,
    *,
    settings: TuningSettings,
    rule: str,
    ablation: Sequence[str],
    model: Callable[[], LanguageModel],
    encode: Encode,
    workdir: str | Path,
) -> dict[str, dict[str, Scored]]:
    """Tunes packaged guards with every rule and seed, and stores tuned guards and scores.

    Args:
      names: of the guards, in `TUNABLES`.
      train_sets: paraphrase sets that are trained on.
      groups: paraphrase sets that are scored, by group.
      settings: how they are tuned.
      rule: the rule whose guards are stored, as `heads/NAME_SEED.safetensors`.
      ablation: further rules; their guards are scored only.
      model: returns the language model; called if a guard needs it.
      encode: the sentence encoder.
      workdir: where everything is kept; an interrupted run continues there.

    Returns:
      Scores by guard and group; `read_scores` reads them back.

    Raises:
      ConfigError: a name that `TUNABLES` does not have.
    """
    workdir = Path(workdir)
    scores = {}
    for name in names:
        (workdir / name).mkdir(parents=True, exist_ok=True)
        guard = lookup(TUNABLES, name, "guards")(TuningInputs(settings, model, encode, workdir / name))

        def store(chosen: str, seed: int, trained: Any, name: str = name, guard: Tunable = guard) -> None:
            if chosen == rule:
                stored = workdir / "heads" / f"{name}_{seed}.safetensors"
                guard.store(stored, trained, {"rule": chosen, "seed": seed})

        with ProgressBar(f"tuning {name}") as progress:
            scores[name] = tune_guard(
                guard, train_sets, groups, rules=(rule, *ablation), on_tuned=store, on_rule=progress
            )
    write_scores(workdir, scores)
    return scores
