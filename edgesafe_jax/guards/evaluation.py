"""Measurement of consistency runs and of trained guards: scores on disk, changes with intervals, agreement."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import metrics
from edgesafe_jax.assets import write_checked
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.robustness import SetScores, bootstrap_sets, cross_fitted, robustness, vote
from edgesafe_jax.metrics import Interval
from edgesafe_jax.training import check_whole

SCORES_FILE = "scores.npz"
"""File of the scores of all guards, rules and seeds in a work directory."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one guard on one group of paraphrases.

    Attributes:
      before: of the guard as it was.
      after: by rule, of the tuned guards, one per seed.
    """

    before: SetScores
    after: dict[str, list[SetScores]]


def write_scores(workdir: str | Path, scores: Mapping[str, Mapping[str, Scored]]) -> None:
    """Writes the scores of a finished run.

    Args:
      workdir: the run's directory.
      scores: by guard and group.
    """
    arrays: dict[str, Any] = {}
    for guard, groups in scores.items():
        for group, found in groups.items():
            arrays[f"{guard}/before/0/{group}"] = found.before.unsafe
            arrays[f"labels/{group}"] = found.before.labels
        for group, found in groups.items():
            for rule, seeds in found.after.items():
                for seed, after in enumerate(seeds):
                    arrays[f"{guard}/{rule}/{seed}/{group}"] = after.unsafe
    write_checked(Path(workdir) / SCORES_FILE, lambda part: np.savez(part, **arrays))


def read_scores(workdir: str | Path) -> dict[str, dict[str, Scored]]:
    """Reads the scores of a finished run, by guard and group.

    Raises:
      ConfigError: the run is not finished.
    """
    file = Path(workdir) / SCORES_FILE
    if not file.exists():
        raise ConfigError(
            f"{workdir} has no {SCORES_FILE}: its training is not finished. The same launch.train command continues it."
        )
    check_whole(file, "delete it, and the same launch.train command measures the tuned guards again")
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    labels = {name.removeprefix("labels/"): array for name, array in arrays.items() if name.startswith("labels/")}
    scores = {tuple(name.split("/")): array for name, array in arrays.items() if not name.startswith("labels/")}
    found: dict[str, dict[str, Scored]] = {}
    for (guard, rule, _, group), unsafe in scores.items():  # those before training come first
        each = SetScores(unsafe, labels[group])
        if rule == "before":
            found.setdefault(guard, {})[group] = Scored(each, {})
        else:
            found[guard][group].after.setdefault(rule, []).append(each)
    return found


def mean_robustness(scores: Sequence[SetScores]) -> dict[str, float]:
    """Averages `robustness` over guards that differ in their seed; a seed in which a metric is not defined is left out.

    Args:
      scores: of the same sets, one per seed.

    Returns:
      The mean of each metric that is defined for one seed at least.
    """
    values = [robustness(each) for each in scores]
    defined = [name for name in values[0] if any(np.isfinite(v[name]) for v in values)]
    return {name: float(np.nanmean([v[name] for v in values])) for name in defined}


def compare(scored: Scored, rule: str, num_samples: int) -> dict[str, Interval]:
    """Before, after (mean over seeds) and relative or absolute change, with intervals by set.

    Args:
      scored: the scores.
      rule: which tuned guards.
      num_samples: bootstrap draws.

    Returns:
      `before/NAME`, `after/NAME`, `difference/NAME` and `reduction/NAME` (one minus after over before) by metric.
    """

    def statistic(rows: np.ndarray) -> dict[str, float]:
        before = robustness(scored.before.take(rows))
        after = mean_robustness([each.take(rows) for each in scored.after[rule]])
        values = {f"before/{name}": value for name, value in before.items()}
        values |= {f"after/{name}": value for name, value in after.items()}
        both = before.keys() & after.keys()
        values |= {f"difference/{name}": after[name] - before[name] for name in both}
        return values | {f"reduction/{name}": 1 - after[name] / before[name] for name in both if before[name] > 0}

    return bootstrap_sets(statistic, len(scored.before.labels), num_samples=num_samples)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The results of one tuned guard.

    Attributes:
      groups: scores by group.
      rule: the rule that was chosen beforehand; changes, votes and calibration are of it.
      changes: by group, see `compare`.
      ablation: `robustness` by rule on the first group; "(before)" is the guard as it was.
      voted: the group whose votes are compared: the one with the largest sets, since a vote of a whole set cannot flip.
      num_votes: paraphrases that vote beside a text.
      votes: `robustness` and calls of the guard for a verdict, by training-free baseline and trained; may be empty.
      calibration: `robustness` on the first group with and without temperature scaling; empty without labels.
    """

    groups: Mapping[str, Scored]
    rule: str
    changes: Mapping[str, Mapping[str, Interval]]
    ablation: Mapping[str, Mapping[str, float]]
    voted: str
    num_votes: int
    votes: Mapping[str, Mapping[str, float]]
    calibration: Mapping[str, Mapping[str, float]]

    def numbers(self) -> dict[str, float]:
        """The flat numbers of a summary: estimates, ends of intervals, range over seeds, and all tables."""
        values: dict[str, float] = {}
        for group, intervals in self.changes.items():
            for name, interval in intervals.items():
                values |= interval.named(f"{group}/{name}")
            per_seed = [robustness(each) for each in self.groups[group].after[self.rule]]
            for name in per_seed[0] if len(per_seed) > 1 else ():  # one seed has no range
                values[f"{group}/seeds_min/{name}"] = min(v[name] for v in per_seed)
                values[f"{group}/seeds_max/{name}"] = max(v[name] for v in per_seed)
        tables = {"ablation": self.ablation, "votes": self.votes, "calibration": self.calibration}
        for table, rows in tables.items():
            values |= {f"{table}/{row}/{name}": value for row, found in rows.items() for name, value in found.items()}
        return values


def measure_tuned(groups: Mapping[str, Scored], *, rule: str, num_votes: int, num_samples: int) -> Tuned:
    """Measures a tuned guard from its scores.

    Args:
      groups: scores by group, see `tune_guard` and `read_scores`.
      rule: the rule that was chosen beforehand.
      num_votes: paraphrases that vote beside a text in the training-free baselines.
      num_samples: bootstrap draws.

    Returns:
      All that is reported.
    """
    changes = {group: compare(scored, rule, num_samples) for group, scored in groups.items()}
    scored = next(iter(groups.values()))
    sizes = {name: found.before.where.sum() / len(found.before.labels) for name, found in groups.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    ablation = {"(before)": robustness(scored.before)}
    ablation |= {name: mean_robustness(after) for name, after in scored.after.items()}
    votes = _votes(groups[largest], rule, num_votes) if sizes[largest] > 2 + num_votes else {}
    return Tuned(groups, rule, changes, ablation, largest, num_votes, votes, _calibration(scored, rule))


def _votes(scored: Scored, rule: str, num_votes: int) -> dict[str, dict[str, float]]:
    """Training-free baselines and training, with the calls of the guard that a verdict costs."""
    found = {"before": {"calls": 1, **robustness(scored.before)}}
    for how in ("any", "majority"):
        found[how] = {"calls": 1 + num_votes, **robustness(vote(scored.before, how=how, num_votes=num_votes))}
    return found | {"trained": {"calls": 1, **mean_robustness(scored.after[rule])}}


def _calibration(scored: Scored, rule: str) -> dict[str, dict[str, float]]:
    """Before and after training, with temperature scaling and without; nothing where labels are missing."""
    if np.isnan(scored.before.labels).any():
        return {}
    trained = scored.after[rule]
    return {
        "before": robustness(scored.before),
        "before_temperature_scaled": robustness(cross_fitted(scored.before)),
        "trained": mean_robustness(trained),
        "trained_temperature_scaled": mean_robustness([cross_fitted(each) for each in trained]),
    }


# Agreement with people ------------------------------------------------------------------------------------------------


def human_auroc(probs: np.ndarray, labels: np.ndarray, objectives: Sequence[str]) -> Interval:
    """The AUROC of P(unsafe) `[N]` by people's labels `[N]`; pairs of one of the N objectives are drawn together."""
    return metrics.bootstrap_interval(
        np.stack([probs, labels], axis=1),
        statistic=lambda rows: metrics.auroc(scores=rows[:, 0], labels=rows[:, 1]),
        clusters=np.array(objectives),
    )


def human_metrics(probs: np.ndarray, labels: np.ndarray, objectives: Sequence[str]) -> dict[str, Any]:
    """Agreement with people; the AUROC with an interval over objectives, the calibration before and after scaling.

    Args:
      probs: `[N]`, P(unsafe).
      labels: `[N]`, 1 is unsafe.
      objectives: N texts; pairs of one objective are drawn together.

    Returns:
      AUROC (an interval), F1, accuracy, ECE, and the ECE at the best temperature of these same pairs.
    """
    scaled = metrics.scale_temperature(probs=probs, temperature=metrics.fit_temperature(probs=probs, labels=labels))
    return {
        "auroc": human_auroc(probs, labels, objectives),
        "f1": metrics.f1_score(predictions=probs > 0.5, labels=labels),
        "accuracy": metrics.accuracy(predictions=probs > 0.5, labels=labels),
        "ece": metrics.expected_calibration_error(probs=probs, labels=labels),
        "ece_scaled": metrics.expected_calibration_error(probs=scaled, labels=labels),
    }
