"""The alignment task: a config of `configs/align_soft_prompt.py` as calls of `edgesafe_jax.safety`."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from edgesafe_jax import adapters, corpora
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.fields import check_fields
from edgesafe_jax.guards import named
from edgesafe_jax.guards.probe import keeping, load_sentence_encoder
from edgesafe_jax.guards.verdicts import Guard, judged_once
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.parallel import Layout, is_main_process, main_process_first, make_mesh
from edgesafe_jax.safety import evaluation, judging, report, requested, settings, training
from edgesafe_jax.safety.shared import keep_answers
from edgesafe_jax.safety.system import SafeSystem, refusing, sharpened
from edgesafe_jax.safety.training_data import COUNTS, Chosen, TrainingData, choose, even_mining, other_forms
from edgesafe_jax.training import open_workdir, read_metrics
from edgesafe_jax.training.metric_writers import check_wandb
from edgesafe_jax.training.precision import keep_precision
from edgesafe_jax.training.workdir import read_config
from edgesafe_jax.typing import Adapter
from . import get_config
from .startup import load_config_model, template_variables

Config = Mapping[str, Any]
_log = logging.getLogger("edgesafe_jax.launch.alignment")

ADAPTER = "adapter/adapter.safetensors"
"""Where the trained adapter lies in a work directory."""

MINED = ("refuse", "plain")
"""Groups whose hard rows are mined; sensitive rows are hard because the verdicts on requests for harm conflict."""


@contextlib.contextmanager
def _named(prefix: str) -> Iterator[None]:
    """Puts the place in the config in front of a setting's name."""
    try:
        yield
    except ConfigError as error:
        in_data = str(error).startswith(("mixture", "num_held_out"))
        raise ConfigError(f"{prefix}{'data.' if in_data else ''}{error}") from error


def check(config: Config) -> settings.AlignSettings:
    """Returns the settings of a config, or refuses it before any work starts (ConfigError)."""
    check_fields(config)
    data, mining, kind = config["data"], config["mining"], config["adapter"]["kind"]
    template_variables(config)
    with _named("config."):
        named.check_guard(config["guard"])
    adapters.kinds_of(kind, "config.adapter.kind")
    with _named("config.evaluation."):
        requested.evaluation_settings(config)
        requested.data_split(config)
        corpora.read_files(config["evaluation"]["files"])
    chosen = settings.MiningSettings(**mining)
    groups, mixture = training_data(config).groups(), data["mixture"]
    if data["path"]:
        mixture, chosen = {}, even_mining(chosen, groups)
    else:
        mined = (*groups, *(f"{settings.HARD}{name}" for name in MINED))
        if set(mining["mixture"]) != set(mined):
            raise ConfigError(f"config.mining.mixture names {sorted(mining['mixture'])}: expected {sorted(mined)}.")
    names = {field.name for field in dataclasses.fields(settings.AlignSettings)} & set(config)
    given: dict[str, Any] = {name: config[name] for name in names}
    given |= {"num_held_out": data["num_held_out"], "mixture": mixture, "mining": chosen}
    with _named("config."):
        given["parallel"] = Layout(**config["parallel"])
        found = settings.AlignSettings(**given)
        training.check_groups(found, groups)
        make_mesh(found.parallel, batch_size=found.batch_size)
        check_wandb(found.wandb)
    return found


def read_run(workdir: str | Path) -> dict[str, Any]:
    """Reads the config of a finished alignment run; of another task or an unfinished one it is an error."""
    config = read_config(workdir)
    if config.get("task") != "alignment":
        raise ConfigError(f"{workdir} holds a run of task {config.get('task')!r}; expected 'alignment'.")
    if not stored_adapter(workdir).exists():
        raise adapters.AdapterError(
            f"{workdir} has no {ADAPTER}: its training is not finished. The same launch.train command continues it."
        )
    # Fields that an older run lacks get today's defaults.
    today = get_config("align_soft_prompt").to_dict()
    return {**today, **config, **{name: {**today[name], **config[name]} for name in ("data", "evaluation")}}


def stored_adapter(workdir: str | Path) -> Path:
    """The trained adapter; earlier versions named its file by the kind."""
    former = Path(workdir) / "adapter" / "soft_prompt.safetensors"
    return former if former.exists() else Path(workdir) / ADAPTER


def load_system(config: Config, workdir: str | Path) -> tuple[LanguageModel, Guard, SafeSystem]:
    """Loads the language model of a run, its guard, and the safe system of both."""
    model = load_config_model(config, workdir)
    guard = named.load_guard(config["guard"], model)
    return model, guard, SafeSystem(model, _gate(config, guard), config["refusal"])


def _gate(config: Config, guard: Guard) -> Guard:
    return sharpened(guard, sharpness=config["gate_sharpness"], threshold=config["gate_threshold"])


def training_data(config: Config) -> TrainingData:
    """Which prompts a config trains on; -1 there is None here."""
    data = config["data"]
    counts: dict[str, Any] = {name: requested.count(data[name]) for name in COUNTS}
    return TrainingData(
        data["path"], data["column"], data["label_column"], refuse_harmful=data["refuse_harmful"], **counts
    )


def training_prompts(config: Config, model: LanguageModel) -> Chosen:
    """Chooses the prompts of a config."""
    split = dataclasses.replace(requested.data_split(config), seed=int(config["seed"]))
    return choose(training_data(config), split, lambda text: len(model.tokenizer.encode(text)))


def make_adapter(config: Config, model: LanguageModel) -> Adapter:
    """Makes the student's adapter."""
    about, key = config["adapter"], jax.random.fold_in(jax.random.key(int(config["seed"])), 2)
    options = adapters.options_of(about["kind"], about, model, parameters=about["num_parameters"])
    return adapters.make_adapter(key, about["kind"], model, **options)


def train(config: Config, workdir: str | Path, *, shared: Path | None = None) -> Path:
    """Distils the safe system of a config into an adapter, or continues an interrupted run; returns the stored file.

    With `shared`, a folder, the teacher is read there where another run has made the same one.
    """
    options = check(config)
    # Nothing is written before model, guard, adapter and prompts are known to fit.
    model, guard, system = load_system(config, workdir)
    adapter = make_adapter(config, model)
    chosen = training_prompts(config, model)
    forms = other_forms(training_data(config), chosen.texts, requested.data_split(config))
    with main_process_first("alignment/workdir"):
        workdir = open_workdir(workdir, config, ignore=(*training.UNBOUND, "evaluation"))
        keep_precision(model, workdir, config["matmul_dtype"])
    identity = named.guard_identity(config["guard"], guard)
    if shared is not None and identity is not None:
        identity += f" {options.gate_sharpness} {options.gate_threshold}"
    if chosen.refused:
        system = dataclasses.replace(system, guard=refusing(system.guard, chosen.refused))
        identity = identity and f"{identity} refuse_harmful"
    aligned = training.distil(
        system,
        chosen.texts,
        chosen.labels,
        adapter=adapter,
        settings=options,
        workdir=workdir,
        guard_id=identity,
        shared=shared,
        forms=forms,
    )
    stored = workdir / ADAPTER
    if is_main_process():
        stored.parent.mkdir(exist_ok=True)
        about = json.loads(json.dumps(config, default=str))
        adapters.save_adapter(stored, aligned.adapter, model, training=about)
        _log.info(f"stored {stored}")
    return stored


def load_judges(config: Config, guard: Guard, model: LanguageModel) -> judging.Judges:
    """Loads whoever gives verdicts, the teacher guard among them."""
    wanted, encode = config["evaluation"], load_sentence_encoder().encode
    return judging.make_judges(guard, encode, wanted["judges"], model=model, judge=wanted["judge"])


def evaluate(
    config: Config, workdir: str | Path, *, checkpoint: str | Path | None = None, shared: Path | None = None
) -> evaluation.Evaluation:
    """Measures the adapter of the run in `checkpoint`, default `workdir`; writes summary, fragment and report.

    With `shared`, a folder, the base model's answers are read there where another run has asked for the same ones.
    """
    started, workdir, checkpoint = time.monotonic(), Path(workdir), checkpoint or workdir
    workdir.mkdir(parents=True, exist_ok=True)
    model, guard, system = load_system(config, checkpoint)
    adapter = adapters.load_adapter(stored_adapter(checkpoint), model)
    # Both the system and the judges ask the guard about the base model's answers.
    once = judged_once(keeping(guard))
    system = dataclasses.replace(system, guard=_gate(config, once))
    if shared is not None:
        system = dataclasses.replace(system, generate=keep_answers(shared))
    sets, files = requested.evaluation_sets(config)
    judges, chosen = load_judges(config, once, model), requested.evaluation_settings(config)
    found = evaluation.evaluate(system, adapter, sets, judges, chosen, files)
    costs = evaluation.costs(model, adapter, guard=named.guard_cost(guard, model))
    tables = report.write_report(
        workdir,
        found,
        costs=costs,
        losses=[line["loss"] for line in read_metrics(checkpoint) if "loss" in line],
        subtitle=f"{config['model']}, objective {config['objective']}",
        more={"evaluation_seconds": time.monotonic() - started},
    )
    for caption, table in tables.items():
        print(f"{caption}\n{table.to_text()}\n")
    print(f"report: {workdir / 'report.html'}")
    return found
