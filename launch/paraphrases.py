"""Paraphrase sets of the human-scored pairs, kept in a work directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from edgesafe_jax.corpora import ScoredPair
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.paraphrases import (
    EDITS,
    STYLES,
    Encode,
    ParaphraseSet,
    Source,
    composed_source,
    excerpt,
    llm_source,
    make_sets,
    read_sets,
    style_source,
    write_sets,
)
from edgesafe_jax.guards.wordnet import load_wordnet, wordnet_source
from edgesafe_jax.models.loading import load_model
from edgesafe_jax.reporting.progress import ProgressBar
from launch import errors
from launch.guards import pair_key

SOURCES = ("style", "wordnet", "composed", "edit", "llm")
"""What `config.data.sources` may name; back-translation and others come in as a user's JSONL."""


def _sources(config: Mapping[str, Any], role: examples.Role, progress: ProgressBar) -> list[Source]:
    """The sources of a role: what is held out is made for the answers that are measured on only."""
    data, seed = config["data"], int(config["seed"])
    measured = role == data["test_role"]
    styles = {style: f for style, f in STYLES.items() if style not in data["left_out_styles"]}
    unseen = {style: f for style, f in styles.items() if style in data["held_out_styles"]}
    seen = {style: f for style, f in styles.items() if style not in unseen}
    made: list[Source] = []
    for name in data["sources"]:
        if name not in SOURCES:
            raise errors.ConfigError(f"config.data.sources names {name!r}: expected some of {', '.join(SOURCES)}.")
        if name in data["held_out_sources"] and not measured:
            continue
        if name == "style":
            num_styles = None if int(data["num_styles"]) < 0 else int(data["num_styles"])
            made.append(style_source(seen, num_styles=num_styles, seed=seed))
            if unseen and measured:
                made.append(style_source(unseen))
        elif name == "edit":
            made.append(style_source(EDITS, num_styles=int(data["num_edits"]), seed=seed, name="edit"))
        elif name == "composed":
            made.append(composed_source({**seen, **EDITS}, num_variants=int(data["num_composed"]), seed=seed))
        elif name == "wordnet":
            wordnet = load_wordnet()
            made += [
                wordnet_source(wordnet, share=float(share), seed=seed + number)
                for number, share in enumerate(data["wordnet_shares"])
            ]
        else:
            made.append(
                llm_source(
                    load_model(config["model"]),
                    jax.random.key(seed),
                    max_tokens=int(data["max_tokens"]),
                    on_batch=progress,
                )
            )
    return made


def pairs_of(role: examples.Role, num: int) -> list[ScoredPair]:
    """The human-scored pairs of a role, or the first `num` of them in the order of their hash."""
    pairs = sorted(examples.human_pairs(role), key=lambda p: pair_key(p.prompt, p.response))
    return pairs if num < 0 else pairs[:num]


def paraphrase_sets(
    config: Mapping[str, Any], role: examples.Role, num: int, *, encode: Encode, workdir: Path
) -> list[ParaphraseSet]:
    """Makes the sets of a role, or reads them back from the work directory.

    Args:
      config: of the run; `data`, `model` and `seed` are read.
      role: whose human-scored pairs are paraphrased.
      num: how many pairs; -1 for all.
      encode: the sentence encoder of the filter.
      workdir: the run's directory.

    Returns:
      The sets, their originals cut to `data.max_words` words.
    """
    data = config["data"]
    given = data["held_out_sets" if role == data["test_role"] else "teacher_sets"]
    if given:
        return read_sets(given)
    file = workdir / "sets" / f"{role}.jsonl"
    if file.exists() and file.with_suffix(".json").exists():
        return read_sets(file)
    pairs = pairs_of(role, num)
    originals = [excerpt(p.response, int(data["max_words"])) for p in pairs]
    with ProgressBar(f"paraphrasing {len(pairs)} answers ({role})") as progress:
        sets, counts = make_sets(
            [p.prompt for p in pairs],
            originals,
            sources=_sources(config, role, progress),
            encode=encode,
            labels=[float(p.score >= 0.5) for p in pairs],
            min_cosine=float(data["min_cosine"]),
            length_ratio=(float(data["length_ratio"][0]), float(data["length_ratio"][1])),
        )
    file.parent.mkdir(exist_ok=True)
    write_sets(file, sets, {"role": role, "data": dict(data), "model": config["model"], "filter": counts})
    return sets
