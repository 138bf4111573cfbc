"""Prefix caches: a chat behind the stored keys and values is the chat behind the adapter."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from edgesafe_jax.exporting import EXPORTERS
from edgesafe_jax.models.decoder import Decoder, KeyValues
from tests.exporting.conftest import logits


@pytest.fixture(params=["soft_prompt", "prefix"])
def exported(request, hf_model, tmp_path):
    adapter = request.getfixturevalue(request.param)
    return adapter, EXPORTERS["prefix_cache"](adapter, hf_model, tmp_path / "out") / "prefix.safetensors"


def test_logits_behind_it_are_those_behind_the_adapter(exported, hf_model):
    adapter, file = exported
    arrays = safetensors.numpy.load_file(file)
    with safetensors.safe_open(file, framework="numpy") as handle:
        about = handle.metadata()
    head, tail = json.loads(about["tokens"]), [40, 9, 22, 5]
    assert head == list(hf_model.tokenizer.chat_parts.head)
    num = adapter.num_virtual + len(head)
    assert (int(about["num_virtual"]), int(about["num_positions"])) == (adapter.num_virtual, num)
    assert about["base_model_hash"] == hf_model.hash
    c = hf_model.config
    assert arrays["keys"].shape == (c.num_layers, c.num_kv_heads, num, c.head_dim)
    block = KeyValues(*(jnp.asarray(arrays[name])[:, None] for name in ("keys", "values")))
    variables = {"params": hf_model.params}
    output = hf_model.decoder.apply(variables, jnp.array([tail]), past=(block,))
    found = hf_model.decoder.apply(variables, output.hidden, method=Decoder.logits)[0]
    np.testing.assert_allclose(found, logits(hf_model, [*head, *tail], adapter)[-len(tail) :], atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_transformers_continues_behind_it(exported, hf_model):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    adapter, file = exported
    arrays = safetensors.numpy.load_file(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_model.name, dtype=torch.float32).eval()
    cache = transformers.DynamicCache()
    for layer, (keys, values) in enumerate(zip(arrays["keys"], arrays["values"], strict=True)):
        cache.update(torch.tensor(keys)[None], torch.tensor(values)[None], layer)
    tail = [40, 9, 22, 5]
    with torch.no_grad():
        theirs = model(torch.tensor([tail]), past_key_values=cache).logits[0].numpy()
    whole = [*hf_model.tokenizer.chat_parts.head, *tail]
    np.testing.assert_allclose(theirs, logits(hf_model, whole, adapter)[-len(tail) :], atol=1e-4)
