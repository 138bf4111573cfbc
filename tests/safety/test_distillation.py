"""Distillation: packed rows against separate sequences, losses against their definitions in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edgesafe_jax import losses
from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models import generation
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import ContextError, Generation
from edgesafe_jax.safety.distillation import (
    BUCKETS,
    TeacherData,
    decision_objective,
    make_batch_order,
    make_loss,
    make_teacher_data,
    mixed_objective,
    refusal_ids,
    sequence_objective,
    student_outcomes,
    token_objective,
    token_teacher,
)
from edgesafe_jax.safety.system import SequenceTeacher

ADAPTER = SoftPrompt(0.5 * jax.random.normal(jax.random.key(3), (4, 16)))
REFUSAL = "no."
SAFE_PROB = [0.3, 0.9, 0.0, 1.0]
NUM_RESPONSE = 6

outcomes_of = jax.jit(student_outcomes, static_argnames="decoder")


@functools.partial(jax.jit, static_argnames="decoder")
def all_logits(decoder, params, tokens, where, adapter):
    hidden = decoder.apply({"params": params}, tokens, where=where, adapter=adapter).hidden
    return decoder.apply({"params": params}, hidden, method=Decoder.logits)[0]


def naive_log_probs(model, prompt: list[int], outcome: list[int], adapter=None) -> np.ndarray:
    """Log-probabilities `[len(outcome), V]` along an outcome, from a pass over that one sequence."""
    before = [*model.tokenizer.chat_parts.head, *prompt]
    ids = [*before, *outcome]
    tokens, where = np.zeros((1, 96), np.int32), np.zeros((1, 96), bool)
    tokens[0, : len(ids)], where[0, : len(ids)] = ids, True
    logits = np.asarray(all_logits(model.decoder, model.params, tokens, where, adapter), np.float64)
    return scipy.special.log_softmax(logits, axis=-1)[len(before) - 1 : len(ids) - 1]


@pytest.fixture(scope="module")
def refusal(tiny_model):
    return refusal_ids(tiny_model, REFUSAL)


@pytest.fixture(scope="module")
def data(tiny_model):
    """Four rows of unlike lengths, with the base model's hidden states; the second answer is cut, the third empty."""
    encode, decode = tiny_model.tokenizer.encode, tiny_model.tokenizer.decode
    prompts = [" hello you\n", "the user in 20", "a b c", "us er now"]
    tokens = [encode(text) for text in ("the in", "abcdefgh", "", "userxyz")]
    answers = Generation(tokens, [decode(ids) for ids in tokens], [True, False, True, True])
    teacher = SequenceTeacher(prompts, answers, np.array(SAFE_PROB), REFUSAL)
    seen = []
    data = make_teacher_data(
        tiny_model,
        teacher,
        max_tokens=NUM_RESPONSE,
        with_hidden=True,
        batch_size=3,
        on_batch=lambda *done: seen.append(done),
    )
    assert seen == [(3, 4), (4, 4)]
    return data


@pytest.fixture(scope="module")
def batch(data):
    """All rows and one of padding."""
    return data.batch([0, 1, 2, 3, -1], pad_id=0)


@pytest.fixture(scope="module")
def teacher_probs(tiny_model, batch):
    return jax.jit(lambda batch: token_teacher(tiny_model, batch, refusal=REFUSAL))(batch)


@pytest.fixture(scope="module")
def outcomes(tiny_model, batch, refusal):
    head = jnp.array(tiny_model.tokenizer.chat_parts.head, jnp.int32)
    return outcomes_of(tiny_model.decoder, tiny_model.params, ADAPTER, head, batch, jnp.asarray(refusal))


@pytest.fixture(scope="module")
def naive(tiny_model, data, refusal):
    """For each row the log-probabilities of student along y, student along y_r, base along y."""
    rows = []
    for prompt, response in zip(data.prompt, data.response, strict=True):
        rows.append(
            (
                naive_log_probs(tiny_model, prompt, response, ADAPTER),
                naive_log_probs(tiny_model, prompt, refusal.tolist(), ADAPTER),
                naive_log_probs(tiny_model, prompt, response),
            )
        )
    return rows


def chosen(log_probs, tokens):
    return log_probs[np.arange(len(tokens)), tokens]


# One row, two outcomes ------------------------------------------------------------------------------------------------


def test_packed_outcomes_equal_separate_sequences(outcomes, naive, data):
    for row, (student, refused, base) in enumerate(naive):
        length = len(data.response[row])
        for logits, expected in (
            (outcomes.response_logits[row, :length], student),
            (outcomes.refusal_logits[row], refused),
            (outcomes.teacher_logits[row, :length], base),
        ):
            np.testing.assert_allclose(jax.nn.log_softmax(logits), expected, rtol=1e-3, atol=1e-3)
    assert np.all(np.isfinite(outcomes.response_logits))  # the row of padding too


def test_refusal_ends_with_the_end_of_the_turn(tiny_model, refusal):
    assert refusal.tolist() == [*tiny_model.tokenizer.encode(REFUSAL), 2]
    assert refusal.dtype == np.int32


def test_token_teacher_mixes_at_the_first_position_only(teacher_probs, data, naive, refusal):
    along_response, along_refusal = teacher_probs
    for row, (_, _, base) in enumerate(naive):
        a, length = SAFE_PROB[row], len(data.response[row])
        expected = np.exp(base)
        expected[0] *= a
        expected[0, refusal[0]] += 1 - a
        np.testing.assert_allclose(along_response[row, :length], expected, atol=1e-3)
        np.testing.assert_allclose(along_refusal[row, 0], expected[0], atol=1e-3)
        np.testing.assert_array_equal(along_refusal[row, 1:], np.eye(272)[refusal[1:]])
    np.testing.assert_allclose(np.sum(along_response, axis=-1), 1, atol=1e-5)


# Objectives -----------------------------------------------------------------------------------------------------------


def kl(p, log_q):
    return np.sum(scipy.special.xlogy(p, p) - p * log_q, axis=-1)


def tv(p, log_q):
    return 0.5 * np.sum(np.abs(p - np.exp(log_q)), axis=-1)


LOSSES = {
    "tv": (sequence_objective, losses.sequence_total_variation),
    "kl": (sequence_objective, losses.sequence_kl),
    "token_tv": (token_objective, losses.total_variation),
    "token_kl": (token_objective, losses.forward_kl),
}
REDUCTIONS = {"mean": np.mean, "sum": np.sum}


@pytest.fixture(scope="module")
def values(outcomes, batch):
    """Every objective under both normalisations, `[B]` each."""
    objectives = {
        (name, normalization): make(loss, normalization=normalization)
        for name, (make, loss) in LOSSES.items()
        for normalization in REDUCTIONS
    }
    for name, loss in (("token_kl", losses.forward_kl), ("token_tv", losses.total_variation)):
        objectives[name, "first"] = decision_objective(loss)
    objectives["mixed", "mean"] = mixed_objective((0.3, objectives["tv", "mean"]), (2.0, objectives["kl", "sum"]))
    values = jax.jit(lambda outcomes, batch: {name: o(outcomes, batch) for name, o in objectives.items()})(
        outcomes, batch
    )
    return {name: np.asarray(value) for name, value in values.items()}


@pytest.mark.parametrize("normalization", REDUCTIONS)
def test_sequence_objectives_follow_their_equations(values, naive, data, refusal, normalization):
    reduce = REDUCTIONS[normalization]
    for row, (student, refused, _) in enumerate(naive):
        a = np.array([SAFE_PROB[row], 1 - SAFE_PROB[row]])
        log_q = np.array([reduce(chosen(student, data.response[row])), reduce(chosen(refused, refusal))])
        expected = np.sum(scipy.special.xlogy(a, a) - a * log_q)
        np.testing.assert_allclose(values["kl", normalization][row], expected, rtol=1e-3)
        a = np.clip(a, 1e-4, 1 - 1e-4)
        expected = np.sum(-a * np.minimum(0, log_q - np.log(a)))
        np.testing.assert_allclose(values["tv", normalization][row], expected, rtol=1e-3)


@pytest.mark.parametrize("normalization", REDUCTIONS)
@pytest.mark.parametrize(("name", "divergence"), [("token_kl", kl), ("token_tv", tv)])
def test_token_objectives_follow_the_token_teacher(values, teacher_probs, naive, data, name, divergence, normalization):
    """The divergence to the gated teacher position by position, each outcome weighed by its probability."""
    reduce = REDUCTIONS[normalization]
    along_response, along_refusal = (np.asarray(probs, np.float64) for probs in teacher_probs)
    for row, (student, refused, _) in enumerate(naive):
        answer = reduce(divergence(along_response[row, : len(data.response[row])], student))
        rest = reduce(divergence(along_refusal[row], refused))
        expected = SAFE_PROB[row] * answer + (1 - SAFE_PROB[row]) * rest
        np.testing.assert_allclose(values[name, normalization][row], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "divergence"), [("token_kl", kl), ("token_tv", tv)])
def test_decision_objective_is_the_first_position_and_the_refusal(values, teacher_probs, naive, name, divergence):
    for row, (student, refused, _) in enumerate(naive):
        first = divergence(np.asarray(teacher_probs[0][row, 0], np.float64), student[0])
        rest = divergence(np.asarray(teacher_probs[1][row], np.float64), refused)[1:].sum()
        expected = first + (1 - SAFE_PROB[row]) * rest
        np.testing.assert_allclose(values[name, "first"][row], expected, rtol=2e-3, atol=1e-4)
    assert values[name, "first"][4] == 0


def test_mixed_objective_is_the_weighted_sum(values):
    expected = 0.3 * values["tv", "mean"] + 2.0 * values["kl", "sum"]
    np.testing.assert_allclose(values["mixed", "mean"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        mixed_objective()


def test_loss_is_the_mean_over_the_rows_that_exist_and_can_be_minimised(
    tiny_model, values, batch, naive, data, refusal
):
    objective = mixed_objective(
        (1.0, sequence_objective(losses.sequence_total_variation)), (0.5, token_objective(losses.forward_kl))
    )
    head = tiny_model.tokenizer.chat_parts.head
    loss = make_loss(tiny_model.decoder, head=head, refusal=refusal, objective=objective)
    step = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))
    (value, metrics), gradient = step(tiny_model.params, ADAPTER, batch)
    expected = np.mean((values["tv", "mean"] + 0.5 * values["token_kl", "mean"])[:4])
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    # Of the answers that are safe and of the refusals of those that are not.
    answers = [np.mean(chosen(student, data.response[row])) for row, (student, _, _) in enumerate(naive)]
    refusals = [np.mean(chosen(refused, refusal)) for _, refused, _ in naive]
    np.testing.assert_allclose(metrics["answer_log_prob"], np.mean([answers[1], answers[3]]), rtol=1e-3)
    np.testing.assert_allclose(metrics["refusal_log_prob"], np.mean([refusals[0], refusals[2]]), rtol=1e-3)
    # The gradient against a central difference along it.
    slope = np.linalg.norm(gradient.embeddings)
    direction = gradient.embeddings / slope
    (ahead, _), _ = step(tiny_model.params, SoftPrompt(ADAPTER.embeddings + 3e-3 * direction), batch)
    (behind, _), _ = step(tiny_model.params, SoftPrompt(ADAPTER.embeddings - 3e-3 * direction), batch)
    np.testing.assert_allclose((ahead - behind) / 6e-3, slope, rtol=2e-2)
    # Some steps of descent.
    embeddings = ADAPTER.embeddings
    for _ in range(40):
        (last, last_metrics), gradient = step(tiny_model.params, SoftPrompt(embeddings), batch)
        embeddings -= 0.2 * gradient.embeddings / np.linalg.norm(gradient.embeddings)
    assert last < 0.8 * value
    assert last_metrics["refusal_log_prob"] > metrics["refusal_log_prob"] + 0.5
    # A batch of padding alone.
    nothing = batch.replace(response_where=np.zeros_like(batch.response_where))
    (value, metrics), gradient = step(tiny_model.params, ADAPTER, nothing)
    assert value == 0
    assert set(map(float, metrics.values())) == {0.0}
    np.testing.assert_array_equal(gradient.embeddings, 0)


# The teacher's data ---------------------------------------------------------------------------------------------------


def sequence_teacher(model, hidden=None):
    tokens = [model.tokenizer.encode(text) for text in ("the in", "abcdefgh", "")]
    answers = Generation(tokens, ["the in", "abcdefgh", ""], [True, False, True], hidden)
    return SequenceTeacher(["hello", "the user", "us"], answers, np.array([0.25, 0.5, 1.0]), REFUSAL)


def test_teacher_data_ends_the_answers_that_ended(tiny_model, data):
    encode, tail = tiny_model.tokenizer.encode, tiny_model.tokenizer.chat_parts.tail
    texts = ("hello you", "the user in 20", "a b c", "us er now")
    assert data.prompt == [[*encode(text), *tail] for text in texts]
    assert data.response == [[*encode("the in"), 2], encode("abcdef"), [2], [*encode("userxyz"), 2]]
    np.testing.assert_array_equal(data.safe_prob, np.float32(SAFE_PROB))
    assert data.safe_prob.dtype == np.float32
    assert data.teacher_hidden.shape == (4, NUM_RESPONSE, 16)
    assert len(data) == 4
    bare = make_teacher_data(tiny_model, sequence_teacher(tiny_model), max_tokens=6, with_hidden=False)
    assert bare.teacher_hidden.shape == (3, 0, 16)


def test_hidden_states_kept_by_the_generation_are_used(tiny_model):
    kept = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
    data = make_teacher_data(tiny_model, sequence_teacher(tiny_model, kept), max_tokens=6, with_hidden=True)
    np.testing.assert_array_equal(data.teacher_hidden, kept[:, :6])


def test_prompts_beyond_the_context_are_refused(tiny_model):
    teacher = sequence_teacher(tiny_model)
    teacher.prompts[1] = "." * 500
    with pytest.raises(ContextError, match="Prompt 1"):
        make_teacher_data(tiny_model, teacher, max_tokens=6, with_hidden=True)


def test_batches_are_padded_to_buckets(data, batch):
    assert batch.prompt.shape == (5, min(bucket for bucket in BUCKETS if bucket >= max(map(len, data.prompt))))
    assert batch.response.shape == (5, NUM_RESPONSE)
    for row in range(4):
        assert batch.prompt[row][batch.prompt_where[row]].tolist() == data.prompt[row]
        assert batch.response[row][batch.response_where[row]].tolist() == data.response[row]
    assert not batch.response_where[4].any()
    assert batch.prompt_where[4].sum() == 1  # something to look at, so that nothing divides by zero
    np.testing.assert_array_equal(batch.safe_prob, np.float32([*SAFE_PROB, 1]))
    nothing = data.batch([-1], pad_id=0)
    assert nothing.prompt.shape == (1, BUCKETS[0])
    # Whatever the generation takes, a batch takes.
    assert BUCKETS[-1] == generation.BUCKETS[-1]


# The order of the batches ---------------------------------------------------------------------------------------------


def ordered(num_rows: int, seed: int = 0) -> TeacherData:
    lengths = np.random.default_rng(seed).integers(1, 100, num_rows)
    return TeacherData(
        prompt=[[0] * length for length in lengths],
        response=[[1]] * num_rows,
        safe_prob=np.ones(num_rows, np.float32),
        teacher_hidden=np.zeros((num_rows, 0, 4), np.float32),
        max_tokens=1,
    )


GROUPS = {"refuse": range(48), "plain": range(48, 80), "sensitive": range(80, 131)}
SHARES = {"refuse": 3.0, "plain": 2.0, "sensitive": 3.0}


def test_batch_order_is_a_function_of_the_step_alone():
    make = functools.partial(make_batch_order, ordered(131), batch_size=8, groups=GROUPS, shares=SHARES)
    order = make(seed=3)
    forwards = [order(step) for step in range(100)]
    again = make(seed=3)
    for step in (99, 0, 57, 16, 15, 57):
        np.testing.assert_array_equal(again(step), forwards[step])
    assert any(np.any(make(seed=4)(step) != forwards[step]) for step in range(3))


def test_batches_keep_the_shares():
    order = make_batch_order(ordered(131), batch_size=8, seed=0, groups=GROUPS, shares=SHARES)
    for step in range(50):
        rows = order(step)
        counts = {name: sum(row in group for row in rows) for name, group in GROUPS.items()}
        assert counts == {"refuse": 3, "plain": 2, "sensitive": 3}


@pytest.mark.parametrize(
    ("batch_size", "shares", "expected"),
    [
        (8, {"a": 1, "b": 1, "c": 1}, [3, 3, 2]),
        (7, {"a": 0.5, "b": 0.3, "c": 0.2}, [4, 2, 1]),  # 3.5, 2.1, 1.4: the largest remainder is a's
        (4, {"a": 10, "b": 10, "c": 20}, [1, 1, 2]),
    ],
)
def test_shares_are_rounded_to_whole_rows(batch_size, shares, expected):
    groups = {"a": range(20), "b": range(20, 40), "c": range(40, 60)}
    order = make_batch_order(ordered(60), batch_size=batch_size, seed=0, groups=groups, shares=shares)
    counts = np.bincount(order(5) // 20, minlength=3)
    assert counts.sum() == batch_size
    assert counts.tolist() == expected


def test_every_row_of_a_group_comes_once_an_epoch():
    order = make_batch_order(ordered(131), batch_size=8, seed=1, groups=GROUPS, shares=SHARES)

    def counts(steps):
        return np.bincount(np.concatenate([order(step) for step in steps]), minlength=131)

    # A window of 16 batches takes 48, 32 and 48 rows: of the first two groups exactly an epoch.
    for window in (0, 1, 5):
        seen = counts(range(16 * window, 16 * window + 16))
        np.testing.assert_array_equal(seen[:80], 1)
        assert seen[80:].max() <= 2  # at the border of two epochs
    np.testing.assert_array_equal(counts(range(16 * 51))[80:], 48)
    first, second = (np.concatenate([order(step) for step in range(s, s + 16)]) for s in (0, 16))
    assert np.any(first != second)


def test_batches_hold_rows_of_like_length():
    data = ordered(131)
    lengths = np.array(list(map(len, data.prompt)))
    order = make_batch_order(data, batch_size=8, seed=0, groups=GROUPS, shares=SHARES)
    spread = np.mean([np.ptp(lengths[order(step)]) for step in range(96)])
    rng = np.random.default_rng(0)
    at_random = np.mean([np.ptp(lengths[rng.choice(131, 8)]) for _ in range(96)])
    assert spread < at_random / 2
    # Yet long and short batches follow one another in no order.
    means = [lengths[order(step)].mean() for step in range(16)]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_a_group_smaller_than_its_share_is_repeated():
    order = make_batch_order(
        ordered(10), batch_size=6, seed=0, groups={"a": [0, 1], "b": range(2, 10)}, shares={"a": 1, "b": 1}
    )
    seen = np.bincount(np.concatenate([order(step) for step in range(16)]), minlength=10)
    np.testing.assert_array_equal(seen[:2], 24)
    np.testing.assert_array_equal(seen[2:], 6)


def test_bad_groups_and_shares():
    make = functools.partial(make_batch_order, ordered(4), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="must have the same names"):
        make(groups={"a": [0]}, shares={"b": 1.0})
    with pytest.raises(ValueError, match="must have the same names"):
        make(groups={}, shares={})
    with pytest.raises(ValueError, match="Group 'b' has no rows"):
        make(groups={"a": [0], "b": []}, shares={"a": 1.0, "b": 1.0})
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="Share of 'b' is"):
            make(groups={"a": [0], "b": [1]}, shares={"a": 1.0, "b": wrong})
    with pytest.raises(ValueError, match=r"Share of 'b' is 1\.0 of 20\.0: not one row of a batch of 2"):
        make(groups={"a": [0], "b": [1]}, shares={"a": 19.0, "b": 1.0})
