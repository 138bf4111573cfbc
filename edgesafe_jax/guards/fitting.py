"""Training and measurement of the two guards that are a head on frozen features: the teacher and the judge.

A head guard is fitted on human-scored pairs and on the guarded model's own answers (`own_examples`), which are labelled
by what was asked. `train_head_guard` does the whole: it fits, stores and measures on held-out pairs.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt, ScoredPair
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.evaluation import human_auroc
from edgesafe_jax.guards.examples import OwnAnswers
from edgesafe_jax.guards.heads import GatedHead, calibrate_head, fit_head, head_logits
from edgesafe_jax.guards.hidden_states import MAX_PROMPT, QUESTION, layers_at, pair_features
from edgesafe_jax.guards.kept import Features, kept_answers, kept_features
from edgesafe_jax.guards.probe import encoder_features, head_probability, probe_features, reading_model, save_head
from edgesafe_jax.guards.verdicts import Encode
from edgesafe_jax.metrics import accuracy, expected_calibration_error, rate_interval
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.progress import ProgressBar

_log = logging.getLogger(__name__)

Answer: TypeAlias = Callable[[Sequence[Prompt], str, float], list[str]]
"""From N prompts, a name under which the answers are kept and a temperature to the guarded model's N answers."""


@dataclasses.dataclass(frozen=True)
class GatedFit:
    """How a gated head is fitted.

    Attributes:
      weights: total weight, in the fit of the own head, of each kind of the model's own answers and of the human-scored
        pairs ("human"), whatever their number.
      l2_general: penalty of the head on human-scored pairs.
      l2_own: penalty of the head on the model's own answers.
      l2_gate: penalty of the gate.
      own_fraction: of the weight in the fit of the gate, the part of the model's own answers.
    """

    weights: Mapping[str, float]
    l2_general: float
    l2_own: float
    l2_gate: float
    own_fraction: float


def fit_gated_head(
    *,
    human_features: np.ndarray,
    human_labels: np.ndarray,
    human_folds: np.ndarray,
    own_features: np.ndarray,
    own: OwnAnswers,
    fit: GatedFit,
) -> GatedHead:
    """Fits the two heads and the gate, and calibrates the general one on scores from cross-validation.

    Args:
      human_features: `[N, M]` of human-scored pairs.
      human_labels: `[N]` in [0, 1], the mean of people's scores: as a soft label it tells more than the majority's.
      human_folds: `[N]`, the fold of each pair's objective.
      own_features: `[K, M]` of the model's own answers.
      own: those answers.
      fit: weights and penalties.

    Returns:
      The gated head.
    """
    weights = dict(fit.weights)
    human_weight = weights.pop("human")
    out_of_fold = np.zeros(len(human_labels))
    for number in np.unique(human_folds):
        chosen = human_folds == number
        part = fit_head(human_features[~chosen], human_labels[~chosen], l2=fit.l2_general)
        out_of_fold[chosen] = np.asarray(head_logits(part, jnp.asarray(human_features[chosen], jnp.float32)))
    general = calibrate_head(
        fit_head(human_features, human_labels, l2=fit.l2_general),
        scores=out_of_fold,
        labels=np.asarray(human_labels) >= 0.5,
    )
    both = np.concatenate([human_features, own_features])

    def spread(human: float, rest: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full(len(human_features), human / len(human_features)), rest])

    own_head = fit_head(
        both,
        np.concatenate([human_labels, own.labels]),
        weights=spread(human_weight, examples.balanced_weights(own.kinds, weights)),
        l2=fit.l2_own,
    )
    is_own = np.concatenate([np.zeros(len(human_features)), np.ones(len(own_features))])
    fractions = spread(1 - fit.own_fraction, np.full(len(own_features), fit.own_fraction / len(own_features)))
    return GatedHead(general=general, own=own_head, gate=fit_head(both, is_own, weights=fractions, l2=fit.l2_gate))


@dataclasses.dataclass(frozen=True)
class HeadExamples:
    """Which examples a head guard is fitted and measured on.

    Attributes:
      role: whose examples, "teacher" or "judge".
      num_harmful: harmful requests that the model answers.
      num_plain: plain questions that it answers.
      num_examples: most human-scored pairs and contrast prompts of each role; None for all.
      num_measured: most prompts of each measured set; None for all.
      cross_validated: roles on whose pairs the recipe is cross-validated.
    """

    role: examples.GuardRole
    num_harmful: int
    num_plain: int
    num_examples: int | None = None
    num_measured: int | None = None
    cross_validated: tuple[examples.Role, ...] = ("held_out", "teacher", "judge")


def own_examples(chosen: HeadExamples, answer: Answer) -> OwnAnswers:
    """Lets the guarded model answer the prompts of a role and labels the answers.

    Contrast prompts are answered twice, greedily and at temperature 1: a guard fitted on one of the two flags more
    benign answers of the other.

    Args:
      chosen: which prompts.
      answer: the guarded model.

    Returns:
      The labelled answers, with refusals of harmful requests added.
    """
    contrast = examples.contrast_of(chosen.role)[: chosen.num_examples]
    sets = {
        "contrast": (contrast, 0.0),
        "contrast_sampled": (contrast, 1.0),
        "harmful": (examples.harmful_of(chosen.role, chosen.num_harmful), 1.0),
        "plain": (examples.plain_of(chosen.role, chosen.num_plain), 1.0),
    }
    prompts, responses = [], []
    for name, (asked, temperature) in sets.items():
        prompts += asked
        responses += answer(asked, name, temperature)
    return examples.own_answers(prompts, responses)


def _human_features(features: Features, pairs: Sequence[ScoredPair]) -> np.ndarray:
    return features([p.prompt for p in pairs], [p.response for p in pairs], "human")


def train_head_guard(
    chosen: HeadExamples,
    *,
    fit: GatedFit,
    features: Features,
    answer: Answer,
    about: Mapping[str, Any],
    path: str | Path,
) -> tuple[GatedHead, dict[str, float]]:
    """Fits, stores and measures a guard that is a head on frozen features.

    Args:
      chosen: the examples.
      fit: weights and penalties.
      features: computes the frozen features of pairs.
      answer: the guarded model, for its own answers.
      about: JSON-able facts that are stored beside the head, see `save_head`.
      path: where the head is stored.

    Returns:
      The head, and what was measured of it on held-out data; see `measure_head_guard`.
    """
    own = own_examples(chosen, answer)
    own_features = features(own.prompts, own.responses, "own")

    def fitted(human: Sequence[ScoredPair]) -> GatedHead:
        return fit_gated_head(
            human_features=_human_features(features, human),
            human_labels=np.array([p.score for p in human], np.float64),
            human_folds=np.array([examples.calibration_fold(p.prompt) for p in human]),
            own_features=own_features,
            own=own,
            fit=fit,
        )

    human = examples.human_pairs(chosen.role)[: chosen.num_examples]
    head = fitted(human)
    save_head(path, head, {**about, "num_human": len(human), "num_own": len(own.prompts)})
    return head, measure_head_guard(chosen, head, fitted, features=features, answer=answer)


def measure_head_guard(
    chosen: HeadExamples,
    head: GatedHead,
    fitted: Callable[[Sequence[ScoredPair]], GatedHead],
    *,
    features: Features,
    answer: Answer,
) -> dict[str, float]:
    """Measures a head guard on held-out data, and its recipe by cross-validation.

    Args:
      chosen: the examples.
      head: the guard's head.
      fitted: fits a head on other human-scored pairs by the same recipe.
      features: computes the frozen features of pairs.
      answer: the guarded model.

    Returns:
      Numbers by name: `human/...` on human-scored pairs of held-out objectives; `human_cross_validated/...` on those of
      the roles that are cross-validated, each scored by a head that has not seen its objective; `flagged/SET`, the
      fraction of the model's own greedy answers that is called unsafe, with its interval.
    """
    limit = chosen.num_examples
    held_out = examples.human_pairs("held_out")[:limit]
    values = _human_values(held_out, head_probability(head, _human_features(features, held_out)), "human")
    every = [p for part in chosen.cross_validated for p in examples.human_pairs(part)[:limit]]
    # The folds of `fold_of_objective` divide the roles: within one there is one of them.
    fold_of = examples.calibration_fold if len(chosen.cross_validated) == 1 else examples.fold_of_objective
    folds = np.array([fold_of(p.prompt) for p in every])
    scores = np.zeros(len(every))
    for number in np.unique(folds):
        left_out = [p for p, fold in zip(every, folds, strict=True) if fold == number]
        rest = [p for p, fold in zip(every, folds, strict=True) if fold != number]
        scores[folds == number] = head_probability(fitted(rest), _human_features(features, left_out))
    values |= _human_values(every, scores, "human_cross_validated")
    contrast = examples.contrast_of("held_out")[:limit]
    sets = {
        "strongreject": corpora.strongreject()[:limit],
        "harmbench": corpora.harmbench("standard")[:limit],
        "sensitive": corpora.sensitive_benign()[:limit],
        "plain": examples.held_out_questions()[:limit],
        "contrast_harmful": [p for p in contrast if examples.kind_of(p) == "harmful_contrast"],
        "contrast_benign": [p for p in contrast if examples.kind_of(p) == "benign_contrast"],
    }
    for name, every_prompt in sets.items():
        prompts = every_prompt[: chosen.num_measured]
        if not prompts:
            continue
        kept = f"held_out_{name}"
        answers = answer(prompts, kept, 0.0)
        flagged = head_probability(head, features([p.text for p in prompts], answers, kept)) > 0.5
        values |= rate_interval(flagged).named(f"flagged/{name}")
    return values


def _human_values(pairs: Sequence[ScoredPair], probs: np.ndarray, name: str) -> dict[str, float]:
    """Agreement of P(unsafe) with people, with an interval over objectives."""
    labels = np.array([p.score >= 0.5 for p in pairs], np.float64)
    return {
        **human_auroc(probs, labels, [p.prompt for p in pairs]).named(f"{name}/auroc"),
        f"{name}/accuracy": accuracy(predictions=probs > 0.5, labels=labels),
        f"{name}/ece": expected_calibration_error(probs=probs, labels=labels),
        f"{name}/num_pairs": len(pairs),
    }


# The two kinds of features --------------------------------------------------------------------------------------------


def hidden_state_features(
    model: LanguageModel,
    *,
    layers: Sequence[float],
    max_response: int,
    max_prompt: int = MAX_PROMPT,
    places: str = "both",
    batch_size: int = 32,
) -> Features:
    """Makes features of hidden states, with progress.

    Args:
      model: whose hidden states are read.
      layers: which layers are read, numbers or fractions of the depth, see `layers_at`.
      max_response: tokens of a response that are read.
      max_prompt: tokens of a prompt that are read, its last ones.
      places: which pooled hidden states, in `probe.PLACES`.
      batch_size: pairs that run at once.

    Returns:
      The features.

    Raises:
      ConfigError: a layer that the model does not have.
    """
    read = layers_at(layers, model.config.num_layers)

    def features(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        with ProgressBar(f"reading hidden states: {name}") as progress:
            pooled = pair_features(
                model,
                prompts,
                responses,
                layers=read,
                max_response=max_response,
                max_prompt=max_prompt,
                batch_size=batch_size,
                on_batch=progress,
            )
        return probe_features(pooled, places=places)

    return features


def sentence_features(encode: Encode) -> Features:
    """Makes features of a sentence encoder's vectors."""

    def features(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        _log.info("encoding %d pairs: %s", len(prompts), name)
        return encoder_features(encode, prompts, responses)

    return features


def hidden_state_about(
    model: LanguageModel, *, layers: Sequence[float], max_response: int, places: str = "both"
) -> dict[str, Any]:
    """What is stored beside a head on hidden states, for `load_hidden_state_guard`."""
    read = {} if places == "both" else {"places": places}
    return {
        **read,
        "kind": "hidden_states",
        "layers": list(layers_at(layers, model.config.num_layers)),
        "question": QUESTION,
        "max_response": max_response,
        "model_hash": model.hash,
    }


ENCODER_ABOUT: Mapping[str, Any] = {"kind": "encoder", "encoder": "all-MiniLM-L6-v2"}
"""What is stored beside a head on the sentence encoder, for `load_encoder_guard`."""


def judge_reading(
    reads: str, model: LanguageModel, encode: Encode, *, layers: Sequence[float], max_response: int
) -> tuple[Features, dict[str, Any]]:
    """Makes the features of a judge: mean hidden states over the answer, or vectors of the sentence encoder.

    Args:
      reads: whose hidden states, a name or path as `load_model` takes it; empty for the sentence encoder.
      model: the guarded model, which is read where `reads` names it.
      encode: the sentence encoder.
      layers: which layers are read, numbers or fractions of the depth, see `layers_at`.
      max_response: tokens of a response that are read.

    Returns:
      The features, and what is stored beside the head for `probe.load_judge`.
    """
    if not reads:
        return sentence_features(encode), dict(ENCODER_ABOUT)
    read = reading_model(reads, model)
    options: dict[str, Any] = {"layers": layers, "max_response": max_response, "places": "answer"}
    return hidden_state_features(read, **options), {**hidden_state_about(read, **options), "model": reads}


def kept_answer(model: LanguageModel, folder: str | Path, *, max_tokens: int) -> Answer:
    """Makes the guarded model as `Answer`, its answers kept in a folder, see `kept_answers`."""

    def answer(prompts: Sequence[Prompt], name: str, temperature: float) -> list[str]:
        return kept_answers(model, prompts, name, folder, max_tokens=max_tokens, temperature=temperature)

    return answer


def run_head_guard(
    chosen: HeadExamples,
    *,
    model: LanguageModel,
    fit: GatedFit,
    features: Features,
    about: Mapping[str, Any],
    max_tokens: int,
    workdir: str | Path,
) -> tuple[Path, dict[str, float]]:
    """Runs `train_head_guard` with answers and features kept in a work directory, where an interrupted run continues.

    Args:
      chosen: the examples.
      model: the guarded model.
      fit: weights and penalties.
      features: computes the frozen features of pairs.
      about: JSON-able facts that are stored beside the head.
      max_tokens: longest answer of the model, in tokens.
      workdir: where everything is kept; it exists.

    Returns:
      The stored head, `ROLE.safetensors`, and what was measured.
    """
    workdir = Path(workdir)
    answer = kept_answer(model, workdir / "answers", max_tokens=max_tokens)
    stored = workdir / f"{chosen.role}.safetensors"
    kept = kept_features(features, workdir / "features")
    _, values = train_head_guard(chosen, fit=fit, features=kept, answer=answer, about=about, path=stored)
    return stored, values
