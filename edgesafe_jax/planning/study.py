"""Studies: several planners over tasks, budgets and seeds, one after another or in several processes."""

import concurrent.futures
import dataclasses
import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias

import numpy as np

from edgesafe_jax import metrics
from edgesafe_jax.metrics import Interval
from edgesafe_jax.planning import mpc
from edgesafe_jax.planning.environments import make_task
from edgesafe_jax.planning.planner import Planner, PlanningError
from edgesafe_jax.planning.registry import make_planner
from edgesafe_jax.planning.tasks import JaxTask, MujocoTask

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
        """File of its row in the folder of the cells."""
        return f"{self.environment}-{self.planner}-{self.budget}-{self.seed}.json"


def make_cells(
    environments: Mapping[str, int], budgets: Mapping[str, Mapping[str, Sequence[int]]], *, num_seeds: int
) -> list[Cell]:
    """Returns all episodes of a study: environment by environment, planner by planner, budget by budget.

    Args:
      environments: from name to the steps of an episode.
      budgets: from environment and planner to budgets.
      num_seeds: episodes of each, with seeds from 0 on.
    """
    return [
        Cell(environment, name, int(budget), seed, int(steps))
        for environment, steps in environments.items()
        for name, found in budgets[environment].items()
        for budget in found
        for seed in range(num_seeds)
    ]


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Episodes in the order in which they are run.

    Seed by seed, so that a study that is cut short has some seeds of everything; of one seed the longest first, so
    that several processes end at about the same time.
    """
    return sorted(cells, key=lambda cell: (cell.seed, -cell.num_steps * cell.budget))


class CellRunner:
    """Runs episodes of a study; keeps the tasks and planners that several of them need."""

    def __init__(self, simulator: str, *, num_threads: int | None = None):
        """Starts without any.

        Args:
          simulator: a key of `edgesafe_jax.planning.ENVIRONMENTS`.
          num_threads: of C MuJoCo; None takes one per processor.
        """
        self._simulator, self._num_threads = simulator, num_threads
        self._tasks: dict[str, JaxTask | MujocoTask] = {}
        self._planners: dict[tuple[str, str, int], Planner] = {}

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Returns the row of an episode; its return is None where the true environment did not stay finite."""
        if cell.environment not in self._tasks:
            self._tasks[cell.environment] = make_task(self._simulator, cell.environment, num_threads=self._num_threads)
        task = self._tasks[cell.environment]
        key = (cell.environment, cell.planner, cell.budget)
        if key not in self._planners:
            self._planners[key] = make_planner(cell.planner, task.simulator(), task, budget=cell.budget)
        planner = self._planners[key]
        row: dict[str, Any] = {
            "seed": cell.seed,
            "return": None,
            "success": False,
            "trajectories": planner.num_trajectories,
        }
        begun = time.process_time()
        try:
            episode = mpc.run_episode(planner, task, seed=cell.seed, num_steps=cell.num_steps)
        except mpc.DivergedError:
            return row
        return row | {
            "return": float(np.sum(episode.results.reward)),
            "cost": float(np.sum(episode.results.cost)),
            "success": bool(np.any(episode.results.success)),
            "plan_seconds": float(np.median(episode.plan_seconds)),
            "processor_seconds": time.process_time() - begun,
        }


_in_this_process: list[CellRunner] = []


def _start_process(simulator: str, configure: Callable[[], None] | None) -> None:
    if configure is not None:
        configure()
    _in_this_process.append(CellRunner(simulator, num_threads=1))


def _run_in_process(cell: Cell) -> dict[str, Any]:
    return _in_this_process[0](cell)


def run_cells(
    cells: Sequence[Cell],
    *,
    simulator: str,
    num_processes: int = 1,
    may_start: Callable[[], bool] = lambda: True,
    configure: Callable[[], None] | None = None,
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Runs episodes as long as more of them may start.

    Args:
      cells: in the order in which they start.
      simulator: a key of `edgesafe_jax.planning.ENVIRONMENTS`.
      num_processes: 1 runs in this process; more run one episode each, on one thread of C MuJoCo.
      may_start: asked before each episode.
      configure: called first in each further process, such as to set the platform of jax; a function of a module.

    Yields:
      Each episode with its row, as it is done.

    Raises:
      PlanningError: a process ended before its episode.
    """
    if num_processes == 1:
        runner = CellRunner(simulator)
        for cell in itertools.takewhile(lambda _: may_start(), cells):
            yield cell, runner(cell)
        return
    waiting = list(reversed(cells))
    running: dict[concurrent.futures.Future[dict[str, Any]], Cell] = {}
    with concurrent.futures.ProcessPoolExecutor(
        min(num_processes, max(len(cells), 1)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork of a process with threads of jax may hang
        initializer=_start_process,
        initargs=(simulator, configure),
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
            raise PlanningError(
                f"num_processes={num_processes}: a process ended before its episode, possibly for lack of memory; "
                "run the same command again with fewer processes."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


Cells: TypeAlias = Mapping[tuple[str, str, int], Sequence[Mapping[str, Any]]]
"""Rows of the seeds by (environment, planner, budget)."""


def returns_by_seed(seeds: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Returns of the episodes that stayed finite, by seed."""
    return {
        int(row["seed"]): float(row["return"])
        for row in seeds
        if row["return"] is not None and math.isfinite(row["return"])
    }


def interval_of(values: Sequence[float]) -> Interval:
    """Returns the mean with a bootstrap interval; a single value has none, and tables say so."""
    return metrics.bootstrap_interval(np.asarray(values))


def study_results(cells: Cells) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The rows of a study's table and its flat numbers.

    What a planner is compared with is iCEM at the same budget, on the seeds that both have: the difference of returns
    and, where all of them are above 0, iCEM's mean return as a multiple of the planner's.
    """
    rows, values = [], {}
    for (environment, name, budget), seeds in cells.items():
        returns = returns_by_seed(seeds)
        if not returns:
            rows.append({"environment": environment, "planner": name, "budget": budget, "diverged": len(seeds)})
            continue
        success = float(np.mean([row["success"] for row in seeds]))
        icem = returns_by_seed(cells.get((environment, "icem", budget), ()))
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
                "return": interval_of(list(returns.values())),
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
    """Computes the trajectories that iCEM needs for the return of the best other planner at its largest budget.

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
            if where == environment and (found := returns_by_seed(seeds))
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
            least, most = (crossings[round(level * (_NUM_DRAWS - 1))] for level in (0.025, 0.975))
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
            fraction = (target - below) / (above - below)
            return float(low * (high / low) ** fraction), ""
    return float(points[-1][0]), ">"
