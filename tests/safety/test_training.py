"""Alignment as a library: a user's own prompts, guard, adapter and objective on a tiny model."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import LoRA, SoftPrompt, init_lora
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.placements import head_of
from edgesafe_jax.safety import OBJECTIVES, AlignSettings, MiningSettings, Objective, align
from edgesafe_jax.safety.settings import RANGES
from edgesafe_jax.safety.system import SafeSystem
from edgesafe_jax.safety.teacher import TeacherBatch, make_teacher_data
from edgesafe_jax.safety.training import read_margins, write_margins
from edgesafe_jax.training import WorkdirError

PROMPTS = [f"{word} {number}" for number in range(6) for word in ("the user", "hello")]
TINY = AlignSettings(
    num_steps=3, max_tokens=6, num_positions=4, warmup_steps=1, save_every=2, log_every=1, batch_size=4
)


def unsafe_if_the(prompts, responses):
    del responses
    return np.array([0.95 if "the" in prompt else 0.05 for prompt in prompts])


@pytest.fixture(scope="module")
def aligned(tiny_model):
    return align(tiny_model, unsafe_if_the, PROMPTS, settings=TINY)


def test_a_users_own_prompts_and_guard_make_a_soft_prompt(tiny_model, aligned):
    assert isinstance(aligned.adapter, SoftPrompt)
    assert aligned.adapter.num_virtual == 23
    assert [line["step"] for line in aligned.metrics] == [0, 1, 2]
    assert all(np.isfinite(line["loss"]) for line in aligned.metrics)
    generate(tiny_model, ["hello"], max_tokens=4, adapter=aligned.adapter)


def test_chats_are_trained_on_as_texts_are(tiny_model, aligned):
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    found = align(tiny_model, unsafe_if_the, chats, settings=TINY)
    chex.assert_trees_all_equal(found.adapter, aligned.adapter)
    with pytest.raises(ConfigError, match=r"prompts\[0\] does not end with a message of the role 'user'"):
        align(tiny_model, unsafe_if_the, [[{"role": "system", "content": "Be calm."}]], settings=TINY)


def test_rows_of_chats_are_what_the_template_renders(tiny_model):
    tokenizer = tiny_model.tokenizer
    chat = [{"role": "system", "content": "Be calm."}, {"role": "user", "content": "a"}]
    system = SafeSystem(tiny_model, unsafe_if_the)
    drawn = system.sequence_teacher([chat, "the user"], key=jax.random.key(0), max_tokens=3)
    np.testing.assert_allclose(drawn.safe_prob, [0.95, 0.05])
    data = make_teacher_data(tiny_model, drawn, max_tokens=3, with_hidden=False)
    texts = "<|im_start|>system\nBe calm.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert [*data.head, *data.prompts[0]] == tokenizer.encode(texts, control=True)
    assert [*data.head, *data.prompts[1]] == [*tokenizer.chat_parts.head, *tokenizer.encode_prompts(["the user"])[0]]
    for placement in ("after_bos", "system"):
        adapter = SoftPrompt(jnp.zeros((2, 16)), placement)
        with pytest.raises(ConfigError, match="have no place in a chat with a system message of its own"):
            head_of(tiny_model, adapter, data.head)


def test_a_stopped_alignment_continues_to_the_same_bits(tiny_model, aligned, tmp_path, monkeypatch):
    rows = TeacherBatch.__init__
    calls = 0

    def interrupted(self, *args, **kwargs):
        nonlocal calls
        calls += "is_refusal" in kwargs
        if calls == 3:
            raise KeyboardInterrupt
        rows(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherBatch, "__init__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            align(tiny_model, unsafe_if_the, PROMPTS, settings=TINY, workdir=tmp_path)
    found = align(tiny_model, unsafe_if_the, PROMPTS, settings=TINY, workdir=tmp_path)
    chex.assert_trees_all_equal(found.adapter, aligned.adapter)
    with pytest.raises(WorkdirError, match="prompts"):
        align(tiny_model, unsafe_if_the, PROMPTS[:-2], settings=TINY, workdir=tmp_path)


def test_damaged_files_of_the_teacher_are_made_again_with_the_same_bits(tiny_model, tmp_path, caplog):
    align(tiny_model, unsafe_if_the, PROMPTS, settings=TINY, workdir=tmp_path)
    names = ("teacher.json", "teacher_hidden.safetensors")
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).write_bytes(whole[name][:-9] + b"x" * 9)
        align(tiny_model, unsafe_if_the, PROMPTS, settings=TINY, workdir=tmp_path)
        assert f"{name} is damaged (its bytes are not those that were written): it is made again" in caplog.text
        assert {name: (tmp_path / name).read_bytes() for name in names} == whole


def test_damaged_margins_say_how_to_train_anew(tmp_path):
    write_margins(tmp_path, np.array([0.5, -1.0]))
    np.testing.assert_array_equal(read_margins(tmp_path, 2), [0.5, -1.0])
    (tmp_path / "margins.json").write_text('{"margins": [0.5, -1.')
    with pytest.raises(WorkdirError, match=r"margins\.json is damaged .*: delete it and the folder checkpoints"):
        read_margins(tmp_path, 2)


def test_any_adapter_is_trained_on_labelled_prompts(tiny_model):
    labels = ["danger", "short", "danger", "long"] * 3
    settings = dataclasses.replace(TINY, mixture={"refuse": 2, "short": 1, "long": 1})
    with pytest.raises(ConfigError, match=r"mixture names \['long', 'refuse', 'short'\]: expected \['danger', 'long'"):
        align(tiny_model, unsafe_if_the, PROMPTS, labels=labels, settings=settings)
    labels = ["short", "short", "long", "long"] * 3
    start = init_lora(jax.random.key(0), tiny_model.config, rank=2)
    settings = dataclasses.replace(settings, num_steps=1)
    found = align(tiny_model, unsafe_if_the, PROMPTS, labels=labels, adapter=start, settings=settings)
    assert isinstance(found.adapter, LoRA)
    assert all(np.any(factor != 0) for factor in found.adapter.up.values())
    with pytest.raises(ConfigError, match="11 labels for 12 prompts"):
        align(tiny_model, unsafe_if_the, PROMPTS, labels=labels[:-1], settings=settings)


def test_an_objective_that_samples_runs_in_one_process(tiny_model, monkeypatch):
    settings = dataclasses.replace(TINY, objective="reinforce")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="samples from the student: expected one process"):
        align(tiny_model, unsafe_if_the, PROMPTS, settings=settings)


def test_an_objective_reads_only_what_it_declares(tiny_model, monkeypatch):
    class Undeclared(Objective):
        def __call__(self, outcomes):
            from edgesafe_jax import losses

            return jnp.sum(outcomes.divergence(losses.forward_kl), axis=1)

    monkeypatch.setitem(OBJECTIVES, "undeclared", lambda normalization: Undeclared())
    settings = dataclasses.replace(TINY, objective="undeclared", decision_weight=0.0)
    with pytest.raises(ConfigError, match="is not declared"):
        align(tiny_model, unsafe_if_the, PROMPTS, settings=settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "token_lk"}, r"objective='token_lk': expected one of .*Did you mean 'token_kl'\?"),
        ({"normalization": "max"}, "normalization='max': expected one of mean, sum"),
        ({"num_positions": 50}, "num_positions=50: expected at most max_tokens=40"),
        ({"mining": MiningSettings(start=2.0)}, "mining.start=2.0: expected 0 to 1; 1 for no mining"),
        ({"mining": MiningSettings(start=0.5)}, "mining.mixture names .*: expected some group hard_NAME"),
        ({"mixture": {"refuse": 1.0, "answer": 20.0}}, "mixture: Weight of 'refuse' is 1.0 of 21.0"),
        *(({name: -1}, f"{name}=-1: expected") for name in RANGES if "." not in name),
    ],
)
def test_settings_outside_their_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AlignSettings(**changes)
