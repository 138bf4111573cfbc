r"""Runs a matrix of experiments: the cells of a sweep's config that are missing, then more seeds of the best.

    python -m launch.sweep --config=configs/study_alignment.py --workdir=DIR [--processes=N]
    python -m launch.sweep --config=configs/study_alignment.py --workdir=DIR --cluster=slurm --processes=20 \
        --cluster_options=slurm_partition=gpu,timeout_min=240

The same command continues. Each cell is a work directory below DIR/cells. `launch.report` compares them.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from edgesafe_jax import sweeps
from edgesafe_jax.errors import POSITIVE_COUNT, check_ranges
from edgesafe_jax.fields import check_fields
from edgesafe_jax.training import check_folder, open_workdir
from . import alignment, errors, evaluate, get_config, guards, plan, planning, planning_study, startup, train

TASKS = {**train.TASKS, **plan.TASKS}
CHECKS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "alignment": alignment.check,
    "guard_consistency": guards.check_consistency,
    "planning": planning.check,
    "planning_study": planning_study.check_study,
}
"""Checks of a cell's config before any work, of tasks whose fields depend on each other."""


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    startup.define_config_flags()
    flags.DEFINE_integer("processes", 1, "Processes, or jobs of the cluster, that run cells at once.")
    flags.DEFINE_bool("extend", False, "Let the matrix have other values than before; cells keep their configs.")
    flags.DEFINE_string("cluster", "", "Where jobs are submitted (submitit): slurm, local or debug; default none.")
    flags.DEFINE_list("cluster_options", [], "NAME=VALUE of submitit's update_parameters, such as timeout_min=60.")


def read_sweep(config: Mapping[str, Any]) -> sweeps.Sweep:
    """Makes the sweep that a config describes, its cells checked, or raises ConfigError."""
    if config.get("task") != "sweep":
        raise errors.ConfigError(f"config.task={config.get('task')!r}: expected 'sweep', as in configs/study_*.py.")
    check_fields(config)
    try:
        base = get_config(config["base"], config["variant"]).to_dict()
    except ValueError as error:
        raise errors.ConfigError(f"config.base={config['base']!r}, variant {config['variant']!r}: {error}") from error
    chosen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config["selection"].items()}
    with errors.named("config."):
        axes = sweeps.make_axes(config["axes"], levels=config["levels"], factors=config["factors"])
        sweep = sweeps.make_sweep(base, axes, changes=config["changes"], selection=sweeps.Selection(**chosen))
    errors.lookup(TASKS, base["task"], "config.base: task")
    for cell in sweep.cells:
        with errors.named(f"{cell.name}: "):
            CHECKS.get(base["task"], check_fields)(cell.config)
    return sweep


def run_cell(config: Mapping[str, Any], workdir: Path, shared: Path) -> None:
    """Trains and measures one cell."""
    task = config["task"]
    if task == "alignment":
        alignment.train(config, workdir, shared=shared)
        alignment.evaluate(alignment.read_run(workdir), workdir, shared=shared)
        return
    TASKS[task](config, workdir)
    if task in evaluate.GUARDS:
        evaluate.GUARDS[task](workdir)


def work(cells: Sequence[sweeps.Cell], root: Path) -> None:
    """Runs cells, in this process or in one of their own."""
    startup.configure()
    sweeps.run_cells(cells, root, run_cell)


def main(argv: list[str]) -> None:
    """Runs the sweep."""
    startup.configure()
    with errors.reported():
        given = flags.FLAGS
        config, num = given.config.to_dict(), given.processes
        check_ranges({"processes": num}, {"processes": POSITIVE_COUNT}, prefix="--")
        check_folder(given.workdir, "--workdir")
        sweep = read_sweep(config)
        launcher = sweeps.in_processes(num) if num > 1 else sweeps.in_this_process
        if given.cluster:
            launcher = sweeps.as_jobs(num, cluster=given.cluster, options=sweeps.parse_options(given.cluster_options))
        ignore = ("report", "axes", "levels", "factors", "selection") if given.extend else ("report",)
        root = open_workdir(os.path.abspath(given.workdir), config, ignore=ignore)
        by_name = importlib.import_module(f"{__package__}.sweep").work  # not of __main__: other processes import it
        failed = sweeps.run_sweep(sweep, root, by_name, launcher, num_processes=num)
        print(f"python -m launch.report {given.workdir}")
        if failed:
            text = "\n".join(failed)
            raise errors.ConfigError(f"{len(failed)} cells failed; the same command tries them again.\n{text}")


if __name__ == "__main__":
    errors.start(define_flags, main)
