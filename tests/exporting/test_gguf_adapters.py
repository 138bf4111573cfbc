"""llama.cpp's adapter files: what a reader of GGUF finds in them, and what has no place there."""

import gguf
import jax
import numpy as np
import pytest

from edgesafe_jax.adapters import make_adapter
from edgesafe_jax.exporting import EXPORTERS, ExportError


def read(path):
    reader = gguf.GGUFReader(str(path / "adapter.gguf"))
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t.data for t in reader.tensors}


def test_lora_factors_give_the_matrices_of_the_file(gguf_model, lora, tmp_path):
    fields, tensors = read(EXPORTERS["lora"](lora, gguf_model, tmp_path / "out"))
    assert (fields["general.type"], fields["adapter.type"], fields["general.architecture"]) == (
        "adapter",
        "lora",
        "llama",
    )
    assert fields["adapter.lora.alpha"] == pytest.approx(2.0)
    assert set(tensors) == {
        f"blk.1.{part}.weight.lora_{side}" for part in ("attn_q", "attn_k", "ffn_down") for side in "ab"
    }
    change = tensors["blk.1.ffn_down.weight.lora_b"] @ tensors["blk.1.ffn_down.weight.lora_a"]
    expected = np.asarray(lora.down["mlp/down"][0] @ lora.up["mlp/down"][0]).T
    np.testing.assert_allclose(change, expected, atol=1e-5)
    # Rows of queries are in the order of the file: rotary pairs beside each other.
    query = tensors["blk.1.attn_q.weight.lora_b"] @ tensors["blk.1.attn_q.weight.lora_a"]
    expected = np.asarray(lora.down["attention/query"][0] @ lora.up["attention/query"][0]).T
    np.testing.assert_allclose(query[:4], expected[[0, 4, 1, 5]], atol=1e-5)


def test_a_control_vector(gguf_model, steering, tmp_path):
    fields, tensors = read(EXPORTERS["control_vector"](steering, gguf_model, tmp_path / "out"))
    assert fields["general.architecture"] == "controlvector"
    assert (fields["controlvector.model_hint"], fields["controlvector.layer_count"]) == ("llama", 1)
    assert list(tensors) == ["direction.1"]
    np.testing.assert_array_equal(tensors["direction.1"], steering.vectors[0])


def test_the_lowest_layer_has_no_control_vector(gguf_model, tmp_path):
    lowest = make_adapter(jax.random.key(0), "steering", gguf_model, layers=(0, 1))
    with pytest.raises(ExportError, match="layer 0"):
        EXPORTERS["control_vector"](lowest, gguf_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "adapter"), [("lora", "lora"), ("control_vector", "steering")])
def test_a_directory_has_no_such_files(request, hf_model, tmp_path, name, adapter):
    with pytest.raises(ExportError, match="belongs to a GGUF file"):
        EXPORTERS[name](request.getfixturevalue(adapter), hf_model, tmp_path / "out")
