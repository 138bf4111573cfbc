"""Prefix tuning against its formula, and where a prefix starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import Prefix, init_prefix, init_soft_prompt
from edgesafe_jax.models.generation import encode_shared_once
from edgesafe_jax.models.scoring import answer_log_probs
from tests.tiny import make_tiny_model

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    """One layer: its attention is all that a prefix changes."""
    return make_tiny_model(num_layers=1)


def rotated(x, position, base):
    """Rotary embedding of `[H, E]` at a position, written with complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * position * base ** -(np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag], axis=-1)


def normed(x, scale, eps):
    return x / np.sqrt(np.mean(x**2) + eps) * scale


def test_it_is_attention_over_the_prefix_and_the_keys(model):
    """The formula of prefix tuning in numpy: softmax(q [K_P; K]) [V_P; V], the sequence at positions from P on."""
    c = model.config
    rng = np.random.default_rng(0)
    keys, values = (rng.normal(size=(1, c.num_kv_heads, 3, c.head_dim)) for _ in range(2))
    prefix = Prefix(jnp.asarray(keys, jnp.float32), jnp.asarray(values, jnp.float32))
    tokens = rng.integers(0, 250, 4)
    output = jax.jit(model.decoder.apply)(
        {"params": model.params}, jnp.asarray(tokens[None], jnp.int32), adapter=prefix
    )

    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    layer = jax.tree.map(lambda leaf: leaf[0], weights["layers"])
    x = weights["embedding"][tokens]
    inputs = [normed(row, layer["attention_norm"]["scale"], c.norm_eps) for row in x]
    heads = {
        name: [(row @ layer["attention"][name]).reshape(-1, c.head_dim) for row in inputs]
        for name in ("query", "key", "value")
    }
    expected = []
    for t in range(4):
        query = rotated(heads["query"][t], 3 + t, c.rope_base)
        mixed = []
        for h in range(c.num_heads):
            k = h // (c.num_heads // c.num_kv_heads)
            seen = [*keys[0, k], *(rotated(heads["key"][s], 3 + s, c.rope_base)[k] for s in range(t + 1))]
            scores = np.array([query[h] @ key for key in seen]) / np.sqrt(c.head_dim)
            probs = np.exp(scores - scores.max())
            mixed.append(probs / probs.sum() @ np.array([*values[0, k], *(heads["value"][s][k] for s in range(t + 1))]))
        row = x[t] + np.concatenate(mixed) @ layer["attention"]["out"]
        fed = normed(row, layer["mlp_norm"]["scale"], c.norm_eps)
        gate = fed @ layer["mlp"]["gate"]
        expected.append(row + (gate / (1 + np.exp(-gate)) * (fed @ layer["mlp"]["up"])) @ layer["mlp"]["down"])
    np.testing.assert_allclose(output.layer_hidden[0, 0], np.array(expected), rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(output.key_values.keys[:, 0, :, :3], prefix.keys)
    assert output.key_values.where.shape == (1, 7)


def test_from_a_text_it_is_that_text_in_front(tiny_model):
    """As the soft prompt from the same text is."""
    options = {"init": "text", "text": "hello the user", "num_virtual": 7}
    prompts, answers = ["w in", "us"], ["the", "hello a"]
    scores = [
        answer_log_probs(tiny_model, prompts, answers, adapter=make(KEY, tiny_model, **options))[0]
        for make in (init_prefix, init_soft_prompt)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


def test_a_random_prefix_has_the_moments_of_keys_and_values(tiny_model):
    config = dataclasses.replace(tiny_model.config, max_context=8000)
    drawn = init_prefix(KEY, dataclasses.replace(tiny_model, config=config), init="random", num_virtual=4000)
    ids = jnp.arange(tiny_model.tokenizer.vocab_size, dtype=jnp.int32)
    block = encode_shared_once(tiny_model.decoder, tiny_model.params, None, ids)
    for ours, theirs in ((drawn.keys, block.keys[:, 0]), (drawn.values, block.values[:, 0])):
        ratio = np.std(ours, axis=2) / np.std(theirs, axis=2)
        np.testing.assert_array_less(np.abs(np.log(ratio)), np.log(2))  # of 64 tokens
    other = init_prefix(KEY, tiny_model, init="vocabulary", num_virtual=1)
    assert other.keys.shape == (3, 2, 1, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "texts"}, "Did you mean 'text'"),
        ({"text": ""}, "instruction text is empty"),
        ({"init": "random"}, "num_virtual=None: expected at least 1"),
        ({"init": "vocabulary", "num_virtual": 0}, "num_virtual=0: expected at least 1"),
    ],
)
def test_bad_options(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        init_prefix(KEY, tiny_model, **options)
