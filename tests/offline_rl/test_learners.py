"""Every learner on a problem whose answer is known, and how training treats seeds, data and the ends of episodes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edgesafe_jax.offline_rl import (
    Batch,
    Sampling,
    binary_weights,
    expectile_loss,
    exponential_weights,
    make_awr,
    make_bc,
    make_dataset,
    make_iql,
    make_sampler,
    make_sampler_data,
    make_td3_bc,
    make_trainer,
)

SMALL = {"hidden": (16, 16), "learning_rate": 3e-3}
LEARNERS = {
    "td3_bc": lambda **kw: make_td3_bc(**SMALL, target_rate=0.05, bc_weight=10.0, **kw),
    "iql": lambda **kw: make_iql(**SMALL, target_rate=0.05, expectile=0.8, temperature=10.0, **kw),
    "awr": lambda **kw: make_awr(**SMALL, target_rate=0.05, weights=exponential_weights(0.05), **kw),
    "crr": lambda **kw: make_awr(**SMALL, target_rate=0.05, weights=binary_weights(), **kw),
}


def bandit(num=600, seed=0):
    """One step each: the reward is -(a - s / 2)^2, the behaviour uniform. The best action is s / 2, the mean one 0."""
    rng = np.random.default_rng(seed)
    states, actions = rng.uniform(-1, 1, (num, 1)), rng.uniform(-1, 1, (num, 1))
    return make_dataset(
        states=states,
        actions=actions,
        rewards=-((actions - states / 2) ** 2)[:, 0],
        next_states=states,
        ends=np.ones(num),
        terminals=np.ones(num),
    )


def plain_sampler():
    return make_sampler(Sampling(achieved=lambda state: state[:0], reward_fn=lambda state, goal: jnp.zeros(())))


def train(learner, data, *, num_updates=400, seed=0, batch_size=128):
    trainer = make_trainer(learner, plain_sampler(), num_updates=num_updates, batch_size=batch_size)
    data = make_sampler_data(data)
    agent = trainer.init(jax.random.key(seed), data)
    return jax.jit(trainer.run)(jax.random.key(seed + 1), agent, data)


def actions_at(learner, agent, states):
    return jax.vmap(lambda s: learner.act(agent.learner, agent.normalize(s)))(jnp.asarray(states)[:, None])[:, 0]


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_offline_learners_find_better_actions_than_the_data(make):
    learner = make()
    agent, metrics = train(learner, bandit(), num_updates=800)
    states = np.linspace(-0.9, 0.9, 7)
    found = np.asarray(actions_at(learner, agent, states))
    assert np.corrcoef(found, states)[0, 1] > 0.9
    assert np.mean((found - states / 2) ** 2) < 0.5 * np.mean((states / 2) ** 2)  # the data's mean action is 0
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_cloning_finds_the_mean_action_of_the_data():
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (600, 1))
    data = bandit().replace(
        states=states.astype(np.float32), actions=np.float32(0.6 * states + 0.2 * rng.normal(size=(600, 1)))
    )
    learner = make_bc(**SMALL)
    agent, _ = train(learner, data)
    found = np.asarray(actions_at(learner, agent, np.array([-0.8, 0.0, 0.8])))
    np.testing.assert_allclose(found, [-0.48, 0.0, 0.48], atol=0.1)


@pytest.mark.parametrize(("terminal", "value"), [(True, -1.0), (False, -2.0)])
@pytest.mark.parametrize("name", LEARNERS)
def test_values_go_on_after_a_time_limit_and_stop_at_a_terminal(name, terminal, value):
    # One state, reward -1 for ever: the value is -1 / (1 - discount) unless the world ends after the first step.
    data = make_dataset(
        states=np.zeros((64, 1)),
        actions=np.random.default_rng(0).uniform(-1, 1, (64, 1)),
        rewards=-np.ones(64),
        next_states=np.zeros((64, 1)),
        ends=np.ones(64),
        terminals=np.full(64, terminal),
    )
    learner = LEARNERS[name](discount=0.5)
    trainer = make_trainer(learner, plain_sampler(), num_updates=50, batch_size=32)
    sampled = make_sampler_data(data)
    agent, run = trainer.init(jax.random.key(0), sampled), jax.jit(trainer.run)
    for seed in range(24):
        agent, metrics = run(jax.random.key(seed), agent, sampled)
    assert float(metrics["value"]) == pytest.approx(value, abs=0.15)


def test_seeds_together_are_the_seeds_apart():
    data = make_sampler_data(bandit())
    trainer = make_trainer(make_td3_bc(hidden=(16,)), plain_sampler(), num_updates=20, batch_size=32)
    keys = jax.random.split(jax.random.key(0), 3)
    agents = jax.vmap(trainer.init, in_axes=(0, None))(keys, data)
    together, _ = jax.jit(jax.vmap(trainer.run, in_axes=(0, 0, None)))(keys, agents, data)
    alone, _ = jax.jit(trainer.run)(keys[1], trainer.init(keys[1], data), data)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], together), alone, rtol=2e-3, atol=2e-5)


def test_data_are_an_argument_of_one_compilation():
    trainer = make_trainer(make_bc(hidden=(8,)), plain_sampler(), num_updates=2, batch_size=8)
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(trainer.run, n=1))
    for seed in (0, 1):
        data = make_sampler_data(bandit(seed=seed))
        run(jax.random.key(0), trainer.init(jax.random.key(0), data), data)


def test_the_normaliser_is_fitted_on_batches_as_they_are_drawn():
    data = make_sampler_data(bandit(), noise_scale=3.0)
    sampling = Sampling(achieved=lambda s: s[:0], reward_fn=lambda s, g: jnp.zeros(()), add_noise=True)
    agent = make_trainer(make_bc(hidden=(8,)), make_sampler(sampling), num_updates=1).init(jax.random.key(0), data)
    spread = float(np.std(bandit().states))
    assert float(agent.std[0]) == pytest.approx(spread * np.sqrt(1 + 3.0**2), rel=0.1)


def test_without_normalisation_agents_see_the_units_of_the_world():
    data = make_sampler_data(bandit())
    trainer = make_trainer(make_bc(hidden=(8,)), plain_sampler(), num_updates=1, normalize=False)
    observations = jnp.array([[3.0], [-5.0]])
    np.testing.assert_array_equal(trainer.init(jax.random.key(0), data).normalize(observations), observations)


def test_an_update_counts_batches():
    for make, calls in ((make_td3_bc, 2), (make_iql, 1)):
        assert make().batches_per_call == calls
    with pytest.raises(ValueError, match="num_updates=3: expected a multiple of 2"):
        make_trainer(make_td3_bc(), plain_sampler(), num_updates=3)


def test_one_td3_bc_update_against_a_direct_computation():
    # Without hidden layers actor and critics are linear, so that one critic step can be written down.
    learner = make_td3_bc(
        hidden=(), learning_rate=0.1, policy_noise=0.0, discount=0.9, target_rate=0.25, policy_delay=1
    )
    rng = np.random.default_rng(0)
    batch = Batch(
        observations=jnp.asarray(rng.normal(size=(1, 5, 2)), jnp.float32),
        actions=jnp.asarray(rng.uniform(-1, 1, size=(1, 5, 1)), jnp.float32),
        rewards=jnp.asarray(rng.normal(size=(1, 5)), jnp.float32),
        next_observations=jnp.asarray(rng.normal(size=(1, 5, 2)), jnp.float32),
        terminals=jnp.asarray([[0.0, 1.0, 0.0, 0.0, 1.0]]),
        provenance=jnp.zeros((1, 5), jnp.int8),
    )
    state = learner.init(jax.random.key(0), batch.observations[0, 0], batch.actions[0, 0])
    after, _ = learner.update(jax.random.key(1), state, batch)

    def weights(params):
        return np.asarray(params["Dense_0"]["kernel"], np.float64), np.asarray(params["Dense_0"]["bias"], np.float64)

    obs, act, rew, nxt, end = (
        np.asarray(x[0], np.float64)
        for x in (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminals)
    )
    w_pi, b_pi = weights(state.target_actor)
    nxt_in = np.concatenate([nxt, np.tanh(nxt @ w_pi + b_pi)], 1)
    critics = [weights(params) for params in state.critics.params]
    target = rew + 0.9 * (1 - end) * np.minimum(*[(nxt_in @ w + b)[:, 0] for w, b in critics])
    inputs = np.concatenate([obs, act], 1)
    for (w, b), new in zip(critics, after.critics.params, strict=True):
        error = (inputs @ w + b)[:, 0] - target
        gradient = 2 * inputs.T @ error[:, None] / 5
        np.testing.assert_allclose(
            weights(new)[0], w - 0.1 * gradient / (np.abs(gradient) + 1e-8), rtol=1e-4, atol=1e-5
        )
    # The slow copies move a quarter of the way to the new weights.
    old, new, online = (weights(p)[0] for p in (state.target_actor, after.target_actor, after.actor.params))
    np.testing.assert_allclose(new, 0.75 * old + 0.25 * online, rtol=1e-5)
    # The actor follows bc - alpha / mean|Q| * Q of the first new critic.
    w_a, b_a = weights(state.actor.params)

    def objective(w):
        a = jnp.tanh(obs.astype(np.float32) @ w + b_a.astype(np.float32)[None])
        q = (jnp.concatenate([obs.astype(np.float32), a], 1) @ after.critics.params[0]["Dense_0"]["kernel"])[:, 0]
        q = q + after.critics.params[0]["Dense_0"]["bias"][0]
        scale = 2.5 / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
        return jnp.mean((a - act.astype(np.float32)) ** 2) - scale * jnp.mean(q)

    gradient = jax.grad(objective)(jnp.asarray(w_a, jnp.float32))
    optimizer = optax.adam(0.1)
    with jax.numpy_dtype_promotion("standard"):
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(weights(after.actor.params)[0], w_a + np.asarray(step), rtol=1e-3, atol=1e-4)


def test_expectiles_of_a_sample():
    # The minimiser of the expectile loss: tau * E(x - m)+ = (1 - tau) * E(m - x)+.
    x = jnp.asarray(np.random.default_rng(0).normal(size=400), jnp.float32)
    for tau in (0.5, 0.8):
        m = jnp.zeros(())
        for _ in range(200):
            m = m - 0.5 * jax.grad(lambda m, tau=tau: jnp.mean(expectile_loss(x - m, tau)))(m)
        up, down = jnp.mean(jnp.maximum(x - m, 0)), jnp.mean(jnp.maximum(m - x, 0))
        np.testing.assert_allclose(tau * up, (1 - tau) * down, rtol=1e-3)
    with pytest.raises(ValueError, match=r"expectile=1\.0"):
        make_iql(expectile=1.0)


def test_weights_of_the_regressions():
    advantages = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(binary_weights()(advantages), [0, 0, 1])
    np.testing.assert_allclose(exponential_weights(0.5, 20.0)(advantages), [np.exp(-2), 1, 20])
