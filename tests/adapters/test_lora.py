import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import AdapterError, LoRA, init_lora, merge_lora, unmerge_lora
from edgesafe_jax.adapters.lora import TARGETS, merge_params
from edgesafe_jax.models.decoder import low_rank_of
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import with_precision
from edgesafe_jax.models.scoring import answer_log_probs, kl_from_base
from edgesafe_jax.typing import Adapter
from tests.tiny import make_tiny_model

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 250, (2, 9)), jnp.int32)


def random_lora(model, targets=TARGETS, rank=3):
    """A LoRA whose B is random too, so that it changes something."""
    start = init_lora(jax.random.key(0), model.config, rank=rank, alpha=2.0, targets=targets)
    rng = np.random.default_rng(1)
    return start.replace(
        up={name: jnp.asarray(rng.normal(size=b.shape) * 0.3, jnp.float32) for name, b in start.up.items()}
    )


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(decoder, params, lora):
    factors = None if lora is None else lora.low_rank()
    return decoder.apply({"params": params}, TOKENS, low_rank=factors).hidden


def test_it_starts_at_the_base_model(tiny_model):
    start = init_lora(jax.random.key(0), tiny_model.config, rank=2, targets=TARGETS)
    base = hidden_of(tiny_model.decoder, tiny_model.params, None)
    np.testing.assert_array_equal(hidden_of(tiny_model.decoder, tiny_model.params, start), base)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "tie_embeddings": False}])
def test_merged_equals_attached(changes):
    model = make_tiny_model(**changes)
    lora = random_lora(model)
    attached = hidden_of(model.decoder, model.params, lora)
    merged = hidden_of(model.decoder, merge_params(model.params, lora), None)
    np.testing.assert_allclose(attached, merged, atol=2e-5)
    assert float(jnp.max(jnp.abs(attached - hidden_of(model.decoder, model.params, None)))) > 1e-2


def test_merged_equals_attached_in_low_precision(tiny_model):
    low = with_precision(tiny_model, matmul_dtype=jnp.dtype(jnp.bfloat16))
    lora = random_lora(low)
    merged = merge_params(low.params, lora)
    assert jax.tree.map(lambda leaf: leaf.dtype, merged) == jax.tree.map(lambda leaf: leaf.dtype, low.params)
    attached, found = hidden_of(low.decoder, low.params, lora), hidden_of(low.decoder, merged, None)
    assert np.mean(np.abs(attached - found)) < 0.05 * np.mean(np.abs(attached))


def test_one_protocol_serves_generation_and_likelihoods(tiny_model):
    """A LoRA goes wherever a soft prompt does, and does there what it does in the weights."""
    lora = random_lora(tiny_model)
    assert isinstance(lora, Adapter)
    merged = merge_lora(tiny_model, lora)
    prompts, answers = ["hello", "the user in"], ["us", "in the"]
    attached = generate(tiny_model, prompts, max_tokens=5, adapter=lora)
    assert attached.tokens == generate(merged, prompts, max_tokens=5).tokens
    assert attached.tokens != generate(tiny_model, prompts, max_tokens=5).tokens
    found, _ = answer_log_probs(tiny_model, prompts, answers, adapter=lora)
    np.testing.assert_allclose(found, answer_log_probs(merged, prompts, answers)[0], rtol=1e-4)
    start = init_lora(jax.random.key(0), tiny_model.config, rank=2)
    np.testing.assert_allclose(kl_from_base(tiny_model, prompts, attached.tokens, adapter=start), 0, atol=1e-6)
    assert np.all(kl_from_base(tiny_model, prompts, attached.tokens, adapter=lora) > 1e-3)


def test_what_was_merged_is_unmerged_bit_for_bit(tiny_model):
    low = with_precision(tiny_model, matmul_dtype=jnp.dtype(jnp.bfloat16))
    lora = random_lora(low)
    once = merge_lora(low, lora)
    twice = merge_lora(once, lora)
    assert len({low.hash, once.hash, twice.hash}) == 3
    jax.tree.map(np.testing.assert_array_equal, unmerge_lora(twice).params, once.params)
    assert unmerge_lora(once) is low
    assert once.params["embedding"] is low.params["embedding"]
    with pytest.raises(AdapterError, match="Nothing was merged"):
        unmerge_lora(low)


def test_each_target_alone_matters_and_is_merged(tiny_model):
    base = np.asarray(hidden_of(tiny_model.decoder, tiny_model.params, None))
    whole = random_lora(tiny_model)
    for target in TARGETS:
        only = {name: b if name == target else jnp.zeros_like(b) for name, b in whole.up.items()}
        lora = whole.replace(up=only)
        attached = np.asarray(hidden_of(tiny_model.decoder, tiny_model.params, lora))
        merged = hidden_of(tiny_model.decoder, merge_params(tiny_model.params, lora), None)
        assert np.max(np.abs(attached - base)) > 1e-4, target
        np.testing.assert_allclose(attached, merged, atol=2e-5)


def test_gradients_reach_both_factors_and_only_them(tiny_model):
    lora = random_lora(tiny_model)
    gradient = jax.jit(jax.grad(lambda lora: jnp.sum(hidden_of(tiny_model.decoder, tiny_model.params, lora) ** 2)))(
        lora
    )
    for leaf in jax.tree.leaves(gradient):
        assert np.any(np.asarray(leaf) != 0)
    assert isinstance(gradient, LoRA)


def test_a_merged_model_generates_and_is_another_model(tiny_model):
    lora = random_lora(tiny_model)
    merged = merge_lora(tiny_model, lora)
    assert merged.hash != tiny_model.hash
    assert merge_lora(tiny_model, lora).hash == merged.hash
    assert merge_lora(tiny_model, lora.replace(scale=1.0)).hash != merged.hash
    texts = generate(merged, ["hello"], max_tokens=4).tokens
    assert texts != generate(tiny_model, ["hello"], max_tokens=4).tokens


def test_the_scale_is_alpha_over_rank(tiny_model):
    assert init_lora(jax.random.key(0), tiny_model.config, rank=2).scale == 1.0
    assert init_lora(jax.random.key(0), tiny_model.config, rank=2, alpha=8.0).scale == 4.0


def test_a_lora_of_the_upper_layers(tiny_model):
    whole = random_lora(tiny_model)
    upper = whole.replace(
        down={name: a[1:] for name, a in whole.down.items()},
        up={name: b[1:] for name, b in whole.up.items()},
        first_layer=1,
    )
    zeroed = whole.replace(up={name: b.at[0].set(0.0) for name, b in whole.up.items()})
    expected = hidden_of(tiny_model.decoder, tiny_model.params, zeroed)
    np.testing.assert_allclose(hidden_of(tiny_model.decoder, tiny_model.params, upper), expected, atol=1e-6)
    merged = hidden_of(tiny_model.decoder, merge_params(tiny_model.params, upper), None)
    np.testing.assert_allclose(merged, expected, atol=2e-5)
    start = init_lora(jax.random.key(0), tiny_model.config, rank=2, first_layer=1)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(start)} == {2}
    with pytest.raises(ValueError, match="from_layer=2: expected at most 1"):
        upper.low_rank(2)


def test_a_matrix_that_the_decoder_does_not_have_is_refused_when_it_is_attached(tiny_model):
    whole = random_lora(tiny_model)
    renamed = whole.replace(
        down={name.replace("query", "q_proj"): a for name, a in whole.down.items()},
        up={name.replace("query", "q_proj"): b for name, b in whole.up.items()},
    )
    for use in (renamed.low_rank, lambda: merge_lora(tiny_model, renamed), lambda: low_rank_of(renamed)):
        with pytest.raises(AdapterError, match="adapts 'attention/q_proj': expected one of attention/query"):
            use()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0: expected 1 to 16"),
        ({"rank": 17}, "rank=17: expected 1 to 16"),
        ({"rank": 1, "targets": ()}, r"targets=\[\]"),
        ({"rank": 1, "targets": ("attention/norm",)}, "expected some of attention/query"),
        ({"rank": 1, "first_layer": 3}, "first_layer=3: expected 0 to 2"),
    ],
)
def test_bad_options(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        init_lora(jax.random.key(0), tiny_model.config, **options)
