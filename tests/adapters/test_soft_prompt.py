"""Where a soft prompt starts from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt, init_soft_prompt
from edgesafe_jax.typing import Adapter

TEXT = "hello, the user"
KEY = jax.random.key(0)


def rows(model, ids):
    return np.asarray(model.params["embedding"])[np.asarray(ids)]


def test_it_is_an_adapter_and_a_pytree():
    prompt = SoftPrompt(jnp.arange(6.0).reshape(3, 2))
    assert isinstance(prompt, Adapter)
    assert prompt.num_virtual == 3
    np.testing.assert_array_equal(prompt.virtual_embeddings(), prompt.embeddings)
    [leaf] = jax.tree.leaves(prompt)
    assert leaf is prompt.embeddings
    gradient = jax.grad(lambda p: jnp.sum(jnp.square(p.virtual_embeddings())))(prompt)
    assert isinstance(gradient, SoftPrompt)
    np.testing.assert_array_equal(gradient.embeddings, 2 * prompt.embeddings)


def test_text_gives_the_embeddings_of_its_tokens(tiny_model):
    ids = tiny_model.tokenizer.encode(TEXT)
    prompt = init_soft_prompt(KEY, tiny_model, text=TEXT)
    assert prompt.num_virtual == len(ids)
    np.testing.assert_array_equal(prompt.embeddings, rows(tiny_model, ids))


@pytest.mark.parametrize("num_virtual", [1, 3, "len", "len + 1", "3 len"])
def test_text_is_cut_or_repeated_to_fit(tiny_model, num_virtual):
    ids = tiny_model.tokenizer.encode(TEXT)
    length = {"len": len(ids), "len + 1": len(ids) + 1, "3 len": 3 * len(ids)}.get(num_virtual, num_virtual)
    prompt = init_soft_prompt(KEY, tiny_model, text=TEXT, num_virtual=length)
    np.testing.assert_array_equal(prompt.embeddings, rows(tiny_model, [ids[i % len(ids)] for i in range(length)]))


def test_control_strings_in_the_text_are_only_characters(tiny_model):
    prompt = init_soft_prompt(KEY, tiny_model, text="<|im_end|>")
    assert prompt.num_virtual > 1


def test_vocabulary_gives_rows_of_the_table_that_are_tokens(tiny_model):
    """Also where the table has more rows than the tokenizer has tokens: those were never trained."""
    table = jnp.concatenate([tiny_model.params["embedding"], jnp.full((500, 16), jnp.nan)])
    padded = dataclasses.replace(tiny_model, params={**tiny_model.params, "embedding": table})
    prompt = init_soft_prompt(jax.random.key(0), padded, init="vocabulary", num_virtual=400)
    table = {row.tobytes() for row in np.asarray(tiny_model.params["embedding"])}
    drawn = [row.tobytes() for row in np.asarray(prompt.embeddings)]
    assert set(drawn) <= table
    assert len(set(drawn)) > 150  # uniformly: 272 (1 - exp(-400 / 272)) = 209 distinct rows
    again = init_soft_prompt(jax.random.key(0), padded, init="vocabulary", num_virtual=400)
    np.testing.assert_array_equal(again.embeddings, prompt.embeddings)
    other = init_soft_prompt(jax.random.key(1), padded, init="vocabulary", num_virtual=400)
    assert np.any(np.asarray(other.embeddings) != prompt.embeddings)


def test_random_has_the_moments_of_the_table_in_each_dimension(tiny_model):
    num = 16_000
    scale = jnp.linspace(0.1, 3.0, 16)[None]
    table = tiny_model.params["embedding"] * scale + jnp.linspace(-2.0, 2.0, 16)[None]
    config = dataclasses.replace(tiny_model.config, max_context=2 * num)
    model = dataclasses.replace(tiny_model, config=config, params={**tiny_model.params, "embedding": table})
    drawn = np.asarray(init_soft_prompt(jax.random.key(0), model, init="random", num_virtual=num).embeddings)
    mean, std = np.mean(table, axis=0), np.std(table, axis=0)
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - mean), 5 * std / np.sqrt(num))
    np.testing.assert_allclose(drawn.std(axis=0), std, rtol=5 / np.sqrt(2 * num))
    correlation = np.corrcoef(drawn.T)
    assert np.abs(correlation - np.eye(16)).max() < 0.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_all_are_float32(tiny_model, dtype):
    params = {**tiny_model.params, "embedding": tiny_model.params["embedding"].astype(dtype)}
    model = dataclasses.replace(tiny_model, params=params)
    key = jax.random.key(0)
    for prompt in (
        init_soft_prompt(KEY, model, text=TEXT, num_virtual=5),
        init_soft_prompt(key, model, init="vocabulary", num_virtual=5),
        init_soft_prompt(key, model, init="random", num_virtual=5),
    ):
        assert prompt.embeddings.shape == (5, 16)
        assert prompt.embeddings.dtype == jnp.float32


def test_bad_arguments(tiny_model):
    with pytest.raises(ValueError, match="instruction text is empty"):
        init_soft_prompt(KEY, tiny_model, text="")
    key = jax.random.key(0)
    for make in (
        lambda num: init_soft_prompt(KEY, tiny_model, text=TEXT, num_virtual=num),
        lambda num: init_soft_prompt(key, tiny_model, init="vocabulary", num_virtual=num),
        lambda num: init_soft_prompt(key, tiny_model, init="random", num_virtual=num),
    ):
        for wrong in (0, -1):
            with pytest.raises(ValueError, match=f"num_virtual={wrong}: expected at least 1"):
                make(wrong)
