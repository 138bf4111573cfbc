"""The agreement of answers with JAX's choices: its own answers agree, a changed token has a margin."""

import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.exporting.agreement import Agreement, agreement, own_differences
from edgesafe_jax.models import generate

PROMPTS = ["hello user", "in the 12th hell", "a"]


def test_own_answers_agree_and_a_changed_token_does_not(hf_model):
    answers = generate(hf_model, PROMPTS, max_tokens=6).tokens
    answers = [row or [hf_model.tokenizer.eos_ids[0]] for row in answers]
    found = agreement(hf_model, PROMPTS, answers, batch_size=2)
    assert found.equal.all()
    assert not np.any(np.concatenate(found.excluded))
    below = agreement(hf_model, PROMPTS, answers, num_tokens=max(max(row) for row in answers), batch_size=2)
    assert np.any(np.concatenate(below.excluded))  # the one token that was left out had won
    changed = [list(row) for row in answers]
    changed[1][-1] = (changed[1][-1] + 1) % 200
    other = agreement(hf_model, PROMPTS, changed, batch_size=2)
    assert other.equal.tolist() == [True, False, True]
    assert other.margins[1][-1] > 0
    np.testing.assert_array_equal(other.margins[1][:-1], 0)


def test_numbers():
    found = Agreement([np.zeros(3), np.array([0.0, 0.5])], [np.zeros(3, bool), np.array([True, False])]).numbers()
    assert found["excluded_tokens_above"] == 0.2
    assert (found["equal_answers"], found["equal_tokens"], found["margin_max"]) == (0.5, 0.8, 0.5)


def test_differences_of_a_runtime_from_itself():
    answers = [[1, 2, 3], [1, 2], [5]], [[1, 4, 4], [1, 2], [6]]
    first = Agreement([np.array([0.0, 0.5, 0.0]), np.zeros(2), np.zeros(1)], [np.zeros(3, bool)])
    second = Agreement([np.array([0.0, 0.2, 9.0]), np.zeros(2), np.array([0.25])], [np.zeros(3, bool)])
    np.testing.assert_allclose(own_differences(answers, (first, second)), [0.3, 0.25])
    np.testing.assert_array_equal(second.first_margins, [0.2, 0.25])


def test_missing_answers_are_refused(hf_model):
    for answers in ([[1]], [[1], [], [2]]):
        with pytest.raises(ConfigError, match="expected as many, and none empty"):
            agreement(hf_model, PROMPTS, answers)
