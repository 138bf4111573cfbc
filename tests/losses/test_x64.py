"""Losses under `jax_enable_x64`: float32 stays float32, float64 stays float64, nothing ends in a type error."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax import losses

B, T, R, D, V = 2, 3, 2, 4, 7


def arrays(dtype):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    prob = jnp.asarray(rng.uniform(0.1, 0.9, (B, T)), dtype)
    return {
        "student": normal(B, T, V),
        "teacher": normal(B, T, V),
        "refusal": normal(B, R, V),
        "hidden": normal(B, T, D),
        "other": normal(B, T, D),
        "head": normal(V, D),
        "prob": prob,
        "log_prob": -jnp.abs(normal(B)),
    }


def tokens(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, V, shape))  # int64


def divergence_of(divergence, a):
    return divergence(student_logits=a["student"], teacher_logits=a["teacher"], where=jnp.ones((B, T), bool))


def gated(divergence, a):
    return losses.gated_divergence(
        divergence,
        student_logits=a["student"],
        teacher_logits=a["teacher"],
        refusal_logits=a["refusal"],
        refusal_tokens=tokens(R),
        safe_prob=a["prob"][:, 0],
        normalization="mean",
    )


def linear(a):
    return losses.linear_divergence(
        functools.partial(losses.forward_kl, temperature=2.0),
        student_hidden=a["hidden"],
        teacher_hidden=a["other"],
        head=a["head"],
        certain_prob=a["prob"],
        certain_tokens=tokens(B, T),
        chunk_size=2,
    )


LOSSES = {
    **{
        name: functools.partial(divergence_of, getattr(losses, name))
        for name in ("forward_kl", "reverse_kl", "jensen_shannon", "skewed_kl", "skewed_reverse_kl", "total_variation")
    },
    "gated_divergence": functools.partial(gated, losses.forward_kl),
    "gated_divergence, warm": functools.partial(gated, functools.partial(losses.total_variation, temperature=2.0)),
    "gated_teacher": lambda a: losses.gated_teacher(
        teacher_logits=a["teacher"], certain_prob=a["prob"], certain_tokens=tokens(B, T)
    ),
    "linear_divergence": linear,
    "linear_log_prob": lambda a: losses.linear_log_prob(hidden=a["hidden"], tokens=tokens(B, T), head=a["head"]),
    "sequence_log_prob": lambda a: losses.sequence_log_prob(
        logits=a["student"], tokens=tokens(B, T), normalization="mean"
    ),
    **{
        name: lambda a, name=name: getattr(losses, name)(
            response_log_prob=a["log_prob"], refusal_log_prob=a["log_prob"], safe_prob=a["prob"][:, 0]
        )
        for name in ("sequence_kl", "sequence_total_variation", "sequence_total_variation_bound")
    },
    **{
        name: lambda a, name=name: getattr(losses, name)(log_prob=a["log_prob"], weight=a["prob"][:, 0])
        for name in ("outcome_kl", "outcome_total_variation")
    },
    "consistency": lambda a: losses.consistency(logits=a["hidden"][0], target=a["prob"][0]),
    "consistency_anchor": lambda a: losses.consistency_anchor(logits=a["hidden"], reference_logits=a["other"]),
    "masked_mean": lambda a: losses.masked_mean(a["student"], where=a["student"] > 0, axis=-1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_keep_their_dtype(name):
    with jax.enable_x64(False):
        expected = LOSSES[name](arrays(jnp.float32))

    def total(a):
        found = LOSSES[name](a)
        return jnp.sum(found), found

    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            if dtype == jnp.float64 and name.startswith("linear"):
                continue  # float32 by definition
            gradient, found = jax.jit(jax.grad(total, has_aux=True))(arrays(dtype))
            assert found.dtype == dtype
            chex.assert_trees_all_equal_dtypes(gradient, arrays(dtype))
            chex.assert_tree_all_finite(gradient)
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def test_python_numbers_are_taken():
    with jax.enable_x64(True):
        found = losses.sequence_kl(response_log_prob=-1.0, refusal_log_prob=-2.0, safe_prob=0.5)
        np.testing.assert_allclose(found, 0.5 * (np.log(0.5) + 1.0) + 0.5 * (np.log(0.5) + 2.0))
        assert (
            losses.gated_divergence(
                losses.forward_kl,
                student_logits=jnp.zeros((T, V), jnp.float32),
                teacher_logits=jnp.zeros((T, V), jnp.float32),
                refusal_logits=jnp.zeros((R, V), jnp.float32),
                refusal_tokens=[1, 2],
                safe_prob=0.5,
            )
            > 0
        )
