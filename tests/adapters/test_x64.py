"""Adapters under `jax_enable_x64`."""

import chex
import jax
import jax.numpy as jnp
import pytest

from edgesafe_jax.adapters import ADAPTERS, load_adapter, make_adapter, save_adapter
from edgesafe_jax.adapters.lora import merge_lora

OPTIONS = {
    "text": ("soft_prompt", {"init": "text", "text": "hello", "num_virtual": 4}),
    "vocabulary": ("soft_prompt", {"init": "vocabulary", "num_virtual": 4}),
    "random": ("soft_prompt", {"init": "random", "num_virtual": 4}),
    "prefix": ("prefix", {"init": "random", "num_virtual": 4}),
    "lora": ("lora", {"rank": 2, "alpha": 3, "first_layer": 1}),
    "steering": ("steering", {"layers": (1,)}),
    "gate": ("gate", {"layer": 1, "width": 2}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_adapters_are_made_stored_and_read_in_float32(tiny_model, tmp_path, name):
    kind, options = OPTIONS[name]
    path = tmp_path / "a.safetensors"
    with jax.enable_x64(True):
        made = make_adapter(jax.random.key(0), kind, tiny_model, **options)
        save_adapter(path, made, tiny_model)
        found = load_adapter(path, tiny_model)
        chex.assert_trees_all_equal(found, made)
        factors = [made.virtual_embeddings(), made.prefix(), made.low_rank(), made.steering()]
        if kind == "lora":
            merged = merge_lora(tiny_model, made)
            chex.assert_trees_all_equal_dtypes(merged.params, tiny_model.params)
    assert {leaf.dtype for leaf in jax.tree.leaves([found, factors])} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_equal(load_adapter(path, tiny_model), found)
    assert {kind for kind, _ in OPTIONS.values()} == set(ADAPTERS)
