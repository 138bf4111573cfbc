"""Paraphrase sets of the human-scored answers: those that are trained on, and by group those that are measured."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgesafe_jax.assets import is_whole
from edgesafe_jax.corpora import ScoredPair
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.paraphrases import (
    ParaphraseSet,
    SetCounts,
    Source,
    excerpt,
    make_sets,
    read_sets,
    select,
    write_sets,
)
from edgesafe_jax.guards.sources import ParaphraseSettings, make_sources
from edgesafe_jax.guards.verdicts import Encode
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.progress import ProgressBar

SET_GROUPS = ("held_out", "unseen_source", "unseen_style", "seen_ways")
"""Paraphrases of held-out answers: the next two together, by an unseen source, in an unseen style, the rest."""


def group_sets(
    sets: Sequence[ParaphraseSet], *, held_out_sources: Sequence[str], held_out_styles: Sequence[str]
) -> dict[str, list[ParaphraseSet]]:
    """Groups the evaluated sets, each with the paraphrases of that group only.

    Sets and groups without any are left out, and a group that repeats one before it: where no source was held out, all
    that is unseen are styles.

    Args:
      sets: of held-out answers.
      held_out_sources: sources that were not trained on.
      held_out_styles: styles that were not trained on.

    Returns:
      Sets by group, see `SET_GROUPS`.
    """
    seen = select(sets, without_sources=held_out_sources, without_styles=held_out_styles)
    chosen = {
        "held_out": [
            dataclasses.replace(whole, paraphrases=tuple(p for p in whole.paraphrases if p not in part.paraphrases))
            for whole, part in zip(sets, seen, strict=True)
        ],
        "unseen_source": select(sets, sources=held_out_sources),
        "unseen_style": select(sets, styles=held_out_styles, without_sources=held_out_sources),
        "seen_ways": seen,
    }
    kept: dict[str, list[ParaphraseSet]] = {}
    for name in SET_GROUPS:
        found = [s for s in chosen[name] if s.paraphrases]
        if found and found not in kept.values():
            kept[name] = found
    return kept


def human_sets(
    role: examples.Role,
    settings: ParaphraseSettings,
    *,
    num: int | None,
    measured: bool,
    encode: Encode,
    model: Callable[[], LanguageModel],
    folder: str | Path,
) -> list[ParaphraseSet]:
    """Makes paraphrase sets of the human-scored answers of a role, or reads them back from a folder.

    Args:
      role: whose answers are paraphrased, see `examples.role_of_objective`.
      settings: how.
      num: how many answers; None for all.
      measured: whether the sets are measured on, see `make_sources`.
      encode: the sentence encoder of the filter.
      model: returns the language model that rewrites; called if a source needs it.
      folder: where the sets are kept, as `ROLE.jsonl` with a sidecar.

    Returns:
      The sets; labels are those of people.

    Raises:
      ConfigError: a source that `SOURCES` does not have.
    """

    def make(pairs: list[ScoredPair]) -> tuple[list[ParaphraseSet], SetCounts]:
        with ProgressBar(f"paraphrasing {len(pairs)} answers ({role})") as progress:
            return sets_of(
                pairs,
                max_words=settings.max_words,
                sources=make_sources(settings, measured=measured, model=model, on_batch=progress),
                encode=encode,
                min_cosine=settings.min_cosine,
                length_ratio=settings.length_ratio,
            )

    return kept_sets(role, num, make, settings=settings, folder=folder)


def sets_of(
    pairs: Sequence[ScoredPair], *, max_words: int, sources: Sequence[Source], encode: Encode | None, **options: Any
) -> tuple[list[ParaphraseSet], SetCounts]:
    """Makes the sets of human-scored answers, labelled by people, with what became of the candidates.

    Args:
      pairs: the answers.
      max_words: longest original, in words.
      sources: of the candidates.
      encode: the sentence encoder of the filter; None for no filter by meaning.
      **options: of the filter, see `make_sets`.
    """
    return make_sets(
        [p.prompt for p in pairs],
        [excerpt(p.response, max_words) for p in pairs],
        sources=sources,
        encode=encode,
        labels=[float(p.score >= 0.5) for p in pairs],
        **options,
    )


def kept_sets(
    role: examples.Role,
    num: int | None,
    make: Callable[[list[ScoredPair]], tuple[list[ParaphraseSet], SetCounts]],
    *,
    settings: Any,
    folder: str | Path,
    name: str = "",
) -> list[ParaphraseSet]:
    """Makes the sets of a role, or reads them back from a folder where they are whole.

    Args:
      role: whose answers are paraphrased.
      num: how many answers; None for all.
      make: from the answers to their sets and what became of the candidates.
      settings: a dataclass, which the sidecar keeps.
      folder: where the sets are kept, as `NAME.jsonl` with a sidecar.
      name: default the role.

    Returns:
      The sets.
    """
    file = Path(folder) / f"{name or role}.jsonl"
    if is_whole(file) and is_whole(file.with_suffix(".json")):
        return read_sets(file)
    sets, counts = make(examples.human_sample(role, num))
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"role": role, "settings": dataclasses.asdict(settings), "filter": counts.total, "ways": counts.ways}
    write_sets(file, sets, about)
    return sets


@dataclasses.dataclass(frozen=True)
class SetChoice:
    """Which answers are trained and measured on.

    Attributes:
      num_train: answers of the teacher's role; None for all.
      num_test: answers that are measured on; None for all.
      test_role: whose they are: "held_out", or "judge" for choosing settings.
      teacher_sets: a JSON-lines file of sets to train on instead; "" for none.
      held_out_sets: likewise to measure on.
    """

    num_train: int | None = None
    num_test: int | None = None
    test_role: examples.Role = "held_out"
    teacher_sets: str = ""
    held_out_sets: str = ""


def consistency_sets(
    choice: SetChoice,
    settings: ParaphraseSettings,
    *,
    encode: Encode,
    model: Callable[[], LanguageModel],
    folder: str | Path,
) -> tuple[list[ParaphraseSet], dict[str, list[ParaphraseSet]]]:
    """Makes the sets of a consistency run.

    Args:
      choice: which answers.
      settings: how they are paraphrased.
      encode: the sentence encoder of the filter.
      model: returns the language model that rewrites; called if a source needs it.
      folder: where the sets are kept.

    Returns:
      The sets that are trained on, without held-out sources and styles; and by group those that are measured.

    Raises:
      ConfigError: no paraphrase has passed the filter.
    """

    def made(role: examples.Role, num: int | None, given: str) -> list[ParaphraseSet]:
        if given:
            return read_sets(given)
        measured = role == choice.test_role
        return human_sets(role, settings, num=num, measured=measured, encode=encode, model=model, folder=folder)

    sources, styles = settings.held_out_sources, settings.held_out_styles
    trained = made("teacher", choice.num_train, choice.teacher_sets)
    trained = [s for s in select(trained, without_sources=sources, without_styles=styles) if s.paraphrases]
    measured = made(choice.test_role, choice.num_test, choice.held_out_sets)
    groups = group_sets(measured, held_out_sources=sources, held_out_styles=styles)
    if not trained or not groups:
        raise ConfigError("No paraphrase has passed the filter: lower config.data.min_cosine.")
    return trained, groups
