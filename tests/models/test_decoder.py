"""The decoder against the same transformer written in NumPy, float64, one sequence at a time."""

import dataclasses
import doctest
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models import decoder as decoder_lib
from edgesafe_jax.models.attention import causal_mask
from edgesafe_jax.models.decoder import FLOAT32, Cache, Decoder, KeyValues, remainder, truncate
from edgesafe_jax.models.decoder_config import DecoderConfig, flops_per_token, num_params
from edgesafe_jax.models.decoding import as_pieces
from edgesafe_jax.models.families.rope import read_rope
from edgesafe_jax.models.matmul import FEW_ROWS, matmul, pack_bfloat16, unpack_bfloat16
from edgesafe_jax.models.rope import rope_frequencies
from edgesafe_jax.typing import Adapter
from tests.tiny import random_params

CONFIG = DecoderConfig(
    vocab_size=31, num_layers=3, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=6, rope_base=500.0
)
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def stretched(config: DecoderConfig, **changes) -> DecoderConfig:
    """The config with RoPE scaled as Llama 3 does."""
    rope = read_rope(
        SCALING | changes, base=config.rope_base, size=config.head_dim, longest=config.max_context, context=None
    )
    return dataclasses.replace(config, **rope)


SLIDING = dataclasses.replace(
    CONFIG,
    window=4,
    sliding_layers=(True, False, True),
    rotary_layers=(True, False, True),
    local_rope_base=50.0,
    rotary_dim=4,
)
VARIANTS = {
    "tied": CONFIG,
    "untied_with_biases": dataclasses.replace(CONFIG, tie_embeddings=False, qkv_bias=True, num_kv_heads=4),
    "one_kv_head_scaled_rope": stretched(dataclasses.replace(CONFIG, num_kv_heads=1)),
    "sliding": SLIDING,
}
TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (3, 9)).astype(np.int32)


@functools.cache
def params_of(config: DecoderConfig):
    return random_params(config)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def run(config, params, *, dtype=FLOAT32, **inputs):
    return Decoder(config, dtype).apply({"params": params}, **inputs)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def logits_of(config, params, hidden, *, dtype=FLOAT32):
    return Decoder(config, dtype).apply({"params": params}, hidden, method=Decoder.logits)


def reference_frequencies(config: DecoderConfig, layer: int) -> np.ndarray:
    kind, size = config.layer_kinds[layer], config.rotary_size
    base = config.local_rope_base if kind.slides and config.local_rope_base else config.rope_base
    frequencies = []
    for i in range(size // 2):
        frequency = base ** (-2 * i / size) if kind.rotates else 0.0
        if config.rope_divisors:
            factor, low, high, context = (SCALING[name] for name in list(SCALING)[1:])
            wavelength = 2 * math.pi / frequency
            if wavelength > context / low:
                frequency /= factor
            elif wavelength >= context / high:
                smooth = (context / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        frequencies.append(frequency)
    return np.array(frequencies)


def reference(config, params, embeddings, *, positions=None, mask=None):
    """One sequence `[T, D]`; returns the normed hidden states `[T, D]` and the residual stream after each layer."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(embeddings, np.float64)
    length = len(x)
    positions = np.arange(length) if positions is None else np.asarray(positions)
    mask = np.tril(np.ones((length, length), bool)) if mask is None else np.asarray(mask)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * scale

    def turn(x, layer):  # [T, E]: the two halves of what is rotated are real and imaginary parts
        size, frequencies = config.rotary_size, reference_frequencies(config, layer)
        z = (x[:, : size // 2] + 1j * x[:, size // 2 : size]) * np.exp(1j * positions[:, None] * frequencies)
        return np.concatenate([z.real, z.imag, x[:, size:]], axis=-1)

    layers = []
    for i in range(config.num_layers):
        seen = mask
        if config.layer_kinds[i].slides:
            seen = mask & (positions[:, None] - positions[None] < config.window)
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        attention, mlp = layer["attention"], layer["mlp"]
        y = norm(x, layer["attention_norm"]["scale"])
        q, k, v = (y @ attention[name] + attention.get(f"{name}_bias", 0.0) for name in ("query", "key", "value"))
        heads = []
        size = config.head_dim
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            key = turn(k[:, shared * size : (shared + 1) * size], i)
            scores = turn(q[:, head * size : (head + 1) * size], i) @ key.T / math.sqrt(size)
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            heads.append(weights @ v[:, shared * size : (shared + 1) * size])
        x = x + np.concatenate(heads, axis=-1) @ attention["out"]
        y = norm(x, layer["mlp_norm"]["scale"])
        gate = y @ mlp["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ mlp["up"])) @ mlp["down"]
        layers.append(x)
    return norm(x, params["final_norm"]["scale"]), np.array(layers)


def embeddings_of(params, tokens):
    return np.asarray(params["embedding"], np.float64)[np.asarray(tokens)]


def soft_prompt(num_virtual=4, dim=CONFIG.embed_dim) -> SoftPrompt:
    return SoftPrompt(jax.random.normal(jax.random.key(3), (num_virtual, dim)))


def close(actual, expected, atol=3e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_equals_numpy(name):
    config = VARIANTS[name]
    params = params_of(config)
    output = run(config, params, tokens=TOKENS)
    logits = logits_of(config, params, output.hidden)
    head = params["embedding"].T if config.tie_embeddings else params["head"]
    for row in range(len(TOKENS)):
        hidden, layers = reference(config, params, embeddings_of(params, TOKENS[row]))
        close(output.hidden[row], hidden)
        close(output.layer_hidden[:, row], layers)
        close(logits[row], hidden @ np.asarray(head, np.float64), atol=1e-4)


@pytest.mark.parametrize(("config", "last"), [(CONFIG, 1), (CONFIG, 2), (SLIDING, 1)], ids=["one", "two", "sliding"])
def test_cached_equals_uncached(config, last):
    """Past blocks: one shared by all rows, one per row with holes in it; then one new position or several."""
    params = params_of(CONFIG)
    rows = TOKENS.copy()
    rows[:, :3] = rows[0, :3]  # the shared beginning
    whole = run(config, params, tokens=rows)
    shared = run(config, params, tokens=rows[:1, :3]).key_values
    shared = shared.replace(where=None)
    middle = rows[:, 3:-last]
    # A hole in front of, inside, and behind the middle block.
    where = np.ones((3, middle.shape[1] + 1), bool)
    padded = np.full(where.shape, 7, np.int32)
    for row, hole in enumerate((0, 2, middle.shape[1])):
        where[row, hole] = False
        padded[row, where[row]] = middle[row]
    block = run(config, params, tokens=padded, where=where, past=(shared,))
    for row in range(3):
        close(block.hidden[row][where[row]], whole.hidden[row, 3:-last])
    end = run(config, params, tokens=rows[:, -last:], past=(shared, block.key_values))
    close(end.hidden, whole.hidden[:, -last:])
    close(end.layer_hidden, whole.layer_hidden[:, :, -last:])
    # The middle block in a cache of pieces, of which the last is never read.
    length = where.shape[1]
    exists = np.pad(where, ((0, 0), (0, -length % 4 + 4)))
    keys, values = (
        jnp.pad(as_pieces(each, 4), [(0, 0), (0, 1)] + [(0, 0)] * 4, constant_values=jnp.nan)
        for each in (block.key_values.keys, block.key_values.values)
    )
    cache = Cache(keys, values, exists=jnp.asarray(exists), filled=jnp.int32(length))
    close(run(config, params, tokens=rows[:, -last:], past=(shared, cache)).hidden, whole.hidden[:, -last:])


def test_padding_anywhere_and_other_rows_change_nothing():
    params = params_of(CONFIG)
    row = TOKENS[0, :5]
    places = [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [0, 2, 3, 6, 8]]
    tokens = np.full((4, 9), 11, np.int32)
    where = np.zeros((4, 9), bool)
    for index, place in enumerate(places):
        tokens[index, place], where[index, place] = row, True
    tokens[3], where[3] = TOKENS[2], True
    output = run(CONFIG, params, tokens=tokens, where=where)
    hidden, _ = reference(CONFIG, params, embeddings_of(params, row))
    for index, place in enumerate(places):
        close(output.hidden[index, place], hidden)
    close(output.hidden[3], reference(CONFIG, params, embeddings_of(params, TOKENS[2]))[0])


def test_a_row_without_any_position_stays_finite():
    params = params_of(CONFIG)

    def loss(prompt):
        where = jnp.zeros((2, 4), bool).at[1].set(True)
        output = Decoder(CONFIG).apply({"params": params}, jnp.asarray(TOKENS[:2, :4]), where=where, adapter=prompt)
        return jnp.sum(jnp.square(output.hidden)), output.hidden

    gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(soft_prompt())
    assert np.all(np.isfinite(hidden))
    assert np.all(np.isfinite(gradient.embeddings))


def test_adapter_equals_its_vectors_in_front_of_the_sequence():
    params, prompt = params_of(CONFIG), soft_prompt()
    assert isinstance(prompt, Adapter)
    output = run(CONFIG, params, tokens=TOKENS, adapter=prompt)
    assert output.hidden.shape == (3, 9, CONFIG.embed_dim)
    assert output.key_values.keys.shape[3] == prompt.num_virtual + 9
    for row in range(3):
        whole = np.concatenate([prompt.embeddings, embeddings_of(params, TOKENS[row])])
        hidden, layers = reference(CONFIG, params, whole)
        close(output.hidden[row], hidden[4:])
        close(output.layer_hidden[:, row], layers[:, 4:])


def test_adapter_as_a_shared_block_gives_the_same_values_and_gradients():
    params, prompt = params_of(CONFIG), soft_prompt()
    decoder, variables = Decoder(CONFIG), {"params": params}
    where = np.ones((3, 7), bool)
    where[1, 4:] = False
    weight = jax.random.normal(jax.random.key(4), (3, 7, CONFIG.embed_dim)) * where[..., None].astype(np.float32)
    head, tail = jnp.asarray(TOKENS[0, :2]), jnp.asarray(TOKENS[:, 2:])

    def one_pass(prompt):
        tokens = jnp.concatenate([jnp.broadcast_to(head[None], (3, 2)), tail], axis=1)
        exists = jnp.concatenate([jnp.ones((3, 2), bool), jnp.asarray(where)], axis=1)
        hidden = decoder.apply(variables, tokens, where=exists, adapter=prompt).hidden[:, 2:]
        return jnp.sum(hidden * weight), hidden

    def shared_block(prompt):
        block = decoder.apply(variables, head[None], adapter=prompt).key_values
        hidden = decoder.apply(variables, tail, where=jnp.asarray(where), past=(block,)).hidden
        return jnp.sum(hidden * weight), hidden

    expected, expected_hidden = jax.jit(jax.grad(one_pass, has_aux=True))(prompt)
    actual, hidden = jax.jit(jax.grad(shared_block, has_aux=True))(prompt)
    close(hidden[where], expected_hidden[where])
    close(actual.embeddings, expected.embeddings, atol=1e-4)
    assert np.all(np.linalg.norm(actual.embeddings, axis=1) > 1e-3)


def test_adapter_behind_a_past_block_sees_it():
    params, prompt = params_of(CONFIG), soft_prompt()
    past = run(CONFIG, params, tokens=TOKENS[:, :3]).key_values
    output = run(CONFIG, params, tokens=TOKENS[:, 3:], adapter=prompt, past=(past,))
    for row in range(3):
        before, after = (embeddings_of(params, part) for part in np.split(TOKENS[row], [3]))
        hidden, _ = reference(CONFIG, params, np.concatenate([before, prompt.embeddings, after]))
        close(output.hidden[row], hidden[7:])


def test_embeddings_equal_tokens():
    params = params_of(CONFIG)
    embeddings = jnp.asarray(embeddings_of(params, TOKENS), jnp.float32)
    close(run(CONFIG, params, embeddings=embeddings).hidden, run(CONFIG, params, tokens=TOKENS).hidden, atol=1e-6)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_mask_and_positions_let_two_continuations_share_a_row(with_adapter):
    params = params_of(CONFIG)
    prompt = soft_prompt() if with_adapter else None
    start, first, second = np.split(TOKENS[0], [4, 7])
    segment = np.repeat([0, 1, 2], [4, 3, 2])
    visible = (segment[:, None] == segment[None]) | (segment[None] == 0)
    mask = np.asarray(causal_mask(jnp.ones((1, 9), bool))) & visible[None]
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 4, 5]], np.int32)
    inputs = {"mask": mask, "positions": positions, "adapter": prompt}
    output = run(CONFIG, params, tokens=np.stack([TOKENS[0]] * 2), **inputs)
    virtual = np.zeros((0, CONFIG.embed_dim)) if prompt is None else np.asarray(prompt.embeddings)
    for outcome, at in ((first, slice(4, 7)), (second, slice(7, 9))):
        embeddings = np.concatenate([virtual, embeddings_of(params, np.concatenate([start, outcome]))])
        hidden, _ = reference(CONFIG, params, embeddings)
        close(output.hidden[0, at], hidden[len(virtual) + 4 :])
        close(output.hidden[1], output.hidden[0], atol=1e-6)


def test_positions_are_what_rotates():
    """Attention depends on differences of positions alone, and on those it does depend."""
    params = params_of(CONFIG)
    plain = run(CONFIG, params, tokens=TOKENS).hidden
    positions = np.arange(9, dtype=np.int32)[None]
    close(run(CONFIG, params, tokens=TOKENS, positions=positions + 100).hidden, plain, atol=1e-3)
    stretched = run(CONFIG, params, tokens=TOKENS, positions=positions * 2)
    assert np.abs(np.asarray(stretched.hidden) - plain).max() > 0.1
    expected, _ = reference(CONFIG, params, embeddings_of(params, TOKENS[1]), positions=2 * np.arange(9))
    close(stretched.hidden[1], expected)


def test_truncate_keeps_the_first_layers():
    params = params_of(SLIDING)
    config, shorter = truncate(SLIDING, params, 2)
    whole, output = run(SLIDING, params, tokens=TOKENS), run(config, shorter, tokens=TOKENS)
    assert output.layer_hidden.shape[0] == config.num_layers == 2
    close(output.layer_hidden, whole.layer_hidden[:2], atol=1e-6)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"num_layers={wrong}: expected 1 to 3"):
            truncate(CONFIG, params, wrong)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(SLIDING, embedding_scale=3.0),
        dataclasses.replace(CONFIG, learned_positions=True, rotary_dim=0, norm="layer", gated=False, max_context=20),
    ],
    ids=["sliding", "learned positions"],
)
def test_remainder_goes_on_where_truncate_ends(config):
    params = params_of(config)
    below = run(*truncate(config, params, 2), tokens=TOKENS)
    upper, kept = remainder(config, params, 2)
    above = run(upper, kept, embeddings=below.layer_hidden[-1])
    whole = run(config, params, tokens=TOKENS)
    close(above.hidden, whole.hidden, atol=1e-5)
    close(above.key_values.keys, whole.key_values.keys[2:], atol=1e-5)
    same, _ = remainder(config, params, 0)
    assert same == config
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"num_layers={wrong}: expected 0 to 2"):
            remainder(CONFIG, params, wrong)


def test_bfloat16_activations_stay_near_and_the_logits_are_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params_of(CONFIG))
    dtype = jnp.dtype(jnp.bfloat16)
    prompt = soft_prompt()
    past = run(CONFIG, params, dtype=dtype, tokens=TOKENS[:, :8], adapter=prompt).key_values
    output = run(CONFIG, params, dtype=dtype, tokens=TOKENS[:, 8:], past=(past,))
    assert output.hidden.dtype == dtype
    logits = logits_of(CONFIG, params, output.hidden, dtype=dtype)
    assert logits.dtype == jnp.float32
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = run(CONFIG, exact, tokens=TOKENS, adapter=prompt).hidden[:, 8:]
    assert np.abs(np.asarray(output.hidden, np.float32) - expected).max() < 0.1


def test_bits_of_bfloat16_compute_what_the_numbers_do():
    """Packed matrices: the same products and the same gradients by the activations, and none by the matrix."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 5, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(8, 6)), jnp.bfloat16)
    bits = pack_bfloat16(kernel)
    assert bits.dtype == jnp.uint16
    np.testing.assert_array_equal(unpack_bfloat16(bits), kernel)
    assert unpack_bfloat16(x) is x

    def value(x, kernel, dtype):
        return jnp.sum(jnp.sin(matmul(x, kernel, dtype=dtype)))

    for dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        found = [jax.jit(jax.value_and_grad(value), static_argnums=2)(x, k, dtype) for k in (kernel, bits)]
        np.testing.assert_array_equal(*(each[0] for each in found))
        np.testing.assert_array_equal(*(each[1] for each in found))
    gradient = jax.grad(value, argnums=(0, 1), allow_int=True)(x, bits, jnp.dtype(jnp.bfloat16))[1]
    assert gradient.dtype == jax.dtypes.float0


def test_a_single_row_is_multiplied_as_one_of_many():
    """It runs as two, whatever axes it has; the same numbers and gradients."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, 8)).astype(np.float32), jnp.asarray(rng.normal(size=(8, 6)), jnp.bfloat16)
    for transposed in (False, True):
        product = functools.partial(
            matmul, kernel=kernel.T if transposed else kernel, dtype=kernel.dtype, transposed=transposed
        )
        for axes in ((), (1,), (1, 1)):
            row = jnp.reshape(x[0], (*axes, 8))
            value, back = jax.vjp(product, row)
            assert value.shape == (*axes, 6)
            np.testing.assert_allclose(value.reshape(-1), product(jnp.asarray(x))[0], rtol=1e-6)
            assert back(value)[0].shape == row.shape


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_a_head_is_multiplied_alike_by_few_rows_and_by_many(rows):
    rng = np.random.default_rng(0)
    x, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, 1, 8), (6, 8)))
    value, back = jax.vjp(functools.partial(matmul, dtype=FLOAT32, transposed=True), x, head)
    close(value, np.asarray(x, np.float64) @ np.asarray(head).T)
    close(back(value)[0], np.asarray(value, np.float64) @ np.asarray(head))
    close(back(value)[1], np.einsum("btv,btd->vd", value, x))


def test_rope_scaling_has_three_regimes():
    """Long wavelengths are divided by the factor, short ones left alone, those between are interpolated."""
    config = dataclasses.replace(CONFIG, head_dim=16, rope_base=100.0)
    plain = np.asarray(rope_frequencies(config), np.float64)
    scaled = np.asarray(rope_frequencies(stretched(config)), np.float64)
    np.testing.assert_allclose(plain, [100.0 ** (-i / 8) for i in range(8)], rtol=1e-6)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 16 / 4, wavelength > 16
    between = ~short & ~long
    assert long.any()
    assert between.any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    share = (16 / wavelength[between] - 1) / 3
    np.testing.assert_allclose(scaled[between], plain[between] * (share + (1 - share) / 8), rtol=1e-6)
    # A wavelength below the short limit needs a lower context.
    low = stretched(config, original_max_position_embeddings=400)
    np.testing.assert_allclose(rope_frequencies(low)[:3], plain[:3], rtol=1e-6)


def test_flops_and_parameters_by_hand():
    """SmolLM2-135M, from its published sizes."""
    config = DecoderConfig(
        vocab_size=49152, num_layers=30, embed_dim=576, mlp_dim=1536, num_heads=9, num_kv_heads=3, head_dim=64
    )
    layer = 576 * 576 + 2 * 576 * 192 + 576 * 576 + 3 * 576 * 1536
    attention = 30 * 2 * (2 * 9 * 64 * 512)  # scores and mixing: a multiply and an add each
    assert flops_per_token(config, context=512) == 2 * (30 * layer + 49152 * 576) + attention
    assert flops_per_token(config, context=512, with_head=False) == 2 * 30 * layer + attention
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), "int32"))["params"]
    assert num_params(shapes) == 134_515_008
    # All that takes no part in matrix products: the norms (the tied table is the head).
    assert num_params(shapes) - 61 * 576 == flops_per_token(config, context=0) / 2


def test_errors():
    params = params_of(CONFIG)
    decoder, tokens = Decoder(CONFIG), jnp.asarray(TOKENS)
    with pytest.raises(ValueError, match="exactly one of tokens and embeddings"):
        decoder.apply({"params": params})
    with pytest.raises(ValueError, match="exactly one of tokens and embeddings"):
        decoder.apply({"params": params}, tokens, embeddings=jnp.zeros((3, 9, 16)))
    block = KeyValues(keys=jnp.zeros((3, 2, 2, 1, 6)), values=jnp.zeros((3, 2, 2, 1, 6)))
    with pytest.raises(ValueError, match=r"batch size 2; expected 1 \(shared\) or 3"):
        decoder.apply({"params": params}, tokens, past=(block,))
    for changes, message in (
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"norm": "batch"}, "norm='batch': expected one of 'rms', 'layer'"),
        ({"rotary_dim": 8}, "rotary_dim=8: expected an even number of at most 6"),
        ({"rope_divisors": (1.0,)}, "rope_divisors has 1 numbers: expected 3"),
        ({"window": 0}, "window=0: expected at least 1"),
        ({"sliding_layers": (True,)}, "sliding_layers has 1 flags: expected one for each of 3 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **changes)


def test_docstring_example():
    results = doctest.testmod(decoder_lib)
    assert results.attempted > 0
    assert results.failed == 0
