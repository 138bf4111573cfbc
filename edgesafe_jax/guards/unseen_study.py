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
from edgesafe_jax.guards.canonical import judged_form
from edgesafe_jax.guards.evaluation import human_metrics
from edgesafe_jax.guards.fitting import hidden_state_about, hidden_state_features
from edgesafe_jax.guards.heads import GatedHead, Head, fit_head, head_logits
from edgesafe_jax.guards.kept import kept_features
from edgesafe_jax.guards.keywords import KeywordGuard, fit_keywords
from edgesafe_jax.guards.makers import MAKERS
from edgesafe_jax.guards.paraphrases import ParaphraseSet, SetCounts, Source, excerpt
from edgesafe_jax.guards.planted import rules_under_error
from edgesafe_jax.guards.probe import load_hidden_state_guard, save_head
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
    answers_curve,
    compare_unseen,
    contexts_without,
    flips_by_distance,
    makers_of,
    metrics_by_maker,
    randomised,
    read_members,
    score_unseen,
    steady_guard,
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
      num_train: answers of the teacher's role that are trained on, as many as there are for None.
      num_chosen: answers of the judge's role, on which leads are chosen and the stack is fitted.
      num_test: held-out answers.
      num_ways: ways of each maker, by its name, in which each of these answers is said.
      num_curve: answers of the teacher's role of the curve over ways.
      curve_fraction: fraction of each maker's ways in which each of those is said.
      left_out: ways, "MAKER/WAY", that do not keep the content.
      max_words: longest original, in words.
      max_response: tokens of a text that are read.
      max_prompt: tokens of a prompt that are read, its last ones.
      counts: numbers of ways of the curve over ways.
      num_answers: numbers of answers of the curve over training answers.
      num_draws: draws of the ways, or of the answers.
      num_readings: numbers of rewordings of the randomised readings.
      num_seeds: samples of the training answers.
      num_samples: bootstrap draws.
      measured: whether the study follows the training of the guard.
    """

    num_train: int | None
    num_chosen: int
    num_test: int
    num_ways: Mapping[str, int]
    num_curve: int
    curve_fraction: float
    left_out: tuple[str, ...]
    max_words: int
    max_response: int
    max_prompt: int
    counts: tuple[int, ...]
    num_answers: tuple[int, ...]
    num_draws: int
    num_readings: tuple[int, ...]
    num_seeds: int
    num_samples: int
    measured: bool = True


def _sources(num_of: Callable[[str, int], int], wordnet_rates: Sequence[float], variants: int) -> list[Source]:
    ways = {"style": STYLES, "edit": EDITS, **{maker: MAKERS[maker]() for maker in MAKERS}}
    made = [style_source(found, num_styles=num_of(maker, len(found)), name=maker) for maker, found in ways.items()]
    wordnet = load_wordnet()
    return made + [
        wordnet_source(wordnet, rate=rate, seed=number, num_variants=variants)
        for number, rate in enumerate(wordnet_rates)
    ]


def study_sets(name: str, settings: UnseenSettings, *, encode: Encode, folder: str | Path) -> list[ParaphraseSet]:
    """Makes some sets of the study, or reads them back from a folder.

    Args:
      name: "teacher" for the answers that are trained on, "curve" for those of the curve over ways, "judge" for those
        that choose, "held_out" for those that are measured.
      settings: how many, and in how many ways.
      encode: the sentence encoder of the filter. It does not filter what is trained on: one changed text among many
        does little harm there, and its reading costs as much as the hidden states.
      folder: where they are kept, as `NAME.jsonl`.

    Returns:
      The sets.
    """

    def make(pairs: list[ScoredPair]) -> tuple[list[ParaphraseSet], SetCounts]:
        if name == "curve":
            sources = _sources(lambda _, num: max(1, round(settings.curve_fraction * num)), (0.25, 0.5), 2)
        else:
            sources = _sources(lambda maker, _: settings.num_ways[maker], (0.5,), 1)
        encoder = None if name == "teacher" else encode
        return sets_of(pairs, max_words=settings.max_words, sources=sources, encode=encoder)

    role, num = {
        "teacher": ("teacher", settings.num_train),
        "curve": ("teacher", settings.num_curve),
        "judge": ("judge", settings.num_chosen),
        "held_out": ("held_out", settings.num_test),
    }[name]
    return kept_sets(role, num, make, settings=settings, folder=folder, name=name)


Reader = Callable[..., dict[str, np.ndarray]]
READINGS = (HIDDEN, WORDS, ENCODER, CANONICAL, "canonical_words", "canonical_encoder")


def make_reader(model: LanguageModel, encode: Encode, settings: UnseenSettings, folder: str | Path) -> Reader:
    """Makes the reader of all readings of `edgesafe_jax.guards.unseen`.

    Words and encoder are fitted on the human-scored answers of the teacher's role.

    Args:
      model: whose hidden states are read.
      encode: the sentence encoder.
      settings: how much is read.
      folder: where hidden states and sentence vectors are kept.

    Returns:
      From prompts, responses and names of readings to the readings.
    """
    features = hidden_state_features(
        model,
        layers=load_hidden_state_guard(model).layers,
        max_response=settings.max_response,
        max_prompt=settings.max_prompt,
        batch_size=16,
    )
    hidden = kept_features(features, Path(folder) / "hidden")
    kept = kept_features(lambda _, texts, name: np.asarray(encode(texts)), Path(folder) / "sentences")

    def sentences(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        x, y = (kept([""] * len(texts), texts, name) for texts in (prompts, responses))
        return np.concatenate([x, y, x * y * np.sqrt(x.shape[1])], axis=1)

    @functools.cache
    def fitted() -> tuple[KeywordGuard, Head]:
        human = examples.human_pairs("teacher")
        scores = np.array([p.score for p in human], np.float64)
        words = fit_keywords([p.response for p in human], np.array(scores >= 0.5, np.float64))
        answers = [excerpt(p.response, settings.max_words) for p in human]
        return words, fit_head(sentences([p.prompt for p in human], answers, "human"), scores, l2=0.3)

    def log_odds_of_words(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        probs = np.clip(fitted()[0](prompts, responses), LOGIT_EPS, 1 - LOGIT_EPS)
        return np.log(probs) - np.log1p(-probs)

    def read(
        prompts: Sequence[str], responses: Sequence[str], names: Sequence[str] = READINGS
    ) -> dict[str, np.ndarray]:
        forms = [judged_form(text) for text in responses]

        def reading(name: str) -> np.ndarray:
            if name in (HIDDEN, CANONICAL):
                return hidden(prompts, forms if name == CANONICAL else responses, "members")
            texts = forms if name.startswith("canonical_") else responses
            if name.endswith(WORDS):
                return log_odds_of_words(prompts, texts)[:, None]
            vectors = jnp.asarray(sentences(prompts, texts, "members"))
            return np.asarray(head_logits(fitted()[1], vectors), np.float64)[:, None]

        return {name: reading(name) for name in names}

    return read


GUARD_FILE = "guard.safetensors"
"""The steady guard in the work directory of a study."""


def store_guard(context: Context, path: Path, *, model: LanguageModel, settings: UnseenSettings) -> None:
    """Stores the steady guard, trained on the ways of all makers; `load_hidden_state_guard` reads it.

    Args:
      context: without a left-out maker.
      path: the file.
      model: whose hidden states are read.
      settings: of the study.
    """
    layers = load_hidden_state_guard(model).layers
    facts = hidden_state_about(model, layers=layers, max_response=settings.max_response)
    consistency = {"rule": context.rule, "num_answers": len(np.unique(context.train.answers))}
    [head] = dataclasses.replace(context, num_seeds=1).guards
    save_head(path, head, {**facts, "canonical": True, "consistency": consistency})


def run_unseen(
    settings: UnseenSettings, *, model: LanguageModel, encode: Encode, workdir: str | Path
) -> dict[str, float]:
    """Trains the steady guard, which is stored as `GUARD_FILE`, and runs the study.

    Args:
      settings: of the study.
      model: whose hidden states are read.
      encode: the sentence encoder, which also filters the paraphrases that are measured.
      workdir: where the guard, sets and readings are kept; an interrupted study continues there.

    Returns:
      Numbers by name, with the ends of their intervals; none where nothing is measured.

    Raises:
      GuardFileError: the packaged teacher, where training starts, is of another model.
    """
    workdir = Path(workdir)
    read = make_reader(model, encode, settings, workdir / "readings")

    def members_of(name: str) -> Members:
        return read_members(
            study_sets(name, settings, encode=encode, folder=workdir / "sets"),
            functools.partial(read, names={"teacher": (CANONICAL,), "curve": (HIDDEN,)}.get(name, READINGS)),
            left_out=settings.left_out,
        )

    head = load_hidden_state_guard(model).head
    context = Context(head, members_of("teacher"), settings.num_seeds)
    store_guard(context, workdir / GUARD_FILE, model=model, settings=settings)
    if not settings.measured:
        return {}
    members = {name: members_of(name) for name in ("curve", "judge", "held_out")}
    contexts = contexts_without(context, makers_of(members["held_out"]))
    values: dict[str, float] = {}
    for split, test in (("judge", None), ("held_out", members["held_out"])):
        values |= _leads(split, contexts, members["judge"], test, settings)
    values |= _seen(context, members, settings.num_samples)
    values |= _curves(context, members, settings)
    values |= _agreement(model, workdir / GUARD_FILE)
    return values | _rules(members["held_out"], head)


def _leads(
    split: str, contexts: Mapping[str, Context], judge: Members, test: Members | None, settings: UnseenSettings
) -> dict[str, float]:
    """All leads on one split against the hidden-state guard as it is, and where that guard flips."""
    untouched = lookup(LEADS, "hidden states", "leads")
    baseline = score_unseen(untouched, contexts, judge, test, raw=True)
    values = _named(f"{split}/before training", baseline, baseline, settings.num_samples)
    with ProgressBar(f"leads on {split}") as progress:
        for number, (name, lead) in enumerate(LEADS.items(), 1):
            scores = score_unseen(lead, contexts, judge, test)
            values |= _named(f"{split}/{name}", scores, baseline, settings.num_samples)
            progress(number, len(LEADS))
    steady = score_unseen(steady_guard, contexts, judge, test, raw=True)
    values |= _named(f"{split}/steady guard", steady, baseline, settings.num_samples)
    for guard, scores in (("before training", baseline), ("steady guard", steady)):
        for maker, found in metrics_by_maker(scores).items():
            row = {title: found[name] for name, title in METRICS.items() if name in found}
            values |= {f"{split} by maker, {guard}/{maker}/{title}": value for title, value in row.items()}
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
    judge, test = members["judge"], members["held_out"]
    baseline = score_unseen(LEADS["hidden states"], contexts, judge, test, raw=True)
    trained = [name for name in LEADS if name.endswith("trained")]
    scores = {name: score_unseen(LEADS[name], contexts, judge, test) for name in trained}
    scores["steady guard"] = score_unseen(steady_guard, contexts, judge, test, raw=True)
    values = {}
    for name, found in scores.items():
        values |= _named(f"held_out, seen makers/{name}", found, baseline, num_samples)
    return values


def _agreement(model: LanguageModel, path: Path) -> dict[str, float]:
    """Agreement of the packaged teacher and of the steady guard with people, on whole held-out answers."""
    pairs = examples.human_pairs("held_out")
    prompts, labels = [p.prompt for p in pairs], np.array([p.score >= 0.5 for p in pairs], np.float64)
    values: dict[str, float] = {}
    for name, file in (("packaged teacher", None), ("steady guard", path)):
        probs = load_hidden_state_guard(model, file)(prompts, [p.response for p in pairs])
        found = human_metrics(probs, labels, prompts)
        values |= found.pop("auroc").named(f"held-out answers/{name}/AUROC")
        values |= {f"held-out answers/{name}/{metric}": value for metric, value in found.items()}
    return values


def _curves(context: Context, members: Mapping[str, Members], settings: UnseenSettings) -> dict[str, float]:
    """Consistency training on more ways of the same number of texts, and on more answers, measured on the judge's."""
    dense, test = dataclasses.replace(context, train=members["curve"]), members["judge"]
    ways = ways_curve(dense, test, counts=settings.counts, num_draws=settings.num_draws)
    answers = answers_curve(context, test, counts=settings.num_answers, num_draws=settings.num_draws)
    values = {}
    for curve, found in (("ways in training", ways), ("answers in training", answers)):
        for count, draws in found.items():
            for name in ("std", "relative", "flips", "accuracy", "auroc"):
                each = [draw[name] for draw in draws]
                title = f"{curve}/{count}/{METRICS[name]}"
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
