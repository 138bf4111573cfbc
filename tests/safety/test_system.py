"""The safe system: what its guard says, what it says, and how often."""

import jax
import numpy as np
import pytest

from edgesafe_jax.guards.verdicts import GuardError
from edgesafe_jax.models.generation import Generation, generate
from edgesafe_jax.safety.system import REFUSAL, SafeSystem, refusing

PROMPTS = ["hello", "the user", "in 2024", "us"]
UNSAFE = [0.0, 0.2, 0.7, 1.0]


def guard(prompts, responses):
    return np.array([UNSAFE[PROMPTS.index(prompt)] for prompt in prompts])


def test_known_requests_are_unsafe_whatever_the_answer():
    chat = [{"role": "user", "content": "us"}]
    wrapped = refusing(guard, ["hello", chat])
    np.testing.assert_array_equal(wrapped(PROMPTS, ["x"] * 4), [1.0, 0.2, 0.7, 1.0])
    with pytest.raises(GuardError):
        refusing(lambda prompts, responses: [2.0] * len(prompts), ["hello"])(PROMPTS, ["x"] * 4)


@pytest.fixture
def fake_generate(monkeypatch):
    """Answers without a model: each prompt with an exclamation mark; returns the keywords of every call."""
    calls = []

    def fake(model, prompts, **keywords):
        calls.append(keywords)
        return Generation([[1]] * len(prompts), [f"{prompt}!" for prompt in prompts], [True] * len(prompts))

    monkeypatch.setattr(SafeSystem.__init__, "__defaults__", (REFUSAL, fake))
    return calls


def test_sequence_teacher_samples_from_the_base_model_and_weighs(tiny_model):
    seen = []

    def recording(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return guard(prompts, responses)

    key = jax.random.key(3)
    teacher = SafeSystem(tiny_model, recording, "No.").sequence_teacher(PROMPTS, key=key, max_tokens=4)
    expected = generate(tiny_model, PROMPTS, max_tokens=4, temperature=1.0, key=key)
    assert teacher.responses == expected
    assert seen[-1] == (PROMPTS, expected.texts)
    np.testing.assert_allclose(teacher.safe_prob, 1 - np.array(UNSAFE))
    assert (teacher.prompts, teacher.refusal) == (PROMPTS, "No.")


def test_answer_refuses_above_the_threshold(tiny_model, fake_generate):
    system = SafeSystem(tiny_model, guard)
    answers = system.answer(PROMPTS, max_tokens=5, temperature=0.7, prefills=["x"] * 4)
    assert answers.refused.tolist() == [False, False, True, True]
    assert answers.responses == ["hello!", "the user!", REFUSAL, REFUSAL]
    assert answers.base.texts == [f"{prompt}!" for prompt in PROMPTS]
    np.testing.assert_array_equal(answers.unsafe_prob, UNSAFE)
    assert fake_generate[0]["temperature"] == 0.7
    assert fake_generate[0]["prefills"] == ["x"] * 4
    for threshold, expected in ((0.1, [0, 1, 1, 1]), (0.7, [0, 0, 0, 1]), (1.0, [0, 0, 0, 0])):
        assert system.answer(PROMPTS, max_tokens=5, threshold=threshold).refused.tolist() == expected


def test_answer_draws_from_equation_one(tiny_model, fake_generate):
    """Each answer is kept with probability p(s=1 | x, y), whatever the others do."""
    num = 4000
    system = SafeSystem(tiny_model, guard)
    answers = system.answer(PROMPTS * num, max_tokens=5, threshold=None, seed=7)
    refused = answers.refused.reshape(num, 4)
    sigma = np.sqrt(np.array(UNSAFE) * (1 - np.array(UNSAFE)) / num)
    np.testing.assert_array_less(np.abs(refused.mean(axis=0) - UNSAFE), 5 * sigma + 1e-12)
    assert abs(np.corrcoef(refused[:, 1], refused[:, 2])[0, 1]) < 5 / np.sqrt(num)
    for prompt, response, no in zip(PROMPTS * num, answers.responses, answers.refused, strict=True):
        assert response == (REFUSAL if no else f"{prompt}!")
    again = system.answer(PROMPTS * num, max_tokens=5, threshold=None, seed=7)
    np.testing.assert_array_equal(again.refused, answers.refused)
    other = system.answer(PROMPTS * num, max_tokens=5, threshold=None, seed=8)
    assert np.any(other.refused != answers.refused)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_a_broken_guard_is_refused(tiny_model, fake_generate, value):
    system = SafeSystem(tiny_model, lambda prompts, responses: np.full(len(prompts), value))
    with pytest.raises(GuardError, match=f"returned {value}"):
        system.sequence_teacher(PROMPTS, key=jax.random.key(0), max_tokens=4)
    with pytest.raises(GuardError, match=f"returned {value}"):
        system.answer(PROMPTS, max_tokens=4)


def test_the_refusal_must_say_something(tiny_model):
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="The refusal is empty"):
            SafeSystem(tiny_model, guard, empty)


def test_no_prompts(tiny_model):
    system = SafeSystem(tiny_model, guard)
    with pytest.raises(ValueError, match="prompts is empty"):
        system.answer([], max_tokens=4)
    with pytest.raises(ValueError, match="prompts is empty"):
        system.sequence_teacher([], key=jax.random.key(0), max_tokens=4)
