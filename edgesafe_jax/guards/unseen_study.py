"""The study of guards in ways of left-out makers: sets, readings that are kept, and the numbers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from edgesafe_jax.corpora import ScoredPair
from edgesafe_jax.errors import lookup
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.canonical import canonical_form
from edgesafe_jax.guards.fitting import hidden_state_features
from edgesafe_jax.guards.heads import GatedHead, fit_head, head_logits
from edgesafe_jax.guards.kept import kept_features
from edgesafe_jax.guards.keywords import fit_keywords
from edgesafe_jax.guards.makers import MAKERS
from edgesafe_jax.guards.paraphrases import ParaphraseSet, SetCounts, Source, excerpt
from edgesafe_jax.guards.planted import rules_under_error
from edgesafe_jax.guards.probe import load_head, packaged_head
from edgesafe_jax.guards.sets import kept_sets, sets_of
from edgesafe_jax.guards.sources import style_source
from edgesafe_jax.guards.styles import EDITS, STYLES
from edgesafe_jax.guards.targets import LOGIT_EPS
from edgesafe_jax.guards.unseen import (
    CANONICAL,
    ENCODER,
    HIDDEN,
    LEADS,
    WORDS,
    Context,
    Members,
    UnseenScores,
    all_members,
    compare_unseen,
    contexts_without,
    flips_by_distance,
    makers_of,
    metrics_by_maker,
    randomised,
    read_members,
    score_unseen,
    unseen_metrics,
    ways_curve,
)
from edgesafe_jax.guards.verdicts import Encode
from edgesafe_jax.guards.wordnet import load_wordnet, wordnet_source
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.progress import ProgressBar

METRICS = {
    "std": "variability",
    "relative": "relative variability",
    "flips": "flips",
    "unsafe_to_safe": "flips to safe",
    "safe_to_unsafe": "flips to unsafe",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "ece": "ECE",
}
"""The metrics that are reported of each lead, and their titles."""

REDUCED = ("std", "relative", "flips", "unsafe_to_safe", "safe_to_unsafe")
"""Metrics whose relative reduction is reported; of the others, the difference."""


@dataclasses.dataclass(frozen=True)
class UnseenSettings:
    """Settings of the study.

    Attributes:
      num_train: answers of the teacher's role that are trained on.
      num_chosen: answers of the judge's role, on which leads are chosen and the stack is fitted.
      num_test: held-out answers.
      train_fraction: fraction of each maker's ways in which a training answer is said.
      num_ways: ways of each maker, by its name, in which the other answers are said.
      left_out: ways, "MAKER/WAY", that do not keep the content.
      canonical: whether canonical forms are read too.
      max_words: longest original, in words.
      max_response: tokens of a text that are read.
      max_prompt: tokens of a prompt that are read, its last ones.
      counts: numbers of ways of the curve.
      num_draws: draws of the ways of the curve.
      num_readings: numbers of rewordings of the randomised readings.
      num_seeds: samples of the training answers.
      num_samples: bootstrap draws.
    """

    num_train: int
    num_chosen: int
    num_test: int
    train_fraction: float
    num_ways: Mapping[str, int]
    left_out: tuple[str, ...]
    canonical: bool
    max_words: int
    max_response: int
    max_prompt: int
    counts: tuple[int, ...]
    num_draws: int
    num_readings: tuple[int, ...]
    num_seeds: int
    num_samples: int


def _sources(num_of: Callable[[str, int], int], wordnet_rates: Sequence[float], variants: int) -> list[Source]:
    ways = {"style": STYLES, "edit": EDITS, **{maker: MAKERS[maker]() for maker in MAKERS}}
    made = [style_source(found, num_styles=num_of(maker, len(found)), name=maker) for maker, found in ways.items()]
    wordnet = load_wordnet()
    return made + [
        wordnet_source(wordnet, rate=rate, seed=number, num_variants=variants)
        for number, rate in enumerate(wordnet_rates)
    ]


def study_sets(
    role: examples.Role, settings: UnseenSettings, *, encode: Encode, folder: str | Path
) -> list[ParaphraseSet]:
    """Makes the sets of a role, or reads them back from a folder.

    Args:
      role: the teacher's answers are trained on, the judge's choose, the held-out ones are measured.
      settings: how many, and in how many ways.
      encode: the sentence encoder of the filter.
      folder: where they are kept, as `ROLE.jsonl`.

    Returns:
      The sets.
    """

    def make(pairs: list[ScoredPair]) -> tuple[list[ParaphraseSet], SetCounts]:
        if role == "teacher":
            sources = _sources(lambda _, num: max(1, round(settings.train_fraction * num)), (0.25, 0.5), 2)
        else:
            sources = _sources(lambda maker, _: settings.num_ways[maker], (0.5,), 1)
        return sets_of(pairs, max_words=settings.max_words, sources=sources, encode=encode)

    num = {"teacher": settings.num_train, "judge": settings.num_chosen, "held_out": settings.num_test}[role]
    return kept_sets(role, num, make, settings=settings, folder=folder)


Reader = Callable[..., dict[str, np.ndarray]]


def make_reader(model: LanguageModel, encode: Encode, settings: UnseenSettings, folder: str | Path) -> Reader:
    """Makes the reader of all readings of `edgesafe_jax.guards.unseen`.

    Words and encoder are fitted on the human-scored answers of the teacher's role.

    Args:
      model: whose hidden states are read.
      encode: the sentence encoder.
      settings: how much is read.
      folder: where hidden states and sentence vectors are kept.

    Returns:
      From prompts and responses to readings by name; with `canonical=True` canonical forms are read too.
    """
    _, about = load_head(packaged_head("teacher"))
    features = hidden_state_features(
        model,
        layers=about["layers"],
        max_response=settings.max_response,
        max_prompt=settings.max_prompt,
        batch_size=16,
    )
    hidden = kept_features(features, Path(folder) / "hidden")
    kept = kept_features(lambda _, texts, name: np.asarray(encode(texts)), Path(folder) / "sentences")

    def sentences(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        x, y = (kept([""] * len(texts), texts, name) for texts in (prompts, responses))
        return np.concatenate([x, y, x * y * np.sqrt(x.shape[1])], axis=1)

    human = examples.human_pairs("teacher")
    scores = np.array([p.score for p in human], np.float64)
    words = fit_keywords([p.response for p in human], np.array(scores >= 0.5, np.float64))
    answers = [excerpt(p.response, settings.max_words) for p in human]
    answered = sentences([p.prompt for p in human], answers, "human")
    encoder = fit_head(answered, scores, l2=0.3)

    def log_odds_of_words(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        probs = np.clip(words(prompts, responses), LOGIT_EPS, 1 - LOGIT_EPS)
        return np.log(probs) - np.log1p(-probs)

    def read(prompts: Sequence[str], responses: Sequence[str], canonical: bool = False) -> dict[str, np.ndarray]:
        forms = {"": list(responses)}
        if canonical:
            forms["canonical_"] = [canonical_form(text) for text in responses]
        found = {}
        for prefix, texts in forms.items():
            found[HIDDEN if not prefix else CANONICAL] = hidden(prompts, texts, "members")
            found[prefix + WORDS] = log_odds_of_words(prompts, texts)[:, None]
            vectors = jnp.asarray(sentences(prompts, texts, "members"))
            found[prefix + ENCODER] = np.asarray(head_logits(encoder, vectors), np.float64)[:, None]
        return found

    return read


def run_unseen(
    settings: UnseenSettings, *, model: LanguageModel, encode: Encode, workdir: str | Path
) -> dict[str, float]:
    """Runs the study.

    Args:
      settings: of the study.
      model: whose hidden states are read.
      encode: the sentence encoder, which also filters the paraphrases.
      workdir: where sets and readings are kept; an interrupted study continues there.

    Returns:
      Numbers by name, with the ends of their intervals.
    """
    workdir = Path(workdir)
    read = make_reader(model, encode, settings, workdir / "readings")
    members = {
        role: read_members(
            study_sets(role, settings, encode=encode, folder=workdir / "sets"),
            # Nothing is trained on canonical forms.
            functools.partial(read, canonical=settings.canonical and role != "teacher"),
            left_out=settings.left_out,
        )
        for role in ("teacher", "judge", "held_out")
    }
    head, _ = load_head(packaged_head("teacher"))
    context = Context(head, members["teacher"], settings.num_seeds)
    contexts = contexts_without(context, makers_of(members["held_out"]))
    values: dict[str, float] = {}
    for split, test in (("judge", None), ("held_out", members["held_out"])):
        values |= _leads(split, contexts, members["judge"], test, settings)
    values |= _seen(context, members, settings.num_samples)
    values |= _curve(context, members["judge"], settings)
    return values | _rules(members["held_out"], head)


def _leads(
    split: str, contexts: Mapping[str, Context], judge: Members, test: Members | None, settings: UnseenSettings
) -> dict[str, float]:
    """All leads on one split against the hidden-state guard as it is, and where that guard flips."""
    untouched = lookup(LEADS, "hidden states", "leads")
    baseline = score_unseen(untouched, contexts, judge, test, raw=True)
    values = _named(f"{split}/before training", baseline, baseline, settings.num_samples)
    leads = {name: lead for name, lead in LEADS.items() if settings.canonical or not name.startswith("canonical")}
    with ProgressBar(f"leads on {split}") as progress:
        for number, (name, lead) in enumerate(leads.items(), 1):
            scores = score_unseen(lead, contexts, judge, test)
            values |= _named(f"{split}/{name}", scores, baseline, settings.num_samples)
            progress(number, len(leads))
    for maker, found in metrics_by_maker(baseline).items():
        values |= {f"{split} by maker/{maker}/{title}": found[name] for name, title in METRICS.items() if name in found}
    for distance, found in flips_by_distance(baseline).items():
        values |= {f"{split} by distance/{distance}/{name}": value for name, value in found.items()}
    members = judge if test is None else test
    head = next(iter(contexts.values())).head
    for count, scores in randomised(members, head, num_readings=settings.num_readings).items():
        found = unseen_metrics(scores.seeds)
        values |= {
            f"{split} randomised readings/{count}/{title}": found[name]
            for name, title in METRICS.items()
            if name in found
        }
    return values


def _named(name: str, scores: UnseenScores, baseline: UnseenScores, num_samples: int) -> dict[str, float]:
    found = compare_unseen(scores, baseline, num_samples=num_samples)
    values: dict[str, float] = {}
    for metric, title in METRICS.items():
        if metric not in found:  # no original has the verdict that it is a fraction of
            continue
        values |= found[metric].named(f"{name}/{title}")
        change, what = ("reduction", "reduction") if metric in REDUCED else ("difference", "change")
        if scores is not baseline and f"{change}/{metric}" in found:
            values |= found[f"{change}/{metric}"].named(f"{name}/{title}, {what}")
    return values


def _seen(context: Context, members: Mapping[str, Members], num_samples: int) -> dict[str, float]:
    """Training on the ways of all makers: the same leads where no maker is left out."""
    contexts = dict.fromkeys(makers_of(members["held_out"]), context)
    baseline = score_unseen(LEADS["hidden states"], contexts, members["judge"], members["held_out"], raw=True)
    values = {}
    for name in ("consistency training", "hybrid, trained"):
        scores = score_unseen(LEADS[name], contexts, members["judge"], members["held_out"])
        values |= _named(f"held_out, seen makers/{name}", scores, baseline, num_samples)
    return values


def _curve(context: Context, test: Members, settings: UnseenSettings) -> dict[str, float]:
    found = ways_curve(context, test, counts=settings.counts, num_draws=settings.num_draws)
    values = {}
    for count, draws in found.items():
        for name in ("std", "relative", "flips", "accuracy"):
            each = [draw[name] for draw in draws]
            title = f"ways in training/{count}/{METRICS[name]}"
            values |= {title: float(np.mean(each)), f"{title}_low": min(each), f"{title}_high": max(each)}
    return values


def _rules(members: Members, head: GatedHead) -> dict[str, float]:
    """The rules on the real sets (a fraction of 0) and under a skewed planted error."""
    rules = ("mean", "median", "max", "skew_quantile", "conservative_gap", "medcouple")
    found = rules_under_error(all_members(members, head), fractions=(0.0, 0.1, 0.2, 0.3, 0.4), rules=rules)
    return {
        f"rules, {fraction} planted/{rule}/{name}": value
        for fraction, by_rule in found.items()
        for rule, row in by_rule.items()
        for name, value in row.items()
    }
