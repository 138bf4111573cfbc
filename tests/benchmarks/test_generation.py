"""The suite of generation on a tiny model beside a peer that computes the same; nothing here depends on a time."""

import contextlib
import sys
import types

import jax
import pytest

from edgesafe_jax.benchmarks import generation
from edgesafe_jax.models import generate
from edgesafe_jax.models.precision import Precision


@pytest.fixture
def small(monkeypatch, tiny_model):
    model = generation.endless(tiny_model)
    monkeypatch.setattr(generation, "_ours", lambda: {"edgesafe_jax, float32": model})
    monkeypatch.setattr(generation, "choose_precision", lambda config: Precision("float32", "bfloat16"))
    monkeypatch.setattr(generation, "product_rate", lambda dtype, size: 1e9)
    monkeypatch.setattr(generation, "read_rate", lambda: 1e9)
    monkeypatch.setattr(generation, "MAX_TOKENS", 4)
    monkeypatch.setattr(generation, "NUM_RUNS", {1: 2, 3: 2})
    monkeypatch.setattr(generation, "llama_cpp", lambda prompts, num_parallel, stack: {})
    return model


def test_times_of_prompts_and_steps_and_their_ratios(small):
    def peers(model, prompts):
        assert model is small
        return {"peer": lambda num: generate(model, prompts, max_tokens=num).tokens}

    result = generation.run(peers)
    assert [(row["questions"], row["system"]) for row in result["rows"]] == [
        (batch, system) for batch in (1, 3) for system in ("edgesafe_jax, float32", "peer")
    ]
    values = result["values"]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(small.params))
    assert values["batch_3/edgesafe_jax_float32/weights_read_seconds"] == pytest.approx(weights / 1e9)
    assert values["auto/decoding_in_bfloat16"] == 1
    for part in ("prompt", "step", "whole"):
        name = f"batch_1/edgesafe_jax_float32/{part}_over_peer"
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]


def test_answers_of_another_length_are_not_compared(small):
    with pytest.raises(RuntimeError, match="peer made 1 answers of other lengths than 4: \\[3\\]"):
        generation.run(lambda model, prompts: {"peer": lambda num: [[0] * min(num, 3)] * len(prompts)})


def test_a_missing_llama_cpp_is_said(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(generation, "resolve_model", lambda name: types.SimpleNamespace(path=__file__))
    with caplog.at_level("INFO"), contextlib.ExitStack() as stack:
        assert generation.llama_cpp(["hello"], 1, stack) == {}
    assert "It is left out" in caplog.text
