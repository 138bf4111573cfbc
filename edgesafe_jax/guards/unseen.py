"""Guards in ways of saying of makers that they were not trained with: leads, a curve over ways, and where flips are.

Each maker is left out in turn: what is trained or fitted on paraphrases sees the other makers' alone, and is scored on
the left-out maker's paraphrases of other answers. The stack that turns readings into one calibrated probability is
fitted on answers of the judge's role; held-out answers are looked at once.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.guards.consistency import SetFeatures, tune_heads
from edgesafe_jax.guards.evaluation import mean_robustness
from edgesafe_jax.guards.heads import GatedHead, Head, calibrate_head, fit_head, head_logits, unsafe_log_odds
from edgesafe_jax.guards.paraphrases import ParaphraseSet
from edgesafe_jax.guards.robustness import SetScores, bootstrap_sets, pad_members
from edgesafe_jax.guards.scoring import unsafe_of_log_odds
from edgesafe_jax.guards.targets import RULES
from edgesafe_jax.metrics import Interval

_log = logging.getLogger(__name__)

ORIGINAL = ""
"""The maker and the way of an original."""

HIDDEN, CANONICAL, WORDS, ENCODER = "hidden", "canonical", "words", "encoder"
"""Names of readings: hidden states of the text and of its canonical form, `[N, M]`; log-odds of the weighted words and
of the sentence encoder, `[N, 1]`; and the last two of canonical forms, `canonical_words` and `canonical_encoder`."""


@dataclasses.dataclass(frozen=True)
class Members:
    """N texts: answers and their paraphrases.

    Attributes:
      answers: `[N]` int64, the answer of each.
      makers: `[N]`, who made it; `ORIGINAL` for the answer itself.
      ways: `[N]`, "MAKER/WAY"; `ORIGINAL` likewise.
      labels: `[N]`, 1 where people call the answer unsafe, else 0.
      readings: by name `[N, M]` each.
    """

    answers: np.ndarray
    makers: np.ndarray
    ways: np.ndarray
    labels: np.ndarray
    readings: Mapping[str, np.ndarray]

    def take(self, chosen: np.ndarray) -> "Members":
        """The members of a mask or of some rows."""
        readings = {name: values[chosen] for name, values in self.readings.items()}
        return Members(self.answers[chosen], self.makers[chosen], self.ways[chosen], self.labels[chosen], readings)

    def without(self, maker: str) -> "Members":
        """All members but those of a maker."""
        return self.take(self.makers != maker)


def read_members(
    sets: Sequence[ParaphraseSet],
    read: Callable[[Sequence[str], Sequence[str]], Mapping[str, np.ndarray]],
    *,
    left_out: Sequence[str] = (),
) -> Members:
    """Reads paraphrase sets.

    Args:
      sets: labelled sets; those without paraphrases are left out.
      read: from prompts and responses to readings by name.
      left_out: ways, "MAKER/WAY", that are neither trained nor measured on.

    Returns:
      The members, set after set, each original first.
    """
    rows = []
    for number, one in enumerate(s for s in sets if s.paraphrases):
        rows.append((number, ORIGINAL, ORIGINAL, one.label, one.prompt, one.original))
        for p in one.paraphrases:
            way = f"{p.source}/{p.style}"
            if way not in left_out:
                rows.append((number, p.source, way, one.label, one.prompt, p.text))
    answers, makers, ways, labels, prompts, texts = zip(*rows, strict=True)
    readings = {name: np.asarray(values) for name, values in read(prompts, texts).items()}
    return Members(np.array(answers), np.array(makers), np.array(ways), np.array(labels, np.float64), readings)


def makers_of(members: Members) -> list[str]:
    """The makers of the paraphrases, in alphabetical order."""
    return sorted(set(members.makers.tolist()) - {ORIGINAL})


def _sets_of(members: Members, chosen: np.ndarray) -> list[np.ndarray]:
    """Rows of each answer's original and then of its chosen paraphrases; answers without any are left out."""
    found = []
    for answer in np.unique(members.answers):
        rows = np.flatnonzero((members.answers == answer) & (members.makers != ORIGINAL) & chosen)
        if len(rows):
            original = np.flatnonzero((members.answers == answer) & (members.makers == ORIGINAL))
            found.append(np.concatenate([original, rows]))
    return found


# Leads ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Context:
    """What a lead is fitted with, where one maker is left out.

    Attributes:
      head: the hidden-state guard before training.
      train: members of the training answers, without the left-out maker.
      num_seeds: samples of the training answers.
      rule: the set-level target, a name in `RULES`.
      anchor_weight: weight of the anchor.
      learning_rate: of the tuning.
      num_steps: of the tuning.
    """

    head: GatedHead
    train: Members
    num_seeds: int = 5
    rule: str = "conservative_gap"
    anchor_weight: float = 0.1
    learning_rate: float = 0.03
    num_steps: int = 100

    @functools.cached_property
    def tuned(self) -> list[GatedHead]:
        """Heads tuned on canonical forms, one per seed."""
        return tuned_heads(self, self.train.readings[CANONICAL])

    @functools.cached_property
    def guards(self) -> list[GatedHead]:
        """The tuned heads with their general part calibrated on the training members, each answer weighing the same."""
        weights = _answer_weights(self.train)

        def calibrated(head: GatedHead) -> GatedHead:
            bare = head.general.replace(slope=jnp.ones(()), offset=jnp.zeros(()))  # type: ignore[attr-defined]
            scores = np.asarray(head_logits(bare, jnp.asarray(self.train.readings[CANONICAL], jnp.float32)))
            general = calibrate_head(bare, scores=scores, labels=self.train.labels, weights=weights)
            return head.replace(general=general)  # type: ignore[attr-defined]

        return [calibrated(head) for head in self.tuned]


def _answer_weights(members: Members) -> np.ndarray:
    """Weights of members, `[N]`, by which each answer counts as much as any other."""
    _, number = np.unique(members.answers, return_inverse=True)
    return 1 / np.bincount(number)[number]


Columns: TypeAlias = Callable[[Members], list[np.ndarray]]
"""From members to the columns of the stack, `[N, C]` of log-odds, one array for each seed."""

_log_odds = jax.jit(unsafe_log_odds)


def _scored(head: GatedHead, features: np.ndarray) -> np.ndarray:
    return np.asarray(_log_odds(head, jnp.asarray(features, jnp.float32)), np.float64)[:, None]


def tuned_heads(context: Context, features: np.ndarray, chosen: np.ndarray | None = None) -> list[GatedHead]:
    """Tunes the head on the training sets towards set-level targets, once per seed.

    Args:
      context: how.
      features: `[N, M]` of the training members.
      chosen: `[N]` bool, which paraphrases are trained on; default all.

    Returns:
      The heads.
    """
    sets = _sets_of(context.train, np.ones(len(features), bool) if chosen is None else chosen)
    most = max(map(len, sets))
    # Makers have unlike numbers of ways: of a few sizes each is compiled once.
    rows = np.zeros((len(sets), most if most < 8 else -(-most // 8) * 8), np.int64)
    where = np.zeros(rows.shape, bool)
    for number, found in enumerate(sets):
        rows[number, : len(found)], where[number, : len(found)] = found, True
    heads, _ = tune_heads(
        jax.random.split(jax.random.key(0), context.num_seeds),
        context.head,
        SetFeatures(jnp.asarray(features[rows]), jnp.asarray(where)),
        rule=RULES[context.rule],
        anchor_weight=context.anchor_weight,
        learning_rate=context.learning_rate,
        num_steps=context.num_steps,
    )
    return [jax.tree.map(lambda leaf, seed=seed: leaf[seed], heads) for seed in range(context.num_seeds)]


def _reading(*names: str) -> Callable[[Context], Columns]:
    """A lead without training: the columns of some readings; hidden states are scored by the head."""

    def lead(context: Context) -> Columns:
        def column(members: Members, name: str) -> np.ndarray:
            values = members.readings[name]
            return _scored(context.head, values) if name in (HIDDEN, CANONICAL) else values

        return lambda members: [np.concatenate([column(members, name) for name in names], axis=1)]

    return lead


def _tuned(*further: str) -> Callable[[Context], Columns]:
    """A lead with heads tuned on canonical forms, and further readings beside them."""

    def lead(context: Context) -> Columns:
        heads = context.tuned

        def columns(members: Members) -> list[np.ndarray]:
            rest = [members.readings[name] for name in further]
            return [np.concatenate([_scored(head, members.readings[CANONICAL]), *rest], axis=1) for head in heads]

        return columns

    return lead


LEADS: Mapping[str, Callable[[Context], Columns]] = {
    "hidden states": _reading(HIDDEN),
    "weighted words": _reading(WORDS),
    "sentence encoder": _reading(ENCODER),
    "hybrid": _reading(HIDDEN, WORDS, ENCODER),
    "canonical form": _reading(CANONICAL),
    "canonical form, trained": _tuned(),
    "canonical hybrid": _reading(CANONICAL, "canonical_words", "canonical_encoder"),
    "canonical hybrid, trained": _tuned("canonical_words", "canonical_encoder"),
}
"""The leads by name: from what is fitted without a maker to the columns of the stack."""


def steady_guard(context: Context) -> Columns:
    """The guard that is stored: heads tuned on canonical forms and calibrated on training answers, without a stack."""
    heads = context.guards
    return lambda members: [_scored(head, members.readings[CANONICAL]) for head in heads]


# The stack ------------------------------------------------------------------------------------------------------------


def fit_stack(columns: np.ndarray, members: Members, *, l2: float = 0.01) -> Head:
    """Fits the calibrated stack: logistic regression on log-odds of readings, each answer with the same weight.

    Args:
      columns: `[N, C]`.
      members: N members with labels.
      l2: weight of the penalty, see `fit_head`.

    Returns:
      A head over the columns.
    """
    return fit_head(columns, members.labels, weights=_answer_weights(members), l2=l2)


def stacked(stack: Head, columns: np.ndarray) -> np.ndarray:
    """P(unsafe) `[N]` of columns `[N, C]`."""
    return unsafe_of_log_odds(head_logits(stack, jnp.asarray(columns, jnp.float32)))


# Measurement ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class UnseenScores:
    """Scores of sets, each an answer with one left-out maker's paraphrases of it.

    Attributes:
      seeds: scores of the S sets, one per seed.
      answers: `[S]`, the answer of each set.
      makers: `[S]`, the left-out maker.
    """

    seeds: list[SetScores]
    answers: np.ndarray
    makers: np.ndarray

    def take(self, rows: np.ndarray) -> list[SetScores]:
        """The scores of some sets, by seed."""
        return [scores.take(rows) for scores in self.seeds]


def score_unseen(
    lead: Callable[[Context], Columns],
    contexts: Mapping[str, Context],
    calibration: Members,
    test: Members | None,
    *,
    raw: bool = False,
) -> UnseenScores:
    """Scores a lead with each maker left out in turn.

    Args:
      lead: an entry of `LEADS`.
      contexts: by maker, what is fitted without it; see `contexts_without`.
      calibration: members that the stack is fitted on, the left-out maker's not among them.
      test: members that are scored; None for those of `calibration`, where each half of the answers is scored by a
        stack that was fitted on the other half.
      raw: whether the first column is taken as it is, without a stack.

    Returns:
      The scores.
    """
    target = calibration if test is None else test
    rows: list[np.ndarray] = []
    makers: list[str] = []
    seeds: list[list[list[float]]] = []
    for maker in makers_of(target):
        columns = lead(contexts[maker])
        fitted, scored = columns(calibration), columns(target)
        sets = _sets_of(target, target.makers == maker)
        for seed, (fit, values) in enumerate(zip(fitted, scored, strict=True)):
            if raw:
                probs = unsafe_of_log_odds(values[:, 0])
            elif test is None:
                probs = _cross_fitted(fit, calibration, maker)
            else:
                seen = calibration.makers != maker
                probs = stacked(fit_stack(fit[seen], calibration.take(seen)), values)
            if len(seeds) <= seed:
                seeds.append([])
            seeds[seed] += [probs[found].tolist() for found in sets]
        rows += sets
        makers += [maker] * len(sets)
    originals = np.array([found[0] for found in rows])
    labels = target.labels[originals].tolist()
    return UnseenScores([pad_members(found, labels) for found in seeds], target.answers[originals], np.array(makers))


def contexts_without(context: Context, makers: Sequence[str]) -> dict[str, Context]:
    """The contexts in which one maker is left out, by its name."""
    return {maker: dataclasses.replace(context, train=context.train.without(maker)) for maker in makers}


def _cross_fitted(columns: np.ndarray, members: Members, maker: str) -> np.ndarray:
    """P(unsafe) of all members, each half of the answers by the stack of the other half without a maker."""
    probs = np.zeros(len(columns))
    half = members.answers % 2 == 0
    for chosen in (half, ~half):
        seen = ~chosen & (members.makers != maker)
        probs[chosen] = stacked(fit_stack(columns[seen], members.take(seen)), columns[chosen])
    return probs


def unseen_metrics(scores: Sequence[SetScores]) -> dict[str, float]:
    """The metrics of `robustness`, averaged over seeds, and the variability relative to the spread of all scores.

    A guard whose scores are all drawn towards one value varies little and tells little: `relative` is the mean standard
    deviation within sets over the standard deviation of all members, which no calibration changes much.
    """
    spread = float(np.mean([np.std(each.unsafe[each.where]) for each in scores]))
    values = mean_robustness(scores)
    return values | {"relative": values["std"] / spread if spread else np.nan}


def compare_unseen(scores: UnseenScores, baseline: UnseenScores, *, num_samples: int) -> dict[str, Interval]:
    """Metrics of a lead and changes against a baseline on the same sets, whole answers drawn with replacement.

    Args:
      scores: of the lead.
      baseline: of the guard that it is compared with.
      num_samples: bootstrap draws.

    Returns:
      `NAME`, `difference/NAME` and `reduction/NAME` (one minus the ratio) by metric.
    """
    answers = np.unique(scores.answers)
    rows_of = [np.flatnonzero(scores.answers == answer) for answer in answers]

    def statistic(drawn: np.ndarray) -> dict[str, float]:
        rows = np.concatenate([rows_of[number] for number in drawn])
        after, before = unseen_metrics(scores.take(rows)), unseen_metrics(baseline.take(rows))
        both = after.keys() & before.keys()
        values = dict(after)
        values |= {f"difference/{name}": after[name] - before[name] for name in both}
        return values | {f"reduction/{name}": 1 - after[name] / before[name] for name in both if before[name] > 0}

    return bootstrap_sets(statistic, len(answers), num_samples=num_samples)


def ways_curve(
    context: Context, test: Members, *, counts: Sequence[int], num_draws: int, seed: int = 0
) -> dict[int, list[dict[str, float]]]:
    """Trains on ever more different ways at an equal number of texts, and scores the left-out maker's ways.

    Of each training answer one paraphrase is taken, in a way drawn from k: as many texts whatever k.

    Args:
      context: how; one seed for each draw.
      test: members that are scored.
      counts: numbers k of ways.
      num_draws: draws of the ways.
      seed: of the draws.

    Returns:
      By k and draw the metrics over all left-out makers; k = 0 is the guard before training.
    """
    found: dict[int, list[dict[str, float]]] = {0: [_over_makers(test, lambda maker: context.head)]}
    for count in counts:
        found[count] = []
        for draw in range(num_draws):
            rng = np.random.default_rng([seed, count, draw])

            def trained(maker: str, count: int = count, rng: np.random.Generator = rng) -> GatedHead:
                train = context.train.without(maker)
                chosen = _one_each(train, count, rng)
                one = dataclasses.replace(context, train=train, num_seeds=1)
                return tuned_heads(one, train.readings[HIDDEN], chosen)[0]

            found[count].append(_over_makers(test, trained))
            _log.info("%d ways, draw %d: variability %.4f", count, draw, found[count][-1]["std"])
    return found


def answers_curve(
    context: Context, test: Members, *, counts: Sequence[int], num_draws: int, seed: int = 0
) -> dict[int, list[dict[str, float]]]:
    """Trains on canonical forms of ever more answers in all their ways, and scores the left-out maker's ways.

    Args:
      context: how; one seed for each draw.
      test: members that are scored.
      counts: numbers of answers, at most those of the context.
      num_draws: draws of the answers.
      seed: of the draws.

    Returns:
      By number and draw the metrics over all left-out makers; 0 is canonical forms before training.
    """
    answers = np.unique(context.train.answers)
    found: dict[int, list[dict[str, float]]] = {0: [_over_makers(test, lambda maker: context.head, CANONICAL)]}
    for count in counts:
        found[count] = []
        for draw in range(num_draws):
            drawn = np.random.default_rng([seed, count, draw]).permutation(answers)[:count]

            def trained(maker: str, drawn: np.ndarray = drawn) -> GatedHead:
                train = context.train.take(np.isin(context.train.answers, drawn)).without(maker)
                return dataclasses.replace(context, train=train, num_seeds=1).tuned[0]

            found[count].append(_over_makers(test, trained, CANONICAL))
            _log.info("%d answers, draw %d: variability %.4f", count, draw, found[count][-1]["std"])
    return found


def _one_each(train: Members, count: int, rng: np.random.Generator) -> np.ndarray:
    """One paraphrase of each answer, in `count` ways in which the most answers can be said; `[N]` bool."""
    ways = sorted(set(train.ways.tolist()) - {ORIGINAL})
    drawn = rng.permutation(ways)
    fewest = len(np.unique(train.answers)) // 2
    common = [way for way in drawn if len(np.unique(train.answers[train.ways == way])) >= fewest]
    kept = (common or drawn.tolist())[:count]
    chosen = np.zeros(len(train.answers), bool)
    for answer in np.unique(train.answers):
        rows = np.flatnonzero((train.answers == answer) & np.isin(train.ways, kept))
        if len(rows):
            chosen[rng.choice(rows)] = True
    # As many texts whatever the number of ways: at most half of the answers.
    rows = np.flatnonzero(chosen)
    chosen[rng.permutation(rows)[fewest:]] = False
    return chosen


def _over_makers(test: Members, head_of: Callable[[str], GatedHead], reading: str = HIDDEN) -> dict[str, float]:
    rows, labels = [], []
    for maker in makers_of(test):
        probs = unsafe_of_log_odds(_scored(head_of(maker), test.readings[reading])[:, 0])
        for found in _sets_of(test, test.makers == maker):
            rows.append(probs[found].tolist())
            labels.append(test.labels[found[0]])
    return unseen_metrics([pad_members(rows, labels)])


def flips_by_distance(
    scores: UnseenScores, edges: Sequence[float] = (0.1, 0.2, 0.3, 0.5)
) -> dict[str, dict[str, float]]:
    """Where flips are: by the distance of the original's P(unsafe) to the threshold.

    Args:
      scores: of a guard.
      edges: upper ends of the distances, rising, the last one 0.5.

    Returns:
      By distance, "below EDGE", the fraction of the originals that lie there (`sets`), the fraction of all flipped
      sets that they make (`of_flips`), and the fraction of them that flips (`flips`).
    """
    [first] = scores.seeds[:1]
    distance = np.abs(first.unsafe[:, 0] - 0.5)
    verdicts = first.unsafe > 0.5
    flipped = ((verdicts != verdicts[:, :1]) & first.where).any(axis=1)
    found, low = {}, -1.0
    for edge in edges:
        inside = (distance > low) & (distance <= edge)
        found[f"below {edge}"] = {
            "sets": float(inside.mean()),
            "of_flips": float(inside[flipped].mean()) if flipped.any() else np.nan,
            "flips": float(flipped[inside].mean()) if inside.any() else np.nan,
        }
        low = edge
    return found


def randomised(
    members: Members, head: GatedHead, *, num_readings: Sequence[int], seed: int = 0
) -> dict[int, UnseenScores]:
    """The training-free yardstick: a text is judged together with k rewordings of its answer by other makers.

    The rewordings are of the original, which a deployed guard does not have: an upper bound of what k cheap rewordings
    of the text itself can do.

    Args:
      members: members that are scored.
      head: the guard.
      num_readings: numbers k of rewordings; 0 is the guard alone.
      seed: of their choice.

    Returns:
      By k the scores: the conservative gap over the text and its rewordings, at `1 + k` calls for each verdict.
    """
    probs = unsafe_of_log_odds(_scored(head, members.readings[HIDDEN])[:, 0])
    found = {}
    for count in num_readings:
        rng = np.random.default_rng([seed, count])
        rows, answers, makers = [], [], []
        for maker in makers_of(members):
            for chosen in _sets_of(members, members.makers == maker):
                answer = members.answers[chosen[0]]
                others = np.flatnonzero(
                    (members.answers == answer) & (members.makers != maker) & (members.makers != ORIGINAL)
                )
                row = []
                for member in chosen:
                    ballot = probs[np.append(rng.permutation(others)[:count], member)]
                    row.append(float(max(ballot.mean(), np.median(ballot))))
                rows.append(row)
                answers.append(answer)
                makers.append(maker)
        labels = [float(members.labels[members.answers == answer][0]) for answer in answers]
        found[count] = UnseenScores([pad_members(rows, labels)], np.array(answers), np.array(makers))
    return found


def all_members(members: Members, head: GatedHead) -> SetScores:
    """The hidden-state guard's scores of each answer with the paraphrases of all makers."""
    probs = unsafe_of_log_odds(_scored(head, members.readings[HIDDEN])[:, 0])
    sets = _sets_of(members, np.ones(len(probs), bool))
    labels = members.labels[[found[0] for found in sets]].tolist()
    return pad_members([probs[found].tolist() for found in sets], labels)


def metrics_by_maker(scores: UnseenScores) -> dict[str, dict[str, float]]:
    """The metrics of each left-out maker."""
    return {
        maker: unseen_metrics(scores.take(np.flatnonzero(scores.makers == maker))) for maker in np.unique(scores.makers)
    }
