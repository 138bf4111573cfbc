import doctest
import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edgesafe_jax.losses import (
    outcome_kl,
    outcome_total_variation,
    outcomes,
    sequence_kl,
    sequence_log_prob,
    sequence_total_variation,
    sequence_total_variation_bound,
)
from tests.losses.oracle import all_finite, run_sequence, softmax


@functools.cache
def jitted(loss):
    names = loss.__code__.co_varnames[: loss.__code__.co_kwonlyargcount + 1]
    static = [name for name in ("temperature", "normalization", "eps") if name in names]
    return jax.jit(loss, static_argnames=static)


def test_examples_run():
    result = doctest.testmod(outcomes)
    assert result.attempted > 8
    assert result.failed == 0


class TestSequenceLogProb:
    def case(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(4, 6, 9)).astype(np.float32)
        tokens = rng.integers(0, 9, size=(4, 6)).astype(np.int32)
        mask = np.arange(6) < np.array([[6], [3], [1], [0]])
        log_prob = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
        chosen = np.take_along_axis(log_prob, tokens[..., None], -1)[..., 0]
        return logits, tokens, mask, chosen

    @staticmethod
    @functools.partial(jax.jit, static_argnames="normalization")
    def run(logits, tokens, where, normalization="sum"):
        def total(logits):
            value = sequence_log_prob(logits=logits, tokens=tokens, where=where, normalization=normalization)
            return jnp.sum(value), value

        gradient, value = jax.grad(total, has_aux=True)(logits)
        return value, gradient

    def test_equals_sum_and_mean_in_float64(self):
        logits, tokens, mask, chosen = self.case()
        total, _ = self.run(logits, tokens, mask)
        np.testing.assert_allclose(total, np.sum(chosen * mask, -1), rtol=1e-5)
        mean, _ = self.run(logits, tokens, mask, normalization="mean")
        np.testing.assert_allclose(mean, np.sum(chosen * mask, -1) / np.maximum(mask.sum(-1), 1), rtol=1e-5)
        everything, _ = self.run(logits, tokens, None)
        np.testing.assert_allclose(everything, chosen.sum(-1), rtol=1e-5)

    def test_gradient_is_one_hot_minus_softmax(self):
        logits, tokens, mask, _ = self.case()
        _, gradient = self.run(logits, tokens, mask)
        expected = np.eye(9)[tokens] - softmax(logits)
        np.testing.assert_allclose(gradient, expected * mask[..., None], atol=1e-6)
        assert not np.any(gradient[~mask])

    def test_masked_positions_may_hold_anything(self):
        logits, tokens, mask, _ = self.case()
        clean = self.run(logits, tokens, mask)
        logits[~mask], tokens[~mask] = np.nan, -100
        for dirty, expected in zip(self.run(logits, tokens, mask), clean, strict=True):
            np.testing.assert_array_equal(dirty, expected)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16])
    def test_small_token_dtypes_reach_a_large_vocabulary(self, dtype):
        logits = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
        value, _ = self.run(logits, np.array([3, 100], dtype), None)
        log_prob = scipy.special.log_softmax(logits, axis=-1)
        np.testing.assert_allclose(value, log_prob[0, 3] + log_prob[1, 100], rtol=1e-6)

    def test_excluded_token_is_minus_infinity_with_finite_gradient(self):
        logits, tokens, mask, _ = self.case()
        logits[0, 0, tokens[0, 0]] = -np.inf
        value, gradient = self.run(logits, tokens, mask)
        assert float(value[0]) == -math.inf
        assert all_finite(value[1:], gradient)

    def test_probabilities_of_all_sequences_add_up_to_one(self):
        logits = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
        tokens = jnp.asarray(list(itertools.product(range(4), repeat=3)))
        log_prob = jax.vmap(lambda t: self.run(logits, t, None)[0])(tokens)
        np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-5)

    def test_bfloat16_is_added_up_in_float32(self):
        value, _ = self.run(jnp.zeros((2000, 3), jnp.bfloat16), np.zeros(2000, np.int32), None)
        np.testing.assert_allclose(value, -2000 * math.log(3), rtol=1e-5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tokens": np.zeros((2, 4), np.int32)}, r"tokens has shape \(2, 4\), expected"),
            ({"tokens": np.zeros((2, 3), np.float32)}, "tokens has dtype float32, expected int"),
            ({"normalization": "max"}, 'normalization is \'max\', expected "sum" or "mean"'),
            ({"where": np.ones(3, dtype=bool)}, r"where has shape \(3,\), expected \(2, 3\)"),
            ({"logits": np.zeros((2, 3, 5), np.int32)}, "logits has dtype int32"),
            ({"logits": np.zeros(5)}, r"logits has shape \(5,\), expected \[..., T, V\]"),
            ({"logits": np.zeros((2, 0, 5))}, r"logits has shape \(2, 0, 5\), expected"),
        ],
    )
    def test_bad_input(self, change, message):
        kwargs = {"logits": np.zeros((2, 3, 5)), "tokens": np.zeros((2, 3), np.int32)}
        with pytest.raises(ValueError, match=message):
            sequence_log_prob(**(kwargs | change))


SEQUENCE_LOSSES = [sequence_total_variation, sequence_total_variation_bound, sequence_kl]
over_sequence_losses = pytest.mark.parametrize("loss", SEQUENCE_LOSSES)


class TestSequenceLosses:
    def outcomes(self, seed=0, num=20):
        rng = np.random.default_rng(seed)
        q = rng.dirichlet([0.5, 0.5, 0.5], size=num)
        return {
            "response_log_prob": np.log(q[:, 0]),
            "refusal_log_prob": np.log(q[:, 1]),
            "safe_prob": rng.uniform(0.01, 0.99, size=num),
        }

    def test_total_variation_surrogate_is_equation_4(self):
        case = self.outcomes()
        l_y, l_r, a = case.values()
        expected = -a * np.minimum(0, l_y - np.log(a)) - (1 - a) * np.minimum(0, l_r - np.log(1 - a))
        value, _ = run_sequence(sequence_total_variation, case)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)

    def test_total_variation_bound_is_equation_3(self):
        case = self.outcomes()
        l_y, l_r, a = case.values()
        expected = 1 - (a * np.minimum(np.exp(l_y) / a, 1) + (1 - a) * np.minimum(np.exp(l_r) / (1 - a), 1))
        value, _ = run_sequence(sequence_total_variation_bound, case)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)

    def test_kl_is_that_of_two_outcomes(self):
        case = self.outcomes()
        l_y, l_r, a = case.values()
        entropies = (
            scipy.special.rel_entr(a, np.exp(l_y)),
            scipy.special.rel_entr(1 - a, np.exp(l_r)),
        )
        value, _ = run_sequence(sequence_kl, case)
        np.testing.assert_allclose(value, sum(entropies), rtol=1e-5, atol=1e-5)

    def test_order_of_the_three(self):
        for seed in range(50):
            bound, surrogate, kl = (
                run_sequence(loss, self.outcomes(seed))[0]
                for loss in (sequence_total_variation_bound, sequence_total_variation, sequence_kl)
            )
            assert np.all(bound >= -1e-6)
            assert np.all(kl >= -1e-6)
            assert np.all(bound <= surrogate + 1e-6)
            assert np.all(kl <= surrogate + 1e-6)

    @over_sequence_losses
    def test_zero_where_the_student_is_the_system(self, loss):
        a = np.linspace(0.01, 0.99, 20)
        case = {"response_log_prob": np.log(a), "refusal_log_prob": np.log(1 - a), "safe_prob": a}
        np.testing.assert_allclose(run_sequence(loss, case)[0], np.zeros(20), atol=1e-6)

    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            (sequence_total_variation, (-0.5, 0.0)),
            (sequence_kl, (-0.5, -0.5)),
            (sequence_total_variation_bound, (-0.2, 0.0)),
        ],
    )
    def test_clip_stops_the_pull_beyond_the_target(self, loss, expected):
        # The system answers and refuses half the time, the student 0.2 and 0.6.
        case = {"response_log_prob": np.log(0.2), "refusal_log_prob": np.log(0.6), "safe_prob": 0.5}
        _, slopes = run_sequence(loss, case)
        pulls = slopes["response_log_prob"], slopes["refusal_log_prob"]
        np.testing.assert_allclose(pulls, expected, rtol=1e-6)

    def test_no_pull_exactly_at_the_target(self):
        a = jnp.float32(0.5)
        case = {"response_log_prob": jnp.log(a), "refusal_log_prob": jnp.log(a), "safe_prob": a}
        _, slopes = run_sequence(sequence_total_variation, case)
        assert float(slopes["response_log_prob"]) == float(slopes["refusal_log_prob"]) == 0.0

    def test_summed_log_probs_never_reach_the_clip(self):
        # An answer of 40 tokens at 0.5 nats each: summed, the loss is the weighted negative
        # log-likelihood up to the entropy of a; averaged, both clips bind.
        a = 0.3
        summed = sequence_total_variation(response_log_prob=-20.0, refusal_log_prob=-5.0, safe_prob=a)
        entropy = -a * math.log(a) - (1 - a) * math.log(1 - a)
        np.testing.assert_allclose(summed, a * 20.0 + (1 - a) * 5.0 - entropy, rtol=1e-5)
        averaged = sequence_total_variation(response_log_prob=-0.5, refusal_log_prob=-0.3, safe_prob=a)
        assert float(averaged) == 0.0

    @over_sequence_losses
    @pytest.mark.parametrize("safe_prob", [0.0, 1.0, 0.5, 1e-30])
    @pytest.mark.parametrize("log_probs", [(0.0, -math.inf), (-math.inf, 0.0), (-1e4, -1e4)])
    def test_ends_are_never_nan(self, loss, safe_prob, log_probs):
        case = {
            "response_log_prob": log_probs[0],
            "refusal_log_prob": log_probs[1],
            "safe_prob": safe_prob,
        }
        value, slopes = run_sequence(loss, case)
        assert not np.isnan(value)
        assert all_finite(slopes["response_log_prob"], slopes["refusal_log_prob"])
        assert not np.isnan(slopes["safe_prob"])

    def test_impossible_outcome_of_weight_zero_costs_nothing(self):
        kwargs = {"response_log_prob": -math.inf, "refusal_log_prob": 0.0}
        assert float(sequence_kl(**kwargs, safe_prob=0.0)) == 0.0
        assert float(sequence_kl(**kwargs, safe_prob=0.1)) == math.inf

    def test_eps_clamps_the_guard(self):
        def value(a, eps):
            return float(
                jitted(sequence_total_variation)(response_log_prob=-3.0, refusal_log_prob=-2.0, safe_prob=a, eps=eps)
            )

        assert value(0.0, 0.01) == value(0.01, 0.01)
        assert value(1.0, 0.01) == value(0.99, 0.01)
        assert value(0.0, 0.01) != value(0.0, 0.02)

    @over_sequence_losses
    @pytest.mark.parametrize("name", ["response_log_prob", "refusal_log_prob", "safe_prob"])
    def test_nan_is_not_hidden(self, loss, name):
        case = {"response_log_prob": -1.0, "refusal_log_prob": -1.0, "safe_prob": 0.5}
        value, _ = run_sequence(loss, case | {name: math.nan})
        assert np.isnan(value)

    @over_sequence_losses
    def test_gradients_flow_to_the_guard(self, loss):
        case = {"response_log_prob": -3.0, "refusal_log_prob": -1.0, "safe_prob": 0.6}
        slope = run_sequence(loss, case)[1]["safe_prob"]
        step = 1e-3
        ends = [run_sequence(loss, case | {"safe_prob": 0.6 + sign * step})[0] for sign in (1, -1)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), atol=2e-3)

    @over_sequence_losses
    def test_masked_equals_filtered(self, loss):
        case = self.outcomes()
        expected_value, expected_slopes = run_sequence(loss, case)
        mask = np.random.default_rng(1).random(20) < 0.5
        dirty = {name: np.where(mask, x, np.nan) for name, x in case.items()}
        value, slopes = run_sequence(loss, dirty, where=mask)
        np.testing.assert_allclose(value, np.where(mask, expected_value, 0), rtol=1e-6)
        for name, slope in slopes.items():
            np.testing.assert_allclose(slope, np.where(mask, expected_slopes[name], 0), rtol=1e-6)

    @over_sequence_losses
    def test_vmap_traces_and_low_precision(self, loss):
        case = {name: jnp.asarray(x, jnp.bfloat16) for name, x in self.outcomes().items()}

        @jax.jit
        @jax.vmap
        @chex.assert_max_traces(n=1)
        def mapped(case):
            return loss(**case)

        value = mapped(case)
        mapped({name: x[::-1] for name, x in case.items()})
        assert value.dtype == jnp.float32
        exact = {name: np.asarray(x, np.float32) for name, x in case.items()}
        np.testing.assert_allclose(value, run_sequence(loss, exact)[0], rtol=1e-5, atol=1e-6)

    @over_sequence_losses
    def test_bad_input(self, loss):
        case = self.outcomes(num=3)
        with pytest.raises(ValueError, match=r"refusal_log_prob has shape \(2,\) but response"):
            loss(**(case | {"refusal_log_prob": np.zeros(2)}))
        with pytest.raises(ValueError, match=r"safe_prob holds 1.5, expected probabilities in"):
            loss(**(case | {"safe_prob": np.array([0.1, 1.5, 0.2])}))
        with pytest.raises(ValueError, match=r"safe_prob holds nan, expected probabilities in"):
            loss(**(case | {"safe_prob": np.array([0.1, np.nan, 0.2])}))
        with pytest.raises(ValueError, match="response_log_prob has dtype int32"):
            loss(**(case | {"response_log_prob": np.zeros(3, np.int32)}))
        with pytest.raises(ValueError, match=r"where has shape \(4,\), expected \(3,\)"):
            loss(**case, where=np.ones(4, dtype=bool))

    @pytest.mark.parametrize("eps", [0.0, 0.5, -1.0, math.nan])
    def test_bad_eps(self, eps):
        with pytest.raises(ValueError, match=r"eps is .*, expected a number inside \(0, 0.5\)"):
            sequence_total_variation(**self.outcomes(num=3), eps=eps)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (outcome_total_variation, sequence_total_variation),
        (outcome_kl, sequence_kl),
    ],
)
def test_outcomes_add_up_to_the_loss_over_both(part, whole):
    rng = np.random.default_rng(5)
    answer, refusal = (-rng.uniform(0.01, 4, 40).astype(np.float32) for _ in range(2))
    safe = np.concatenate([rng.uniform(size=37), [0.0, 1.0, 0.5]]).astype(np.float32)
    where = rng.uniform(size=40) < 0.8

    def apart(answer, refusal):
        return jnp.sum(part(log_prob=answer, weight=safe, where=where)) + jnp.sum(
            part(log_prob=refusal, weight=1 - safe, where=where)
        )

    def together(answer, refusal):
        return jnp.sum(whole(response_log_prob=answer, refusal_log_prob=refusal, safe_prob=safe, where=where))

    np.testing.assert_allclose(apart(answer, refusal), together(answer, refusal), rtol=1e-5)
    for found, expected in zip(
        *(jax.grad(f, argnums=(0, 1))(jnp.asarray(answer), jnp.asarray(refusal)) for f in (apart, together)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_outcome_losses_refuse_what_is_no_weight():
    with pytest.raises(ValueError, match=r"holds 1\.5"):
        outcome_kl(log_prob=-1.0, weight=1.5)
    with pytest.raises(ValueError, match="eps is 0"):
        outcome_total_variation(log_prob=-1.0, weight=0.5, eps=0.0)
