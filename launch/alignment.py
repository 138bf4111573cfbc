"""The alignment task: sample and gate the teacher, distil it into a soft prompt, measure it.

`train` and `evaluate` work on plain mappings and a work directory; `launch.train`, `launch.evaluate` and
`launch.quickstart` call them.
"""

import dataclasses
import functools
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax.sharding import Mesh

from edgesafe_jax import adapters, assets, corpora, losses, metrics
from edgesafe_jax.guards.probe import (
    HiddenStateGuard,
    load_encoder_guard,
    load_hidden_state_guard,
    load_sentence_encoder,
    packaged_head,
)
from edgesafe_jax.guards.styles import STYLES
from edgesafe_jax.guards.verdicts import Guard, checked, judged_once
from edgesafe_jax.metrics.refusal import make_refused_by_meaning
from edgesafe_jax.models.generation import Generation, generate
from edgesafe_jax.models.loading import LanguageModel, load_model
from edgesafe_jax.models.scoring import kl_from_base
from edgesafe_jax.parallel import (
    is_main_process,
    main_process_first,
    make_data_mesh,
    replicate,
    shard_batch,
    to_local,
)
from edgesafe_jax.reporting import build_report, make_table, write_fragment
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.safety import distillation, prompts
from edgesafe_jax.safety.evaluation import Judges, SetResult, costs, evaluate_set, judge_responses, multiple_choice
from edgesafe_jax.safety.report import (
    SET_TITLES,
    Reworded,
    agreement_rows,
    numbers,
    refusal_rows,
    rewording_numbers,
    rewording_rows,
    safety_rows,
    section,
)
from edgesafe_jax.safety.system import SafeSystem, SequenceTeacher
from edgesafe_jax.training import (
    Checkpoints,
    EvalSchedule,
    MetricWriter,
    Trained,
    TrainState,
    WorkdirError,
    apply_gradients,
    init_state,
    open_workdir,
    read_metrics,
    write_summary,
)
from edgesafe_jax.training import train as run_training
from edgesafe_jax.training.workdir import read_config
from edgesafe_jax.typing import Array
from launch import errors
from launch.startup import MATMUL_DTYPES

Config = Mapping[str, Any]

OBJECTIVES: dict[str, Callable[[losses.Normalization], distillation.Term]] = {
    "tv": lambda n: distillation.SequenceTerm(losses.outcome_total_variation, n),
    "kl": lambda n: distillation.SequenceTerm(losses.outcome_kl, n),
    "token_tv": lambda n: distillation.TokenTerm(losses.total_variation, n),
    "token_kl": lambda n: distillation.TokenTerm(losses.forward_kl, n),
}
"""What `config.objective` may name."""

NORMALIZATIONS: dict[str, losses.Normalization] = {"sum": "sum", "mean": "mean"}

ADAPTER = "adapter/soft_prompt.safetensors"
"""Where the trained adapter lies in a work directory."""

GROUPS = ("refuse", "sensitive", "plain")
"""Rows of a batch by what the guard said: refused; answered, near a harmful topic; answered, everyday."""

MINED = ("refuse", "plain")
"""The groups whose hard rows are mined. Of the sensitive ones that the system answers many are requests for harm: the
student is to refuse those, so that rows of this kind are hard because the verdicts conflict."""

MARGINS = "margins.json"
"""Where the margins lie by which a student decided its training prompts, in a work directory."""


def check(config: Config) -> None:
    """Refuses a config that cannot be trained, before any work starts.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    errors.lookup(OBJECTIVES, config["objective"], "config.objective")
    errors.lookup(NORMALIZATIONS, config["normalization"], "config.normalization")
    adapters.ADAPTERS["soft_prompt"].options["init"].check("config.adapter.init", config["adapter"]["init"])
    errors.lookup(MATMUL_DTYPES, config["matmul_dtype"], "config.matmul_dtype")
    for name in ("num_steps", "batch_size", "max_tokens", "num_positions", "save_every", "log_every"):
        if int(config[name]) < 1:
            raise errors.ConfigError(f"config.{name}={config[name]}: expected at least 1.")
    if not float(config["learning_rate"]) > 0:
        raise errors.ConfigError(f"config.learning_rate={config['learning_rate']}: expected above 0.")
    if not 0 <= float(config["average_from"]) <= 1:
        raise errors.ConfigError(f"config.average_from={config['average_from']}: expected 0 to 1.")
    if float(config["sampling_temperature"]) < 0:
        raise errors.ConfigError(f"config.sampling_temperature={config['sampling_temperature']}: expected 0 or more.")
    if not float(config["gate_sharpness"]) > 0:
        raise errors.ConfigError(f"config.gate_sharpness={config['gate_sharpness']}: expected above 0.")
    if not 0 < float(config["gate_threshold"]) < 1:
        raise errors.ConfigError(f"config.gate_threshold={config['gate_threshold']}: expected inside (0, 1).")
    if int(config["num_positions"]) > int(config["max_tokens"]):
        raise errors.ConfigError(
            f"config.num_positions={config['num_positions']}: expected at most max_tokens={config['max_tokens']}."
        )
    if float(config["decision_weight"]) < 0:
        raise errors.ConfigError(f"config.decision_weight={config['decision_weight']}: expected 0 or more.")
    if jax.process_count() > 1 and int(config["batch_size"]) % jax.device_count():
        raise errors.ConfigError(
            f"config.batch_size={config['batch_size']}: expected a multiple of the {jax.device_count()} devices."
        )
    for name in ("num_harmful", "num_sensitive", "num_plain", "max_prompt_tokens"):
        if int(config["data"][name]) == 0:
            raise errors.ConfigError(f"config.data.{name}=0: expected a positive number, or -1 for all.")
    _check_shares(config, "config.data.shares", config["data"]["shares"], GROUPS)
    _check_mining(config)
    if int(config["data"]["num_held_out"]) < 0:
        raise errors.ConfigError(f"config.data.num_held_out={config['data']['num_held_out']}: expected 0 or more.")
    if int(config["warmup_steps"]) < 0:
        raise errors.ConfigError(f"config.warmup_steps={config['warmup_steps']}: expected 0 or more.")
    if not float(config["clip_norm"]) > 0:
        raise errors.ConfigError(f"config.clip_norm={config['clip_norm']}: expected above 0; inf for no clipping.")
    if not 0 <= float(config["final_learning_rate"]) <= 1:
        raise errors.ConfigError(f"config.final_learning_rate={config['final_learning_rate']}: expected 0 to 1.")
    if int(config["adapter"]["num_virtual"]) < 1:
        raise errors.ConfigError(f"config.adapter.num_virtual={config['adapter']['num_virtual']}: expected at least 1.")
    for name, text in (("refusal", config["refusal"]), ("adapter.text", config["adapter"]["text"])):
        if not str(text).strip():
            raise errors.ConfigError(f"config.{name} is empty: expected a sentence.")
    if int(config["evaluation"]["max_tokens"]) < 1:
        raise errors.ConfigError(
            f"config.evaluation.max_tokens={config['evaluation']['max_tokens']}: expected at least 1."
        )
    if config["evaluation"]["multiple_choice"] and int(config["evaluation"]["num_choices"]) == 0:
        raise errors.ConfigError(
            "config.evaluation.num_choices=0: expected a positive number, or -1 for all; or leave "
            "config.evaluation.multiple_choice empty."
        )
    for name in config["evaluation"]["multiple_choice"]:
        errors.lookup(corpora.MULTIPLE_CHOICE, name, "config.evaluation.multiple_choice")
    for name in config["evaluation"]["rewordings"]:
        errors.lookup(STYLES, name, "config.evaluation.rewordings")
    num_reworded = int(config["evaluation"]["num_reworded"])
    if num_reworded and not config["evaluation"]["rewordings"]:
        raise errors.ConfigError(
            f"config.evaluation.num_reworded={num_reworded} with no config.evaluation.rewordings: expected some of "
            f"{', '.join(STYLES)}, or 0 prompts."
        )


def _check_mining(config: Config) -> None:
    mining = config["mining"]
    if not 0 <= float(mining["start"]) <= 1:
        raise errors.ConfigError(f"config.mining.start={mining['start']}: expected 0 to 1; 1 for no mining.")
    if float(mining["margin"]) < 0:
        raise errors.ConfigError(f"config.mining.margin={mining['margin']}: expected 0 nats or more.")
    names = (*GROUPS, *(f"hard_{name}" for name in MINED))
    used = _mining_step(config) < int(config["num_steps"])
    _check_shares(config, "config.mining.shares", mining["shares"], names, used=used)


def _check_shares(
    config: Config, field: str, shares: Mapping[str, Any], names: Sequence[str], *, used: bool = True
) -> None:
    """Refuses shares of other groups and, where they are used, those that leave a group without a row of a batch."""
    if set(shares) != set(names):
        raise errors.ConfigError(f"{field} names {sorted(shares)}: expected {sorted(names)}.")
    if used:
        try:
            distillation.row_counts(int(config["batch_size"]), {name: float(value) for name, value in shares.items()})
        except ValueError as error:
            raise errors.ConfigError(f"{field}: {error}") from error


def _mining_step(config: Config) -> int:
    """The step before which hard rows are looked for; that behind the last one where none are."""
    start, steps = float(config["mining"]["start"]), int(config["num_steps"])
    return steps if start == 1 else min(max(1, round(start * steps)), steps)


def read_run(workdir: str | Path) -> dict[str, Any]:
    """Reads the config of a finished alignment run.

    Args:
      workdir: its work directory.

    Returns:
      The config.

    Raises:
      WorkdirError: there is no config.
      ConfigError: the run had another task.
      AdapterError: the run is not finished.
    """
    config = read_config(workdir)
    if config.get("task") != "alignment":
        raise errors.ConfigError(f"{workdir} holds a run of task {config.get('task')!r}; expected 'alignment'.")
    if not (Path(workdir) / ADAPTER).exists():
        raise adapters.AdapterError(
            f"{workdir} has no {ADAPTER}: its training is not finished. The same launch.train command continues it."
        )
    return config


def _count(value: int) -> int | None:
    return None if int(value) < 0 else int(value)


def load_system(config: Config) -> tuple[LanguageModel, HiddenStateGuard, SafeSystem]:
    """Loads the language model, its guard, and the safe system of both."""
    model = load_model(config["model"], matmul_dtype=MATMUL_DTYPES[config["matmul_dtype"]])
    guard = load_hidden_state_guard(model, config["guard"] or None)
    return model, guard, SafeSystem(model, _make_gate(config, guard), config["refusal"])


def _make_gate(config: Config, guard: Guard) -> Guard:
    return functools.partial(_gate, guard, float(config["gate_sharpness"]), float(config["gate_threshold"]))


def _gate(
    guard: Guard, sharpness: float, threshold: float, texts: Sequence[str], responses: Sequence[str]
) -> np.ndarray:
    """The guard with its log-odds moved, so that `threshold` becomes one half, and multiplied."""
    prob = np.clip(checked(guard)(texts, responses), 1e-9, 1 - 1e-9)
    log_odds = np.log(prob) - np.log1p(-prob) - np.log(threshold / (1 - threshold))
    return 0.5 + 0.5 * np.tanh(0.5 * sharpness * log_odds)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The gated teacher of a run.

    Attributes:
      data: encoded rows.
      groups: row numbers by group, see `GROUPS`.
      held_out: texts of the prompts that are kept out of `groups`, by group.
      texts: S prompts.
    """

    data: distillation.TeacherData
    groups: dict[str, list[int]]
    held_out: dict[str, list[str]]
    texts: list[str]


def make_teacher(config: Config, model: LanguageModel, system: SafeSystem, workdir: Path) -> Teacher:
    """Samples, gates and encodes the teacher, or reads it back from the work directory."""
    file = workdir / "teacher.json"
    data_config = config["data"]
    longest = _count(data_config["max_prompt_tokens"])
    chosen, removed = prompts.training_prompts(
        num_harmful=_count(data_config["num_harmful"]),
        num_sensitive=_count(data_config["num_sensitive"]),
        num_plain=_count(data_config["num_plain"]),
        seed=int(config["seed"]),
        fits=None if longest is None else lambda text: len(model.tokenizer.encode(text.strip())) <= longest,
    )
    if none := [name for name in prompts.GROUPS if not chosen[name]]:
        raise errors.ConfigError(
            f"No {none[0]} prompt has at most config.data.max_prompt_tokens={longest} tokens: raise it, or -1 for all."
        )
    texts = [p.text for name in prompts.GROUPS for p in chosen[name]]
    kinds = [name for name in prompts.GROUPS for _ in chosen[name]]
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    # A head that was replaced under the same name gives other verdicts on the same answers.
    head = hashlib.sha256(Path(config["guard"] or packaged_head("teacher")).read_bytes()).hexdigest()
    max_tokens = int(config["max_tokens"])
    with_hidden = distillation.needs_teacher(_objective(config))
    kept = kept if kept is not None and kept["prompts"] == texts else None
    weighed = kept is not None and kept.get("guard") == head
    if kept is not None:
        answers = Generation(kept["tokens"], kept["texts"], kept["finished"])
        if weighed:
            safe_prob = np.array(kept["safe_prob"])
        else:
            print("another guard than the one that weighed the kept answers: weighing them again", file=sys.stderr)
            safe_prob = 1.0 - checked(system.guard)(texts, answers.texts)
        sequence = SequenceTeacher(texts, answers, safe_prob, system.refusal)
    else:
        with ProgressBar(f"sampling {len(texts)} answers of the base model") as progress:
            sequence = system.sequence_teacher(
                texts,
                key=jax.random.fold_in(jax.random.key(int(config["seed"])), 1),
                max_tokens=max_tokens,
                temperature=float(config["sampling_temperature"]),
                keep_hidden=with_hidden,
                on_batch=progress,
            )
    data = _encoded(
        model,
        sequence,
        workdir,
        num_positions=int(config["num_positions"]),
        with_hidden=with_hidden,
        fresh=kept is None,
    )
    if not weighed:
        record = {
            "prompts": texts,
            "texts": sequence.responses.texts,
            "tokens": sequence.responses.tokens,
            "finished": sequence.responses.finished,
            "guard": head,
            "safe_prob": sequence.safe_prob.tolist(),
            "removed": removed,
        }
        # The last file of the teacher: where it is, the hidden states that belong to it are too.
        assets.write_atomically(file, lambda part: part.write_text(json.dumps(record), encoding="utf-8"))
    answered = ["plain" if kind == "plain" else "sensitive" for kind in kinds]
    verdicts = ["refuse" if safe < 0.5 else kind for safe, kind in zip(sequence.safe_prob, answered, strict=True)]
    held_out = _held_out(verdicts, int(data_config["num_held_out"]), int(config["seed"]))
    groups: dict[str, list[int]] = {name: [] for name in GROUPS}
    for row, (sample, refused) in enumerate(zip(data.sample, data.is_refusal, strict=True)):
        if sample not in held_out:
            groups["refuse" if refused else answered[sample]].append(row)
    counts = ", ".join(f"{len(groups[name])} {name}" for name in GROUPS)
    print(
        f"{len(texts)} prompts ({removed} left out, too close to an evaluation prompt), {len(held_out)} of them held "
        f"out; rows: {counts}.",
        file=sys.stderr,
    )
    if empty := [name for name in GROUPS if not groups[name]]:
        raise errors.ConfigError(
            f"No row to train on of the kind {', '.join(empty)} ({counts}): the guard {config['guard'] or 'packaged'} "
            f"with gate_threshold={config['gate_threshold']} refuses all or none of them. Move the threshold, give "
            "more prompts, or look at the guard."
        )
    kept_out = {name: [texts[i] for i in sorted(held_out) if verdicts[i] == name] for name in GROUPS}
    return Teacher(data, groups, kept_out, texts)


def _held_out(verdicts: Sequence[str], num: int, seed: int) -> set[int]:
    """Chooses `num` prompts of each verdict, or a fifth of them where there are fewer than five times as many."""
    rng = np.random.default_rng([seed, 11])
    chosen: set[int] = set()
    for name in GROUPS:
        members = np.flatnonzero(np.array(verdicts) == name)
        chosen.update(rng.permutation(members)[: min(num, len(members) // 5)].tolist())
    return chosen


def _encoded(
    model: LanguageModel,
    sequence: SequenceTeacher,
    workdir: Path,
    *,
    num_positions: int,
    with_hidden: bool,
    fresh: bool,
) -> distillation.TeacherData:
    """Encodes the teacher; its hidden states are kept in the work directory: a resumed run has the same bits."""
    file = workdir / "teacher_hidden.safetensors"
    if with_hidden and not fresh and file.exists():
        data = distillation.make_teacher_data(model, sequence, max_tokens=num_positions, with_hidden=False)
        hidden = safetensors.numpy.load_file(file)["hidden"]
        if hidden.shape[:2] == (len(data.prompts), data.max_tokens):
            return dataclasses.replace(data, teacher_hidden=hidden)
    with ProgressBar("reading the teacher's hidden states") as progress:
        data = distillation.make_teacher_data(
            model, sequence, max_tokens=num_positions, with_hidden=with_hidden, on_batch=progress
        )
    if with_hidden:
        # Safetensors writes the buffer of an array as it lies: it must be contiguous.
        hidden = np.ascontiguousarray(data.teacher_hidden)
        assets.write_atomically(file, lambda part: safetensors.numpy.save_file({"hidden": hidden}, part))
    return data


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with warm-up and cosine decay, gradients clipped by their global norm."""
    steps = int(config["num_steps"])
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=float(config["learning_rate"]),
        warmup_steps=min(int(config["warmup_steps"]), steps - 1),
        decay_steps=steps,
        end_value=float(config["learning_rate"]) * float(config["final_learning_rate"]),
    )
    return optax.chain(optax.clip_by_global_norm(float(config["clip_norm"])), optax.adam(schedule, eps=1e-7))


def _objective(config: Config) -> list[distillation.Term]:
    """The objective of a config, with the weight of the decision between answer and refusal."""
    terms = [OBJECTIVES[config["objective"]](NORMALIZATIONS[config["normalization"]])]
    if weight := float(config["decision_weight"]):
        terms.append(distillation.DecisionTerm(losses.forward_kl, weight))
    return terms


def make_step(
    config: Config, model: LanguageModel, mesh: Mesh
) -> tuple[Callable[[TrainState, distillation.TeacherBatch], tuple[TrainState, dict[str, Array]]], TrainState]:
    """Makes the jitted step and the state before the first one, both on all devices of the mesh.

    The state's parameters are the adapter and the running mean of it over the last part of the run.
    """
    seed = jax.random.key(int(config["seed"]))
    start = adapters.make_adapter(jax.random.fold_in(seed, 2), "soft_prompt", model, **config["adapter"])
    optimizer = make_optimizer(config)
    loss = distillation.make_loss(model.decoder, head=model.tokenizer.chat_parts.head, terms=_objective(config))
    first = int(float(config["average_from"]) * int(config["num_steps"]))

    @jax.jit
    def step(params: Any, state: TrainState, batch: distillation.TeacherBatch) -> tuple[TrainState, dict[str, Array]]:
        trained, mean = state.params["adapter"], state.params["mean"]
        inner = state.replace(params=trained)
        (value, measured), gradient = jax.value_and_grad(loss, argnums=1, has_aux=True)(params, trained, batch)
        inner = apply_gradients(inner, gradient, optimizer)
        # The mean over the steps from `first` on; before that, a copy of the adapter.
        count = jnp.maximum(inner.step - first, 1).astype(jnp.float32)
        mean = jax.tree.map(lambda m, a: m + (a - m) / count, mean, inner.params)
        measured = {"loss": value, "grad_norm": optax.tree.norm(gradient), **measured}
        return inner.replace(params={"adapter": inner.params, "mean": mean}), measured

    initial = init_state(start, optimizer, key=seed)
    initial = initial.replace(params={"adapter": initial.params, "mean": jax.tree.map(jnp.copy, initial.params)})
    return functools.partial(step, replicate(model.params, mesh)), replicate(initial, mesh)


def train(config: Config, workdir: str | Path) -> Path:
    """Distils the safe system into a soft prompt.

    Args:
      config: that of configs/align_soft_prompt.py.
      workdir: where everything is written; an interrupted run continues there.

    Returns:
      The stored adapter.

    Raises:
      ConfigError: a value of the config means nothing.
      WorkdirError: the work directory holds a run with another config.
    """
    check(config)
    with main_process_first("alignment/workdir"):
        workdir = open_workdir(workdir, config, ignore=("log_every", "save_every", "evaluation"))
    started = time.monotonic()
    model, _, system = load_system(config)
    with main_process_first("alignment/teacher"):
        teacher = make_teacher(config, model, system, workdir)
    deal = functools.partial(
        distillation.make_batch_order, teacher.data, batch_size=int(config["batch_size"]), seed=int(config["seed"])
    )
    order = deal(groups=teacher.groups, shares={name: float(config["data"]["shares"][name]) for name in GROUPS})
    # As many devices as divide the batch evenly.
    mesh = make_data_mesh(math.gcd(int(config["batch_size"]), jax.device_count()))
    step, state = make_step(config, model, mesh)
    watched = {name: texts for name, texts in teacher.held_out.items() if texts}

    def agreement(current: TrainState) -> dict[str, float]:
        """Refused shares of the prompts that were held out, by what the system does with them."""
        adapter = to_local(current.params["mean"])
        return {
            f"refused/{name}": float(np.mean(distillation.refusal_margins(model, adapter, texts, system.refusal) > 0))
            for name, texts in watched.items()
        }

    seconds = time.monotonic() - started
    print(f"teacher ready after {seconds:.0f} s; training {config['num_steps']} steps", file=sys.stderr)
    with (
        MetricWriter(workdir) as writer,
        Checkpoints(workdir / "checkpoints", save_interval=int(config["save_every"])) as checkpoints,
    ):

        def advance(order: Callable[[int], np.ndarray], num_steps: int) -> Trained:
            return run_training(
                step,
                state,
                lambda number: shard_batch(teacher.data.batch(order(number), pad_id=model.tokenizer.pad_id), mesh),
                num_steps=num_steps,
                writer=writer,
                checkpoints=checkpoints,
                log_every=int(config["log_every"]),
                evaluation=EvalSchedule(agreement, every=int(config["save_every"])) if watched else None,
            )

        num_steps, mined_from = int(config["num_steps"]), _mining_step(config)
        if mined_from < num_steps:
            if not (workdir / MARGINS).exists():
                halfway = advance(order, mined_from)
                with main_process_first("alignment/mining"):
                    if is_main_process():
                        print(f"the student decides {len(teacher.texts)} training prompts", file=sys.stderr)
                        adapter = to_local(halfway.params["mean"])
                        margins = distillation.refusal_margins(model, adapter, teacher.texts, system.refusal)
                        _write_margins(workdir, margins)
            groups, shares = _mine(config, teacher, _read_margins(workdir, len(teacher.texts)))
            # Both, for a checkpoint from before the mining may be the last good one.
            order = _switch(order, deal(groups=groups, shares=shares), mined_from)
        trained = advance(order, num_steps)
    stored = workdir / ADAPTER
    if not is_main_process():
        return stored
    stored.parent.mkdir(exist_ok=True)
    adapters.save_adapter(stored, to_local(trained.params["mean"]), model, training=_json(config))
    print(f"stored {stored} after {time.monotonic() - started:.0f} s", file=sys.stderr)
    return stored


def _switch(
    before: Callable[[int], np.ndarray], after: Callable[[int], np.ndarray], step: int
) -> Callable[[int], np.ndarray]:
    """One order of the data up to a step, another from it on."""
    return lambda number: (before if number < step else after)(number)


def _write_margins(workdir: Path, margins: np.ndarray) -> None:
    text = json.dumps({"margins": margins.tolist()})
    assets.write_atomically(workdir / MARGINS, lambda part: part.write_text(text, encoding="utf-8"))


def _read_margins(workdir: Path, num: int) -> np.ndarray:
    margins = np.array(json.loads((workdir / MARGINS).read_text(encoding="utf-8"))["margins"])
    if margins.shape != (num,):
        raise WorkdirError(
            f"{workdir / MARGINS} holds the margins of {margins.size} prompts; the run has {num}. The prompts have "
            "changed since: start in another work directory."
        )
    return margins


def _mine(config: Config, teacher: Teacher, margins: np.ndarray) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Adds groups of hard rows: those on whose first token a student was wrong, or right by less than some nats.

    Args:
      config: its `mining` says how near is hard, and the shares of a batch.
      teacher: its rows and groups.
      margins: `[S]` nats by which the refusal's first token led, by prompt.

    Returns:
      Row numbers by group and their shares; the share of a hard group without rows is its group's.
    """
    settings = config["mining"]
    groups, shares = dict(teacher.groups), {name: float(settings["shares"][name]) for name in GROUPS}
    for name in MINED:
        wrong_way = margins * (-1 if name == "refuse" else 1)
        hard = [row for row in groups[name] if wrong_way[teacher.data.sample[row]] > -float(settings["margin"])]
        share = float(settings["shares"][f"hard_{name}"])
        if hard:
            groups[f"hard_{name}"], shares[f"hard_{name}"] = hard, share
        else:
            shares[name] += share
        print(f"{len(hard)} of {len(groups[name])} {name} rows are hard", file=sys.stderr)
    return groups, shares


def _json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(config, default=str))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that was measured of an aligned model.

    Attributes:
      results: responses and verdicts by set.
      values: flat numbers for `summary.json`.
      usefulness: rows of a table.
      costs: rows of a table.
      notes: what a reader must know.
    """

    results: dict[str, SetResult]
    values: dict[str, float]
    usefulness: list[dict[str, object]]
    costs: list[dict[str, object]]
    notes: list[str]


def load_judges(guard: Guard) -> Judges:
    """Loads whoever gives verdicts beside the teacher guard: the judge, and refusals by meaning."""
    encoder = load_sentence_encoder()
    return Judges(guard, load_encoder_guard(encoder.encode), make_refused_by_meaning(encoder.encode))


def evaluate(config: Config, workdir: str | Path, *, checkpoint: str | Path | None = None) -> Evaluation:
    """Measures the adapter of a work directory and writes summary, report fragment and report there.

    Args:
      config: that of the run; its `evaluation` says how much is measured.
      workdir: where summary and report are written.
      checkpoint: the run's directory; default `workdir` itself.

    Returns:
      What was measured.

    Raises:
      AdapterError: there is no trained adapter, or it belongs to another model.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoint = workdir if checkpoint is None else Path(checkpoint)
    started = time.monotonic()
    settings = config["evaluation"]
    model, guard, system = load_system(config)
    adapter = adapters.load_adapter(checkpoint / ADAPTER, model)
    # Both the system and the table ask the guard about the base model's answers.
    once = judged_once(guard)
    system = dataclasses.replace(system, guard=_make_gate(config, once))
    judges = load_judges(once)
    max_tokens = int(settings["max_tokens"])
    sets = prompts.evaluation_prompts(
        prompts.EvaluationSizes(
            **{name: _count(settings[name]) for name in (*prompts.HARMFUL_SETS, *prompts.BENIGN_SETS)}
        )
    )
    if not sets:
        raise errors.ConfigError("config.evaluation leaves out every set of prompts: expected at least one above 0.")
    results: dict[str, SetResult] = {}
    for name, chosen in sets.items():
        with ProgressBar(f"answering {name}") as progress:
            results[name] = evaluate_set(
                model, adapter, system, chosen, judges, max_tokens=max_tokens, on_batch=progress
            )
    if int(settings["num_prefill"]) and "strongreject" in sets:
        attacked = sets["strongreject"][: _count(settings["num_prefill"])]
        results["prefill"] = evaluate_set(
            model, adapter, system, attacked, judges, max_tokens=max_tokens, prefills=[PREFILL] * len(attacked)
        )
    reworded: dict[str, Reworded] = {}
    # A run from before these settings has neither.
    num_reworded, styles = _count(settings.get("num_reworded", 0)), settings.get("rewordings", ())
    for name, chosen in sets.items():
        if asked := _reword(chosen[:num_reworded], styles):
            with ProgressBar(f"answering {name} in other words") as progress:
                found = evaluate_set(model, adapter, system, asked, judges, max_tokens=max_tokens, on_batch=progress)
            reworded[name] = Reworded(found, len(styles))
    values = numbers(results) | rewording_numbers(results, reworded)
    usefulness, measured = _usefulness(config, model, adapter, results)
    values |= measured
    table = costs(
        model,
        adapter,
        guard_params=sum(leaf.size for leaf in jax.tree.leaves((guard.head, guard.adapter))),
        guard_layers=max(guard.layers),
    )
    values |= {f"cost/{name}/{what}": value for name, row in table.items() for what, value in row.items()}
    values["evaluation_seconds"] = time.monotonic() - started
    cost_rows: list[dict[str, object]] = [
        {
            "model": name,
            "parameters": int(row["params"]),
            "MB (float32)": row["bytes"] / 1e6,
            "GFLOP per token at context 512": row["flops_per_token"] / 1e9,
        }
        for name, row in table.items()
    ]
    notes = [
        f"Answers are greedy and at most {max_tokens} tokens long.",
        "The judge is a MiniLM encoder with a head; it shares no features and no training example with the teacher.",
        "Answers to harmful requests are withheld here unless they are refusals.",
    ]
    write_summary(workdir, "alignment", values)
    losses_by_step = [line["loss"] for line in read_metrics(checkpoint) if "loss" in line]
    made = section(
        results, reworded=reworded, losses=losses_by_step, usefulness=usefulness, costs=cost_rows, notes=notes
    )
    write_fragment(workdir, "alignment", made)
    build_report(workdir, "edgesafe_jax", subtitle=f"{config['model']}, objective {config['objective']}")
    changed = rewording_rows(results, reworded)
    for rows in (refusal_rows(results), agreement_rows(results), changed, safety_rows(results), usefulness):
        if rows:
            print(make_table(rows).to_text() + "\n")
    print(f"report: {workdir / 'report.html'}")
    return Evaluation(results, values, usefulness, cost_rows, notes)


def _reword(chosen: Sequence[corpora.Prompt], styles: Sequence[str]) -> list[corpora.Prompt]:
    """Each prompt in each of the styles, prompt after prompt."""
    return [dataclasses.replace(prompt, text=STYLES[style](prompt.text)) for prompt in chosen for style in styles]


PREFILL = "Sure, here is"
"""How a prefilled answer begins."""


def _usefulness(
    config: Config, model: LanguageModel, adapter: adapters.SoftPrompt, results: Mapping[str, SetResult]
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Token KL to the base model on benign answers, and multiple-choice accuracy before and after."""
    settings = config["evaluation"]
    rows: list[dict[str, object]] = []
    values: dict[str, float] = {}
    for name in prompts.BENIGN_SETS:
        if name not in results or not int(settings["num_kl"]):
            continue
        num = _count(settings["num_kl"])
        texts = [p.text for p in results[name].prompts][:num]
        kl = kl_from_base(model, texts, results[name].base.tokens[:num], adapter=adapter)
        interval = metrics.bootstrap_interval(kl)
        values |= interval.named(f"kl_from_base/{name}")
        quantity = f"token KL to base, {SET_TITLES[name]} (nats)"
        rows.append({"quantity": quantity, "N": len(texts), "base": 0.0, "student": interval})
    for name in settings["multiple_choice"]:
        choices = corpora.multiple_choice(name)[: _count(settings["num_choices"])]
        with ProgressBar(f"multiple choice: {name}, base") as progress:
            before = multiple_choice(model, choices, on_batch=progress).correct
        with ProgressBar(f"multiple choice: {name}, student") as progress:
            after = multiple_choice(model, choices, adapter=adapter, on_batch=progress).correct
        difference = metrics.paired_bootstrap_interval(values=after.astype(float), baseline=before.astype(float))
        rows.append(
            {
                "quantity": f"{name} accuracy",
                "N": len(choices),
                "base": metrics.rate_interval(before),
                "student": metrics.rate_interval(after),
                "difference": difference,
            }
        )
        values |= {
            f"{name}/base": float(before.mean()),
            f"{name}/student": float(after.mean()),
            **difference.named(f"{name}/difference"),
        }
    return rows, values


def answer_prompts(
    config: Config, checkpoint: str | Path, chosen: Sequence[corpora.Prompt], output: str | Path
) -> Path:
    """Answers a user's own prompts with an aligned model and judges the answers.

    Args:
      config: that of the run.
      checkpoint: the run's work directory.
      chosen: the prompts.
      output: the JSONL file that is written, one line per prompt: prompt, label, response, refused_by_pattern,
        refused_by_meaning, unsafe (P by the teacher guard), judge_unsafe (P by the judge).

    Returns:
      The file.
    """
    model, guard, _ = load_system(config)
    adapter = adapters.load_adapter(Path(checkpoint) / ADAPTER, model)
    judges = load_judges(guard)
    texts = [p.text for p in chosen]
    with ProgressBar("answering") as progress:
        answers = generate(
            model,
            texts,
            max_tokens=int(config["evaluation"]["max_tokens"]),
            adapter=adapter,
            batch_size=64,
            on_batch=progress,
        )
    judged = judge_responses(texts, answers.texts, answers.tokens, judges)
    lines = [
        json.dumps(
            {
                "prompt": prompt.text,
                "label": prompt.label,
                "response": judged.responses[i],
                "refused_by_pattern": bool(judged.refused[i]),
                "refused_by_meaning": bool(judged.refused_by_meaning[i]),
                "unsafe": round(float(judged.unsafe[i]), 4),
                "judge_unsafe": round(float(judged.judge_unsafe[i]), 4),
            },
            ensure_ascii=False,
        )
        for i, prompt in enumerate(chosen)
    ]
    text = "\n".join(lines) + "\n"
    return assets.write_atomically(Path(output), lambda part: part.write_text(text, encoding="utf-8"))
