"""Rows of a tiny teacher, and what student and base model say along them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.models.generation import Generation
from edgesafe_jax.safety.system import SequenceTeacher
from edgesafe_jax.safety.teacher import make_teacher_data, outcome_hidden, refusal_ids, token_teacher
from tests.safety.rows import ADAPTER, NUM_RESPONSE, REFUSAL, SAFE_PROB, naive_log_probs


@pytest.fixture(scope="package")
def refusal(tiny_model):
    return refusal_ids(tiny_model, REFUSAL).tolist()


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def batch(data):
    """All rows and one of padding."""
    return data.batch([*range(6), -1], pad_id=0)


@pytest.fixture(scope="package")
def hidden(tiny_model, batch):
    head = jnp.array(tiny_model.tokenizer.chat_parts.head, jnp.int32)
    return jax.jit(outcome_hidden, static_argnums=0)(tiny_model.decoder, tiny_model.params, ADAPTER, head, batch)


@pytest.fixture(scope="package")
def teacher_probs(tiny_model, batch):
    return np.asarray(jax.jit(lambda batch: token_teacher(tiny_model, batch))(batch), np.float64)


@pytest.fixture(scope="package")
def naive(tiny_model, data):
    """For each row the log-probabilities of student and of base model along its outcome."""
    rows = []
    for sample, outcome in zip(data.sample, data.outcomes, strict=True):
        prompt = data.prompts[sample]
        rows.append([naive_log_probs(tiny_model, prompt, outcome, adapter) for adapter in (ADAPTER, None)])
    return rows
