"""Heads on frozen features against their formulas and an optimiser of another kind."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from edgesafe_jax.guards.heads import GatedHead, Head, calibrate_head, fit_head, head_logits, unsafe_probability


def random_head(seed: int, num_features: int = 4) -> Head:
    rng = np.random.default_rng(seed)
    mean, scale, linear = (jnp.asarray(rng.standard_normal(num_features), jnp.float32) for _ in range(3))
    return Head(mean, scale, linear, *(jnp.asarray(v, jnp.float32) for v in (0.3, 1.7, -0.4)))


def data(num: int = 600, num_features: int = 5, seed: int = 0):
    """Features with correlated dimensions of unlike sizes, labels drawn from a logistic model of them."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((num, num_features)) @ rng.standard_normal((num_features, num_features))
    direction = rng.standard_normal(num_features)
    direction *= 2 / np.std(features @ direction)
    features = features * np.logspace(-2, 2, num_features) + np.arange(num_features)
    logits = (features - np.arange(num_features)) / np.logspace(-2, 2, num_features) @ direction - 0.5
    return features, (rng.random(num) < scipy.special.expit(logits)).astype(float), logits


def probs(head, features):
    return scipy.special.expit(np.asarray(head_logits(head, jnp.asarray(features, jnp.float32)), np.float64))


def nll(head, features, labels):
    p = probs(head, features)
    return -np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def test_head_logits_formula():
    head = random_head(0)
    features = np.random.default_rng(1).standard_normal((7, 4))
    x = (features - np.asarray(head.mean)) * np.asarray(head.scale)
    expected = 1.7 * (x @ np.asarray(head.linear) + 0.3) - 0.4
    np.testing.assert_allclose(head_logits(head, jnp.asarray(features, jnp.float32)), expected, rtol=1e-5)


def test_gated_head_mixes_the_two_heads():
    head = GatedHead(general=random_head(0), own=random_head(1), gate=random_head(2))
    features = np.random.default_rng(1).standard_normal((50, 4))
    general, own, gate = (probs(part, features) for part in (head.general, head.own, head.gate))
    result = unsafe_probability(head, jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(result, (1 - gate) * general + gate * own, rtol=1e-5)
    for offset, expected in ((100.0, own), (-100.0, general)):
        closed = head.replace(gate=head.gate.replace(offset=jnp.float32(offset)))
        np.testing.assert_allclose(unsafe_probability(closed, jnp.asarray(features, jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_fit_minimises_what_it_says(l2):
    """Against a quasi-Newton optimiser on the documented objective, soft labels and weights included."""
    features, labels, _ = data()
    rng = np.random.default_rng(3)
    labels = np.where(rng.random(len(labels)) < 0.3, rng.random(len(labels)), labels)
    weights = rng.random(len(labels)) + 0.1
    head = fit_head(features, labels, weights=weights, l2=l2)
    mean = np.average(features, axis=0, weights=weights)
    std = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights))
    x = (features - mean) / std / np.sqrt(features.shape[1])

    def objective(solution):
        logits = x @ solution[:-1] + solution[-1]
        entropy = np.logaddexp(0, logits) - labels * logits
        penalty = l2 / 2 * np.sum(solution[:-1] ** 2) / features.shape[1]
        return np.sum(weights * entropy) / np.sum(weights) + penalty

    best = scipy.optimize.minimize(objective, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(head.linear, best[:-1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(head.bias, best[-1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(head.mean), mean, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(head.scale), 1 / std / np.sqrt(5), rtol=1e-4)
    assert (head.slope, head.offset) == (1, 0)


def test_fit_recovers_the_direction_that_made_the_labels():
    features, labels, logits = data(num=20_000)
    head = fit_head(features, labels, l2=1e-4)
    fitted = np.asarray(head_logits(head, jnp.asarray(features, jnp.float32)))
    assert np.corrcoef(fitted, logits)[0, 1] > 0.995
    assert np.polyfit(logits, fitted, 1) == pytest.approx([1, 0], abs=0.1)


def test_a_stronger_penalty_shrinks_the_map_but_not_the_mean():
    features, labels, _ = data()
    heads = [fit_head(features, labels, l2=l2) for l2 in (1e-3, 1e-1, 10.0, 1e6)]
    norms = [float(jnp.linalg.norm(head.linear)) for head in heads]
    assert norms == sorted(norms, reverse=True)
    np.testing.assert_allclose(probs(heads[-1], features), labels.mean(), atol=1e-3)


def test_units_and_origin_of_features_do_not_matter():
    features, labels, _ = data()
    first = fit_head(features, labels)
    moved = features * np.array([1e-3, 1.0, 10.0, 0.1, 7.0]) + 3.0
    second = fit_head(moved, labels)
    np.testing.assert_allclose(probs(second, moved), probs(first, features), atol=2e-3)


def test_weights_equal_repeated_rows():
    features, labels, _ = data(num=80)
    weights = np.random.default_rng(1).integers(0, 4, 80)
    repeated = np.repeat(np.arange(80), weights)
    weighted = fit_head(features, labels, weights=3.5 * weights)
    expected = fit_head(features[repeated], labels[repeated])
    np.testing.assert_allclose(probs(weighted, features), probs(expected, features), atol=1e-5)


def test_a_soft_label_equals_both_labels_with_its_weights():
    features, _, logits = data(num=80)
    soft = scipy.special.expit(logits)
    both = fit_head(
        np.concatenate([features, features]),
        np.concatenate([np.ones(80), np.zeros(80)]),
        weights=np.concatenate([soft, 1 - soft]),
    )
    np.testing.assert_allclose(probs(fit_head(features, soft), features), probs(both, features), atol=1e-5)


def test_separable_data_and_constant_features_stay_finite():
    features = np.concatenate([np.linspace(-3, 3, 40)[:, None], np.full((40, 1), 1e4)], axis=1)
    labels = (features[:, 0] > 0).astype(float)
    head = fit_head(features, labels, l2=1e-6)
    result = probs(head, features)
    assert np.all(np.isfinite(result))
    assert np.all((result > 0.5) == (labels > 0.5))


@pytest.mark.parametrize("jitter", [0.0, 3e-8])
def test_another_value_of_a_constant_feature_does_not_decide(jitter):
    features, labels, _ = data()
    rng = np.random.default_rng(0)
    column = 0.4 + jitter * (labels > 0.5) + jitter * rng.uniform(-1, 1, len(labels))
    head = fit_head(np.column_stack([features, column]), labels)
    moved = np.column_stack([features, np.full(len(labels), 0.41)])
    np.testing.assert_allclose(probs(head, moved), probs(head, np.column_stack([features, column])), atol=1e-3)


def test_more_features_than_rows():
    features = np.random.default_rng(0).standard_normal((20, 60))
    labels = np.arange(20) % 2
    held_out = np.random.default_rng(1).standard_normal((20, 60))
    head = fit_head(features, labels, l2=0.1)
    assert np.all((probs(head, features) > 0.5) == labels)
    assert np.all(np.isfinite(probs(head, held_out)))


def scores_of(head, features):
    """Uncalibrated log-odds."""
    return np.asarray(head_logits(head.replace(slope=jnp.float32(1), offset=jnp.float32(0)), jnp.asarray(features)))


def test_calibration_undoes_overconfidence():
    features, labels, _ = data(num=4000)
    features = features.astype(np.float32)
    train, test = slice(0, 2000), slice(2000, 4000)
    head = fit_head(features[train], labels[train], l2=1e-3)
    wrong = head.replace(linear=head.linear * 5, bias=head.bias * 5 + 2)
    calibrated = calibrate_head(wrong, scores=scores_of(wrong, features[train]), labels=labels[train])
    assert float(calibrated.slope) == pytest.approx(1 / 5, rel=0.05)
    assert nll(calibrated, features[test], labels[test]) < nll(wrong, features[test], labels[test]) - 0.1
    assert nll(calibrated, features[test], labels[test]) == pytest.approx(
        nll(head, features[test], labels[test]), abs=0.01
    )
    # On the data it saw, the mean probability is the share of labels.
    assert probs(calibrated, features[train]).mean() == pytest.approx(labels[train].mean(), abs=1e-3)


def test_calibration_starts_anew():
    head, scores = random_head(0), np.linspace(-3, 3, 50)
    labels = (np.arange(50) * 7 % 50 < np.arange(50)).astype(float)
    first = calibrate_head(head, scores=scores, labels=labels)
    second = calibrate_head(head.replace(slope=jnp.float32(7), offset=jnp.float32(-3)), scores=scores, labels=labels)
    assert (first.slope, first.offset) == (second.slope, second.offset)
    np.testing.assert_array_equal(first.linear, head.linear)
    # Against its definition: the slope and offset of a logistic regression on the score.

    def objective(values):
        logits = values[0] * scores + values[1]
        return np.mean(np.logaddexp(0, logits) - labels * logits)

    best = scipy.optimize.minimize(objective, [1.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose([first.slope, first.offset], best, rtol=1e-3)


def test_a_weight_in_the_calibration_is_a_repetition():
    head, scores = random_head(0), np.linspace(-2, 3, 30)
    labels, counts = (np.arange(30) * 7 % 30 < np.arange(30)).astype(float), np.arange(30) % 3
    weighted = calibrate_head(head, scores=scores, labels=labels, weights=counts)
    repeated = calibrate_head(head, scores=np.repeat(scores, counts), labels=np.repeat(labels, counts))
    np.testing.assert_allclose([weighted.slope, weighted.offset], [repeated.slope, repeated.offset], rtol=1e-4)


def test_calibration_never_turns_the_order_round():
    features, labels, _ = data()
    features = features.astype(np.float32)
    head = fit_head(features, labels)
    before = probs(head, features)
    flipped = calibrate_head(head, scores=scores_of(head, features), labels=1 - labels)
    after = probs(flipped, features)
    assert float(flipped.slope) == pytest.approx(0.05)
    assert np.all(np.diff(after[np.argsort(before)]) >= -1e-6)
    assert after.mean() == pytest.approx(1 - labels.mean(), abs=0.02)
    assert nll(flipped, features, 1 - labels) < nll(head, features, 1 - labels)


def test_bad_arguments():
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    x[:, 0] = range(4)
    for features, labels, weights in (
        (x[0], y, None),
        (x, y[:3], None),
        (x, y[:, None], None),
        (x, y, np.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"expected \[N, M\], \[N\], \[N\]"):
            fit_head(features, labels, weights=weights)
    broken = x.copy()
    broken[2, 1] = np.inf
    with pytest.raises(ValueError, match=r"features\[2\] is not finite"):
        fit_head(broken, y)
    for labels in (np.ones(4), [0, 1, 2, 1], [0, 1, -0.1, 1], [0, 1, np.nan, 1]):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\] and not be all alike"):
            fit_head(x, np.array(labels))
    with pytest.raises(ValueError, match="labels must lie"):
        fit_head(x[:0], y[:0])
    for weights in ([1, 1, -1, 1], [0, 0, 0, 0], [1, np.nan, 1, 1]):
        with pytest.raises(ValueError, match="weights must be finite, not negative, and not all zero"):
            fit_head(x, y, weights=np.array(weights))
    with pytest.raises(ValueError, match="l2=0: expected above 0"):
        fit_head(x, y, l2=0)
