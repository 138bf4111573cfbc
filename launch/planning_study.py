"""Studies: several planners over environments, budgets and seeds, one after another or in several processes.

`study` works on a plain mapping and a work directory; `launch.plan` calls it.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesafe_jax import metrics, planning
from edgesafe_jax.metrics import Interval
from edgesafe_jax.planning import Planner
from edgesafe_jax.reporting import Section, build_report, curves, make_table, write_fragment
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import open_workdir, write_json, write_summary
from launch import errors, startup
from launch.planning import SIMULATORS, Config, Environment, check_planner, make_environment, make_planner

_NUM_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Cell:
    """One episode of a study.

    Attributes:
      environment: its name.
      planner: its name.
      budget: trajectories at each step.
      seed: of the episode.
      num_steps: of the episode.
    """

    environment: str
    planner: str
    budget: int
    seed: int
    num_steps: int

    @property
    def file_name(self) -> str:
        """Where its row is kept in the folder of the cells."""
        return f"{self.environment}-{self.planner}-{self.budget}-{self.seed}.json"


def check_study(config: Config) -> None:
    """Refuses a config of configs/plan_study.py that cannot be run.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    found = errors.lookup(SIMULATORS, config["simulator"], "config.simulator")
    if not config["environments"] or int(config["num_seeds"]) < 1:
        raise errors.ConfigError("config: expected at least one environment and one seed.")
    for name, steps in config["environments"].items():
        errors.lookup(found, name, f"config.environments (of simulator {config['simulator']})")
        if int(steps) < 1:
            raise errors.ConfigError(f"config.environments.{name}={steps}: expected at least 1 step.")
    if set(config["cells"]) != set(config["environments"]):
        have, need = (", ".join(config[part]) for part in ("cells", "environments"))
        raise errors.ConfigError(f"config.cells of {have}: expected those of config.environments, {need}.")
    if not any(any(planners.values()) for planners in config["cells"].values()):
        raise errors.ConfigError("config.cells: expected at least one planner with a budget.")
    for planners in config["cells"].values():
        for planner, budgets in planners.items():
            for budget in budgets:
                check_planner(planner, budget)
    if int(config["num_processes"]) < 1:
        raise errors.ConfigError(f"config.num_processes={config['num_processes']}: expected at least 1.")


def cells_of(config: Config) -> list[Cell]:
    """All episodes of a study: environment by environment, planner by planner, budget by budget."""
    return [
        Cell(environment, name, int(budget), seed, int(steps))
        for environment, steps in config["environments"].items()
        for name, budgets in config["cells"][environment].items()
        for budget in budgets
        for seed in range(int(config["num_seeds"]))
    ]


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Episodes in the order in which they are run.

    Seed by seed, so that a study that is cut short has some seeds of everything; of one seed the longest first, so
    that several processes end at about the same time.
    """
    return sorted(cells, key=lambda cell: (cell.seed, -cell.num_steps * cell.budget))


class _Runner:
    """Runs episodes; keeps what several of them need."""

    def __init__(self, simulator: str, num_threads: int | None = None):
        self._simulator, self._num_threads = simulator, num_threads
        self._environments: dict[str, Environment] = {}
        self._planners: dict[tuple[str, str, int], Planner] = {}

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """The row of an episode; its return is None where the true environment did not stay finite."""
        if cell.environment not in self._environments:
            made = make_environment(self._simulator, cell.environment, num_threads=self._num_threads)
            self._environments[cell.environment] = made
        environment = self._environments[cell.environment]
        key = (cell.environment, cell.planner, cell.budget)
        if key not in self._planners:
            self._planners[key] = make_planner(cell.planner, environment.simulator(), environment, budget=cell.budget)
        planner = self._planners[key]
        row: dict[str, Any] = {
            "seed": cell.seed,
            "return": None,
            "success": False,
            "trajectories": planner.num_trajectories,
        }
        begun = time.process_time()
        try:
            episode = planning.run_episode(planner, environment, seed=cell.seed, num_steps=cell.num_steps)
        except planning.DivergedError:
            return row
        return row | {
            "return": float(np.sum(episode.results.reward)),
            "cost": float(np.sum(episode.results.cost)),
            "success": bool(np.any(episode.results.success)),
            "plan_seconds": float(np.median(episode.plan_seconds)),
            "processor_seconds": time.process_time() - begun,
        }


_in_this_process: list[_Runner] = []


def _start_process(simulator: str) -> None:
    """Prepares a process of the pool: one thread of MuJoCo, and no accelerator, of which there may be only one."""
    jax.config.update("jax_platforms", "cpu")
    startup.configure()
    _in_this_process.append(_Runner(simulator, num_threads=1))


def _run_in_process(cell: Cell) -> dict[str, Any]:
    return _in_this_process[0](cell)


def _finished(
    cells: Sequence[Cell], *, simulator: str, num_processes: int, may_start: Callable[[], bool]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Runs episodes as long as more of them may start; yields each as it is done."""
    if num_processes == 1:
        runner = _Runner(simulator)
        for cell in itertools.takewhile(lambda _: may_start(), cells):
            yield cell, runner(cell)
        return
    waiting = list(reversed(cells))
    running: dict[concurrent.futures.Future[dict[str, Any]], Cell] = {}
    with concurrent.futures.ProcessPoolExecutor(
        min(num_processes, max(len(cells), 1)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads of jax may hang
        initializer=_start_process,
        initargs=(simulator,),
    ) as pool:
        try:
            while True:
                while waiting and len(running) < num_processes and may_start():
                    cell = waiting.pop()
                    running[pool.submit(_run_in_process, cell)] = cell
                if not running:
                    return
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise errors.ConfigError(
                f"config.num_processes={num_processes}: a process ended before its episode, which may be for want of "
                "memory; give the same command again, with fewer processes."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def study(config: Config, workdir: str | Path) -> Path:
    """Runs planners over environments, budgets and seeds; an interrupted study continues.

    Args:
      config: that of configs/plan_study.py.
      workdir: where everything is written, each episode as it is done.

    Returns:
      The report.

    Raises:
      ConfigError: a value of the config means nothing.
      WorkdirError: the directory holds another study.
    """
    check_study(config)
    workdir = open_workdir(workdir, config, ignore=("num_processes", "max_minutes"))
    folder = workdir / "cells"
    folder.mkdir(exist_ok=True)
    wanted = cells_of(config)
    missing = in_order([cell for cell in wanted if not (folder / cell.file_name).exists()])
    minutes, begun = float(config["max_minutes"]), time.monotonic()
    done = _finished(
        missing,
        simulator=config["simulator"],
        num_processes=int(config["num_processes"]),
        may_start=lambda: minutes < 0 or time.monotonic() - begun < 60 * minutes,
    )
    with ProgressBar("study") as progress:
        progress(len(wanted) - len(missing), len(wanted))
        for number, (cell, row) in enumerate(done, start=1):
            write_json(folder / cell.file_name, row)
            progress(len(wanted) - len(missing) + number, len(wanted))
            print(f"{cell.file_name.removesuffix('.json')}: {row['return']}", file=sys.stderr)
    return _report(config, workdir, wanted)


def _report(config: Config, workdir: Path, wanted: Sequence[Cell]) -> Path:
    """Writes the tables and figures of the episodes that there are."""
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell in wanted:
        file = workdir / "cells" / cell.file_name
        if file.exists():
            row = json.loads(file.read_text(encoding="utf-8"))
            cells.setdefault((cell.environment, cell.planner, cell.budget), []).append(row)
    rows, values = study_results(cells)
    write_summary(workdir, "planning_study", values)
    section = Section("Planning: planners over budgets", order=2)
    num_done = sum(map(len, cells.values()))
    if num_done < len(wanted):
        section.notes([f"{num_done} of {len(wanted)} episodes are done; the same command goes on."])
        print(f"{num_done} of {len(wanted)} episodes are done; the same command goes on.")
    if rows:
        section.table(rows, caption="Return in the true environment: mean and 95 % bootstrap interval over seeds")
        print(make_table(rows).to_text())
    factors = samples_to_reach(cells)
    if factors:
        section.table(factors, caption="Trajectories that iCEM needs for the return of the best rival")
        print(make_table(factors).to_text())
    for environment in config["environments"]:
        series: dict[str, list[tuple[float, Any]]] = {}
        for (where, name, budget), seeds in cells.items():
            if where == environment and (returns := _returns(seeds)):
                series.setdefault(name, []).append((budget, _interval(list(returns.values()))))
        if series:
            section.figure(
                curves(series, xlabel="trajectories a step", ylabel="return", title=environment, log_x=True),
                alt=f"Return against the budget of trajectories on {environment}",
            )
    write_fragment(workdir, "planning_study", section)
    return build_report(workdir, title="edgesafe_jax: planning")


Cells = Mapping[tuple[str, str, int], Sequence[Mapping[str, Any]]]


def _returns(seeds: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Returns of the episodes that stayed finite, by seed."""
    return {
        int(row["seed"]): float(row["return"])
        for row in seeds
        if row["return"] is not None and math.isfinite(row["return"])
    }


def _interval(values: Sequence[float]) -> Interval | float:
    return metrics.bootstrap_interval(np.asarray(values)) if len(values) > 1 else float(values[0])


def study_results(cells: Cells) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a study's table and its flat numbers.

    What a planner is compared with is iCEM at the same budget, on the seeds that both have: the difference of returns
    and, where all of them are above 0, iCEM's mean return as a multiple of the planner's.
    """
    rows, values = [], {}
    for (environment, name, budget), seeds in cells.items():
        returns = _returns(seeds)
        if not returns:
            rows.append({"environment": environment, "planner": name, "budget": budget, "diverged": len(seeds)})
            continue
        success = float(np.mean([row["success"] for row in seeds]))
        icem = _returns(cells.get((environment, "icem", budget), ()))
        difference = multiple = None
        both = sorted(returns.keys() & icem.keys())
        diverged = len(seeds) - len(returns)
        if name != "icem" and len(both) > 1 and not diverged:
            theirs, ours = np.array([returns[seed] for seed in both]), np.array([icem[seed] for seed in both])
            difference = metrics.paired_bootstrap_interval(values=theirs, baseline=ours)
            if min(theirs.min(), ours.min()) > 0:
                multiple = metrics.bootstrap_interval(
                    np.stack([ours, theirs], axis=1), statistic=lambda drawn: float(np.divide(*drawn.mean(axis=0)))
                )
        rows.append(
            {
                "environment": environment,
                "planner": name,
                "budget": budget,
                "seeds": len(seeds),
                "diverged": diverged,
                "return": _interval(list(returns.values())),
                "minus icem": difference,
                "icem / it": multiple,
                "success": success,
                "plan (ms)": 1000 * float(np.median([row["plan_seconds"] for row in seeds if "plan_seconds" in row])),
            }
        )
        values[f"{environment}/{name}/{budget}/return"] = float(np.mean(list(returns.values())))
        values[f"{environment}/{name}/{budget}/success"] = success
    return rows, values


def samples_to_reach(cells: Cells) -> list[dict[str, Any]]:
    """How many trajectories iCEM needs for what the best rival reaches at its largest budget.

    The best rival is that of the highest mean over its own seeds. Mean returns of iCEM are interpolated in the
    logarithm of the budget; a budget below its smallest or above its largest is given as a bound. The means are over
    the seeds that all of these cells have, so that no budget meets easier episodes than another; the interval (95 %)
    draws from them, the same ones for iCEM and the rival, and an end of it that is a bound is marked as one.

    Args:
      cells: rows of seeds by (environment, planner, budget).

    Returns:
      One row per environment in which there are both, with a seed in common.
    """
    rows = []
    for environment in dict.fromkeys(where for where, _, _ in cells):
        returns = {
            (name, budget): found
            for (where, name, budget), seeds in cells.items()
            if where == environment and (found := _returns(seeds))
        }
        ours = sorted(budget for name, budget in returns if name == "icem")
        rivals = [key for key in returns if not key[0].startswith("icem")]
        if not ours or not rivals:
            continue
        largest = max(budget for _, budget in rivals)
        rival = max((key for key in rivals if key[1] == largest), key=lambda key: np.mean(list(returns[key].values())))
        chosen = [returns["icem", budget] for budget in ours] + [returns[rival]]
        seeds = sorted(set.intersection(*(set(found) for found in chosen)))
        if not seeds:
            continue
        table = np.array([[found[seed] for found in chosen] for seed in seeds])
        mean = table.mean(axis=0)
        needed, bound = _crossing(ours, mean)
        row: dict[str, Any] = {
            "environment": environment,
            "seeds": len(seeds),
            "best rival": rival[0],
            "its budget": largest,
            "its return": float(mean[-1]),
            "iCEM needs": f"{bound}{needed:.0f}",
            "factor": _factor(largest, needed, bound),
        }
        if len(seeds) > 1:
            drawn = np.random.default_rng(0).integers(0, len(seeds), (_NUM_DRAWS, len(seeds)))
            means = table[drawn].mean(axis=1)
            crossings = [_crossing(ours, each) for each in means]
            # In this order a bound stands beyond the budget that it is a bound of.
            crossings.sort(key=lambda found: (found[0], {"<": -1, "": 0, ">": 1}[found[1]]))
            least, most = (crossings[round(share * (_NUM_DRAWS - 1))] for share in (0.025, 0.975))
            row["factor, 95 %"] = f"[{_factor(largest, *most)}, {_factor(largest, *least)}]"
        rows.append(row)
    return rows


def _factor(largest: int, needed: float, bound: str) -> str:
    """How many times fewer trajectories, as text; fewer than a bound are more times fewer."""
    return f"{ {'<': '>', '>': '<', '': ''}[bound] }{largest / needed:.1f}"


def _crossing(budgets: Sequence[int], means: np.ndarray) -> tuple[float, str]:
    """Where the means at the budgets first reach the one behind them, and ``<`` or ``>`` where beyond their ends."""
    points, target = list(zip(budgets, means[:-1], strict=True)), means[-1]
    if points[0][1] >= target:
        return float(points[0][0]), "<"
    for (low, below), (high, above) in itertools.pairwise(points):
        if above >= target:
            share = (target - below) / (above - below)
            return float(low * (high / low) ** share), ""
    return float(points[-1][0]), ">"
