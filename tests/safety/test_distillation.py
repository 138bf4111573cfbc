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
from edgesafe_jax.models.loading import with_precision
from edgesafe_jax.safety.distillation import (
    BUCKETS,
    DecisionTerm,
    SequenceTerm,
    TeacherData,
    TokenTerm,
    make_batch_order,
    make_loss,
    make_teacher_data,
    needs_teacher,
    outcome_hidden,
    refusal_ids,
    refusal_margins,
    row_losses,
    token_teacher,
)
from edgesafe_jax.safety.system import SequenceTeacher

ADAPTER = SoftPrompt(0.5 * jax.random.normal(jax.random.key(3), (4, 16)))
REFUSAL = "no."
SAFE_PROB = [0.3, 0.9, 0.0, 1.0]
NUM_RESPONSE = 6
# What the rows must be: the answers of positive weight, then the refusals.
ROWS = [(0, False), (1, False), (3, False), (0, True), (1, True), (2, True)]


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
    return refusal_ids(tiny_model, REFUSAL).tolist()


@pytest.fixture(scope="module")
def data(tiny_model):
    """Four prompts of unlike lengths, with the base model's states; the second answer is cut, the third empty."""
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
    return data.batch([*range(6), -1], pad_id=0)


@pytest.fixture(scope="module")
def hidden(tiny_model, batch):
    head = jnp.array(tiny_model.tokenizer.chat_parts.head, jnp.int32)
    return jax.jit(outcome_hidden, static_argnums=0)(tiny_model.decoder, tiny_model.params, ADAPTER, head, batch)


@pytest.fixture(scope="module")
def teacher_probs(tiny_model, batch):
    return np.asarray(jax.jit(lambda batch: token_teacher(tiny_model, batch))(batch), np.float64)


@pytest.fixture(scope="module")
def naive(tiny_model, data):
    """For each row the log-probabilities of student and of base model along its outcome."""
    rows = []
    for sample, outcome in zip(data.sample, data.outcomes, strict=True):
        prompt = data.prompts[sample]
        rows.append([naive_log_probs(tiny_model, prompt, outcome, adapter) for adapter in (ADAPTER, None)])
    return rows


def chosen(log_probs, tokens):
    return log_probs[np.arange(len(tokens)), tokens]


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_are_the_outcomes_that_the_system_may_give(data, refusal):
    assert list(zip(data.sample.tolist(), data.is_refusal.tolist(), strict=True)) == ROWS
    np.testing.assert_allclose(data.weight, [0.3, 0.9, 1.0, 0.7, 0.1, 1.0], rtol=1e-6)
    assert data.outcomes[3:] == [refusal] * 3
    np.testing.assert_allclose(data.refusal_prob, 1 - np.array(SAFE_PROB), rtol=1e-6)


def test_outcomes_of_little_weight_get_no_row(tiny_model):
    make = functools.partial(make_teacher_data, tiny_model, sequence_teacher(tiny_model), max_tokens=6)
    data = make(with_hidden=False, min_weight=0.3)
    assert data.sample.tolist() == [1, 2, 0, 1]  # 0.25 is left out, its refusal of weight 0.75 is not
    assert data.is_refusal.tolist() == [False, False, True, True]
    assert len(make(with_hidden=False, min_weight=0.0)) == 5  # a weight of exactly zero never has one
    for wrong in (-0.1, 0.5):
        with pytest.raises(ValueError, match="min_weight"):
            make(with_hidden=False, min_weight=wrong)


def test_hidden_states_predict_the_outcome(tiny_model, hidden, naive):
    logits = tiny_model.decoder.apply({"params": tiny_model.params}, hidden, method=Decoder.logits)
    for row, (student, _) in enumerate(naive):
        np.testing.assert_allclose(jax.nn.log_softmax(logits[row, : len(student)]), student, rtol=1e-3, atol=1e-3)
    assert np.all(np.isfinite(logits))  # the row of padding too


def test_refusal_ends_with_the_end_of_the_turn(tiny_model, refusal):
    assert refusal == [*tiny_model.tokenizer.encode(REFUSAL), 2]
    assert refusal_ids(tiny_model, REFUSAL).dtype == np.int32


def test_token_teacher_mixes_at_the_first_position_only(teacher_probs, naive, refusal):
    for row, (sample, is_refusal) in enumerate(ROWS):
        expected = np.exp(naive[row][1])
        if is_refusal:
            expected[1:] = np.eye(272)[refusal[1:]]
        expected[0] *= SAFE_PROB[sample]
        expected[0, refusal[0]] += 1 - SAFE_PROB[sample]
        np.testing.assert_allclose(teacher_probs[row, : len(expected)], expected, atol=1e-3)
    np.testing.assert_allclose(np.sum(teacher_probs, axis=-1), 1, atol=1e-5)


# Objectives -----------------------------------------------------------------------------------------------------------


def kl(p, log_q):
    return np.sum(scipy.special.xlogy(p, p) - p * log_q, axis=-1)


def tv(p, log_q):
    return 0.5 * np.sum(np.abs(p - np.exp(log_q)), axis=-1)


TERMS = {
    "tv": functools.partial(SequenceTerm, losses.outcome_total_variation),
    "kl": functools.partial(SequenceTerm, losses.outcome_kl),
    "token_tv": functools.partial(TokenTerm, losses.total_variation),
    "token_kl": functools.partial(TokenTerm, losses.forward_kl),
}
REDUCTIONS = {"mean": np.mean, "sum": np.sum}
MIXED = (
    SequenceTerm(losses.outcome_total_variation, scale=0.3),
    TokenTerm(losses.forward_kl, scale=2.0),
    DecisionTerm(losses.forward_kl, scale=0.7),
    TokenTerm(losses.total_variation, "sum", scale=0.5),
)


@pytest.fixture(scope="module")
def values(tiny_model, hidden, batch):
    """Every objective under both normalisations, `[B]` each."""
    objectives = {(name, n): (make(normalization=n),) for name, make in TERMS.items() for n in REDUCTIONS}
    objectives["token_kl", "decision"] = (DecisionTerm(losses.forward_kl),)
    objectives["token_tv", "decision"] = (DecisionTerm(losses.total_variation),)
    objectives["mixed", ""] = MIXED
    decoder = tiny_model.decoder

    @jax.jit
    def compute(params, hidden, batch):
        return {name: row_losses(terms, decoder, params, hidden, batch) for name, terms in objectives.items()}

    return {name: np.asarray(value) for name, value in compute(tiny_model.params, hidden, batch).items()}


@pytest.mark.parametrize("normalization", REDUCTIONS)
def test_sequence_terms_follow_their_equations(values, naive, data, normalization):
    reduce = REDUCTIONS[normalization]
    for row, (student, _) in enumerate(naive):
        a = data.weight[row].astype(np.float64)
        log_q = reduce(chosen(student, data.outcomes[row]))
        np.testing.assert_allclose(values["kl", normalization][row], a * (np.log(a) - log_q), rtol=1e-3)
        a = np.clip(a, 1e-4, 1 - 1e-4)
        expected = -a * min(0, log_q - np.log(a))
        np.testing.assert_allclose(values["tv", normalization][row], expected, rtol=1e-3)


@pytest.mark.parametrize("normalization", REDUCTIONS)
@pytest.mark.parametrize(("name", "divergence"), [("token_kl", kl), ("token_tv", tv)])
def test_token_terms_follow_the_token_teacher(values, teacher_probs, naive, data, name, divergence, normalization):
    """The divergence to the gated teacher position by position, each outcome weighed by its probability."""
    reduce = REDUCTIONS[normalization]
    for row, (student, _) in enumerate(naive):
        along = divergence(teacher_probs[row, : len(student)], student)
        expected = data.weight[row] * reduce(along)
        np.testing.assert_allclose(values[name, normalization][row], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("normalization", REDUCTIONS)
@pytest.mark.parametrize(("name", "loss"), [("token_kl", losses.forward_kl), ("token_tv", losses.total_variation)])
def test_rows_of_a_prompt_add_up_to_its_gated_divergence(tiny_model, values, hidden, batch, name, loss, normalization):
    """Against the loss over whole logits, on the prompts that have both rows."""
    logits = tiny_model.decoder.apply({"params": tiny_model.params}, hidden, method=Decoder.logits)
    teacher = tiny_model.decoder.apply({"params": tiny_model.params}, batch.teacher_hidden, method=Decoder.logits)
    length = int(batch.outcome_where[3].sum())
    whole = losses.gated_divergence(
        loss,
        student_logits=logits[:2],
        teacher_logits=teacher[:2],
        refusal_logits=logits[3:5, :length],
        refusal_tokens=batch.outcome[3, :length],
        safe_prob=np.float32(SAFE_PROB[:2]),
        normalization=normalization,
        where=batch.outcome_where[:2],
    )
    rows = values[name, normalization]
    np.testing.assert_allclose(rows[:2] + rows[3:5], whole, rtol=1e-4)


@pytest.mark.parametrize(("name", "divergence"), [("token_kl", kl), ("token_tv", tv)])
def test_decision_term_is_the_first_position_and_the_refusal(values, teacher_probs, naive, data, name, divergence):
    for row, (student, _) in enumerate(naive):
        along = divergence(teacher_probs[row, : len(student)], student)
        expected = data.weight[row] * (along.sum() if data.is_refusal[row] else along[0])
        np.testing.assert_allclose(values[name, "decision"][row], expected, rtol=2e-3, atol=1e-4)


def test_terms_add_up_and_padding_counts_nothing(values):
    scales = {("tv", "mean"): 0.3, ("token_kl", "mean"): 2, ("token_kl", "decision"): 0.7, ("token_tv", "sum"): 0.5}
    expected = sum(scale * values[name] for name, scale in scales.items())
    np.testing.assert_allclose(values["mixed", ""], expected, rtol=1e-5)
    for value in values.values():
        assert value[6] == 0
    assert needs_teacher(MIXED)
    assert not needs_teacher(MIXED[:1])


def test_loss_is_the_mean_over_the_rows_that_exist_and_can_be_minimised(tiny_model, values, batch):
    head = tiny_model.tokenizer.chat_parts.head
    loss = make_loss(tiny_model.decoder, head=head, terms=MIXED)
    step = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))
    (value, metrics), gradient = step(tiny_model.params, ADAPTER, batch)
    rows = values["mixed", ""]
    np.testing.assert_allclose(value, np.mean(rows[:6]), rtol=1e-4)
    np.testing.assert_allclose(metrics["answer_loss"], np.mean(rows[:3]), rtol=1e-4)
    np.testing.assert_allclose(metrics["refusal_loss"], np.mean(rows[3:6]), rtol=1e-4)
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
    assert last_metrics["refusal_loss"] < 0.8 * metrics["refusal_loss"]
    # A batch of padding alone.
    nothing = batch.replace(outcome_where=np.zeros_like(batch.outcome_where))
    (value, metrics), gradient = step(tiny_model.params, ADAPTER, nothing)
    assert value == 0
    assert set(map(float, metrics.values())) == {0.0}
    np.testing.assert_array_equal(gradient.embeddings, 0)
    with pytest.raises(ValueError, match="at least one term"):
        make_loss(tiny_model.decoder, head=head, terms=())


def test_low_precision_factors_stay_close(tiny_model, batch):
    """bfloat16 factors with float32 sums: loss and gradient within the rounding of the factors."""
    found = []
    for model in (tiny_model, with_precision(tiny_model, matmul_dtype=jnp.dtype(jnp.bfloat16))):
        loss = make_loss(model.decoder, head=model.tokenizer.chat_parts.head, terms=(TokenTerm(losses.forward_kl),))
        (value, _), gradient = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))(model.params, ADAPTER, batch)
        found.append((float(value), np.asarray(gradient.embeddings).ravel()))
    (exact, right), (near, left) = found
    assert near != exact
    packed = with_precision(tiny_model, matmul_dtype=jnp.dtype(jnp.bfloat16))
    back = with_precision(packed)
    assert jax.tree.structure(back.params) == jax.tree.structure(tiny_model.params)
    for leaf, original in zip(jax.tree.leaves(back.params), jax.tree.leaves(tiny_model.params), strict=True):
        np.testing.assert_allclose(leaf, original, rtol=2**-8)
    np.testing.assert_allclose(near, exact, rtol=2e-2)
    assert np.dot(left, right) / np.linalg.norm(left) / np.linalg.norm(right) > 0.995


def test_margins_are_those_of_a_plain_forward_pass(tiny_model):
    prompts = ["hello", "the user in", "us er now and so on"]
    margins = refusal_margins(tiny_model, ADAPTER, prompts, "user", batch_size=2)
    first = tiny_model.tokenizer.encode("user")[0]
    parts = tiny_model.tokenizer.chat_parts
    for prompt, margin in zip(prompts, margins, strict=True):
        row = np.array([[*parts.head, *tiny_model.tokenizer.encode(prompt), *parts.tail]], np.int32)
        hidden = tiny_model.decoder.apply({"params": tiny_model.params}, row, adapter=ADAPTER).hidden[0, -1]
        logits = np.array(tiny_model.decoder.apply({"params": tiny_model.params}, hidden, method=Decoder.logits))
        others = np.delete(logits, first)
        assert margin == pytest.approx(logits[first] - others.max(), abs=1e-4)


# The teacher's data ---------------------------------------------------------------------------------------------------


def sequence_teacher(model, hidden=None):
    tokens = [model.tokenizer.encode(text) for text in ("the in", "abcdefgh", "")]
    answers = Generation(tokens, ["the in", "abcdefgh", ""], [True, False, True], hidden)
    return SequenceTeacher(["hello", "the user", "us"], answers, np.array([0.25, 0.5, 1.0]), REFUSAL)


def test_teacher_data_ends_the_answers_that_ended(tiny_model, data):
    encode, tail = tiny_model.tokenizer.encode, tiny_model.tokenizer.chat_parts.tail
    texts = ("hello you", "the user in 20", "a b c", "us er now")
    assert data.prompts == [[*encode(text), *tail] for text in texts]
    assert data.outcomes[:3] == [[*encode("the in"), 2], encode("abcdef"), [*encode("userxyz"), 2]]
    assert data.weight.dtype == np.float32
    assert data.teacher_hidden.shape == (4, NUM_RESPONSE, 16)
    assert len(data) == 6
    bare = make_teacher_data(tiny_model, sequence_teacher(tiny_model), max_tokens=6, with_hidden=False)
    assert bare.teacher_hidden.shape == (3, 0, 16)
    # A refusal longer than the answers stays whole.
    short = make_teacher_data(tiny_model, sequence_teacher(tiny_model), max_tokens=2, with_hidden=False)
    assert short.max_tokens == len(short.refusal) == 4
    assert max(map(len, short.outcomes[:3])) == 2


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
    longest = max(data.length(row) for row in range(6))
    assert batch.tokens.shape == (7, min(bucket for bucket in BUCKETS if bucket >= longest))
    assert batch.outcome.shape == (7, NUM_RESPONSE)
    for row in range(6):
        line = [*data.prompts[data.sample[row]], *data.outcomes[row]]
        assert batch.tokens[row][batch.where[row]].tolist() == line[:-1]
        assert batch.outcome[row][batch.outcome_where[row]].tolist() == data.outcomes[row]
        assert line[batch.start[row] + 1] == data.outcomes[row][0]
    assert not batch.outcome_where[6].any()
    assert batch.where[6].sum() == 1  # something to look at, so that nothing divides by zero
    np.testing.assert_array_equal(batch.weight, np.float32([*data.weight, 1]))
    nothing = data.batch([-1], pad_id=0)
    assert nothing.tokens.shape == (1, BUCKETS[0])
    # Whatever the generation takes, a batch takes.
    assert BUCKETS[-1] == generation.BUCKETS[-1]


# The order of the batches ---------------------------------------------------------------------------------------------


def ordered(num_rows: int, seed: int = 0) -> TeacherData:
    lengths = np.random.default_rng(seed).integers(1, 100, num_rows)
    return TeacherData(
        prompts=[[0] * length for length in lengths],
        sample=np.arange(num_rows),
        outcomes=[[1]] * num_rows,
        is_refusal=np.zeros(num_rows, bool),
        weight=np.ones(num_rows, np.float32),
        refusal=[1],
        refusal_prob=np.zeros(num_rows, np.float32),
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
    lengths = np.array(list(map(len, data.prompts)))
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
