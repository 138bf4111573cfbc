"""What guard launchers keep in their work directories."""

import json

import numpy as np

from edgesafe_jax.guards.kept import kept_features
from launch import evaluate
from tests.launch import cli


def test_kept_features_survive_an_interruption(tmp_path):
    """Several readings under one name: none replaces another, and after a restart nothing is read twice."""
    calls = []

    def features(prompts, responses, name):
        calls.append((name, list(prompts)))
        return np.array([[len(x), len(y)] for x, y in zip(prompts, responses, strict=True)], np.float32)

    kept = kept_features(features, tmp_path)
    np.testing.assert_array_equal(kept(["a", "bb"], ["x", "y"], "human"), [[1, 1], [2, 1]])
    np.testing.assert_array_equal(kept(["bb", "ccc"], ["y", "zz"], "human"), [[2, 1], [3, 2]])
    assert calls == [("human", ["a", "bb"]), ("human", ["ccc"])]
    again = kept_features(features, tmp_path)
    np.testing.assert_array_equal(again(["ccc", "a", "bb"], ["zz", "x", "y"], "human"), [[3, 2], [1, 1], [2, 1]])
    assert len(calls) == 2


def test_prompts_need_an_aligned_model(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": "guard_consistency"}))
    message = cli.refused(monkeypatch, capsys, evaluate, f"--checkpoint={tmp_path}", f"--prompts={tmp_path}/mine.jsonl")
    assert "needs the work directory of an alignment run" in message
    message = cli.refused(monkeypatch, capsys, evaluate, f"--checkpoint={tmp_path}", "--output=x.jsonl")
    assert "--output=x.jsonl needs --prompts=FILE.jsonl" in message
