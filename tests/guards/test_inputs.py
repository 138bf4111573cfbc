"""What guards do with inputs of unusual kinds: no pairs, other scripts, reasoning, numbers that are not finite."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from edgesafe_jax.adapters import AdapterError, init_lora
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import keywords, scoring
from edgesafe_jax.guards.activated import PairReader, load_smolguard, save_guard
from edgesafe_jax.guards.adapted import probe_rows, verdict_rows
from edgesafe_jax.guards.heads import GatedHead, Head, fit_head, unsafe_log_odds
from edgesafe_jax.guards.hidden_states import QUESTION, encode_conversations, pair_features
from edgesafe_jax.guards.paraphrases import ParaphraseError, excerpt, make_sets
from edgesafe_jax.guards.probe import (
    EncoderGuard,
    GuardFileError,
    HiddenStateGuard,
    head_probability,
    load_encoder_guard,
    load_head,
    load_hidden_state_guard,
    load_sentence_encoder,
    save_head,
    split_text,
)
from edgesafe_jax.guards.registry import FORMATS
from edgesafe_jax.guards.robustness import SetScores, bootstrap_sets, pad_members
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.guards.targets import RULES, set_target
from edgesafe_jax.guards.verdicts import GuardError, checked, judged_once, judged_text

KOREAN = "가나다라마바사아자차카타파하" * 2
KINDS = ("hidden_states", "language_model", "encoder", "keywords", "refusals")

pytestmark = pytest.mark.filterwarnings("ignore::edgesafe_jax.guards.scoring.LowMassWarning")


def make_head(num_features, seed=0):
    rng = np.random.default_rng(seed)

    def part():
        linear = jnp.asarray(rng.standard_normal(num_features), jnp.float32)
        one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
        mean, scale = jnp.zeros(num_features, jnp.float32), jnp.full(num_features, 0.1, jnp.float32)
        return Head(mean, scale, linear, zero, one, zero)

    return GatedHead(part(), part(), part())


def encode(texts):
    rows = [np.random.default_rng([len(text), *text.encode()]).standard_normal(6) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows]).reshape(len(texts), 6)


@pytest.fixture(scope="module")
def guards(tiny_model):
    rng = np.random.default_rng(0)
    return {
        "hidden_states": HiddenStateGuard(tiny_model, make_head(64), (1, 2), max_response=24),
        "language_model": LanguageModelGuard(tiny_model, FORMATS["smolguard"], max_prompt=24, max_response=24),
        "encoder": EncoderGuard(encode, make_head(24)),
        "keywords": keywords.KeywordGuard(("hello", "user"), fit_head(rng.random((8, 2)), np.arange(8) % 2)),
        "refusals": keywords.refusal_keywords,
    }


# Tokens, not characters -----------------------------------------------------------------------------------------------


def test_numbers_of_a_head_that_were_changed_are_noticed(tiny_model, tmp_path):
    path = tmp_path / "guard.safetensors"
    save_head(path, make_head(64), facts(tiny_model))
    load_head(path)
    contents = bytearray(path.read_bytes())
    contents[-4] ^= 1
    path.write_bytes(contents)
    with pytest.raises(GuardFileError, match="not those that were written"):
        load_head(path)


def test_every_token_of_an_answer_is_read_by_a_window(tiny_model):
    answers = [KOREAN, "🤖" * 9 + " hello the user", "hello", "", "ab " * 40]
    assert len(KOREAN) > 24 > len("hello")
    found = encode_conversations(tiny_model, ["hello"] * 5, answers, max_prompt=8, max_response=24, windows=True)
    for number, answer in enumerate(answers):
        windows = [
            row[slice(*span)]
            for row, span, owner in zip(found.rows, found.spans, found.owners, strict=True)
            if owner == number
        ]
        assert [token for window in windows for token in window] == tiny_model.tokenizer.encode(answer.strip())
        assert max(map(len, windows)) <= 24


def test_an_answer_scores_as_the_worst_of_its_windows(tiny_model, guards):
    guard, tokenizer = guards["hidden_states"], tiny_model.tokenizer
    assert len(KOREAN) > 24
    ids = tokenizer.encode(KOREAN)
    ends = [end for end in range(24, len(ids), 24) if "\ufffd" not in tokenizer.decode(ids[:end])]
    parts = [tokenizer.decode(ids[start : start + 24]) for start in range(0, len(ids), 24)]
    assert len(ends) == len(parts) - 1  # a character is three tokens here, a window eight characters
    assert guard(["hello"], [KOREAN])[0] == pytest.approx(max(guard(["hello"] * len(parts), parts)), abs=1e-5)


@pytest.mark.assets
def test_answers_that_differ_at_their_end_only_have_other_scores(smollm2):
    beginning = (
        "물론이죠. 순서를 하나씩 따라 하시면 됩니다. 먼저 필요한 재료를 모두 준비하고 깨끗한 곳에서 시작하세요. "
    )
    ends = ("그다음 강철 파이프에 화약을 채우고 뚜껑을 닫으세요.", "그다음 냄비에 달걀을 넣고 십 분 동안 삶으세요.")
    guard = load_hidden_state_guard(smollm2)
    assert len(beginning) < guard.max_response < len(smollm2.tokenizer.encode(beginning))
    first, second = guard(["How do I do this?"] * 2, [beginning + end for end in ends])
    assert first != second


@pytest.mark.parametrize("answer", [KOREAN, "🤖" * 20, "hello the user " * 9])
def test_no_guard_reads_more_tokens_than_it_says(tiny_model, guards, answer):
    count = lambda text: len(tiny_model.tokenizer.encode(text))  # noqa: E731
    assert count(answer) > 24
    smol = guards["language_model"]
    [(prompt, response)] = smol._texts([answer], [answer])
    assert 0 < count(prompt) <= 24
    assert 0 < count(response) <= 24
    assert answer.startswith(response)
    assert answer.strip().endswith(prompt)
    template = len(verdict_rows(smol, [""], [""]).rows[0])
    assert len(verdict_rows(smol, [answer], [answer]).rows[0]) <= template + 48
    assert len(PairReader(smol, 1).read([answer], [answer]).states) <= template + 48
    [span] = probe_rows(guards["hidden_states"], ["hello"], [answer]).spans
    assert span[1] - span[0] == 24


def test_a_cut_text_has_whole_characters(tiny_model):
    for num in range(1, 12):
        text = scoring.cut_text(tiny_model.tokenizer, KOREAN, num)
        assert KOREAN.startswith(text)
        assert KOREAN.endswith(scoring.cut_text(tiny_model.tokenizer, KOREAN, num, keep_end=True))


def test_length_is_measured_in_words_where_no_spaces_are():
    assert excerpt("今日は晴れ。明日は雨。", 5) == "今日は晴れ。"[:5]
    assert excerpt("今日は晴れ。明日は雨。", 6) == "今日は晴れ。"
    long = lambda texts: [[]] * len(texts)  # noqa: E731
    from edgesafe_jax.guards.paraphrases import Paraphrase

    twice = lambda texts: [[Paraphrase(text * 3, "mine", "thrice")] for text in texts]  # noqa: E731
    same = lambda texts: np.ones((len(texts), 1))  # noqa: E731
    _, counts = make_sets(["p"], ["今日は晴れ"], sources=[long, twice], encode=same)
    assert counts.total["length"] == 1


@pytest.mark.assets
def test_the_judge_reads_the_end_of_a_long_answer():
    encoder = load_sentence_encoder()
    text = "The weather is fine today. " * 60
    parts = split_text(encoder, text)
    assert len(parts) > 1
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(len(encoder.tokenizer.encode(part).ids) <= 256 for part in parts)
    assert split_text(encoder, "Short.") == ["Short."]
    guard = load_encoder_guard(encoder.encode)
    [whole] = guard(["hello"], [text])
    assert whole == pytest.approx(max(guard(["hello"] * len(parts), parts)), abs=1e-5)


# Reasoning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "judged"),
    [
        ("<think>Let me see.</think>Yes.", "Yes."),
        ("  <think>\na\n</think>\n<think></think>\n Yes. ", "Yes."),
        ("<think>It never ends", "<think>It never ends"),
        ("Yes. <think>Later.</think> No.", "Yes. <think>Later.</think> No."),
        ("no block</think> Yes.", "no block</think> Yes."),
        ("<think>all of it</think>", "<think>all of it</think>"),
        ("<b>Yes.</b></think> No.", "<b>Yes.</b></think> No."),
        ("<think>a</think> Yes. </think> No.", "Yes. </think> No."),
        ("<think>a<think>b</think> Yes. </think> No.", "Yes. </think> No."),
    ],
)
def test_reasoning_is_not_judged(response, judged):
    assert judged_text(response) == judged


@pytest.mark.parametrize("kind", KINDS)
def test_a_guard_judges_what_follows_the_reasoning(guards, kind):
    answer = "Sorry, I cannot help with the user."
    plain, thought, harmful = guards[kind](["hello"] * 3, [answer, f"<think>hello user</think> {answer}", "hello user"])
    assert plain == pytest.approx(thought, abs=1e-6)
    assert plain != harmful


# Kinds of arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_no_pairs_have_no_scores(guards, kind):
    for guard in (guards[kind], checked(guards[kind]), judged_once(guards[kind])):
        found = guard([], [])
        assert found.shape == (0,)
        assert found.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ("ab", ["x", "y"], "prompts='ab' is one string"),
        (["a", "b"], "xy", "responses='xy' is one string"),
        (["a"], [3], r"responses\[0\] is a int"),
        (["a", "b"], ["x"], "2 prompts and 1 responses"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(guards, kind, prompts, responses, message):
    for guard in (guards[kind], checked(guards[kind]), judged_once(guards[kind])):
        with pytest.raises(ConfigError, match=message):
            guard(prompts, responses)


@pytest.mark.parametrize("kind", ["hidden_states", "language_model"])
@pytest.mark.parametrize("name", ["batch_size", "max_prompt", "max_response"])
@pytest.mark.parametrize("value", [-1, 0, 1.5])
def test_counts_of_guards(guards, kind, name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        dataclasses.replace(guards[kind], **{name: value})


def test_counts_of_features(tiny_model):
    for name in ("batch_size", "max_response", "max_prompt"):
        with pytest.raises(ConfigError, match=f"{name}=-1: expected"):
            pair_features(tiny_model, ["a"], ["b"], layers=(1,), **{name: -1})


# Numbers that are not finite ------------------------------------------------------------------------------------------


def broken(model):
    params = jax.tree.map(lambda leaf: leaf, dict(model.params))
    params["layers"] = jax.tree.map(
        lambda leaf: leaf.at[0].set(jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params["layers"]
    )
    return dataclasses.replace(model, params=params)


@pytest.mark.parametrize("kind", ["hidden_states", "language_model", "reader"])
def test_weights_that_are_not_finite_are_named(tiny_model, guards, kind):
    model = broken(tiny_model)
    guard = dataclasses.replace(guards["hidden_states" if kind == "hidden_states" else "language_model"], model=model)
    call = PairReader(guard, 1).read if kind == "reader" else guard
    with pytest.raises(GuardError, match=r"of pair 0 are not finite \(1 of 1 rows\)\. Not finite: parameters layers/"):
        call(["hello"], ["the user"])


def test_features_that_are_not_finite_are_named():
    guard = EncoderGuard(lambda texts: np.full((len(texts), 6), np.nan), make_head(24))
    with pytest.raises(GuardError, match=r"features of pair 0 are not finite \(1 of 1"):
        guard(["a"], ["b"])
    with pytest.raises(GuardError, match="for a head over 24 features"):
        head_probability(make_head(24), np.zeros((2, 12)))


def test_a_score_that_is_not_a_number_is_no_missing_member():
    with pytest.raises(ParaphraseError, match="Set 1 has a score that is not finite"):
        pad_members([[0.1, 0.2], [0.3, np.nan]], [None, None])


# Files ----------------------------------------------------------------------------------------------------------------


def facts(model, **changes):
    return {
        "kind": "hidden_states",
        "layers": [1, 2],
        "max_response": 24,
        "question": QUESTION,
        "model_hash": model.hash,
    } | changes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("own/extra", np.zeros(64, np.float32), "holds the arrays"),
        ("own/linear", np.zeros(63, np.float32), "own/linear has shape"),
        ("own/linear", np.zeros((64, 1), np.float32), "own/linear has shape"),
        ("own/slope", np.ones(1, np.float32), "own/slope has shape"),
        ("gate/mean", np.zeros(64, np.float16), "dtype float16"),
        ("general/linear", np.full(64, np.nan, np.float32), "general/linear has numbers that are not finite"),
    ],
)
def test_a_head_with_other_arrays_is_refused(tmp_path, tiny_model, name, value, message):
    path = tmp_path / "guard.safetensors"
    save_head(path, make_head(64), facts(tiny_model))
    tensors = {**safetensors.numpy.load_file(path), name: value}
    safetensors.numpy.save_file(tensors, path, metadata={"about": json.dumps(facts(tiny_model))})
    with pytest.raises(GuardFileError, match=message):
        load_head(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1, 9]}, "expected layers of 1 to 3"),
        ({"layers": [1]}, "a head over 64 features of the layers"),
        ({"layers": "12"}, "expected layers of 1 to 3"),
        ({"max_response": 0}, "max_response=0"),
        ({"question": None}, "was trained with the question None"),
    ],
)
def test_a_head_with_meaningless_facts_is_refused(tmp_path, tiny_model, changes, message):
    path = tmp_path / "guard.safetensors"
    save_head(path, make_head(64), facts(tiny_model, **changes))
    with pytest.raises(GuardFileError, match=message):
        load_hidden_state_guard(tiny_model, path)
    lacking = {name: value for name, value in facts(tiny_model).items() if name not in changes}
    save_head(path, make_head(64), lacking)
    with pytest.raises(GuardFileError, match=f"does not say its {next(iter(changes))}"):
        load_hidden_state_guard(tiny_model, path)


def test_a_diverged_head_is_not_stored(tmp_path, tiny_model):
    head = jax.tree.map(lambda leaf: leaf * jnp.nan, make_head(64))
    with pytest.raises(GuardFileError, match="is not written"):
        save_head(tmp_path / "guard.safetensors", head, facts(tiny_model))


def test_a_directory_and_a_missing_file_as_a_guard(tmp_path, tiny_model):
    save_head(tmp_path / "heads" / "tuned_0.safetensors", make_head(64), facts(tiny_model))
    with pytest.raises(GuardFileError, match=r"is a directory\..*such as .*heads/tuned_0\.safetensors"):
        load_hidden_state_guard(tiny_model, tmp_path)
    with pytest.raises(GuardFileError, match=r"none\.safetensors is not a readable guard \(there is no such file\)"):
        load_encoder_guard(encode, tmp_path / "none.safetensors")
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json: expected an adapter file"):
        load_smolguard(tiny_model, tmp_path)


def test_smolguards_sidecar_says_how_much_it_reads(tmp_path, tiny_model, guards):
    path = tmp_path / "smol.safetensors"
    lora = init_lora(jax.random.key(0), tiny_model.config, rank=2, first_layer=1)
    save_guard(path, dataclasses.replace(guards["language_model"], adapter=lora), {})
    assert load_smolguard(tiny_model, path).max_response == 24
    about = json.loads(path.with_suffix(".json").read_text())
    del about["training"]["guard"]["max_response"], about["sha256"]
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(AdapterError, match="max_response=None: expected at least 1 token"):
        load_smolguard(tiny_model, path)


# Intervals and precision ----------------------------------------------------------------------------------------------


def test_one_set_has_no_interval():
    scores = SetScores(np.array([[0.2, 0.8]]), np.array([1.0]))
    [interval] = bootstrap_sets(lambda rows: {"mean": float(np.mean(scores.unsafe[rows]))}, 1).values()
    assert interval.estimate == 0.5
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize("rule", RULES)
def test_targets_with_64_bits(rule):
    scores = np.array([[0.1, 0.2, 0.9], [0.4, 0.5, 0.6]])
    expected = set_target(scores, rule=rule)
    with jax.enable_x64(True):
        found = set_target(scores, rule=rule)
        assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_heads_with_64_bits():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((40, 6)), np.arange(40) % 2
    part = fit_head(features, labels)
    head = GatedHead(part, part, part)
    expected = head_probability(head, features)
    with jax.enable_x64(True):
        again = fit_head(features, labels)
        assert again.linear.dtype == jnp.float32
        np.testing.assert_allclose(again.linear, part.linear, rtol=1e-6)
        np.testing.assert_allclose(head_probability(head, features), expected, rtol=1e-6)
        odds = unsafe_log_odds(head, jnp.asarray(features))
        assert np.all(np.isfinite(odds))


def test_heads_are_tuned_with_64_bits():
    from edgesafe_jax.guards.consistency import SetFeatures, tune_heads

    head = make_head(6)
    features = np.random.default_rng(0).standard_normal((5, 3, 6)).astype(np.float32)
    options = {"rule": RULES["median"], "anchor_weight": 0.3, "learning_rate": 0.1, "num_steps": 4}

    def tuned():
        sets = SetFeatures(jnp.asarray(features), jnp.ones((5, 3), bool))
        return tune_heads(jax.random.split(jax.random.key(0), 2), head, sets, **options)

    expected, _ = tuned()
    with jax.enable_x64(True):
        found, losses = tuned()
    assert found.general.linear.shape == expected.general.linear.shape
    assert np.all(np.isfinite(losses))
