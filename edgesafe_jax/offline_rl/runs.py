"""Several whole runs, each with its own data, model, translations and policies, and their common table."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import reporting
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.offline_rl.evaluation import interval_over
from edgesafe_jax.offline_rl.report import RunReport
from edgesafe_jax.training import open_workdir
from edgesafe_jax.training.workdir import SUMMARY, to_json

_log = logging.getLogger(__name__)

_BANK = ("accepted", "verified", "wrong_among_accepted", "wrong_among_proposed", "coverage_before", "coverage_after")


def run_seeds(
    run_one: Callable[[dict[str, Any], Path], object], config: Mapping[str, Any], workdir: str | Path
) -> dict[int, dict[str, float]]:
    """Makes `num_runs` whole runs one after another, seeds from `seed` on.

    A run is a work directory of its own, `runs/seed_S`, with the config that differs in `seed` and `num_runs` (1): it
    resumes, a finished one is read, and several processes can make some of them each. More runs can be added later.

    Args:
      run_one: makes one run of a config in a directory and leaves its summary there.
      config: the plain settings of all runs, with ``seed`` and ``num_runs``.
      workdir: the work directory of all.

    Returns:
      From seed to the summary of its run.

    Raises:
      WorkdirError: a work directory holds a run with another config.
    """
    workdir = open_workdir(workdir, config, ignore=("num_runs",))
    first, num = int(config["seed"]), int(config["num_runs"])
    summaries: dict[int, dict[str, float]] = {}
    for seed in range(first, first + num):
        run = workdir / "runs" / f"seed_{seed}"
        _log.info("== run of seed %d ==", seed)
        one = {**config, "seed": seed, "num_runs": 1}
        open_workdir(run, one)  # refuses what another config has left there
        if not (run / SUMMARY).exists():
            run_one(one, run)
        summaries[seed] = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    return summaries


def over_runs(values: Sequence[float]) -> Interval:
    """Returns the interquartile mean over runs with its 95 % bootstrap interval."""
    return interval_over(np.asarray(values, np.float64))


def report_runs(summaries: Sequence[Mapping[str, float]], methods: Sequence[str]) -> RunReport:
    """Puts the summaries of whole runs together.

    Args:
      summaries: of the runs, as `report_policies` and `save_report` write them under ``offline_rl``.
      methods: the methods that all of them have.

    Returns:
      For each method and stratum, and for the banks, the interquartile mean over runs with its interval, the lowest
      and the highest.
    """
    values: dict[str, float] = {"num_runs": len(summaries)}

    def add(name: str) -> tuple[Interval, float, float]:
        """One quantity over runs: its interval, the lowest and the highest."""
        each = [run[f"offline_rl/{name}"] for run in summaries]
        interval, low, high = over_runs(each), min(each), max(each)
        values.update(interval.named(name))
        values.update({f"{name}_lowest": low, f"{name}_highest": high})
        return interval, low, high

    found = {method: {s: add(f"{method}/{s}") for s in _strata(summaries[0], method)} for method in methods}
    section = reporting.Section("Offline RL, whole runs", order=20)
    rows, worst = (
        [
            {"method": method, **{s.replace("_", " "): measured[part] for s, measured in each.items()}}
            for method, each in found.items()
        ]
        for part in (0, 1)
    )
    caption = (
        f"Success, interquartile mean over {len(summaries)} runs with bootstrap 95 % intervals over runs: each has "
        "data, a model, translations, policies and evaluation episodes of its own."
    )
    section.table(rows, caption=caption, digits=3)
    section.table(worst, caption="The worst run of each.", digits=3)
    tables = [reporting.make_table(rows, digits=3)]
    banks = []
    for bank in ("symmetry", "symmetry_fresh", "tested", "tested_fresh"):
        # A run that accepted nothing has no fraction of wrong ones among it.
        names = [n for n in _BANK if all(run.get(f"offline_rl/{bank}/{n}") is not None for run in summaries)]
        for name in names:
            interval, low, high = add(f"{bank}/{name}")
            banks.append({"translations": bank, "rate": name, "over runs": interval, "lowest": low, "highest": high})
    timed = [name for name in summaries[0] if name.startswith("offline_rl/plans/")]
    plans = [
        {"plans": name.removeprefix("plans/"), "over runs": add(name)[0]}
        for name in (each.removeprefix("offline_rl/") for each in timed)
    ]
    if plans:
        section.table(plans, caption="One plan by itself, without compilation.", digits=3)
        tables.append(reporting.make_table(plans, digits=3))
    if banks:
        section.table(banks, caption="Tested translations, on the data and on fresh episodes.", digits=4)
        tables.append(reporting.make_table(banks, digits=4))
    return RunReport(section, to_json(values), tables)


def _strata(summary: Mapping[str, float], method: str) -> list[str]:
    """The strata of a method in a summary, without the ends of their intervals."""
    prefix = f"offline_rl/{method}/"
    names = [key.removeprefix(prefix) for key in summary if key.startswith(prefix)]
    return [name for name in names if not name.endswith(("_low", "_high"))]
