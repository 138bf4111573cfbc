"""Objectives: packed rows against separate sequences, losses against their definitions in NumPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edgesafe_jax import losses
from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.loading import with_precision
from edgesafe_jax.safety.objectives import (
    DecisionObjective,
    KLToBase,
    SequenceObjective,
    TokenObjective,
    WeightedSum,
    make_objective,
    row_losses,
)
from edgesafe_jax.safety.teacher import refusal_ids
from edgesafe_jax.safety.training import make_loss
from tests.safety.rows import ADAPTER, REFUSAL, ROWS, SAFE_PROB, chosen

# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_are_the_outcomes_that_the_system_may_give(data, refusal):
    assert list(zip(data.sample.tolist(), data.is_refusal.tolist(), strict=True)) == ROWS
    np.testing.assert_allclose(data.weight, [0.3, 0.9, 1.0, 0.7, 0.1, 1.0], rtol=1e-6)
    assert data.outcomes[3:] == [refusal] * 3
    np.testing.assert_allclose(data.refusal_prob, 1 - np.array(SAFE_PROB), rtol=1e-6)


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


def reverse_kl(p, log_q):
    return kl(np.exp(log_q), np.log(0.999 * p + 0.001 / p.shape[-1]))


def js(p, log_q):
    middle = np.log(0.5 * p + 0.5 * np.exp(log_q))
    return 0.5 * kl(p, middle) + 0.5 * kl(np.exp(log_q), middle)


TOKEN_LEVEL = {
    "token_kl": kl,
    "token_tv": tv,
    "token_reverse_kl": reverse_kl,
    "token_js": js,
    "token_skew_kl": lambda p, log_q: kl(p, np.log(0.1 * p + 0.9 * np.exp(log_q))),
    "token_skew_reverse_kl": lambda p, log_q: kl(np.exp(log_q), np.log(0.9 * p + 0.1 * np.exp(log_q))),
}
TERMS = ("tv", "kl", "refusal_perplexity", *TOKEN_LEVEL)
REDUCTIONS = {"mean": np.mean, "sum": np.sum}
MIXED = WeightedSum(
    (
        (0.3, SequenceObjective(losses.outcome_total_variation)),
        (2.0, TokenObjective(losses.forward_kl)),
        (0.7, DecisionObjective(losses.forward_kl)),
        (0.5, TokenObjective(losses.total_variation, "sum")),
    )
)


@pytest.fixture(scope="module")
def values(tiny_model, hidden, batch):
    """Every objective under both normalisations, `[B]` each."""
    objectives = {(name, n): make_objective(name, normalization=n) for name in TERMS for n in REDUCTIONS}
    objectives["token_kl", "decision"] = DecisionObjective(losses.forward_kl)
    objectives["token_tv", "decision"] = DecisionObjective(losses.total_variation)
    objectives["mixed", ""] = MIXED
    objectives["kl_to_base", ""] = KLToBase()
    decoder = tiny_model.decoder

    @jax.jit
    def compute(params, hidden, batch):
        return {name: row_losses(each, decoder, params, hidden, batch) for name, each in objectives.items()}

    return {name: np.asarray(value) for name, value in compute(tiny_model.params, hidden, batch).items()}


@pytest.mark.parametrize("normalization", REDUCTIONS)
def test_sequence_objectives_follow_their_equations(values, naive, data, normalization):
    reduce = REDUCTIONS[normalization]
    for row, (student, _) in enumerate(naive):
        a = data.weight[row].astype(np.float64)
        log_q = reduce(chosen(student, data.outcomes[row]))
        np.testing.assert_allclose(values["kl", normalization][row], a * (np.log(a) - log_q), rtol=1e-3)
        decided = -log_q if a >= 0.5 else 0
        np.testing.assert_allclose(values["refusal_perplexity", normalization][row], decided, rtol=1e-3)
        a = np.clip(a, 1e-4, 1 - 1e-4)
        expected = -a * min(0, log_q - np.log(a))
        np.testing.assert_allclose(values["tv", normalization][row], expected, rtol=1e-3)


@pytest.mark.parametrize("normalization", REDUCTIONS)
@pytest.mark.parametrize("name", TOKEN_LEVEL)
def test_token_objectives_follow_the_token_teacher(values, teacher_probs, naive, data, name, normalization):
    """The divergence to the gated teacher position by position, each outcome weighed by its probability."""
    reduce, divergence = REDUCTIONS[normalization], TOKEN_LEVEL[name]
    for row, (student, _) in enumerate(naive):
        along = divergence(teacher_probs[row, : len(student)], student)
        expected = data.weight[row] * reduce(along)
        np.testing.assert_allclose(values[name, normalization][row], expected, rtol=2e-3, atol=1e-4)


def test_kl_to_base_is_along_the_answers_to_benign_prompts(values, naive, data):
    for row, (student, base) in enumerate(naive):
        benign = not data.is_refusal[row] and SAFE_PROB[data.sample[row]] > 0.5
        expected = np.mean(kl(np.exp(base), student)) if benign else 0
        np.testing.assert_allclose(values["kl_to_base", ""][row], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_temperature_softens_the_base_model_before_the_refusal_is_mixed_in(
    tiny_model, hidden, batch, naive, data, refusal, temperature
):
    warm = TokenObjective(functools.partial(losses.forward_kl, temperature=temperature))
    found = row_losses(warm, tiny_model.decoder, tiny_model.params, hidden, batch)
    for row, (sample, is_refusal) in enumerate(ROWS):
        student, teacher = (
            scipy.special.log_softmax(np.asarray(each, np.float64) / temperature, axis=-1) for each in naive[row]
        )
        p = np.exp(teacher)
        if is_refusal:
            p[1:] = np.eye(272)[refusal[1:]]
        p[0] *= SAFE_PROB[sample]
        p[0, refusal[0]] += 1 - SAFE_PROB[sample]
        np.testing.assert_allclose(found[row], data.weight[row] * np.mean(kl(p, student)), rtol=2e-3, atol=1e-4)


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
def test_decision_objective_is_the_first_position_and_the_refusal(values, teacher_probs, naive, data, name, divergence):
    for row, (student, _) in enumerate(naive):
        along = divergence(teacher_probs[row, : len(student)], student)
        expected = data.weight[row] * (along.sum() if data.is_refusal[row] else along[0])
        np.testing.assert_allclose(values[name, "decision"][row], expected, rtol=2e-3, atol=1e-4)


def test_objectives_add_up_and_padding_counts_nothing(values):
    scales = {("tv", "mean"): 0.3, ("token_kl", "mean"): 2, ("token_kl", "decision"): 0.7, ("token_tv", "sum"): 0.5}
    expected = sum(scale * values[name] for name, scale in scales.items())
    np.testing.assert_allclose(values["mixed", ""], expected, rtol=1e-5)
    for value in values.values():
        assert value[6] == 0
    assert MIXED.needs.teacher_hidden
    assert not MIXED.terms[0][1].needs.teacher_hidden


def test_loss_is_the_mean_over_the_rows_that_exist_and_can_be_minimised(tiny_model, values, batch):
    head = tiny_model.tokenizer.chat_parts.head
    loss = make_loss(tiny_model.decoder, head=head, objective=MIXED)
    step = jax.jit(jax.value_and_grad(chex.assert_max_traces(loss, n=1), argnums=1, has_aux=True))
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
        WeightedSum(())


def test_low_precision_factors_stay_close(tiny_model, batch):
    """bfloat16 factors with float32 sums: loss and gradient within the rounding of the factors."""
    found = []
    for model in (tiny_model, with_precision(tiny_model, matmul_dtype=jnp.dtype(jnp.bfloat16))):
        loss = make_loss(
            model.decoder, head=model.tokenizer.chat_parts.head, objective=TokenObjective(losses.forward_kl)
        )
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
