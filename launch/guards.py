"""The tasks of guards: from configs to settings and calls of `edgesafe_jax.guards`, and what is printed."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.fields import check_fields
from edgesafe_jax.fields.guards import check_first_layer
from edgesafe_jax.guards import examples, fitting, report, smolguard
from edgesafe_jax.guards.evaluation import measure_tuned, read_scores
from edgesafe_jax.guards.paraphrases import read_sets
from edgesafe_jax.guards.probe import load_sentence_encoder
from edgesafe_jax.guards.sets import SetChoice, consistency_sets
from edgesafe_jax.guards.sources import ParaphraseSettings
from edgesafe_jax.guards.tunables import MOVING_TARGETS, tune_guards
from edgesafe_jax.guards.tuning import HeadTuning, LoraTuning, NewLora, TuningSettings
from edgesafe_jax.guards.unseen_study import GUARD_FILE, UnseenSettings, run_unseen
from edgesafe_jax.models.loading import load_model
from edgesafe_jax.reporting import make_table
from edgesafe_jax.training import open_workdir, write_summary
from edgesafe_jax.training.precision import keep_precision
from edgesafe_jax.training.workdir import read_config
from .startup import load_config_model

Config = Mapping[str, Any]
Settings = TypeVar("Settings")

ADAPTER = "smolguard.safetensors"
"""Where the trained adapter of SmolGuard lies in a work directory."""


def _all(value: int) -> int | None:
    """A count of a config, in which -1 stands for all."""
    return None if int(value) < 0 else int(value)


def _settings(kind: type[Settings], values: Config, **given: Any) -> Settings:
    """A settings dataclass from the fields of a config of the same names, and from what is given."""
    names = {field.name for field in dataclasses.fields(kind)} & set(values)  # type: ignore[arg-type]
    taken = {name: tuple(v) if isinstance(v := values[name], list) else v for name in names}
    return kind(**(taken | given))


# Teacher and judge ----------------------------------------------------------------------------------------------------


def _train_head(config: Config, workdir: str | Path, role: examples.GuardRole) -> Path:
    check_fields(config)
    model = load_config_model(config, workdir)
    options = {"layers": tuple(config["layers"]), "max_response": int(config["max_response"])}
    if role == "teacher":
        features = fitting.hidden_state_features(model, **options)
        about = fitting.hidden_state_about(model, **options)
    else:
        encode = load_sentence_encoder().encode
        features, about = fitting.judge_reading(config["reads"], model, encode, **options)
    workdir = open_workdir(workdir, config)
    keep_precision(model, workdir, config["matmul_dtype"])
    counts = {name: _all(config[name]) for name in ("num_examples", "num_measured")}
    roles = {"cross_validated": ("judge",)} if role == "judge" else {}
    chosen = _settings(fitting.HeadExamples, config, role=role, **counts, **roles)
    stored, values = fitting.run_head_guard(
        chosen,
        model=model,
        fit=_settings(fitting.GatedFit, config),
        features=features,
        about=about,
        max_tokens=int(config["max_tokens"]),
        workdir=workdir,
    )
    write_summary(workdir, f"guard_{role}", values)
    print(make_table([{"quantity": name, "value": value} for name, value in values.items()]).to_text())
    print(f"stored {stored}")
    return stored


def train_probe(config: Config, workdir: str | Path) -> Path:
    """Trains the teacher guard; `config` is that of configs/guard_probe.py. Returns the stored head."""
    return _train_head(config, workdir, "teacher")


def train_judge(config: Config, workdir: str | Path) -> Path:
    """Trains the judge; `config` is that of configs/guard_judge.py. Returns the stored head."""
    return _train_head(config, workdir, "judge")


# Consistency ----------------------------------------------------------------------------------------------------------


def check_consistency(config: Config) -> None:
    """Raises a ConfigError for a config of configs/guard_consistency.py that cannot be run."""
    check_fields(config)
    data = config["data"]
    for file in filter(None, (data["teacher_sets"], data["held_out_sets"])):
        read_sets(file)
    if set(config["guards"]) - set(MOVING_TARGETS) and float(config["ema_decay"]) >= 0:
        raise ConfigError(f"config.ema_decay={config['ema_decay']}: only heads take moving targets, else -1.")
    if not set(data["sources"]) - set(data["held_out_sources"]):
        raise ConfigError("config.data.held_out_sources leaves no source to train on.")


def paraphrase_settings(config: Config) -> ParaphraseSettings:
    """The settings of the paraphrases in a config of the consistency task."""
    data = config["data"]
    counts = {name: _all(data[name]) for name in ("num_styles", "num_ways")}
    return _settings(ParaphraseSettings, data, **counts, seed=config["seed"])


def tuning_settings(config: Config) -> TuningSettings:
    """The settings of the training in a config of the consistency task."""
    decay, layers = float(config["ema_decay"]), config["backbone"]
    return _settings(
        TuningSettings,
        config,
        head=_settings(HeadTuning, config, ema_decay=None if decay < 0 else decay),
        verdict=_settings(LoraTuning, config["lora"]),
        layers=_settings(NewLora, layers, tuning=_settings(LoraTuning, layers)),
        adapter=config["lora"]["adapter"] or None,
    )


def train_consistency(config: Config, workdir: str | Path) -> Path:
    """Tunes guards by a config of configs/guard_consistency.py and returns the work directory.

    Raises:
      ConfigError: see `check_consistency`.
    """
    check_consistency(config)
    if set(config["guards"]) - {"encoder"} or "llm" in config["data"]["sources"]:
        check_first_layer("config.backbone.first_layer", config["backbone"]["first_layer"], load_model(config["model"]))
    workdir = open_workdir(workdir, config)
    encode, data = load_sentence_encoder().encode, config["data"]
    counts = {name: _all(data[name]) for name in ("num_train", "num_test")}
    train_sets, groups = consistency_sets(
        _settings(SetChoice, data, **counts),
        paraphrase_settings(config),
        encode=encode,
        model=lambda: load_model(config["model"]),
        folder=workdir / "sets",
    )
    tune_guards(
        config["guards"],
        train_sets,
        groups,
        settings=tuning_settings(config),
        rule=config["rule"],
        ablation=config["ablation"],
        model=functools.cache(lambda: load_config_model(config, workdir)),
        encode=encode,
        workdir=workdir,
    )
    print(f"measure it: python -m launch.evaluate --checkpoint={workdir}")
    return workdir


def evaluate_consistency(workdir: str | Path, report_dir: str | Path | None = None) -> dict[str, float]:
    """Measures a finished run, writes summary and report into it or `report_dir`, and returns the numbers."""
    config, target = read_config(workdir), workdir if report_dir is None else report_dir
    options = {name: config[name] for name in ("rule", "num_votes", "num_samples")}
    tuned = {guard: measure_tuned(groups, **options) for guard, groups in read_scores(workdir).items()}
    values = {f"{guard}/{name}": value for guard, found in tuned.items() for name, value in found.numbers().items()}
    write_summary(target, "guard_consistency", values)
    section, tables = report.consistency_section(tuned)
    written = report.write_section(target, "guards", section, tables)
    print(f"report, with all quantities and their intervals: {written}")
    return values


# Ways of left-out makers ----------------------------------------------------------------------------------------------


def train_unseen(config: Config, workdir: str | Path) -> Path:
    """Trains the steady guard of configs/guard_unseen.py, runs the study and returns the work directory.

    Raises:
      ConfigError: a field that cannot be used.
      MakerError: a package of a maker is not installed.
    """
    check_fields(config)
    model = load_config_model(config, workdir)
    workdir = open_workdir(workdir, config)
    keep_precision(model, workdir, config["matmul_dtype"])
    settings = _settings(UnseenSettings, config, num_train=_all(config["num_train"]))
    values = run_unseen(settings, model=model, encode=load_sentence_encoder().encode, workdir=workdir)
    if values:
        write_summary(workdir, "guard_unseen", values)
        print(make_table([{"quantity": name, "value": value} for name, value in values.items()]).to_text())
    print(f"stored a guard for --config.guard={workdir / GUARD_FILE}")
    return workdir


# SmolGuard ------------------------------------------------------------------------------------------------------------


def train_smolguard(config: Config, workdir: str | Path) -> Path:
    """Trains SmolGuard by a config of configs/guard_smol.py and returns the stored adapter.

    Raises:
      ConfigError: see `check_fields`.
    """
    check_fields(config)
    model = load_config_model(config, workdir)
    check_first_layer("config.first_layer", config["first_layer"], model)
    workdir = open_workdir(workdir, config, ignore=("log_every", "save_every", "evaluation"))
    keep_precision(model, workdir, config["matmul_dtype"])
    data, stored = config["data"], workdir / ADAPTER
    counts = {name: _all(data[name]) for name in ("num_human", "num_contrast", "num_harmful")}
    answer = fitting.kept_answer(model, workdir / "answers", max_tokens=data["max_tokens"])
    pairs = smolguard.smolguard_examples(_settings(smolguard.SmolGuardExamples, data, **counts), answer)
    about = {name: value for name, value in config.items() if name not in ("evaluation", "log_every", "save_every")}
    settings = _settings(smolguard.SmolGuardSettings, config)
    smolguard.train_smolguard(model, pairs, settings, path=stored, about=about, workdir=workdir)
    return stored


def evaluate_smolguard(workdir: str | Path) -> dict[str, float]:
    """Measures a trained SmolGuard beside other guards, writes summary and report, and returns the numbers."""
    workdir = Path(workdir)
    config = read_config(workdir)
    if not (workdir / ADAPTER).exists():
        raise ConfigError(
            f"{workdir} has no {ADAPTER}: its training is not finished. The same launch.train command continues it."
        )
    model, sizes = (
        load_config_model(config, workdir),
        {name: _all(count) for name, count in config["evaluation"].items()},
    )
    human = examples.human_sample("held_out", sizes.pop("num_human"))
    measured = smolguard.measure_guards(
        smolguard.compared_guards(model, workdir / ADAPTER, load_sentence_encoder().encode),
        human=human,
        asked=smolguard.asked_prompts(**sizes),
        answer=fitting.kept_answer(model, workdir / "answers", max_tokens=config["data"]["max_tokens"]),
    )
    values = {
        f"{name.lower().replace(' ', '_')}/{what}": value
        for name, found in measured.items()
        for what, value in found.numbers().items()
    }
    write_summary(workdir, "guard_smol", values)
    section, tables = report.smolguard_section(measured, human)
    print(f"report: {report.write_section(workdir, 'smolguard', section, tables)}")
    return values
