"""The graft: a chat through the file's own template is the model with its soft prompt, and new tokens never win."""

import dataclasses
import pathlib
import types

import gguf
import jax
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt, compose
from edgesafe_jax.exporting import EXPORTERS, ExportError
from edgesafe_jax.exporting.gguf_base import Field, GgufBase, QuantType, Tensor, copy_gguf, stored_as
from edgesafe_jax.exporting.vocabulary_graft import grown_table
from edgesafe_jax.models import generate
from edgesafe_jax.models.converted import hash_gguf
from edgesafe_jax.models.loading import load_model
from tests.exporting.conftest import SIZES, logits
from tests.models.test_loading import hf_tensors, write_gguf
from tests.models.test_quantised import random_blocks
from tests.tiny import random_params

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


def test_new_tokens_are_not_generated_here_either(grafted, hf_model, soft_prompt, tmp_path):
    """The suppressed tokens of a GGUF file and of a directory are those that `generate` leaves out."""
    folder = EXPORTERS["vocabulary_graft"](soft_prompt, hf_model, tmp_path / "out")
    old = hf_model.config.vocab_size
    for model in (load_model(str(folder)), grafted["vocabulary_graft"][1]):
        assert model.tokenizer.suppressed_ids[: soft_prompt.num_virtual] == tuple(range(old, old + 6))
    sampled = generate(model, ["hello"] * 8, max_tokens=8, temperature=20.0, key=jax.random.key(0))
    assert max(max(row, default=0) for row in sampled.tokens) < old


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


@pytest.mark.parametrize("kind", [QuantType.Q4_K, QuantType.Q6_K], ids=lambda kind: kind.name)
def test_a_table_of_a_k_quant_is_stored_again(disk, tmp_path, caplog, kind):
    """The table alone; every other tensor is the same block for block."""
    sizes = dataclasses.replace(SIZES, embed_dim=256)
    plain = write_gguf(disk / f"wide_{kind.name}.gguf", sizes, hf_tensors(sizes, random_params(sizes)))
    blocks = random_blocks(kind, sizes.vocab_size, 256).data
    base, file = GgufBase(plain, sizes), disk / f"{kind.name}.gguf"
    others = {name: stored_as(tensor.data, QuantType.Q4_1) for name, tensor in base.tensors.items() if "ffn_up" in name}
    copy_gguf(base, file, tensors={"token_embd.weight": Tensor(blocks, kind), **others})
    prompt = SoftPrompt(jax.random.normal(jax.random.key(0), (3, 256)))
    with caplog.at_level("INFO"):
        path = EXPORTERS["vocabulary_graft"](prompt, load_model(str(file), quantization="keep"), tmp_path / "out")
    before, after = GgufBase(file, sizes), GgufBase(path / "model.gguf", sizes)
    table = after.tensors.pop("token_embd.weight")
    assert table.tensor_type == QuantType.Q8_0
    for name, tensor in after.tensors.items():
        assert tensor.tensor_type == before.tensors[name].tensor_type
        np.testing.assert_array_equal(tensor.data, before.tensors[name].data)
    rows, old = gguf.quants.dequantize(table.data, table.tensor_type), sizes.vocab_size
    expected = gguf.quants.dequantize(blocks, kind)
    assert np.linalg.norm(rows[:old] - expected) < 0.01 * np.linalg.norm(expected)
    np.testing.assert_allclose(rows[old : old + 3], prompt.embeddings, atol=0.02)
    cost = f"{kind.name} stored again as Q8_0"
    assert cost in (path / "README.md").read_text()
    assert cost in caplog.text


def test_a_table_that_nothing_here_reads_is_refused(tmp_path):
    table = types.SimpleNamespace(tensor_type=QuantType.Q8_1, data=np.zeros((1, 36), np.uint8))
    with pytest.raises(ExportError, match="type Q8_1"):
        grown_table(tmp_path / "x.gguf", table, np.zeros((1, 32), np.float32))


@pytest.mark.parametrize("name", ["vocabulary_graft", "vocabulary_graft_untied"])
def test_a_lora_is_merged_before_the_prompt_is_grafted(hf_model, plain_model, soft_prompt, lora, tmp_path, name):
    both = compose(lora, soft_prompt)
    path = EXPORTERS[name](both, hf_model, tmp_path / "directory")
    model, old = load_model(str(path)), hf_model.config.vocab_size
    expected = expected_logits(hf_model, both)
    found = logits(model, chat_tokens(model))[:, :old]
    np.testing.assert_allclose(found[soft_prompt.num_virtual :], expected, atol=1e-4)
    assert np.abs(expected - expected_logits(hf_model, soft_prompt)).max() > 0.3
    path = EXPORTERS[name](both, plain_model, tmp_path / "file")
    assert sorted(file.name for file in path.iterdir()) == ["README.md", "model.gguf"]
    model = load_model(str(path / "model.gguf"))
    found = logits(model, chat_tokens(model))[soft_prompt.num_virtual :, :old]
    np.testing.assert_allclose(found, expected, atol=3e-2)  # float16 matrices
    card = (path / "README.md").read_text()
    assert "Merged matrices" in card
    assert "soft_prompt+lora" in card.replace("lora+soft_prompt", "soft_prompt+lora")
