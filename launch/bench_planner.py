"""Planners: the cost of a plan against its bare rollouts, batches of problems, and real time on the paper's tasks.

1. iCEM at 97 trajectories of 30 steps on HalfCheetah against `mujoco.rollout` of as many trajectories, the two in turn.
2. A batch of problems in one call against as many single plans, on a world model of the kind that is learned (alone:
   `--suite=planner_learned`). The share of the batch that its simulations alone take is the least that a batch could
   cost. Where there are several devices, the batch is also spread over them: on a laptop of two cores
   `XLA_FLAGS=--xla_force_host_platform_device_count=2` makes each a device. The arithmetic is that of the model in the
   trajectories that are simulated; the limits that it is compared with are matrix products timed in the same run at the
   same precision: large square ones, and the hidden layer's product of as many rows as the batch simulates at once,
   from memory to memory. On an accelerator up to 4096 problems, populations unrolled and padded, and float32 products
   beside the default precision.
3. The same batches on brax's halfcheetah (`--suite=planner_brax`, not part of the whole suite: it compiles for long).
4. Planners on the five tasks at budgets of 50 and 100 trajectories: time of a plan, the share of it spent in MuJoCo,
   and the control step that it should fit into; processor time too, which other work on the machine does not lengthen.
5. Coloured noise against the package colorednoise, where that is installed, in processor time: a call is so short that
   waiting for a processor would decide.

Three minutes of processor time.
"""

import dataclasses
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco.rollout
import numpy as np

from edgesafe_jax import parallel, planning
from edgesafe_jax.planning import JaxTask, MujocoTask
from edgesafe_jax.planning.paper_tasks import half_cheetah
from edgesafe_jax.planning.physics import available_threads
from edgesafe_jax.planning.search import Population
from edgesafe_jax.reporting import curves

NUM_RUNS = 7
PROBLEMS = (1, 4, 16, 64, 256)
ACCELERATOR_PROBLEMS = (1, 16, 64, 256, 1024, 4096)
MOST_SINGLES = 64  # single plans that are timed; a larger batch is compared with as many times more
LEARNED_SIZES = (17 + 6, 128, 128, 17)
LEARNED_FLOPS = 2 * sum(a * b for a, b in itertools.pairwise(LEARNED_SIZES))
TASK_BUDGETS = (50, 100)
PLANNERS = ("icem", "cem")

Row = dict[str, Any]


def _timed(run: Callable[[], Any], *, clock: Callable[[], float] = time.perf_counter) -> float:
    begun = clock()
    jax.block_until_ready(run())
    return clock() - begun


def _in_turn(
    runs: dict[str, Callable[[], Any]], *, clock: Callable[[], float] = time.perf_counter, num_runs: int = NUM_RUNS
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_runs):
        for name, run in runs.items():
            times[name].append(_timed(run, clock=clock))
    return times


def _median_ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def _against_bare_rollout() -> tuple[list[Row], dict[str, float]]:
    task = half_cheetah()
    planner = planning.make_planner("icem", task.simulator(), task, budget=100)
    state, start = planner.init(), task.reset(jax.random.key(0))
    plan = jax.jit(planner.plan)
    first = _timed(lambda: plan(jax.random.key(0), state, start))
    _, state, _ = plan(jax.random.key(0), state, start)
    # What one plan simulates in the middle of an episode, for MuJoCo alone and in one call.
    asked: list[np.ndarray] = []
    rollout = task.world.rollout
    task.world.rollout = lambda **given: asked.append(given["actions"].copy()) or rollout(**given)  # type: ignore[method-assign]
    jax.block_until_ready(plan(jax.random.key(0), state, start))
    task.world.rollout = rollout  # type: ignore[method-assign]
    controls = np.repeat(np.concatenate(asked).astype(np.float64), task.world.frame_skip, axis=1)
    threads = available_threads()
    pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
    data = [mujoco.MjData(task.world.model) for _ in range(threads)]  # type: ignore[attr-defined]
    # The call as the plan makes it: with a warm start, in chunks of one, into arrays that are there already.
    num, length = controls.shape[:2]
    warmstart = np.repeat(start.warmstart[None], num, axis=0)
    states = np.empty((num, length, task.world.physics_size))
    sensors = np.empty((num, length, task.world.model.nsensordata))

    def bare() -> None:
        pool.rollout(
            task.world.model,
            data,
            np.repeat(start.physics[None], num, axis=0),
            controls,
            initial_warmstart=warmstart,
            state=states,
            sensordata=sensors,
            chunk_size=1,
        )

    times = _in_turn(
        {
            "plan": lambda: plan(jax.random.key(0), state, start),
            "rollout": bare,
        }
    )
    ratio = _median_ratio(times["plan"], times["rollout"])
    rows = [
        {
            "what": "iCEM plan, HalfCheetah",
            "trajectories": planner.num_trajectories,
            "first call (s)": first,
            "median (ms)": 1000 * statistics.median(times["plan"]),
            "plan / bare rollout": ratio,
        },
        {
            "what": "bare mujoco.rollout of as many",
            "trajectories": planner.num_trajectories,
            "median (ms)": 1000 * statistics.median(times["rollout"]),
        },
    ]
    return rows, {"plan_over_rollout": ratio, "plan_ms": 1000 * statistics.median(times["plan"])}


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
    jax.block_until_ready(multiply(start, factor))
    seconds = statistics.median(_timed(lambda: multiply(start, factor)) for _ in range(3))
    return 2 * rows * size**2 * repeats / seconds


def on_accelerator() -> bool:
    """Whether jax computes on something else than the CPU."""
    return jax.default_backend() != "cpu"


@dataclasses.dataclass(frozen=True)
class _Batch:
    """What is measured in one go: how many problems, how the population is compiled, precision of products, devices."""

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
) -> tuple[list[Row], dict[str, float], dict[str, list[tuple[float, float]]]]:
    """Times batches of problems; each row is also told on stderr as it is done, for a run that is cut short."""
    simulate = task.simulator()
    rows: list[Row] = []
    values: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
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
            first = _timed(runs["batch"])
            for run in runs.values():
                _timed(run)
            times = _in_turn(runs, num_runs=num_runs)
            seconds = statistics.median(times["batch"])
            samples = count * planner.num_trajectories * task.horizon / seconds
            row: Row = {
                "what": f"iCEM, {task.name}",
                "problems": count,
                "population": each.population,
                "devices": each.devices,
                "products": each.precision,
                "trajectories": planner.num_trajectories,
                "first call (s)": first,
                "median (ms)": 1000 * seconds,
                "plans / s": count / seconds,
                "samples / s": samples,
            }
            values[f"{prefix}/{each.label}/plans_per_second"] = count / seconds
            if each.singles:
                ratio = _median_ratio(times["batch"], times["single"]) * timed / count
                row["simulator share"] = _median_ratio(times["simulations"], times["batch"])
                row["batch / single plans"] = values[f"{prefix}/{each.label}/batch_over_single"] = ratio
            if step_flops:
                row["GFLOP / s"] = values[f"{prefix}/{each.label}/gflops"] = samples * step_flops / 1e9
                limits = {"square": square(each.precision), "layer": _products_per_second(count * at_once, 128)}
                for name, limit in limits.items():
                    row[f"{name} products (GFLOP / s)"] = limit / 1e9
                    row[f"share of {name} products"] = samples * step_flops / limit
                    values[f"{prefix}/{each.label}/share_of_{name}_products"] = samples * step_flops / limit
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
    most = ACCELERATOR_PROBLEMS[-1]  # first, for a run that is cut short
    return [
        _Batch(most),
        _Batch(most, population="padded", singles=False),
        *(_Batch(count, singles=count in (1, 64)) for count in ACCELERATOR_PROBLEMS[:-1]),
        _Batch(most, precision="float32", singles=False),
    ]


def _learned() -> tuple[list[Row], dict[str, float], dict[str, list[tuple[float, float]]]]:
    return _batches(_learned_task(), _learned_batches(), budget=100, step_flops=LEARNED_FLOPS)


def _real_time(task: MujocoTask) -> tuple[list[Row], dict[str, float]]:
    rows, values = [], {}
    inside = [0.0]
    rollout = task.world.rollout

    def timed(**arguments: Any) -> Any:
        begun = time.perf_counter()
        result = rollout(**arguments)
        inside[0] += time.perf_counter() - begun
        return result

    task.world.rollout = timed  # type: ignore[method-assign]
    for name in PLANNERS:
        for budget in TASK_BUDGETS:
            planner = planning.make_planner(name, task.simulator(), task, budget=budget)
            state, start = planner.init(), task.reset(jax.random.key(0))
            plan = jax.jit(planner.plan)
            first = _timed(lambda p=plan, m=state, s=start: p(jax.random.key(0), m, s))
            inside[0], begun = 0.0, time.process_time()
            times = [_timed(lambda p=plan, m=state, s=start, i=i: p(jax.random.key(i), m, s)) for i in range(3)]
            busy, seconds = (time.process_time() - begun) / len(times), statistics.median(times)
            rows.append(
                {
                    "what": f"{name}, {task.name}",
                    "trajectories": planner.num_trajectories,
                    "first call (s)": first,
                    "median (ms)": 1000 * seconds,
                    "processor (ms)": 1000 * busy,
                    "plans / s": 1 / seconds,
                    "samples / s": planner.num_trajectories * task.horizon / seconds,
                    "simulator share": inside[0] / sum(times),
                    "control step (ms)": 1000 * task.control_step,
                    "real time": "yes" if seconds <= task.control_step else "no",
                }
            )
            values[f"{task.name}/{name}/{budget}/plan_ms"] = 1000 * seconds
            values[f"{task.name}/{name}/{budget}/processor_ms"] = 1000 * busy
    return rows, values


def _noise() -> tuple[list[Row], dict[str, float]]:
    shape = (100, 17, 30)
    draw = jax.jit(lambda key: planning.colored_noise(key, 2.0, shape))
    first = _timed(lambda: draw(jax.random.key(0)))
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: draw(jax.random.key(1))}
    try:
        import colorednoise  # type: ignore[import-not-found]  # the peer only

        rng = np.random.default_rng(0)
        runs["colorednoise"] = lambda: colorednoise.powerlaw_psd_gaussian(2.0, shape, random_state=rng)
    except ImportError:
        pass
    for run in runs.values():
        _timed(run)
    times = _in_turn(runs, clock=time.process_time)
    row: Row = {
        "what": "coloured noise, 100 x 17 x 30",
        "first call (s)": first,
        "processor (ms)": 1000 * statistics.median(times["ours"]),
    }
    values = {"noise_ms": row["processor (ms)"]}
    if "colorednoise" in times:
        ratio = _median_ratio(times["ours"], times["colorednoise"])
        row["noise / colorednoise"] = values["noise_over_colorednoise"] = ratio
    return [row], values


def run() -> dict[str, Any]:
    """Measures; returns the rows of a table, flat numbers and a figure."""
    rows, values = _against_bare_rollout()
    values["threads"] = available_threads()
    more, numbers, points = _learned()
    rows += more
    values |= numbers
    for make in planning.TASKS.values():
        more, numbers = _real_time(make())
        rows += more
        values |= numbers
    more, numbers = _noise()
    rows += more
    values |= numbers
    return _result(rows, values, points)


def run_learned() -> dict[str, Any]:
    """The batches on the learned model alone."""
    return _result(*_learned())


def run_brax() -> dict[str, Any]:
    """Batches on brax's halfcheetah, at budget 50."""
    wanted = [_Batch(count, population="padded") for count in ((64, 1024) if on_accelerator() else (64,))]
    if not on_accelerator() and jax.local_device_count() > 1:
        wanted.append(dataclasses.replace(wanted[0], devices=jax.local_device_count()))
    return _result(*_batches(planning.brax_task("halfcheetah"), wanted, budget=50, num_runs=3))


def _result(rows: list[Row], values: dict[str, float], points: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    figure = curves(points, xlabel="problems in one call", ylabel="plans per second", log_x=True, log_y=True)
    return {
        "rows": [{name: row.get(name) for name in columns} for row in rows],
        "values": values,
        "figures": {"plans_per_second": figure},
    }
