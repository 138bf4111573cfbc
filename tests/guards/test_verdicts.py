"""What a guard may return."""

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.guards.verdicts import GuardError, checked, judged_once

PROMPTS, RESPONSES = ["one", "two", "three"], ["a", "b", "c"]


def returning(value):
    return checked(lambda prompts, responses: value)


def test_the_guard_sees_the_pairs_as_they_are():
    seen = []

    def guard(prompts, responses):
        seen.append((prompts, responses))
        return np.zeros(3)

    checked(guard)(PROMPTS, RESPONSES)
    assert seen == [(PROMPTS, RESPONSES)]


@pytest.mark.parametrize("value", [[0, 0.5, 1], (0, 0.5, 1), np.float16([0, 0.5, 1]), jnp.array([0, 0.5, 1])])
def test_whatever_it_returns_becomes_float64(value):
    result = returning(value)(PROMPTS, RESPONSES)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, [0, 0.5, 1])


@pytest.mark.parametrize("wrong", [np.nan, -1e-6, 1.0001, np.inf, -np.inf])
def test_a_value_that_is_no_probability_is_refused_and_named(wrong):
    message = rf"returned {wrong} for pair 1 \(prompt 'two'\.\.\.\).*1 of 3 values are wrong"
    with pytest.raises(GuardError, match=message):
        returning([0.5, wrong, 0.5])(PROMPTS, RESPONSES)
    with pytest.raises(GuardError, match=r"pair 0 .*3 of 3"):
        returning([wrong] * 3)(PROMPTS, RESPONSES)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 1), (1, 3), (0,)])
def test_another_shape_is_refused(shape):
    with pytest.raises(GuardError, match=r"returned shape .* for 3 pairs: expected one number each"):
        returning(np.full(shape, 0.5))(PROMPTS, RESPONSES)


def test_as_many_responses_as_prompts_are_needed():
    called = checked(lambda prompts, responses: pytest.fail("the guard was called"))
    with pytest.raises(ValueError, match="3 prompts and 2 responses"):
        called(PROMPTS, RESPONSES[:2])


def test_a_long_prompt_is_shown_shortened():
    with pytest.raises(GuardError) as error:
        returning([np.nan])(["x" * 200], ["y"])
    assert "x" * 40 in str(error.value)
    assert "x" * 41 not in str(error.value)


def test_no_pairs():
    assert returning([])([], []).shape == (0,)


def test_a_pair_is_judged_once():
    seen = []

    def guard(prompts, responses):
        seen.append(list(zip(prompts, responses, strict=True)))
        return np.array([len(prompt) / 10 for prompt in prompts])

    once = judged_once(guard)
    np.testing.assert_array_equal(once(["a", "bb", "a"], ["x", "y", "x"]), [0.1, 0.2, 0.1])
    np.testing.assert_array_equal(once(["bb", "a", "a"], ["y", "z", "x"]), [0.2, 0.1, 0.1])
    assert seen == [[("a", "x"), ("bb", "y")], [("a", "z")]]
    assert once(["a"], ["x"]).dtype == np.float64
    assert once([], []).shape == (0,)
    assert len(seen) == 2
    with pytest.raises(GuardError, match=r"returned 1\.1 for pair 0"):
        once(["c" * 11], ["x"])
