"""Batches of planning problems in one call against as many single plans.

On a world model of the kind that is learned (`--suite=planner_learned`) and on brax's halfcheetah
(`--suite=planner_brax`, not part of the suite `planner`: it compiles for long). The fraction of a batch that its
simulations alone take is the least that a batch could cost. Where there are several devices, the batch is also spread
over them: on a laptop of two cores `XLA_FLAGS=--xla_force_host_platform_device_count=2` makes each a device. The
arithmetic is that of the model in the trajectories that are simulated; the limits that it is compared with are matrix
products timed in the same run at the same precision: large square ones, and the hidden layer's product of as many rows
as the batch simulates at once, from memory to memory. On an accelerator up to 4096 problems, populations unrolled and
padded, and float32 products beside the default precision.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import parallel, planning
from edgesafe_jax.benchmarks.harness import NUM_RUNS, Row, in_turn, median_ratio, on_accelerator, same_columns
from edgesafe_jax.planning import JaxTask
from edgesafe_jax.planning.search import Population
from edgesafe_jax.reporting import curves

PROBLEMS = (1, 4, 16, 64, 256)
ACCELERATOR_PROBLEMS = (1, 16, 64, 256, 1024, 4096)
MOST_SINGLES = 64  # single plans that are timed; a larger batch is compared with as many times more
LEARNED_SIZES = (17 + 6, 128, 128, 17)
LEARNED_FLOPS = 2 * sum(a * b for a, b in itertools.pairwise(LEARNED_SIZES))
Points: TypeAlias = dict[str, list[tuple[float, float]]]


def _learned_task() -> JaxTask:
    """A world model of the size that is learned in practice, with random weights: only its arithmetic matters here."""
    rng = np.random.default_rng(0)
    weights = [
        jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32) for a, b in itertools.pairwise(LEARNED_SIZES)
    ]

    def step(state: Any, action: Any) -> Any:
        hidden = jnp.concatenate([state, action])
        for weight in weights[:-1]:
            hidden = jax.nn.silu(hidden @ weight)
        state = state + 0.1 * (hidden @ weights[-1])
        return state, planning.step_result(jnp.sum(state**2) + 0.1 * jnp.sum(action**2))

    bound = np.ones(6, np.float32)
    return JaxTask(
        "learned model", -bound, bound, 1000, 30, 0.25, 0.05, lambda key: jax.random.normal(key, (17,)), step
    )


def _products_per_second(rows: int, size: int) -> float:
    """FLOP/s of products `[rows, size] @ [size, size]` in float32, each of which reads and writes memory."""
    repeats = min(max(1, round((2e12 if on_accelerator() else 2e10) / (2 * rows * size**2))), 1000)
    factor = jax.random.normal(jax.random.key(1), (size, size)) / np.sqrt(size)
    start = jax.random.normal(jax.random.key(0), (rows, size))
    multiply = jax.jit(lambda x, w: jax.lax.fori_loop(0, repeats, lambda _, y: y @ w, x))
    times = in_turn({"products": lambda: multiply(start, factor)}, num_runs=3)["products"]
    return 2 * rows * size**2 * repeats / times.median


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One measurement: the number of problems, how the population is compiled, precision of products, devices."""

    problems: int
    population: Population = "unrolled"
    precision: str = "default"
    devices: int = 1
    singles: bool = True

    @property
    def label(self) -> str:
        """Its name among the numbers."""
        extra = [part for part in (self.population, self.precision) if part not in ("unrolled", "default")]
        spread = [f"{self.devices}_devices"] if self.devices > 1 else []
        return "/".join([str(self.problems), *extra, *spread])


def _batches(
    task: JaxTask, wanted: Sequence[_Batch], *, budget: int, step_flops: int = 0, num_runs: int = NUM_RUNS
) -> tuple[list[Row], dict[str, float], Points]:
    """Times batches of problems; each row is also printed on stderr as it is done, for a run that is interrupted."""
    simulate = task.simulator()
    rows: list[Row] = []
    values: dict[str, float] = {}
    points: Points = {}
    prefix = task.name.replace(" ", "_")
    planners = {
        each.population: planning.make_planner(
            "icem", simulate, task, budget=budget, settings=planning.IcemSettings(population=each.population)
        )
        for each in wanted
    }
    singles = {name: jax.jit(planner.plan) for name, planner in planners.items()}
    simulations = jax.jit(jax.vmap(simulate))
    at_once = planning.BUDGETS[budget][1]
    size = 8192 if on_accelerator() else 1024
    square = functools.cache(lambda precision: _products_per_second(size, size))
    for each in wanted:
        with jax.default_matmul_precision(each.precision):
            planner, count = planners[each.population], each.problems
            if each.devices > 1:
                batch = parallel.pmap_problems(planner.plan, num_devices=each.devices)
            else:
                batch = jax.jit(jax.vmap(planner.plan))
            keys = jax.random.split(jax.random.key(0), count)
            starts = jax.jit(jax.vmap(task.reset))(keys)
            states = jax.vmap(lambda _, planner=planner: planner.init())(jnp.arange(count))
            runs: dict[str, Callable[[], Any]] = {"batch": lambda b=batch, k=keys, s=states, e=starts: b(k, s, e)}
            timed = min(count, MOST_SINGLES)
            if each.singles:
                actions = jnp.zeros((count, planner.num_trajectories, task.horizon, len(task.low)))
                problems = [jax.tree.map(lambda leaf, i=i: leaf[i], (keys, states, starts)) for i in range(timed)]
                single = singles[each.population]
                runs["single"] = lambda p=problems, s=single: [jax.block_until_ready(s(*one)) for one in p]
                runs["simulations"] = lambda e=starts, a=actions: simulations(e, a)
            times = in_turn(runs, num_runs=num_runs)
            seconds = times["batch"].median
            samples = count * planner.num_trajectories * task.horizon / seconds
            row: Row = {
                "what": f"iCEM, {task.name}",
                "problems": count,
                "population": each.population,
                "devices": each.devices,
                "products": each.precision,
                "trajectories": planner.num_trajectories,
                "first call (s)": times["batch"].first,
                "median (ms)": 1000 * seconds,
                "plans / s": count / seconds,
                "samples / s": samples,
            }
            values[f"{prefix}/{each.label}/plans_per_second"] = count / seconds
            if each.singles:
                ratio = median_ratio(times["batch"].wall, times["single"].wall) * timed / count
                row["simulator fraction"] = median_ratio(times["simulations"].wall, times["batch"].wall)
                row["batch / single plans"] = values[f"{prefix}/{each.label}/batch_over_single"] = ratio
            if step_flops:
                row["GFLOP / s"] = values[f"{prefix}/{each.label}/gflops"] = samples * step_flops / 1e9
                limits = {"square": square(each.precision), "layer": _products_per_second(count * at_once, 128)}
                for name, limit in limits.items():
                    row[f"{name} products (GFLOP / s)"] = limit / 1e9
                    row[f"fraction of {name} products"] = samples * step_flops / limit
                    values[f"{prefix}/{each.label}/fraction_of_{name}_products"] = samples * step_flops / limit
                    values[f"{prefix}/{each.label}/{name}_gflops"] = limit / 1e9
        rows.append(row)
        curve = points.setdefault(f"{task.name}, {each.population}, {each.precision}, {each.devices}", [])
        curve.append((float(count), count / seconds))
        print("  ".join(f"{name}={_short(value)}" for name, value in row.items()), file=sys.stderr, flush=True)
    return rows, values, {name: sorted(curve) for name, curve in points.items()}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _learned_batches() -> list[_Batch]:
    if not on_accelerator():
        num = jax.local_device_count()
        spread = [_Batch(count, devices=num) for count in PROBLEMS if num > 1 and count % num == 0]
        return [_Batch(count) for count in PROBLEMS] + spread
    most = ACCELERATOR_PROBLEMS[-1]  # first, for a run that is interrupted
    return [
        _Batch(most),
        _Batch(most, population="padded", singles=False),
        *(_Batch(count, singles=count in (1, 64)) for count in ACCELERATOR_PROBLEMS[:-1]),
        _Batch(most, precision="float32", singles=False),
    ]


def learned() -> tuple[list[Row], dict[str, float], Points]:
    """Batches on the learned model."""
    return _batches(_learned_task(), _learned_batches(), budget=100, step_flops=LEARNED_FLOPS)


def run_learned() -> dict[str, Any]:
    """Measures the batches on the learned model; returns rows of a table, flat numbers and a figure."""
    return result(*learned())


def run_brax() -> dict[str, Any]:
    """Measures batches on brax's halfcheetah, at budget 50; returns the same."""
    wanted = [_Batch(count, population="padded") for count in ((64, 1024) if on_accelerator() else (64,))]
    if not on_accelerator() and jax.local_device_count() > 1:
        wanted.append(dataclasses.replace(wanted[0], devices=jax.local_device_count()))
    return result(*_batches(planning.brax_task("halfcheetah"), wanted, budget=50, num_runs=3))


def result(rows: list[Row], values: dict[str, float], points: Points) -> dict[str, Any]:
    """Returns what a suite does, with a figure of plans per second against problems in one call."""
    figure = curves(points, xlabel="problems in one call", ylabel="plans per second", log_x=True, log_y=True)
    return {"rows": same_columns(rows), "values": values, "figures": {"plans_per_second": figure}}
