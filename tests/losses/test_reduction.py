import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.losses import _reduction, masked_mean, masked_sum_and_count


def test_examples_run():
    assert doctest.testmod(_reduction).failed == 0


def test_masked_mean_equals_mean_of_what_is_kept():
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    mask = np.random.default_rng(1).random((3, 5)) < 0.6
    np.testing.assert_allclose(masked_mean(values, where=mask), values[mask].mean(), rtol=1e-6)
    by_row = [row[keep].mean() for row, keep in zip(values, mask, strict=True)]
    np.testing.assert_allclose(masked_mean(values, where=mask, axis=-1), by_row, rtol=1e-6)
    np.testing.assert_allclose(masked_mean(values), values.mean(), rtol=1e-6)


def test_nothing_kept_gives_zero_and_zero_gradient():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    mask = jnp.zeros(3, dtype=bool)
    value, gradient = jax.value_and_grad(lambda v: masked_mean(v, where=mask))(values)
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_masked_nan_reaches_neither_value_nor_gradient():
    values = jnp.array([1.0, jnp.nan, 3.0])
    mask = jnp.array([True, False, True])
    value, gradient = jax.value_and_grad(lambda v: masked_mean(v, where=mask))(values)
    assert float(value) == 2.0
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


def test_sums_and_counts_of_parts_give_the_mean_of_the_whole():
    values = jnp.arange(10.0)
    mask = values != 3.0
    parts = [masked_sum_and_count(values[rows], where=mask[rows]) for rows in (slice(0, 4), slice(4, 10))]
    total = sum(part[0] for part in parts)
    count = sum(part[1] for part in parts)
    np.testing.assert_allclose(total / count, masked_mean(values, where=mask), rtol=1e-6)
    # The mean of the two means is something else: the parts keep 3 and 6.
    means = [part[0] / part[1] for part in parts]
    assert abs(float(means[0] + means[1]) / 2 - float(total / count)) > 0.5


def test_low_precision_is_added_up_in_float32():
    # In bfloat16 a running sum of ones stops growing at 256.
    ones = jnp.ones(1000, dtype=jnp.bfloat16)
    total, count = masked_sum_and_count(ones)
    assert (float(total), float(count)) == (1000.0, 1000.0)
    assert total.dtype == jnp.float32


def test_nan_is_put_where_it_belongs_and_survives_an_exponential():
    condition, values = jnp.array([True, False, True, False]), jnp.array([0.0, 0.0, -jnp.inf, -2.0])

    @jax.jit
    def run(condition, values):
        def loss(values):
            found = jnp.exp(_reduction.nan_where(condition, values))
            return jnp.sum(jnp.where(condition, 0.0, found)), found

        return jax.grad(loss, has_aux=True)(values)

    gradient, found = run(condition, values)
    np.testing.assert_array_equal(np.isnan(found), condition)
    np.testing.assert_allclose(gradient[np.array([1, 3])], [1.0, np.exp(-2.0)], rtol=1e-6)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (jnp.ones(3), r"where has dtype float32, expected bool"),
        (jnp.ones((1, 3), dtype=bool), r"where has shape \(1, 3\), expected \(3,\)"),
    ],
)
def test_bad_masks_are_refused(where, message):
    with pytest.raises(ValueError, match=message):
        masked_mean(jnp.zeros(3), where=where)
