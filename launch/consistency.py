"""The consistency task: paraphrase answers, tune guards towards set-level targets, measure before and after.

`train` and `evaluate` work on plain mappings and a work directory; `launch.train`, `launch.evaluate` and
`launch.quickstart` call them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import assets, metrics
from edgesafe_jax.adapters import LoRA, save_adapter
from edgesafe_jax.adapters.lora import TARGETS
from edgesafe_jax.guards.activated import load_smolguard
from edgesafe_jax.guards.adapted import PairRows, probe_rows, probe_scorer, verdict_rows, verdict_scorer
from edgesafe_jax.guards.consistency import SetFeatures, tune_heads
from edgesafe_jax.guards.heads import GatedHead
from edgesafe_jax.guards.hidden_states import pair_features
from edgesafe_jax.guards.paraphrases import ParaphraseSet, select
from edgesafe_jax.guards.probe import (
    encoder_features,
    head_probability,
    load_head,
    load_hidden_state_guard,
    packaged_head,
    probe_features,
    save_adapted_guard,
    save_head,
)
from edgesafe_jax.guards.robustness import SetScores, bootstrap_sets, cross_fitted, pad_members, robustness, vote
from edgesafe_jax.guards.targets import RULES
from edgesafe_jax.models.encoder import SentenceEncoder
from edgesafe_jax.models.loading import load_model
from edgesafe_jax.reporting import Section, bars, build_report, make_table, verdict_reliability, write_fragment
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import open_workdir, write_summary
from edgesafe_jax.training.workdir import read_config
from launch import errors
from launch.consistency_backbone import BackboneSubject
from launch.consistency_lora import LoraSubject
from launch.guards import Features, kept_features, load_sentence_encoder
from launch.paraphrases import paraphrase_sets

Config = Mapping[str, Any]

SCORES = "scores.npz"
"""Where the scores of all guards, rules and seeds lie in a work directory."""

GROUPS = ("held_out", "unseen_source", "unseen_style", "seen_ways")
"""Paraphrases of held-out answers: the next two together, by an unseen source, in an unseen style, the rest."""

TITLES = {
    "held_out": "unseen",
    "unseen_source": "unseen source",
    "unseen_style": "unseen style",
    "seen_ways": "seen ways",
    "std": "variability",
    "range": "range",
    "flips": "flips",
    "unsafe_to_safe": "flips to safe",
    "safe_to_unsafe": "flips to unsafe",
    "flagged": "called unsafe",
    "missed": "missed",
    "false_alarms": "false alarms",
    "accuracy": "accuracy",
    "f1": "F1",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "fpr_at_tpr": "FPR at 90 % TPR",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier",
    "nll": "NLL",
}
"""What tables call the groups and the metrics of `robustness`."""

SHOWN = ("std", "flips", "unsafe_to_safe", "safe_to_unsafe", "missed", "accuracy", "ece")
"""Rows of the first table, columns of those that compare many guards."""


class Subject(Protocol):
    """A guard that is tuned; `Any` stands for its trained numbers and for what its frozen part computes of sets."""

    @property
    def start(self) -> Any:
        """The trained numbers before training."""
        ...

    def prepare(self, groups: Mapping[str, Sequence[ParaphraseSet]], name: str) -> Mapping[str, Any]:
        """What the frozen part computes of groups of sets, kept under a name."""
        ...

    def scores(self, trained: Any, prepared: Any) -> np.ndarray:
        """P(unsafe) of all members, set after set."""
        ...

    def tune(self, prepared: Any, rule: str) -> list[Any]:
        """Trained numbers towards the targets of a rule, one per seed."""
        ...

    def store(self, path: Path, trained: Any, training: Mapping[str, Any]) -> None:
        """Writes a tuned guard as `NAME.safetensors`."""
        ...


@dataclasses.dataclass(frozen=True)
class HeadSubject:
    """A head on frozen features.

    Attributes:
      config: of the run.
      start: the head before training.
      about: what is stored beside a head.
      features: of pairs, frozen.
    """

    config: Config
    start: GatedHead
    about: dict[str, Any]
    features: Features

    def prepare(self, groups: Mapping[str, Sequence[ParaphraseSet]], name: str) -> dict[str, SetFeatures]:
        """Features of all members, padded."""
        return {group: _padded(sets, self.features, name) for group, sets in groups.items()}

    def scores(self, trained: GatedHead, prepared: SetFeatures) -> np.ndarray:
        """P(unsafe) of all members."""
        return head_probability(trained, np.asarray(prepared.features[prepared.where]))

    def tune(self, prepared: SetFeatures, rule: str) -> list[GatedHead]:
        """Heads tuned by `tune_heads`, all seeds at once."""
        keys = jax.random.split(jax.random.key(int(self.config["seed"])), int(self.config["num_seeds"]))
        heads, _ = tune_heads(
            self.start,
            prepared,
            keys,
            rule=RULES[rule],
            anchor_weight=float(self.config["anchor_weight"]),
            learning_rate=float(self.config["learning_rate"]),
            num_steps=int(self.config["num_steps"]),
            ema_decay=None if float(self.config["ema_decay"]) < 0 else float(self.config["ema_decay"]),
        )
        return [jax.tree.map(lambda leaf, seed=seed: leaf[seed], heads) for seed in range(len(keys))]

    def store(self, path: Path, trained: GatedHead, training: Mapping[str, Any]) -> None:
        """Writes the head."""
        save_head(path, trained, {**self.about, "consistency": dict(training)})


def _hidden_states(config: Config, encoder: SentenceEncoder, workdir: Path) -> Subject:
    del encoder
    model = load_model(config["model"], matmul_dtype=jnp.dtype(jnp.bfloat16))  # as the head was fitted
    head, about = load_head(packaged_head("teacher"))

    def features(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        with ProgressBar(f"reading hidden states: {name}") as progress:
            pooled = pair_features(
                model,
                prompts,
                responses,
                layers=about["layers"],
                max_response=about["max_response"],
                batch_size=32,
                on_batch=progress,
            )
        return probe_features(pooled)

    return HeadSubject(config, head, about, kept_features(features, workdir))


def _encoder(config: Config, encoder: SentenceEncoder, workdir: Path) -> Subject:
    head, about = load_head(packaged_head("judge"))

    def features(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        del name
        return encoder_features(encoder.encode, prompts, responses)

    return HeadSubject(config, head, about, kept_features(features, workdir))


def _smolguard(config: Config, encoder: SentenceEncoder, workdir: Path) -> Subject:
    del encoder
    model = load_model(config["model"], matmul_dtype=jnp.dtype(jnp.bfloat16))
    return LoraSubject(config, load_smolguard(model, config["lora"]["adapter"] or None), workdir)


def _hidden_states_lora(config: Config, encoder: SentenceEncoder, workdir: Path) -> Subject:
    del encoder
    model = load_model(config["model"], matmul_dtype=jnp.dtype(jnp.bfloat16))
    guard = load_hidden_state_guard(model)
    _, about = load_head(packaged_head("teacher"))
    scorer, frozen = probe_scorer(guard)

    def save(path: Path, lora: LoRA, training: Mapping[str, Any]) -> None:
        save_adapted_guard(path, dataclasses.replace(guard, adapter=lora), {**about, **training})

    def encode(prompts: Sequence[str], responses: Sequence[str], longest: int | None) -> PairRows:
        return probe_rows(guard if longest is None else _cut(guard, longest), prompts, responses)

    return BackboneSubject(config, scorer, frozen, encode, scorer.decoder.config, save, workdir)


def _smolguard_lora(config: Config, encoder: SentenceEncoder, workdir: Path) -> Subject:
    del encoder
    model = load_model(config["model"], matmul_dtype=jnp.dtype(jnp.bfloat16))
    guard = load_smolguard(model, config["lora"]["adapter"] or None)
    scorer, frozen = verdict_scorer(guard)

    def save(path: Path, lora: LoRA, training: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(path, lora, model, training=training)

    def encode(prompts: Sequence[str], responses: Sequence[str], longest: int | None) -> PairRows:
        return verdict_rows(guard if longest is None else _cut(guard, longest), prompts, responses)

    return BackboneSubject(config, scorer, frozen, encode, model.config, save, workdir)


def _cut(guard: Any, max_prompt: int) -> Any:
    """The guard that reads at most so many tokens of a prompt."""
    return dataclasses.replace(guard, max_prompt=min(max_prompt, guard.max_prompt))


SUBJECTS: dict[str, Callable[[Config, SentenceEncoder, Path], Subject]] = {
    "hidden_states": _hidden_states,
    "encoder": _encoder,
    "smolguard": _smolguard,
    "hidden_states_lora": _hidden_states_lora,
    "smolguard_lora": _smolguard_lora,
}
"""What `config.guards` may name: the packaged teacher and judge (their heads are tuned), a trained SmolGuard (its
adapter is), and the first and the last of them with a new LoRA in all layers, which alone is tuned."""


def check(config: Config) -> None:
    """Refuses a config that cannot be run, before any work starts.

    Raises:
      ConfigError: the message names the field, its value and what was expected.
    """
    for name in config["guards"]:
        errors.lookup(SUBJECTS, name, "config.guards")
    for name in (config["rule"], *config["ablation"]):
        errors.lookup(RULES, name, "config.rule or config.ablation")
    for name in ("num_seeds", "num_steps", "num_votes", "num_samples"):
        if int(config[name]) < 1:
            raise errors.ConfigError(f"config.{name}={config[name]}: expected at least 1.")
    if not config["guards"]:
        raise errors.ConfigError(f"config.guards is empty: expected some of {', '.join(SUBJECTS)}.")
    if not float(config["learning_rate"]) > 0 or float(config["anchor_weight"]) < 0:
        raise errors.ConfigError(
            f"config.learning_rate={config['learning_rate']}, config.anchor_weight={config['anchor_weight']}: expected "
            "above 0, and 0 or more."
        )
    if set(config["guards"]) - {"hidden_states", "encoder"} and float(config["ema_decay"]) >= 0:
        raise errors.ConfigError(f"config.ema_decay={config['ema_decay']}: only heads take moving targets, else -1.")
    for part, names in (
        ("lora", ("num_steps", "batch_size", "save_every")),
        ("backbone", ("rank", "num_steps", "batch_size", "num_members", "max_prompt", "save_every")),
    ):
        for name in names:
            if int(config[part][name]) < 1:
                raise errors.ConfigError(f"config.{part}.{name}={config[part][name]}: expected at least 1.")
    for name in config["backbone"]["targets"]:
        errors.lookup(dict.fromkeys(TARGETS), name, "config.backbone.targets")
    if not config["backbone"]["targets"] or not float(config["backbone"]["learning_rate"]) > 0:
        raise errors.ConfigError(
            f"config.backbone.targets={config['backbone']['targets']}, learning_rate="
            f"{config['backbone']['learning_rate']}: expected some matrices to adapt, and above 0."
        )
    if not float(config["ema_decay"]) < 1:
        raise errors.ConfigError(f"config.ema_decay={config['ema_decay']}: expected below 1, or -1 for fixed targets.")
    errors.lookup(dict.fromkeys(("held_out", "judge")), config["data"]["test_role"], "config.data.test_role")
    if not set(config["data"]["sources"]) - set(config["data"]["held_out_sources"]):
        raise errors.ConfigError("config.data.held_out_sources leaves no source to train on.")


def _padded(sets: Sequence[ParaphraseSet], features: Features, name: str) -> SetFeatures:
    flat = features([s.prompt for s in sets for _ in s.texts], [t for s in sets for t in s.texts], name)
    sizes = [len(s.texts) for s in sets]
    values = np.zeros((len(sets), max(sizes), flat.shape[1]), np.float32)
    where = np.zeros(values.shape[:2], bool)
    for row, (size, part) in enumerate(zip(sizes, np.split(flat, np.cumsum(sizes)[:-1]), strict=True)):
        values[row, :size], where[row, :size] = part, True
    return SetFeatures(jnp.asarray(values), jnp.asarray(where))


def grouped(config: Config, sets: Sequence[ParaphraseSet]) -> dict[str, list[ParaphraseSet]]:
    """The evaluated sets by group, each with the paraphrases of that group only.

    Sets and groups without any are left out, and a group that repeats one before it: where no source was held out, all
    that is unseen are styles.

    Args:
      config: says which sources and styles were held out of training.
      sets: of held-out answers.

    Returns:
      Sets by group, see `GROUPS`.
    """
    sources, styles = config["data"]["held_out_sources"], config["data"]["held_out_styles"]
    seen = select(sets, without_sources=sources, without_styles=styles)
    chosen = {
        "held_out": [
            dataclasses.replace(whole, paraphrases=tuple(p for p in whole.paraphrases if p not in part.paraphrases))
            for whole, part in zip(sets, seen, strict=True)
        ],
        "unseen_source": select(sets, sources=sources),
        "unseen_style": select(sets, styles=styles, without_sources=sources),
        "seen_ways": seen,
    }
    kept: dict[str, list[ParaphraseSet]] = {}
    for name in GROUPS:
        found = [s for s in chosen[name] if s.paraphrases]
        if found and found not in kept.values():
            kept[name] = found
    return kept


def train(config: Config, workdir: str | Path) -> Path:
    """Tunes the guards of `config.guards` with every rule and seed, and stores heads and scores.

    Args:
      config: that of configs/guard_consistency.py.
      workdir: the run's directory; an interrupted run continues with the features that are there.

    Returns:
      The work directory.

    Raises:
      ConfigError: see `check`.
    """
    check(config)
    workdir = open_workdir(workdir, config)
    encoder = load_sentence_encoder()
    data = config["data"]
    made = paraphrase_sets(config, "teacher", int(data["num_train"]), encode=encoder.encode, workdir=workdir)
    made = select(made, without_sources=data["held_out_sources"], without_styles=data["held_out_styles"])
    train_sets = [s for s in made if s.paraphrases]
    role = data["test_role"]
    test_sets = paraphrase_sets(config, role, int(data["num_test"]), encode=encoder.encode, workdir=workdir)
    groups = grouped(config, test_sets)
    if not train_sets or not groups:
        raise errors.ConfigError("No paraphrase has passed the filter: lower config.data.min_cosine.")
    scores: dict[str, np.ndarray] = {}
    for guard in config["guards"]:
        (workdir / guard).mkdir(exist_ok=True)
        subject = SUBJECTS[guard](config, encoder, workdir / guard)
        training = subject.prepare({"train": train_sets}, "teacher")["train"]
        evaluated = subject.prepare(groups, "held_out")

        def keep(trained: Any, name: str, subject: Subject = subject, evaluated: Mapping[str, Any] = evaluated) -> None:
            for group, sets in groups.items():
                ends = np.cumsum([len(s.texts) for s in sets])[:-1]
                members = np.split(subject.scores(trained, evaluated[group]), ends)
                scores[f"{name}/{group}"] = pad_members(
                    [part.tolist() for part in members], [s.label for s in sets]
                ).unsafe

        keep(subject.start, f"{guard}/before/0")
        rules = dict.fromkeys((config["rule"], *config["ablation"]))
        with ProgressBar(f"tuning {guard}") as progress:
            for number, rule in enumerate(rules):
                for seed, trained in enumerate(subject.tune(training, rule)):
                    keep(trained, f"{guard}/{rule}/{seed}")
                    if rule == config["rule"]:
                        stored = workdir / "heads" / f"{guard}_{seed}.safetensors"
                        subject.store(stored, trained, {"rule": rule, "seed": seed})
                progress(number + 1, len(rules))
    labels = {f"labels/{name}": np.array([_label(s) for s in sets]) for name, sets in groups.items()}
    arrays: dict[str, Any] = {**scores, **labels}
    assets.write_atomically(workdir / SCORES, lambda part: np.savez(part, **arrays))
    print(f"measure it: python -m launch.evaluate --checkpoint={workdir}")
    return workdir


def _label(found: ParaphraseSet) -> float:
    return np.nan if found.label is None else float(found.label)


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of one guard on one group of paraphrases.

    Attributes:
      before: of the guard as it was.
      after: by rule, of the tuned guards, one per seed.
    """

    before: SetScores
    after: dict[str, list[SetScores]]


def read_scores(workdir: str | Path) -> dict[str, dict[str, Scored]]:
    """Reads the scores of a finished run, by guard and group.

    Raises:
      ConfigError: the run is not finished.
    """
    file = Path(workdir) / SCORES
    if not file.exists():
        raise errors.ConfigError(
            f"{workdir} has no {SCORES}: its training is not finished. The same launch.train command continues it."
        )
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found: dict[str, dict[str, Scored]] = {}
    for name, unsafe in arrays.items():
        if name.startswith("labels/"):
            continue
        guard, rule, _, group = name.split("/")
        scores = SetScores(unsafe, arrays[f"labels/{group}"])
        if rule == "before":
            found.setdefault(guard, {})[group] = Scored(scores, {})
        else:
            found[guard][group].after.setdefault(rule, []).append(scores)
    return found


def _mean(scores: Sequence[SetScores]) -> dict[str, float]:
    """Metrics of guards that differ in their seed, averaged; a seed in which one is not defined is left out."""
    values = [robustness(each) for each in scores]
    return {name: float(np.nanmean([v[name] for v in values])) for name in values[0] if _any(values, name)}


def _any(values: Sequence[Mapping[str, float]], name: str) -> bool:
    return any(np.isfinite(v[name]) for v in values)


def compare(scored: Scored, rule: str, num_samples: int) -> dict[str, metrics.Interval]:
    """Before, after (mean over seeds) and relative or absolute change, with intervals by set.

    Args:
      scored: the scores.
      rule: which tuned guards.
      num_samples: bootstrap draws.

    Returns:
      `before/NAME`, `after/NAME`, `difference/NAME` and `reduction/NAME` (one minus after over before) by metric.
    """

    def statistic(rows: np.ndarray) -> dict[str, float]:
        before = robustness(scored.before.take(rows))
        after = _mean([each.take(rows) for each in scored.after[rule]])
        values = {f"before/{name}": value for name, value in before.items()}
        values |= {f"after/{name}": value for name, value in after.items()}
        both = before.keys() & after.keys()
        values |= {f"difference/{name}": after[name] - before[name] for name in both}
        return values | {f"reduction/{name}": 1 - after[name] / before[name] for name in both if before[name] > 0}

    return bootstrap_sets(statistic, len(scored.before.labels), num_samples=num_samples)


def evaluate(workdir: str | Path, report: str | Path | None = None) -> dict[str, Any]:
    """Measures a finished run and writes `summary.json` and its section of the report.

    Args:
      workdir: the run's directory.
      report: where both go; default the run's directory.

    Returns:
      The numbers of the summary.
    """
    config = read_config(workdir)
    report = Path(workdir if report is None else report)
    rule, num_samples = config["rule"], int(config["num_samples"])
    values: dict[str, Any] = {}
    made = Section("Guards: one verdict for all paraphrases", order=1)
    made.text(
        "A guard judges an answer and paraphrases of it. Consistency training pulls each set to one target without "
        "labels. Everything here is measured on answers to held-out objectives; unseen paraphrases are by a source or "
        "in a style that was never trained on. Variability is the mean standard deviation of P(unsafe) within a set; "
        "flips are the share of originals with a paraphrase of the other verdict, to safe among the originals that are "
        "called unsafe, to unsafe among the others; missed is the share of unsafe texts that are called safe. After is "
        "the mean over seeds; intervals are 95 %, by set. Labels of paraphrases are those of their originals."
    )
    for guard, groups in read_scores(workdir).items():
        changes = {group: compare(scored, rule, num_samples) for group, scored in groups.items()}
        values |= _flat(guard, groups, changes, rule)
        group, scored = next(iter(groups.items()))
        # A vote of a whole set cannot flip: the group with the largest sets shows what a vote of a few is worth.
        sizes = {name: found.before.where.sum() / len(found.before.labels) for name, found in groups.items()}
        largest, num_votes = max(sizes, key=lambda name: sizes[name]), int(config["num_votes"])
        ablation = {"(before)": robustness(scored.before)}
        ablation |= {name: _mean(after) for name, after in scored.after.items()}
        votes = _votes(groups[largest], rule, num_votes) if sizes[largest] > 2 + num_votes else {}
        calibration = _calibration(scored, rule)
        for table, rows in (("ablation", ablation), ("votes", votes), ("calibration", calibration)):
            values |= {f"{guard}/{table}/{row}/{name}": x for row, found in rows.items() for name, x in found.items()}
        trained = f"consistency training, rule {rule}, mean over {len(scored.after[rule])} seeds"
        _table(made, _change_rows(groups, changes, SHOWN), f"{guard}: before and after {trained}")
        made.table(
            _change_rows(groups, changes, tuple(robustness(scored.before)), whole=True),
            caption=f"{guard}: all quantities before and after {trained}",
            digits=3,
        )
        if len(scored.after) > 1:
            _table(made, _rows("rule", ablation, SHOWN), f"{guard}: rules for the target, {TITLES[group]} paraphrases")
        if votes:
            _table(
                made,
                _rows("guard", votes, ("calls", *SHOWN)),
                f"{guard}: votes over 1 + {num_votes} texts without training against training, {TITLES[largest]}",
            )
        if calibration:
            chosen = ("std", "flips", "accuracy", "ece", "adaptive_ece", "brier", "nll")
            _table(
                made,
                _rows("guard", calibration, chosen),
                f"{guard}: calibration and consistency, {TITLES[group]} paraphrases",
            )
        _figures(made, guard, scored, rule, ablation)
    write_summary(report, "guard_consistency", values)
    write_fragment(report, "guards", made)
    print(f"report, with all quantities and their intervals: {build_report(report, 'edgesafe_jax')}")
    return values


def _flat(
    guard: str, groups: Mapping[str, Scored], changes: Mapping[str, Mapping[str, metrics.Interval]], rule: str
) -> dict[str, float]:
    """The numbers of the summary about changes: estimates, ends of their intervals, range over seeds."""
    values = {}
    for group, intervals in changes.items():
        for name, interval in intervals.items():
            values |= interval.named(f"{guard}/{group}/{name}")
        per_seed = [robustness(each) for each in groups[group].after[rule]]
        for name in per_seed[0]:
            values[f"{guard}/{group}/seeds_min/{name}"] = min(v[name] for v in per_seed)
            values[f"{guard}/{group}/seeds_max/{name}"] = max(v[name] for v in per_seed)
    return values


def _votes(scored: Scored, rule: str, num_votes: int) -> dict[str, dict[str, float]]:
    """Training-free baselines and training, with the calls of the guard that a verdict costs."""
    found = {"before": {"calls": 1, **robustness(scored.before)}}
    for how in ("any", "majority"):
        found[how] = {"calls": 1 + num_votes, **robustness(vote(scored.before, how=how, num_votes=num_votes))}
    return found | {"trained": {"calls": 1, **_mean(scored.after[rule])}}


def _calibration(scored: Scored, rule: str) -> dict[str, dict[str, float]]:
    """Before and after training, with temperature scaling and without; nothing where labels are missing."""
    if np.isnan(scored.before.labels).any():
        return {}
    trained = scored.after[rule]
    return {
        "before": robustness(scored.before),
        "before_temperature_scaled": robustness(cross_fitted(scored.before)),
        "trained": _mean(trained),
        "trained_temperature_scaled": _mean([cross_fitted(each) for each in trained]),
    }


def _change_rows(
    groups: Mapping[str, Scored],
    changes: Mapping[str, Mapping[str, metrics.Interval]],
    names: Sequence[str],
    *,
    whole: bool = False,
) -> list[dict[str, Any]]:
    """Before, after and change of some quantities, by group; whole with all intervals and the relative change."""
    rows = []
    for group, intervals in changes.items():
        for name in (name for name in names if f"after/{name}" in intervals):
            before, after = intervals[f"before/{name}"], intervals[f"after/{name}"]
            row = {
                "paraphrases": f"{TITLES[group]}, {len(groups[group].before.labels)} sets",
                "quantity": TITLES[name],
                "before": before if whole else before.estimate,
                "after": after if whole else after.estimate,
                "difference": intervals[f"difference/{name}"],
            }
            rows.append(row | ({"reduction": intervals.get(f"reduction/{name}")} if whole else {}))
    return rows


def _rows(
    first: str, found: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> list[dict[str, str | float | None]]:
    return [
        {first: row.replace("_", " ") if first != "rule" else row}
        | {TITLES.get(name, name): values.get(name) for name in names}
        for row, values in found.items()
    ]


def _table(made: Section, rows: Sequence[Mapping[str, Any]], caption: str) -> None:
    """Adds a table to the report and prints it."""
    made.table(rows, caption=caption, digits=3)
    print(caption + "\n" + make_table(rows, digits=3).to_text() + "\n")


def _figures(made: Section, guard: str, scored: Scored, rule: str, ablation: Mapping[str, Mapping[str, float]]) -> None:
    """Adds flips by rule, and reliability diagrams where there are labels."""
    directions = ("unsafe_to_safe", "safe_to_unsafe")
    made.figure(
        bars(
            {name: {TITLES[d]: row.get(d) for d in directions} for name, row in ablation.items()},
            xlabel="share of originals with a flipped paraphrase",
        ),
        alt=f"Label flips of the guard {guard} in both directions by rule for the target",
        caption="Flips in both directions. Among originals that the guard calls unsafe, and safe.",
    )
    if np.isnan(scored.before.labels).any():
        return
    for name, scores in (("before", scored.before), ("after, first seed", scored.after[rule][0])):
        probs = scores.unsafe[scores.where]
        labels = np.repeat(scores.labels[:, None], scores.unsafe.shape[1], axis=1)[scores.where]
        made.figure(
            verdict_reliability(unsafe_prob=probs, labels=labels),
            alt=f"Reliability diagram of {guard} {name}",
            caption=f"{guard}, {name}",
        )
