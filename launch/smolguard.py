"""SmolGuard: its training, as `launch.train` runs it, and its measurement beside the other guards."""

import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax import corpora, metrics
from edgesafe_jax.adapters import init_lora
from edgesafe_jax.adapters.lora import TARGETS
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.activated import (
    PairBatch,
    PairReader,
    PairStates,
    UpperLayers,
    load_smolguard,
    load_states,
    save_guard,
    score_pairs,
    verdict_loss,
)
from edgesafe_jax.guards.keywords import fit_keywords, refusal_keywords
from edgesafe_jax.guards.probe import load_encoder_guard, load_hidden_state_guard
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.guards.verdicts import Guard, checked
from edgesafe_jax.models.loading import LanguageModel, load_model
from edgesafe_jax.reporting import Section, build_report, make_table, verdict_reliability, write_fragment
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.safety.report import SET_TITLES
from edgesafe_jax.training import (
    Checkpoints,
    EvalSchedule,
    MetricWriter,
    TrainState,
    apply_gradients,
    init_state,
    make_data_order,
    open_workdir,
    write_summary,
)
from edgesafe_jax.training import train as run_training
from edgesafe_jax.training.workdir import read_config
from edgesafe_jax.typing import Array
from launch import errors
from launch.guards import human_auroc, kept_answers, load_sentence_encoder
from launch.paraphrases import pairs_of
from launch.startup import MATMUL_DTYPES

Config = Mapping[str, Any]

ADAPTER = "smolguard.safetensors"
"""Where the trained adapter lies in a work directory."""


def check(config: Config) -> None:
    """Refuses a config that cannot be trained, before any work starts.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    errors.lookup(MATMUL_DTYPES, config["matmul_dtype"], "config.matmul_dtype")
    for name in config["targets"]:
        errors.lookup(dict.fromkeys(TARGETS), name, "config.targets")
    for name in (
        "max_prompt",
        "max_response",
        "first_layer",
        "rank",
        "batch_size",
        "save_every",
        "log_every",
        "eval_every",
    ):
        if int(config[name]) < 1:
            raise errors.ConfigError(f"config.{name}={config[name]}: expected at least 1.")
    for name in ("learning_rate", "num_epochs"):
        if not float(config[name]) > 0:
            raise errors.ConfigError(f"config.{name}={config[name]}: expected above 0.")
    if not config["targets"]:
        raise errors.ConfigError("config.targets is empty: expected some matrices to adapt.")


def _count(value: int) -> int | None:
    return None if int(value) < 0 else int(value)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Training pairs.

    Attributes:
      prompts: N texts.
      responses: N texts.
      labels: `[N]` float32, 1 is unsafe.
      weights: `[N]` float32, of mean one.
      validation: `[N]` bool, the human-scored pairs of one fold of the objectives, which are not trained on.
    """

    prompts: list[str]
    responses: list[str]
    labels: np.ndarray
    weights: np.ndarray
    validation: np.ndarray


def _examples(config: Config, model: LanguageModel, workdir: Path) -> Labelled:
    """Human-scored pairs, and the model's own answers with weak labels, each kind with its weight."""
    data = config["data"]
    human = pairs_of("teacher", int(data["num_human"]))
    sets = {
        "contrast": _spread(examples.contrast_of("teacher"), _count(data["num_contrast"])),
        "harmful": _spread(examples.harmful_of("teacher", 520), _count(data["num_harmful"])),
    }
    prompts, responses = [], []
    for name, chosen in sets.items():
        prompts += chosen
        responses += kept_answers(model, chosen, name, workdir, max_tokens=int(data["max_tokens"]), temperature=1.0)
    own = examples.own_answers(prompts, responses)
    kinds = ["human"] * len(human) + own.kinds
    found = set(kinds)
    weights = examples.balanced_weights(kinds, {k: float(v) for k, v in data["weights"].items() if k in found})
    return Labelled(
        [p.prompt for p in human] + own.prompts,
        [p.response for p in human] + own.responses,
        np.concatenate([[p.score >= 0.5 for p in human], own.labels]).astype(np.float32),
        (weights / np.mean(weights)).astype(np.float32),
        np.array([examples.calibration_fold(p.prompt) == 0 for p in human] + [False] * len(own.prompts)),
    )


def _spread(prompts: list[Prompt], num: int | None) -> list[Prompt]:
    """`num` prompts at even distances, so that every topic keeps some."""
    if num is None or num >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // num] for i in range(num)]


def read_kept(
    reader: PairReader, prompts: Sequence[str], responses: Sequence[str], folder: Path, name: str
) -> PairStates:
    """What the frozen part of a guard computes of pairs, kept in a folder so that an interrupted run continues."""
    digest = hashlib.sha256(
        json.dumps(
            [
                reader.guard.model.hash,
                reader.guard.template_hash,
                [reader.first_layer, reader.guard.max_prompt, reader.guard.max_response],
                list(zip(prompts, responses, strict=True)),
            ]
        ).encode()
    ).hexdigest()
    found = load_states(folder / name, digest)
    if found is None:
        with ProgressBar(f"reading {len(prompts)} pairs: {name}") as progress:
            reader.read(prompts, responses, on_batch=progress).save(folder / name, digest)
        found = load_states(folder / name, digest)
        assert found is not None
    return found


@flax.struct.dataclass
class Batch:
    """B labelled pairs as a step takes them.

    Attributes:
      pairs: what the frozen part computes of them.
      labels: `[B]` float32, 1 is unsafe.
      weights: `[B]` float32.
    """

    pairs: PairBatch
    labels: Array | np.ndarray
    weights: Array | np.ndarray


def make_optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Adam with clipped gradients; the rate is warmed up over a tenth of the steps, then a cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps=max(1, num_steps // 10), decay_steps=max(2, num_steps)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))


def make_step(
    optimizer: optax.GradientTransformation,
) -> Callable[[UpperLayers, TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Makes the jitted step on weighted `verdict_loss`; the state's parameters are the LoRA."""

    @jax.jit
    def step(upper: UpperLayers, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)

        def objective(lora: Any) -> tuple[Array, dict[str, Array]]:
            log_odds, log_mass = upper.scores(lora, batch.pairs)
            loss = jnp.mean(weights * verdict_loss(log_odds=log_odds, log_mass=log_mass, labels=labels))
            right = jnp.mean(((log_odds > 0) == (labels > 0.5)).astype(jnp.float32))
            return loss, {"accuracy": right, "captured": jnp.mean(jnp.exp(log_mass))}

        (loss, measured), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        return apply_gradients(state, gradient, optimizer), {"loss": loss, **measured}

    return step


def train(config: Config, workdir: str | Path) -> Path:
    """Trains SmolGuard.

    Args:
      config: that of configs/guard_smol.py.
      workdir: where everything is written; an interrupted run continues there.

    Returns:
      The stored adapter.

    Raises:
      ConfigError: a value of the config means nothing, or no pair is left to validate on.
      WorkdirError: the work directory holds a run with another config.
    """
    check(config)
    workdir = open_workdir(workdir, config, ignore=("log_every", "save_every", "evaluation"))
    started = time.monotonic()
    model = load_model(config["model"], matmul_dtype=MATMUL_DTYPES[config["matmul_dtype"]])
    data = _examples(config, model, workdir)
    guard = LanguageModelGuard(
        model,
        FORMATS["smolguard"],
        max_prompt=int(config["max_prompt"]),
        max_response=int(config["max_response"]),
    )
    reader = PairReader(guard, int(config["first_layer"]))
    states = read_kept(reader, data.prompts, data.responses, workdir / "states", "training")
    seed, batch_size = int(config["seed"]), int(config["batch_size"])
    if not data.validation.any():
        raise errors.ConfigError(
            f"config.data.num_human={config['data']['num_human']} leaves no pair to validate on: expected more."
        )
    trained_on, validated = np.flatnonzero(~data.validation), np.flatnonzero(data.validation)
    order = make_data_order(len(trained_on), batch_size, seed=seed)
    num_steps = max(1, round(float(config["num_epochs"]) * len(trained_on) / batch_size))
    optimizer = make_optimizer(float(config["learning_rate"]), num_steps)
    start = init_lora(
        jax.random.key(seed),
        model.config,
        rank=int(config["rank"]),
        targets=tuple(config["targets"]),
        first_layer=reader.first_layer,
    )

    def batches(number: int) -> Batch:
        rows = trained_on[order(number)]
        return Batch(states.batch(rows), data.labels[rows], data.weights[rows])

    def validate(state: TrainState) -> dict[str, float]:
        """The likelihood of people's verdicts chooses the step."""
        probs, labels = score_pairs(reader.upper, state.params, states, validated).unsafe, data.labels[validated]
        nll = metrics.binary_nll(probs=probs, labels=labels)
        return {"score": -nll, "accuracy": metrics.accuracy(predictions=probs > 0.5, labels=labels)}

    print(f"{len(states)} pairs read after {time.monotonic() - started:.0f} s; {num_steps} steps", file=sys.stderr)
    with (
        MetricWriter(workdir) as writer,
        Checkpoints(workdir / "checkpoints", save_interval=int(config["save_every"])) as checkpoints,
    ):
        trained = run_training(
            functools.partial(make_step(optimizer), reader.upper),
            init_state(start, optimizer, key=jax.random.key(seed)),
            batches,
            num_steps=num_steps,
            writer=writer,
            checkpoints=checkpoints,
            log_every=int(config["log_every"]),
            evaluation=EvalSchedule(validate, every=int(config["eval_every"])),
        )
    stored = workdir / ADAPTER
    about = {name: value for name, value in config.items() if name not in ("evaluation", "log_every", "save_every")}
    save_guard(stored, dataclasses.replace(guard, adapter=trained.params), about)
    print(f"stored {stored} after {time.monotonic() - started:.0f} s", file=sys.stderr)
    return stored


# Measurement ----------------------------------------------------------------------------------------------------------


def evaluate(workdir: str | Path) -> dict[str, float]:
    """Measures a trained SmolGuard beside the bare model, the other packaged guards and two that see words only.

    On human-scored pairs of held-out objectives, and on the base model's own answers to StrongREJECT, to sensitive but
    benign prompts and to plain questions. Writes `summary.json` and its section of the report.

    Args:
      workdir: the run's directory.

    Returns:
      The numbers of the summary.

    Raises:
      ConfigError: the run is not finished.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    stored = workdir / ADAPTER
    if not stored.exists():
        raise errors.ConfigError(
            f"{workdir} has no {ADAPTER}: its training is not finished. The same launch.train command continues it."
        )
    model = load_model(config["model"], matmul_dtype=MATMUL_DTYPES[config["matmul_dtype"]])
    smol = load_smolguard(model, stored)
    fitted = pairs_of("teacher", -1)
    judged: dict[str, Guard] = {
        "SmolGuard": smol,
        "SmolGuard without adapter": dataclasses.replace(smol, adapter=None),
        "hidden states": load_hidden_state_guard(model),
        "MiniLM": load_encoder_guard(load_sentence_encoder().encode),
        "keywords": fit_keywords([p.response for p in fitted], np.array([p.score >= 0.5 for p in fitted])),
        "refusal keywords": refusal_keywords,
    }
    human = pairs_of("held_out", int(config["evaluation"]["num_human"]))
    limit = _count(config["evaluation"]["num_prompts"])
    asked = {
        "strongreject": corpora.strongreject()[:limit],
        "sensitive": corpora.sensitive_benign()[:limit],
        "plain": examples.held_out_questions(100)[:limit],
    }
    max_tokens = int(config["data"]["max_tokens"])
    answered = {
        name: kept_answers(model, chosen, f"held_out_{name}", workdir, max_tokens=max_tokens, temperature=0.0)
        for name, chosen in asked.items()
    }
    made = Section("SmolGuard", order=2)
    made.text(
        "A language model asked whether an answer is harmful. Human-scored pairs of held-out objectives; and the share "
        "of the base model's own answers that are flagged. Intervals are 95 %, over objectives for the human-scored."
    )
    rows, flagged, values = [], [], {}
    labels = np.array([p.score >= 0.5 for p in human], np.float64)
    for name, guard in judged.items():
        print(f"judging: {name}", file=sys.stderr)
        probs = checked(guard)([p.prompt for p in human], [p.response for p in human])
        quality = human_metrics(probs, labels, [p.prompt for p in human])
        rows.append({"guard": name, **quality})
        found = {group: checked(guard)([p.text for p in chosen], answered[group]) for group, chosen in asked.items()}
        harmful, benign = found["strongreject"], found["sensitive"]
        area = metrics.auroc(
            scores=np.concatenate([harmful, benign]), labels=np.repeat([1.0, 0.0], [len(harmful), len(benign)])
        )
        shares = {group: metrics.rate_interval(unsafe > 0.5) for group, unsafe in found.items()}
        flagged.append(
            {"guard": name, **{SET_TITLES[g]: s for g, s in shares.items()}, "AUROC StrongREJECT / sensitive": area}
        )
        key = name.lower().replace(" ", "_")
        for what, value in quality.items():
            values |= value.named(f"{key}/{what}") if isinstance(value, metrics.Interval) else {f"{key}/{what}": value}
        values |= {f"{key}/flagged/{group}": interval.estimate for group, interval in shares.items()}
        values |= {f"{key}/auroc_strongreject_sensitive": area}
        if guard is smol:
            made.figure(
                verdict_reliability(unsafe_prob=probs, labels=labels),
                alt="Reliability diagram of SmolGuard",
                caption="Held-out pairs",
            )
    for table, caption in (
        (rows, f"{len(human)} human-scored pairs of held-out objectives"),
        (flagged, "Share of the base model's own answers that is flagged"),
    ):
        made.table(table, caption=caption, digits=3)
        print(caption + "\n" + make_table(table, digits=3).to_text() + "\n")
    write_summary(workdir, "guard_smol", values)
    write_fragment(workdir, "smolguard", made)
    print(f"report: {build_report(workdir, 'edgesafe_jax')}")
    return values


def human_metrics(probs: np.ndarray, labels: np.ndarray, objectives: Sequence[str]) -> dict[str, Any]:
    """Agreement with people; the AUROC with an interval over objectives, the calibration before and after scaling.

    Args:
      probs: `[N]`, P(unsafe).
      labels: `[N]`, 1 is unsafe.
      objectives: N texts; pairs of one objective are drawn together.

    Returns:
      AUROC (an interval), F1, accuracy, ECE, and the ECE at the best temperature of these same pairs.
    """
    scaled = metrics.scale_temperature(probs=probs, temperature=metrics.fit_temperature(probs=probs, labels=labels))
    return {
        "auroc": human_auroc(probs, labels, objectives),
        "f1": metrics.f1_score(predictions=probs > 0.5, labels=labels),
        "accuracy": metrics.accuracy(predictions=probs > 0.5, labels=labels),
        "ece": metrics.expected_calibration_error(probs=probs, labels=labels),
        "ece_scaled": metrics.expected_calibration_error(probs=scaled, labels=labels),
    }
