"""Judges: heads that read an answer alone, the model that they read, and hidden states shared with the teacher."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import fitting, probe
from edgesafe_jax.guards.examples import human_pairs
from edgesafe_jax.guards.heads import GatedHead, Head
from edgesafe_jax.guards.hidden_states import pair_features
from edgesafe_jax.guards.probe import (
    EncoderGuard,
    GuardFileError,
    HiddenStateGuard,
    head_probability,
    keeping,
    load_hidden_state_guard,
    load_judge,
    probe_features,
    save_head,
)
from edgesafe_jax.guards.verdicts import judged_once
from edgesafe_jax.safety.judging import make_judges

LAYERS = (1, 3)
PROMPTS, RESPONSES = ["hello", "us", "hello"], ["the user", "no", "the user"]


def make_head(num_features, seed=0):
    rng = np.random.default_rng(seed)

    def part():
        vectors = (jnp.asarray(rng.standard_normal(num_features), jnp.float32) for _ in range(3))
        return Head(*vectors, *(jnp.asarray(value, jnp.float32) for value in rng.standard_normal(3)))

    return GatedHead(part(), part(), part())


def encode(texts):
    return np.array([np.random.default_rng([*text.encode()]).standard_normal(6) for text in texts]).reshape(-1, 6)


@pytest.fixture
def stored(tiny_model, tmp_path):
    """The file of a judge that reads the mean over the answer."""
    path = tmp_path / "judge.safetensors"
    about = fitting.hidden_state_about(tiny_model, layers=LAYERS, max_response=24, places="answer")
    save_head(path, make_head(len(LAYERS) * 16), {**about, "model": "tiny"})
    return path


def test_a_head_on_the_answer_reads_its_mean_alone(tiny_model, stored):
    guard = load_hidden_state_guard(tiny_model, stored)
    pooled = pair_features(tiny_model, PROMPTS, RESPONSES, layers=LAYERS, max_response=24)
    expected = head_probability(guard.head, probe_features(pooled[:, :, :1]))
    np.testing.assert_allclose(guard(PROMPTS, RESPONSES), expected, atol=1e-5)
    np.testing.assert_array_equal(
        probe_features(pooled, places="answer"), probe_features(pooled)[:, [*range(16), *range(32, 48)]]
    )
    assert guard([], []).shape == (0,)


def test_a_head_of_another_width_than_its_places_is_refused(tiny_model, stored):
    about = fitting.hidden_state_about(tiny_model, layers=LAYERS, max_response=24, places="answer")
    save_head(stored, make_head(2 * len(LAYERS) * 16), about)
    with pytest.raises(GuardFileError, match=r"64 features .*places='answer'.* 32 features \(both\) or 16 features"):
        load_hidden_state_guard(tiny_model, stored)
    with pytest.raises(ConfigError, match=r"places='answers'.*Did you mean 'answer'"):
        HiddenStateGuard(tiny_model, make_head(32), LAYERS, places="answers")


def test_a_judge_reads_the_guarded_model_where_it_was_trained_on_it_and_else_loads_its_own(
    tiny_model, stored, monkeypatch
):
    asked = []
    monkeypatch.setattr(probe, "load_model", lambda spec, matmul_dtype: asked.append(spec) or tiny_model)
    assert load_judge(encode, stored, model=tiny_model).model is tiny_model
    assert asked == []
    other = dataclasses.replace(tiny_model, name="other", hash="f" * 64)
    assert load_judge(encode, stored, model=other).model is tiny_model
    assert load_judge(encode, stored).model is tiny_model
    assert asked == ["tiny", "tiny"]
    monkeypatch.setattr(probe, "load_model", lambda spec, matmul_dtype: other)
    with pytest.raises(GuardFileError, match="not of other"):
        load_judge(encode, stored)


def test_a_judge_may_read_the_sentence_encoder_and_a_teacher_is_none(tiny_model, tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(path, make_head(24), fitting.ENCODER_ABOUT)
    assert isinstance(load_judge(encode, path), EncoderGuard)
    judges = make_judges(lambda x, y: np.zeros(len(x)), encode, ["judge"], model=tiny_model, judge=str(path))
    np.testing.assert_array_equal(
        judges["judge"].verdict(PROMPTS, RESPONSES), load_judge(encode, path)(PROMPTS, RESPONSES)
    )
    save_head(path, make_head(64), fitting.hidden_state_about(tiny_model, layers=LAYERS, max_response=24))
    with pytest.raises(GuardFileError, match="does not say its model"):
        load_judge(encode, path, model=tiny_model)


def test_hidden_states_are_read_once_for_the_teacher_and_a_judge_that_reads_the_same(tiny_model, stored, monkeypatch):
    read, original = [], probe.read_features
    monkeypatch.setattr(probe, "read_features", lambda *args, **options: read.append(1) or original(*args, **options))
    teacher = judged_once(keeping(HiddenStateGuard(tiny_model, make_head(64), LAYERS, max_response=24)))
    judge = make_judges(teacher, encode, ["judge"], model=tiny_model, judge=str(stored))["judge"].verdict
    alone = load_judge(encode, stored, model=tiny_model)
    teacher(PROMPTS, RESPONSES)
    found = judge(PROMPTS, RESPONSES)
    assert len(read) == 1
    np.testing.assert_array_equal(found, alone(PROMPTS, RESPONSES))
    assert len(read) == 2
    longer = alone.beside(HiddenStateGuard(tiny_model, make_head(64), LAYERS, max_response=12, kept={}))
    assert longer.kept is None
    assert alone.beside(len).kept is None
    assert keeping(len) is len


def test_a_recipe_is_cross_validated_on_the_pairs_of_its_role(monkeypatch):
    """The folds are those within the role; a head fitted on the rest scores each of them."""
    seen = []

    def fitted(pairs):
        seen.append([pair.prompt for pair in pairs])
        return make_head(2)

    chosen = fitting.HeadExamples("judge", 1, 1, num_examples=40, num_measured=3, cross_validated=("judge",))
    asked = []

    def answer(prompts, name, temperature):
        asked.append(len(prompts))
        return ["x"] * len(prompts)

    def features(prompts, responses, name):
        return np.array([[len(p), len(r)] for p, r in zip(prompts, responses, strict=True)])

    values = fitting.measure_head_guard(chosen, make_head(2), fitted, features=features, answer=answer)
    prompts = {pair.prompt for pair in human_pairs("judge")[:40]}
    assert len(seen) > 2
    assert all(set(some) < prompts for some in seen)
    assert values["human_cross_validated/num_pairs"] == values["human/num_pairs"] == 40
    assert set(asked) == {3}
