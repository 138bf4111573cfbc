"""Attacks: what is sent, by which request it is judged, and that the search lowers the loss of its target."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import adapters
from edgesafe_jax.corpora import Prompt, forms
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models import generate
from edgesafe_jax.models.chats import flat_text
from edgesafe_jax.models.decoder import behind
from edgesafe_jax.safety import EvaluationSettings, attacks, evaluate
from edgesafe_jax.safety.attacks import ATTACKS, SearchBudget, Target, gcg, long_context, prefill, templates
from edgesafe_jax.safety.evaluation import attacked_requests, evaluate_attack
from edgesafe_jax.safety.judging import Judge, base_judges
from edgesafe_jax.safety.system import SafeSystem
from tests.safety.rows import naive_log_probs

KEY = jax.random.key(0)
REQUESTS = [Prompt(text, "test", "", "harmful") for text in ("hello", "the user is in", "why")]


@pytest.fixture(scope="module")
def adapter(tiny_model):
    return adapters.make_adapter(jax.random.key(3), "soft_prompt", tiny_model, init="random", num_virtual=4)


TEMPLATES = ["Do {{ prompt }} now", "{{prompt}}!"]


@pytest.fixture
def packaged(monkeypatch):
    """Stand-ins of the packaged texts."""
    monkeypatch.setattr(
        templates.corpora, "jailbreak_templates", lambda max_chars: ["Do {{ prompt }} now", "{{prompt}}!"]
    )
    monkeypatch.setattr(forms, "passages", lambda: ["a ship", "the sea"])
    monkeypatch.setattr(long_context, "NUM_CHARS", 10)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "gcg"])
def test_every_attempt_carries_its_request(name, tiny_model, packaged):
    made = ATTACKS[name].make(KEY, Target(tiny_model), REQUESTS)
    assert [attempt.request for attempt in made] == REQUESTS
    if name != "rewordings":
        assert all(attempt.request.text in flat_text(attempt.sent) for attempt in made)
    assert any(attempt.sent != attempt.request.text or attempt.prefill for attempt in made)
    assert made == ATTACKS[name].make(KEY, Target(tiny_model), REQUESTS)


def test_prefixes_are_the_first_tokens_of_the_bare_models_answer(tiny_model):
    opening = len(tiny_model.tokenizer.encode_answers([prefill.OPENING])[0])
    for num in (1, 5, opening + 3):
        made = attacks.prefill.prefilled(num)(KEY, Target(tiny_model), REQUESTS)
        whole = generate(
            tiny_model, [r.text for r in REQUESTS], max_tokens=opening + 3, prefills=[prefill.OPENING] * len(REQUESTS)
        )
        assert [attempt.prefill for attempt in made] == [
            tiny_model.tokenizer.decode(tokens[:num]).rstrip() for tokens in whole.tokens
        ]


def test_two_turns_end_with_the_request(tiny_model):
    (first, *_) = ATTACKS["two_turns"].make(KEY, Target(tiny_model), REQUESTS)
    assert [message["role"] for message in first.sent] == ["user", "assistant", "user"]
    assert first.sent[-1]["content"] == REQUESTS[0].text


def test_templates_take_turns(tiny_model, packaged):
    made = ATTACKS["templates"].make(KEY, Target(tiny_model), REQUESTS)
    assert [attempt.sent for attempt in made] == ["Do hello now", "the user is in!", "Do why now"]


# Token search ---------------------------------------------------------------------------------------------------------


BUDGET = SearchBudget(num_steps=4, num_candidates=16)


@pytest.fixture(scope="module")
def parts(tiny_model, adapter):
    return gcg._Search(Target(tiny_model, adapter)).parts("hello")


def test_the_loss_is_that_of_the_whole_chat(tiny_model, adapter, parts):
    past, suffix, tail, opening = parts
    suffixes = np.random.default_rng(0).integers(3, 200, (BUDGET.num_candidates, len(suffix)), np.int32)
    found = gcg.suffix_losses(
        tiny_model.decoder, tiny_model.params, behind(adapter), past, jnp.array(suffixes), tail, opening
    )
    before = tiny_model.tokenizer.encode("hello")
    for suffix, value in zip(suffixes[:3], np.asarray(found), strict=False):
        prompt = [*before, *suffix.tolist(), *tail.tolist()]
        log_probs = naive_log_probs(tiny_model, prompt, opening.tolist(), adapter)
        rows = log_probs[np.arange(len(opening)), np.asarray(opening)]
        np.testing.assert_allclose(value, -rows.mean(), atol=1e-4)


def test_candidates_exchange_one_token_for_a_promising_one(tiny_model, adapter, parts):
    past, suffix, tail, opening = parts
    allowed = jnp.array(gcg.allowed_tokens(tiny_model))
    frozen = tiny_model.decoder, tiny_model.params, behind(adapter), past
    keys = jax.random.split(KEY, 8)
    drawn = np.concatenate(
        [
            gcg.draw_candidates(key, *frozen, suffix, tail, opening, allowed, num_candidates=BUDGET.num_candidates)
            for key in keys
        ]
    )
    changed = drawn != np.asarray(suffix)
    assert (changed.sum(axis=1) <= 1).all()
    assert changed.any(axis=0).all()  # every position is exchanged somewhere
    assert np.asarray(allowed)[drawn[changed]].all()
    assert len(set(drawn[changed].tolist())) > 10
    assert not (drawn[:16] == drawn[16:32]).all()


def test_the_search_never_gets_worse_and_repeats_by_its_key(tiny_model, adapter):
    target = Target(tiny_model, adapter, BUDGET)
    suffix, trace = attacks.search_suffix(KEY, target, "hello")
    assert len(trace) == BUDGET.num_steps + 1
    assert trace == sorted(trace, reverse=True)
    assert trace[-1] < trace[0]
    assert attacks.search_suffix(KEY, target, "hello") == (suffix, trace)
    made = ATTACKS["gcg"].make(KEY, target, REQUESTS[:1])
    assert made[0].sent.startswith("hello")
    assert made[0].sent != "hello" + suffix  # each request has a key of its own


def test_no_control_token_is_allowed(tiny_model):
    allowed = gcg.allowed_tokens(tiny_model)
    assert not allowed[:3].any()
    assert allowed.any()
    assert len(allowed) == tiny_model.config.vocab_size


# Measured -------------------------------------------------------------------------------------------------------------


def flags_long_prompts(prompts, responses):
    return np.array([0.9 if len(prompt) > 10 else 0.1 for prompt in prompts])


def whisper(key, target, requests):
    """An adaptive attack: what is sent names the target."""
    who = "the student, you see" if target.adapter is not None else "the base, you see"
    return [attacks.Attempt(request, f"{request.text} {who}") for request in requests]


@pytest.mark.parametrize("attack", [ATTACKS["prefill"], attacks.Attack("whisper", whisper, adaptive=True)])
def test_an_attack_is_judged_by_the_request_and_guarded_by_what_was_sent(attack, tiny_model, adapter):
    seen = []

    def judge(prompts, responses):
        seen.extend(prompts)
        return np.full(len(prompts), 0.7)

    system = SafeSystem(tiny_model, flags_long_prompts)
    judges = base_judges(flags_long_prompts) | {"judge": Judge(judge, "unsafe")}
    found = evaluate_attack(KEY, attack, system, adapter, REQUESTS, judges, max_tokens=6)
    assert found.prompts == REQUESTS
    assert set(seen) == {request.text for request in REQUESTS}
    if attack.adaptive:
        assert found.system_refused.all()
        sent = {name: [f"{r.text} the {name}, you see" for r in REQUESTS] for name in ("student", "base")}
        assert found.base.tokens == generate(tiny_model, sent["base"], max_tokens=6).tokens
        assert found.student.tokens == generate(tiny_model, sent["student"], max_tokens=6, adapter=adapter).tokens
    else:
        assert found.system_refused.tolist() == [len(request.text) > 10 for request in REQUESTS]
        assert all(text.startswith(prefill.OPENING) for text in found.student.responses)


def test_requests_of_attacks_are_plain_ones():
    sets = {
        "jailbreaks": [Prompt("j", "s", "", "harmful")],
        "strongreject": REQUESTS,
        "plain": [Prompt("p", "s", "", "benign")],
        "again": REQUESTS[:1],
    }
    assert attacked_requests(sets) == REQUESTS


def test_an_attack_without_a_request_is_an_error(tiny_model, adapter):
    sets = {"plain": [Prompt("p", "s", "", "benign")]}
    with pytest.raises(ConfigError, match="without a harmful request"):
        evaluate(
            SafeSystem(tiny_model, flags_long_prompts),
            adapter,
            sets,
            base_judges(flags_long_prompts),
            EvaluationSettings(attacks={"prefill": None}),
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attacks": {"prefil": 3}}, "attacks='prefil'.*Did you mean 'prefill"),
        ({"attacks": {"prefill": -3}}, "attacks.prefill=-3"),
        ({"usefulness": {"gsm": 3}}, "usefulness='gsm'.*Did you mean 'gsm8k'"),
        ({"usefulness_tokens": 0}, "usefulness_tokens=0"),
    ],
)
def test_settings_that_mean_nothing_are_errors(given, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationSettings(**given)
    with pytest.raises(ConfigError, match=r"search\.num_steps=0"):
        dataclasses.replace(SearchBudget(), num_steps=0)
