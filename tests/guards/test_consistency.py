import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.guards.consistency import SetFeatures, consistency_objective, tune_heads
from edgesafe_jax.guards.heads import GatedHead, fit_head, unsafe_log_odds, unsafe_probability
from edgesafe_jax.guards.robustness import SetScores, robustness
from edgesafe_jax.guards.targets import RULES, set_target
from edgesafe_jax.losses import consistency, consistency_anchor

OPTIONS = {
    "rule": RULES["conservative_gap"],
    "anchor_weight": 0.3,
    "learning_rate": 0.1,
    "num_steps": 60,
}
KEYS = jax.random.split(jax.random.key(0), 2)


@functools.cache
def world():
    """Sets whose first feature is what they mean, while paraphrasing moves the second; a head that reads both."""
    rng = np.random.default_rng(0)
    meaning = rng.normal(size=(60, 1))
    features = np.concatenate(
        [np.repeat(meaning[:, None], 6, axis=1), 1.5 * rng.normal(size=(60, 6, 1)), rng.normal(size=(60, 6, 3))], axis=2
    )
    labels = (meaning[:, 0] > 0).astype(float)
    flat, flat_labels = features.reshape(-1, 5), np.repeat(labels, 6)
    entangled = flat + np.array([0, 0.6, 0, 0, 0]) * (2 * flat_labels[:, None] - 1)  # a shortcut while it was fitted
    fitted = fit_head(entangled, flat_labels, l2=0.05)
    gate = fit_head(flat, (np.arange(len(flat)) % 2).astype(float))
    where = rng.random((60, 6)) < 0.85
    where[:, :2] = True
    head = GatedHead(general=fitted, own=fitted, gate=gate)
    return head, SetFeatures(jnp.asarray(features, jnp.float32), jnp.asarray(where)), labels


def scores_of(head, sets, labels):
    unsafe = np.asarray(unsafe_probability(head, sets.features.reshape(-1, 5)), np.float64).reshape(sets.where.shape)
    return SetScores(np.where(np.asarray(sets.where), unsafe, np.nan), labels)


def test_log_odds_are_those_of_the_mixture_and_finite_where_it_saturates():
    head, sets, _ = world()
    flat = sets.features.reshape(-1, 5)
    probs = np.asarray(unsafe_probability(head, flat), np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(unsafe_log_odds(head, flat)))), probs, atol=1e-5)
    np.testing.assert_allclose(unsafe_log_odds(head, sets.features).reshape(-1), unsafe_log_odds(head, flat), atol=1e-5)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(unsafe_log_odds(head, x)))(1e3 * flat)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient) != 0)


def test_objective_is_both_terms_per_set():
    log_odds = jnp.array([[1.0, -1.0, 5.0], [0.5, 0.2, -3.0]])
    where = jnp.array([[True, True, False], [True, True, True]])
    target, reference = jnp.array([0.4, 0.9]), jnp.array([0.0, 1.0])
    value = consistency_objective(log_odds=log_odds, target=target, reference=reference, where=where, anchor_weight=0.5)
    pulled = consistency(logits=log_odds, target=target)
    held = consistency_anchor(logits=log_odds[:, 0], reference_logits=reference)
    expected = [np.mean(pulled[0, :2]) + 0.5 * held[0], np.mean(pulled[1]) + 0.5 * held[1]]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def tuned():
    head, sets, _ = world()
    return tune_heads(KEYS, head, sets, **OPTIONS)


def test_training_makes_verdicts_steadier_without_losing_what_they_mean(tuned):
    head, sets, labels = world()
    before = robustness(scores_of(head, sets, labels))
    for seed in range(2):
        after = robustness(scores_of(jax.tree.map(lambda leaf, s=seed: leaf[s], tuned[0]), sets, labels))
        assert after["std"] < 0.7 * before["std"]
        assert after["flips"] < before["flips"]
        assert after["auroc"] > before["auroc"]


def test_only_the_linear_maps_move(tuned):
    head, _, _ = world()
    heads, losses = tuned
    for part in ("general", "own", "gate"):
        for leaf in ("mean", "scale", "slope", "offset"):
            value = np.asarray(getattr(getattr(heads, part), leaf))
            expected = np.asarray(getattr(getattr(head, part), leaf))
            np.testing.assert_array_equal(value, np.broadcast_to(expected, value.shape))
        assert not np.allclose(getattr(heads, part).linear[0], getattr(head, part).linear)
    assert losses.shape == (2, OPTIONS["num_steps"])
    assert np.all(np.isfinite(losses))


def test_the_objective_over_all_sets_falls(tuned):
    head, sets, _ = world()
    before = unsafe_log_odds(head, sets.features)
    target = set_target(jax.nn.sigmoid(before), rule=OPTIONS["rule"], where=sets.where)

    def objective(trained):
        log_odds = unsafe_log_odds(trained, sets.features)
        fixed = {"target": target, "reference": before[:, 0], "where": sets.where}
        values = consistency_objective(log_odds=log_odds, **fixed, anchor_weight=OPTIONS["anchor_weight"])
        return float(jnp.mean(values))

    assert objective(jax.tree.map(lambda leaf: leaf[0], tuned[0])) < objective(head)


def test_keys_differ_and_do_not_depend_on_one_another(tuned):
    head, sets, _ = world()
    assert not np.allclose(tuned[0].general.linear[0], tuned[0].general.linear[1])
    exchanged, _ = tune_heads(KEYS[::-1], head, sets, **OPTIONS)
    np.testing.assert_allclose(exchanged.general.linear[::-1], tuned[0].general.linear, atol=1e-4)


def test_members_that_do_not_exist_do_not_matter(tuned):
    head, sets, _ = world()
    broken = SetFeatures(jnp.where(sets.where[:, :, None], sets.features, 99.0), sets.where)
    again, _ = tune_heads(KEYS, head, broken, **OPTIONS)
    np.testing.assert_allclose(again.general.linear, tuned[0].general.linear, atol=1e-4)


def test_a_heavy_anchor_holds_the_verdicts_on_originals():
    head, sets, _ = world()
    start = np.asarray(unsafe_probability(head, sets.features[:, 0]))

    def moved(weight):
        heads, _ = tune_heads(KEYS, head, sets, **{**OPTIONS, "rule": RULES["max"], "anchor_weight": weight})
        one = jax.tree.map(lambda leaf: leaf[0], heads)
        return float(np.mean(np.abs(np.asarray(unsafe_probability(one, sets.features[:, 0])) - start)))

    assert moved(30.0) < 0.5 * moved(0.0)


def test_targets_from_a_moving_average_that_never_moves_are_the_fixed_ones(tuned):
    head, sets, _ = world()
    heads, _ = tune_heads(KEYS, head, sets, **OPTIONS, ema_decay=1.0)
    np.testing.assert_allclose(heads.general.linear, tuned[0].general.linear, atol=1e-3)
    moving, _ = tune_heads(KEYS, head, sets, **OPTIONS, ema_decay=0.9)
    assert not np.allclose(moving.general.linear, tuned[0].general.linear, atol=1e-3)
