"""Every objective of the table on a tiny model: what it trains, the rows it makes, and what it refuses."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from edgesafe_jax import parallel
from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.generation import Generation
from edgesafe_jax.safety import OBJECTIVES, AlignSettings, align, training
from edgesafe_jax.safety.objectives import (
    BatchSource,
    Needs,
    Objective,
    Outcomes,
    WeightedSum,
    make_objective,
    row_losses,
)
from edgesafe_jax.safety.objectives.on_policy import posterior_of_refusal
from edgesafe_jax.safety.objectives.rows import along, make_rows, prompts_of
from edgesafe_jax.safety.recovery import prefixes
from edgesafe_jax.safety.system import SequenceTeacher
from edgesafe_jax.safety.teacher import make_teacher_data, outcome_hidden
from edgesafe_jax.safety.training import make_step
from edgesafe_jax.training import init_state
from tests.safety.rows import ADAPTER, REFUSAL, SAFE_PROB, chosen, naive_log_probs

TINY = AlignSettings(num_steps=24, warmup_steps=1, learning_rate=0.1, clip_norm=1.0, average_from=1.0)
MORE_SAMPLES = {"reinforce": {"samples_per_prompt": 4}}
START = SoftPrompt(0.3 * jax.random.normal(jax.random.key(1), (8, 16)))


def guard(prompts, responses):
    """A guard whose verdict the student can change: ASCII is safe, and so is any answer to some prompts."""
    outside = np.array([np.mean([ord(letter) > 127 for letter in response or " "]) for response in responses])
    return np.where(["the" in prompt for prompt in prompts], 0.05 + 0.9 * outside, 0.05)


@pytest.fixture(scope="module")
def source(tiny_model):
    """Four prompts, the second answer cut, with the base model's states."""
    encode, decode = tiny_model.tokenizer.encode, tiny_model.tokenizer.decode
    texts = ["hello you", "the user in 20", "a b c", "us er now"]
    tokens = [encode(text) for text in ("the in", "abcdefgh", "", "userxyz")]
    answers = Generation(tokens, [decode(ids) for ids in tokens], [True, False, True, True])
    teacher = SequenceTeacher(texts, answers, np.array(SAFE_PROB), REFUSAL)
    data = make_teacher_data(tiny_model, teacher, max_tokens=6, with_hidden=True)
    return BatchSource(
        tiny_model,
        data,
        lambda step: (np.arange(4) + step) % len(data),
        guard=guard,
        texts=texts,
        max_tokens=6,
        seed=3,
        needs=Needs(base_hidden=True),
    )


@pytest.fixture(scope="module")
def trained(tiny_model, source):
    """From the name of each objective to its loss at each step; of objectives that sample, the reward."""
    source = dataclasses.replace(source, order=lambda step: np.arange(6), texts=[f"the {t}" for t in source.texts])
    objectives = {name: make_objective(name, options=MORE_SAMPLES.get(name)) for name in OBJECTIVES}
    simple = [name for name in objectives if type(objectives[name]).batches is Objective.batches]
    decoder, params = tiny_model.decoder, tiny_model.params
    head = jnp.array(tiny_model.tokenizer.chat_parts.head, jnp.int32)

    # Objectives on the teacher's rows are trained side by side: one pass of as many adapters.
    @jax.jit
    def descend(adapters, batch):
        def loss(adapters):
            hidden = jax.vmap(lambda each: outcome_hidden(decoder, params, each, head, batch))(adapters)
            values = [
                jnp.mean(row_losses(objectives[name], decoder, params, hidden[i], batch))
                for i, name in enumerate(simple)
            ]
            return sum(values), jnp.stack(values)

        gradient, values = jax.grad(loss, has_aux=True)(adapters)
        norms = jnp.linalg.norm(gradient.embeddings, axis=(1, 2), keepdims=True)
        return SoftPrompt(adapters.embeddings - 0.1 * gradient.embeddings / norms), values

    adapters = SoftPrompt(jnp.broadcast_to(START.embeddings, (len(simple), 8, 16)))
    batch, lines = source.teacher_rows(0, None), []
    for _ in range(TINY.num_steps):
        adapters, values = descend(adapters, batch)
        lines.append(values)
    found = dict(zip(simple, np.stack(lines, axis=1), strict=True))
    for name in objectives.keys() - simple:
        needs, settings, given = objectives[name].needs, TINY, source
        if needs.reward:  # The gradient is a sample: more rows and larger steps.
            settings = dataclasses.replace(TINY, learning_rate=0.3)
            given = dataclasses.replace(source, order=lambda step: np.resize(np.arange(6), 32))
        step, state = make_step(tiny_model, objectives[name], START, settings, parallel.make_data_mesh(1))
        batches, lines = objectives[name].batches(dataclasses.replace(given, needs=needs)), []
        for number in range(TINY.num_steps):
            state, measured = step(state, batches(number, state))
            lines.append(measured)
        watched = "reward" if needs.reward else "loss"
        found[name] = np.array([line[watched] for line in lines])
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_by_any_objective_gains(trained, name):
    before, after = np.mean(trained[name][:4]), np.mean(trained[name][-4:])
    assert np.all(np.isfinite(trained[name]))
    if make_objective(name).needs.reward:
        assert after > before + 0.02
    else:
        assert after < 0.9 * before


def test_sampled_answers_are_drawn_again_with_the_same_bits(tiny_model, tmp_path, monkeypatch):
    """A run of PPO that is interrupted after a checkpoint between two steps on one batch, against the whole run."""
    prompts = [f"{word} {number}" for number in range(3) for word in ("the user", "hello")]
    settings = AlignSettings(
        objective="ppo",
        objective_options={"ppo": {"updates_per_sample": 2}},
        kl_to_base=0.1,
        num_steps=5,
        save_every=3,
        log_every=1,
        warmup_steps=0,
        batch_size=3,
        max_tokens=6,
        num_positions=4,
        learning_rate=0.1,
    )
    made = []

    def make_once(*args, **options):
        """The step is the same in all three runs: it is compiled once."""
        if not made:
            made.append(make_step(*args, **options))
        return made[0]

    monkeypatch.setattr(training, "make_step", make_once)
    align_tiny = functools.partial(align, tiny_model, prompts=prompts, adapter=START, settings=settings)
    whole = align_tiny(guard)
    calls = 0

    def interrupted(prompts, responses):
        nonlocal calls
        calls += 1
        if calls == 4:  # once by the teacher, then at the steps 0, 2 and 4; the checkpoint of step 3 is inside a batch
            raise KeyboardInterrupt
        return guard(prompts, responses)

    with pytest.raises(KeyboardInterrupt):
        align_tiny(interrupted, workdir=tmp_path)
    found = align_tiny(guard, workdir=tmp_path)
    chex.assert_trees_all_equal(found.adapter, whole.adapter)
    assert all(0 <= line["reward"] <= 1 for line in found.metrics)


# Rows -----------------------------------------------------------------------------------------------------------------


def values_of(model, objective, batch, own=()):
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)

    @jax.jit
    def compute(params, batch):
        hidden = outcome_hidden(model.decoder, params, ADAPTER, head, batch)
        return objective(Outcomes(model.decoder, params, hidden, batch, objective.needs, own=own))

    return np.asarray(compute(model.params, batch))


def state_of(adapter=ADAPTER):
    return init_state({"adapter": adapter, "mean": adapter}, optax.sgd(1.0), key=jax.random.key(0))


def naive_total(model, source, prompt, outcome, adapter):
    return chosen(naive_log_probs(model, source.data.prompts[prompt], outcome, adapter), outcome).sum()


def test_pairs_are_the_outcomes_of_a_prompt_and_the_loss_is_dpo(tiny_model, source):
    objective = make_objective("dpo", options={"beta": 0.3})
    batch = objective.batches(source)(1, state_of())
    prompts = prompts_of(source, 1, 2)
    np.testing.assert_array_equal(batch.is_refusal, [False, True] * 2)
    found = values_of(tiny_model, objective, batch)
    for pair, prompt in enumerate(prompts):
        outcomes = source.data.answers[prompt], source.data.refusal
        student, base = (
            [naive_total(tiny_model, source, prompt, outcome, adapter) for outcome in outcomes]
            for adapter in (ADAPTER, None)
        )
        np.testing.assert_allclose(batch.reference_log_prob[2 * pair : 2 * pair + 2], base, rtol=1e-3)
        gap = 0.3 * (student[0] - base[0] - student[1] + base[1])
        a = SAFE_PROB[prompt]
        expected = -a * scipy.special.log_expit(gap) - (1 - a) * scipy.special.log_expit(-gap)
        np.testing.assert_allclose(found[2 * pair : 2 * pair + 2], expected, rtol=2e-3)


def test_prompts_of_several_rows_come_from_all_rows_of_an_order_in_turn(source):
    order = dataclasses.replace(source, order=lambda step: np.arange(4))
    found = np.concatenate([prompts_of(order, step, 2) for step in (0, 1)])
    assert sorted(found) == sorted(source.data.sample[:4])


def test_samples_carry_rewards_and_what_the_base_model_says_of_them(tiny_model, source):
    objective = make_objective("reinforce", options={"reference_kl": 0.2})
    batches = objective.batches(source)
    batch = batches(2, state_of())
    again = batches(2, state_of())
    chex.assert_trees_all_equal(batch, again)
    assert not np.array_equal(batches(3, state_of()).outcome, batch.outcome)
    prompts = np.repeat(prompts_of(source, 2, 2), 2)
    found = values_of(tiny_model, objective, batch)
    rewards, totals = [], []
    for row, prompt in enumerate(prompts):
        outcome = batch.outcome[row][batch.outcome_where[row]].tolist()
        student, base = (naive_total(tiny_model, source, prompt, outcome, adapter) for adapter in (ADAPTER, None))
        text = tiny_model.tokenizer.decode([t for t in outcome if t not in tiny_model.tokenizer.eos_ids]).strip()
        np.testing.assert_allclose(batch.reward[row], 1 - guard([source.texts[prompt]], [text])[0], rtol=1e-5)
        np.testing.assert_allclose(batch.reference_log_prob[row].sum(), base, rtol=1e-3)
        rewards.append(batch.reward[row] - 0.2 * (student - base))
        totals.append(student)
    for row in range(4):
        other = rewards[row + 1 - 2 * (row % 2)]
        np.testing.assert_allclose(found[row], -(rewards[row] - other) * totals[row], rtol=5e-3, atol=1e-3)
    # Along these samples the base model's states are its own: the KL of the base model to itself is 0.
    term = make_objective("tv", kl_to_base=1.0).terms[1][1]

    @jax.jit
    def itself(params, batch):
        head = jnp.array(tiny_model.tokenizer.chat_parts.head, jnp.int32)
        hidden = outcome_hidden(tiny_model.decoder, params, None, head, batch)
        return row_losses(term, tiny_model.decoder, params, hidden, batch)

    np.testing.assert_allclose(itself(tiny_model.params, batch), 0, atol=1e-5)


def test_ppo_weighs_each_token_by_its_advantage(tiny_model, source):
    """Against loops over the tokens, at the policy that sampled: there the ratio is 1."""
    objective = make_objective("ppo", options={"reference_kl": 0.1, "decay": 0.8, "discount": 0.9})
    own = {"weight": jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32), "bias": jnp.float32(0.3)}
    state = state_of()
    state = state.replace(params={**state.params, "own": own, "behaviour": ADAPTER, "behaviour_own": own})
    batches = objective.batches(source)
    batch = batches(4, state)
    assert batches(7, state) is batch
    assert batches(8, state) is not batch
    where, advantages, targets = np.asarray(batch.outcome_where), [], []
    for row in range(4):
        length = where[row].sum()
        outcome = batch.outcome[row][:length].tolist()
        prompt = source.data.sample[source.order(4)[row]]
        student, base = (
            chosen(naive_log_probs(tiny_model, source.data.prompts[prompt], outcome, each), outcome)
            for each in (ADAPTER, None)
        )
        np.testing.assert_allclose(batch.old_log_prob[row][:length], student, rtol=2e-3, atol=2e-3)
        reward = -0.1 * (student - base)
        reward[-1] += batch.reward[row]
        value, advantage, found = np.append(batch.old_value[row][:length], 0), 0, []
        for t in reversed(range(length)):
            advantage = reward[t] + 0.9 * value[t + 1] - value[t] + 0.9 * 0.8 * advantage
            found.append(advantage)
        advantages.append(found[::-1])
        targets.append(found[::-1] + value[:-1])
    every = np.concatenate(advantages)
    np.testing.assert_allclose(batch.target[where], np.concatenate(targets), rtol=1e-2, atol=1e-2)
    white = (every - every.mean()) / every.std()
    np.testing.assert_allclose(batch.advantage[where], white, rtol=1e-2, atol=2e-2)
    found = values_of(tiny_model, objective, batch, own)
    gap = (np.asarray(batch.target) - np.asarray(batch.old_value)) ** 2 / 2
    expected = [np.mean((gap - batch.advantage)[row][where[row]]) for row in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_gated_teacher_along_any_answer_is_that_of_equation_2(tiny_model, source):
    """The product of its next-token probabilities is the system's probability of the answer, in closed form."""
    refusal = source.data.refusal
    outcomes = [refusal, [refusal[0], 9, 2], [7, *refusal[1:]], refusal[:2]]
    prompts = np.array([0, 1, 1, 0])
    nothing = np.zeros(4, bool)
    batch = make_rows(source, prompts, outcomes, is_refusal=nothing, weight=np.ones(4), max_tokens=7)
    _, base = along(tiny_model, batch)
    certain, token = posterior_of_refusal(batch, base, refusal)
    gated = (1 - certain) * np.exp(base) + certain * (token == batch.outcome)
    total = np.where(batch.outcome_where, np.log(gated), 0).sum(axis=1)
    a = np.array(SAFE_PROB)[prompts]
    expected = a * np.exp(base.sum(axis=1, dtype=np.float64)) + (1 - a) * [1, 0, 0, 1]
    np.testing.assert_allclose(total, np.log(expected), atol=0.02)  # 1 - certain_prob is rounded


def test_on_policy_rows_are_the_students_and_the_others_the_teachers(tiny_model, source):
    order = source.order(1)
    whole = make_objective("gkd", options={"on_policy": 0.0}).batches(source)(1, state_of())
    chex.assert_trees_all_equal(whole, source.teacher_rows(1, state_of()))
    batch = make_objective("gkd", options={"on_policy": 0.5}).batches(source)(1, state_of())
    given = np.array([np.array_equal(batch.outcome[i], whole.outcome[i]) for i in range(4)])
    assert given.sum() == 2
    np.testing.assert_array_equal(batch.weight[given], source.data.weight[order][given])
    np.testing.assert_array_equal(batch.weight[~given], 1)
    for found, expected in zip(batch.certainty(), whole.certainty(), strict=True):
        np.testing.assert_array_equal(np.asarray(found)[given], np.asarray(expected)[given])
    again = make_objective("gkd", options={"on_policy": 0.5}).batches(source)(1, state_of())
    chex.assert_trees_all_equal(again, batch)


# Recovery -------------------------------------------------------------------------------------------------------------


def test_refusals_follow_the_beginnings_of_unsafe_answers_and_safe_ones_go_on(tiny_model, source):
    every = dataclasses.replace(source, order=lambda step: np.arange(6), recovery=1.0)
    batch = every.teacher_rows(0, None)
    found = values_of(tiny_model, make_objective("refusal_perplexity", normalization="sum"), batch)
    plain = source.data.batch(np.arange(6), pad_id=0)
    for row in range(6):
        prompt, answer = source.data.sample[row], source.data.answers[source.data.sample[row]]
        count = int(batch.start[row] - plain.start[row])
        assert batch.turn[row] == plain.start[row]
        outcome, refuses = source.data.outcomes[row], source.data.is_refusal[row]
        # The unsafe answers are the first, of three or so tokens, and the third, which is empty.
        assert (count > 0) == (row == 3 if refuses else len(outcome) > 1)
        assert batch.refusal_prob[row] == (float(refuses) if count else plain.refusal_prob[row])
        before = [*source.data.prompts[prompt], *answer[:count]]
        outcome = outcome if refuses else outcome[count:]
        assert batch.outcome[row][batch.outcome_where[row]].tolist() == list(outcome)
        np.testing.assert_array_equal(batch.tokens[row][batch.where[row]], [*before, *outcome[:-1]])
        expected = chosen(naive_log_probs(tiny_model, before, outcome, ADAPTER), outcome).sum()
        np.testing.assert_allclose(found[row], -expected if batch.weight[row] >= 0.5 else 0, rtol=2e-3)
    # The base model's states that are kept are those behind each beginning.
    head = jnp.array(tiny_model.tokenizer.chat_parts.head, jnp.int32)
    states = np.asarray(outcome_hidden(tiny_model.decoder, tiny_model.params, None, head, batch))
    answered = batch.outcome_where & ~batch.is_refusal[:, None]
    assert answered.any()
    np.testing.assert_allclose(batch.teacher_hidden[answered], states[answered], atol=2e-5)
    pairs = make_objective("dpo").batches(dataclasses.replace(every, order=lambda step: np.array([0, 1])))(0, None)
    count = int(pairs.start[0] - plain.start[0])
    assert count > 0
    assert pairs.outcome[0][pairs.outcome_where[0]].tolist() == source.data.answers[0][count:]
    assert pairs.outcome[1][pairs.outcome_where[1]].tolist() == source.data.refusal


def test_beginnings_have_one_to_ten_tokens_and_are_never_those_of_the_attack(tiny_model, source):
    encode = tiny_model.tokenizer.encode
    answers = [encode("abcdefghijklmnop"), encode("Sure! Here is how abcdefg"), encode("Surely abcdefghijk")]
    data = dataclasses.replace(source.data, answers=answers, refusal_prob=np.ones(3))
    draw = functools.partial(prefixes, tiny_model.tokenizer, data, np.array([0, 1, 2, -1]))
    found = [draw(fraction=1.0, seed=(0, step)) for step in range(200)]
    assert {len(rows[0]) for rows in found} == set(range(1, 11))
    assert all(rows[0] == answers[0][: len(rows[0])] and rows[2] and not rows[1] and not rows[3] for rows in found)
    assert draw(fraction=1.0, seed=(0, 7)) == found[7]
    some = [bool(draw(fraction=0.25, seed=(0, step))[0]) for step in range(400)]
    assert 0.17 < np.mean(some) < 0.33


def test_rewards_need_a_guard(source):
    with pytest.raises(ConfigError, match="rewards answers by a guard"):
        make_objective("reinforce").batches(dataclasses.replace(source, guard=None))(0, state_of())


# Options --------------------------------------------------------------------------------------------------------------


def test_terms_are_added_where_they_belong():
    assert make_objective("token_kl").needs.rows_per_prompt == 1
    both = make_objective("dpo", decision_weight=1.0, kl_to_base=0.5)
    assert isinstance(both, WeightedSum)
    assert [factor for factor, _ in both.terms] == [1.0, 0.5]
    assert both.needs.rows_per_prompt == 2
    assert both.needs.teacher_hidden
    assert len(make_objective("kl", decision_weight=1.0, kl_to_base=0.5).terms) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective_options": {"dop": {}}}, r"objective='dop': expected one of .*Did you mean 'dpo'\?"),
        ({"objective_options": {"dpo": {"betta": 1}}}, r"objective_options.dpo: option='betta'.*Did you mean 'beta'\?"),
        ({"objective_options": {"dpo": {"beta": 0}}}, "objective_options.dpo.beta=0: expected above 0"),
        ({"objective_options": {"token_js": {"mixture": 1.0}}}, "objective_options.token_js.mixture=1.0: expected"),
        ({"objective_options": {"token_reverse_kl": {"floor": 0.0}}}, "objective_options.token_reverse_kl.floor=0.0"),
        ({"objective_options": {"reinforce": {"reference_kl": -1.0}}}, "objective_options.reinforce.reference_kl=-1.0"),
        (
            {"objective_options": {"gkd": {"divergence": "kl"}}},
            "objective_options.gkd.divergence='kl': expected one of",
        ),
        ({"objective_options": {"gkd": {"on_policy": 1.5}}}, "objective_options.gkd.on_policy=1.5: expected 0 to 1"),
        ({"objective_options": {"ppo": {"clip": 0.0}}}, "objective_options.ppo.clip=0.0: expected above 0"),
        ({"recovery": 1.5}, "recovery=1.5: expected 0 to 1"),
        ({"recovery": 0.5, "objective": "ppo"}, "recovery=0.5: objective='ppo' trains on the student's answers alone"),
        ({"objective": "dpo", "batch_size": 7}, "batch_size=7: expected a multiple of 2, the rows of each prompt"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AlignSettings(**changes)
