"""The planning tasks: episodes of one planner; studies of several are in `launch.planning_study`.

`run` works on a plain mapping and a work directory; `launch.plan` calls it, and `launch.quickstart` calls `compare`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesafe_jax import planning
from edgesafe_jax.assets import write_atomically
from edgesafe_jax.fields import check_fields
from edgesafe_jax.planning import IcemSettings, MujocoTask, runs
from edgesafe_jax.reporting import build_report, make_table, write_fragment
from edgesafe_jax.reporting.episodes import episode_animation, episode_section
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import open_workdir, write_json, write_summary
from . import errors

Config = Mapping[str, Any]


def check(config: Config) -> None:
    """Refuses a config of configs/plan_icem.py that cannot be run, before any work starts.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    check_fields(config)
    found = planning.ENVIRONMENTS[config["simulator"]]
    if not (config["simulator"] == "mujoco" and config["environment"].endswith(".xml")):
        errors.lookup(found, config["environment"], f"config.environment (of simulator {config['simulator']})")


def run(config: Config, workdir: str | Path) -> Path:
    """Runs episodes of one planner and reports them; an interrupted run continues with the next episode.

    Args:
      config: that of configs/plan_icem.py.
      workdir: where everything is written.

    Returns:
      The report.

    Raises:
      ConfigError: a value of the config is invalid.
      PlanningError: the planner's options do not fit.
      WorkdirError: the directory holds another run.
    """
    check(config)
    task = planning.make_task(config["simulator"], config["environment"], cost=config["cost"])
    is_icem = config["planner"].startswith("icem")
    planner = planning.make_planner(
        config["planner"],
        task.simulator(),
        task,
        budget=int(config["budget"]),
        horizon=_given(config["horizon"]),
        noise_beta=_given(config["noise_beta"]),
        **({"settings": IcemSettings(**config["icem"])} if is_icem else {}),
    )
    workdir = open_workdir(workdir, config)
    seeds = [int(config["seed"]) + number for number in range(int(config["num_episodes"]))]
    episodes = []
    for seed in seeds:
        title = f"{config['environment']}, {config['planner']}, budget {config['budget']}, seed {seed}"
        with ProgressBar(title) as progress:
            episode = runs.kept_episode(
                workdir / "episodes" / f"seed_{seed}.npz",
                lambda: planner,
                task,
                seed=seed,
                num_steps=_given(config["num_steps"]),
                on_step=progress,
                realtime=bool(config["realtime"]),
            )
        episodes.append(episode)
    values = runs.summarize(episodes, num_trajectories=planner.num_trajectories, control_step=task.control_step)
    about = runs.describe(values, control_step=task.control_step)
    rows = [{"seed": seed, **runs.episode_row(each)} for seed, each in zip(seeds, episodes, strict=True)]
    write_summary(workdir, "planning", values)
    write_json(workdir / "returns.json", rows)
    title = f"Planning: {config['environment']} with {config['planner']}, budget {config['budget']}"
    section = episode_section(title, {"return": episodes[0]}, task)
    section.table(rows, caption="Episodes")
    notes = [f"{about}."]
    if isinstance(task, MujocoTask):
        file = workdir / "episodes" / f"seed_{seeds[0]}.gif"
        animation = episode_animation(episodes[0], task)
        write_atomically(file, lambda part: part.write_bytes(animation))
        notes.append(f"The same episode as an animation: {file.relative_to(workdir)}.")
    section.notes(notes)
    write_fragment(workdir, "planning", section)
    print(make_table(rows).to_text())
    print(f"{about}.")
    return build_report(workdir, title="edgesafe_jax: planning")


def _given(value: Any) -> Any:
    """None for -1, which stands for the task's own value."""
    return None if value == -1 else value


COMPARED, COMPARED_STEPS, COMPARED_BUDGET = ("icem", "cem"), 60, 100
"""The planners that `launch.quickstart` runs on HalfCheetah."""


def compare(workdir: Path) -> None:
    """Runs iCEM and CEM on HalfCheetah from the same start with the same budget, and reports both.

    Args:
      workdir: where the section of the report goes; episodes that are there already are kept.
    """
    task = planning.TASKS["halfcheetah"]()
    episodes, rows = {}, []
    for name in COMPARED:
        with ProgressBar(f"HalfCheetah with {name}, {COMPARED_STEPS} steps") as progress:
            episodes[name] = runs.kept_episode(
                workdir / "planning" / f"{name}.npz",
                lambda name=name: planning.make_planner(name, task.simulator(), task, budget=COMPARED_BUDGET),
                task,
                seed=0,
                num_steps=COMPARED_STEPS,
                on_step=progress,
            )
        rows.append({"planner": name, "trajectories a step": COMPARED_BUDGET, **runs.episode_row(episodes[name])})
    heading = f"Planning: HalfCheetah, {COMPARED_STEPS} steps, {COMPARED_BUDGET} trajectories a step"
    section = episode_section(heading, episodes, task)
    section.table(rows, caption="One episode each, from the same start")
    section.notes([f"The control step lasts {1000 * task.control_step:.0f} ms."])
    write_fragment(workdir, "planning", section)
    write_summary(workdir, "planning", {f"{row['planner']}/return": row["return"] for row in rows})
    print(make_table(rows).to_text())
    print(f"wrote {build_report(workdir, title='edgesafe_jax')}")
