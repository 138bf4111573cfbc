"""Arguments of the wrong kind are named before any work, and numbers that mean nothing are not reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import adapters
from edgesafe_jax.corpora import Choice, Prompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.verdicts import GuardError
from edgesafe_jax.models.finite import NonFiniteError
from edgesafe_jax.models.generation import Generation
from edgesafe_jax.models.scoring import kl_from_base
from edgesafe_jax.safety import align, evaluate, multiple_choice, sharpened
from edgesafe_jax.safety.batches import make_batch_order
from edgesafe_jax.safety.evaluation import EvaluationSettings, answer_rows, evaluate_set
from edgesafe_jax.safety.judging import Judge, base_judges, judge_responses, make_judges
from edgesafe_jax.safety.prompts import Split, evaluation_prompts, training_prompts
from edgesafe_jax.safety.system import SafeSystem, SequenceTeacher
from edgesafe_jax.safety.teacher import TeacherOptions, make_teacher, make_teacher_data, refusal_ids, refusal_margins

PROMPT = Prompt("hello", "test", "", "benign")
CHOICE = Choice("hello", ("in", "the"), 0, "test")
KEY = jax.random.key(0)
SPLIT = Split(num_reserved_questions=10, jailbreak_chars=100)


def guard(prompts, responses):
    del responses
    return np.full(len(prompts), 0.5)


def teacher(texts, **given):
    num = len(texts)
    answers = Generation([[5, 6]] * num, ["x"] * num, [True] * num, **given)
    return SequenceTeacher(list(texts), answers, np.full(num, 0.5), "no.")


def judged(model, texts="hello", responses="hello"):
    del model
    return judge_responses(texts, responses, [[1]], base_judges(guard))


LETTERS = {
    "answer": lambda m, path: SafeSystem(m, guard).answer("hello", max_tokens=2),
    "answer, prefills": lambda m, path: SafeSystem(m, guard).answer(["hello"], max_tokens=2, prefills="h"),
    "sequence_teacher": lambda m, path: SafeSystem(m, guard).sequence_teacher("hello", key=KEY, max_tokens=2),
    "refusal_margins": lambda m, path: refusal_margins(m, None, "hello", "no."),
    "align": lambda m, path: align(m, guard, "hello"),
    "align, labels": lambda m, path: align(m, guard, ["hello"] * 3, labels="abc"),
    "make_teacher": lambda m, path: make_teacher(SafeSystem(m, guard), "abc", ["a"] * 3, path, TeacherOptions(2, 2)),
    "make_teacher, labels": lambda m, path: make_teacher(
        SafeSystem(m, guard), ["a"] * 3, "abc", path, TeacherOptions(2, 2)
    ),
    "judge_responses": lambda m, path: judged(m),
    "judge_responses, responses": lambda m, path: judged(m, texts=["hello"]),
    "make_judges": lambda m, path: make_judges(guard, lambda texts: np.zeros((len(texts), 2)), "teacher"),
    "rewordings": lambda m, path: EvaluationSettings(rewordings="casual"),  # type: ignore[arg-type]
    "multiple_choice": lambda m, path: EvaluationSettings(multiple_choice="piqa"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("call", LETTERS)
def test_a_string_is_not_a_list_of_its_letters(tiny_model, tmp_path, call):
    with pytest.raises(ConfigError, match="is one string: expected a list of strings"):
        LETTERS[call](tiny_model, tmp_path)


COUNTS = {
    "answer": lambda m, n: SafeSystem(m, guard).answer(["hello"], max_tokens=2, batch_size=n),
    "sequence_teacher": lambda m, n: SafeSystem(m, guard).sequence_teacher(["a"], key=KEY, max_tokens=2, batch_size=n),
    "make_teacher_data": lambda m, n: make_teacher_data(
        m, teacher(["hello"]), max_tokens=2, with_hidden=True, batch_size=n
    ),
    "make_teacher_data, max_tokens": lambda m, n: make_teacher_data(
        m, teacher(["hello"]), max_tokens=n, with_hidden=False
    ),
    "refusal_margins": lambda m, n: refusal_margins(m, None, ["hello"], "no.", batch_size=n),
    "multiple_choice": lambda m, n: multiple_choice(m, [CHOICE], batch_size=n),
    "evaluate_set": lambda m, n: evaluate_set(
        m, None, SafeSystem(m, guard), [PROMPT], base_judges(guard), max_tokens=2, batch_size=n
    ),
    "answer_rows": lambda m, n: answer_rows(m, None, [PROMPT], base_judges(guard), max_tokens=n),
    "make_batch_order": lambda m, n: make_batch_order(
        np.ones(3), batch_size=n, seed=0, groups={"a": [0]}, mixture={"a": 1.0}
    ),
    "evaluation": lambda m, n: EvaluationSettings(max_tokens=n),
}


@pytest.mark.parametrize("call", COUNTS)
@pytest.mark.parametrize("count", [-1, 0, 2.5])
def test_a_count_is_at_least_one(tiny_model, call, count):
    with pytest.raises(ConfigError, match=rf"={count}: expected at least 1"):
        COUNTS[call](tiny_model, count)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: evaluate_set(m, None, SafeSystem(m, guard), ["a"], {}, max_tokens=2), "a list of .*Prompt"),
        (lambda m: multiple_choice(m, ["a"]), "choices has a str: expected a list of .*Choice"),
        (lambda m: multiple_choice(m, "abc"), "choices has a str"),
        (lambda m: answer_rows(m, None, "abc", {}, max_tokens=2), "prompts has a str"),
        (lambda m: multiple_choice(m, []), "no questions"),
        (lambda m: evaluate(SafeSystem(m, guard), None, {}, {}, EvaluationSettings()), "no set of prompts"),
        (lambda m: SafeSystem(m, guard, None), "no text"),
        (lambda m: refusal_margins(m, None, ["a"], " "), "refusal is empty"),
        (lambda m: SafeSystem(m, guard).answer(["a"], max_tokens=2, threshold=float("nan")), "threshold=nan"),
        (lambda m: SafeSystem(m, guard).answer(["a"], max_tokens=2, threshold=50), "threshold=50: expected 0 to 1"),
        (lambda m: sharpened(guard, sharpness=-1), "sharpness=-1"),
        (lambda m: sharpened(guard, threshold=1.0), "threshold=1.0"),
        (lambda m: align(m, guard, []), "empty"),
        (lambda m: judge_responses(["a"], ["b"], [], base_judges(guard)), "1 prompts, 1 responses and 0 rows"),
        (lambda m: evaluation_prompts({"plain": -1}, SPLIT), "the size of plain=-1"),
        (lambda m: evaluation_prompts({"planes": 1}, SPLIT), "Did you mean 'plain'"),
        (lambda m: training_prompts(num_harmful=-1, num_sensitive=1, num_plain=1, split=SPLIT), "num_harmful=-1"),
    ],
)
def test_what_means_nothing_is_named(tiny_model, call, message):
    with pytest.raises(ConfigError, match=message):
        call(tiny_model)


# Numbers that are not finite ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken_model(tiny_model):
    """One NaN in the last norm."""
    params = {**tiny_model.params, "final_norm": {"scale": tiny_model.params["final_norm"]["scale"].at[3].set(jnp.nan)}}
    return dataclasses.replace(tiny_model, params=params)


READERS = {
    "answer": lambda m, adapter: SafeSystem(m, guard).answer(["hello"], max_tokens=2, adapter=adapter),
    "sequence_teacher": lambda m, adapter: SafeSystem(m, guard).sequence_teacher(["hello"], key=KEY, max_tokens=2),
    "teacher_data": lambda m, adapter: make_teacher_data(m, teacher(["hello"]), max_tokens=2, with_hidden=True),
    "margins": lambda m, adapter: refusal_margins(m, adapter, ["hello"], "no."),
    "multiple_choice": lambda m, adapter: multiple_choice(m, [CHOICE], adapter=adapter),
    "kl": lambda m, adapter: kl_from_base(m, ["hello"], [[5, 6]], adapter=adapter),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_model_that_computes_nan_has_no_results(broken_model, tiny_model, reader):
    prompt = adapters.make_adapter(KEY, "soft_prompt", tiny_model, init="random", num_virtual=4)
    with pytest.raises(NonFiniteError, match="final_norm"):
        READERS[reader](broken_model, prompt)


@pytest.mark.parametrize("reader", ["answer", "margins", "multiple_choice", "kl"])
def test_an_adapter_that_holds_nan_has_no_results(tiny_model, reader):
    prompt = adapters.make_adapter(KEY, "soft_prompt", tiny_model, init="random", num_virtual=4)
    damaged = prompt.replace(embeddings=prompt.embeddings.at[0, 0].set(jnp.nan))
    with pytest.raises(NonFiniteError, match="adapter"):
        READERS[reader](tiny_model, damaged)


def test_hidden_states_that_are_not_finite_are_not_distilled(tiny_model):
    hidden = np.zeros((2, 3, tiny_model.config.embed_dim), np.float32)
    hidden[1, 2, 5] = np.inf
    with pytest.raises(NonFiniteError, match="hidden states of answer 1"):
        make_teacher_data(tiny_model, teacher(["a", "b"], hidden=hidden), max_tokens=3, with_hidden=True)


@pytest.mark.parametrize("kind", ["refusal", "unsafe"])
def test_a_judge_that_says_nan_is_refused(kind):
    judges = {**base_judges(guard), "mine": Judge(lambda prompts, responses: np.array([np.nan]), kind)}
    with pytest.raises(GuardError, match="returned nan for pair 0"):
        judge_responses(["hello"], ["Here."], [[5]], judges)


# Ends -----------------------------------------------------------------------------------------------------------------


def test_an_answer_keeps_the_end_that_the_model_gave_it(tiny_model):
    """The model may stop at any of its end tokens; the refusal ends as the template ends a turn."""
    tokenizer = tiny_model.tokenizer
    both = dataclasses.replace(
        tiny_model,
        tokenizer=type(tokenizer)(
            tokenizer._tokenizer,
            chat_template=tokenizer.chat_template,
            eos_ids=[0, 2],
            pad_id=0,
            eos_token="<|endoftext|>",
        ),
    )
    data = make_teacher_data(
        both, teacher(["a", "b", "c"], ends=[0, 2, None]), max_tokens=6, with_hidden=False, min_weight=0.0
    )
    assert data.outcomes[:3] == [[5, 6, 0], [5, 6, 2], [5, 6]]
    assert refusal_ids(both, "no.")[-1] == data.outcomes[3][-1] == 2
