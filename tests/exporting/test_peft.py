"""PEFT directories: read back here, loaded by PEFT with equal logits, and what is refused of other people's."""

import json

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from edgesafe_jax.adapters import AdapterError, load_adapter, stored_form
from edgesafe_jax.exporting import EXPORTERS
from tests.exporting.conftest import logits

TOKENS = [3, 17, 40, 9, 22, 5]


@pytest.fixture(params=["soft_prompt", "prefix", "lora"])
def exported(request, hf_model, tmp_path):
    adapter = request.getfixturevalue(request.param)
    return adapter, EXPORTERS["peft"](adapter, hf_model, tmp_path / "out")


def change(path, **fields):
    about = json.loads((path / "adapter_config.json").read_text()) | fields
    (path / "adapter_config.json").write_text(json.dumps(about))


def test_it_is_read_back(exported, hf_model):
    adapter, path = exported
    found = load_adapter(path, hf_model)
    assert type(found) is type(adapter)
    assert stored_form(found).fields == pytest.approx(stored_form(adapter).fields)
    chex.assert_trees_all_close(jax.tree.leaves(found), jax.tree.leaves(adapter), rtol=1e-6)


def test_another_base_model_is_refused(exported, gguf_model):
    with pytest.raises(AdapterError, match="was trained on the base model"):
        load_adapter(exported[1], gguf_model)


def test_another_kind_is_refused(exported, hf_model):
    adapter, path = exported
    other = {"soft_prompt": "lora"}.get(stored_form(adapter).kind, "soft_prompt")
    with pytest.raises(AdapterError, match=f"expected a '{other}'"):
        load_adapter(path, hf_model, kind=other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_what_has_no_place_here_is_refused(hf_model, lora, tmp_path, fields, message):
    path = EXPORTERS["peft"](lora, hf_model, tmp_path / "out")
    change(path, **fields)
    with pytest.raises(AdapterError, match=message):
        load_adapter(path, hf_model)


def test_damaged_directories_are_refused(hf_model, lora, tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        load_adapter(tmp_path, hf_model)
    path = EXPORTERS["peft"](lora, hf_model, tmp_path / "out")
    tensors = safetensors.numpy.load_file(path / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    for changed, message in (
        ({name.replace("layers.1", "layers.0"): tensors[name]}, "other layers in some matrices"),
        ({name.replace("q_proj", "x_proj"): tensors[name]}, "has no place"),
    ):
        safetensors.numpy.save_file({**tensors, **changed}, path / "adapter_model.safetensors")
        with pytest.raises(AdapterError, match=message):
            load_adapter(path, hf_model)
    (path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="not readable"):
        load_adapter(path, hf_model)


def test_rank_stabilised_scales_are_read(hf_model, lora, tmp_path):
    path = EXPORTERS["peft"](lora, hf_model, tmp_path / "out")
    change(path, use_rslora=True, lora_alpha=2.0)
    assert load_adapter(path, hf_model).scale == pytest.approx(2.0 / 3**0.5)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_peft_computes_the_same_logits(exported, hf_model):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    adapter, path = exported
    base = transformers.AutoModelForCausalLM.from_pretrained(hf_model.name, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, str(path)).eval()
    with torch.no_grad():
        theirs = loaded(torch.tensor([TOKENS])).logits[0, -len(TOKENS) :].numpy()
    ours = logits(hf_model, TOKENS, adapter)
    assert np.abs(ours - logits(hf_model, TOKENS)).max() > 0.05
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_what_peft_stores_is_read(hf_model, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(hf_model.name, dtype=torch.float32)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["v_proj", "up_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(base, lora).eval()
    wrapped.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = wrapped(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(theirs, logits(hf_model, TOKENS, load_adapter(tmp_path, hf_model)), atol=1e-4)
