import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edgesafe_jax.losses import consistency as loss_module
from edgesafe_jax.losses import consistency_anchor, masked_mean
from edgesafe_jax.losses.consistency import consistency

Z = jnp.asarray(np.random.default_rng(0).normal(0, 3, (4, 5)), jnp.float32)
T = jnp.array([0.0, 0.2, 0.7, 1.0])


def test_examples_run():
    import sys

    assert loss_module is consistency  # the function; its module has the same name
    assert doctest.testmod(sys.modules["edgesafe_jax.losses.consistency"]).failed == 0


def test_consistency_equals_optax():
    expected = optax.sigmoid_binary_cross_entropy(Z, jnp.broadcast_to(T[:, None], Z.shape))
    np.testing.assert_allclose(consistency(logits=Z, target=T), expected, rtol=1e-5, atol=1e-6)


def test_gradient_is_probability_minus_target_and_none_reaches_the_target():
    by_logits, by_target = jax.grad(lambda z, t: jnp.sum(consistency(logits=z, target=t)), argnums=(0, 1))(Z, T)
    np.testing.assert_allclose(by_logits, jax.nn.sigmoid(Z) - T[:, None], atol=1e-6)
    assert np.all(np.asarray(by_target) == 0)


def test_a_set_at_its_target_has_the_least_loss():
    at = consistency(logits=jnp.log(jnp.array([[0.3 / 0.7]])), target=jnp.array([0.3]))
    assert float(at[0, 0]) == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7), abs=1e-6)
    off = consistency(logits=jnp.array([[-3.0, 3.0]]), target=jnp.array([0.3]))
    assert np.all(np.asarray(off) > float(at[0, 0]))


def test_masked_equals_filtered():
    where = jnp.arange(5)[None] < jnp.array([5, 3, 1, 2])[:, None]
    broken = jnp.where(where, Z, jnp.nan)
    value, gradient = jax.value_and_grad(
        lambda z: jnp.sum(masked_mean(consistency(logits=z, target=T, where=where), where=where, axis=-1))
    )(broken)
    expected = sum(float(jnp.mean(consistency(logits=Z[i, :n], target=T[i]))) for i, n in enumerate((5, 3, 1, 2)))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.all(np.asarray(gradient)[~np.asarray(where)] == 0)
    assert np.all(np.isfinite(gradient))


def test_extreme_logits_stay_finite():
    value, gradient = jax.value_and_grad(lambda z: jnp.sum(consistency(logits=z, target=jnp.array([0.5]))))(
        jnp.array([[-1e4, 1e4, 0.0]])
    )
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_anchor_is_a_divergence_from_the_reference():
    reference = jnp.array([-2.0, 0.0, 3.0])
    assert np.allclose(consistency_anchor(logits=reference, reference_logits=reference), 0, atol=1e-6)
    moved = consistency_anchor(logits=reference + 1, reference_logits=reference)
    r, q = jax.nn.sigmoid(reference), jax.nn.sigmoid(reference + 1)
    expected = r * jnp.log(r / q) + (1 - r) * jnp.log((1 - r) / (1 - q))
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    by_reference = jax.grad(lambda s: jnp.sum(consistency_anchor(logits=reference, reference_logits=s)))(reference + 1)
    assert np.all(np.asarray(by_reference) == 0)


def test_the_anchor_keeps_a_guard_from_calling_everything_unsafe():
    """With unsafe targets everywhere, the mean of loss and anchor is smallest between the two."""

    def objective(z, weight):
        unsafe = consistency(logits=z[None], target=jnp.array(1.0))[0]
        return unsafe + weight * consistency_anchor(logits=z[None], reference_logits=jnp.array([-2.0]))[0]

    step = jax.jit(lambda z, weight: z - 0.5 * jax.grad(objective)(z, weight))

    def best(weight):
        z = jnp.zeros(())
        for _ in range(400):
            z = step(z, jnp.float32(weight))
        return float(jax.nn.sigmoid(z))

    start = float(jax.nn.sigmoid(-2.0))
    assert best(0.0) > 0.98
    # Closed form: (1 + weight * start) / (1 + weight).
    assert best(4.0) == pytest.approx((1 + 4 * start) / 5, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": Z, "target": jnp.ones((3,))}, r"target has shape \(3,\), expected \(4,\)"),
        ({"logits": jnp.zeros((2, 2), jnp.int32), "target": jnp.ones((2,))}, "logits has dtype int32"),
        ({"logits": Z, "target": np.array([0.1, 0.2, 1.5, 0.0])}, "target holds 1.5"),
        ({"logits": Z, "target": T, "where": jnp.ones((4,), bool)}, r"where has shape \(4,\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        consistency(**arguments)


def test_bad_anchor():
    with pytest.raises(ValueError, match="same shape"):
        consistency_anchor(logits=Z, reference_logits=Z[0])
