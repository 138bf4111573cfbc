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
from edgesafe_jax.safety import OBJECTIVES, AlignSettings, align
from edgesafe_jax.safety.objectives import BatchSource, Needs, Objective, WeightedSum, make_objective, row_losses
from edgesafe_jax.safety.objectives.rows import prompts_of
from edgesafe_jax.safety.system import SequenceTeacher
from edgesafe_jax.safety.teacher import make_teacher_data, outcome_hidden
from edgesafe_jax.safety.training import make_step
from edgesafe_jax.training import init_state
from tests.safety.rows import ADAPTER, REFUSAL, SAFE_PROB, chosen, naive_log_probs

TINY = AlignSettings(num_steps=24, warmup_steps=1, learning_rate=0.1, clip_norm=1.0, average_from=1.0)
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
        max_tokens=5,
        seed=3,
        needs=Needs(base_hidden=True),
    )


@pytest.fixture(scope="module")
def trained(tiny_model, source):
    """From the name of each objective to its loss at each step; of objectives that sample, the reward."""
    source = dataclasses.replace(source, order=lambda step: np.arange(6), texts=[f"the {t}" for t in source.texts])
    objectives = {name: make_objective(name) for name in OBJECTIVES}
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
            given = dataclasses.replace(source, order=lambda step: np.tile(np.arange(6), 8))
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


def test_sampled_answers_are_drawn_again_with_the_same_bits(tiny_model, tmp_path):
    """A run that is interrupted between two checkpoints against the whole run."""
    prompts = [f"{word} {number}" for number in range(3) for word in ("the user", "hello")]
    settings = AlignSettings(
        objective="reinforce",
        kl_to_base=0.1,
        num_steps=3,
        save_every=2,
        log_every=1,
        warmup_steps=0,
        batch_size=4,
        max_tokens=6,
        num_positions=4,
        learning_rate=0.1,
    )
    align_tiny = functools.partial(align, tiny_model, prompts=prompts, adapter=START, settings=settings)
    whole = align_tiny(guard)
    calls = 0

    def interrupted(prompts, responses):
        nonlocal calls
        calls += 1
        if calls == 4:  # once by the teacher, then at each step
            raise KeyboardInterrupt
        return guard(prompts, responses)

    with pytest.raises(KeyboardInterrupt):
        align_tiny(interrupted, workdir=tmp_path)
    found = align_tiny(guard, workdir=tmp_path)
    chex.assert_trees_all_equal(found.adapter, whole.adapter)
    assert all(0 <= line["reward"] <= 1 for line in found.metrics)


# Rows -----------------------------------------------------------------------------------------------------------------


def values_of(model, objective, batch):
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)

    @jax.jit
    def compute(params, batch):
        hidden = outcome_hidden(model.decoder, params, ADAPTER, head, batch)
        return row_losses(objective, model.decoder, params, hidden, batch)

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
        ({"objective": "dpo", "batch_size": 7}, "batch_size=7: expected a multiple of 2, the rows of each prompt"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AlignSettings(**changes)
