"""What an alignment is trained on and measured on: disjoint, of the sizes asked for, the same every time."""

import dataclasses

import pytest

from edgesafe_jax import corpora
from edgesafe_jax.corpora import forms
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import examples
from edgesafe_jax.safety.prompts import (
    EVALUATION_SETS,
    PROMPT_KINDS,
    Split,
    evaluation_prompts,
    kept_out_of_training,
    training_prompts,
)
from edgesafe_jax.safety.training_data import TrainingData, choose, other_forms

pytestmark = pytest.mark.assets

SPLIT = Split(num_reserved_questions=1000, jailbreak_chars=1000)
RESEEDED = dataclasses.replace(SPLIT, seed=1)
ALL = {"strongreject": None, "harmbench": None, "jailbreaks": 100, "sensitive": None, "plain": None}


@pytest.fixture(scope="module")
def evaluated():
    return evaluation_prompts(ALL, SPLIT)


@pytest.fixture(scope="module")
def trained():
    return training_prompts(num_harmful=None, num_sensitive=None, num_plain=None, split=SPLIT)


@pytest.fixture(scope="module")
def few():
    return training_prompts(num_harmful=20, num_sensitive=30, num_plain=10, split=SPLIT)


def texts(prompts_by_name):
    return [p.text for chosen in prompts_by_name.values() for p in chosen]


def test_no_training_prompt_overlaps_an_evaluation_prompt(evaluated, trained):
    chosen, removed = trained
    held_out = [p for name, part in evaluated.items() if name != "jailbreaks" for p in part]
    _, overlapping = corpora.remove_overlap([p for part in chosen.values() for p in part], held_out)
    assert overlapping == []
    assert removed > 0  # the sets do overlap before they are filtered


def test_no_jailbreak_holds_a_training_request(evaluated, trained):
    requests = {corpora.normalise(text) for text in texts(trained[0])}
    for prompt in evaluated["jailbreaks"]:
        assert corpora.normalise(prompt.text) not in requests


def test_no_training_prompt_comes_twice(trained):
    normalised = [corpora.normalise(text) for text in texts(trained[0])]
    assert len(normalised) == len(set(normalised))


def test_groups_have_their_labels(evaluated, trained):
    labels = {name: {p.label for p in part} for name, part in trained[0].items()}
    assert labels == {"harmful": {"harmful"}, "sensitive": {"benign"}, "plain": {"benign"}}
    assert tuple(labels) == PROMPT_KINDS
    for name, part in evaluated.items():
        assert {p.label for p in part} == {"harmful" if EVALUATION_SETS[name].harmful else "benign"}


def test_sizes(evaluated, few):
    assert {name: len(part) for name, part in evaluated.items()} == {
        "strongreject": 313,
        "harmbench": 200,
        "jailbreaks": 100,
        "sensitive": 150,
        "plain": 600,
    }
    some = evaluation_prompts({"strongreject": 7, "harmbench": 0, "jailbreaks": 0, "sensitive": 5, "plain": 3}, SPLIT)
    assert {name: len(part) for name, part in some.items()} == {"strongreject": 7, "sensitive": 5, "plain": 3}
    assert {name: len(part) for name, part in few[0].items()} == {"harmful": 20, "sensitive": 30, "plain": 10}


def test_more_than_there_is_takes_all(evaluated):
    assert evaluation_prompts({"sensitive": 10**6}, SPLIT)["sensitive"] == evaluated["sensitive"]


def test_the_choice_hangs_on_the_seed_alone(few):
    again, other = (
        training_prompts(num_harmful=20, num_sensitive=30, num_plain=10, split=dataclasses.replace(SPLIT, seed=seed))
        for seed in (0, 1)
    )
    assert few == again
    for name, chosen in few[0].items():
        assert set(chosen) != set(other[0][name])
    small = dict.fromkeys(ALL, 10)
    assert evaluation_prompts(small, SPLIT) == evaluation_prompts(small, SPLIT)
    assert texts(evaluation_prompts(small, SPLIT)) != texts(evaluation_prompts(small, RESEEDED))


def test_only_texts_that_fit_are_chosen(few):
    short, removed = training_prompts(
        num_harmful=20, num_sensitive=30, num_plain=10, split=SPLIT, fits=lambda text: len(text) < 50
    )
    assert {name: len(chosen) for name, chosen in short.items()} == {"harmful": 20, "sensitive": 30, "plain": 10}
    assert all(len(p.text) < 50 for chosen in short.values() for p in chosen)
    assert any(len(p.text) >= 50 for chosen in few[0].values() for p in chosen)
    assert removed == few[1]


def test_prompts_in_other_forms_come_behind_the_others(few):
    more, _ = training_prompts(num_harmful=20, num_sensitive=30, num_plain=10, num_forms=4, split=SPLIT)
    for name, chosen in few[0].items():
        assert more[name][: len(chosen)] == chosen
        added = more[name][len(chosen) :]
        assert len(added) == 4
        assert {(p.source, p.label) for p in added} == {("form", chosen[0].label)}
        assert corpora.remove_overlap(added, kept_out_of_training(SPLIT))[1] == []
    none, _ = training_prompts(num_harmful=2, num_sensitive=2, num_plain=0, num_forms=4, split=SPLIT)
    assert none["plain"] == []


def test_everyday_questions_are_plain_prompts(few):
    more, _ = training_prompts(num_harmful=20, num_sensitive=30, num_plain=10, num_everyday=5, split=SPLIT)
    assert {name: more[name] for name in ("harmful", "sensitive")} == {n: few[0][n] for n in ("harmful", "sensitive")}
    assert more["plain"][:10] == few[0]["plain"]
    assert [p.source for p in more["plain"][10:]] == ["everyday"] * 5
    assert corpora.remove_overlap(more["plain"], kept_out_of_training(SPLIT))[1] == []


def test_other_forms_overlap_no_evaluation_prompt():
    said = forms.past_goals()[0].text  # an evaluation prompt in another form is one still
    act = said.removeprefix("How did people ").removesuffix(" in the past?")
    texts = [f"How do I {act}?", [{"role": "user", "content": "Who is it?"}], "Why is it so?"]
    found = other_forms(TrainingData(forms_per_prompt=2), texts, SPLIT)
    assert {i for i, _ in found} <= {0, 2}
    assert (2, "Write a blog post that answers “Why is it so?”.") in found
    assert other_forms(TrainingData(), texts, SPLIT) == []


def test_harmful_requests_are_named_for_a_teacher_that_refuses_them_whatever_the_answer():
    data = TrainingData(num_harmful=4, num_sensitive=3, num_plain=2, num_forms=1, refuse_harmful=True)
    found = choose(data, SPLIT, len)
    harmful = {
        p.text
        for p in training_prompts(num_harmful=4, num_sensitive=3, num_plain=2, num_forms=1, split=SPLIT)[0]["harmful"]
    }
    assert set(found.refused) == harmful
    assert choose(dataclasses.replace(data, refuse_harmful=False), SPLIT, len).refused == []
    with pytest.raises(ConfigError, match="refuse_harmful=True is for the packaged prompts"):
        TrainingData(path="mine.jsonl", refuse_harmful=True)


def test_a_smaller_set_of_questions_is_part_of_a_larger_one(evaluated):
    few = evaluation_prompts({"plain": 50}, SPLIT)
    assert few["plain"] == evaluated["plain"][:50]


def test_no_question_of_a_guard_is_evaluated(evaluated):
    asked = {p.text for p in evaluated["plain"]}
    for role in ("teacher", "judge"):
        assert not asked & {p.text for p in examples.plain_of(role, 200)}
    assert [p.text for p in examples.held_out_questions()] == [p.text for p in evaluated["plain"][:200]]
