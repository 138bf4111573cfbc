"""What every format does: whole directories, model cards, and what it refuses."""

import dataclasses
import errno
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from edgesafe_jax.adapters import compose, load_adapter, make_adapter, save_adapter, stored_form
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.exporting import EXPORTERS, ExportError, Measured, Provenance, hub, make_exporter
from edgesafe_jax.exporting.card import from_result, from_summary
from edgesafe_jax.exporting.sources import export_checkpoint, read_checkpoint
from edgesafe_jax.models.loading import load_model
from edgesafe_jax.reporting.results import read_result
from tests.exporting.conftest import logits

RESULTS = pathlib.Path(__file__).parents[2] / "configs" / "results" / "align_soft_prompt.json"


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(EdgesafeError, match="Did you mean 'peft'"):
        make_exporter("pefd")


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_a_format_cannot_carry_is_refused_with_those_that_can(request, name, gguf_model, tmp_path):
    for adapter in map(request.getfixturevalue, ("soft_prompt", "prefix", "lora", "steering")):
        kind = stored_form(adapter).kind
        if kind in EXPORTERS[name].format.carries:
            continue
        able = next(other for other, exporter in EXPORTERS.items() if kind in exporter.format.carries)
        with pytest.raises(ExportError, match=f"cannot carry a {kind}.*Formats for a {kind}: .*{able}"):
            EXPORTERS[name](adapter, gguf_model, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_compositions_that_no_format_holds_are_refused_with_what_can_be_done(hf_model, soft_prompt, steering, tmp_path):
    gate = make_adapter(jax.random.key(0), "gate", hf_model)
    for adapter, name, message in (
        (compose(gate, soft_prompt), "peft", r"Formats for a gate\+soft_prompt: none\. A gate chooses.*save_adapter"),
        (compose(soft_prompt, steering), "peft", r"Formats for a .*: stablehlo\. The parts can be exported one by one"),
    ):
        with pytest.raises(ExportError, match=message):
            EXPORTERS[name](adapter, hf_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["peft", "merged"])
def test_several_loras_leave_as_one(hf_model, lora, tmp_path, name):
    rng = np.random.default_rng(1)
    start = make_adapter(jax.random.key(5), "lora", hf_model, rank=2, alpha=1.0, targets=("attention/value",))
    other = start.replace(
        up={key: jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32)) for key, leaf in start.up.items()}
    )
    both, tokens = compose(lora, other), [3, 17, 40, 9]
    path = EXPORTERS[name](both, hf_model, tmp_path / "out")
    found = (
        logits(load_model(str(path)), tokens)
        if name == "merged"
        else logits(hf_model, tokens, load_adapter(path, hf_model))
    )
    np.testing.assert_allclose(found, logits(hf_model, tokens, both), atol=1e-4)


def test_nothing_is_overwritten(hf_model, soft_prompt, tmp_path):
    (tmp_path / "file").write_text("kept")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ExportError, match="would be overwritten"):
            EXPORTERS["peft"](soft_prompt, hf_model, taken)
    with pytest.raises(ExportError, match="is no directory"):
        EXPORTERS["peft"](soft_prompt, hf_model, tmp_path / "missing" / "out")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("where", "code", "message"),
    [
        ("edgesafe_jax.exporting.registry.make_card", errno.ENOSPC, "the disk is full"),
        ("pathlib.Path.mkdir", errno.EROFS, r"cannot use .*out: "),
        ("pathlib.Path.mkdir", errno.EACCES, r"cannot use .*out: "),
    ],
    ids=["full", "read-only disk", "read-only folder"],
)
def test_a_target_that_cannot_be_written_leaves_nothing_behind(
    hf_model, soft_prompt, tmp_path, monkeypatch, where, code, message
):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(where, fail)
    with pytest.raises(EdgesafeError, match=message):
        EXPORTERS["peft"](soft_prompt, hf_model, tmp_path / "out")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_another_base_file_is_refused(gguf_model, lora, disk, tmp_path):
    other = dataclasses.replace(gguf_model, name=str(disk / "plain.gguf"))
    with pytest.raises(ExportError, match="another base model"):
        EXPORTERS["merged"](lora, other, tmp_path / "out")
    with pytest.raises(ExportError, match="files of the base model"):
        EXPORTERS["merged"](lora, dataclasses.replace(other, name="gone.gguf"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_where_the_adapter_comes_from(hf_model, soft_prompt, tmp_path):
    training = {"objective": "token_kl", "data": {"num_harmful": -1, "num_plain": 20}}
    known = Provenance(training, [Measured("refused, strongreject", 0.96, 0.93, 0.98, 313)], ["It | stumbles."], "mit")
    path = EXPORTERS["peft"](soft_prompt, hf_model, tmp_path / "out", provenance=known)
    card = (path / "README.md").read_text()
    header = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines())
    assert json.loads(header["license"]) == "mit"
    assert json.loads(header["base_model"]) == hf_model.name
    for part in (
        hf_model.hash,
        "token_kl",
        "harmful: all, plain: 20",
        "| refused, strongreject | 313 | 0.96 [0.93, 0.98] |",
    ):
        assert part in card
    assert "Known failures" in card


def test_numbers_of_a_run_are_read():
    summary = {
        "alignment/plain/num_prompts": 5,
        "alignment/plain/student/refused": 0.2,
        "alignment/plain/student/refused_low": 0.1,
        "alignment/plain/student/refused_high": 0.4,
        "alignment/plain/base/refused": 0.0,
        "alignment/seconds": 3.0,
    }
    assert from_summary(summary) == [Measured("refused, plain", 0.2, 0.1, 0.4, 5)]


def test_numbers_of_the_packaged_results_are_read():
    found = {each.name: each for each in from_result(read_result(RESULTS))}
    assert found["refused, StrongREJECT"].num == 313
    assert found["refused, StrongREJECT"].low < found["refused, StrongREJECT"].value


def test_uploads(hf_model, soft_prompt, tmp_path, monkeypatch):
    asked = []

    class Api:
        def create_repo(self, repo, exist_ok):
            asked.append((repo, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            if repo_id == "me/closed":
                raise ConnectionError("no network")
            asked.append(sorted(file.name for file in folder_path.iterdir()))
            return f"hub/{repo_id}"

    monkeypatch.setattr(hub.huggingface_hub, "HfApi", Api)
    path = EXPORTERS["peft"](soft_prompt, hf_model, tmp_path / "out")
    assert hub.push(path, "me/safe") == "hub/me/safe"
    assert asked == [("me/safe", True), ["README.md", "adapter_config.json", "adapter_model.safetensors"]]
    with pytest.raises(ExportError, match=r"is written, but .*no network"):
        hub.push(path, "me/closed")
    for wrong in ("me/safe/more", "safe", "a b/c"):
        with pytest.raises(ExportError, match="OWNER/NAME"):
            hub.check_repo(wrong)
    hub.check_repo("me/safe")


def test_a_command_refuses_before_it_loads_anything(tmp_path):
    for arguments, message in (
        (("gone", "pefd", tmp_path / "out"), "Did you mean 'peft'"),
        (("gone", "peft", tmp_path), "would be overwritten"),
        (("gone", "peft", tmp_path / "out"), "There is no adapter"),
    ):
        with pytest.raises(EdgesafeError, match=message):
            export_checkpoint(*arguments)
    with pytest.raises(ExportError, match="OWNER/NAME"):
        export_checkpoint("gone", "peft", tmp_path / "out", repo="no owner")


def test_checkpoints_are_found(hf_model, soft_prompt, tmp_path):
    file = tmp_path / "run" / "adapter" / "adapter.safetensors"
    save_adapter(file, soft_prompt, hf_model, training={"objective": "tv"})
    (tmp_path / "run" / "summary.json").write_text('{"alignment/plain/student/refused": 0.5}')
    for checkpoint, measured in ((tmp_path / "run", 1), (file, 0)):
        adapter, model, provenance = read_checkpoint(checkpoint)
        assert adapter.num_virtual == 6
        assert (model.hash, len(provenance.measured)) == (hf_model.hash, measured)
        assert provenance.training == {"objective": "tv"}
    with pytest.raises(ExportError, match="There is no adapter"):
        read_checkpoint(tmp_path)
