"""SmolGuard: its supervised training, and its measurement beside the other guards.

SmolGuard is a language model asked about a pair, with a LoRA that acts where it answers
(`edgesafe_jax.guards.activated`).
"""

import dataclasses
import functools
import logging
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
from edgesafe_jax.adapters import LoRA, init_lora
from edgesafe_jax.corpora import Prompt, ScoredPair
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.activated import (
    ActivatedScorer,
    PairBatch,
    PairReader,
    UpperLayers,
    load_smolguard,
    save_guard,
    verdict_loss,
)
from edgesafe_jax.guards.evaluation import human_metrics
from edgesafe_jax.guards.fitting import Answer
from edgesafe_jax.guards.keywords import fit_keywords, refusal_keywords
from edgesafe_jax.guards.pairs import score_pairs
from edgesafe_jax.guards.probe import load_encoder_guard, load_hidden_state_guard
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.scoring import LanguageModelGuard, unsafe_of_log_odds
from edgesafe_jax.guards.tuning import make_optimizer, warmup_cosine
from edgesafe_jax.guards.verdicts import Encode, Guard, checked
from edgesafe_jax.metrics import Interval
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.training import (
    Checkpoints,
    EvalSchedule,
    MetricWriter,
    TrainState,
    apply_gradients,
    init_state,
    make_data_order,
    train,
)
from edgesafe_jax.typing import Array

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LabelledPairs:
    """Training pairs.

    Attributes:
      prompts: N texts.
      responses: N texts.
      labels: `[N]` float32, 1 is unsafe.
      weights: `[N]` float32, of mean one.
      validation: `[N]` bool, pairs that are not trained on and choose the step.
    """

    prompts: list[str]
    responses: list[str]
    labels: np.ndarray
    weights: np.ndarray
    validation: np.ndarray


@dataclasses.dataclass(frozen=True)
class SmolGuardExamples:
    """Which examples SmolGuard is trained on, all of the teacher's role.

    Attributes:
      num_human: human-scored pairs; None for all.
      num_contrast: contrast prompts that the model answers; None for all.
      num_harmful: harmful requests that it answers, spread over `harmful_pool`; None for all of these.
      harmful_pool: the first so many harmful requests.
      weights: total weight of each kind of example, whatever its number.
    """

    num_human: int | None
    num_contrast: int | None
    num_harmful: int | None
    harmful_pool: int
    weights: Mapping[str, float]


def smolguard_examples(chosen: SmolGuardExamples, answer: Answer) -> LabelledPairs:
    """Collects human-scored pairs, and the model's own answers with weak labels, each kind with its weight.

    Args:
      chosen: which examples.
      answer: the base model, for its own answers at temperature 1.

    Returns:
      The pairs; one fold of the objectives of the human-scored ones is held back for validation.
    """
    human = examples.human_sample("teacher", chosen.num_human)
    sets = {
        "contrast": _spread(examples.contrast_of("teacher"), chosen.num_contrast),
        "harmful": _spread(examples.harmful_of("teacher", chosen.harmful_pool), chosen.num_harmful),
    }
    prompts, responses = [], []
    for name, asked in sets.items():
        prompts += asked
        responses += answer(asked, name, 1.0)
    own = examples.own_answers(prompts, responses)
    kinds = ["human"] * len(human) + own.kinds
    weights = examples.balanced_weights(kinds, {k: w for k, w in chosen.weights.items() if k in kinds})
    return LabelledPairs(
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


@flax.struct.dataclass
class LabelledBatch:
    """B labelled pairs as a step takes them.

    Attributes:
      pairs: what the frozen part computes of them.
      labels: `[B]` float32, 1 is unsafe.
      weights: `[B]` float32.
    """

    pairs: PairBatch
    labels: Array | np.ndarray
    weights: Array | np.ndarray


def make_verdict_step(
    optimizer: optax.GradientTransformation,
) -> Callable[[UpperLayers, TrainState, LabelledBatch], tuple[TrainState, dict[str, Array]]]:
    """Makes the jitted step on weighted `verdict_loss`; the state's parameters are the LoRA."""

    @jax.jit
    def step(upper: UpperLayers, state: TrainState, batch: LabelledBatch) -> tuple[TrainState, dict[str, Array]]:
        labels, weights = jnp.asarray(batch.labels), jnp.asarray(batch.weights)

        def objective(lora: LoRA) -> tuple[Array, dict[str, Array]]:
            log_odds, log_mass = upper.scores(lora, batch.pairs)
            loss = jnp.mean(weights * verdict_loss(log_odds=log_odds, log_mass=log_mass, labels=labels))
            right = jnp.mean(((log_odds > 0) == (labels > 0.5)).astype(jnp.float32))
            return loss, {"accuracy": right, "captured": jnp.mean(jnp.exp(log_mass))}

        (loss, measured), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        return apply_gradients(state, gradient, optimizer), {"loss": loss, **measured}

    return step


@dataclasses.dataclass(frozen=True)
class SmolGuardSettings:
    """How SmolGuard reads and is trained.

    Attributes:
      max_prompt: tokens of a prompt that are read, its last ones.
      max_response: tokens of a response that are read, its first ones.
      first_layer: layers below that stay as they are, at least 1.
      rank: of the LoRA.
      targets: matrices that it adapts.
      learning_rate: highest rate, warmed up over a tenth of the steps and decayed to zero along a cosine.
      num_epochs: passes over the training pairs.
      batch_size: pairs in a batch.
      eval_every: steps between two evaluations on the validation pairs; the step with the highest likelihood is kept.
      save_every: steps between two checkpoints.
      log_every: steps between two fetches of metrics.
      seed: of the LoRA and the order of the data.
    """

    max_prompt: int
    max_response: int
    first_layer: int
    rank: int
    targets: tuple[str, ...]
    learning_rate: float
    num_epochs: float
    batch_size: int
    eval_every: int
    save_every: int = 50
    log_every: int = 10
    seed: int = 0


def train_smolguard(
    model: LanguageModel,
    data: LabelledPairs,
    settings: SmolGuardSettings,
    *,
    path: str | Path,
    about: Mapping[str, Any],
    workdir: str | Path,
) -> LanguageModelGuard:
    """Trains SmolGuard and stores its adapter.

    Args:
      model: the base model.
      data: the training pairs, for instance of `smolguard_examples`.
      settings: how.
      path: where the adapter is stored; `load_smolguard` reads it.
      about: JSON-able config of the training that is stored beside it.
      workdir: where what is read, metrics and checkpoints are kept; an interrupted run continues there.

    Returns:
      The guard.

    Raises:
      ConfigError: no pair is left to validate on.
    """
    workdir, started = Path(workdir), time.monotonic()
    guard = LanguageModelGuard(
        model, FORMATS["smolguard"], max_prompt=settings.max_prompt, max_response=settings.max_response
    )
    reader = PairReader(guard, settings.first_layer)
    states = reader.read_kept(data.prompts, data.responses, workdir / "states", "training")
    if not data.validation.any():
        raise ConfigError(
            f"None of the {len(data.labels)} training pairs is left to validate on: expected more human-scored pairs, "
            "config.data.num_human."
        )
    trained_on, validated = np.flatnonzero(~data.validation), np.flatnonzero(data.validation)
    order = make_data_order(len(trained_on), settings.batch_size, seed=settings.seed)
    num_steps = max(1, round(settings.num_epochs * len(trained_on) / settings.batch_size))
    optimizer = make_optimizer(warmup_cosine(settings.learning_rate, num_steps))
    start = init_lora(
        jax.random.key(settings.seed),
        model.config,
        rank=settings.rank,
        targets=settings.targets,
        first_layer=settings.first_layer,
    )

    def batches(number: int) -> LabelledBatch:
        rows = trained_on[order(number)]
        return LabelledBatch(states.batch(rows), data.labels[rows], data.weights[rows])

    def validate(state: TrainState) -> dict[str, float]:
        """The likelihood of people's verdicts chooses the step."""
        odds = score_pairs(ActivatedScorer(), reader.upper, state.params, states, validated, batch_size=16)
        probs, labels = unsafe_of_log_odds(odds), data.labels[validated]
        nll = metrics.binary_nll(probs=probs, labels=labels)
        return {"score": -nll, "accuracy": metrics.accuracy(predictions=probs > 0.5, labels=labels)}

    _log.info("%d pairs read after %.0f s; %d steps", len(states), time.monotonic() - started, num_steps)
    with (
        MetricWriter(workdir) as writer,
        Checkpoints(workdir / "checkpoints", save_interval=settings.save_every) as checkpoints,
    ):
        trained = train(
            functools.partial(make_verdict_step(optimizer), reader.upper),
            init_state(start, optimizer, key=jax.random.key(settings.seed)),
            batches,
            num_steps=num_steps,
            writer=writer,
            checkpoints=checkpoints,
            log_every=settings.log_every,
            evaluation=EvalSchedule(validate, settings.eval_every),
        )
    guard = dataclasses.replace(guard, adapter=trained.params)
    save_guard(path, guard, about)
    _log.info("stored %s after %.0f s", path, time.monotonic() - started)
    return guard


# Measurement ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GuardQuality:
    """The measured quality of one guard.

    Attributes:
      quality: agreement with people on human-scored pairs, see `human_metrics`.
      flagged: by set of prompts the fraction of the base model's answers that is called unsafe.
      separation: AUROC of P(unsafe) between answers to StrongREJECT and to sensitive but benign prompts.
      probs: `[N]`, P(unsafe) of the human-scored pairs.
    """

    quality: Mapping[str, Any]
    flagged: Mapping[str, Interval]
    separation: float
    probs: np.ndarray

    def numbers(self) -> dict[str, float]:
        """The flat numbers of a summary."""
        values: dict[str, float] = {}
        for name, value in self.quality.items():
            values |= value.named(name) if isinstance(value, Interval) else {name: value}
        values |= {f"flagged/{group}": interval.estimate for group, interval in self.flagged.items()}
        return values | {"auroc_strongreject_sensitive": self.separation}


def compared_guards(model: LanguageModel, path: str | Path, encode: Encode) -> dict[str, Guard]:
    """SmolGuard, the bare model, the other packaged guards, and two that see words only; by name.

    Args:
      model: the base model.
      path: SmolGuard's stored adapter.
      encode: the packaged sentence encoder.
    """
    smol = load_smolguard(model, path)
    fitted = examples.human_sample("teacher", None)
    return {
        "SmolGuard": smol,
        "SmolGuard without adapter": dataclasses.replace(smol, adapter=None),
        "hidden states": load_hidden_state_guard(model),
        "MiniLM": load_encoder_guard(encode),
        "keywords": fit_keywords([p.response for p in fitted], np.array([p.score >= 0.5 for p in fitted])),
        "refusal keywords": refusal_keywords,
    }


def asked_prompts(*, num_prompts: int | None, num_questions: int | None) -> dict[str, list[Prompt]]:
    """The sets of prompts whose answers are judged: harmful, sensitive but benign, and plain.

    Args:
      num_prompts: most prompts of each set; None for all.
      num_questions: most plain questions; None for all.
    """
    return {
        "strongreject": corpora.strongreject()[:num_prompts],
        "sensitive": corpora.sensitive_benign()[:num_prompts],
        "plain": examples.held_out_questions(num_questions)[:num_prompts],
    }


def measure_guards(
    guards: Mapping[str, Guard], *, human: Sequence[ScoredPair], asked: Mapping[str, Sequence[Prompt]], answer: Answer
) -> dict[str, GuardQuality]:
    """Measures guards beside one another on human-scored pairs and on the base model's greedy answers.

    Args:
      guards: by name.
      human: human-scored pairs.
      asked: prompts by set, with "strongreject" and "sensitive".
      answer: the base model.

    Returns:
      What was measured, by guard.
    """
    answered = {name: answer(chosen, f"held_out_{name}", 0.0) for name, chosen in asked.items()}
    labels = np.array([p.score >= 0.5 for p in human], np.float64)
    measured = {}
    for name, guard in guards.items():
        _log.info("judging: %s", name)
        probs = checked(guard)([p.prompt for p in human], [p.response for p in human])
        found = {group: checked(guard)([p.text for p in chosen], answered[group]) for group, chosen in asked.items()}
        harmful, benign = found["strongreject"], found["sensitive"]
        separation = metrics.auroc(
            scores=np.concatenate([harmful, benign]), labels=np.repeat([1.0, 0.0], [len(harmful), len(benign)])
        )
        measured[name] = GuardQuality(
            human_metrics(probs, labels, [p.prompt for p in human]),
            {group: metrics.rate_interval(unsafe > 0.5) for group, unsafe in found.items()},
            separation,
            probs,
        )
    return measured
