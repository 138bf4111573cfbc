"""Steering vectors and compositions in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import (
    AdapterError,
    Examples,
    Steering,
    compose,
    contrastive_steering,
    fit_adapter,
    init_lora,
    init_steering,
    make_adapter,
)
from edgesafe_jax.adapters.states import prompt_states
from edgesafe_jax.models.generation import encode_prompts
from tests.adapters.cases import make

KEY = jax.random.key(0)
HARMFUL, HARMLESS = ["hello", "the user"], ["w in", "a", "us us us"]


def test_a_vector_at_the_last_layer_is_added_to_what_the_final_norm_sees(tiny_model):
    tokens = jnp.array([[5, 6, 7, 8]])
    vector = jnp.linspace(-1.0, 1.0, 16)
    steering = Steering(vector[None], (2,), 3)
    run = jax.jit(lambda adapter: tiny_model.decoder.apply({"params": tiny_model.params}, tokens, adapter=adapter))
    base, found = run(None), run(steering)
    np.testing.assert_allclose(found.layer_hidden[2], base.layer_hidden[2] + vector[None, None], atol=1e-5)
    np.testing.assert_allclose(found.layer_hidden[:2], base.layer_hidden[:2], atol=1e-5)


def test_prompt_states_are_those_of_the_whole_model_at_the_last_position(tiny_model):
    prompts = [*HARMFUL, *HARMLESS]
    found = prompt_states(tiny_model, prompts, layers=(1, 0), batch_size=2)
    read = jax.jit(tiny_model.decoder.apply)
    for prompt, states in zip(prompts, found, strict=True):
        [row] = encode_prompts(tiny_model, [prompt], max_tokens=1)
        whole = [*tiny_model.tokenizer.chat_parts.head, *row]
        tokens = jnp.array([whole + [0] * (64 - len(whole))])
        output = read({"params": tiny_model.params}, tokens)
        np.testing.assert_allclose(states, output.layer_hidden[:2, 0, len(whole) - 1], rtol=1e-4, atol=1e-4)


def test_the_contrastive_direction_is_the_difference_of_means(tiny_model):
    made = contrastive_steering(tiny_model, harmful=HARMFUL, harmless=HARMLESS, layers=(0, 2), contrast=0.5)
    first, second = (prompt_states(tiny_model, side, layers=(0, 2)) for side in (HARMFUL, HARMLESS))
    np.testing.assert_allclose(made.vectors, 0.5 * (first.mean(axis=0) - second.mean(axis=0)), rtol=1e-5, atol=1e-6)
    start = init_steering(KEY, tiny_model, layers=(2, 0), init="contrastive", contrast=0.5)
    assert not np.any(start.vectors)
    examples = Examples([*HARMFUL, *HARMLESS], np.array([0.9, 0.6, 0.5, 0.1, 0.0]))
    fitted = fit_adapter(compose(start, make("lora", tiny_model)), tiny_model, examples)
    np.testing.assert_allclose(fitted.parts[0].vectors, made.vectors, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(fitted.parts[0]) == jax.tree.structure(made)


def test_parts_of_a_composition_add_up(tiny_model):
    first, second = (Steering(jnp.full((1, 16), value), (layer,), 3) for value, layer in ((1.0, 0), (2.0, 2)))
    lora = init_lora(KEY, tiny_model.config, rank=2, targets=("attention/query",))
    other = init_lora(KEY, tiny_model.config, rank=3, targets=("attention/key", "mlp/up"), first_layer=1)
    whole = compose(first, compose(lora, second), other)
    np.testing.assert_array_equal(whole.steering()[:, 0], [1.0, 0.0, 2.0])
    factors = whole.low_rank()
    assert {module: set(leaves) for module, leaves in factors.items()} == {"attention": {"query", "key"}, "mlp": {"up"}}
    assert compose(lora) is lora


@pytest.mark.parametrize(
    ("kinds", "place"),
    [
        (("soft_prompt", "soft_prompt"), "virtual positions"),
        (("prefix", "lora", "prefix"), "prefix"),
        (("lora", "lora"), "attention/query, attention/value, mlp/down"),
        (("steering", "steering"), "output of layer 0, output of layer 1"),
    ],
)
def test_two_adapters_in_one_place_are_refused(tiny_model, kinds, place):
    with pytest.raises(AdapterError, match=f"use the same place of the decoder \\({place}\\)"):
        compose(*(make(kind, tiny_model) for kind in kinds))


def test_bad_input(tiny_model):
    for layers, message in (
        ((3,), "layer 3 does not exist, expected 0 to 2"),
        ((1, 1), "names a layer twice"),
        ((-1,), "layer -1 does not exist"),
        ("01", "layer '0' does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            make_adapter(KEY, "steering", tiny_model, layers=layers)
    with pytest.raises(AdapterError, match="no adapter"):
        compose()
    with pytest.raises(ValueError, match="harmless is empty"):
        contrastive_steering(tiny_model, harmful=HARMFUL, harmless=[])
    for kind, options, message in (
        ("lora+lora", {}, "names a kind twice"),
        ("lora+steerin", {}, "Did you mean 'steering'"),
        ("lora+steering", {"rank": 2}, "options of lora.steering='rank': expected one of lora, steering"),
        ("lora+steering", {"lora": {"layers": (1,)}}, "lora option='layers'"),
        ("steering", {"rank": 2}, "steering option='rank'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_adapter(KEY, kind, tiny_model, **options)
