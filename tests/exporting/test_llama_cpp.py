"""Exported files inside llama.cpp: the same tokens as JAX, and what the runtime refuses."""

import json
import os
import pathlib
import signal

import numpy as np
import pytest

from edgesafe_jax.corpora import Prompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.exporting import EXPORTERS, llama_cpp
from edgesafe_jax.exporting.gguf_base import GgufBase, QuantType, copy_gguf, stored_as
from edgesafe_jax.exporting.llama_cpp import LlamaCpp
from edgesafe_jax.exporting.runtime import RuntimeFailure, RuntimeSettings
from edgesafe_jax.exporting.runtime_evaluation import (
    evaluate_runtime,
    runtime_numbers,
    start_runtime,
    write_results,
)
from edgesafe_jax.models import answer_log_probs, generate, load_model
from edgesafe_jax.safety.judging import Judge, by_words

PROMPTS = ["hello user", "in the 12th hell", "a"]
EXACT = RuntimeSettings(num_threads=1, context=256, exact=True)


@pytest.fixture(scope="module")
def grafted(plain_model, soft_prompt, tmp_path_factory):
    pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    path = EXPORTERS["vocabulary_graft"](soft_prompt, plain_model, tmp_path_factory.mktemp("graft") / "out")
    with LlamaCpp(path / "model.gguf", EXACT) as runtime:
        yield path / "model.gguf", runtime


def same_tokens(found, expected):
    """Whether the runtime's tokens are JAX's, whose answers leave their end out."""
    return [row[: len(other)] for row, other in zip(found, expected, strict=True)] == expected


def test_greedy_answers_are_those_of_jax_with_the_soft_prompt(grafted, plain_model, soft_prompt):
    found = grafted[1].answer(PROMPTS, max_tokens=12)
    expected = generate(plain_model, PROMPTS, max_tokens=12, adapter=soft_prompt)
    assert same_tokens(found.tokens, expected.tokens)
    assert (found.first_seconds > 0).all()
    base = generate(plain_model, PROMPTS, max_tokens=12)
    assert base.tokens != expected.tokens


def test_log_probabilities_are_those_of_jax(grafted, plain_model):
    answers = ["hell", " the", "in user"]
    with LlamaCpp(plain_model.name, EXACT) as runtime:
        total, count = runtime.answer_log_probs(PROMPTS, answers)
    expected, num = answer_log_probs(plain_model, PROMPTS, answers)
    np.testing.assert_array_equal(count, num)
    np.testing.assert_allclose(total, expected, atol=1e-3)


def test_new_tokens_cannot_be_generated(grafted, plain_model, soft_prompt):
    _, runtime = grafted
    new = plain_model.config.vocab_size + 2
    [given] = [runtime.tokenize(runtime.chat(PROMPTS[0]))]
    assert given[: soft_prompt.num_virtual] == list(range(new - 2, new - 2 + soft_prompt.num_virtual))
    reply = runtime.complete(given, max_tokens=1, n_probs=1, logit_bias=[[new, 1e5]])
    assert reply["tokens"][0] < plain_model.config.vocab_size
    other = runtime.complete(given, max_tokens=1, n_probs=1, logit_bias=[[40, 1e5]])
    assert other["tokens"] == [40]


def test_a_prefilled_answer_goes_on(grafted, plain_model, soft_prompt):
    [found] = grafted[1].answer(PROMPTS[:1], max_tokens=4, prefills=["hell"]).texts
    [expected] = generate(plain_model, PROMPTS[:1], max_tokens=5, adapter=soft_prompt, prefills=["hell"]).texts
    assert found == expected


def test_an_evaluation_inside_the_runtime(grafted, tmp_path):
    sets = {
        "strongreject": [Prompt("hello", source="test", category="", label="harmful")],
        "plain": [Prompt("in the", source="test", category="", label="benign")],
    }
    judges = {
        "refused": Judge(by_words, "refusal"),
        "teacher": Judge(lambda prompts, responses: np.full(len(prompts), 0.25), "unsafe"),
    }
    found = evaluate_runtime(grafted[1], sets, judges, max_tokens=4, num_prefill=None)
    numbers = runtime_numbers(found)
    assert list(found.judged) == ["strongreject", "plain", "prefill"]
    assert numbers["plain/runtime/sgs_teacher"] == 1.0
    assert numbers["speed/tokens_per_second"] > 0
    assert "StrongREJECT" in write_results(tmp_path / "report", found).to_text()
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["runtime/plain/runtime/sgs_teacher"] == 1.0


def test_a_lora_file_runs_on_the_base_file(plain_model, lora, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    path = EXPORTERS["lora"](lora, plain_model, tmp_path / "out")
    with LlamaCpp(plain_model.name, EXACT, lora=path / "adapter.gguf") as runtime:
        found = runtime.answer(PROMPTS, max_tokens=8)
    expected = generate(plain_model, PROMPTS, max_tokens=8, adapter=lora)
    assert same_tokens(found.tokens, expected.tokens)
    assert not same_tokens(found.tokens, generate(plain_model, PROMPTS, max_tokens=8).tokens)


@pytest.mark.parametrize("kind", ["soft_prompt", "prefix"])
def test_a_prefix_cache_is_restored_and_nothing_of_it_is_computed(request, plain_model, tmp_path, kind):
    pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    adapter = request.getfixturevalue(kind)
    path = EXPORTERS["prefix_cache"](adapter, plain_model, tmp_path / "out")
    num = adapter.num_virtual + len(plain_model.tokenizer.chat_parts.head)
    found = []
    settings = RuntimeSettings(num_threads=1, context=256)  # the format belongs to the default attention
    with LlamaCpp(plain_model.name, settings, slots=path, template=path / "chat_template.jinja") as runtime:
        for prompt in PROMPTS:
            assert runtime.restore("prefix.slot") == num
            reply = runtime.complete(runtime.chat(prompt), max_tokens=8)
            assert reply["timings"]["cache_n"] == num
            found.append(reply["tokens"])
    assert same_tokens(found, generate(plain_model, PROMPTS, max_tokens=8, adapter=adapter).tokens)


def test_merged_weights_run(plain_model, lora, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    path = EXPORTERS["merged"](lora, plain_model, tmp_path / "out") / "model.gguf"
    # In float32 instead of float16, so that nothing is rounded.
    merged = load_model(str(path))
    base = GgufBase(path, merged.config)
    exact = {n: stored_as(t.data, QuantType.F32) for n, t in base.tensors.items() if t.tensor_type == QuantType.F16}
    copy_gguf(base, tmp_path / "exact.gguf", tensors=exact)
    with LlamaCpp(tmp_path / "exact.gguf", EXACT) as runtime:
        found = runtime.answer(PROMPTS, max_tokens=8)
    expected = generate(merged, PROMPTS, max_tokens=8)
    assert same_tokens(found.tokens, expected.tokens)


def test_what_cannot_be_run_is_refused(tmp_path, monkeypatch):
    with pytest.raises(RuntimeFailure, match="no model"):
        LlamaCpp(tmp_path / "missing.gguf")
    with pytest.raises(ConfigError, match="runtime='llama'"):
        start_runtime("llama", tmp_path / "missing.gguf")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF no")
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeFailure, match=r"edgesafe-jax\[llama_cpp\]"):
        LlamaCpp(tmp_path / "damaged.gguf")


def test_a_damaged_file_and_a_stopped_runtime_are_refused(grafted, tmp_path):
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF no")
    with pytest.raises(RuntimeFailure, match="cannot load"):
        LlamaCpp(tmp_path / "damaged.gguf")
    with LlamaCpp(grafted[0], EXACT) as runtime, pytest.raises(RuntimeFailure, match="refuses /completion"):
        runtime.answer(["hello " * 600], max_tokens=4)
    with pytest.raises(RuntimeFailure, match="stopped"):
        runtime.answer(["hello"], max_tokens=4)


def test_a_runtime_that_dies_is_reported_and_its_process_is_gone(grafted, tmp_path, monkeypatch):
    with LlamaCpp(grafted[0], EXACT) as runtime:
        pid = runtime.pid
        os.kill(pid, signal.SIGABRT)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(RuntimeFailure, match=r"does not reply.*its process was ended by signal 6"):
            runtime.answer(["hello"], max_tokens=4)
    assert not pathlib.Path(f"/proc/{pid}").exists()
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -6 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(llama_cpp.sys, "executable", str(dying))
    with pytest.raises(RuntimeFailure, match=r"cannot load .*model\.gguf: was ended by signal 6"):
        LlamaCpp(grafted[0], EXACT)
