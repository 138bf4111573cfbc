"""A tiny teacher for the tests of rows and objectives."""

import functools

import jax
import numpy as np
import scipy.special

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models.decoder import Decoder

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


def chosen(log_probs, tokens):
    return log_probs[np.arange(len(tokens)), tokens]
