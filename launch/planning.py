"""The planning tasks: episodes of one planner; studies of several are in `launch.planning_study`.

`run` works on a plain mapping and a work directory; `launch.plan` calls it, and `launch.quickstart` calls `compare`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax import metrics, planning
from edgesafe_jax.assets import write_atomically
from edgesafe_jax.planning import Episode, JaxTask, MujocoTask, Planner, Simulator
from edgesafe_jax.reporting import Section, build_report, curves, make_table, pose_animation, pose_strip, write_fragment
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import open_workdir, write_json, write_summary
from launch import errors

Config = Mapping[str, Any]
Environment = JaxTask | MujocoTask

SIMULATORS: dict[str, dict[str, Callable[..., Environment]]] = {
    "mujoco": {**planning.TASKS, "door_no_velocity": functools.partial(planning.door, velocity_weight=0.0)},
    "brax": {name: functools.partial(planning.brax_task, name) for name in planning.BRAX_TASKS},
    "closed_form": {"double_integrator": planning.double_integrator},
}
"""What `config.simulator` may name, and the environments `config.environment` that each has."""

COMPONENTS = ("icem_white", "icem_no_shift", "icem_no_keep", "icem_no_decay", "icem_no_mean", "icem_execute_mean")
"""iCEM without one of its components."""

PLANNERS = (
    "icem",
    "cem",
    "pets_cem",
    "planet_cem",
    "mppi",
    "mppi_colored",
    "dial",
    "predictive_sampling",
    "random_shooting",
    *COMPONENTS,
)
"""What `config.planner` may name."""

_ABLATIONS: dict[str, dict[str, Any]] = {
    "icem_white": {"noise_beta": 0.0},
    "icem_no_shift": {"shift_elites": False},
    "icem_no_keep": {"keep_elites": False},
    "icem_no_decay": {"decay": 1.0},
    "icem_no_mean": {"mean_in_last_iteration": False},
    "icem_execute_mean": {"execute": "mean"},
}


def make_environment(simulator: object, environment: object, *, num_threads: int | None = None) -> Environment:
    """Makes an environment.

    Args:
      simulator: a key of `SIMULATORS`.
      environment: one of its environments.
      num_threads: of C MuJoCo; None takes one per processor.

    Returns:
      The environment.

    Raises:
      ConfigError: the simulator or its environment is unknown.
    """
    found = errors.lookup(SIMULATORS, simulator, "config.simulator")
    make = errors.lookup(found, environment, f"config.environment (of simulator {simulator})")
    return make() if simulator != "mujoco" or num_threads is None else make(num_threads=num_threads)


def make_planner(
    name: str,
    simulator: Simulator,
    environment: Environment,
    *,
    budget: int,
    horizon: int | None = None,
    noise_beta: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Planner:
    """Makes a planner that spends about `budget` trajectories at each step.

    iCEM takes iterations and population from the paper's table, where they shrink to about the budget; the others
    divide the budget over the same number of iterations. Without decay, iCEM too.

    Args:
      name: one of `PLANNERS`.
      simulator: what it plans with.
      environment: whose bounds, horizon and noise it takes.
      budget: a key of `planning.BUDGETS`.
      horizon: of a plan; None for the environment's.
      noise_beta: exponent of coloured noise; None for the environment's.
      options: more arguments of `planning.make_icem`, for iCEM alone.

    Returns:
      The planner.
    """
    iterations, samples = planning.BUDGETS[budget]
    each = max(2, budget // iterations)
    common: dict[str, Any] = {
        "low": environment.low,
        "high": environment.high,
        "horizon": environment.horizon if horizon is None else horizon,
    }
    beta = environment.noise_beta if noise_beta is None else noise_beta
    if name == "icem" or name in COMPONENTS:
        changed = {"noise_beta": beta, **(options or {}), **_ABLATIONS.get(name, {})}
        changed["num_iterations"] = iterations
        changed["num_samples"] = each if changed.get("decay") == 1.0 else samples
        return planning.make_icem(simulator, **common, **changed)
    if name == "random_shooting":
        return planning.make_random_shooting(simulator, **common, num_samples=budget)
    if name == "predictive_sampling":
        return planning.make_predictive_sampling(simulator, **common, num_samples=budget)
    if name in ("mppi", "mppi_colored"):
        noise_beta = beta if name == "mppi_colored" else 0.0
        return planning.make_mppi(
            simulator, **common, num_samples=each, num_iterations=iterations, noise_beta=noise_beta
        )
    if name == "planet_cem":
        return planning.make_planet_cem(
            simulator, **common, num_iterations=iterations, num_samples=each, num_elites=max(2, each // 10)
        )
    makers = {"cem": planning.make_cem, "pets_cem": planning.make_pets_cem, "dial": planning.make_dial}
    elites = {} if name == "dial" else {"num_elites": min(10, each)}
    return makers[name](simulator, **common, num_iterations=iterations, num_samples=each, **elites)


def check(config: Config) -> None:
    """Refuses a config of configs/plan_icem.py that cannot be run, before any work starts.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    found = errors.lookup(SIMULATORS, config["simulator"], "config.simulator")
    errors.lookup(found, config["environment"], f"config.environment (of simulator {config['simulator']})")
    check_planner(config["planner"], config["budget"])
    for name in ("num_steps", "horizon"):
        if int(config[name]) < 1 and int(config[name]) != -1:
            raise errors.ConfigError(f"config.{name}={config[name]}: expected at least 1, or -1 for the task's.")
    if int(config["num_episodes"]) < 1:
        raise errors.ConfigError(f"config.num_episodes={config['num_episodes']}: expected at least 1.")


def check_planner(name: object, budget: object) -> None:
    """Refuses a planner or a budget that there is not.

    Raises:
      ConfigError: the message names the value and what was expected.
    """
    errors.lookup({each: each for each in PLANNERS}, name, "config.planner")
    if budget not in planning.BUDGETS:
        raise errors.ConfigError(f"config.budget={budget!r}: expected one of {', '.join(map(str, planning.BUDGETS))}.")


def run(config: Config, workdir: str | Path) -> Path:
    """Runs episodes of one planner and reports them; an interrupted run continues with the next episode.

    Args:
      config: that of configs/plan_icem.py.
      workdir: where everything is written.

    Returns:
      The report.

    Raises:
      ConfigError: a value of the config means nothing.
      PlanningError: the planner's options do not fit.
      WorkdirError: the directory holds another run.
    """
    check(config)
    environment = make_environment(config["simulator"], config["environment"])
    planner = make_planner(
        config["planner"],
        environment.simulator(),
        environment,
        budget=int(config["budget"]),
        horizon=_known(config["horizon"]),
        noise_beta=_known(config["noise_beta"]),
        options=config["icem"],
    )
    workdir = open_workdir(workdir, config)
    seeds = [int(config["seed"]) + number for number in range(int(config["num_episodes"]))]
    for seed in seeds:
        file = workdir / "episodes" / f"seed_{seed}.npz"
        if not file.exists():
            title = f"{config['environment']}, {config['planner']}, budget {config['budget']}, seed {seed}"
            with ProgressBar(title) as progress:
                episode = planning.run_episode(
                    planner, environment, seed=seed, num_steps=_known(config["num_steps"]), on_step=progress
                )
            _save(file, episode)
    episodes = [dict(np.load(workdir / "episodes" / f"seed_{seed}.npz")) for seed in seeds]
    values = summary_of(episodes, environment, planner)
    write_summary(workdir, "planning", values)
    write_json(workdir / "returns.json", [{"seed": s, **_row(e)} for s, e in zip(seeds, episodes, strict=True)])
    title = f"Planning: {config['environment']} with {config['planner']}, budget {config['budget']}"
    section = episode_section(title, {"return": episodes[0]}, environment)
    section.table([{"seed": s, **_row(e)} for s, e in zip(seeds, episodes, strict=True)], caption="Episodes")
    notes = [_about(planner, environment, values)]
    if isinstance(environment, MujocoTask):
        file = workdir / "episodes" / f"seed_{seeds[0]}.gif"
        animation = episode_animation(episodes[0], environment)
        write_atomically(file, lambda part: part.write_bytes(animation))
        notes.append(f"The same episode as it moves: {file.relative_to(workdir)}.")
    section.notes(notes)
    write_fragment(workdir, "planning", section)
    print(make_table([{"seed": s, **_row(e)} for s, e in zip(seeds, episodes, strict=True)]).to_text())
    print(_about(planner, environment, values))
    return build_report(workdir, title="edgesafe_jax: planning")


def _known(value: Any) -> Any:
    """None for -1, which stands for the task's own value."""
    return None if value == -1 else value


def _save(file: Path, episode: Episode) -> None:
    """Keeps an episode; of the states only what draws them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {
        "reward": episode.results.reward,
        "cost": episode.results.cost,
        "violation": episode.results.violation,
        "success": episode.results.success,
        "actions": episode.actions,
        "best_cost": episode.best_cost,
        "num_nonfinite": episode.num_nonfinite,
        "plan_seconds": episode.plan_seconds,
    }
    if isinstance(episode.states, planning.MujocoState):
        kept["physics"] = episode.states.physics
    part = file.with_suffix(".part.npz")
    np.savez(part, allow_pickle=False, **kept)
    part.replace(file)


def _row(episode: Mapping[str, np.ndarray]) -> dict[str, Any]:
    plan = episode["plan_seconds"][1:]
    return {
        "return": float(episode["reward"].sum()),
        "cost": float(episode["cost"].sum()),
        "success": float(episode["success"].any()),
        "steps": len(episode["reward"]),
        "plan (ms)": 1000 * float(np.median(plan)) if plan.any() else None,
        "not finite": int(episode["num_nonfinite"].sum()),
    }


def summary_of(
    episodes: Sequence[Mapping[str, np.ndarray]], environment: Environment, planner: Planner
) -> dict[str, float]:
    """The numbers of some episodes, by name; `return` with a bootstrap interval over episodes where there are more."""
    returns = np.array([episode["reward"].sum() for episode in episodes], np.float64)
    values = {"return": float(returns.mean()), "num_episodes": len(episodes)}
    if len(episodes) > 1:
        values |= metrics.bootstrap_interval(returns).named("return")
    values["success"] = float(np.mean([episode["success"].any() for episode in episodes]))
    values["trajectories_per_plan"] = planner.num_trajectories
    plans = np.concatenate([episode["plan_seconds"][1:] for episode in episodes])
    if plans.any():
        values["plan_ms_median"] = 1000 * float(np.median(plans))
        values["plan_ms_p95"] = 1000 * float(np.quantile(plans, 0.95))
        values["real_time_factor"] = environment.control_step / float(np.median(plans))
    return values


def _about(planner: Planner, environment: Environment, values: Mapping[str, float]) -> str:
    text = f"{planner.num_trajectories} trajectories a plan; mean return {values['return']:.1f}"
    if "plan_ms_median" in values:
        text += (
            f"; a plan takes {values['plan_ms_median']:.1f} ms (median), the control step lasts "
            f"{1000 * environment.control_step:.0f} ms"
        )
    return text + "."


def episode_section(
    heading: str, episodes: Mapping[str, Mapping[str, np.ndarray]], environment: Environment
) -> Section:
    """Curves of the reward so far and, for MuJoCo, poses along each of the named episodes."""
    section = Section(heading, order=1)
    section.figure(
        curves(
            {name: list(enumerate(np.cumsum(episode["reward"]), start=1)) for name, episode in episodes.items()},
            xlabel="step",
            ylabel="reward so far",
            markers=False,
        ),
        alt="Sum of the rewards against the step of the episode",
        caption="Reward so far, in the true environment",
    )
    if isinstance(environment, MujocoTask):
        for name, episode in episodes.items():
            chosen = np.linspace(0, len(episode["physics"]) - 1, 8).astype(int)
            poses = [planning.figure_segments(environment.world.model, episode["physics"][index]) for index in chosen]
            seconds = [f"{(index + 1) * environment.control_step:.1f} s" for index in chosen]
            section.figure(
                pose_strip(poses, captions=seconds, title=name),
                alt=f"Eight poses along the episode of {name}, seen from the side",
                caption="Segments of the bodies, seen from the side; each pose is centred",
            )
    return section


def episode_animation(episode: Mapping[str, np.ndarray], environment: MujocoTask) -> bytes:
    """An episode at its own speed as a GIF of at most 75 poses, whatever its length."""
    num_steps, step = len(episode["physics"]), environment.control_step
    stride = max(math.ceil(num_steps / 75), math.ceil(0.04 / step))
    chosen = range(0, num_steps, stride)
    return pose_animation(
        [planning.figure_segments(environment.world.model, episode["physics"][index]) for index in chosen],
        frame_seconds=stride * step,
        captions=[f"{(index + 1) * step:.1f} s" for index in chosen],
    )


COMPARED, COMPARED_STEPS, COMPARED_BUDGET = ("icem", "cem"), 60, 100
"""What `launch.quickstart` runs on HalfCheetah."""


def compare(workdir: Path) -> None:
    """Runs iCEM and CEM on HalfCheetah from the same start with the same budget, and reports both.

    Args:
      workdir: where the section of the report goes; episodes that are there already are kept.
    """
    environment = planning.TASKS["halfcheetah"]()
    folder, episodes, rows = workdir / "planning", {}, []
    for name in COMPARED:
        file = folder / f"{name}.npz"
        if not file.exists():
            planner = make_planner(name, environment.simulator(), environment, budget=COMPARED_BUDGET)
            with ProgressBar(f"HalfCheetah with {name}, {COMPARED_STEPS} steps") as progress:
                episode = planning.run_episode(planner, environment, seed=0, num_steps=COMPARED_STEPS, on_step=progress)
            _save(file, episode)
        episodes[name] = dict(np.load(file))
        rows.append({"planner": name, "trajectories a step": COMPARED_BUDGET, **_row(episodes[name])})
    heading = f"Planning: HalfCheetah, {COMPARED_STEPS} steps, {COMPARED_BUDGET} trajectories a step"
    section = episode_section(heading, episodes, environment)
    section.table(rows, caption="One episode each, from the same start")
    section.notes([f"The control step lasts {1000 * environment.control_step:.0f} ms."])
    write_fragment(workdir, "planning", section)
    write_summary(workdir, "planning", {f"{row['planner']}/return": row["return"] for row in rows})
    print(make_table(rows).to_text())
    print(f"wrote {build_report(workdir, title='edgesafe_jax')}")
