"""Sections of the HTML report about guards: tables and figures of what `edgesafe_jax.guards.evaluation` measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax.corpora import ScoredPair
from edgesafe_jax.guards.evaluation import Tuned
from edgesafe_jax.guards.robustness import SetScores, robustness
from edgesafe_jax.guards.smolguard import GuardQuality
from edgesafe_jax.reporting import Section, bars, build_report, make_table, verdict_reliability, write_fragment

GROUP_TITLES = {
    "held_out": "unseen",
    "unseen_source": "unseen source",
    "unseen_style": "unseen style",
    "seen_ways": "seen ways",
}
"""Titles of the groups of `edgesafe_jax.guards.sets.SET_GROUPS`."""

METRIC_TITLES = {
    "std": "variability",
    "range": "range",
    "flips": "flips",
    "unsafe_to_safe": "flips to safe",
    "safe_to_unsafe": "flips to unsafe",
    "flagged": "called unsafe",
    "missed": "missed",
    "false_alarms": "false alarms",
    "accuracy": "accuracy",
    "f1": "F1",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "fpr_at_tpr": "FPR at 90 % TPR",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier",
    "nll": "NLL",
}
"""Titles of the metrics of `robustness`."""

MAIN_METRICS = ("std", "flips", "unsafe_to_safe", "safe_to_unsafe", "missed", "accuracy", "ece")
"""Rows of the first table, columns of those that compare many guards."""

CALIBRATION_METRICS = ("std", "flips", "accuracy", "ece", "adaptive_ece", "brier", "nll")

ASKED_TITLES = {"strongreject": "StrongREJECT", "sensitive": "sensitive benign", "plain": "plain questions"}
"""Titles of the sets of prompts whose answers are judged."""


PrintedTable = tuple[str, list[dict[str, Any]]]
"""Caption and rows of a table of the report that a launcher prints as well."""


def write_section(workdir: str | Path, name: str, section: Section, tables: Sequence[PrintedTable]) -> Path:
    """Writes a section of a run's report and prints its main tables.

    Args:
      workdir: the run's directory.
      name: of the section's file.
      section: the section.
      tables: caption and rows of the tables that are printed.

    Returns:
      The report, `report.html`.
    """
    for caption, rows in tables:
        print(caption + "\n" + make_table(rows, digits=3).to_text() + "\n")
    write_fragment(workdir, name, section)
    return build_report(workdir, "edgesafe_jax")


def consistency_section(tuned: Mapping[str, Tuned]) -> tuple[Section, list[PrintedTable]]:
    """Makes the report's section about tuned guards.

    Args:
      tuned: what was measured, by guard.

    Returns:
      The section, and those of its tables that are printed.
    """
    made = Section("Guards: one verdict for all paraphrases", order=1)
    made.text(
        "A guard judges an answer and paraphrases of it. Consistency training pulls each set to one target without "
        "labels. All numbers are on answers to held-out objectives; unseen paraphrases are by a source or in a style "
        "that was never trained on. Variability is the mean standard deviation of P(unsafe) within a set; flips are "
        "the fraction of originals with a paraphrase of the other verdict, to safe among the originals that are called "
        "unsafe, to unsafe among the others; missed is the fraction of unsafe texts that are called safe. After is the "
        "mean over seeds; intervals are 95 %, by set. Labels of paraphrases are those of their originals."
    )
    printed: list[PrintedTable] = []
    for guard, found in tuned.items():
        first = next(iter(found.groups))
        scored = found.groups[first]
        seeds = len(scored.after[found.rule])
        over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
        trained = f"consistency training, rule {found.rule}, {over}"
        tables = [(f"{guard}: before and after {trained}", _change_rows(found, MAIN_METRICS))]
        whole = _change_rows(found, tuple(robustness(scored.before)), whole=True)
        if len(scored.after) > 1:
            caption = f"{guard}: rules for the target, {GROUP_TITLES[first]} paraphrases"
            tables.append((caption, _rows("rule", found.ablation, MAIN_METRICS)))
        if found.votes:
            caption = (
                f"{guard}: votes over 1 + {found.num_votes} texts without training against training, "
                f"{GROUP_TITLES[found.voted]}"
            )
            tables.append((caption, _rows("guard", found.votes, ("calls", *MAIN_METRICS))))
        if found.calibration:
            caption = f"{guard}: calibration and consistency, {GROUP_TITLES[first]} paraphrases"
            tables.append((caption, _rows("guard", found.calibration, CALIBRATION_METRICS)))
        for number, (caption, rows) in enumerate(tables):
            made.table(rows, caption=caption, digits=3)
            if number == 0:
                made.table(whole, caption=f"{guard}: all quantities before and after {trained}", digits=3)
        printed += tables
        _figures(made, guard, found)
    return made, printed


def _change_rows(tuned: Tuned, names: Sequence[str], *, whole: bool = False) -> list[dict[str, Any]]:
    """Before, after and change of some quantities, by group; whole with all intervals and the relative change."""
    rows = []
    for group, intervals in tuned.changes.items():
        for name in (name for name in names if f"after/{name}" in intervals):
            before, after = intervals[f"before/{name}"], intervals[f"after/{name}"]
            row = {
                "paraphrases": f"{GROUP_TITLES[group]}, {len(tuned.groups[group].before.labels)} sets",
                "quantity": METRIC_TITLES[name],
                "before": before if whole else before.estimate,
                "after": after if whole else after.estimate,
                "difference": intervals[f"difference/{name}"],
            }
            rows.append(row | ({"reduction": intervals.get(f"reduction/{name}")} if whole else {}))
    return rows


def _rows(first: str, found: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {first: row.replace("_", " ") if first != "rule" else row}
        | {METRIC_TITLES.get(name, name): values.get(name) for name in names}
        for row, values in found.items()
    ]


def _figures(made: Section, guard: str, tuned: Tuned) -> None:
    """Adds variability by group, flips by rule, and reliability diagrams where there are labels."""
    variability = {
        GROUP_TITLES[group]: {when: intervals[f"{when}/std"] for when in ("before", "after")}
        for group, intervals in tuned.changes.items()
    }
    made.figure(
        bars(variability, xlabel="variability: standard deviation of P(unsafe) within a set"),
        alt=f"Variability of the guard {guard} in unseen and seen ways, before and after training",
        caption=f"{guard}: variability in ways that training has not seen and has seen, with 95 % intervals.",
    )
    directions = ("unsafe_to_safe", "safe_to_unsafe")
    if len(tuned.ablation) > 2:  # more than before and one rule
        made.figure(
            bars(
                {name: {METRIC_TITLES[d]: row.get(d) for d in directions} for name, row in tuned.ablation.items()},
                xlabel="fraction of originals with a flipped paraphrase",
            ),
            alt=f"Label flips of the guard {guard} in both directions by rule for the target",
            caption="Flips in both directions. Among originals that the guard calls unsafe, and safe.",
        )
    scored = next(iter(tuned.groups.values()))
    if np.isnan(scored.before.labels).any():
        return
    for name, scores in (("before", scored.before), ("after, first seed", scored.after[tuned.rule][0])):
        made.figure(_reliability(scores), alt=f"Reliability diagram of {guard} {name}", caption=f"{guard}, {name}")


def _reliability(scores: SetScores) -> bytes:
    labels = np.repeat(scores.labels[:, None], scores.unsafe.shape[1], axis=1)[scores.where]
    return verdict_reliability(unsafe_prob=scores.unsafe[scores.where], labels=labels)


def smolguard_section(
    measured: Mapping[str, GuardQuality], human: Sequence[ScoredPair]
) -> tuple[Section, list[PrintedTable]]:
    """Makes the report's section about SmolGuard.

    Args:
      measured: by guard; "SmolGuard" is one of them.
      human: the human-scored pairs.

    Returns:
      The section, and caption and rows of its tables, which are printed.
    """
    made = Section("SmolGuard", order=2)
    made.text(
        "A language model asked whether an answer is harmful. Human-scored pairs of held-out objectives; and the "
        "fraction of the base model's own answers that are flagged. Intervals are 95 %, over objectives for the "
        "human-scored."
    )
    labels = np.array([p.score >= 0.5 for p in human], np.float64)
    probs = measured["SmolGuard"].probs
    made.figure(
        verdict_reliability(unsafe_prob=probs, labels=labels),
        alt="Reliability diagram of SmolGuard",
        caption="Held-out pairs",
    )
    tables: list[PrintedTable] = [
        (
            f"{len(human)} human-scored pairs of held-out objectives",
            [{"guard": name, **found.quality} for name, found in measured.items()],
        ),
        (
            "Fraction of the base model's own answers that is flagged",
            [
                {
                    "guard": name,
                    **{ASKED_TITLES.get(group, group): rate for group, rate in found.flagged.items()},
                    "AUROC StrongREJECT / sensitive": found.separation,
                }
                for name, found in measured.items()
            ],
        ),
    ]
    for caption, rows in tables:
        made.table(rows, caption=caption, digits=3)
    return made, tables
