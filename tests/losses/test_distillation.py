import doctest
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from edgesafe_jax.losses import (
    distillation,
    forward_kl,
    gated_divergence,
    gated_forward_kl,
    gated_total_variation,
    jensen_shannon,
    masked_mean,
    outcome_kl,
    outcome_total_variation,
    reverse_kl,
    sequence_kl,
    sequence_log_prob,
    sequence_total_variation,
    sequence_total_variation_bound,
    skewed_kl,
    total_variation,
)

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "jensen_shannon_0.2": functools.partial(jensen_shannon, mixture=0.2),
    "skewed_kl": skewed_kl,
    "skewed_kl_0.7": functools.partial(skewed_kl, skew=0.7),
    "total_variation": total_variation,
}
over_divergences = pytest.mark.parametrize("name", DIVERGENCES)
over_defaults = pytest.mark.parametrize("name", [name for name in DIVERGENCES if "0" not in name])
SHAPE = (6, 12)  # Nearly all cases share one shape, and with it one compilation per loss.


@functools.cache
def _compiled(name, temperature):
    def run(student, teacher, where):
        def loss(s, t):
            value = DIVERGENCES[name](student_logits=s, teacher_logits=t, temperature=temperature, where=where)
            return jnp.sum(value), value

        gradients, value = jax.grad(loss, argnums=(0, 1), has_aux=True)(student, teacher)
        return value, *gradients

    return jax.jit(run)


def run(name, student, teacher, where=None, temperature=1.0):
    """Value, gradient of its sum by the student's logits, and by the teacher's."""
    return _compiled(name, temperature)(
        jnp.asarray(student), jnp.asarray(teacher), None if where is None else jnp.asarray(where)
    )


@functools.cache
def jitted(loss):
    names = loss.__code__.co_varnames[: loss.__code__.co_kwonlyargcount + 1]
    static = [name for name in ("temperature", "normalization", "eps") if name in names]
    return jax.jit(loss, static_argnames=static)


def oracle(name, student_logits, teacher_logits, temperature=1.0):
    """The divergences in NumPy, float64, straight from their definitions."""
    q = scipy.special.softmax(np.asarray(student_logits, np.float64) / temperature, axis=-1)
    p = scipy.special.softmax(np.asarray(teacher_logits, np.float64) / temperature, axis=-1)

    def kl(a, b):
        return np.sum(scipy.special.rel_entr(a, b), axis=-1)

    def js(mixture):
        m = mixture * p + (1 - mixture) * q
        return mixture * kl(p, m) + (1 - mixture) * kl(q, m)

    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jensen_shannon": lambda: js(0.5),
        "jensen_shannon_0.2": lambda: js(0.2),
        "skewed_kl": lambda: kl(p, 0.9 * q + 0.1 * p),
        "skewed_kl_0.7": lambda: kl(p, 0.3 * q + 0.7 * p),
        "total_variation": lambda: 0.5 * np.sum(np.abs(p - q), axis=-1),
    }[name]()


def random_logits(*shape, seed=0, scale=2.0):
    """Student and teacher logits, NumPy float32."""
    rng = np.random.default_rng(seed)
    student, teacher = (scale * rng.normal(size=(2, *(shape or SHAPE)))).astype(np.float32)
    return student, teacher


def softmax(logits):
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def exact_kl(p, q):
    return np.sum(scipy.special.rel_entr(p, q))


def all_finite(*arrays):
    return all(np.all(np.isfinite(np.asarray(array, np.float32))) for array in arrays)


def test_examples_run():
    result = doctest.testmod(distillation)
    assert result.attempted > 20
    assert result.failed == 0


class TestValues:
    @over_divergences
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_equals_definition_in_float64(self, name, temperature):
        student, teacher = random_logits()
        value, *_ = run(name, student, teacher, temperature=temperature)
        assert value.shape == SHAPE[:-1]
        assert value.dtype == jnp.float32
        expected = oracle(name, student, teacher, temperature)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)

    @over_divergences
    def test_float64_stays_float64(self, name):
        student, teacher = (np.asarray(x, np.float64) for x in random_logits())
        with jax.enable_x64(True):
            value, *_ = run(name, student, teacher)
            assert value.dtype == jnp.float64
            np.testing.assert_allclose(value, oracle(name, student, teacher), rtol=1e-12)

    def test_closed_form_of_two_outcomes(self):
        student, teacher = np.log([0.9, 0.1]), np.log([0.6, 0.4])
        m = 0.9 * np.array([0.9, 0.1]) + 0.1 * np.array([0.6, 0.4])
        expected = {
            "forward_kl": 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1),
            "reverse_kl": 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4),
            "skewed_kl": 0.6 * math.log(0.6 / m[0]) + 0.4 * math.log(0.4 / m[1]),
            "total_variation": 0.3,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(run(name, student, teacher)[0], value, rtol=1e-5)

    def test_jensen_shannon_is_symmetric_at_a_half_and_bounded(self):
        student, teacher = random_logits(scale=20.0)
        value, *_ = run("jensen_shannon", student, teacher)
        swapped, *_ = run("jensen_shannon", teacher, student)
        np.testing.assert_allclose(value, swapped, rtol=1e-4, atol=1e-6)
        assert float(jnp.max(value)) <= math.log(2) + 1e-6
        assert float(jnp.max(value)) > 0.6  # The inputs do come near the bound.

    def test_jensen_shannon_mixture_is_the_weight_of_the_teacher(self):
        student, teacher = random_logits(scale=1.0)
        pair = {"student_logits": student, "teacher_logits": teacher}
        near_0 = jensen_shannon(**pair, mixture=1e-3) / 1e-3
        near_1 = jensen_shannon(**pair, mixture=1 - 1e-3) / 1e-3
        forward, reverse = (oracle(n, student, teacher) for n in ("forward_kl", "reverse_kl"))
        np.testing.assert_allclose(near_0, forward, rtol=0.02)
        np.testing.assert_allclose(near_1, reverse, rtol=0.02)
        assert np.all(np.abs(forward - reverse) > 0.03 * forward)  # So they are told apart.

    def test_skewed_kl_is_bounded_and_starts_at_forward_kl(self):
        student, teacher = random_logits(scale=30.0)
        value, *_ = run("skewed_kl", student, teacher)
        assert float(jnp.max(value)) <= -math.log(0.1) + 1e-5
        assert float(jnp.max(value)) > 2.2
        unskewed = skewed_kl(student_logits=student, teacher_logits=teacher, skew=0.0)
        np.testing.assert_allclose(unskewed, oracle("forward_kl", student, teacher), rtol=1e-5)

    @pytest.mark.parametrize("scale", [0.01, 0.5, 5.0])
    def test_pinsker(self, scale):
        for seed in range(20):
            student, teacher = random_logits(scale=scale, seed=seed)
            squared = np.square(run("total_variation", student, teacher)[0])
            assert np.all(squared <= run("forward_kl", student, teacher)[0] / 2 + 1e-6)
            assert np.all(squared <= run("reverse_kl", student, teacher)[0] / 2 + 1e-6)

    @over_divergences
    def test_zero_for_equal_distributions_positive_for_others(self, name):
        student, teacher = random_logits()
        value, *_ = run(name, student + 7, student)  # A common offset changes no distribution.
        np.testing.assert_allclose(value, np.zeros(SHAPE[:-1]), atol=2e-6)
        assert float(jnp.min(run(name, student, teacher)[0])) > 0.01

    @over_divergences
    def test_large_common_offset_costs_no_precision(self, name):
        student, teacher = (np.round(8 * x) / 8 for x in random_logits())
        plain, *_ = run(name, student, teacher)
        shifted, *_ = run(name, student + 1e4, teacher - 1e4)
        np.testing.assert_array_equal(plain, shifted)

    def test_small_kl_is_seen_in_bfloat16(self):
        # A KL of about 0.0068 between distributions over 4096 tokens whose entropy is near 8 nats:
        # the difference of two sums that were rounded to bfloat16 (spacing 0.03) cannot show it.
        rng = np.random.default_rng(0)
        teacher = rng.normal(size=4096)
        student = teacher + 0.117 * rng.normal(size=4096)
        teacher, student = (jnp.asarray(x, jnp.bfloat16) for x in (teacher, student))
        exact_teacher, exact_student = (np.asarray(x, np.float64) for x in (teacher, student))
        truth = oracle("forward_kl", exact_student, exact_teacher)
        assert 0.006 < truth < 0.0076
        value, *_ = run("forward_kl", student, teacher)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, truth, rtol=1e-3)
        p = softmax(exact_teacher)
        cross_entropy = -np.sum(p * scipy.special.log_softmax(exact_student))
        entropy = -np.sum(p * scipy.special.log_softmax(exact_teacher))
        assert jnp.bfloat16(cross_entropy) - jnp.bfloat16(entropy) == 0

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [*((name, jnp.bfloat16) for name in DIVERGENCES), ("forward_kl", jnp.float16)],
    )
    def test_low_precision_inputs_are_computed_in_float32(self, name, dtype):
        student, teacher = (jnp.asarray(x, dtype) for x in random_logits())
        value, by_student, by_teacher = run(name, student, teacher)
        assert (value.dtype, by_student.dtype, by_teacher.dtype) == (jnp.float32, dtype, dtype)
        expected = oracle(name, np.asarray(student, np.float64), np.asarray(teacher, np.float64))
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)

    def test_student_and_teacher_may_differ_in_dtype(self):
        student, teacher = random_logits()
        teacher = jnp.asarray(teacher, jnp.bfloat16)
        value, by_student, by_teacher = run("forward_kl", student, teacher)
        assert (by_student.dtype, by_teacher.dtype) == (jnp.float32, jnp.bfloat16)
        expected = oracle("forward_kl", student, np.asarray(teacher, np.float64))
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


class TestGradients:
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_forward_kl_is_q_minus_p(self, temperature):
        student, teacher = random_logits()
        _, gradient, _ = run("forward_kl", student, teacher, temperature=temperature)
        q, p = softmax(student / temperature), softmax(teacher / temperature)
        np.testing.assert_allclose(gradient, (q - p) / temperature, atol=1e-6)

    def test_total_variation_is_q_times_centred_half_sign(self):
        student, teacher = random_logits()
        _, gradient, _ = run("total_variation", student, teacher)
        q, p = softmax(student), softmax(teacher)
        s = np.sign(q - p) / 2
        expected = q * (s - np.sum(q * s, axis=-1, keepdims=True))
        np.testing.assert_allclose(gradient, expected, atol=1e-6)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_total_variation_at_equality_is_exactly_zero(self, dtype, temperature):
        logits, _ = random_logits(16, 1003, scale=5.0)
        logits[:, ::7] = -np.inf
        logits = jnp.asarray(logits, dtype)
        value, *gradients = run("total_variation", logits, logits, temperature=temperature)
        for array in (value, *gradients):
            assert not np.any(np.asarray(array, np.float32))

    def test_total_variation_of_two_confident_models_has_hardly_any_gradient(self):
        student, teacher = np.zeros((2, *SHAPE), np.float32)
        student[:, 0], teacher[:, 1] = 20.0, 20.0
        value, gradient, _ = run("total_variation", student, teacher)
        np.testing.assert_allclose(value, 1.0, atol=1e-6)
        assert float(jnp.max(jnp.abs(gradient))) < 1e-6
        _, gradient, _ = run("forward_kl", student, teacher)
        assert float(jnp.max(jnp.abs(gradient))) > 0.99

    @over_divergences
    def test_equals_central_differences_in_float64(self, name):
        student, teacher = (np.asarray(x, np.float64) for x in random_logits(seed=5))
        _, by_student, by_teacher = run(name, student, teacher)
        step = 1e-6
        for v in range(SHAPE[-1]):
            bump = step * np.eye(SHAPE[-1])[v]
            ends = [oracle(name, student + sign * bump, teacher) for sign in (1, -1)]
            np.testing.assert_allclose(by_student[:, v], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=2e-6)
            ends = [oracle(name, student, teacher + sign * bump) for sign in (1, -1)]
            np.testing.assert_allclose(by_teacher[:, v], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=2e-6)

    @over_divergences
    def test_forward_and_reverse_mode_agree(self, name):
        student, teacher = random_logits()
        directions = random_logits(seed=9)

        @jax.jit
        def along(pair, directions):
            return jax.jvp(lambda s, t: DIVERGENCES[name](student_logits=s, teacher_logits=t), pair, directions)[1]

        tangent = along((student, teacher), directions)
        _, *gradients = run(name, student, teacher)
        pulled = sum(np.sum(g * d, -1) for g, d in zip(gradients, directions, strict=True))
        np.testing.assert_allclose(tangent, pulled, rtol=1e-4, atol=1e-6)

    def test_second_derivative_of_forward_kl_is_the_softmax_covariance(self):
        student, teacher = (x[0] for x in random_logits())
        hessian = jax.jit(jax.hessian(lambda s: forward_kl(student_logits=s, teacher_logits=teacher)))(student)
        q = softmax(student)
        np.testing.assert_allclose(hessian, np.diag(q) - np.outer(q, q), atol=1e-6)

    def test_teacher_can_be_stopped_by_the_caller(self):
        student, teacher = random_logits()

        @jax.jit
        def gradients(student, teacher):
            def loss(s, t):
                stopped = jax.lax.stop_gradient(t)
                return jnp.sum(forward_kl(student_logits=s, teacher_logits=stopped))

            return jax.grad(loss, argnums=(0, 1))(student, teacher)

        by_student, by_teacher = gradients(student, teacher)
        assert not np.any(by_teacher)
        np.testing.assert_allclose(by_student, run("forward_kl", student, teacher)[1], atol=1e-7)


class TestEdges:
    @over_divergences
    def test_padded_vocabulary_changes_nothing(self, name):
        student, teacher = random_logits()
        padded = [np.where(np.arange(12) < 9, x, -np.inf) for x in (student, teacher)]
        value, *gradients = run(name, *padded)
        np.testing.assert_allclose(value, oracle(name, student[:, :9], teacher[:, :9]), rtol=2e-5, atol=1e-6)
        for gradient in gradients:
            assert all_finite(gradient)
            assert not np.any(gradient[:, 9:])
            np.testing.assert_allclose(np.sum(gradient, -1), 0.0, atol=1e-6)

    def test_one_hot_teacher(self):
        student, _ = random_logits()
        one_hot = np.broadcast_to(np.where(np.arange(12) == 2, 0.0, -np.inf), SHAPE)
        q = softmax(student)
        results = {name: run(name, student, one_hot) for name in DIVERGENCES}
        np.testing.assert_allclose(results["forward_kl"][0], -np.log(q[:, 2]), rtol=1e-5)
        np.testing.assert_allclose(results["total_variation"][0], 1 - q[:, 2], rtol=1e-5)
        np.testing.assert_allclose(results["forward_kl"][1], q - np.eye(12)[2], atol=1e-6)
        for name, (value, *gradients) in results.items():
            assert all_finite(*gradients)
            assert all_finite(value) != (name == "reverse_kl")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("forward_kl", math.inf),
            ("reverse_kl", math.inf),
            ("jensen_shannon", math.log(2)),
            ("skewed_kl", -math.log(0.1)),
            ("total_variation", 1.0),
        ],
    )
    def test_no_common_support(self, name, expected):
        student, teacher = random_logits()
        student[:, ::2], teacher[:, 1::2] = -np.inf, -np.inf
        value, *gradients = run(name, student, teacher)
        np.testing.assert_allclose(value, np.full(SHAPE[:-1], expected), rtol=1e-5)
        assert all_finite(*gradients)

    @over_divergences
    def test_minus_infinity_on_either_side_is_never_nan(self, name):
        rng = np.random.default_rng(2)
        for seed in range(30):
            student, teacher = random_logits(scale=40.0, seed=seed)
            for logits in (student, teacher):
                logits[:, 1:][rng.random((6, 11)) < 0.4] = -np.inf
            value, *gradients = run(name, student, teacher)
            assert not np.any(np.isnan(value))
            assert all_finite(*gradients)

    def test_infinite_reverse_kl_still_takes_mass_away(self):
        student, teacher = np.zeros((2, *SHAPE), np.float32)
        teacher[:, 3] = -np.inf
        value, gradient, _ = run("reverse_kl", student, teacher)
        assert np.all(np.isinf(value))
        assert np.all(gradient[:, 3] > 1.0)  # Descent lowers the logit that the teacher excludes.
        assert np.all(np.delete(gradient, 3, axis=-1) < 0.0)

    @over_divergences
    def test_extreme_logits(self, name):
        largest = np.finfo(np.float32).max
        student, teacher = np.zeros((2, *SHAPE), np.float32)
        student[0, :2], student[1:, :2] = (largest, -largest), (1e4, -1e4)
        teacher[:, :2] = (-1e4, 1e4)
        value, *gradients = run(name, student, teacher)
        assert not np.any(np.isnan(value))
        assert all_finite(*gradients)

    def test_row_without_any_finite_logit_is_nan_unless_masked(self):
        student, teacher = random_logits()
        student[1] = -np.inf
        mask = np.arange(6) != 1
        np.testing.assert_array_equal(np.isnan(run("forward_kl", student, teacher)[0]), ~mask)
        assert all_finite(*run("forward_kl", student, teacher, where=mask))

    @over_divergences
    def test_single_token_and_no_rows(self, name):
        value, *gradients = run(name, np.full((1, 1), 3.0), np.full((1, 1), -5.0))
        np.testing.assert_allclose(value, [0.0], atol=1e-6)
        assert all_finite(*gradients)
        empty = jnp.zeros((0, 4))
        assert DIVERGENCES[name](student_logits=empty, teacher_logits=empty).shape == (0,)


class TestMask:
    mask = np.array([True, False, True, True, False, False])

    @over_divergences
    def test_masked_equals_filtered(self, name):
        student, teacher = random_logits()
        masked = run(name, student, teacher, where=self.mask)
        filtered = run(name, student, teacher)
        for with_mask, without in zip(masked, filtered, strict=True):
            np.testing.assert_allclose(with_mask[self.mask], without[self.mask], rtol=1e-6)
            assert not np.any(with_mask[~self.mask])

    @over_divergences
    @pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
    def test_what_a_masked_row_holds_does_not_matter(self, name, fill):
        student, teacher = random_logits()
        clean = run(name, student, teacher, where=self.mask)
        student[~self.mask], teacher[~self.mask] = fill, fill
        for dirty, expected in zip(run(name, student, teacher, where=self.mask), clean, strict=True):
            np.testing.assert_array_equal(dirty, expected)

    @over_divergences
    def test_all_masked(self, name):
        student, teacher = random_logits()
        nothing = np.zeros(6, dtype=bool)
        value, *gradients = run(name, student, teacher, where=nothing)
        assert not np.any(value)
        assert not any(np.any(gradient) for gradient in gradients)
        assert float(masked_mean(value, where=nothing)) == 0.0


class TestTransformations:
    @over_defaults
    def test_vmap_equals_batch(self, name):
        student, teacher = random_logits()
        loss = functools.partial(DIVERGENCES[name], temperature=2.5)

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(0, 0))
        def rows(s, t):
            return jax.value_and_grad(lambda s: loss(student_logits=s, teacher_logits=t))(s)

        value, gradient = rows(student, teacher)
        expected = run(name, student, teacher, temperature=2.5)
        np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, expected[1], atol=1e-7)

    @over_defaults
    def test_traced_once_for_one_shape(self, name):
        num_traces = 0

        @jax.jit
        def step(student, teacher, mask):
            nonlocal num_traces
            num_traces += 1
            return DIVERGENCES[name](student_logits=student, teacher_logits=teacher, where=mask)

        for seed in range(3):
            step(*random_logits(seed=seed), np.arange(6) < seed)
        assert num_traces == 1

    @pytest.mark.parametrize(
        ("name", "axis"),
        [*((name, "B") for name in DIVERGENCES if "0" not in name), ("forward_kl", "V"), ("total_variation", "V")],
    )
    def test_sharded_equals_unsharded(self, name, axis):
        assert jax.device_count() == 8
        spec = P("d", None) if axis == "B" else P(None, "d")
        sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), spec)
        student, teacher = random_logits(8, 16)
        mask = np.arange(8) % 3 > 0

        @jax.jit
        @jax.value_and_grad
        def mean(student, teacher):
            values = DIVERGENCES[name](student_logits=student, teacher_logits=teacher, where=mask)
            return masked_mean(values, where=mask)

        value, gradient = mean(*jax.device_put((student, teacher), sharding))
        assert len(gradient.sharding.device_set) == 8
        expected = oracle(name, student, teacher)[mask].mean()
        np.testing.assert_allclose(value, expected, rtol=2e-5)
        _, unsharded, _ = run(name, student, teacher)
        np.testing.assert_allclose(gradient, np.where(mask[:, None], unsharded, 0) / mask.sum(), atol=1e-7)

    def test_works_under_checkpoint_and_scan(self):
        student, teacher = random_logits()

        @jax.jit
        @jax.grad
        def chunked(student):
            def body(total, pair):
                loss = jax.checkpoint(lambda s, t: total_variation(student_logits=s, teacher_logits=t))
                return total + loss(*pair), None

            return jax.lax.scan(body, jnp.float32(0.0), (student, teacher))[0]

        np.testing.assert_allclose(chunked(student), run("total_variation", student, teacher)[1], atol=1e-7)


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
        tokens[1, 0] = 9  # Beyond the vocabulary.
        assert float(self.run(logits, tokens, mask)[0][1]) == -math.inf

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


@functools.cache
def _compiled_sequence(loss):
    def run(case, where):
        def total(case):
            value = loss(**case, where=where)
            return jnp.sum(value), value

        gradient, value = jax.grad(total, has_aux=True)(case)
        return value, gradient

    return jax.jit(run)


def run_sequence(loss, case, where=None):
    """Value, and the gradients of its sum by name."""
    case = {name: jnp.asarray(np.asarray(x, np.float32)) for name, x in case.items()}
    return _compiled_sequence(loss)(case, where)


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
        num_traces = 0

        @jax.jit
        @jax.vmap
        def mapped(case):
            nonlocal num_traces
            num_traces += 1
            return loss(**case)

        value = mapped(case)
        mapped({name: x[::-1] for name, x in case.items()})
        assert num_traces == 1
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


class ToyLanguage:
    """A base model and a student over a vocabulary of four, all answers enumerable.

    An answer is up to three tokens of which the last is END (0); the third is END for sure, by -inf
    logits. The refusal is (1, 2, END).
    """

    vocab, length, refusal = 4, 3, (1, 2, 0)

    def __init__(self, seed=0, refusal_start_possible=True):
        rng = np.random.default_rng(seed)
        self.prefixes = [
            prefix for length in range(self.length) for prefix in itertools.product(range(1, self.vocab), repeat=length)
        ]
        self.row = {prefix: i for i, prefix in enumerate(self.prefixes)}
        tables = rng.normal(size=(2, len(self.prefixes), self.vocab)).astype(np.float32)
        last = [len(prefix) == self.length - 1 for prefix in self.prefixes]
        tables[:, last, 1:] = -np.inf
        if not refusal_start_possible:
            tables[0, self.row[()], self.refusal[0]] = -np.inf
        self.base, self.student = tables
        self.answers = [(*prefix, 0) for prefix in self.prefixes]
        self.masks = np.array([[t < len(y) for t in range(self.length)] for y in self.answers])
        self.tokens = np.array([y + (0,) * (self.length - len(y)) for y in self.answers])
        # Which row of a table predicts position t of each answer; any where masked.
        self.rows = np.array([[self.row[y[:t]] if t < len(y) else 0 for t in range(self.length)] for y in self.answers])
        self.refusal_index = self.answers.index(self.refusal)
        self.refusal_rows = self.rows[self.refusal_index]

    def log_probs(self, table):
        """[num answers], exact, float64."""
        log_prob = scipy.special.log_softmax(np.asarray(table, np.float64), axis=-1)
        chosen = log_prob[self.rows, self.tokens]
        return np.sum(np.where(self.masks, chosen, 0.0), axis=-1)

    def system(self, safe_prob):
        """p(r|x) of equations 1 and 2 by enumeration, float64."""
        base = np.exp(self.log_probs(self.base))
        p = base * safe_prob
        p[self.refusal_index] += np.sum(base * (1 - safe_prob))
        return p

    def outcomes(self, table, safe_prob):
        """Arguments of the sequence losses for every answer; answering the refusal is answering."""
        log_q = self.log_probs(table)
        return {
            "response_log_prob": log_q,
            "refusal_log_prob": np.full_like(log_q, log_q[self.refusal_index]),
            "safe_prob": np.where(np.arange(len(log_q)) == self.refusal_index, 1.0, safe_prob),
        }

    def gated(self, table, safe_prob):
        num = len(self.answers)
        return {
            "student_logits": table[self.rows],
            "teacher_logits": self.base[self.rows],
            "refusal_logits": jnp.broadcast_to(table[self.refusal_rows], (num, self.length, self.vocab)),
            "refusal_tokens": np.array(self.refusal),
            "safe_prob": np.full(num, safe_prob, np.float32),
            "where": self.masks,
        }

    def expectation(self, values):
        """Mean over answers of the base model; an impossible answer does not count."""
        base = np.exp(self.log_probs(self.base))
        return np.sum(base * np.where(base > 0, values, 0.0))


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
        num_traces = 0
        case = self.case(batch=8)
        tokens = case.pop("refusal_tokens")

        @jax.jit
        def run(case):
            nonlocal num_traces
            num_traces += 1
            return jax.value_and_grad(lambda s: jnp.sum(loss(**case | {"student_logits": s}, refusal_tokens=tokens)))(
                case["student_logits"]
            )

        expected = run(case)
        run(case | {"safe_prob": 1 - case["safe_prob"]})
        assert num_traces == 1
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


class TestBadInput:
    @over_divergences
    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
    def test_temperature(self, name, temperature):
        zeros = np.zeros(3)
        with pytest.raises(ValueError, match=r"temperature is .*, expected a positive, finite"):
            DIVERGENCES[name](student_logits=zeros, teacher_logits=zeros, temperature=temperature)

    @over_divergences
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"teacher_logits": np.zeros((2, 4))}, r"has 3 vocabulary .* has 4; .* pad .* -inf"),
            ({"teacher_logits": np.zeros((3, 3))}, r"teacher_logits has shape \(3, 3\) but stud"),
            ({"teacher_logits": np.zeros(3)}, r"teacher_logits has shape \(3,\) but student"),
            ({"student_logits": np.zeros((2, 3), np.int32)}, r"student_logits has dtype int32, ex"),
            ({"student_logits": np.float32(1)}, r"student_logits has shape \(\), expected \[..., "),
            ({"student_logits": np.zeros((2, 0))}, r"student_logits has shape \(2, 0\), expected"),
            ({"where": np.ones((2, 3), dtype=bool)}, r"where has shape \(2, 3\), expected \(2,\)"),
            ({"where": np.ones(2, np.float32)}, r"where has dtype float32, expected bool"),
        ],
    )
    def test_shapes_and_dtypes(self, name, change, message):
        kwargs = {"student_logits": np.zeros((2, 3)), "teacher_logits": np.zeros((2, 3))}
        with pytest.raises(ValueError, match=message):
            DIVERGENCES[name](**(kwargs | change))

    @pytest.mark.parametrize("skew", [1.0, -0.1, 2.0, math.nan])
    def test_skew(self, skew):
        with pytest.raises(ValueError, match=r"skew is .*, expected a number in \[0, 1\)"):
            skewed_kl(student_logits=np.zeros(3), teacher_logits=np.zeros(3), skew=skew)

    @pytest.mark.parametrize("mixture", [0.0, 1.0, -0.1, math.nan])
    def test_mixture(self, mixture):
        with pytest.raises(ValueError, match=r"mixture is .*, expected a number inside \(0, 1\)"):
            jensen_shannon(student_logits=np.zeros(3), teacher_logits=np.zeros(3), mixture=mixture)

    def test_pairs_are_keyword_only(self):
        with pytest.raises(TypeError):
            forward_kl(np.zeros(3), np.zeros(3))


# --------------------------------------------------------------------------------------------------
# One outcome at a time
# --------------------------------------------------------------------------------------------------


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
