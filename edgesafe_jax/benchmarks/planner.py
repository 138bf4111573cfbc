"""Planners: the cost of a plan against its bare rollouts, batches of problems, and real time on the paper's tasks.

1. iCEM at 97 trajectories of 30 steps on HalfCheetah against `mujoco.rollout` of as many trajectories, the two in turn.
2. Batches of problems in one call on a learned world model, see `benchmarks.batches`.
3. Planners on the five tasks at budgets of 50 and 100 trajectories: time of a plan, the fraction of it spent in MuJoCo,
   and the control step that it should fit into; processor time too, which other work on the machine does not lengthen.
4. Coloured noise against the package colorednoise, where that is installed, in processor time: a call is so short that
   waiting for a processor would decide.

Three minutes of processor time.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import mujoco.rollout
import numpy as np

from edgesafe_jax import planning
from edgesafe_jax.benchmarks import batches
from edgesafe_jax.benchmarks.harness import Row, in_turn, median_ratio, timed
from edgesafe_jax.planning import MujocoTask
from edgesafe_jax.planning.paper_tasks import half_cheetah
from edgesafe_jax.planning.physics import available_threads

TASK_BUDGETS = (50, 100)
PLANNERS = ("icem", "cem")


def _against_bare_rollout() -> tuple[list[Row], dict[str, float]]:
    task = half_cheetah()
    planner = planning.make_planner("icem", task.simulator(), task, budget=100)
    state, start = planner.init(), task.reset(jax.random.key(0))
    plan = jax.jit(planner.plan)
    first, *_ = timed(lambda: plan(jax.random.key(0), state, start))
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

    times = in_turn({"plan": lambda: plan(jax.random.key(0), state, start), "rollout": bare})
    ratio = median_ratio(times["plan"].wall, times["rollout"].wall)
    rows = [
        {
            "what": "iCEM plan, HalfCheetah",
            "trajectories": planner.num_trajectories,
            "first call (s)": first,
            "median (ms)": 1000 * times["plan"].median,
            "plan / bare rollout": ratio,
        },
        {
            "what": "bare mujoco.rollout of as many",
            "trajectories": planner.num_trajectories,
            "median (ms)": 1000 * times["rollout"].median,
        },
    ]
    return rows, {"plan_over_rollout": ratio, "plan_ms": 1000 * times["plan"].median}


def _real_time(task: MujocoTask) -> tuple[list[Row], dict[str, float]]:
    rows, values = [], {}
    inside: list[float] = []
    rollout = task.world.rollout

    def watched(**arguments: Any) -> Any:
        begun = time.perf_counter()
        result = rollout(**arguments)
        inside.append(time.perf_counter() - begun)
        return result

    task.world.rollout = watched  # type: ignore[method-assign]
    for name, budget in itertools.product(PLANNERS, TASK_BUDGETS):
        planner = planning.make_planner(name, task.simulator(), task, budget=budget)
        plan, state, start, keys = (
            jax.jit(planner.plan),
            planner.init(),
            task.reset(jax.random.key(0)),
            itertools.count(),
        )
        run = functools.partial(lambda p, m, s, k: p(jax.random.key(next(k)), m, s), plan, state, start, keys)
        inside.clear()
        times = in_turn({"plan": run}, num_runs=3)["plan"]
        rows.append(
            {
                "what": f"{name}, {task.name}",
                "trajectories": planner.num_trajectories,
                "first call (s)": times.first,
                "median (ms)": 1000 * times.median,
                "processor (ms)": 1000 * times.median_processor,
                "plans / s": 1 / times.median,
                "samples / s": planner.num_trajectories * task.horizon / times.median,
                "simulator fraction": sum(inside[len(inside) // 4 :]) / sum(times.wall),  # without the first of 4 calls
                "control step (ms)": 1000 * task.control_step,
                "real time": "yes" if times.median <= task.control_step else "no",
            }
        )
        values[f"{task.name}/{name}/{budget}/plan_ms"] = 1000 * times.median
        values[f"{task.name}/{name}/{budget}/processor_ms"] = 1000 * times.median_processor
    return rows, values


def _noise() -> tuple[list[Row], dict[str, float]]:
    shape = (100, 17, 30)
    draw = jax.jit(lambda key: planning.colored_noise(key, 2.0, shape))
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: draw(jax.random.key(1))}
    with contextlib.suppress(ImportError):
        import colorednoise  # type: ignore[import-not-found]  # the peer only

        rng = np.random.default_rng(0)
        runs["colorednoise"] = lambda: colorednoise.powerlaw_psd_gaussian(2.0, shape, random_state=rng)
    times = in_turn(runs)
    row: Row = {
        "what": "coloured noise, 100 x 17 x 30",
        "first call (s)": times["ours"].first,
        "processor (ms)": 1000 * times["ours"].median_processor,
    }
    values = {"noise_ms": row["processor (ms)"]}
    if "colorednoise" in times:
        ratio = median_ratio(times["ours"].processor, times["colorednoise"].processor)
        row["noise / colorednoise"] = values["noise_over_colorednoise"] = ratio
    return [row], values


def run() -> dict[str, Any]:
    """Measures; returns rows of a table, flat numbers and a figure."""
    rows, values = _against_bare_rollout()
    values["threads"] = available_threads()
    more, numbers, points = batches.learned()
    parts = [(more, numbers), *(_real_time(make()) for make in planning.TASKS.values()), _noise()]
    for more, numbers in parts:
        rows += more
        values |= numbers
    return batches.result(rows, values, points)
