"""The consistency task: what it refuses, how it groups paraphrases, and a whole small run."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import guard_consistency
from edgesafe_jax.adapters import init_lora, load_adapter
from edgesafe_jax.guards import tunables
from edgesafe_jax.guards.activated import load_smolguard
from edgesafe_jax.guards.evaluation import Scored, compare, read_scores
from edgesafe_jax.guards.heads import GatedHead, Head
from edgesafe_jax.guards.paraphrases import Paraphrase, ParaphraseSet, read_sets
from edgesafe_jax.guards.probe import HiddenStateGuard, load_head
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.robustness import SetScores
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.guards.sets import group_sets
from edgesafe_jax.guards.sources import make_sources
from edgesafe_jax.guards.tunables import TuningInputs
from edgesafe_jax.training import WorkdirError
from launch import guards, startup
from launch.errors import ConfigError


def config(**changes):
    found = guard_consistency.get_config("runlocal").to_dict()
    data = {**found["data"], **changes.pop("data", {})}
    return {**found, "data": data, **changes}


STYLES_HELD_OUT = guard_consistency.get_config().data.held_out_styles
BACKBONE = guard_consistency.get_config().to_dict()["backbone"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guards": ("granite",)}, "config.guards='granite': expected one of encoder, hidden_states, hidden_st"),
        ({"guards": ()}, "config.guards is empty"),
        ({"rule": "average"}, "config.rule='average'"),
        ({"ablation": ("worst",)}, "'worst'"),
        ({"num_steps": 0}, "config.num_steps=0"),
        ({"learning_rate": 0.0}, "config.learning_rate=0.0"),
        ({"anchor_weight": -1.0}, "config.anchor_weight=-1.0"),
        ({"ema_decay": 1.0}, "config.ema_decay=1.0"),
        ({"ema_decay": 0.9, "guards": ("smolguard",)}, "only heads take moving targets"),
        ({"backbone": {**BACKBONE, "num_members": 0}}, "config.backbone.num_members=0"),
        ({"backbone": {**BACKBONE, "targets": ("mlp/side",)}}, "config.backbone.targets='mlp/side'"),
        ({"backbone": {**BACKBONE, "learning_rate": 0.0}}, "config.backbone.learning_rate=0.0: expected above 0"),
        ({"lora": {"num_steps": 5, "batch_size": 0, "save_every": 1}}, "config.lora.batch_size=0"),
        ({"data": {"held_out_sources": ("style",)}}, "leaves no source"),
        ({"data": {"test_role": "teacher"}}, "config.data.test_role='teacher': expected one of held_out, judge"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        guards.check_consistency(config(**changes))


def no_model():
    raise AssertionError("no source asked for rewrites")


def test_settings_are_chosen_without_the_ways_that_are_measured_in():
    data = guard_consistency.get_config("validation").to_dict()["data"]
    measured = set(guard_consistency.get_config("lora").data.held_out_styles)
    chosen = {**guard_consistency.get_config("validation").to_dict(), "data": {**data, "sources": data["sources"][::2]}}
    text = "One is here, boys. Two follows it. Three comes late."
    styles = {}
    for role in ("teacher", "judge"):
        sources = make_sources(guards.paraphrase_settings(chosen), measured=role == "judge", model=no_model)
        made = [source([text] * 40) for source in sources]
        styles[role] = {p.style for found in made for row in found for p in row}
    assert not styles["teacher"] & (measured | set(data["held_out_styles"]))
    assert styles["judge"] >= set(data["held_out_styles"])
    assert not styles["judge"] & measured


def test_groups_hold_what_was_never_trained_on():
    members = (
        Paraphrase("a", "style", "formal"),
        Paraphrase("b", "style", "lecture"),
        Paraphrase("c", "llm", "reworded"),
    )
    sets = [ParaphraseSet("q", "o", members, 1.0), ParaphraseSet("q", "p", members[:1], 0.0)]
    groups = group_sets(sets, held_out_sources=("llm",), held_out_styles=STYLES_HELD_OUT)
    texts = {name: [[p.text for p in s.paraphrases] for s in found] for name, found in groups.items()}
    assert texts == {
        "held_out": [["b", "c"]],
        "unseen_source": [["c"]],
        "unseen_style": [["b"]],
        "seen_ways": [["a"], ["a"]],
    }


def test_groups_without_paraphrases_and_repeated_ones_are_left_out():
    seen, unseen = Paraphrase("a", "style", "formal"), Paraphrase("b", "style", "lecture")
    unseen_ways = {"held_out_sources": ("llm",), "held_out_styles": STYLES_HELD_OUT}
    assert list(group_sets([ParaphraseSet("q", "o", (seen,))], **unseen_ways)) == ["seen_ways"]
    # Without a held-out source, unseen styles are all that is unseen.
    assert list(group_sets([ParaphraseSet("q", "o", (seen, unseen))], **unseen_ways)) == ["held_out", "seen_ways"]


def test_comparison_by_hand():
    before = SetScores(np.array([[0.9, 0.3], [0.1, 0.1]]), np.array([1.0, 0.0]))
    after = [SetScores(np.array([[0.9, 0.7], [0.1, 0.1]]), before.labels), before]
    found = compare(Scored(before, {"mean": after}), "mean", 20)
    assert found["before/flips"].estimate == 0.5
    assert found["after/flips"].estimate == 0.25
    assert found["reduction/flips"].estimate == pytest.approx(0.5)
    assert found["difference/accuracy"].estimate == pytest.approx((1.0 + 0.75) / 2 - 0.75)


def test_an_unfinished_run(tmp_path):
    with pytest.raises(ConfigError, match=r"no scores\.npz.*continues it"):
        read_scores(tmp_path)


class Letters:
    """Stands in for the sentence encoder: unit vectors of its width from counts of letter pairs."""

    def encode(self, texts):
        vectors = np.full((len(texts), 384), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for first, second in itertools.pairwise(text.lower()):
                vectors[row, (31 * ord(first) + ord(second)) % 384] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def styles_of(file):
    return {p.style for found in read_sets(file) for p in found.paraphrases}


@pytest.mark.assets
def test_a_small_run_from_paraphrases_to_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(guards, "load_sentence_encoder", Letters)
    small = config(data={"num_train": 4, "num_test": 6})
    workdir = guards.train_consistency(small, tmp_path / "run")
    values = guards.evaluate_consistency(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["guard_consistency/encoder/held_out/before/std"] == pytest.approx(
        values["encoder/held_out/before/std"]
    )
    assert "encoder/votes/any/missed" in values
    assert "encoder/calibration/trained_temperature_scaled/ece" in values
    head, about = load_head(workdir / "heads" / "encoder_1.safetensors")
    assert about["consistency"] == {"rule": "conservative_gap", "seed": 1}
    assert np.all(np.isfinite(head.general.linear))
    assert "Guards: one verdict" in (workdir / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "rules for the target" in printed
    first = printed.split("encoder: rules")[0]
    assert all(name in first for name in ("variability", "flips to safe", "unseen, ", "seen ways, "))
    provenance = json.loads((workdir / "sets" / "teacher.json").read_text())
    assert provenance["filter"]["kept"] > 0
    made = {role: styles_of(workdir / "sets" / f"{role}.jsonl") for role in ("teacher", "held_out")}
    assert made["held_out"] >= set(small["data"]["held_out_styles"])
    assert not made["teacher"] & set(small["data"]["held_out_styles"])
    # Again: everything is there, and no pair is encoded twice.
    files = sorted(p.name for p in (workdir / "encoder" / "features").iterdir())
    guards.train_consistency(small, workdir)
    assert sorted(p.name for p in (workdir / "encoder" / "features").iterdir()) == files
    with pytest.raises(WorkdirError, match="another configuration"):
        guards.train_consistency({**small, "num_steps": 3}, workdir)


@pytest.mark.assets
def test_a_small_run_with_a_lora(tmp_path, monkeypatch, tiny_model):
    start = init_lora(jax.random.key(3), tiny_model.config, rank=2, alpha=8.0, first_layer=1)
    start = start.replace(up=jax.tree.map(lambda b: b + jax.random.normal(jax.random.key(4), b.shape), start.up))
    guard = LanguageModelGuard(tiny_model, FORMATS["smolguard"], adapter=start, max_prompt=16, max_response=48)
    monkeypatch.setattr(guards, "load_sentence_encoder", Letters)
    monkeypatch.setattr(startup, "load_model", lambda spec, **_: tiny_model)
    monkeypatch.setattr(tunables, "load_smolguard", lambda model, path: guard)
    lora = {"adapter": str(tmp_path), "learning_rate": 0.02, "num_steps": 40, "batch_size": 4, "save_every": 40}
    small = config(guards=("smolguard",), ablation=(), num_seeds=1, lora=lora, data={"num_train": 8, "num_test": 4})
    workdir = guards.train_consistency(small, tmp_path / "run")
    trained = [
        json.loads(line)["loss"]
        for line in (workdir / "smolguard/training/conservative_gap_0/metrics.jsonl").read_text().splitlines()
    ]
    assert np.mean(trained[-8:]) < np.mean(trained[:8])
    scored = read_scores(workdir)["smolguard"]["seen_ways"]
    (after,) = scored.after["conservative_gap"]
    # On answers that were not trained on: a set varies less than before.
    spread = lambda scores: np.nanmean(np.nanstd(scores.unsafe, axis=1))  # noqa: E731
    assert spread(after) < spread(scored.before)
    tuned = load_smolguard(tiny_model, workdir / "heads" / "smolguard_0.safetensors")
    assert not np.allclose(tuned.adapter.up["attention/query"], start.up["attention/query"])


@pytest.mark.parametrize("guard", ["hidden_states_lora", "smolguard_lora"])
def test_a_lora_in_all_layers_makes_sets_steadier(guard, tmp_path, monkeypatch, tiny_model):
    linear = jax.random.normal(jax.random.key(0), (64,)) * 0.3
    one, zero = jnp.ones(()), jnp.zeros(())
    head = Head(jnp.zeros(64), jnp.ones(64), linear, zero, one, zero)
    probe = HiddenStateGuard(tiny_model, GatedHead(head, head, head), (1, 2), max_response=48)
    smol = LanguageModelGuard(tiny_model, FORMATS["smolguard"], max_prompt=16, max_response=48)
    monkeypatch.setattr(startup, "load_model", lambda spec, **_: tiny_model)
    monkeypatch.setattr(tunables, "load_hidden_state_guard", lambda model: probe)
    monkeypatch.setattr(tunables, "load_smolguard", lambda model, path: smol)
    backbone = {"rank": 2, "num_steps": 30, "batch_size": 3, "num_members": 2, "learning_rate": 0.02}
    backbone["targets"] = ("attention/query", "mlp/down")
    small = guard_consistency.get_config("runlocal").to_dict()
    small = {**small, "num_seeds": 1, "backbone": {**small["backbone"], **backbone}}
    inputs = TuningInputs(guards.tuning_settings(small), lambda: tiny_model, Letters().encode, tmp_path)
    subject = tunables.TUNABLES[guard](inputs)
    answers = ["the user saw the other one", "in a way", "hello there, user"]
    sets = [
        ParaphraseSet("hello", text, (Paraphrase(text.upper(), "style", "loud"), Paraphrase(text[:9], "style", "cut")))
        for text in answers
    ]
    training = subject.prepare({"train": sets}, "teacher", training=True)["train"]
    before = subject.scores(subject.start, training)
    np.testing.assert_allclose(before, 1 / (1 + np.exp(-training.start.reshape(-1))), atol=1e-5)
    if guard == "smolguard_lora":  # its gradient has a test of its own, and the loop is the same
        subject.store(tmp_path / "heads" / "tuned.safetensors", subject.start, {"rule": "median"})
        lora = load_adapter(tmp_path / "heads" / "tuned.safetensors", tiny_model)
        assert lora.up.keys() == subject.start.up.keys()
        return
    (trained,) = subject.tune(training, "median")
    after = subject.scores(trained, training)
    spread = lambda scores: scores.reshape(3, 3).std(axis=1).mean()  # noqa: E731
    assert spread(after) < 0.9 * spread(before)
    # Finished: the checkpoint is read back.
    (again,) = subject.tune(training, "median")
    np.testing.assert_array_equal(subject.scores(again, training), after)
    subject.store(tmp_path / "heads" / "tuned.safetensors", trained, {"rule": "median"})
    assert (tmp_path / "heads" / "tuned_lora.safetensors").exists()
