import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from edgesafe_jax.guards import targets
from edgesafe_jax.guards.targets import RULES, TargetError, in_logit_space, medcouple, quantile, set_target, skewness

SETS = np.random.default_rng(0).beta(0.6, 0.9, (12, 7)).astype(np.float32)
over_rules = pytest.mark.parametrize("rule", RULES)
jitted = functools.cache(lambda rule: jax.jit(functools.partial(set_target, rule=rule)))


def target(scores, rule, where=None):
    return np.asarray(jitted(rule)(jnp.asarray(scores, jnp.float32), where=where))


def everywhere(values):
    return jnp.asarray(values, jnp.float32), jnp.ones(np.shape(values), bool)


def test_examples_run():
    assert doctest.testmod(targets).failed == 0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", 0.36),
        ("median", 0.2),
        ("min", 0.1),
        ("max", 0.9),
        ("quantile", 0.5),
        ("trimmed_mean", (0.1 + 0.2 + 0.5) / 3),
        ("conservative_gap", 0.36),
        ("skew_quantile", 0.5),  # skewness 1.24: the upper quartile
        ("medcouple", (0.1 + 0.1 + 0.2 + 0.5) / 4),  # medcouple .75, fences [.08, ...): see below
    ],
)
def test_closed_forms(rule, expected):
    values = [0.9, 0.1, 0.5, 0.1, 0.2]
    if rule == "medcouple":  # the fences in NumPy, by their definition
        reach = 1.5 * (0.5 - 0.1)
        m = float(medcouple(*everywhere(values)))
        kept = [v for v in values if 0.1 - reach * np.exp(-4 * m) <= v <= 0.5 + reach * np.exp(3 * m)]
        expected = np.mean(kept)
    assert target(values, rule) == pytest.approx(expected, abs=1e-6)


def test_a_lone_outlier_is_outside_of_the_fences():
    values = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.95]
    assert target(values, "medcouple") == pytest.approx(np.mean(values[:-1]), abs=1e-6)


def test_skew_towards_safe_takes_the_median():
    values = [0.1, 0.8, 0.85, 0.9, 0.9]
    assert target(values, "skew_quantile") == pytest.approx(0.85)
    assert target(values, "conservative_gap") == pytest.approx(0.85)


def test_skewness_equals_scipy():
    ours = np.asarray(skewness(*everywhere(SETS)))
    np.testing.assert_allclose(ours, scipy.stats.skew(SETS, axis=1, bias=False), rtol=1e-4)


def medcouple_by_loop(x):
    """Straight from the definition, ties with the median included."""
    x = np.sort(np.asarray(x, np.float64))[::-1]
    m = np.median(x)
    upper, lower = x[x >= m], x[x <= m]
    num_ties = np.sum(x == m)
    values = []
    for i, a in enumerate(upper):
        for j, b in enumerate(lower):
            if a == b == m:
                # Ranks among the ties, counted from the far end of each half.
                p, q = i - (len(upper) - num_ties), j
                values.append(np.sign(num_ties - 1 - p - q))
            else:
                values.append(((a - m) - (m - b)) / (a - b))
    return np.median(values)


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4, 5], [1, 2, 7, 9, 10], [1, 2, 2, 2, 9], [0, 0, 0, 1, 5, 8], [3, 3], [4], [1, 1, 1, 1]]
)
def test_medcouple_equals_its_definition(values):
    assert float(medcouple(*everywhere(values))) == pytest.approx(medcouple_by_loop(values), abs=1e-6)


def test_medcouple_of_a_known_example():
    # The example of the reference implementation of Brys, Hubert and Struyf: -1/3.
    assert float(medcouple(*everywhere([1.0, 2.0, 7.0, 9.0, 10.0]))) == pytest.approx(-1 / 3, abs=1e-6)


def test_medcouple_of_random_sets_and_of_their_mirror_image():
    ours = np.asarray(medcouple(*everywhere(SETS)))
    np.testing.assert_allclose(ours, [medcouple_by_loop(row) for row in SETS], atol=1e-5)
    np.testing.assert_allclose(np.asarray(medcouple(*everywhere(1 - SETS))), -ours, atol=1e-5)


@over_rules
def test_invariants(rule):
    value = target(SETS, rule)
    # Float32 logits and back cost a few 1e-6.
    assert np.all(value >= SETS.min(axis=1) - 1e-5)
    assert np.all(value <= SETS.max(axis=1) + 1e-5)
    shuffled = np.random.default_rng(1).permuted(SETS, axis=1)
    np.testing.assert_allclose(target(shuffled, rule), value, atol=1e-6)


@over_rules
def test_masked_equals_filtered_whatever_lies_there(rule):
    where = np.random.default_rng(2).random(SETS.shape) < 0.6
    where[:, 3] = True
    filled = np.where(where, SETS, np.nan)
    value = target(filled, rule, where=jnp.asarray(where))
    for row in range(4):  # each length compiles once more
        alone = set_target(SETS[row][where[row]], rule=rule)
        assert value[row] == pytest.approx(float(alone), abs=1e-5)


@over_rules
def test_sets_of_one_and_of_identical_members_are_their_own_target(rule):
    members = np.full((3, 7), 0.3, np.float32)
    where = np.zeros((3, 7), bool)
    where[0, :], where[1, 2], where[2, :2] = True, True, True
    np.testing.assert_allclose(target(members, rule, where=jnp.asarray(where)), 0.3, atol=1e-6)


def test_the_order_of_conservatism():
    value = {rule: target(SETS, rule) for rule in RULES}
    for higher, lower in (
        ("max", "quantile"), ("quantile", "median"), ("median", "min"), ("conservative_gap", "mean"),
        ("skew_quantile", "median"),
    ):  # fmt: skip
        assert np.all(value[higher] >= value[lower] - 1e-6), (higher, lower)


def test_logit_space_of_quantiles_at_members_is_probability_space():
    for rule in ("min", "max", "median"):
        np.testing.assert_allclose(target(SETS, f"{rule}_logit"), target(SETS, rule), atol=1e-5)


def test_logit_space_is_dominated_by_saturated_scores():
    members = [0.4, 0.4, 0.4, 1.0]
    assert target(members, "mean") < 0.6 < target(members, "mean_logit")


def test_callables_of_the_user():
    def second_highest(values, where):
        return jnp.sort(jnp.where(where, values, -jnp.inf), axis=-1)[..., -2]

    assert float(set_target([0.1, 0.9, 0.5], rule=second_highest)) == pytest.approx(0.5)
    assert float(set_target([0.1, 0.9, 0.5], rule=in_logit_space(second_highest))) == pytest.approx(0.5, abs=1e-6)


def test_gradients_are_finite_on_identical_members():
    total = jax.jit(jax.grad(lambda s: sum(set_target(s, rule=rule) for rule in RULES)))
    assert np.all(np.isfinite(total(jnp.full((4,), 0.5))))


@pytest.mark.parametrize(
    ("scores", "where", "message"),
    [
        ([], None, r"shape \(0,\): expected .* at least one member"),
        (0.5, None, r"shape \(\): expected"),
        ([[0.1, 0.2], [0.3, 0.4]], [[True, False], [False, False]], "Set 1 has no members"),
        ([np.nan, np.nan], None, r"holds nan \(2 of 2 values"),
        ([0.2, 1.2], None, r"holds 1\.2.*expected P\(unsafe\) in \[0, 1\]"),
        ([-3.0, 0.5], None, r"holds -3\.0"),
        ([0.2, 0.3], [True], r"where is bool\(1,\): expected bool\(2,\)"),
        ([0.2, 0.3], [1, 1], "where is int32"),
    ],
)
def test_bad_scores(scores, where, message):
    with pytest.raises(TargetError, match=message):
        set_target(np.array(scores, np.float32), rule="mean", where=None if where is None else np.array(where))


def test_bad_rules():
    with pytest.raises(TargetError, match=r"rule='avg': expected one of conservative_gap"):
        set_target([0.5], rule="avg")
    with pytest.raises(TargetError, match="expected one per set"):
        set_target([0.5, 0.6], rule=lambda values, where: values)
    for make, value in ((quantile, 1.5), (targets.trimmed_mean, 0.5), (targets.skew_quantile, 0.5)):
        with pytest.raises(TargetError, match="expected"):
            make(value) if make is not targets.skew_quantile else make(q=0.2)


def test_within_jit_an_empty_set_is_nan():
    where = jnp.array([[True, True], [False, False]])
    value = target(np.full((2, 2), 0.4), "conservative_gap", where=where)
    assert value[0] == pytest.approx(0.4)
    assert np.isnan(value[1])
