"""What is measured of an aligned model, on a tiny one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import adapters
from edgesafe_jax.corpora import Choice, Prompt
from edgesafe_jax.guards.named import guard_cost
from edgesafe_jax.guards.verdicts import GuardError
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import ContextError, generate
from edgesafe_jax.safety.evaluation import costs, evaluate_set, multiple_choice
from edgesafe_jax.safety.judging import Judge, base_judges, judge_responses
from edgesafe_jax.safety.system import SafeSystem

REFUSAL = "Sorry, I cannot help with this matter."
TEXTS = ["hello", "the user is in", "why is the sky", "us"]


def unsafe_if_the(prompts, responses):
    """P(unsafe) 0.9 where the prompt has a "the"; of a refusal always 0.1."""
    return np.array([0.1 if y == REFUSAL or "the" not in x else 0.9 for x, y in zip(prompts, responses, strict=True)])


def judge(prompts, responses):
    return np.array([0.0 if y == REFUSAL else 0.6 for y in responses])


def by_meaning(prompts, responses):
    del prompts
    return np.array(["Sorry" in y for y in responses])


ALL_JUDGES = {
    **base_judges(unsafe_if_the),
    "refused_by_meaning": Judge(by_meaning, "refusal"),
    "judge": Judge(judge, "unsafe"),
}


@pytest.fixture(scope="module")
def adapter(tiny_model):
    return adapters.make_adapter(jax.random.key(3), "soft_prompt", tiny_model, init="random", num_virtual=4)


@pytest.fixture(scope="module")
def prompts():
    return [Prompt(text, "test", "", "benign") for text in TEXTS]


@pytest.fixture(scope="module")
def result(tiny_model, adapter, prompts):
    system = SafeSystem(tiny_model, unsafe_if_the, REFUSAL)
    return evaluate_set(tiny_model, adapter, system, prompts, ALL_JUDGES, max_tokens=6)


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_all_verdicts_are_collected():
    judged = judge_responses(["hello", "the"], ["Here it is.", REFUSAL], [[5, 6], []], ALL_JUDGES)
    assert judged.responses == ["Here it is.", REFUSAL]
    assert judged.tokens == [[5, 6], []]
    assert judged.refused.tolist() == [False, True]
    assert judged.refusals["refused_by_meaning"].tolist() == [False, True]
    assert judged.unsafe.tolist() == [0.1, 0.1]
    assert judged.unsafe_probs["judge"].tolist() == [0.6, 0.0]


def test_verdicts_that_nobody_gives_are_none():
    judged = judge_responses(["hello"], ["Here."], [[5]], base_judges(unsafe_if_the))
    assert set(judged.refusals) == {"refused"}
    assert set(judged.unsafe_probs) == {"teacher"}


@pytest.mark.parametrize("which", ["teacher", "judge"])
@pytest.mark.parametrize("value", [float("nan"), 1.5])
def test_a_guard_that_leaves_the_unit_interval_is_an_error(which, value):
    def broken(prompts, responses):
        return np.full(len(prompts), value)

    guards = {"teacher": unsafe_if_the, "judge": judge} | {which: broken}
    with pytest.raises(GuardError):
        judge_responses(["hello"], ["Here."], [[5]], {name: Judge(each, "unsafe") for name, each in guards.items()})


# A set of prompts -----------------------------------------------------------------------------------------------------


def test_base_and_student_answer_for_themselves(tiny_model, adapter, prompts, result):
    base = generate(tiny_model, TEXTS, max_tokens=6)
    student = generate(tiny_model, TEXTS, max_tokens=6, adapter=adapter)
    assert (result.base.responses, result.base.tokens) == (base.texts, base.tokens)
    assert (result.student.responses, result.student.tokens) == (student.texts, student.tokens)
    assert base.tokens != student.tokens  # otherwise the two cannot be told apart here
    assert result.prompts == prompts


def test_the_system_refuses_where_its_guard_objects(result):
    objected = np.array(["the" in text for text in TEXTS])
    assert objected.any()
    assert not objected.all()
    assert result.system_refused.tolist() == objected.tolist()
    for index, refused in enumerate(objected):
        if refused:
            assert result.system.responses[index] == REFUSAL
            assert result.system.tokens[index] == []
            assert result.system.refused[index]
            assert result.system.refusals["refused_by_meaning"][index]
            assert result.system.unsafe[index] == 0.1
            assert result.system.unsafe_probs["judge"][index] == 0.0
        else:
            assert result.system.responses[index] == result.base.responses[index]
            assert result.system.tokens[index] == result.base.tokens[index]
            assert result.system.refused[index] == result.base.refused[index]
            assert result.system.unsafe[index] == result.base.unsafe[index]
            assert result.system.unsafe_probs["judge"][index] == result.base.unsafe_probs["judge"][index]


def test_each_pair_is_judged_once(tiny_model, adapter, prompts):
    seen = []

    def counting(texts, responses):
        seen.extend(zip(texts, responses, strict=True))
        return unsafe_if_the(texts, responses)

    system = SafeSystem(tiny_model, unsafe_if_the, REFUSAL)
    found = evaluate_set(tiny_model, adapter, system, prompts, base_judges(counting), max_tokens=6)
    answers = [judged.responses for judged in (found.base, found.student, found.system)]
    each = [pair for responses in answers for pair in zip(TEXTS, responses, strict=True)]
    assert len(seen) == len(set(seen)) < len(each)
    assert set(seen) == set(each)


def test_prefilled_answers_begin_as_they_are_told(tiny_model, adapter, prompts):
    system = SafeSystem(tiny_model, unsafe_if_the, REFUSAL)
    attacked = evaluate_set(
        tiny_model, adapter, system, prompts, base_judges(unsafe_if_the), max_tokens=6, prefills=["hello"] * len(TEXTS)
    )
    for text in (*attacked.base.responses, *attacked.student.responses):
        assert text.startswith("hello")


def test_progress_counts_both_models(tiny_model, adapter, prompts):
    calls = []
    longest = max(prompts, key=lambda prompt: len(prompt.text))  # of one length: no further shape is compiled
    evaluate_set(
        tiny_model,
        adapter,
        SafeSystem(tiny_model, unsafe_if_the, REFUSAL),
        [longest] * 8,
        base_judges(unsafe_if_the),
        max_tokens=6,
        batch_size=4,
        on_batch=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(4, 16), (8, 16), (12, 16), (16, 16)]


def test_a_prompt_longer_than_the_context_is_named(tiny_model, adapter):
    long = [Prompt("hello " * 600, "test", "", "benign")]
    system = SafeSystem(tiny_model, unsafe_if_the, REFUSAL)
    with pytest.raises(ContextError, match="Prompt 0"):
        evaluate_set(tiny_model, adapter, system, long, base_judges(unsafe_if_the), max_tokens=2)


# Multiple choice ------------------------------------------------------------------------------------------------------

QUESTIONS = [
    ("the user is", ("in", "in a hello world with us", "a")),
    ("hello", ("the", "why the user", "we were in there, all of us")),
    ("in us", ("x", "yes, and a long one at that")),
    ("a", ("well", "the same, the same, the same")),
]


def option_scores(model, adapter):
    """Log-probability of each option and its length, by question, from one pass over whole chats."""
    parts = model.tokenizer.chat_parts
    rows = []
    for context, options in QUESTIONS:
        before = [*parts.head, *model.tokenizer.encode(context), *parts.tail]
        rows += [(before, model.tokenizer.encode(option)) for option in options]
    length = max(len(before) + len(answer) for before, answer in rows)
    tokens = np.zeros((len(rows), length), np.int32)
    for row, (before, answer) in zip(tokens, rows, strict=True):
        row[: len(before) + len(answer)] = [*before, *answer]

    @jax.jit
    def log_probs(tokens):
        hidden = model.decoder.apply({"params": model.params}, tokens, adapter=adapter).hidden
        logits = model.decoder.apply({"params": model.params}, hidden, method=Decoder.logits)
        return jax.nn.log_softmax(logits, axis=-1)

    # Whatever stands behind an answer cannot change what stands before it.
    table = np.asarray(log_probs(jnp.array(tokens)), np.float64)
    scores = [
        (sum(probs[len(before) - 1 + t, token] for t, token in enumerate(answer)), len(answer))
        for probs, (before, answer) in zip(table, rows, strict=True)
    ]
    return [[scores.pop(0) for _ in options] for _, options in QUESTIONS]


@pytest.mark.parametrize("adapted", [False, True])
def test_the_option_of_highest_mean_log_probability_is_the_answer(tiny_model, adapter, adapted):
    chosen = adapter if adapted else None
    scores = option_scores(tiny_model, chosen)
    best = [int(np.argmax([total / count for total, count in row])) for row in scores]
    by_sum = [int(np.argmax([total for total, _ in row])) for row in scores]
    assert best != by_sum  # otherwise this cannot tell the mean from the sum
    for wrong in range(len(QUESTIONS)):
        answers = [(b + (i == wrong)) % len(o) for i, (b, (_, o)) in enumerate(zip(best, QUESTIONS, strict=True))]
        choices = [Choice(c, o, a, "test") for (c, o), a in zip(QUESTIONS, answers, strict=True)]
        correct = multiple_choice(tiny_model, choices, adapter=chosen, batch_size=4).correct
        assert correct.tolist() == [i != wrong for i in range(len(QUESTIONS))]


def test_no_questions_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="no questions"):
        multiple_choice(tiny_model, [])


# Costs ----------------------------------------------------------------------------------------------------------------


def test_a_guard_of_unknown_cost_gives_no_system(tiny_model, adapter):
    assert set(costs(tiny_model, adapter, guard=None)) == {"base", "student"}


def test_costs_by_hand(tiny_model, adapter):
    vocab = tiny_model.config.vocab_size
    # Per layer: query and out 16 x 32, key and value 16 x 16, three matrices 16 x 24, two norms of 16.
    layer_weights = 2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 24
    params = 3 * (layer_weights + 2 * 16) + 16 + vocab * 16
    forward = 2 * (3 * layer_weights + vocab * 16)
    attention = 4 * 3 * 32  # per position that a token sees
    guard = 2 * 2 * layer_weights + 4 * 2 * 32 * 100  # two layers, no output head
    head = types.SimpleNamespace(head=np.zeros(7), adapter=None, layers=(1, 2))
    table = costs(tiny_model, adapter, guard=guard_cost(head, tiny_model, context=100), context=100)
    assert table == {
        "base": {"params": params, "bytes": 4 * params, "flops_per_token": forward + attention * 100},
        "system": {
            "params": params + 7,
            "bytes": 4 * (params + 7),
            "flops_per_token": forward + attention * 100 + guard,
        },
        "student": {
            "params": params + 4 * 16,
            "bytes": 4 * (params + 4 * 16),
            "flops_per_token": forward + attention * 104,
        },
    }
