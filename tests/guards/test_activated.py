"""A LoRA that acts at the verdict only: what is read once and reused equals what is computed in one piece."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import init_lora
from edgesafe_jax.adapters.lora import TARGETS
from edgesafe_jax.guards.activated import PairReader, load_states
from edgesafe_jax.guards.registry import FORMATS, Field, GuardFormat, TemplateError
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import ContextError

FORMAT = GuardFormat(fields=(Field("so", unsafe=("h",), safe=("t",)),), question="in the hello?")
PROMPTS = ["hello the user", "in a", "who"]
RESPONSES = ["the user is well", "hello", ""]
FIRST = 1

pytestmark = pytest.mark.filterwarnings("ignore::edgesafe_jax.guards.scoring.LowMassWarning")


@pytest.fixture(scope="module")
def lora(tiny_model):
    """A LoRA above the first layer whose B is random too."""
    start = init_lora(jax.random.key(0), tiny_model.config, rank=2, targets=TARGETS, first_layer=FIRST)
    rng = np.random.default_rng(1)
    return start.replace(
        up={name: jnp.asarray(rng.normal(size=b.shape) * 0.4, jnp.float32) for name, b in start.up.items()}
    )


@functools.partial(jax.jit, static_argnums=0)
def _logits(decoder, params, context, verdict, low_rank):
    read = decoder.apply({"params": params}, context)
    output = decoder.apply({"params": params}, verdict, past=(read.key_values,), low_rank=low_rank)
    return decoder.apply({"params": params}, output.hidden[0, -1], method=Decoder.logits)


def log_odds_of(model, lora, prompt, response):
    """The log-odds by two plain passes, without batches: all but the last token by the bare model, that one adapted."""
    head, middle, tail = FORMAT.render(model.tokenizer)[0]
    row = jnp.array([model.tokenizer.encode(f"{head}{prompt}{middle}{response}{tail}so", control=True)], jnp.int32)
    low_rank = None if lora is None else lora.low_rank()
    logits = _logits(model.decoder, model.params, row[:, :-1], row[:, -1:], low_rank)
    h, t = (model.tokenizer.encode(label)[0] for label in ("h", "t"))
    return float(logits[h] - logits[t])


def test_the_question_is_a_turn_behind_the_pair(tiny_model):
    head, middle, tail = FORMAT.render(tiny_model.tokenizer)[0]
    turns = [("user", "hello"), ("assistant", "the user"), ("user", FORMAT.question)]
    whole = tiny_model.tokenizer.render_chat([{"role": role, "content": text} for role, text in turns])
    assert head + "hello" + middle + "the user" + tail == whole


@pytest.mark.parametrize("adapted", [True, False])
def test_scores_equal_two_plain_passes(tiny_model, lora, adapted):
    adapter = lora if adapted else None
    guard = LanguageModelGuard(tiny_model, FORMAT, adapter=adapter, batch_size=2)
    found = guard.judge(PROMPTS, RESPONSES).log_odds
    expected = [log_odds_of(tiny_model, adapter, x, y) for x, y in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    other = [log_odds_of(tiny_model, None if adapted else lora, x, y) for x, y in zip(PROMPTS, RESPONSES, strict=True)]
    assert np.min(np.abs(found - other)) > 1e-2


def test_scores_of_what_was_read_once_equal_those_of_the_guard(tiny_model, lora):
    guard = LanguageModelGuard(tiny_model, FORMAT, adapter=lora, batch_size=2)
    reader = PairReader(guard, FIRST)
    pairs = reader.read(PROMPTS, RESPONSES)
    verdicts = guard.judge(PROMPTS, RESPONSES)
    rows = [2, 0, 1]
    scores = jax.jit(lambda upper, lora, batch: upper.scores(lora, batch))
    odds, log_mass = scores(reader.upper, lora, pairs.batch(rows))
    # Keys and values are kept in half precision.
    np.testing.assert_allclose(odds, verdicts.log_odds[rows], atol=2e-2)
    np.testing.assert_allclose(np.exp(log_mass), verdicts.captured[rows], rtol=2e-2)
    bare, _ = scores(reader.upper, None, pairs.batch(rows))
    plain = LanguageModelGuard(tiny_model, FORMAT).judge(PROMPTS, RESPONSES)
    np.testing.assert_allclose(bare, plain.log_odds[rows], atol=2e-2)


def test_every_field_of_a_guard_is_read_with_the_adapter(tiny_model, lora):
    fields = (Field("a:", unsafe=("h",), safe=("t",)), Field("so", unsafe=("h",), safe=("t",)))
    found = LanguageModelGuard(tiny_model, dataclasses.replace(FORMAT, fields=fields), adapter=lora).judge(
        ["in"], ["a"]
    )
    bare = LanguageModelGuard(tiny_model, dataclasses.replace(FORMAT, fields=fields)).judge(["in"], ["a"])
    assert abs(found.log_odds[0] - bare.log_odds[0]) > 1e-2


def test_a_lora_that_begins_above_what_was_read(tiny_model, lora):
    later = lora.replace(
        down={name: a[1:] for name, a in lora.down.items()},
        up={name: b[1:] for name, b in lora.up.items()},
        first_layer=FIRST + 1,
    )
    guard = LanguageModelGuard(tiny_model, FORMAT, adapter=later)
    reader = PairReader(guard, FIRST)
    odds, _ = reader.upper.scores(later, reader.read(PROMPTS, RESPONSES).batch([0, 1, 2]))
    np.testing.assert_allclose(odds, guard.judge(PROMPTS, RESPONSES).log_odds, atol=2e-2)


def test_states_come_back_from_disk_if_they_belong(tmp_path, tiny_model):
    pairs = PairReader(LanguageModelGuard(tiny_model, FORMAT), FIRST).read(PROMPTS, RESPONSES)
    assert load_states(tmp_path / "a", "these") is None
    pairs.save(tmp_path / "a", "these")
    found = load_states(tmp_path / "a", "these")
    jax.tree.map(np.testing.assert_array_equal, found.batch([1, 2]), pairs.batch([1, 2]))
    assert len(found) == 3
    assert load_states(tmp_path / "a", "others") is None


def test_what_cannot_be_read(tiny_model, lora):
    plain = GuardFormat(fields=FORMAT.fields, text="us{prompt} A: {response} bad?")
    guard = LanguageModelGuard(tiny_model, plain, adapter=lora)
    with pytest.raises(TemplateError, match="grows together with it"):
        PairReader(guard, 1).read(["er"], ["a"])  # "user" is one token
    with pytest.raises(TemplateError, match="4 policies and 1 fields"):
        _ = PairReader(LanguageModelGuard(tiny_model, FORMATS["shieldgemma"]), 1).upper
    with pytest.raises(ValueError, match="first_layer=3: expected 1 to 2"):
        PairReader(guard, 3)
    with pytest.raises(ContextError, match="Pair 1 needs"):
        PairReader(dataclasses.replace(guard, format=FORMAT), 1).read(["a", "b"], ["c", "d" * 600])
