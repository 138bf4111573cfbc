"""Whole runs of configs/offline_rl.py, each with data, model, translations and policies of its own, and their table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import reporting
from edgesafe_jax.metrics import bootstrap_interval
from edgesafe_jax.metrics.intervals import Interval
from edgesafe_jax.offline_rl import interquartile_mean
from edgesafe_jax.training import open_workdir, write_summary
from edgesafe_jax.training.workdir import SUMMARY, to_json
from launch import errors, offline

Config = Mapping[str, Any]

_BANK = ("accepted", "verified", "wrong_among_accepted", "wrong_among_proposed", "coverage_before", "coverage_after")


def train(config: Config, workdir: str | Path) -> Path:
    """Trains `config.num_runs` whole runs one after another, seeds from `config.seed` on, and puts them together.

    A run is a work directory of its own, `runs/seed_S`, with the config that differs in `seed` and `num_runs` (1): it
    resumes, a finished one is read, and several processes can make some of them each, by
    `--config.seed=S --config.num_runs=1 --workdir=DIR/runs/seed_S`. More runs can be added later.

    Returns:
      The report.

    Raises:
      ConfigError: `num_runs` is not above 0, or as `offline.train_policies`.
      WorkdirError: a work directory holds a run with another config.
    """
    num = int(config["num_runs"])
    if num < 1:
        raise errors.ConfigError(f"config.num_runs={num}: expected at least 1")
    if num == 1:
        return offline.train_policies(config, workdir)
    workdir = open_workdir(workdir, config, ignore=("num_runs",))
    summaries: dict[int, dict[str, float]] = {}
    for seed in range(int(config["seed"]), int(config["seed"]) + num):
        run = workdir / "runs" / f"seed_{seed}"
        print(f"== run of seed {seed} ==")
        one = {**config, "seed": seed, "num_runs": 1}
        open_workdir(run, one)  # refuses what another config has left there
        if not (run / SUMMARY).exists():
            offline.train_policies(one, run)
        summaries[seed] = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    return _report(config, workdir, summaries)


def over_runs(values: Sequence[float]) -> Interval:
    """Interquartile mean over runs with its 95 % bootstrap interval."""
    return bootstrap_interval(np.asarray(values, np.float64), statistic=interquartile_mean)


def _report(config: Config, workdir: Path, summaries: Mapping[int, Mapping[str, float]]) -> Path:
    """Writes summary and report of the runs together."""
    runs = list(summaries.values())
    values: dict[str, float] = {"num_runs": len(runs)}

    def add(name: str) -> tuple[Interval, float, float]:
        """One quantity over runs: its interval, the lowest and the highest."""
        each = [run[f"offline_rl/{name}"] for run in runs]
        interval, low, high = over_runs(each), min(each), max(each)
        values.update(interval.named(name))
        values.update({f"{name}_lowest": low, f"{name}_highest": high})
        return interval, low, high

    ends = ("_low", "_high")
    strata = {
        method: [
            key.removeprefix(f"offline_rl/{method}/")
            for key in runs[0]
            if key.startswith(f"offline_rl/{method}/") and not key.endswith(ends)
        ]
        for method in config["methods"]
    }
    found = {method: {stratum: add(f"{method}/{stratum}") for stratum in names} for method, names in strata.items()}
    section = reporting.Section("Offline RL, whole runs", order=20)
    rows = [
        {"method": method, **{stratum.replace("_", " "): interval for stratum, (interval, _, _) in each.items()}}
        for method, each in found.items()
    ]
    caption = (
        f"Success, interquartile mean over {len(runs)} runs with bootstrap 95 % intervals over runs: each has data, a "
        "model, translations, policies and evaluation episodes of its own."
    )
    section.table(rows, caption=caption, digits=3)
    print(reporting.make_table(rows, digits=3).to_text())
    worst = [
        {"method": method, **{stratum.replace("_", " "): low for stratum, (_, low, _) in each.items()}}
        for method, each in found.items()
    ]
    section.table(worst, caption="The worst run of each.", digits=3)
    banks = []
    for bank in ("symmetry", "symmetry_fresh"):
        # A run that accepted nothing has no share of wrong ones among it.
        names = [n for n in _BANK if all(run.get(f"offline_rl/{bank}/{n}") is not None for run in runs)]
        for name in names:
            interval, low, high = add(f"{bank}/{name}")
            banks.append({"translations": bank, "share": name, "over runs": interval, "lowest": low, "highest": high})
    if banks:
        section.table(banks, caption="Learned translations, on the data and on fresh episodes.", digits=4)
        print(reporting.make_table(banks, digits=4).to_text())
    write_summary(workdir, "offline_rl_runs", to_json(values))
    reporting.write_fragment(workdir, "offline_rl_runs", section)
    report = reporting.build_report(workdir, "edgesafe_jax", subtitle=f"Offline RL, {len(runs)} whole runs")
    print(f"report: {report}")
    return report
