"""Sizes and costs in closed form, and options of a given size."""

import dataclasses

import jax
import pytest

from edgesafe_jax.adapters import ADAPTERS, budget, compose, make_adapter, match_budget, options_of
from edgesafe_jax.models.decoder_config import flops_per_token
from tests.adapters.cases import OPTIONS, make

KEY = jax.random.key(0)


def shape_of(kind, model):
    """An adapter of which nothing is computed."""
    return jax.eval_shape(lambda: make(kind, model))


def test_closed_forms(tiny_model):
    """L = 3, D = 16, H = 4, K = 2, E = 8."""
    attention = 4 * 3 * 4 * 8
    for kind, parameters, per_token in (
        ("soft_prompt", 3 * 16, attention * 3),
        ("prefix", 2 * 3 * 2 * 2 * 8, attention * 2),
        ("lora", 3 * 2 * ((16 + 32) + (16 + 16) + (24 + 16)), 2 * 3 * 2 * ((16 + 32) + (16 + 16) + (24 + 16))),
        ("steering", 2 * 16, 2 * 16),
    ):
        found = budget(shape_of(kind, tiny_model), tiny_model)
        assert dataclasses.astuple(found) == (parameters, 4 * parameters, per_token, 0), kind


def test_positions_cost_what_a_longer_context_costs(tiny_model):
    found = budget(shape_of("soft_prompt", tiny_model), tiny_model)
    longer, shorter = (flops_per_token(tiny_model.config, context=context) for context in (103, 100))
    assert found.flops_per_token == longer - shorter


def test_a_composition_costs_the_sum(tiny_model):
    parts = [shape_of(kind, tiny_model) for kind in OPTIONS if ADAPTERS[kind].alone]
    each = [dataclasses.astuple(budget(part, tiny_model)) for part in parts]
    assert dataclasses.astuple(budget(compose(*parts), tiny_model)) == tuple(map(sum, zip(*each, strict=True)))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_no_neighbour_is_nearer(tiny_model, kind):
    fixed = {name: value for name, value in OPTIONS[kind].items() if name == "init"}

    def size(**options):
        made = jax.eval_shape(lambda key: make_adapter(key, kind, tiny_model, **fixed, **options), KEY)
        return budget(made, tiny_model).parameters

    for wanted in (1, 700, 5000):
        options = match_budget(kind, tiny_model, parameters=wanted)
        [name] = {"rank", "num_virtual", "layers", "width"} & set(options)
        near = abs(size(**options) - wanted)
        value = options[name]
        others = [value[:-1], value[:-1] or (0, 1)] if name == "layers" else [value - 1, value + 1]
        for other in others:
            try:
                assert near <= abs(size(**{**options, name: other}) - wanted), (wanted, options, other)
            except ValueError:  # of no size, or of one that the decoder does not have
                continue


def test_a_budget_from_a_config(tiny_model):
    by_kind = {"kind": "lora", "lora": {"rank": 8, "alpha": 2.0}, "steering": {"layers": (2,)}}
    assert options_of("lora", by_kind, tiny_model) == {"rank": 8, "alpha": 2.0}
    assert options_of("lora", by_kind, tiny_model, parameters=240) == {"rank": 1, "alpha": 2.0, "first_layer": 0}
    assert options_of("lora+steering", by_kind, tiny_model) == {"lora": by_kind["lora"], "steering": {"layers": (2,)}}
    assert match_budget("steering", tiny_model, parameters=16) == {"layers": (1,)}
    with pytest.raises(ValueError, match="a budget is matched by one kind"):
        options_of("lora+steering", by_kind, tiny_model, parameters=10)
    with pytest.raises(ValueError, match="parameters=0: expected at least 1"):
        match_budget("lora", tiny_model, parameters=0)
    with pytest.raises(ValueError, match="Did you mean 'lora'"):
        match_budget("lara", tiny_model, parameters=1)
