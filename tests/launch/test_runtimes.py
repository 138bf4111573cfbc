"""The evaluation inside llama.cpp from the command line, on a tiny file, and what the command refuses."""

import json

import numpy as np
import pytest

from edgesafe_jax.exporting import llama_cpp
from edgesafe_jax.safety.judging import Judge, by_words
from launch import alignment, evaluate
from tests.exporting.conftest import SIZES
from tests.launch.cli import refused, run
from tests.models.test_loading import hf_tensors, write_gguf
from tests.tiny import random_params

pytestmark = pytest.mark.assets  # the evaluation sets


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("device") / "tiny.gguf", SIZES, hf_tensors(SIZES, random_params(SIZES)))


def started(monkeypatch):
    """The servers that are started from now on."""
    found, start = [], llama_cpp._started

    def remember(options):
        process, address = start(options)
        found.append(process)
        return process, address

    monkeypatch.setattr(llama_cpp, "_started", remember)
    return found


def test_a_file_is_evaluated_and_the_runtime_is_stopped(monkeypatch, capsys, file):
    pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    judges = {"refused": Judge(by_words, "refusal"), "teacher": Judge(lambda p, r: np.full(len(p), 0.25), "unsafe")}
    monkeypatch.setattr(alignment, "load_system", lambda config, workdir: (None, None, None))
    monkeypatch.setattr(alignment, "load_judges", lambda config, guard, model: judges)
    processes = started(monkeypatch)
    run(monkeypatch, evaluate, "--runtime=llama_cpp", f"--model={file}", "--sets=plain", "--num_prompts=2")
    numbers = json.loads((file.parent / "tiny.gguf.evaluation" / "summary.json").read_text())
    assert numbers["runtime/plain/num_prompts"] == 2
    assert numbers["runtime/plain/runtime/sgs_teacher"] == 1.0
    assert "plain questions" in capsys.readouterr().out
    assert [process.poll() for process in processes] == [0]


def test_what_is_refused(monkeypatch, capsys, file, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs the extra llama_cpp")
    (tmp_path / "text.gguf").write_text("no model")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-1000])
    processes = started(monkeypatch)
    for arguments, message in (
        ((), "--runtime=llama_cpp needs --model=FILE"),
        ((f"--model={tmp_path}/gone.gguf",), "There is no model"),
        ((f"--model={tmp_path}/text.gguf",), "cannot load"),
        ((f"--model={cut}",), "cannot load"),
        ((f"--model={file}", "--sets=plane"), "--sets='plane'"),
    ):
        assert message in refused(monkeypatch, capsys, evaluate, "--runtime=llama_cpp", *arguments)
    assert "--runtime='llama'" in refused(monkeypatch, capsys, evaluate, "--runtime=llama", f"--model={file}")
    assert processes == []
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    assert "edgesafe-jax[llama_cpp]" in refused(monkeypatch, capsys, evaluate, "--runtime=llama_cpp", f"--model={file}")
