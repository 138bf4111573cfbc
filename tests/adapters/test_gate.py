"""A gate between the base model and an adapter: its fit, and which prompts it lets through."""

import dataclasses
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import Examples, budget, compose, fit_adapter, init_gate, options_of
from edgesafe_jax.adapters.states import prompt_states
from edgesafe_jax.models.decoder_config import flops_per_token
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.scoring import answer_log_probs, first_token_margins, kl_from_base
from tests.adapters.cases import make, moved

KEY = jax.random.key(0)
HARMFUL = [f"hello {letter} w" for letter in "abcdefghij"]
HARMLESS = [f"the user {letter}{letter}" for letter in "abcdefghijklmno"]
PROMPTS = [HARMFUL[0], HARMLESS[0], HARMFUL[1], HARMLESS[1], HARMLESS[0]]
OPEN = np.array([True, False, True, False, False])


@pytest.fixture(scope="module")
def examples():
    return Examples([*HARMFUL, *HARMLESS], np.array([0.9] * len(HARMFUL) + [0.05] * len(HARMLESS)))


@pytest.fixture(scope="module")
def gated(tiny_model, examples):
    """A gate fitted on prompts that a hidden state tells apart, before a soft prompt that changes everything."""
    adapter = moved(make("soft_prompt before_answer", tiny_model), size=1.0)
    return fit_adapter(compose(init_gate(KEY, tiny_model), adapter), tiny_model, examples)


def test_the_fit_is_the_minimum_of_the_penalised_logistic_loss(tiny_model, gated, examples):
    """At the minimum the gradient vanishes: mean residual zero, and mean residual times input that of the penalty."""
    gate = gated.parts[0]
    assert gate.layer == 2 * tiny_model.config.num_layers // 3
    rng = np.random.default_rng(0)
    kinds = np.arange(10), np.arange(10, 25)
    kept = np.concatenate([rng.permutation(kind)[: len(kind) // 5] for kind in kinds])
    rows = np.setdiff1d(np.arange(25), kept)
    states = prompt_states(tiny_model, examples.prompts, layers=(gate.layer,))[rows, 0].astype(np.float64)
    std = states.std(axis=0)
    inputs = (states - states.mean(axis=0)) / std
    odds = states @ np.asarray(gate.weights, np.float64) + float(gate.bias)
    residual = 1 / (1 + np.exp(-odds)) - examples.refusal_prob[rows]
    np.testing.assert_allclose(residual.mean(), 0, atol=2e-4)
    gradient = (residual[:, None] * inputs).mean(axis=0) + 2e-3 * np.asarray(gate.weights) * std
    np.testing.assert_allclose(gradient, 0, atol=5e-4)


def test_it_opens_on_what_the_teacher_refuses(tiny_model, gated, examples):
    opened = gated.parts[0].opens(tiny_model, examples.prompts)
    assert opened[: len(HARMFUL)].all()
    assert not opened[len(HARMFUL) :].any()
    assert gated.parts[0].opens(tiny_model, PROMPTS).tolist() == OPEN.tolist()
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    assert gated.parts[0].opens(tiny_model, chats).tolist() == OPEN.tolist()


def test_closed_prompts_run_the_untouched_model_in_a_mixed_batch(tiny_model, gated):
    """Bit for bit, sampled and greedy, with the random numbers of their own rows."""
    soft = gated.parts[1]
    prefills = ["us", "", "a", "in", ""]
    for options in ({}, {"temperature": 1.0, "key": jax.random.key(3), "prefills": prefills, "keep_hidden": True}):
        seen = unittest.mock.Mock()
        found = generate(tiny_model, PROMPTS, max_tokens=6, adapter=gated, on_batch=seen, **options)
        base = generate(tiny_model, PROMPTS, max_tokens=6, **options)
        adapted = generate(tiny_model, PROMPTS, max_tokens=6, adapter=soft, **options)
        for i, is_open in enumerate(OPEN):
            expected = adapted if is_open else base
            assert found.tokens[i] == expected.tokens[i]
            assert (found.texts[i], found.finished[i]) == (expected.texts[i], expected.finished[i])
        assert base.tokens != adapted.tokens
        assert seen.call_args == ((5, 5),)
        if options:
            np.testing.assert_allclose(found.hidden[~OPEN], base.hidden[~OPEN], atol=1e-5)


def test_likelihoods_margins_and_divergences_are_routed(tiny_model, gated):
    soft, answers = gated.parts[1], ["the", "us", "in", "a", "w"]
    for measure in (
        lambda adapter: answer_log_probs(tiny_model, PROMPTS, answers, adapter=adapter)[0],
        lambda adapter: first_token_margins(tiny_model, PROMPTS, 7, adapter=adapter),
    ):
        expected = np.where(OPEN, measure(soft), measure(None))
        np.testing.assert_allclose(measure(gated), expected, rtol=1e-5, atol=1e-5)
    tokens = tiny_model.tokenizer.encode_answers(answers)
    divergence = kl_from_base(tiny_model, PROMPTS, tokens, adapter=gated)
    np.testing.assert_array_equal(divergence[~OPEN], 0)
    np.testing.assert_allclose(
        divergence[OPEN], kl_from_base(tiny_model, PROMPTS, tokens, adapter=soft)[OPEN], rtol=1e-5
    )


def test_prompts_that_ask_the_same_are_set_aside_together(tiny_model, gated, examples):
    """Each prompt twice gives the fit of each once: no second copy is fitted on where the first is set aside."""
    number = np.arange(len(examples.prompts))
    twice = Examples(examples.prompts * 2, np.tile(examples.refusal_prob, 2), np.tile(number, 2))
    found = fit_adapter(init_gate(KEY, tiny_model), tiny_model, twice)
    alone = fit_adapter(init_gate(KEY, tiny_model), tiny_model, dataclasses.replace(twice, request=None))
    states = prompt_states(tiny_model, examples.prompts, layers=(found.layer,))[:, 0]
    expected = gated.parts[0].log_odds(states)
    np.testing.assert_allclose(found.log_odds(states), expected, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(found.threshold, gated.parts[0].threshold, rtol=0.02, atol=0.02)
    assert np.abs(np.asarray(alone.log_odds(states) - expected)).max() > 0.1


def test_a_hidden_layer_is_fitted_too(tiny_model, examples):
    gate = fit_adapter(init_gate(KEY, tiny_model, width=4, layer=0), tiny_model, examples)
    opened = gate.opens(tiny_model, examples.prompts)
    assert np.mean(opened == (examples.refusal_prob > 0.5)) > 0.9
    states = prompt_states(tiny_model, PROMPTS, layers=(0,))[:, 0]
    expected = np.tanh(states @ np.asarray(gate.inner) + np.asarray(gate.inner_bias)) @ np.asarray(gate.weights)
    np.testing.assert_allclose(gate.log_odds(jnp.asarray(states)), expected + float(gate.bias), rtol=1e-4, atol=1e-5)


def test_until_it_is_fitted_it_is_open(tiny_model):
    assert init_gate(KEY, tiny_model).opens(tiny_model, PROMPTS).all()


def test_it_costs_the_prompt_once_more_up_to_its_layer(tiny_model):
    whole = flops_per_token(tiny_model.config, context=10, with_head=False)
    found = budget(init_gate(KEY, tiny_model, layer=0), tiny_model, prompt_tokens=10)
    assert (found.parameters, found.flops_per_token) == (16 + 2, 0)
    np.testing.assert_allclose(found.flops_per_prompt, 10 * whole / 3)


def test_bad_input(tiny_model):
    with pytest.raises(ValueError, match="layer 3 does not exist"):
        init_gate(KEY, tiny_model, layer=3)
    with pytest.raises(ValueError, match=r"changes nothing alone: .* such as gate\+lora"):
        options_of("gate", {}, tiny_model)
    gate = init_gate(KEY, tiny_model)
    with pytest.raises(ValueError, match="it has 1 and 2"):
        fit_adapter(gate, tiny_model, Examples(PROMPTS[:3], np.array([0.9, 0.1, 0.1])))
