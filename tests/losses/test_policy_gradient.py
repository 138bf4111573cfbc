"""Policy gradients: against enumeration, definitions in NumPy and, where torch is installed, the published formulas."""

import doctest
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from edgesafe_jax.losses import gae, kl_penalty, leave_one_out, policy_gradient, ppo_clip, reinforce, value_loss, whiten
from tests.losses.oracle import all_finite

RNG = np.random.default_rng(0)
LENGTHS = np.array([6, 3, 1, 0])
WHERE = np.arange(6) < LENGTHS[:, None]
REWARD, VALUE = (RNG.normal(size=(4, 6)).astype(np.float32) for _ in range(2))


def test_examples():
    found = doctest.testmod(policy_gradient)
    assert found.attempted > 8
    assert found.failed == 0


# REINFORCE ------------------------------------------------------------------------------------------------------------


def test_mean_gradient_is_that_of_the_expected_reward_with_any_baseline():
    """All answers of two tokens over three letters, each weighed by its probability."""
    logits = jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32)
    answers = np.array(list(itertools.product(range(3), repeat=2)))
    reward = RNG.normal(size=9).astype(np.float32)

    def log_prob(logits):
        each = jax.nn.log_softmax(logits)
        return each[0][answers[:, 0]] + each[1][answers[:, 1]]

    exact = jax.grad(lambda z: jnp.sum(jnp.exp(log_prob(z)) * reward))(logits)
    prob = jnp.exp(log_prob(logits))
    for baseline in (None, np.full(9, 0.7, np.float32)):
        found = jax.grad(
            lambda z, b=baseline: jnp.sum(prob * reinforce(log_prob=log_prob(z), reward=reward, baseline=b))
        )
        np.testing.assert_allclose(found(logits), -exact, rtol=1e-4, atol=1e-6)


def test_rewards_and_baselines_have_no_gradient():
    slopes = jax.grad(lambda r, b: reinforce(log_prob=-1.0, reward=r, baseline=b), argnums=(0, 1))(1.0, 0.5)
    assert slopes == (0, 0)


def test_leave_one_out_is_the_mean_of_the_others():
    expected = np.zeros((4, 6))
    for row, length in enumerate(LENGTHS):
        for i in range(length if length > 1 else 0):
            expected[row, i] = np.delete(REWARD[row, :length], i).mean()
    found = leave_one_out(reward=np.where(WHERE, REWARD, np.nan), where=WHERE)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# PPO ------------------------------------------------------------------------------------------------------------------


def test_clip_stops_the_gradient_only_in_the_direction_of_the_advantage():
    def surrogate(ratio, advantage):
        value, slope = jax.value_and_grad(
            lambda log_q: ppo_clip(log_prob=log_q, old_log_prob=-1.0, advantage=advantage, clip=0.2)
        )(np.float32(np.log(ratio) - 1))
        return float(value), float(slope)

    np.testing.assert_allclose(surrogate(1.0, 2.0), (-2.0, -2.0), rtol=1e-5)
    np.testing.assert_allclose(surrogate(1.5, 2.0), (-2.4, 0.0), rtol=1e-5)
    np.testing.assert_allclose(surrogate(0.5, 2.0), (-1.0, -1.0), rtol=1e-5)
    np.testing.assert_allclose(surrogate(0.5, -2.0), (1.6, 0.0), rtol=1e-5)
    np.testing.assert_allclose(surrogate(1.5, -2.0), (3.0, 3.0), rtol=1e-5)
    assert surrogate(7.0, 0.0) == (0, 0)


def test_at_the_policy_that_sampled_it_is_reinforce_per_token():
    log_prob = -np.abs(VALUE)

    def clipped(log_q):
        return jnp.sum(ppo_clip(log_prob=log_q, old_log_prob=log_prob, advantage=REWARD, where=WHERE))

    def plain(log_q):
        return jnp.sum(reinforce(log_prob=log_q, reward=REWARD, where=WHERE))

    np.testing.assert_allclose(jax.grad(clipped)(log_prob), jax.grad(plain)(log_prob), rtol=1e-6)


def test_value_loss_is_the_worse_of_two_squared_errors():
    old = VALUE + 0.3 * RNG.normal(size=VALUE.shape).astype(np.float32)
    near = np.clip(VALUE, old - 0.2, old + 0.2)
    expected = 0.5 * np.maximum((VALUE - REWARD) ** 2, (near - REWARD) ** 2)
    found = value_loss(value=VALUE, target=REWARD, old_value=old, clip=0.2, where=WHERE)
    np.testing.assert_allclose(found, np.where(WHERE, expected, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value_loss(value=VALUE, target=REWARD), 0.5 * (VALUE - REWARD) ** 2, rtol=1e-6)
    assert jax.grad(lambda t: value_loss(value=1.0, target=t))(0.0) == 0


# Advantages -----------------------------------------------------------------------------------------------------------


def loop_gae(reward, value, discount, decay):
    """The recursion, backwards, float64."""
    advantage, after, out = 0.0, 0.0, []
    for r, v in zip(np.float64(reward)[::-1], np.float64(value)[::-1], strict=True):
        advantage = r + discount * after - v + discount * decay * advantage
        after = v
        out.append(advantage)
    return np.array(out[::-1])


def test_advantages_follow_the_recursion_and_both_factors_may_be_traced():
    compute = jax.jit(
        chex.assert_max_traces(lambda g, d: gae(reward=REWARD, value=VALUE, discount=g, decay=d, where=WHERE), n=1)
    )
    for discount, decay in ((1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        advantage, target = compute(jnp.float32(discount), jnp.float32(decay))
        for row, length in enumerate(LENGTHS):
            expected = loop_gae(REWARD[row, :length], VALUE[row, :length], discount, decay)
            np.testing.assert_allclose(advantage[row, :length], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(target[row, :length], expected + VALUE[row, :length], rtol=1e-4, atol=1e-5)
        assert not np.any(np.where(WHERE, 0, advantage))
        assert not np.any(np.where(WHERE, 0, target))


def test_exact_values_leave_no_advantage_and_one_row_is_as_many():
    reward = REWARD[0]
    exact = np.cumsum(reward[::-1])[::-1]
    advantage, target = gae(reward=reward, value=exact, decay=0.3)
    np.testing.assert_allclose(advantage, 0, atol=1e-5)
    np.testing.assert_allclose(target, exact, rtol=1e-4, atol=1e-5)
    several = jax.vmap(lambda r, v, w: gae(reward=r, value=v, where=w))(REWARD, VALUE, WHERE)
    chex.assert_trees_all_close(several, gae(reward=REWARD, value=VALUE, where=WHERE), rtol=1e-5, atol=1e-6)


def test_whitened_values_have_mean_zero_and_variance_one():
    found = np.asarray(whiten(np.where(WHERE, REWARD, np.inf), where=WHERE))
    np.testing.assert_allclose(found[WHERE].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(found[WHERE].var(), 1, rtol=1e-4)
    assert not np.any(found[~WHERE])
    np.testing.assert_array_equal(whiten(np.full(3, 2.5, np.float32)), 0)
    np.testing.assert_array_equal(whiten(REWARD, where=np.zeros_like(WHERE)), 0)


def test_estimators_of_kl_have_its_value_as_their_mean():
    log_q, log_p = (scipy.special.log_softmax(RNG.normal(size=7)).astype(np.float32) for _ in range(2))
    kl = np.sum(scipy.special.rel_entr(np.exp(np.float64(log_q)), np.exp(np.float64(log_p))))
    for name in ("k1", "k3"):
        each = kl_penalty(log_prob=log_q, reference_log_prob=log_p, estimator=name)
        np.testing.assert_allclose(np.sum(np.exp(log_q) * each), kl, rtol=1e-5)
    assert np.all(each >= 0)


# All of them ----------------------------------------------------------------------------------------------------------

CASES = {
    "reinforce": (reinforce, ("log_prob", "reward", "baseline"), {}),
    "ppo_clip": (ppo_clip, ("log_prob", "old_log_prob", "advantage"), {}),
    "value_loss": (value_loss, ("value", "target", "old_value"), {"clip": 0.2}),
    "kl_penalty": (kl_penalty, ("log_prob", "reference_log_prob"), {"estimator": "k3"}),
}


@pytest.mark.parametrize("name", CASES)
def test_masked_elements_may_hold_anything_in_any_precision(name):
    loss, names, more = CASES[name]
    clean = {key: RNG.normal(size=(4, 6)).astype(np.float32) for key in names}

    @jax.jit
    def compute(given, where):
        def total(first):
            value = loss(**{**given, names[0]: first}, **more, where=where)
            return jnp.sum(value), value

        slope, value = jax.grad(total, has_aux=True)(given[names[0]])
        return value, slope

    full = compute(clean, np.ones_like(WHERE))
    found = compute({key: np.where(WHERE, value, np.nan) for key, value in clean.items()}, WHERE)
    for got, expected in zip(found, full, strict=True):
        np.testing.assert_array_equal(got, np.where(WHERE, expected, 0))
    low = {key: jnp.asarray(value, jnp.bfloat16) for key, value in clean.items()}
    value = loss(**low, **more)
    assert value.dtype == jnp.float32
    exact = loss(**{key: each.astype(jnp.float32) for key, each in low.items()}, **more)
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)
    assert all_finite(*found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reinforce(log_prob=np.zeros(3), reward=np.zeros(2)), r"reward has shape \(2,\) but log_prob"),
        (lambda: reinforce(log_prob=np.zeros(3, int), reward=np.zeros(3)), "log_prob has dtype int"),
        (lambda: leave_one_out(reward=np.zeros(3), where=np.ones(2, bool)), "where has shape"),
        (lambda: ppo_clip(log_prob=0.0, old_log_prob=0.0, advantage=0.0, clip=0.0), "clip is 0.0"),
        (lambda: value_loss(value=0.0, target=0.0, clip=0.2), "both, or neither"),
        (lambda: value_loss(value=0.0, target=0.0, old_value=0.0, clip=-1.0), "clip is -1.0"),
        (lambda: gae(reward=np.zeros(3), value=np.zeros(2)), r"value has shape \(2,\) but reward"),
        (lambda: gae(reward=np.zeros(3), value=np.zeros(3), discount=1.5), "discount holds 1.5"),
        (lambda: gae(reward=np.zeros(3), value=np.zeros(3), decay=-0.1), "decay holds -0.1"),
        (lambda: kl_penalty(log_prob=0.0, reference_log_prob=0.0, estimator="k2"), "estimator is 'k2'"),
        (lambda: whiten(np.zeros(3, int)), "values has dtype int"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parity
def test_values_are_those_of_the_published_formulas():
    """The formulas of TRL's PPOTrainer, in torch: ratio, clip, value clip, advantages by a loop, whitening."""
    torch = pytest.importorskip("torch")
    clip, gamma, lam = 0.2, 1.0, 0.95
    new, old, value, old_value, reward = (torch.tensor(RNG.normal(size=(3, 5)), dtype=torch.float32) for _ in range(5))
    rewards = reward - 0.1 * (old - new)
    last, reverse = 0, []
    for t in reversed(range(5)):
        after = old_value[:, t + 1] if t < 4 else 0.0
        last = rewards[:, t] + gamma * after - old_value[:, t] + gamma * lam * last
        reverse.append(last)
    advantage = torch.stack(reverse[::-1], axis=1)
    returns = advantage + old_value
    found, target = gae(reward=rewards.numpy(), value=old_value.numpy(), discount=gamma, decay=lam)
    np.testing.assert_allclose(found, advantage.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(target, returns.numpy(), rtol=1e-4, atol=1e-5)
    white = (advantage - advantage.mean()) * torch.rsqrt(advantage.var(correction=0) + 1e-8)
    np.testing.assert_allclose(whiten(found), white.numpy(), rtol=1e-4, atol=1e-5)
    new.requires_grad_()
    ratio = torch.exp(new - old)
    policy = torch.max(-white * ratio, -white * torch.clamp(ratio, 1 - clip, 1 + clip))
    policy.sum().backward()
    given = {"old_log_prob": old.numpy(), "advantage": white.numpy(), "clip": clip}
    np.testing.assert_allclose(ppo_clip(log_prob=new.detach().numpy(), **given), policy.detach().numpy(), rtol=1e-5)
    slope = jax.grad(lambda q: jnp.sum(ppo_clip(log_prob=q, **given)))(new.detach().numpy())
    np.testing.assert_allclose(slope, new.grad.numpy(), rtol=1e-5, atol=1e-6)
    near = torch.clamp(value, old_value - clip, old_value + clip)
    expected = 0.5 * torch.max((value - returns) ** 2, (near - returns) ** 2)
    clipped = value_loss(value=value.numpy(), target=returns.numpy(), old_value=old_value.numpy(), clip=clip)
    np.testing.assert_allclose(clipped, expected.numpy(), rtol=1e-5, atol=1e-6)
