"""The teacher's data: rows, padding, and what is kept of a generation."""

import functools

import jax
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models import generation
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import ContextError, Generation
from edgesafe_jax.models.placements import head_of
from edgesafe_jax.safety.system import SequenceTeacher
from edgesafe_jax.safety.teacher import BUCKETS, make_teacher_data, outcome_hidden, refusal_margins
from tests.safety.rows import ADAPTER, NUM_RESPONSE, REFUSAL


def sequence_teacher(model, hidden=None):
    tokens = [model.tokenizer.encode(text) for text in ("the in", "abcdefgh", "")]
    answers = Generation(tokens, ["the in", "abcdefgh", ""], [True, False, True], hidden)
    return SequenceTeacher(["hello", "the user", "us"], answers, np.array([0.25, 0.5, 1.0]), REFUSAL)


def test_outcomes_of_little_weight_get_no_row(tiny_model):
    make = functools.partial(make_teacher_data, tiny_model, sequence_teacher(tiny_model), max_tokens=6)
    data = make(with_hidden=False, min_weight=0.3)
    assert data.sample.tolist() == [1, 2, 0, 1]  # 0.25 is left out, its refusal of weight 0.75 is not
    assert data.is_refusal.tolist() == [False, False, True, True]
    assert len(make(with_hidden=False, min_weight=0.0)) == 5  # a weight of exactly zero never has one
    for wrong in (-0.1, 0.5):
        with pytest.raises(ValueError, match="min_weight"):
            make(with_hidden=False, min_weight=wrong)


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
    longest = int(data.lengths.max())
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


@pytest.mark.parametrize("placement", ["system", "before_answer"])
def test_virtual_positions_in_a_training_batch_stand_where_a_whole_chat_has_them(tiny_model, batch, placement):
    adapter = SoftPrompt(jax.random.normal(jax.random.key(5), (3, 16)), placement)
    head = head_of(tiny_model, adapter)
    run = jax.jit(outcome_hidden, static_argnums=0)
    found = run(tiny_model.decoder, tiny_model.params, adapter, head, batch)
    variables = {"params": tiny_model.params}
    read = jax.jit(lambda tokens: tiny_model.decoder.apply(variables, tokens, adapter=adapter).hidden)
    for row in (0, 3):
        start, count = batch.start[row] + 1, int(np.sum(batch.outcome_where[row]))
        inside = [-1, -2, -3] if placement == "before_answer" else []
        whole = [*head, *batch.tokens[row, :start], *inside, *batch.tokens[row, start : start + count - 1]]
        tokens = np.zeros((1, 96), np.int32)
        tokens[0, : len(whole)] = whole
        expected = read(tokens)[0, len(whole) - count : len(whole)]
        np.testing.assert_allclose(found[row, :count], expected, rtol=1e-4, atol=1e-4)
