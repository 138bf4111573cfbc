"""What several runs share: the teacher and the base model's answers, with a `generate` that needs no model."""

import dataclasses

import numpy as np
import pytest

from edgesafe_jax.models.generation import Generation
from edgesafe_jax.safety import shared
from edgesafe_jax.safety.system import SafeSystem
from edgesafe_jax.safety.teacher import TeacherOptions
from edgesafe_jax.training import locks

PROMPTS, LABELS = ["hello", "the user", "us", "why"], ["plain"] * 4
OPTIONS = TeacherOptions(max_tokens=4, num_positions=4, guard_id="words")


class Answers:
    """Stands for generation: counts its calls."""

    def __init__(self):
        self.num_calls = 0

    def __call__(self, model, prompts, *, max_tokens, keep_hidden=False, **options):
        self.num_calls += 1
        tokens = [model.tokenizer.encode(text)[:max_tokens] for text in prompts]
        hidden = np.ones((len(prompts), max_tokens, model.config.embed_dim), np.float32) if keep_hidden else None
        return Generation(tokens, list(prompts), [True] * len(prompts), hidden, [2] * len(prompts))


def judge(prompts, responses):
    return np.array([0.9 if len(prompt) > 3 else 0.1 for prompt in prompts])


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def system(tiny_model, answers):
    return SafeSystem(tiny_model, judge, generate=answers)


def test_a_teacher_is_sampled_once_for_runs_with_and_without_hidden_states(system, answers, tmp_path):
    make = lambda options, **changes: shared.shared_teacher(  # noqa: E731
        dataclasses.replace(system, **changes), PROMPTS, LABELS, tmp_path, options
    )
    without = make(dataclasses.replace(OPTIONS, with_hidden=False))
    assert without.data.teacher_hidden.shape == (4, 0, 16)
    first = make(OPTIONS)
    again = make(dataclasses.replace(OPTIONS, num_held_out=1))  # which prompts are held out costs nothing
    assert answers.num_calls == 1
    np.testing.assert_array_equal(first.data.teacher_hidden, again.data.teacher_hidden)
    assert first.data.teacher_hidden.any()
    assert len(list(tmp_path.glob("teacher_*"))) == 1
    for options, changes in (
        (dataclasses.replace(OPTIONS, seed=1), {}),
        (dataclasses.replace(OPTIONS, temperature=1.0), {}),
        (OPTIONS, {"refusal": "No."}),
    ):
        make(options, **changes)
    assert answers.num_calls == 4


def test_a_teacher_with_another_guard_takes_over_the_answers(system, answers, tmp_path):
    first = shared.shared_teacher(system, PROMPTS, LABELS, tmp_path, OPTIONS)
    strict = dataclasses.replace(system, guard=lambda prompts, responses: np.array([0.9, 0.9, 0.9, 0.1]))
    other = dataclasses.replace(OPTIONS, guard_id="strict")
    second = shared.shared_teacher(strict, PROMPTS, LABELS, tmp_path, other)
    assert answers.num_calls == 1
    np.testing.assert_allclose(first.data.refusal_prob, [0.9, 0.9, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(second.data.refusal_prob, [0.9, 0.9, 0.9, 0.1], rtol=1e-6)
    assert (first.data.answers, second.data.max_tokens) == (second.data.answers, first.data.max_tokens)
    np.testing.assert_array_equal(first.data.teacher_hidden, second.data.teacher_hidden)
    assert len(list(tmp_path.glob("teacher_*"))) == 2
    again = shared.shared_teacher(system, PROMPTS, LABELS, tmp_path, OPTIONS)  # the first one is as it was
    np.testing.assert_array_equal(again.data.refusal_prob, first.data.refusal_prob)


def test_a_damaged_teacher_is_made_again(system, answers, tmp_path, caplog):
    first = shared.shared_teacher(system, PROMPTS, LABELS, tmp_path, OPTIONS)
    [folder] = tmp_path.glob("teacher_*")
    with (folder / "teacher_hidden.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x00\x41")
    again = shared.shared_teacher(system, PROMPTS, LABELS, tmp_path, OPTIONS)
    assert "is damaged" in caplog.text
    assert answers.num_calls == 2
    np.testing.assert_array_equal(first.data.teacher_hidden, again.data.teacher_hidden)


def test_a_run_waits_for_the_teacher_that_another_one_makes(system, answers, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "edgesafe_jax")
    shared.shared_teacher(system, PROMPTS, LABELS, tmp_path, OPTIONS)
    owners = iter(["process 7 on host h", "process 7 on host h", None])
    monkeypatch.setattr(locks, "acquire", lambda folder: next(owners, None))
    shared.shared_teacher(system, PROMPTS, LABELS, tmp_path, OPTIONS)
    assert caplog.text.count("waiting for the teacher that process 7 on host h makes") == 1
    assert answers.num_calls == 1


def test_greedy_answers_without_an_adapter_are_kept(tiny_model, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "generate", answers)
    keep = shared.keep_answers(tmp_path)
    first = keep(tiny_model, PROMPTS, max_tokens=4)
    assert keep(tiny_model, PROMPTS, max_tokens=4, batch_size=2) == first
    assert answers.num_calls == 1
    for options in ({"max_tokens": 3}, {"max_tokens": 4, "prefills": ["a"] * 4}):
        keep(tiny_model, PROMPTS, **options)
    assert answers.num_calls == 3
    for options in ({"adapter": object()}, {"temperature": 1.0}, {"keep_hidden": True}):
        for _ in range(2):
            keep(tiny_model, PROMPTS, max_tokens=4, **options)
    assert answers.num_calls == 9
    assert len(list(tmp_path.glob("answers_*.json"))) == 3
