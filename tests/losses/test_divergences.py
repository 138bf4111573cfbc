import doctest
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from edgesafe_jax.losses import (
    divergences,
    forward_kl,
    jensen_shannon,
    masked_mean,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from tests.losses.oracle import all_finite, oracle, softmax

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "jensen_shannon_0.2": functools.partial(jensen_shannon, mixture=0.2),
    "skewed_kl": skewed_kl,
    "skewed_kl_0.7": functools.partial(skewed_kl, skew=0.7),
    "skewed_reverse_kl": skewed_reverse_kl,
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


def random_logits(*shape, seed=0, scale=2.0):
    """Student and teacher logits, NumPy float32."""
    rng = np.random.default_rng(seed)
    student, teacher = (scale * rng.normal(size=(2, *(shape or SHAPE)))).astype(np.float32)
    return student, teacher


def test_examples_run():
    result = doctest.testmod(divergences)
    assert result.attempted > 8
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

        @jax.jit
        @chex.assert_max_traces(n=1)
        def step(student, teacher, mask):
            return DIVERGENCES[name](student_logits=student, teacher_logits=teacher, where=mask)

        for seed in range(3):
            step(*random_logits(seed=seed), np.arange(6) < seed)

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


class TestTracedScalars:
    """Temperatures and mixture weights as arrays: annealing compiles nothing anew."""

    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("forward_kl", None),
            ("total_variation", None),
            ("reverse_kl", None),
            ("jensen_shannon", "mixture"),
            ("skewed_kl", "skew"),
            ("skewed_reverse_kl", "skew"),
        ],
    )
    def test_equal_those_of_the_host(self, name, key):
        student, teacher = random_logits()
        loss = DIVERGENCES[name]

        def total(student, temperature, weight):
            more = {} if key is None else {key: weight}
            value = loss(student_logits=student, teacher_logits=teacher, temperature=temperature, **more)
            return jnp.sum(value), value

        traced = jax.jit(jax.grad(chex.assert_max_traces(total, n=1), has_aux=True))
        for temperature, weight in ((1.0, 0.5), (2.5, 0.2)):
            gradient, value = traced(student, jnp.float32(temperature), jnp.float32(weight))
            expected_gradient, expected = jax.grad(total, has_aux=True)(jnp.asarray(student), temperature, weight)
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
        slopes = jax.grad(lambda t, w: total(jnp.asarray(student), t, w)[0], argnums=(0, 1))
        assert slopes(jnp.float32(2.0), jnp.float32(0.3)) == (0, 0)

    def test_excluded_tokens_and_ends_of_a_weight_give_no_nan(self):
        student, teacher = random_logits()
        student[:, 0], teacher[:, 1] = -np.inf, -np.inf
        for name, key in (("jensen_shannon", "mixture"), ("skewed_kl", "skew"), ("skewed_reverse_kl", "skew")):
            for weight in (0.0, 0.5, 1.0):

                def total(student, name=name, key=key, weight=weight):
                    arrays = {"temperature": jnp.float32(2.0), key: jnp.float32(weight)}
                    return jnp.sum(DIVERGENCES[name](student_logits=student, teacher_logits=teacher, **arrays))

                value, gradient = jax.value_and_grad(total)(jnp.asarray(student))
                assert all_finite(value, gradient)

    def test_several_are_refused(self):
        student, teacher = random_logits()
        for more in ({"temperature": jnp.ones(2)}, {"mixture": jnp.ones(2)}):
            with pytest.raises(ValueError, match=r"has shape \(2,\), expected a scalar"):
                jensen_shannon(student_logits=student, teacher_logits=teacher, **more)
