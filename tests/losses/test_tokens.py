"""Token ids outside the vocabulary: an error outside jit, NaN under it, and nothing at all where they are masked."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses import (
    forward_kl,
    gated_divergence,
    gated_teacher,
    linear_divergence,
    linear_log_prob,
    sequence_log_prob,
    total_variation,
)

B, T, D, V = 2, 3, 4, 7
RNG = np.random.default_rng(0)
HIDDEN, OTHER = (RNG.normal(size=(B, T, D)).astype(np.float32) for _ in range(2))
HEAD = RNG.normal(size=(V, D)).astype(np.float32)
LOGITS, STUDENT, REFUSAL = (RNG.normal(size=(B, T, V)).astype(np.float32) for _ in range(3))
TOKENS = RNG.integers(0, V, (B, T))
PROB = RNG.uniform(0.1, 0.9, (B, T)).astype(np.float32)


def of_linear_log_prob(tokens, where):
    return linear_log_prob(hidden=HIDDEN, tokens=tokens, head=HEAD, where=where)


def of_linear_divergence(divergence, tokens, where):
    return linear_divergence(
        divergence,
        student_hidden=HIDDEN,
        teacher_hidden=OTHER,
        head=HEAD,
        certain_prob=PROB,
        certain_tokens=tokens,
        where=where,
        chunk_size=2,
    )


def of_sequence_log_prob(tokens, where):
    return sequence_log_prob(logits=LOGITS, tokens=tokens, where=where)


def of_gated_divergence(tokens, where):
    return gated_divergence(
        forward_kl,
        student_logits=STUDENT,
        teacher_logits=LOGITS,
        refusal_logits=REFUSAL,
        refusal_tokens=tokens,
        refusal_where=where,
        safe_prob=np.full(B, 0.3, np.float32),
    )


def of_gated_teacher(tokens, where):
    del where
    return jnp.sum(jnp.exp(gated_teacher(teacher_logits=LOGITS, certain_prob=PROB, certain_tokens=tokens)), axis=-1)


READERS = {
    "linear_log_prob": of_linear_log_prob,
    "linear_divergence": functools.partial(of_linear_divergence, forward_kl),
    "linear_divergence, total variation": functools.partial(of_linear_divergence, total_variation),
    "sequence_log_prob": of_sequence_log_prob,
    "gated_divergence": of_gated_divergence,
    "gated_teacher": of_gated_teacher,
}
over_readers = pytest.mark.parametrize("reader", READERS)
over_wrong = pytest.mark.parametrize("wrong", [-100, -1, V, V + 1000])


def with_wrong(wrong):
    tokens = TOKENS.copy()
    tokens[1, 2] = wrong
    return tokens


@over_readers
@over_wrong
@pytest.mark.parametrize("where", [None, np.ones((B, T), bool)])
def test_outside_jit_it_is_an_error(reader, wrong, where):
    for kind in (np.asarray, jnp.asarray):
        with pytest.raises(ConfigError, match=rf"tokens\[1, 2\] is {wrong}, expected a token id in \[0, 7\)"):
            READERS[reader](kind(with_wrong(wrong)), where)


@over_readers
@over_wrong
def test_under_jit_what_depends_on_it_is_nan(reader, wrong):
    run = jax.jit(READERS[reader])
    where = jnp.ones((B, T), bool)
    clean, found = run(TOKENS, where), run(with_wrong(wrong), where)
    assert np.isnan(found[(1, 2)[: found.ndim]])
    assert np.isnan(found).sum() == 1
    np.testing.assert_array_equal(found[0], clean[0])


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"gated_teacher"}))  # that one takes no mask
@over_wrong
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_where_it_is_masked_it_may_be_anything(reader, wrong, wrap):
    where = np.ones((B, T), bool)
    where[1, 2] = False
    run = wrap(READERS[reader])
    chex.assert_trees_all_equal(run(with_wrong(wrong), where), run(TOKENS, where))


def test_ids_that_only_wrap_around_into_the_vocabulary_are_found():
    with pytest.raises(ConfigError, match="4294967298"):
        of_sequence_log_prob(np.full((B, T), 2**32 + 2), None)
