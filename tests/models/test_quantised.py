"""Quantised matrices: the numbers of gguf-py, products and gradients of the float model, and memory."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.adapters.lora import init_lora, merge_params
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models import integer_products, quantised
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig, num_params
from edgesafe_jax.models.gguf_blocks import BLOCK_TYPES, read_matrix
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.loading import LoadingError, load_model
from edgesafe_jax.models.quantised import (
    QuantizedMatrix,
    dequantize,
    look_up,
    num_bytes,
    quantize_int8,
    quantized_matmul,
    stack,
)
from tests.models.test_loading import hf_tensors, write_gguf
from tests.tiny import byte_pair_vocabulary, random_params

Q = gguf.GGMLQuantizationType
FLOAT32 = jnp.dtype(jnp.float32)
CONFIG = DecoderConfig(
    vocab_size=len(byte_pair_vocabulary()[0]),
    num_layers=2,
    embed_dim=64,
    mlp_dim=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_context=64,
)


def random_blocks(kind, rows=6, columns=512):
    """The bytes of a matrix of random codes and moderate scales, as a tensor of a file."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (rows * columns // size, num_bytes), np.uint8)
    for start in {Q.Q6_K: (208,), Q.Q8_0: (0,), Q.Q4_0: (0,), Q.Q5_0: (0,)}.get(kind, (0, 2)):
        blocks[:, start : start + 2] = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    data = blocks.reshape(rows, -1)
    return gguf.ReaderTensor("m", kind, np.array([columns, rows]), rows * columns, data.nbytes, 0, data, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_numbers_are_those_of_gguf(kind):
    tensor = random_blocks(kind)
    matrix = read_matrix(tensor)
    assert matrix.shape == (6, 512)
    np.testing.assert_allclose(dequantize(matrix), gguf.quants.dequantize(tensor.data, kind), rtol=1e-6, atol=1e-6)
    assert matrix.bits == (4 if "Q4" in kind.name else 8)
    if kind in (Q.Q4_0, Q.Q4_1, Q.Q8_0):
        assert matrix.nbytes == tensor.data.nbytes


@pytest.mark.parametrize("largest", [1 << 22, 1024])
def test_products_and_gradients_are_those_of_the_floats(monkeypatch, largest):
    """Whole, or in blocks of rows."""
    monkeypatch.setattr(quantised, "LARGEST", largest)
    matrix = jax.tree.map(jnp.asarray, read_matrix(random_blocks(Q.Q4_1)))
    floats = dequantize(matrix)
    x = jax.random.normal(jax.random.key(0), (2, 3, 512))
    weight = jax.random.normal(jax.random.key(1), (2, 3, 6))

    def value(product):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(product(x)) * weight))(x)

    found, expected = value(lambda x: quantized_matmul(FLOAT32, x, matrix)), value(lambda x: x @ floats.T)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def ggml_product(tensor, x):
    """A product with one row of inputs as ggml's CPU kernels define it: integers within blocks, blocks added up."""
    size = gguf.GGML_QUANT_SIZES[tensor.tensor_type][0]
    total = np.zeros(len(tensor.data))
    for number, part in enumerate(x.reshape(-1, size)):
        largest = np.float32(np.abs(part).max())
        codes = np.rint(part * (np.float32(127) / largest if largest else np.float32(0))).astype(np.int64)
        scale = np.float64(largest / np.float32(127))
        stored = np.float64(np.float16(scale)) if size == 32 else scale
        if tensor.tensor_type == Q.Q4_1:
            blocks = tensor.data.reshape(len(total), -1, 20)[:, number]
            scales, lows = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float64).T
            weights = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.int64)
            total += scales * stored * (weights @ codes) + lows * np.float64(np.float16(scale * codes.sum()))
        else:
            weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            total += stored * (weights[:, number * size : (number + 1) * size] @ codes)
    return total


@pytest.mark.parametrize("kind", [Q.Q4_1, Q.Q8_0, Q.Q4_K, Q.Q6_K], ids=lambda kind: kind.name)
def test_products_with_rounded_inputs_are_those_of_ggml(kind):
    tensor = random_blocks(kind)
    x = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32) * np.array([[1], [1e-3], [100]], "f")
    x[0, :256] = 0
    matrix = read_matrix(tensor, round_inputs=True)
    found = np.asarray(quantized_matmul(jnp.dtype(jnp.bfloat16), jnp.asarray(x), matrix))
    for row, one in zip(found, x, strict=True):
        expected = ggml_product(tensor, one)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    plain = quantized_matmul(FLOAT32, jnp.asarray(x), read_matrix(tensor))
    assert 1e-4 < np.abs(found - plain).max() / np.abs(plain).max() < 0.02


def test_rounding_of_inputs_passes_gradients_straight_through():
    tensor, x = random_blocks(Q.Q4_1), jax.random.normal(jax.random.key(0), (2, 512))
    total = jax.grad(lambda x, matrix: jnp.sum(quantized_matmul(FLOAT32, x, matrix)))
    found, expected = (total(x, read_matrix(tensor, round_inputs=rounded)) for rounded in (True, False))
    np.testing.assert_array_equal(found, expected)


def test_layers_whose_inputs_are_rounded_in_different_blocks_cannot_be_one():
    matrices = [read_matrix(random_blocks(kind), round_inputs=True) for kind in (Q.Q4_K, Q.Q8_0)]
    with pytest.raises(ConfigError, match=r"in blocks of 32 and 256.*quantization='keep'"):
        stack(matrices)
    low, other = (read_matrix(random_blocks(kind), round_inputs=True) for kind in (Q.Q8_0, Q.Q5_1))
    x = jax.random.normal(jax.random.key(0), (2, 512))
    both = jax.tree.map(jnp.asarray, stack([low, other]))
    for layer, matrix in enumerate((low, other)):
        found = quantized_matmul(FLOAT32, x, both.rows(layer))
        np.testing.assert_allclose(found, quantized_matmul(FLOAT32, x, matrix), rtol=1e-5, atol=1e-4)


def test_rounding_to_8_bits():
    matrix = jax.random.normal(jax.random.key(0), (3, 40, 8)) * jnp.logspace(-3, 3, 8)[None, None]
    found = quantize_int8(matrix.at[:, :, 0].set(0))
    assert found.shape == (3, 8, 40)
    numbers = jnp.swapaxes(dequantize(found), -1, -2)
    np.testing.assert_array_equal(numbers[:, :, 0], 0)
    error = jnp.abs(numbers - matrix)[:, :, 1:]
    assert bool(jnp.all(error <= jnp.max(jnp.abs(matrix), axis=1, keepdims=True)[:, :, 1:] / 254 * 1.001))
    np.testing.assert_allclose(jnp.max(jnp.abs(found.codes), axis=-1)[:, 1:], 127)


@pytest.mark.parametrize("rows", [(1,), (2, 3), ()])
def test_few_rows_are_multiplied_in_integers(monkeypatch, rows):
    matrix = quantize_int8(jax.random.normal(jax.random.key(0), (40, 8)))
    x = jax.random.normal(jax.random.key(1), (*rows, 40)) * 100
    floats = x @ dequantize(matrix).T
    found = quantized_matmul(FLOAT32, x, matrix)
    # Digits of an input are off by at most 1 / 508 of a step of 1 / 127 of the largest one.
    largest, weights = np.max(np.abs(x), axis=-1, keepdims=True), np.sum(np.abs(dequantize(matrix)), axis=1)
    assert np.all(np.abs(found - floats) <= largest / (127 * 508) * weights + 1e-3)
    assert found.shape == (*rows, 8)
    np.testing.assert_array_equal(quantized_matmul(FLOAT32, jnp.zeros_like(x), matrix), 0)
    assert jnp.all(jnp.isnan(quantized_matmul(FLOAT32, x.at[..., 3].set(jnp.inf), matrix)))
    gradient = jax.grad(lambda x: jnp.sum(quantized_matmul(FLOAT32, x, matrix)))(x)
    np.testing.assert_allclose(gradient, np.broadcast_to(np.sum(dequantize(matrix), axis=0), x.shape), rtol=1e-4)
    monkeypatch.setattr(integer_products, "MOST_ROWS", 0)
    np.testing.assert_allclose(quantized_matmul(FLOAT32, x, matrix), floats, rtol=1e-4, atol=1e-3)


def test_rows_of_a_bfloat16_table_and_their_gradient():
    table = jax.random.normal(jax.random.key(0), (7, 3)).astype(jnp.bfloat16)
    ids = jnp.array([[1, 4, 1]])
    rows, back = jax.vjp(lambda table: look_up(table, ids), table)
    np.testing.assert_array_equal(rows, table[ids])
    expected = jax.vjp(lambda table: table[ids], table)[1](rows)[0]
    np.testing.assert_array_equal(back(rows)[0], expected)


def test_layers_of_several_types_become_one():
    matrices = [read_matrix(random_blocks(kind)) for kind in (Q.Q4_K, Q.Q6_K, Q.Q5_0)]
    stacked = stack(matrices)
    assert (stacked.bits, stacked.scales.shape) == (8, (3, 6, 32))
    for found, matrix in zip(np.asarray(dequantize(stacked)), matrices, strict=True):
        np.testing.assert_allclose(found, dequantize(matrix), rtol=1e-6, atol=1e-6)
    assert stack(matrices[:1] * 2).bits == 4


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A GGUF file whose matrices are of Q4_0 and whose embedding table is of Q8_0."""
    tensors = hf_tensors(CONFIG, random_params(CONFIG))
    original = gguf.GGUFWriter.add_tensor

    def add_tensor(writer, name, tensor, **kwargs):
        if tensor.ndim < 2:
            return original(writer, name, tensor, **kwargs)
        kind = Q.Q8_0 if "token" in name else Q.Q4_0
        return original(writer, name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add_tensor)
        return write_gguf(tmp_path_factory.mktemp("quantised") / "tiny.gguf", CONFIG, tensors)


def test_a_model_that_is_kept_is_the_float_model(file, tmp_path, monkeypatch):
    """Logits and the gradients of a soft prompt and of a LoRA; weights at most 0.30 of bfloat16's beside the table."""
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path))
    kept, floats = (load_model(str(file), quantization=name) for name in ("keep", None))
    assert kept.hash == floats.hash
    assert num_params(kept.params) == num_params(floats.params)
    matrices = [m for m in jax.tree.leaves(kept.params["layers"], is_leaf=is_kept) if is_kept(m)]
    assert len(matrices) == 7
    assert sum(m.nbytes for m in matrices) <= 0.30 * 2 * sum(int(np.prod(m.shape)) for m in matrices)
    assert num_bytes(kept.params) < 0.3 * num_bytes(floats.params)
    tokens = jnp.array([[3, 40, 7, 9], [5, 6, 100, 3]], jnp.int32)
    prompt = SoftPrompt(jax.random.normal(jax.random.key(0), (3, 64)))
    lora = init_lora(jax.random.key(1), CONFIG, rank=2)

    @jax.jit
    def run(params, prompt, lora):
        def value(prompt, lora):
            decoder, variables = Decoder(CONFIG), {"params": params}
            hidden = decoder.apply(variables, tokens, adapter=prompt, low_rank=lora.low_rank()).hidden
            logits = decoder.apply(variables, hidden, method=Decoder.logits)
            return jnp.sum(jnp.sin(logits)) / 100, logits

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(prompt, lora)

    (_, logits), gradients = run(kept.params, prompt, lora)
    (_, expected), expected_gradients = run(floats.params, prompt, lora)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    with pytest.raises(ConfigError, match="attention/query is quantised: a LoRA can be merged into floats only"):
        merge_params(kept.params, lora)


def is_kept(leaf):
    return isinstance(leaf, QuantizedMatrix)


def test_a_model_in_8_bits(file, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path))
    floats, low = (load_model(str(file), quantization=name) for name in (None, "int8"))
    assert low.hash != floats.hash
    tokens = jnp.array([[3, 40, 7, 9]], jnp.int32)
    run = jax.jit(lambda params: Decoder(CONFIG).apply({"params": params}, tokens).hidden)
    error = np.abs(run(low.params) - run(floats.params))
    assert 0 < np.median(error) < 0.05
    assert num_bytes(low.params) < 0.3 * num_bytes(floats.params)


def test_errors(tmp_path, file):
    with pytest.raises(ConfigError, match="quantization='int4': expected one of None, ggml, int8, keep"):
        load_model(str(file), quantization="int4")
    plain = write_gguf(tmp_path / "plain.gguf", CONFIG, hf_tensors(CONFIG, random_params(CONFIG)))
    with pytest.raises(LoadingError, match="has no quantised matrices to keep"):
        read_gguf(plain, keep=True)
    with pytest.raises(LoadingError, match=r"'m' is of type Q2_K, which cannot be kept: expected Q4_0, Q4_1"):
        read_matrix(random_blocks(Q.Q2_K))
