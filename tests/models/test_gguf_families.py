"""GGUF files of each architecture, written as its converter does, against the directory that they were made from."""

import dataclasses

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy

from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.loading import load_model
from tests.models.networks import WINDOW, save_random_network
from tests.tiny import CHATML, byte_pair_vocabulary

pytestmark = pytest.mark.parity


def interleaved(matrix, heads):
    """Rows of queries or keys in the order of llama.cpp: each rotated pair beside one another."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def permuted(name, matrix, config):
    if name.endswith("q_proj.weight"):
        return interleaved(matrix, config.num_heads)
    return interleaved(matrix, config.num_kv_heads) if name.endswith("k_proj.weight") else matrix


CONVERTED = {
    "llama3_rope": permuted,
    "gemma3": lambda name, matrix, config: matrix + 1 if name.endswith("norm.weight") else matrix,
    "longrope": lambda name, matrix, config: matrix,
    "smollm3": permuted,
    "olmo2": lambda name, matrix, config: matrix,
    "gpt2": lambda name, matrix, config: matrix.T if matrix.ndim == 2 and ".h." in name else matrix,
}
ARCHITECTURES = {"llama3_rope": "llama", "longrope": "phi3"}


def write(path, name, tensors, config):
    """Writes the tensors under the names of gguf-py's own table, with the fields that converters write."""
    architecture: str = ARCHITECTURES.get(name, name)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64 if name == "longrope" else config.max_context)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    if name == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_base)
        writer.add_rope_dimension_count(config.rotary_size)
    if name == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_sliding_window(config.window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    if name == "llama3_rope":
        writer.add_tensor("rope_freqs.weight", np.array(config.rope_divisors, np.float32))
    if name == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.max_context)
        writer.add_rope_scaling_attn_factors(config.rope_magnitude)
        writer.add_tensor("rope_factors_short.weight", np.array(config.rope_divisors, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(config.rope_divisors, np.float32))
    tokens, merges = byte_pair_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
    kinds = {kind: arch for arch, kind in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_layers)
    for tensor_name, tensor in tensors.items():
        new = names.get_name(tensor_name, try_suffixes=(".weight", ".bias"))
        assert new is not None
        writer.add_tensor(new, np.ascontiguousarray(CONVERTED[name](tensor_name, tensor, config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_file_is_the_directory(tmp_path, name):
    save_random_network(tmp_path, name)
    model = load_model(str(tmp_path))
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    config, params, _ = read_gguf(write(tmp_path / "tiny.gguf", name, tensors, model.config))
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, model.params))
    expected = model.config
    if name == "gemma3":  # what these files do not say is the same in all Gemma 3 models
        assert (config.local_rope_base, config.window) == (1e4, WINDOW)
        assert config.sliding_layers == (True, True)
        expected = dataclasses.replace(
            expected, local_rope_base=1e4, sliding_layers=(True, True), attention_scale=config.head_dim**-0.5
        )
    if name == "smollm3":
        assert config.rotary_layers == (True, True)
        expected = dataclasses.replace(expected, rotary_layers=(True, True))
    for field in dataclasses.fields(expected):
        found, wanted = getattr(config, field.name), getattr(expected, field.name)
        if isinstance(wanted, float) or field.name == "rope_divisors":
            assert found == pytest.approx(wanted, rel=1e-6)
        else:
            assert found == wanted, field.name
