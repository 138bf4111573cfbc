"""Which files of a model are read, what binds adapters to them, and what is said of those that cannot be read."""

import dataclasses
import json
import logging

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models import converted
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.directories import hash_weights
from edgesafe_jax.models.loading import LoadingError, load_model
from tests.models.test_loading import (
    CONFIG,
    assert_same,
    cache,  # noqa: F401  (a fixture)
    hf_settings,
    hf_tensors,
    with_changes,
    write_directory,
    write_gguf,
)
from tests.tiny import random_params

PARAMS = random_params(CONFIG)
TENSORS = hf_tensors(CONFIG, PARAMS)


def write_shards(path, tensors, *, save=safetensors.numpy.save_file, num=2):
    """Splits the tensors into shards with an index; the files have the names that transformers gives them."""
    names = sorted(tensors)
    shards = {f"model-{i + 1:05}-of-{num:05}.safetensors": names[i::num] for i in range(num)}
    for shard, inside in shards.items():
        save({name: tensors[name] for name in inside}, path / shard)
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def sharded(tmp_path):
    write_directory(tmp_path / "model", CONFIG, TENSORS)
    (tmp_path / "model" / "model.safetensors").unlink()
    write_shards(tmp_path / "model", TENSORS)
    return tmp_path / "model"


# Files that nobody named -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stray",
    [
        "model-00003-of-00003.safetensors",
        "zzz.safetensors",
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "model.safetensors",
    ],
)
def test_files_that_the_index_does_not_name_are_not_read(sharded, stray):
    other = hf_tensors(CONFIG, random_params(CONFIG, seed=1)) | {
        "base_model.lora_A.weight": np.zeros((2, 2), np.float32)
    }
    before = load_model(str(sharded)).hash
    safetensors.numpy.save_file(other, sharded / stray)
    model = load_model(str(sharded))
    assert_same(model.params, PARAMS)
    assert model.hash == before


@pytest.mark.parametrize("stray", ["consolidated.safetensors", "adapter_model.safetensors", "a.safetensors"])
def test_files_beside_the_one_file_are_not_read(tmp_path, stray):
    path = write_directory(tmp_path, CONFIG, TENSORS)
    safetensors.numpy.save_file(hf_tensors(CONFIG, random_params(CONFIG, seed=1)), path / stray)
    assert_same(load_model(str(path)).params, PARAMS)
    (path / "model.safetensors").rename(path / "b.safetensors")
    with pytest.raises(LoadingError, match=r"2 safetensors files and no model\.safetensors\.index\.json"):
        load_model(str(path))
    (path / stray).unlink()
    assert_same(load_model(str(path)).params, PARAMS)


def test_a_tensor_is_read_from_the_shard_that_the_index_names(sharded):
    name = "model.norm.weight"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    [other] = {*index["weight_map"].values()} - {index["weight_map"][name]}
    inside = safetensors.numpy.load_file(sharded / other)
    safetensors.numpy.save_file(inside | {name: np.zeros(16, np.float32)}, sharded / other)
    assert_same(load_model(str(sharded)).params, PARAMS)


@pytest.mark.parametrize("contents", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_named(sharded, contents):
    (sharded / "model.safetensors.index.json").write_text(contents, encoding="utf-8")
    with pytest.raises(EdgesafeError, match=r"model\.safetensors\.index\.json"):
        load_model(str(sharded))


def test_the_hash_is_of_the_weights_and_not_of_their_files(tmp_path, sharded):
    whole = write_directory(tmp_path / "whole", CONFIG, TENSORS)
    assert hash_weights(whole) == hash_weights(sharded)
    names = [tmp_path / name for name in ("value", "name", "shape", "dtype")]
    for path in names:
        path.mkdir()
    norm = TENSORS["model.norm.weight"]
    rest = {name: tensor for name, tensor in TENSORS.items() if name != "model.norm.weight"}
    changed = norm.copy()
    changed[3] = np.nextafter(changed[3], 9)
    for path, tensors in zip(
        names,
        (
            rest | {"model.norm.weight": changed},
            rest | {"model.other.weight": norm},
            rest | {"model.norm.weight": norm[None]},
            rest | {"model.norm.weight": norm.view(np.float16)},
        ),
        strict=True,
    ):
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
    assert len({hash_weights(whole), *map(hash_weights, names)}) == 5


# The output head ---------------------------------------------------------------------------------------------------


def test_a_head_of_its_own_is_kept_though_the_config_ties_it(tmp_path, caplog):
    untied = dataclasses.replace(CONFIG, tie_embeddings=False)
    params = random_params(untied)
    path = write_directory(tmp_path, CONFIG, hf_tensors(untied, params))
    with caplog.at_level(logging.WARNING):
        model = load_model(str(path))
    assert not model.config.tie_embeddings
    assert_same(model.params, params)
    assert "lm_head.weight of its own" in caplog.text
    variables, tokens = {"params": model.params}, jnp.array([[3, 4, 5]])
    hidden = model.decoder.apply(variables, tokens).hidden
    logits = model.decoder.apply(variables, hidden, method=Decoder.logits)
    np.testing.assert_allclose(logits, hidden @ params["head"], rtol=1e-5, atol=1e-5)


def test_a_head_equal_to_the_embedding_table_stays_tied(tmp_path, caplog):
    path = write_directory(tmp_path, CONFIG, TENSORS | {"lm_head.weight": TENSORS["model.embed_tokens.weight"].copy()})
    with caplog.at_level(logging.WARNING):
        model = load_model(str(path))
    assert model.config.tie_embeddings
    assert_same(model.params, PARAMS)
    assert caplog.text == ""


def test_no_head_though_the_config_unties_it(tmp_path, caplog):
    path = write_directory(tmp_path, dataclasses.replace(CONFIG, tie_embeddings=False), TENSORS)
    with caplog.at_level(logging.WARNING):
        model = load_model(str(path))
    assert model.config.tie_embeddings
    assert_same(model.params, PARAMS)
    assert "the embedding table is the output head" in caplog.text


# Files that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "bitsandbytes"])
def test_a_quantised_directory_is_named_as_such(tmp_path, method):
    path = write_directory(tmp_path, CONFIG, TENSORS)
    settings = hf_settings(CONFIG, quantization_config={"quant_method": method})
    (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(LoadingError, match=rf"is quantised \({method}\)"):
        load_model(str(path))


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.int8, jnp.int32])
def test_a_tensor_that_is_not_of_floats_is_named(tmp_path, dtype):
    name = "model.layers.1.mlp.up_proj.weight"
    quantised = {name: jnp.asarray(tensor) for name, tensor in TENSORS.items()}
    quantised[name] = quantised[name].astype(dtype)
    path = write_directory(tmp_path, CONFIG, quantised, save=safetensors.flax.save_file)
    with pytest.raises(LoadingError, match=rf"'{name}' is of type .*quantised"):
        load_model(str(path))


def test_one_part_of_a_split_gguf_is_named_as_such(tmp_path, monkeypatch):
    original = gguf.GGUFWriter.add_block_count

    def add(writer, number):
        original(writer, number)
        writer.add_uint16("split.no", 1)
        writer.add_uint16("split.count", 3)

    monkeypatch.setattr(gguf.GGUFWriter, "add_block_count", add)
    path = write_gguf(tmp_path / "tiny-00002-of-00003.gguf", CONFIG, TENSORS)
    with pytest.raises(LoadingError, match="is part 2 of 3 of a split GGUF file"):
        load_model(str(path))


def test_gguf_without_a_pre_tokenizer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda *_: None)
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS)
    with pytest.raises(EdgesafeError, match=r"tiny\.gguf: .* has no tokenizer\.ggml\.pre.*old converter"):
        load_model(str(path))


def test_a_token_outside_the_embedding_table_is_refused(tmp_path):
    """The tokens are as many as the rows, but the largest id is beyond them."""
    path = write_directory(tmp_path, CONFIG, TENSORS)
    about = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    about["model"]["vocab"]["in"] = 400
    (path / "tokenizer.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(LoadingError, match="272 tokens, the embedding table 272 rows; the largest token id is 400"):
        load_model(str(path))


def test_template_variables_reach_the_template(tmp_path):
    path = write_directory(tmp_path, CONFIG, TENSORS)
    template = "{{ messages[0]['content'] }}{% if enable_thinking %}<think>{% endif %}"
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    model = load_model(str(path), template_variables={"enable_thinking": True})
    assert model.tokenizer.render_chat([{"role": "user", "content": "x"}]) == "x<think>"
    assert load_model(str(path)).tokenizer.render_chat([{"role": "user", "content": "x"}]) == "x"


# The converted copy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["zeros", "one bit"])
def test_bytes_of_the_converted_copy_that_changed_are_noticed(tmp_path, cache, caplog, damage):  # noqa: F811
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS)
    load_model(str(path))
    [weights] = cache.glob("converted/*/weights.safetensors")
    contents = bytearray(weights.read_bytes())
    if damage == "zeros":
        contents[-3000:-2000] = bytes(1000)
    else:
        contents[-3000] ^= 1
    weights.write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        assert_same(load_model(str(path)).params, PARAMS)
    assert "its cached copy is damaged (other bytes than were written)" in caplog.text
    caplog.clear()
    assert_same(load_model(str(path)).params, PARAMS)
    assert caplog.text == ""


def test_the_checksum_is_of_every_byte(tmp_path):
    path = tmp_path / "bytes"
    contents = np.random.default_rng(0).integers(0, 256, 3 * (1 << 20) + 5, dtype=np.uint8)
    seen = set()
    for place in (0, 1 << 20, contents.size - 1):
        changed = contents.copy()
        changed[place] ^= 128
        changed.tofile(path)
        seen.add(converted.checksum(path))
    contents.tofile(path)
    assert len({converted.checksum(path), *seen}) == 4


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "file"))
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS)
    with caplog.at_level(logging.WARNING):
        assert_same(load_model(str(path)).params, PARAMS)
    assert "are not kept" in caplog.text
    assert "EDGESAFE_CACHE" in caplog.text


def test_the_reader_of_a_directory_wants_every_tensor(sharded):
    tensors = with_changes(TENSORS, model__norm__weight=None)
    write_shards(sharded, tensors)
    with pytest.raises(LoadingError, match=r"1 tensors are missing, the first is 'model\.norm\.weight'"):
        load_model(str(sharded))
