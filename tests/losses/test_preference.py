"""Losses on pairs against their definitions in float64 and, where torch is installed, against the published code."""

import doctest
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edgesafe_jax.losses import dpo, ipo, preference, simpo
from tests.losses.oracle import all_finite

LOSSES = {"dpo": dpo, "ipo": ipo, "simpo": simpo}
over_losses = pytest.mark.parametrize("name", LOSSES)
RNG = np.random.default_rng(0)
CASE = {
    name: -RNG.uniform(0.1, 6.0, 12).astype(np.float32)
    for name in ("chosen_log_prob", "rejected_log_prob", "reference_chosen_log_prob", "reference_rejected_log_prob")
}
FLIP = np.array([0.0, 1.0, 0.2, 0.5] * 3, np.float32)


def case_of(name):
    return {key: value for key, value in CASE.items() if name != "simpo" or not key.startswith("reference")}


def oracle(name, case, beta):
    won, lost, *reference = (np.float64(value) for value in case.values())
    log_sigmoid = scipy.special.log_expit
    if name == "simpo":
        return -log_sigmoid(beta * (won - lost) - 1.0)
    gap = won - lost - (reference[0] - reference[1])
    if name == "ipo":
        return (gap - 1 / (2 * beta)) ** 2
    return -(1 - FLIP) * log_sigmoid(beta * gap) - FLIP * log_sigmoid(-beta * gap)


def test_examples():
    found = doctest.testmod(preference)
    assert found.attempted > 5
    assert found.failed == 0


def run(name, case, beta, **more):
    more = {"flip_prob": FLIP, **more} if name == "dpo" else more
    return LOSSES[name](**case, beta=beta, **more)


@over_losses
def test_values_are_those_of_the_definition_and_beta_may_be_traced(name):
    case = case_of(name)
    mapped = jax.jit(jax.vmap(chex.assert_max_traces(lambda beta: run(name, case, beta), n=1)))
    found = mapped(jnp.array([0.1, 2.5]))
    mapped(jnp.array([0.3, 1.0]))
    for value, beta in zip(found, (0.1, 2.5), strict=True):
        np.testing.assert_allclose(value, oracle(name, case, beta), rtol=2e-5, atol=1e-6)


def test_gradient_of_dpo_weighs_pairs_by_how_wrong_they_are():
    """Equation below 7 of the paper: beta sigma(-beta h) on both log-probabilities, with opposite signs."""
    slopes = jax.grad(lambda case: jnp.sum(dpo(**case, beta=0.3)))(CASE)
    gap = CASE["chosen_log_prob"] - CASE["rejected_log_prob"]
    gap = gap - (CASE["reference_chosen_log_prob"] - CASE["reference_rejected_log_prob"])
    expected = -0.3 * scipy.special.expit(-0.3 * np.float64(gap))
    np.testing.assert_allclose(slopes["chosen_log_prob"], expected, rtol=1e-5)
    np.testing.assert_allclose(slopes["rejected_log_prob"], -expected, rtol=1e-5)
    np.testing.assert_allclose(slopes["reference_chosen_log_prob"], -expected, rtol=1e-5)


def test_minimum_lies_where_the_preference_is_as_sure_as_the_pair():
    def slope(gap, loss, **more):
        zeros = dict.fromkeys(list(CASE)[1:], jnp.float32(0))
        return float(jax.grad(lambda g: loss(chosen_log_prob=g, **zeros, beta=0.5, **more))(jnp.float32(gap)))

    at = math.log(0.8 / 0.2) / 0.5
    np.testing.assert_allclose(slope(at, dpo, flip_prob=0.2), 0, atol=1e-6)
    assert slope(at, dpo) < 0
    assert slope(1.0, ipo) == 0  # 1 / (2 beta)


def test_the_reference_itself_gives_log_two():
    same = {**CASE, "reference_chosen_log_prob": CASE["chosen_log_prob"]}
    same["reference_rejected_log_prob"] = CASE["rejected_log_prob"]
    np.testing.assert_allclose(dpo(**same, flip_prob=FLIP), math.log(2), rtol=1e-6)


@over_losses
def test_masked_pairs_may_hold_anything(name):
    case, where = case_of(name), RNG.uniform(size=12) < 0.5

    @jax.jit
    def compute(case, where):
        def total(case):
            value = LOSSES[name](**case, where=where)
            return jnp.sum(value), value

        return jax.grad(total, has_aux=True)(case)

    dirty = {key: np.where(where, value, np.nan) for key, value in case.items()}
    slopes, value = compute(dirty, where)
    full_slopes, full = compute(case, np.ones(12, bool))
    np.testing.assert_array_equal(value, np.where(where, full, 0))
    for key in case:
        np.testing.assert_array_equal(slopes[key], np.where(where, full_slopes[key], 0))
    slopes, value = compute(dirty, np.zeros(12, bool))
    assert not np.any(value)
    assert not any(np.any(slope) for slope in slopes.values())


@over_losses
def test_low_precision_is_computed_in_float32(name):
    case = {key: jnp.asarray(value, jnp.bfloat16) for key, value in case_of(name).items()}
    value = LOSSES[name](**case)
    assert value.dtype == jnp.float32
    exact = LOSSES[name](**{key: each.astype(jnp.float32) for key, each in case.items()})
    np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_ends_are_never_nan():
    for chosen, rejected in ((0.0, -jnp.inf), (-jnp.inf, 0.0), (-1e4, 0.0), (0.0, -1e4)):
        for flip in (0.0, 1.0):
            rest = dict.fromkeys(list(CASE)[2:], -1.0)

            def loss(c, r, flip=flip, rest=rest):
                return dpo(chosen_log_prob=c, rejected_log_prob=r, **rest, flip_prob=flip)

            value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(chosen), jnp.float32(rejected))
            assert not np.isnan(value)
            assert all_finite(*slopes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0, expected a positive"),
        ({"beta": jnp.ones(3)}, r"beta has shape \(3,\), expected a scalar"),
        ({"flip_prob": 1.5}, "flip_prob holds 1.5"),
        ({"flip_prob": np.zeros(5)}, r"flip_prob has shape \(5,\)"),
        ({"rejected_log_prob": np.zeros(3, np.float32)}, r"rejected_log_prob has shape \(3,\) but chosen"),
        ({"rejected_log_prob": np.zeros(12, int)}, "rejected_log_prob has dtype int"),
        ({"where": np.ones(3, bool)}, r"where has shape \(3,\)"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        dpo(**{**CASE, **changes})


@pytest.mark.parity
@over_losses
def test_values_and_gradients_are_those_of_the_published_formulas(name):
    """The formulas of TRL's DPOTrainer (loss types sigmoid with label smoothing, ipo) and CPOTrainer (simpo)."""
    torch = pytest.importorskip("torch")
    case, beta, smoothing, gamma = case_of(name), 0.7, 0.1, 1.0
    given = {key: torch.tensor(value, requires_grad=True) for key, value in case.items()}
    policy = given["chosen_log_prob"] - given["rejected_log_prob"]
    log_sigmoid = torch.nn.functional.logsigmoid
    if name == "simpo":
        expected = -log_sigmoid(beta * (policy - gamma / beta))
    else:
        logits = policy - (given["reference_chosen_log_prob"] - given["reference_rejected_log_prob"])
        if name == "ipo":
            expected = (logits - 1 / (2 * beta)) ** 2
        else:
            expected = -log_sigmoid(beta * logits) * (1 - smoothing) - log_sigmoid(-beta * logits) * smoothing
    expected.sum().backward()
    more = {"flip_prob": smoothing} if name == "dpo" else {}
    slopes, value = jax.grad(lambda c: (lambda v: (jnp.sum(v), v))(LOSSES[name](**c, beta=beta, **more)), has_aux=True)(
        case
    )
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    for key, slope in slopes.items():
        np.testing.assert_allclose(slope, given[key].grad.numpy(), rtol=1e-5, atol=1e-6)
