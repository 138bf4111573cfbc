"""Merged weights: the same logits as with the LoRA beside the base, the rest of the file block for block."""

import numpy as np
import pytest

from edgesafe_jax.exporting import EXPORTERS
from edgesafe_jax.exporting.gguf_base import GgufBase
from edgesafe_jax.models.loading import load_model
from tests.exporting.conftest import logits

TOKENS = [3, 17, 40, 9, 22, 5]


def test_gguf(gguf_model, lora, tmp_path):
    path = EXPORTERS["merged"](lora, gguf_model, tmp_path / "out")
    merged = load_model(str(path / "model.gguf"))
    expected = logits(gguf_model, TOKENS, lora)
    np.testing.assert_allclose(logits(merged, TOKENS), expected, atol=2e-2)  # float16 matrices
    assert np.abs(expected - logits(gguf_model, TOKENS)).max() > 0.3
    assert merged.tokenizer.hash == gguf_model.tokenizer.hash
    before, after = (GgufBase(file, merged.config) for file in (_path(gguf_model), path / "model.gguf"))
    changed = {f"blk.1.{part}.weight" for part in ("attn_q", "attn_k", "ffn_down")}
    assert list(before.tensors) == list(after.tensors)
    for name, tensor in before.tensors.items():
        same = tensor.tensor_type == after.tensors[name].tensor_type and np.array_equal(
            tensor.data, after.tensors[name].data
        )
        assert same == (name not in changed)
    for name in before.reader.fields:
        if not name.startswith("GGUF."):
            assert before.value(name) == after.value(name)


def _path(model):
    import pathlib

    return pathlib.Path(model.name)


def test_hugging_face_directory(hf_model, lora, tmp_path):
    path = EXPORTERS["merged"](lora, hf_model, tmp_path / "out")
    merged = load_model(str(path))
    np.testing.assert_allclose(logits(merged, TOKENS), logits(hf_model, TOKENS, lora), atol=1e-4)
    assert merged.hash != hf_model.hash
    assert merged.tokenizer.hash == hf_model.tokenizer.hash


@pytest.mark.parity
def test_transformers_computes_the_same_logits(hf_model, lora, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = EXPORTERS["merged"](lora, hf_model, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(theirs, logits(hf_model, TOKENS, lora), atol=1e-4)
