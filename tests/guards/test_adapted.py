"""A LoRA in all layers of a guard: training's scorers against the guards as they are used."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import init_lora, merge_lora
from edgesafe_jax.guards import adapted
from edgesafe_jax.guards.heads import GatedHead, Head
from edgesafe_jax.guards.hidden_states import QUESTION
from edgesafe_jax.guards.pairs import score_pairs
from edgesafe_jax.guards.probe import (
    GuardFileError,
    HiddenStateGuard,
    load_hidden_state_guard,
    save_adapted_guard,
)
from edgesafe_jax.guards.registry import FORMATS, TemplateError
from edgesafe_jax.guards.scoring import LanguageModelGuard, LowMassWarning

PROMPTS, RESPONSES = ["hello", "in 2024, what?", "x"], ["the user", "no<|im_end|>", " an answer "]


def random_lora(config, seed, **options):
    lora = init_lora(jax.random.key(seed), config, rank=2, **options)
    return lora.replace(up=jax.tree.map(lambda b: jax.random.normal(jax.random.key(seed + 1), b.shape) * 0.2, lora.up))


@pytest.fixture(scope="module")
def probe(tiny_model):
    def head(seed):
        linear = jax.random.normal(jax.random.key(seed), (64,)) * 0.3
        one, zero = jnp.ones(()), jnp.zeros(())
        return Head(jnp.zeros(64), jnp.ones(64), linear, zero, one, zero)

    return HiddenStateGuard(tiny_model, GatedHead(head(0), head(1), head(2)), (2, 1), max_response=32)


@pytest.fixture(scope="module")
def smolguard(tiny_model):
    verdict = random_lora(tiny_model.config, 5, first_layer=1)
    return LanguageModelGuard(tiny_model, FORMATS["smolguard"], adapter=verdict, max_prompt=16, max_response=16)


def odds(probability):
    return np.log(probability) - np.log1p(-probability)


def test_the_probe_scorer_is_the_adapted_guard(probe):
    scorer, frozen = adapted.probe_scorer(probe)
    lora = random_lora(scorer.decoder.config, 7)
    rows = adapted.probe_rows(probe, PROMPTS, RESPONSES)
    found = score_pairs(scorer, frozen, lora, rows, np.arange(3), batch_size=2)
    expected = odds(dataclasses.replace(probe, adapter=lora)(PROMPTS, RESPONSES))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.max(np.abs(found - odds(probe(PROMPTS, RESPONSES)))) > 1e-2


def test_the_verdict_scorer_is_the_guard_with_the_lora_merged(smolguard):
    scorer, frozen = adapted.verdict_scorer(smolguard)
    rows = adapted.verdict_rows(smolguard, PROMPTS, RESPONSES)
    lora = random_lora(smolguard.model.config, 7)
    found = score_pairs(scorer, frozen, lora, rows, np.array([2, 0, 1]), batch_size=4)
    merged = dataclasses.replace(smolguard, model=merge_lora(smolguard.model, lora))
    with pytest.warns(LowMassWarning):  # of a random model
        expected = merged.judge(PROMPTS, RESPONSES).log_odds
    np.testing.assert_allclose(found, expected[[2, 0, 1]], atol=1e-4)


@pytest.mark.parametrize("kind", ["probe", "smolguard"])
def test_a_new_lora_changes_nothing_and_has_a_gradient(kind, request):
    guard = request.getfixturevalue(kind)
    split, encode = {
        "probe": (adapted.probe_scorer, adapted.probe_rows),
        "smolguard": (adapted.verdict_scorer, adapted.verdict_rows),
    }[kind]
    scorer, frozen = split(guard)
    rows = encode(guard, PROMPTS, RESPONSES)
    lora = init_lora(jax.random.key(0), scorer.decoder.config, rank=2)
    if kind == "probe":
        found = score_pairs(scorer, frozen, lora, rows, np.arange(3))
        np.testing.assert_allclose(found, odds(guard(PROMPTS, RESPONSES)), atol=1e-4)
    batch = rows.batch(np.arange(3))
    gradient = jax.jit(jax.grad(lambda lora: jnp.sum(scorer(frozen, lora, batch))))(lora)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in gradient.up.values())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("family", "message"), [("shieldgemma", "4 policies and 1"), ("wildguard", "1 policies and 3")]
)
def test_guards_whose_verdict_is_not_at_one_place(tiny_model, family, message):
    with pytest.raises(TemplateError, match=message):
        adapted.verdict_scorer(LanguageModelGuard(tiny_model, FORMATS[family]))


def test_joined_factors_add_what_both_add(tiny_model):
    first = random_lora(tiny_model.config, 1).low_rank()
    second = random_lora(tiny_model.config, 3, targets=("attention/query", "mlp/up")).low_rank()
    joined = adapted.join_factors(first, second)
    down, up = joined["attention"]["query"]
    both = [np.einsum("lir,lro->lio", *found["attention"]["query"]) for found in (first, second)]
    np.testing.assert_allclose(np.einsum("lir,lro->lio", down, up), both[0] + both[1], atol=1e-5)
    assert joined["mlp"]["up"] is second["mlp"]["up"] or joined["mlp"]["up"][0] is second["mlp"]["up"][0]


def test_a_stored_guard_comes_back_with_its_lora(probe, tmp_path):
    lora = random_lora(adapted.probe_scorer(probe)[0].decoder.config, 7)
    guard = dataclasses.replace(probe, adapter=lora)
    about = {
        "kind": "hidden_states",
        "layers": [2, 1],
        "question": QUESTION,
        "max_response": 32,
        "model_hash": probe.model.hash,
    }
    save_adapted_guard(tmp_path / "robust.safetensors", guard, about)
    loaded = load_hidden_state_guard(probe.model, tmp_path / "robust.safetensors")
    np.testing.assert_allclose(loaded(PROMPTS, RESPONSES), guard(PROMPTS, RESPONSES), atol=1e-6)
    other = dataclasses.replace(guard, adapter=random_lora(adapted.probe_scorer(probe)[0].decoder.config, 8))
    save_adapted_guard(tmp_path / "other.safetensors", other, about)
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"other_lora{suffix}").rename(tmp_path / f"robust_lora{suffix}")
    with pytest.raises(GuardFileError, match="is not the LoRA"):
        load_hidden_state_guard(probe.model, tmp_path / "robust.safetensors")
