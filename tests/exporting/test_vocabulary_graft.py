"""The graft: a chat through the file's own template is the model with its soft prompt, and new tokens never win."""

import dataclasses
import pathlib
import types

import jax
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.exporting import EXPORTERS, ExportError
from edgesafe_jax.exporting.gguf_base import Field, GgufBase, QuantType, copy_gguf
from edgesafe_jax.exporting.vocabulary_graft import _encoded
from edgesafe_jax.models.converted import hash_gguf
from edgesafe_jax.models.loading import load_model
from tests.exporting.conftest import logits

CHAT = [{"role": "user", "content": "hello"}]


def chat_tokens(model):
    return model.tokenizer.encode(model.tokenizer.render_chat(CHAT), control=True)


def expected_logits(model, adapter):
    return logits(model, chat_tokens(model), adapter)


@pytest.fixture(scope="module")
def grafted(gguf_model, soft_prompt, tmp_path_factory):
    """The tied and the untied graft of the quantised GGUF file."""
    folder = tmp_path_factory.mktemp("grafts")
    names = ("vocabulary_graft", "vocabulary_graft_untied")
    paths = {name: EXPORTERS[name](soft_prompt, gguf_model, folder / name) / "model.gguf" for name in names}
    return {name: (path, load_model(str(path))) for name, path in paths.items()}


@pytest.mark.parametrize("name", ["vocabulary_graft", "vocabulary_graft_untied"])
def test_gguf(grafted, gguf_model, soft_prompt, name):
    _, model = grafted[name]
    old, num = gguf_model.config.vocab_size, soft_prompt.num_virtual
    tokens = chat_tokens(model)
    assert tokens[:num] == list(range(old, old + num))
    assert tokens[num:] == chat_tokens(gguf_model)
    # The vectors as the file has them: in blocks of eight bits.
    stored = SoftPrompt(model.params["embedding"][old : old + num])
    np.testing.assert_allclose(stored.embeddings, soft_prompt.embeddings, atol=0.02)
    found = logits(model, tokens)[num:]
    np.testing.assert_allclose(found[:, :old], expected_logits(gguf_model, stored), atol=1e-4)
    untied = name.endswith("untied")
    assert model.config.tie_embeddings != untied
    if untied:
        hidden = np.random.default_rng(0).standard_normal((500, model.config.embed_dim)).astype(np.float32)
        head = np.asarray(model.params["head"])
        assert (np.argmax(hidden @ head, axis=1) < old).all()
        copied = np.flatnonzero((head[:, old] == head[:, :old].T).all(axis=1))
        assert len(copied) >= 1
        assert (head[:, old:] == head[:, copied[:1]]).all()


@pytest.mark.parametrize("name", ["vocabulary_graft", "vocabulary_graft_untied"])
def test_the_rest_of_the_file_is_as_it_was(grafted, gguf_model, soft_prompt, name):
    path, model = grafted[name]
    before, after = GgufBase(pathlib.Path(gguf_model.name), gguf_model.config), GgufBase(path, model.config)
    old = gguf_model.config.vocab_size
    for tensor_name, tensor in before.tensors.items():
        found = after.tensors[tensor_name]
        assert found.tensor_type == tensor.tensor_type
        same = found.data[:old] if tensor_name == "token_embd.weight" else found.data
        np.testing.assert_array_equal(same, tensor.data)
    new = ["output.weight"] if name.endswith("untied") else []
    assert list(after.tensors) == [*before.tensors, *new]
    assert len(after.value("tokenizer.ggml.tokens")) % 64 == 0
    assert after.value("tokenizer.ggml.suppress_tokens") == list(range(old, model.config.vocab_size))
    assert after.value("tokenizer.chat_template").endswith(before.value("tokenizer.chat_template"))
    assert after.value("tokenizer.ggml.merges") == before.value("tokenizer.ggml.merges")


@pytest.mark.parametrize("name", ["vocabulary_graft", "vocabulary_graft_untied"])
def test_directory(hf_model, soft_prompt, tmp_path, name):
    path = EXPORTERS[name](soft_prompt, hf_model, tmp_path / "out")
    model = load_model(str(path))
    num, old = soft_prompt.num_virtual, hf_model.config.vocab_size
    assert chat_tokens(model)[:num] == list(range(old, old + num))
    found = logits(model, chat_tokens(model))[num:, :old]
    np.testing.assert_allclose(found, expected_logits(hf_model, soft_prompt), atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_transformers_runs_it(hf_model, soft_prompt, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = EXPORTERS["vocabulary_graft"](soft_prompt, hf_model, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    given = tokenizer.apply_chat_template(CHAT, add_generation_prompt=False, return_tensors="pt", return_dict=True)
    tokens = hf_model.tokenizer.encode(hf_model.tokenizer.render_chat(CHAT, add_generation_prompt=False), control=True)
    with torch.no_grad():
        theirs = model(given["input_ids"]).logits[0, -len(tokens) :, : hf_model.config.vocab_size].numpy()
    np.testing.assert_allclose(theirs, logits(hf_model, tokens, soft_prompt), atol=1e-4)
    answer = model.generate(**given, max_new_tokens=20, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert int(answer.max()) < hf_model.config.vocab_size


def test_a_second_graft_is_refused(grafted, tmp_path):
    _, model = grafted["vocabulary_graft"]
    prompt = SoftPrompt(jax.numpy.zeros((2, model.config.embed_dim)))
    with pytest.raises(ExportError, match="cannot grow"):
        EXPORTERS["vocabulary_graft"](prompt, model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_vocabularies_that_cannot_grow_are_refused(gguf_model, soft_prompt, disk, tmp_path):
    base = GgufBase(pathlib.Path(gguf_model.name), gguf_model.config)
    cases = (
        ({"tokenizer.chat_template": Field("", 8)}, "no chat template"),
        ({"tokenizer.ggml.token_type": None}, "cannot grow"),
    )
    for number, (fields, message) in enumerate(cases):
        copy = disk / f"case{number}.gguf"
        if None in fields.values():
            base.reader.fields.pop("tokenizer.ggml.token_type")
            fields = {}
        copy_gguf(base, copy, fields=fields)

        changed = dataclasses.replace(gguf_model, name=str(copy), hash=hash_gguf(copy))
        with pytest.raises(ExportError, match=message):
            EXPORTERS["vocabulary_graft"](soft_prompt, changed, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_table_whose_rows_nothing_here_writes_is_refused(tmp_path):
    table = types.SimpleNamespace(tensor_type=QuantType.Q6_K)
    with pytest.raises(ExportError, match="type Q6_K"):
        _encoded(tmp_path / "x.gguf", np.zeros((1, 256), np.float32), table)
