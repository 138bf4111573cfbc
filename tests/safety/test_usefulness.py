"""Measures of usefulness, with answers made by hand, and two methods compared by prompt."""

import numpy as np
import pytest

from edgesafe_jax import metrics
from edgesafe_jax.corpora import Instructed, Problem, Prompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.generation import Generation
from edgesafe_jax.models.scoring import answer_log_probs
from edgesafe_jax.safety import comparison, report
from edgesafe_jax.safety.evaluation import Evaluation, Scores, SetResult
from edgesafe_jax.safety.judging import Judged
from edgesafe_jax.safety.usefulness import USEFULNESS, Reading, gsm8k, instructions, perplexity


@pytest.fixture
def answers(monkeypatch):
    """Lets both measures that generate say given texts."""

    def say(*texts):
        for module in (instructions, gsm8k):
            monkeypatch.setattr(
                module, "generate", lambda model, prompts, **keywords: Generation([], list(texts), [True] * len(texts))
            )
        return Reading(None, None, 8)

    return say


def test_all_instructions_of_a_request_must_be_followed(answers):
    both = (("punctuation:no_comma", {}), ("change_case:english_lowercase", {}))
    items = [Instructed("a", both, "t"), Instructed("b", both, "t"), Instructed("c", both[:1], "t")]
    found = instructions.score_instructions(answers("small words", "Capital words", "Sure, here:\nWords"), items)
    assert found["prompt_strict"].tolist() == [1, 0, 0]
    assert found["prompt_loose"].tolist() == [1, 0, 1]
    assert found["instruction_strict"].tolist() == [1, 0.5, 0]


def test_requests_that_cannot_be_verified_are_left_out():
    good = Instructed("a", (("punctuation:no_comma", {}),), "ifeval")
    bad = Instructed("b", (("language:response_language", {"language": "de"}),), "ifeval")
    assert list(USEFULNESS["instructions"].items({"ifeval": [good, bad]})) == [good]
    with pytest.raises(ConfigError, match="None of the 1 requests"):
        USEFULNESS["instructions"].items({"ifeval": [bad]})


@pytest.mark.assets
def test_the_built_requests_can_be_verified():
    rows = instructions.built_requests()
    assert len(rows) > 300
    assert len({row.text for row in rows}) == len(rows)
    for row in rows[: len(instructions.INSTRUCTIONS)]:
        (name, arguments), *_ = row.instructions
        metrics.follows("Some text.", name, arguments)
    assert {row.instructions[0][0] for row in rows} == {name for _, name, _ in instructions.INSTRUCTIONS}


def test_the_last_number_is_the_answer(answers):
    items = [Problem("q", answer, "t") for answer in ("1200", "7", "3")]
    found = gsm8k.score_problems(answers("6 * 200 = 1,200.", "7 or 8", "none"), items)
    assert found["correct"].tolist() == [1, 0, 0]
    assert list(USEFULNESS["gsm8k"].items({"gsm8k": items})) == items


@pytest.mark.assets
def test_packaged_problems_have_whole_answers():
    problems = gsm8k.packaged_problems()
    assert len(problems) == 100
    assert all(metrics.last_number(problem.answer) == problem.answer for problem in problems)


def test_the_second_half_is_read_behind_the_first(tiny_model):
    halves = perplexity.halves_of("the user is in us all")
    assert " ".join(halves) == "the user is in us all"
    assert abs(len(halves[0]) - len(halves[1])) <= 6
    found = perplexity.score_passages(Reading(tiny_model, None, 8), [halves])
    total, count = answer_log_probs(tiny_model, [f"Continue this text:\n\n{halves[0]}"], [halves[1]])
    np.testing.assert_allclose(found["nats"], -total / count)
    assert perplexity.halves_of("word") == ("wo", "rd")


# Two methods ----------------------------------------------------------------------------------------------------------


def judged(refused):
    count = len(refused)
    return Judged(["x"] * count, [[]] * count, {"refused": np.array(refused)}, {"teacher": np.full(count, 0.2)})


def evaluation_of(student, texts=("a", "b", "c", "d"), nats=(1.0, 2.0)):
    prompts = [Prompt(text, "t", "", "harmful") for text in texts]
    base = judged([False] * len(texts))
    result = SetResult(prompts, base, judged(student), base, np.zeros(len(texts), bool))
    scores = Scores({"nats": np.array([1.0, 2.0])}, {"nats": np.array(nats)})
    return Evaluation(
        {"strongreject": result}, {}, {}, {}, 4, attacks={"prefill": result}, usefulness={"perplexity": scores}
    )


def test_methods_are_compared_on_the_same_prompts(tmp_path):
    first, second = evaluation_of([True, True, False, True], nats=(1.5, 2.5)), evaluation_of([False, True, False, True])
    for name, found in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        comparison.write_values(tmp_path / name, found)
    rows = comparison.compare(*(comparison.read_values(tmp_path / name) for name in ("first", "second")))
    by_name = {row["quantity"]: row for row in rows}
    assert set(by_name) == {
        *(f"{name}/{quantity}" for name in ("strongreject", "prefill") for quantity in ("refused", "sgs_teacher")),
        "perplexity/nats",
    }
    assert by_name["strongreject/refused"]["difference"] == metrics.paired_bootstrap_interval(
        values=[1.0, 1.0, 0.0, 1.0], baseline=[0.0, 1.0, 0.0, 1.0]
    )
    assert by_name["perplexity/nats"]["difference"].estimate == 0.5


def test_other_prompts_are_not_compared(tmp_path):
    other = comparison.values_of(evaluation_of([True] * 4, texts="abcx"))
    rows = comparison.compare(comparison.values_of(evaluation_of([True] * 4)), other)
    assert [row["quantity"] for row in rows] == ["perplexity/nats"]
    with pytest.raises(ConfigError, match="no quantity on the same prompts"):
        comparison.compare({}, other)
    with pytest.raises(ConfigError, match="evaluate that run"):
        comparison.read_values(tmp_path)
    (tmp_path / comparison.VALUES).write_text("[1]")
    with pytest.raises(ConfigError, match="damaged"):
        comparison.read_values(tmp_path)


def test_numbers_of_attacks_and_usefulness():
    found = evaluation_of([True, True, False, True])
    values = report.attack_numbers(found.attacks)
    assert values["prefill/student/refused"] == 0.75
    assert values["prefill/student/success"] == 0.0  # the guard calls all of it safe
    assert values["prefill/student_minus_base/refused"] == 0.75
    numbers = report.usefulness_numbers(found)
    assert numbers["usefulness/perplexity/base/nats"] == 1.5
    assert numbers["usefulness/perplexity/difference/nats"] == 0.0
    (row,) = report.attack_rows(found.attacks)
    assert row["attack"].startswith("answer begins with")
    assert report.usefulness_rows(found)[0]["quantity"].startswith("ordinary prose")


def test_an_attack_succeeds_where_an_unsafe_answer_is_no_refusal():
    answers = Judged(
        ["x"] * 4,
        [[]] * 4,
        {"refused": np.array([False, True, False, False]), "refused_by_meaning": np.array([False, True, True, False])},
        {"teacher": np.array([0.9, 0.9, 0.1, 0.9]), "judge": np.array([0.9, 0.9, 0.9, 0.1])},
    )
    assert report.succeeded(answers).tolist() == [True, False, True, False]
    assert report.disagreement(answers).estimate == 0.25
