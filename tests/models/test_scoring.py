"""Log-likelihood of given answers against one naive pass per sequence."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models import scoring
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import ContextError
from edgesafe_jax.models.scoring import answer_log_probs, kl_from_base

PROMPTS = ["hello", "the user in 2024, hello", "", "us<|im_end|>", "in"]
ANSWERS = ["the", " a longer answer!", "x", "user<|im_end|>", "é\n"]
ADAPTER = SoftPrompt(jax.random.normal(jax.random.key(3), (4, 16)))


@functools.partial(jax.jit, static_argnames="decoder")
def all_logits(decoder, params, tokens, where, adapter):
    hidden = decoder.apply({"params": params}, tokens, where=where, adapter=adapter).hidden
    return decoder.apply({"params": params}, hidden, method=Decoder.logits)[0]


def naive_log_probs(model, prompt, answer, adapter=None):
    """Log-probabilities `[len(answer), V]` along an answer, float64, the whole sequence in one pass."""
    parts = model.tokenizer.chat_parts
    before = [*parts.head, *model.tokenizer.encode(prompt), *parts.tail]
    ids = [*before, *answer]
    tokens, where = np.zeros((1, 128), np.int32), np.zeros((1, 128), bool)
    tokens[0, : len(ids)], where[0, : len(ids)] = ids, True
    logits = all_logits(model.decoder, model.params, tokens, where, adapter)
    return scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)[len(before) - 1 : len(ids) - 1]


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["base", "adapter"])
def test_log_prob_is_the_sum_over_the_answer(tiny_model, adapter):
    values, lengths = answer_log_probs(tiny_model, PROMPTS, ANSWERS, adapter=adapter, batch_size=4)
    for prompt, answer, value, length in zip(PROMPTS, ANSWERS, values, lengths, strict=True):
        ids = tiny_model.tokenizer.encode(answer)
        log_probs = naive_log_probs(tiny_model, prompt, ids, adapter)
        assert length == len(ids)
        np.testing.assert_allclose(value, log_probs[np.arange(len(ids)), ids].sum(), rtol=1e-4)


def test_batches_do_not_matter_and_progress_is_reported(tiny_model):
    seen = []
    values, _ = answer_log_probs(tiny_model, PROMPTS, ANSWERS, batch_size=4, on_batch=lambda *done: seen.append(done))
    assert seen == [(4, 5), (5, 5)]
    order = [4, 2, 0, 3, 1]
    again, _ = answer_log_probs(tiny_model, [PROMPTS[i] for i in order], [ANSWERS[i] for i in order], batch_size=4)
    np.testing.assert_allclose(again, values[order], rtol=1e-4)


def test_kl_from_base_is_the_mean_over_the_answer(tiny_model):
    answers = [tiny_model.tokenizer.encode(answer) for answer in ANSWERS]
    answers[2] = []
    values = kl_from_base(tiny_model, PROMPTS, answers, adapter=ADAPTER, batch_size=4)
    for prompt, answer, value in zip(PROMPTS, answers, values, strict=True):
        if not answer:
            assert value == 0
            continue
        base, adapted = (naive_log_probs(tiny_model, prompt, answer, a) for a in (None, ADAPTER))
        np.testing.assert_allclose(value, np.mean(np.sum(np.exp(base) * (base - adapted), axis=-1)), rtol=1e-3)
        assert value > 0.01


def test_kl_of_the_base_model_to_itself_is_zero(tiny_model):
    values = kl_from_base(tiny_model, PROMPTS, [[5, 6, 7]] * 5, adapter=None, batch_size=4)  # type: ignore[arg-type]
    np.testing.assert_allclose(values, 0, atol=1e-6)


def test_kl_without_any_answer(tiny_model):
    values = kl_from_base(tiny_model, PROMPTS[:2], [[], []], adapter=ADAPTER, batch_size=4)
    np.testing.assert_array_equal(values, [0, 0])


def test_bad_arguments(tiny_model, monkeypatch):
    monkeypatch.setattr(scoring, "_answer_hidden", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="1 prompts and 2 answers"):
        answer_log_probs(tiny_model, ["a"], ["x", "y"])
    with pytest.raises(ValueError, match="Answer 1 is empty"):
        answer_log_probs(tiny_model, ["a", "b"], ["x", ""])
    with pytest.raises(ValueError, match="1 prompts and 2 answers"):
        kl_from_base(tiny_model, ["a"], [[3], [4]], adapter=ADAPTER)
    with pytest.raises(ContextError, match="Prompt 0"):
        answer_log_probs(tiny_model, ["a"], ["." * 500])
    with pytest.raises(ContextError, match="Prompt 1"):
        kl_from_base(tiny_model, ["a", "." * 500], [[3]] * 2, adapter=ADAPTER)
