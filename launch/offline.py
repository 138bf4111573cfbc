"""Tests of symmetries and offline policies, as `launch.train` runs them: configs become settings of the rooms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from edgesafe_jax import dynamics
from edgesafe_jax.dynamics.support import fewest_episodes
from edgesafe_jax.fields import check_fields
from edgesafe_jax.offline_rl import OfflineDataset, formats, tasks, worlds
from edgesafe_jax.offline_rl.learners import make_learner
from edgesafe_jax.offline_rl.pipeline import PipelineSettings, PolicySettings, SymmetrySettings, run_pipeline
from edgesafe_jax.offline_rl.planned import PlanSettings
from edgesafe_jax.offline_rl.report import RunReport, report_policies, save_report
from edgesafe_jax.offline_rl.runs import report_runs, run_seeds
from edgesafe_jax.offline_rl.symmetry_cases import report_cases, study_case
from edgesafe_jax.training import open_workdir
from . import errors

Config = Mapping[str, Any]


def _check_episodes(config: Config, num_episodes: int) -> None:
    """Raises a ConfigError for data with too few calibration episodes, before a model is fitted to them."""
    num, least = num_episodes * config["data"]["fractions"]["calibration"], fewest_episodes(config["alpha"])
    if num + 1 < least:
        raise errors.ConfigError(
            f"config.alpha={config['alpha']} needs {least} calibration episodes, and config.data.fractions gives about "
            f"{num:.0f} of {num_episodes}: expected more episodes or a larger alpha."
        )


def train_dynamics(config: Config, workdir: str | Path) -> Path:
    """Tests the cases of configs/dynamics_equivariance.py. Returns the report.

    Raises:
      ConfigError: a name or a number of the config is invalid.
      WorkdirError: the work directory holds a run with another config.
    """
    check_fields(config)
    settings = {name: _model_settings(config, config["per_case"].get(name, {})) for name in config["cases"]}
    sizes = {
        name: int(config["per_case"].get(name, {}).get("num_episodes", config["data"]["num_episodes"]))
        for name in config["cases"]
    }
    for size in sizes.values():
        _check_episodes(config, size)
    workdir = open_workdir(workdir, config)
    results = {
        name: study_case(
            name,
            settings[name],
            seed=int(config["seed"]),
            num_episodes=sizes[name],
            scales=config["scales"],
        )
        for name in config["cases"]
    }
    return _finish(workdir, "dynamics", report_cases(results), subtitle="Tests of symmetries")


def train(config: Config, workdir: str | Path) -> Path:
    """Trains `config.num_runs` whole runs of configs/offline_rl.py, seeds from `config.seed` on. Returns the report.

    Raises:
      ConfigError: as `train_policies`.
      WorkdirError: a work directory holds a run with another config.
    """
    check_fields(config)
    if int(config["num_runs"]) == 1:
        return train_policies(config, workdir)
    summaries = run_seeds(lambda one, run: train_policies(one, run), config, workdir)
    report = report_runs(list(summaries.values()), [*config["methods"], *config["planners"]])
    return _finish(Path(workdir), "offline_rl_runs", report, subtitle=f"Offline RL, {len(summaries)} whole runs")


def train_policies(config: Config, workdir: str | Path, *, report: str | Path | None = None) -> Path:
    """Trains and compares the methods of configs/offline_rl.py.

    Args:
      config: that of configs/offline_rl.py.
      workdir: where the run is kept; an interrupted one continues there.
      report: the directory of summary and report, with other sections; default `workdir`.

    Returns:
      The report.

    Raises:
      ConfigError: a name or a number of the config is invalid.
      WorkdirError: the work directory holds a run with another config.
    """
    check_fields(config)
    learner, settings = make_learner(**config["learner"]), pipeline_settings(config)
    if not config["data"]["path"]:
        _check_episodes(config, int(config["data"]["num_episodes"]))
    task = worlds.make_world(config["world"])
    data = load_data(config, task)
    workdir = open_workdir(workdir, config)
    chosen = {"methods": config["methods"], "planners": config["planners"]}
    results = run_pipeline(task, data, learner, settings, workdir, **chosen)
    return _finish(Path(report or workdir), "offline_rl", report_policies(results))


def pipeline_settings(config: Config) -> PipelineSettings:
    """Returns the settings of a run of configs/offline_rl.py."""
    symmetry = config["symmetry"]
    return PipelineSettings(
        seed=int(config["seed"]),
        model=_model_settings(config, {}),
        symmetry=SymmetrySettings(
            declare_domain=bool(symmetry["declare_domain"]),
            along=tuple(symmetry["along"]),
            by_kind=bool(symmetry["by_kind"]),
            num_elements=int(symmetry["num_elements"]),
            reach=dynamics.ReachSettings(**{name: symmetry[name] for name in ("max_violation", "num_steps")}),
        ),
        policies=PolicySettings(
            her_fraction=float(config["her_fraction"]),
            augment_fraction=float(config["augment_fraction"]),
            noise_scale=float(config["noise_scale"]),
            rollouts_per_row=float(config["rollouts"]["per_row"]),
            rollout_length=int(config["rollouts"]["length"]),
            normalize=bool(config["normalize"]),
            batch_size=int(config["batch_size"]),
            num_updates=int(config["num_updates"]),
            updates_per_step=int(config["updates_per_step"]),
            num_seeds=int(config["num_seeds"]),
            num_episodes=int(config["num_episodes"]),
        ),
        plan=PlanSettings(**config["plan"]),
        # Data of a file have no fresh episodes.
        fresh_episodes=0 if config["data"]["path"] else int(config["fresh_episodes"]),
    )


def load_data(config: Config, task: tasks.Task) -> OfflineDataset:
    """Reads `config.data.path`, or generates data where it is empty.

    Raises:
      DatasetError: the file cannot be read, or its states, actions or goals have other sizes than the task's.
    """
    path = config["data"]["path"]
    if path:
        return tasks.fit_dataset(task, formats.read_dataset(path), source=str(path))
    return tasks.generate(jax.random.key(int(config["seed"])), task, num_episodes=int(config["data"]["num_episodes"]))


def _model_settings(config: Config, changes: Config) -> dynamics.WorldModelSettings:
    return dynamics.WorldModelSettings(
        fractions=config["data"]["fractions"],
        ensemble=dynamics.EnsembleSettings(**{**config["model"], **changes.get("model", {})}),
        alpha=float(config["alpha"]),
    )


def _finish(directory: Path, name: str, report: RunReport, *, subtitle: str = "") -> Path:
    """Prints the tables of a report and writes it."""
    for table in report.tables:
        print(table.to_text())
    path = save_report(directory, name, report, subtitle=subtitle)
    print(f"report: {path}")
    return path
