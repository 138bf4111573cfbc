"""The run of the study on stand-ins: what is kept is read back, and every lead and split is reported."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from edgesafe_jax.corpora import ScoredPair
from edgesafe_jax.guards import unseen_study
from edgesafe_jax.guards.makers import REGISTERS
from edgesafe_jax.guards.probe import GuardFileError, load_head, load_hidden_state_guard, packaged_head
from edgesafe_jax.guards.unseen import LEADS
from edgesafe_jax.guards.unseen_study import GUARD_FILE, UnseenSettings, run_unseen, study_sets
from edgesafe_jax.guards.wordnet import WordNet

MODEL = SimpleNamespace(
    name="stand-in",
    hash=load_head(packaged_head("teacher"))[1]["model_hash"],
    config=SimpleNamespace(num_layers=30, embed_dim=576),
)
SETTINGS = UnseenSettings(
    num_train=4,
    num_chosen=8,
    num_test=8,
    num_curve=4,
    curve_fraction=0.2,
    num_ways={"style": 2, "edit": 1, "register": 2},
    left_out=("edit/shortened",),
    max_words=20,
    max_response=8,
    max_prompt=8,
    counts=(),
    num_answers=(),
    num_draws=1,
    num_readings=(0, 1),
    num_seeds=1,
    num_samples=4,
)


def vectors(texts):
    seeds = [sum(map(ord, text[:4].lower())) for text in texts]
    found = np.stack([np.random.default_rng(seed).normal(size=4) + 5 for seed in seeds])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def stand_ins(monkeypatch):
    calls = []

    def pairs(role, num=None):
        bad = [f"Mix the poison number {i} well. It hurts people. Do it at night." for i in range(20)]
        good = [f"Please ask somebody for help {i} times. It is safe. Do it today." for i in range(20)]
        # Both labels are in both halves of the answers.
        return [ScoredPair("q", (bad, good)[i // 2 % 2][i // 2], 1.0 - i // 2 % 2, "mine") for i in range(40)][:num]

    def features(model, **options):
        def read(prompts, texts, name):
            calls.extend(texts)
            return np.stack([np.random.default_rng(len(text)).normal(size=3456) for text in texts])

        return read

    monkeypatch.setattr(unseen_study.examples, "human_sample", pairs)
    monkeypatch.setattr(unseen_study.examples, "human_pairs", pairs)
    monkeypatch.setattr(unseen_study, "hidden_state_features", features)
    monkeypatch.setattr(unseen_study, "_agreement", lambda model, path: {})
    monkeypatch.setattr(unseen_study, "MAKERS", {"register": lambda: REGISTERS})
    monkeypatch.setattr(unseen_study, "load_wordnet", lambda: WordNet({}, {}, frozenset()))
    untrained = {"hidden states": LEADS["hidden states"], "hybrid": LEADS["hybrid"]}
    monkeypatch.setattr(unseen_study, "LEADS", {**untrained, "canonical form, trained": LEADS["canonical form"]})
    return calls


def test_the_whole_study_runs_and_continues(stand_ins, tmp_path):
    values = run_unseen(SETTINGS, model=MODEL, encode=vectors, workdir=tmp_path)
    for split in ("judge", "held_out"):
        for lead in ("before training", "hidden states", "hybrid", "canonical form, trained", "steady guard"):
            assert 0 <= values[f"{split}/{lead}/flips"] <= 1
        assert f"{split}/hybrid/variability, reduction" in values
        assert f"{split}/hybrid/accuracy, change" in values
        assert f"{split} randomised readings/1/variability" in values
        assert sum(values[f"{split} by distance/below {edge}/sets"] for edge in (0.1, 0.2, 0.3, 0.5)) == pytest.approx(
            1
        )
    # Words are fitted on texts like these, so the hybrid knows what random features do not.
    assert values["held_out/hybrid/accuracy"] > 0.9
    assert values["rules, 0.4 planted/max/error"] <= values["rules, 0.4 planted/mean/error"]
    assert values["ways in training/0/variability"] == pytest.approx(values["judge/before training/variability"])
    guard = load_hidden_state_guard(MODEL, tmp_path / GUARD_FILE)
    assert (guard.canonical, guard.max_response) == (True, SETTINGS.max_response)
    assert not np.allclose(guard.head.general.linear, load_hidden_state_guard(MODEL).head.general.linear)
    before = len(stand_ins)
    again = run_unseen(SETTINGS, model=MODEL, encode=vectors, workdir=tmp_path)
    assert len(stand_ins) == before
    assert again == values


def test_a_guard_is_trained_without_the_study(stand_ins, tmp_path):
    alone = dataclasses.replace(SETTINGS, measured=False)
    assert run_unseen(alone, model=MODEL, encode=None, workdir=tmp_path) == {}
    guard = load_hidden_state_guard(MODEL, tmp_path / GUARD_FILE)
    assert guard.canonical
    other = SimpleNamespace(**{**vars(MODEL), "hash": "f" * 64})
    with pytest.raises(GuardFileError, match="of the model"):
        run_unseen(alone, model=other, encode=None, workdir=tmp_path / "other")


def test_sets_leave_out_what_is_not_wanted_and_draw_ways_by_maker(stand_ins, tmp_path):
    sets = study_sets("judge", SETTINGS, encode=vectors, folder=tmp_path)
    assert len(sets) == 8
    for one in sets:
        sources = [p.source for p in one.paraphrases]
        assert sources.count("register") <= 2
        assert sources.count("style") <= 2
    assert study_sets("judge", dataclasses.replace(SETTINGS, num_chosen=1), encode=vectors, folder=tmp_path) == sets
    # Those of the curve are kept apart from those that heads are trained on.
    few = dataclasses.replace(SETTINGS, num_curve=2, curve_fraction=1.0)
    assert [len(study_sets(name, few, encode=vectors, folder=tmp_path)) for name in ("teacher", "curve")] == [4, 2]
