"""Studies: several planners over tasks, budgets and seeds, run by `edgesafe_jax.planning.study` and reported here.

`study` works on a plain mapping and a work directory; `launch.plan` calls it.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from edgesafe_jax import planning
from edgesafe_jax.fields import check_fields
from edgesafe_jax.planning.study import (
    Cell,
    in_order,
    make_cells,
    run_cells,
    samples_to_reach,
    study_results,
)
from edgesafe_jax.reporting import build_report, make_table, write_fragment
from edgesafe_jax.reporting.episodes import study_section
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import is_whole, open_workdir, write_json, write_summary
from . import errors, startup
from .planning import Config


def check_study(config: Config) -> None:
    """Refuses a config of configs/plan_study.py that cannot be run.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    check_fields(config)
    found = planning.ENVIRONMENTS[config["simulator"]]
    for name in config["environments"]:
        errors.lookup(found, name, f"config.environments (of simulator {config['simulator']})")
    if set(config["cells"]) != set(config["environments"]):
        have, need = (", ".join(config[part]) for part in ("cells", "environments"))
        raise errors.ConfigError(f"config.cells of {have}: expected those of config.environments, {need}.")
    if not any(any(planners.values()) for planners in config["cells"].values()):
        raise errors.ConfigError("config.cells: expected at least one planner with a budget.")


def _configure_process() -> None:
    """Sets up one process of several: no accelerator, of which there may be only one."""
    jax.config.update("jax_platforms", "cpu")
    startup.configure()


def study(config: Config, workdir: str | Path) -> Path:
    """Runs planners over environments, budgets and seeds; an interrupted study continues.

    Args:
      config: that of configs/plan_study.py.
      workdir: where everything is written, each episode as it is done.

    Returns:
      The report.

    Raises:
      ConfigError: a value of the config is invalid.
      WorkdirError: the directory holds another study.
    """
    check_study(config)
    workdir = open_workdir(workdir, config, ignore=("num_processes", "max_minutes"))
    folder = workdir / "cells"
    folder.mkdir(exist_ok=True)
    wanted = make_cells(config["environments"], config["cells"], num_seeds=int(config["num_seeds"]))
    missing = in_order([cell for cell in wanted if not is_whole(folder / cell.file_name)])
    minutes, begun = float(config["max_minutes"]), time.monotonic()
    done = run_cells(
        missing,
        simulator=config["simulator"],
        num_processes=int(config["num_processes"]),
        may_start=lambda: minutes < 0 or time.monotonic() - begun < 60 * minutes,
        configure=_configure_process,
    )
    with ProgressBar("study") as progress:
        progress(len(wanted) - len(missing), len(wanted))
        for number, (cell, row) in enumerate(done, start=1):
            write_json(folder / cell.file_name, row, checked=True)
            progress(len(wanted) - len(missing) + number, len(wanted))
            print(f"{cell.file_name.removesuffix('.json')}: {row['return']}", file=sys.stderr)
    return _report(config, workdir, wanted)


def _report(config: Config, workdir: Path, wanted: Sequence[Cell]) -> Path:
    """Writes the tables and figures of the episodes that there are."""
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell in wanted:
        file = workdir / "cells" / cell.file_name
        if is_whole(file):
            row = json.loads(file.read_text(encoding="utf-8"))
            cells.setdefault((cell.environment, cell.planner, cell.budget), []).append(row)
    rows, values = study_results(cells)
    factors = samples_to_reach(cells)
    write_summary(workdir, "planning_study", values)
    num_done = sum(map(len, cells.values()))
    section = study_section(cells, rows, factors, num_done=num_done, num_wanted=len(wanted))
    if num_done < len(wanted):
        print(f"{num_done} of {len(wanted)} episodes are done; the same command continues.")
    for table in filter(None, (rows, factors)):
        print(make_table(table).to_text())
    write_fragment(workdir, "planning_study", section)
    return build_report(workdir, title="edgesafe_jax: planning")
