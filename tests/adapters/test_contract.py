"""What every kind of adapter does, and every composition; a further kind is tested by a line in `cases.py`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import ADAPTERS, AdapterError, Composition, Gate, load_adapter, save_adapter
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import encode_prompts, generate
from edgesafe_jax.models.placements import head_of
from edgesafe_jax.models.scoring import answer_log_probs, first_token_margins, kl_from_base
from edgesafe_jax.typing import Adapter
from tests.adapters.cases import CASES, OPTIONS, make, moved
from tests.tiny import make_tiny_model

PROMPTS = ["hello the user in a", "w"]
ANSWERS = ["in the", "us"]


@pytest.fixture(scope="module")
def model():
    return tiny_model_with_bos(num_layers=2)


def tiny_model_with_bos(**changes):
    """Its chats begin with the token that begins a text, as those of SmolLM2 do."""
    model = make_tiny_model(**changes)
    model.tokenizer.bos_token = "<|im_start|>"
    return model


LENGTH = 80
"""Positions of a whole chat, padded: one program serves all of a kind."""


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder, params, adapter, tokens):
    hidden = decoder.apply({"params": params}, tokens, adapter=adapter).hidden
    return decoder.apply({"params": params}, hidden, method=Decoder.logits)


def full_logits(model, adapter, prompt, answer):
    """Logits behind each token of a chat, read as a whole without any cache, at the answer: `[len(answer) + 1, V]`."""
    [adapter] = [each for rows, each in adapter.routes(model, [prompt]) or [([0], adapter)] if len(rows)]
    [row] = encode_prompts(model, [prompt], max_tokens=1, adapter=adapter)
    whole = [*head_of(model, adapter).tolist(), *row, *answer]
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(whole)] = whole
    logits = _logits(model.decoder, model.params, adapter, tokens)
    return np.asarray(logits)[0, len(whole) - len(answer) - 1 : len(whole)]


def test_every_kind_has_its_line():
    assert set(OPTIONS) == set(ADAPTERS)


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_pytree_of_float32_that_says_where_it_acts(model, case):
    adapter = make(case, model)
    assert isinstance(adapter, Adapter)
    assert isinstance(adapter, Composition) == ("+" in case)
    assert adapter.slots()
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_equal(make(case, model), adapter)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_number(model, case):
    adapter = moved(make(case, model))
    rows = encode_prompts(model, PROMPTS, max_tokens=1, adapter=adapter)
    tokens = jnp.array([[*head_of(model, adapter).tolist(), *rows[0]]])

    def loss(adapter):
        return jnp.sum(jnp.sin(_logits(model.decoder, model.params, adapter, tokens)))

    gradient = jax.jit(jax.grad(loss))(adapter)
    parts = gradient.parts if isinstance(gradient, Composition) else (gradient,)
    for leaf in jax.tree.leaves([part for part in parts if not isinstance(part, Gate)]):  # which is fitted
        assert np.all(np.isfinite(leaf))
        assert np.mean(np.asarray(leaf) != 0) > 0.99


def check_generation(model, adapter):
    """Greedy answers with cached keys and values are those of the uncached forward pass."""
    found = generate(model, PROMPTS, max_tokens=5, adapter=adapter)
    for prompt, tokens, end in zip(PROMPTS, found.tokens, found.ends, strict=True):
        best = np.argmax(full_logits(model, adapter, prompt, tokens), axis=-1)
        assert best[: len(tokens)].tolist() == tokens
        assert end is None or best[len(tokens)] == end
    return found.tokens


@pytest.mark.parametrize("case", CASES)
def test_cached_passes_are_the_uncached_forward_pass(model, case):
    """In generation, likelihoods and margins."""
    adapter = moved(make(case, model))
    assert check_generation(model, adapter) != generate(model, PROMPTS, max_tokens=5).tokens
    found, _ = answer_log_probs(model, PROMPTS, ANSWERS, adapter=adapter)
    margins = first_token_margins(model, PROMPTS, 7, adapter=adapter)
    for prompt, answer, value, margin in zip(PROMPTS, ANSWERS, found, margins, strict=True):
        [ids] = model.tokenizer.encode_answers([answer])
        logits = full_logits(model, adapter, prompt, ids)
        log_probs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        np.testing.assert_allclose(value, log_probs[np.arange(len(ids)), ids].sum(), rtol=1e-4)
        np.testing.assert_allclose(margin, logits[0, 7] - np.max(np.delete(logits[0], 7)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_it_survives_storage(model, tmp_path, case):
    adapter = moved(make(case, model))
    path = tmp_path / "a.safetensors"
    save_adapter(path, adapter, model)
    found = load_adapter(path, model, kind=CASES[case][0])
    assert jax.tree.structure(found) == jax.tree.structure(adapter)
    chex.assert_trees_all_equal(found, adapter)
    with pytest.raises(AdapterError, match="expected a 'none'"):
        load_adapter(path, model, kind="none")


@pytest.mark.parametrize("case", ["lora", "steering"])
def test_kinds_that_start_at_zero_start_at_the_base_model(model, case):
    answers = generate(model, PROMPTS, max_tokens=4).tokens
    np.testing.assert_allclose(kl_from_base(model, PROMPTS, answers, adapter=make(case, model)), 0, atol=1e-6)


def test_all_kinds_at_once_in_a_decoder_of_another_family():
    """With all that Qwen, Gemma and Granite change."""
    model = tiny_model_with_bos(
        num_layers=2,
        qkv_bias=True,
        qk_norm="head",
        post_norms=True,
        tie_embeddings=False,
        attention_softcap=5.0,
        embedding_scale=4.0,
        residual_scale=0.5,
    )
    check_generation(model, moved(make(list(CASES)[-1], model)))
