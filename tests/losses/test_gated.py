import doctest
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.losses import (
    forward_kl,
    gated,
    gated_divergence,
    gated_teacher,
    jensen_shannon,
    linear_divergence,
    sequence_kl,
    sequence_log_prob,
    sequence_total_variation,
    sequence_total_variation_bound,
    skewed_kl,
    total_variation,
)
from tests.losses.oracle import (
    ToyLanguage,
    all_finite,
    exact_kl,
    gated_forward_kl,
    gated_total_variation,
    oracle,
    run_sequence,
    softmax,
)

DIVERGENCES = {
    "forward_kl": forward_kl,
    "jensen_shannon_0.2": functools.partial(jensen_shannon, mixture=0.2),
    "total_variation": total_variation,
}


@functools.cache
def jitted(loss):
    return jax.jit(loss)


def test_examples_run():
    result = doctest.testmod(gated)
    assert result.attempted > 3
    assert result.failed == 0


class TestToyLanguage:
    def test_it_is_a_language(self):
        toy = ToyLanguage()
        for table in (toy.base, toy.student):
            np.testing.assert_allclose(np.exp(toy.log_probs(table)).sum(), 1.0)
        np.testing.assert_allclose(toy.system(0.3).sum(), 1.0)
        ours = sequence_log_prob(logits=toy.student[toy.rows], tokens=toy.tokens, where=toy.masks)
        np.testing.assert_allclose(ours, toy.log_probs(toy.student), rtol=1e-5)

    @pytest.mark.parametrize("seed", range(5))
    def test_sequence_losses_bound_the_distances_to_the_system(self, seed):
        # The guard judges every answer on its own.
        toy = ToyLanguage(seed)
        safe_prob = np.random.default_rng(seed).uniform(size=len(toy.answers))
        q = np.exp(toy.log_probs(toy.student))
        outcomes = toy.outcomes(toy.student, safe_prob)
        p = toy.system(outcomes["safe_prob"])
        bound, surrogate, kl = (
            toy.expectation(run_sequence(loss, outcomes)[0])
            for loss in (sequence_total_variation_bound, sequence_total_variation, sequence_kl)
        )
        true_tv = 0.5 * np.abs(p - q).sum()
        assert 0.1 < true_tv <= bound <= surrogate
        assert 0.1 < exact_kl(p, q) <= kl

    def test_sequence_losses_are_exact_where_one_answer_holds_everything(self):
        # The base model answers (3, END) for sure: the system given y is the system.
        toy = ToyLanguage(1)
        certain = np.array([3 if prefix == () else 0 for prefix in toy.prefixes])
        toy.base = np.where(np.eye(4, dtype=bool)[certain], 0.0, -np.inf)
        answer = toy.answers.index((3, 0))
        p = toy.system(0.4)
        np.testing.assert_allclose([p[answer], p[toy.refusal_index]], [0.4, 0.6])
        q = np.exp(toy.log_probs(toy.student))
        outcomes = toy.outcomes(toy.student, 0.4)
        kl = toy.expectation(run_sequence(sequence_kl, outcomes)[0])
        np.testing.assert_allclose(kl, exact_kl(p, q), rtol=1e-5)
        bound = toy.expectation(run_sequence(sequence_total_variation_bound, outcomes)[0])
        np.testing.assert_allclose(bound, 0.5 * np.abs(p - q).sum(), rtol=1e-5)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("safe_prob", [0.0, 0.3, 1.0])
    def test_gated_forward_kl_is_the_kl_to_the_system(self, seed, safe_prob):
        toy = ToyLanguage(seed, refusal_start_possible=False)
        q = np.exp(toy.log_probs(toy.student))
        values = jitted(gated_forward_kl)(**toy.gated(toy.student, safe_prob))
        np.testing.assert_allclose(toy.expectation(values), exact_kl(toy.system(safe_prob), q), rtol=2e-5)

    def test_gated_forward_kl_has_the_gradient_of_the_kl_to_the_system(self):
        toy = ToyLanguage(3, refusal_start_possible=False)
        p = jnp.asarray(toy.system(0.4), jnp.float32)
        base = np.exp(toy.log_probs(toy.base)).astype(np.float32)
        possible = np.isfinite(toy.student)

        def truth(table):  # Up to the entropy of p, which the student does not move.
            table = jnp.where(possible, table, -jnp.inf)
            return -jnp.sum(p * sequence_log_prob(logits=table[toy.rows], tokens=toy.tokens, where=toy.masks))

        def loss(table):
            table = jnp.where(possible, table, -jnp.inf)
            values = gated_forward_kl(**toy.gated(table, 0.4))
            return jnp.sum(base * values, where=base > 0)

        start = jnp.where(possible, toy.student, 0.0)
        expected = jax.jit(jax.grad(truth))(start)
        assert float(jnp.max(jnp.abs(expected))) > 0.05
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(start), expected, atol=2e-6)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("safe_prob", [0.0, 0.3, 0.9, 1.0])
    def test_gated_losses_are_upper_bounds_where_answer_and_refusal_collide(self, seed, safe_prob):
        toy = ToyLanguage(seed)
        p, q = toy.system(safe_prob), np.exp(toy.log_probs(toy.student))
        case = toy.gated(toy.student, safe_prob)
        kl = toy.expectation(jitted(gated_forward_kl)(**case))
        assert exact_kl(p, q) <= kl + 1e-6
        tv = toy.expectation(jitted(gated_total_variation)(**case))
        assert 0.5 * np.abs(p - q).sum() <= tv + 1e-6

    @pytest.mark.parametrize("loss", [gated_forward_kl, gated_total_variation])
    def test_gated_losses_vanish_for_the_system_itself(self, loss):
        # The student that is the system: mixture first, then base on y and one-hot on y_r.
        toy = ToyLanguage(2, refusal_start_possible=False)
        table = np.array(toy.base)
        mixture = 0.3 * softmax(toy.base[toy.row[()]])
        mixture[1] += 0.7
        table[toy.row[()]] = np.log(mixture)
        for prefix, token in (((1,), 2), ((1, 2), 0)):
            table[toy.row[prefix]] = np.where(np.arange(4) == token, 0.0, -np.inf)
        values = jitted(loss)(**toy.gated(table, 0.3))
        np.testing.assert_allclose(toy.expectation(values), 0.0, atol=1e-6)
        # And not for the base model.
        values = jitted(loss)(**toy.gated(toy.base, 0.3))
        assert toy.expectation(values) > 0.3


@functools.cache
def _compiled_gated(loss, normalization, temperature):
    def run(logits, safe_prob, rest):
        def total(logits, safe_prob):
            value = loss(
                **logits,
                **rest,
                safe_prob=safe_prob,
                normalization=normalization,
                temperature=temperature,
            )
            return jnp.sum(value), value

        gradients, value = jax.grad(total, argnums=(0, 1), has_aux=True)(logits, safe_prob)
        return value, gradients[0] | {"safe_prob": gradients[1]}

    return jax.jit(run)


def run_gated(loss, case, normalization="sum", temperature=1.0):
    """Value, and the gradients of its sum by name."""
    rest = dict(case)
    safe_prob = rest.pop("safe_prob")
    logits = {name: rest.pop(name) for name in list(rest) if "logits" in name}
    return _compiled_gated(loss, normalization, temperature)(logits, safe_prob, rest)


class TestGated:
    def case(self, batch=5, num_tokens=4, num_refusal=3, num_vocab=7, seed=0):
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return rng.normal(size=(batch, *shape)).astype(np.float32)

        lengths = rng.integers(1, num_tokens + 1, size=(batch, 1))
        return {
            "student_logits": normal(num_tokens, num_vocab),
            "teacher_logits": normal(num_tokens, num_vocab),
            "refusal_logits": normal(num_refusal, num_vocab),
            "refusal_tokens": rng.permutation(num_vocab)[:num_refusal],
            "safe_prob": rng.uniform(size=batch).astype(np.float32),
            "where": np.arange(num_tokens) < lengths,
        }

    @pytest.mark.parametrize(
        ("loss", "normalization", "temperature"),
        [
            (gated_forward_kl, "sum", 1.0),
            (gated_forward_kl, "mean", 2.0),
            (gated_forward_kl, "mean", 1.0),
            (gated_total_variation, "sum", 2.0),
            (gated_total_variation, "mean", 1.0),
        ],
    )
    def test_equals_a_loop_in_float64(self, loss, normalization, temperature):
        def distance(p, q):
            return exact_kl(p, q) if loss is gated_forward_kl else 0.5 * np.abs(p - q).sum()

        case = self.case()
        value, _ = run_gated(loss, case, normalization, temperature)
        tokens = case["refusal_tokens"]
        for i in range(5):
            q, p, q_r = (
                softmax(case[name][i] / temperature) for name in ("student_logits", "teacher_logits", "refusal_logits")
            )
            a = float(case["safe_prob"][i])
            length = int(case["where"][i].sum())
            first = distance(a * p[0] + (1 - a) * np.eye(7)[tokens[0]], q[0])
            response = first + sum(distance(p[t], q[t]) for t in range(1, length))
            refusal = first + sum(distance(np.eye(7)[tokens[t]], q_r[t]) for t in range(1, 3))
            if normalization == "mean":
                response, refusal = response / length, refusal / 3
            np.testing.assert_allclose(value[i], a * response + (1 - a) * refusal, rtol=1e-5)

    @pytest.mark.parametrize("normalization", ["sum", "mean"])
    def test_ends_are_plain_distillation_and_plain_likelihood(self, normalization):
        case = self.case()
        kl = oracle("forward_kl", case["student_logits"], case["teacher_logits"]) * case["where"]
        lengths = case["where"].sum(-1) if normalization == "mean" else 1
        case["safe_prob"] = np.ones(5, np.float32)
        answer, _ = run_gated(gated_forward_kl, case, normalization)
        np.testing.assert_allclose(answer, kl.sum(-1) / lengths, rtol=1e-5)
        # The refusal's first position is read from student_logits.
        shared = case["refusal_logits"].copy()
        shared[:, 0] = case["student_logits"][:, 0]
        likelihood = sequence_log_prob(
            logits=shared,
            tokens=np.broadcast_to(case["refusal_tokens"], (5, 3)),
            normalization=normalization,
        )
        case["safe_prob"] = np.zeros(5, np.float32)
        refuse, _ = run_gated(gated_forward_kl, case, normalization)
        np.testing.assert_allclose(refuse, -likelihood, rtol=1e-5)

    def test_first_position_of_refusal_logits_is_not_used(self):
        case = self.case()
        value, slopes = run_gated(gated_forward_kl, case)
        assert not np.any(slopes["refusal_logits"][:, 0])
        case["refusal_logits"][:, 0] += np.arange(7)
        np.testing.assert_array_equal(value, run_gated(gated_forward_kl, case)[0])

    @pytest.mark.parametrize("divergence", ["forward_kl", "total_variation", "jensen_shannon_0.2"])
    def test_finite_with_padded_vocabulary(self, divergence):
        case = self.case()
        for name in ("student_logits", "teacher_logits", "refusal_logits"):
            case[name][..., -1] = -np.inf
        case["refusal_tokens"] = np.array([0, 3, 5])
        loss = functools.partial(gated_divergence, DIVERGENCES[divergence])
        for safe_prob in (0.0, 0.5, 1.0):
            case["safe_prob"] = np.full(5, safe_prob, np.float32)
            value, slopes = run_gated(loss, case)
            assert all_finite(value, *slopes.values())
            for name in ("student_logits", "teacher_logits", "refusal_logits"):
                assert not np.any(slopes[name][..., -1])

    def test_other_divergences_go_through_the_same_gate(self):
        # At a = 1 it is the divergence itself.
        case = self.case() | {"safe_prob": np.ones(5, np.float32)}
        loss = functools.partial(gated_divergence, DIVERGENCES["jensen_shannon_0.2"])
        plain = oracle("jensen_shannon_0.2", case["student_logits"], case["teacher_logits"])
        np.testing.assert_allclose(run_gated(loss, case)[0], (plain * case["where"]).sum(-1), rtol=1e-4)

    def test_outcome_of_weight_zero_may_be_impossible(self):
        case = self.case() | {"safe_prob": np.ones(5, np.float32)}
        case["refusal_logits"][:, 1, case["refusal_tokens"][1]] = -np.inf
        value, slopes = run_gated(gated_forward_kl, case)
        assert all_finite(value, slopes["refusal_logits"], slopes["student_logits"])
        assert not np.any(slopes["refusal_logits"])
        case["safe_prob"] = np.full(5, 0.5, np.float32)
        value, slopes = run_gated(gated_forward_kl, case)
        assert np.all(np.isinf(value))
        assert all_finite(slopes["refusal_logits"], slopes["student_logits"])

    @pytest.mark.parametrize("normalization", ["sum", "mean"])
    def test_gradients_of_teacher_and_guard(self, normalization):
        case = self.case()
        _, slopes = run_gated(gated_forward_kl, case, normalization)
        directions = self.case(seed=8)
        step = 1e-2
        for name in ("safe_prob", "teacher_logits", "student_logits", "refusal_logits"):
            ends = [
                run_gated(
                    gated_forward_kl,
                    case | {name: case[name] + np.float32(sign * step) * directions[name]},
                    normalization,
                )[0]
                for sign in (1, -1)
            ]
            slope = (np.float64(ends[0]).sum() - np.float64(ends[1]).sum()) / (2 * step)
            np.testing.assert_allclose(np.sum(slopes[name] * directions[name]), slope, rtol=5e-3, atol=2e-3)

    @pytest.mark.parametrize("loss", [gated_forward_kl, gated_total_variation])
    @pytest.mark.parametrize("normalization", ["sum", "mean"])
    def test_masked_positions_and_padding_rows(self, loss, normalization):
        case = self.case()
        clean, clean_slopes = run_gated(loss, case, normalization)
        mask = case["where"].copy()
        mask[2] = False
        case["where"] = mask
        case["student_logits"][~mask], case["teacher_logits"][~mask] = np.nan, np.nan
        case["refusal_logits"][2], case["safe_prob"][2] = np.nan, np.nan
        value, slopes = run_gated(loss, case, normalization)
        kept = np.array([0, 1, 3, 4])
        np.testing.assert_allclose(value[kept], clean[kept], rtol=1e-6)
        assert float(value[2]) == 0.0
        for name, slope in slopes.items():
            np.testing.assert_allclose(slope[kept], clean_slopes[name][kept], atol=1e-6)
            assert not np.any(slope[2])
        assert not np.any(slopes["student_logits"][~mask])

    @pytest.mark.parametrize("normalization", ["sum", "mean"])
    def test_refusals_of_their_own_length(self, normalization):
        case = self.case()
        tokens = np.tile(case["refusal_tokens"], (5, 1))
        tokens[:, 2] = -1
        short = case | {
            "refusal_tokens": tokens,
            "refusal_where": np.tile(np.arange(3) < 2, (5, 1)),
        }
        cut = case | {
            "refusal_tokens": case["refusal_tokens"][:2],
            "refusal_logits": case["refusal_logits"][:, :2],
        }
        expected, _ = run_gated(gated_forward_kl, cut, normalization)
        value, _ = run_gated(gated_forward_kl, short, normalization)
        np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_vmap_equals_batch_and_bfloat16_is_float32_inside(self):
        case = self.case()
        for name in ("student_logits", "teacher_logits", "refusal_logits"):
            case[name] = jnp.asarray(case[name], jnp.bfloat16)
        tokens = case.pop("refusal_tokens")
        value = jax.jit(jax.vmap(lambda c: gated_forward_kl(**c, refusal_tokens=tokens)))(case)
        assert value.dtype == jnp.float32
        exact = {k: np.asarray(x, np.float32) if "logits" in k else x for k, x in case.items()}
        expected, _ = run_gated(gated_forward_kl, exact | {"refusal_tokens": tokens})
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    @pytest.mark.parametrize("loss", [gated_forward_kl, gated_total_variation])
    def test_traced_once_and_sharded_equals_unsharded(self, loss):
        case = self.case(batch=8)
        tokens = case.pop("refusal_tokens")

        @jax.jit
        @chex.assert_max_traces(n=2)  # once more for the sharded arguments
        def run(case):
            return jax.value_and_grad(lambda s: jnp.sum(loss(**case | {"student_logits": s}, refusal_tokens=tokens)))(
                case["student_logits"]
            )

        expected = run(case)
        run(case | {"safe_prob": 1 - case["safe_prob"]})
        assert run._cache_size() == 1
        mesh = Mesh(np.array(jax.devices()), ("d",))
        value, gradient = run(jax.device_put(case, NamedSharding(mesh, P("d"))))
        assert len(gradient.sharding.device_set) == 8
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        np.testing.assert_allclose(gradient, expected[1], atol=1e-6)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"teacher_logits": np.zeros((5, 3, 7))}, "teacher_logits has shape"),
            ({"refusal_logits": np.zeros((5, 3, 8))}, "refusal_logits has shape"),
            ({"refusal_logits": np.zeros((3, 7))}, "refusal_logits has shape"),
            ({"refusal_tokens": np.zeros(4, np.int32)}, "refusal_tokens has shape"),
            ({"refusal_tokens": np.zeros(3, np.float32)}, "refusal_tokens has dtype float32"),
            ({"safe_prob": np.zeros(4)}, r"safe_prob has shape \(4,\), expected \(5,\)"),
            ({"safe_prob": np.full(5, -0.1)}, r"safe_prob holds -0.1, expected probabilities"),
            ({"where": np.ones((5, 3), dtype=bool)}, "where has shape"),
            ({"refusal_where": np.ones(3, dtype=bool)}, "where has shape"),
            ({"temperature": 0.0}, "temperature is 0.0, expected a positive"),
            ({"normalization": "none"}, "normalization is 'none'"),
            ({"student_logits": np.zeros((5, 4, 7), np.int32)}, "student_logits has dtype"),
        ],
    )
    def test_bad_input(self, change, message):
        with pytest.raises(ValueError, match=message):
            gated_forward_kl(**(self.case() | change))


WARM = 2.5


def warm_by_default(*, student_logits, teacher_logits, temperature=WARM, where=None):
    return forward_kl(
        student_logits=student_logits, teacher_logits=teacher_logits, temperature=temperature, where=where
    )


def without_the_keyword(*, student_logits, teacher_logits, where=None):
    return forward_kl(student_logits=student_logits, teacher_logits=teacher_logits, where=where)


class TestTemperature:
    """The gated teacher at a temperature is (1 - c) softmax(z / tau) + c delta, for whoever asks."""

    rng = np.random.default_rng(4)
    student, teacher = (2 * rng.normal(size=(2, 3, 5))).astype(np.float32)
    certain = np.array([0.0, 0.4, 1.0], np.float32)
    tokens = np.array([1, 4, 2])

    def mixture(self, temperature):
        one_hot = np.eye(5)[self.tokens]
        return (1 - self.certain)[:, None] * softmax(self.teacher / temperature) + self.certain[:, None] * one_hot

    def by_gated_teacher(self, divergence, temperature):
        log_p = gated_teacher(
            teacher_logits=self.teacher,
            certain_prob=self.certain,
            certain_tokens=self.tokens,
            temperature=temperature,
        )
        return forward_kl(student_logits=self.student / temperature, teacher_logits=log_p)

    def by_gated_divergence(self, divergence, temperature):
        # One position each: the loss is that of the first, which is mixed.
        return gated_divergence(
            divergence,
            student_logits=self.student[:, None],
            teacher_logits=self.teacher[:, None],
            refusal_logits=self.student[:, None],
            refusal_tokens=self.tokens[:, None],
            safe_prob=1 - self.certain,
        )

    def by_linear_divergence(self, divergence, temperature):
        return linear_divergence(
            divergence,
            student_hidden=self.student,
            teacher_hidden=self.teacher,
            head=np.eye(5, dtype=np.float32),
            certain_prob=self.certain,
            certain_tokens=self.tokens,
        )

    @pytest.mark.parametrize("user", ["gated_teacher", "gated_divergence", "linear_divergence"])
    @pytest.mark.parametrize(
        ("divergence", "temperature"),
        [
            (forward_kl, 1.0),
            (functools.partial(forward_kl, temperature=1.0), 1.0),
            (functools.partial(forward_kl, temperature=WARM), WARM),
            (functools.partial(functools.partial(forward_kl, temperature=0.5), temperature=WARM), WARM),
            (functools.partial(skewed_kl, skew=0.0, temperature=0.7), 0.7),
            (warm_by_default, WARM),
            (without_the_keyword, 1.0),
        ],
    )
    def test_it_is_applied_before_mixing_by_every_user(self, user, divergence, temperature):
        q = softmax(self.student / temperature)
        expected = [exact_kl(p, q) for p, q in zip(self.mixture(temperature), q, strict=True)]
        for wrap in (lambda f: f, jax.jit):
            found = wrap(lambda: getattr(self, f"by_{user}")(divergence, temperature))()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_an_argument_equals_an_option_inside_a_partial(self):
        case = TestGated().case()
        warm = functools.partial(gated_divergence, functools.partial(forward_kl, temperature=2.0))
        inside, _ = run_gated(warm, case, temperature=None)
        argument, _ = run_gated(gated_forward_kl, case, temperature=2.0)
        np.testing.assert_allclose(inside, argument, rtol=1e-6)
        assert np.all(np.abs(inside - run_gated(gated_forward_kl, case)[0]) > 1e-3)

    def test_two_temperatures_that_differ_are_refused(self):
        with pytest.raises(ConfigError, match=r"temperature=2\.0, but the divergence has temperature 3\.0 already"):
            gated_divergence(functools.partial(forward_kl, temperature=3.0), **TestGated().case(), temperature=2.0)

    @pytest.mark.parametrize("certain", [0.0, 0.3, 1.0])
    def test_gradients_of_the_mixture_are_finite_and_right_at_the_ends(self, certain):
        weights = self.rng.normal(size=5).astype(np.float32)

        def loss(logits, certain):
            log_p = gated_teacher(teacher_logits=logits, certain_prob=certain, certain_tokens=4)
            return jnp.sum(weights * jnp.exp(log_p))

        by_logits, by_certain = jax.grad(loss, argnums=(0, 1))(jnp.asarray(self.teacher[0]), jnp.float32(certain))
        p = softmax(self.teacher[0])
        np.testing.assert_allclose(by_logits, (1 - certain) * p * (weights - p @ weights), atol=1e-6)
        # At c = 1 the other tokens have no logarithm, and no slope goes through them.
        expected = weights[4] - p @ weights if certain < 1 else weights[4] * (1 - p[4])
        np.testing.assert_allclose(by_certain, expected, rtol=1e-5)
