"""Reports of runs: numbers, tables and figures of policies, of learned translations and of whole runs."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import reporting
from edgesafe_jax.dynamics import TransformBank, Transitions, Verdict, coverage, is_wrong, model_quality
from edgesafe_jax.dynamics.study import interval_or_none, mean_or_none
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.offline_rl.evaluation import Episodes, seed_interval
from edgesafe_jax.offline_rl.pipeline import PipelineResults
from edgesafe_jax.offline_rl.tasks import Task, Wall, goal_domain
from edgesafe_jax.training import write_summary


@dataclasses.dataclass(frozen=True)
class RunReport:
    """A report before it is written.

    Attributes:
      section: of the HTML report.
      values: flat numbers for the summary.
      tables: the tables that a terminal shows.
    """

    section: reporting.Section
    values: dict[str, Any]
    tables: Sequence[reporting.Table]


def save_report(directory: str | Path, name: str, report: RunReport, *, subtitle: str = "") -> Path:
    """Writes summary, section and HTML report into a directory, beside those of other sections.

    Args:
      directory: an existing directory.
      name: of the section.
      report: what is written.
      subtitle: of the HTML report.

    Returns:
      The HTML report.
    """
    write_summary(directory, name, report.values)
    reporting.write_fragment(directory, name, report.section)
    return reporting.build_report(directory, "edgesafe_jax", subtitle=subtitle)


def report_policies(results: PipelineResults) -> RunReport:
    """Puts a run's evaluation, model and translations into tables and figures."""
    task, values, rows = results.task, {}, []
    num_seeds = 0
    for name, strata in results.episodes.items():
        intervals = {s: seed_interval(np.asarray(episodes.success)) for s, episodes in strata.items()}
        num_seeds = max([num_seeds, *(len(episodes.success) for episodes in strata.values())])
        rows.append({"method": name, **intervals})
        for stratum, interval in intervals.items():
            values |= interval.named(f"{name}/{stratum.replace(' ', '_')}")
    section = reporting.Section(f"Offline RL: {task.name.replace('_', ' ')}", order=20)
    tables = []
    if task.simulated:
        section.table(rows, caption=_caption(num_seeds), digits=3)
        tables.append(reporting.make_table(rows, digits=3))
    else:
        section.text("The task has no simulator: policies are trained and nothing is evaluated.")
    values |= {f"data/{name}": fraction for name, fraction in results.replaced.items()}
    section.text(
        "Rewards and terminals of all rows, in all methods, are those that the task gives for next state and goal; of "
        f"{results.replaced['rewards_replaced']:.3g} of the rows the data had other rewards, of "
        f"{results.replaced['terminals_replaced']:.3g} other terminals."
    )
    if results.plan_seconds:
        timed = [
            {"planner": name, "milliseconds": 1e3 * seconds, "of a control step": seconds / task.control_step}
            for name, seconds in results.plan_seconds.items()
        ]
        section.table(timed, caption="One plan by itself, without compilation: the median.", digits=3)
        tables.append(reporting.make_table(timed, digits=3))
        values |= {f"plans/{name}/seconds": seconds for name, seconds in results.plan_seconds.items()}
        values |= {f"plans/{name}/of_control_step": s / task.control_step for name, s in results.plan_seconds.items()}
    quality = model_quality(results.model.ensemble, results.model.parts["calibration"], tolerance=task.tolerance)
    section.table([quality], caption="The model, on the calibration episodes; errors in tolerances.", digits=3)
    values |= {f"model/{name}": value for name, value in quality.items()}
    if results.banks:
        rows = [{"episodes": name, **bank_numbers(task, *bank)} for name, bank in results.banks.items()]
        tables.append(reporting.make_table(rows, digits=4))
        caption = "Tested translations, of the data and of fresh episodes; intervals over episodes."
        section.table(rows, caption=caption, digits=4)
        for row in rows:
            values |= _flat(row, str(row["episodes"]))
        _symmetry_figures(section, task, *next(iter(results.banks.values())))
    if task.simulated:
        png, what = _success_by_distance(results.episodes), "success by goal distance"
        section.figure(png, alt=what, caption=f"{what.capitalize()}, all strata.")
    return RunReport(section, values, tables)


def _caption(num_seeds: int) -> str:
    shared = "all share one data set, one model and one bank of translations."
    if num_seeds == 1:
        return f"Success of one seed of the policy, of which no interval can be given; {shared}"
    return f"Success, interquartile mean over {num_seeds} seeds of the policy with bootstrap 95 % intervals: {shared}"


def bank_numbers(task: Task, bank: TransformBank, data: Transitions) -> dict[str, Any]:
    """Measures what a bank accepts, what of it is wrong in the true world, and how many cells it visits.

    Args:
      task: the task, whose true dynamics judges.
      bank: the bank.
      data: the transitions that it belongs to.

    Returns:
      From quantity to number, interval or None.
    """
    accepted, verdicts = np.asarray(bank.accepted), np.asarray(bank.verdicts)
    counted: dict[str, Any] = {}
    episodes = np.broadcast_to(np.asarray(data.episodes)[:, None], accepted.shape)
    box = goal_domain(task)
    cover = functools.partial(coverage, low=box.low, high=box.high)
    if task.simulated:
        wrong = is_wrong(task.step, task.group, bank.elements, data, tolerance=task.tolerance)
        counted["wrong_among_accepted"] = interval_or_none(wrong[accepted], episodes[accepted])
        counted["wrong_among_proposed"] = float(wrong.mean())
    return {
        "accepted": float(accepted.mean()),
        **counted,
        "coverage_before": cover(_places(task, data)),
        "coverage_after": cover(_places(task, data, bank)[accepted]),
        **{v.name.lower(): float(np.mean(verdicts == v)) for v in Verdict},
    }


def _flat(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Interval):
            values |= value.named(f"{prefix}/{name}")
        elif isinstance(value, float):
            values[f"{prefix}/{name}"] = value
    return values


def _success_by_distance(results: Mapping[str, Mapping[str, Episodes]], num_bins: int = 8) -> bytes:
    """Draws success by goal distance, seeds and strata together."""
    edges = np.linspace(0, max(float(_joined(s, "goal_distance").max()) for s in results.values()) + 1e-6, num_bins + 1)
    series = {}
    for name, strata in results.items():
        bins = np.digitize(_joined(strata, "goal_distance"), edges) - 1
        success = _joined(strata, "success")
        series[name] = [mean_or_none(success[bins == b]) for b in range(num_bins)]
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()
    return reporting.lines(centres, series, xlabel="distance to the goal", ylabel="success")


def _joined(strata: Mapping[str, Episodes], name: str) -> np.ndarray:
    """One field of the episodes of all strata and seeds, `[n]`."""
    return np.concatenate([np.asarray(getattr(episodes, name)).reshape(-1) for episodes in strata.values()])


def _places(task: Task, data: Transitions, bank: TransformBank | None = None) -> np.ndarray:
    """The goals that states achieve, `[N, 2]`, or those after the elements of a bank act, `[N, M, 2]`."""
    states = jnp.asarray(data.states)
    if bank is None:
        return np.asarray(jax.vmap(task.achieved)(states))
    reached = jax.vmap(lambda element, state: task.achieved(task.group.state(element, state)), in_axes=(0, None))
    return np.asarray(jax.jit(jax.vmap(reached))(bank.elements, states))


def _symmetry_figures(section: reporting.Section, task: Task, bank: TransformBank, data: Transitions) -> None:
    """Draws where learned translations lead, accepted or not, and the cells that are visited."""
    accepted, seen, box = np.asarray(bank.accepted), _places(task, data), goal_domain(task)
    places, low, high = _places(task, data, bank), box.low, box.high
    # A few of all that were proposed, by what was said of them.
    chosen = np.random.default_rng(0).permutation(accepted.size)[:4000]
    verified = (np.asarray(bank.verdicts) == Verdict.VERIFIED).reshape(-1)[chosen]
    points, taken = places.reshape(-1, 2)[chosen], accepted.reshape(-1)[chosen]
    shown = {
        "accepted, declared": points[taken & ~verified],
        "accepted, verified": points[taken & verified],
        "not accepted": points[~taken],
    }
    # The data lie beneath; a margin shows what leaves the domain.
    margin = 0.1 * (np.array(high) - np.array(low))
    png = reporting.point_map(
        {"data": seen[::10], **{name: each for name, each in shown.items() if len(each)}},
        low=(np.array(low) - margin).tolist(),
        high=(np.array(high) + margin).tolist(),
        walls=[_ends(wall) for wall in (*task.walls, *task.borders)],
    )
    section.figure(
        png,
        alt="arena with accepted and rejected translations",
        caption="Where translations lead, some of those proposed. Declared: beyond the data, in the domain.",
    )
    edges = [np.linspace(low[i], high[i], 21) for i in range(2)]
    grids = {
        name: (np.histogram2d(*points.reshape(-1, 2).T, bins=edges)[0] > 0).astype(float)
        for name, points in (("before", seen), ("after", places[accepted]))
    }
    section.figure(reporting.grid_maps(grids, low=low, high=high), alt="cells visited before and after augmentation")


def _ends(wall: Wall) -> tuple[tuple[float, float], tuple[float, float]]:
    if wall.axis == 0:
        return (wall.at, wall.low), (wall.at, wall.high)
    return (wall.low, wall.at), (wall.high, wall.at)
