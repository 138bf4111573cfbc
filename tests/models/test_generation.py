"""Generation against a loop without any cache, and what an answer must not depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.models import decoding, generation
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.generation import (
    BUCKETS,
    PROMPT_BUCKETS,
    ContextError,
    bucket_length,
    encode_prompts,
    generate,
    pad_tokens,
)
from edgesafe_jax.models.tokenization import ChatTokenizer

PROMPTS = ["hello", "the user?", "", "in 2024", "us<|im_end|>", "é", "hello, the user", "a\nb"]
MAX_TOKENS = 6
BATCH = 8
PROMPT_ADAPTER = SoftPrompt(jax.random.normal(jax.random.key(3), (4, 16)))


@functools.partial(jax.jit, static_argnames="decoder")
def next_logits(decoder, params, tokens, where, adapter):
    hidden = decoder.apply({"params": params}, tokens, where=where, adapter=adapter).hidden
    return decoder.apply({"params": params}, hidden[:, -1], method=Decoder.logits)[0]


def naive_logits(model, ids, adapter=None):
    """Logits behind a sequence, computed anew, padded on the left to one length."""
    tokens, where = np.zeros((1, 160), np.int32), np.zeros((1, 160), bool)
    tokens[0, -len(ids) :], where[0, -len(ids) :] = ids, True
    return np.asarray(next_logits(model.decoder, model.params, tokens, where, adapter))


def prompt_ids(model, prompt):
    parts = model.tokenizer.chat_parts
    return [*parts.head, *model.tokenizer.encode(prompt.strip()), *parts.tail]


def naive_answer(model, prompt, adapter=None, begin=()):
    ids = prompt_ids(model, prompt)
    answer = list(begin[:MAX_TOKENS])
    while len(answer) < MAX_TOKENS:
        answer.append(int(np.argmax(naive_logits(model, ids + answer, adapter))))
        if answer[-1] in model.tokenizer.eos_ids:
            return answer[:-1]
    return answer


def with_eos(model, *eos_ids, suppressed_ids=()):
    """The model with other tokens as the end of its answers, and some that are never generated."""
    old = model.tokenizer
    fields = {"chat_template": old.chat_template, "eos_ids": eos_ids, "pad_id": old.pad_id}
    tokenizer = ChatTokenizer(old._tokenizer, **fields, suppressed_ids=suppressed_ids)
    return dataclasses.replace(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def greedy(tiny_model):
    return generate(tiny_model, PROMPTS, max_tokens=MAX_TOKENS, batch_size=BATCH)


@pytest.mark.parametrize("adapter", [None, PROMPT_ADAPTER], ids=["base", "adapter"])
def test_greedy_equals_a_loop_without_cache(tiny_model, adapter, greedy):
    answers = generate(tiny_model, PROMPTS, max_tokens=MAX_TOKENS, batch_size=BATCH, adapter=adapter)
    expected = [naive_answer(tiny_model, prompt, adapter) for prompt in PROMPTS]
    assert answers.tokens == expected
    assert len({tuple(tokens) for tokens in expected}) >= 6  # the prompts matter
    assert (answers.tokens != greedy.tokens) == (adapter is not None)  # and so does the adapter
    assert answers.texts == [tiny_model.tokenizer.decode(tokens).strip() for tokens in expected]


def test_suppressed_tokens_are_never_chosen(tiny_model, greedy):
    kept = {int(np.argsort(naive_logits(tiny_model, prompt_ids(tiny_model, prompt)))[-2]) for prompt in PROMPTS[:2]}
    suppressed = {token for row in greedy.tokens for token in row} - kept
    model = with_eos(tiny_model, 2, suppressed_ids=suppressed)
    found = generate(model, PROMPTS, max_tokens=MAX_TOKENS, batch_size=BATCH)
    assert not suppressed & {token for row in found.tokens for token in row}
    for prompt, row in zip(PROMPTS, found.tokens, strict=True):
        logits = naive_logits(model, prompt_ids(model, prompt)).copy()
        logits[list(suppressed)] = -np.inf
        assert row[:1] == [int(np.argmax(logits))]
    assert model.tokenizer.with_variables({"a": 1}).suppressed_ids == tuple(sorted(suppressed))


def test_answers_do_not_depend_on_batches_neighbours_or_surrounding_spaces(tiny_model, greedy):
    run = functools.partial(generate, tiny_model, max_tokens=MAX_TOKENS)
    order = [3, 0, 7, 4, 2, 6, 1, 5]
    answers = run([f"  {PROMPTS[i]}\n" for i in order], batch_size=4)
    assert answers.tokens == [greedy.tokens[i] for i in order]
    # Longer prompts beside them move all rows to another bucket.
    longer = ["in 2024 a longer prompt, " * 3] * 4
    assert run([*longer, *PROMPTS[:4]], batch_size=BATCH).tokens[4:] == greedy.tokens[:4]


def test_sampling_depends_on_key_and_row_alone(tiny_model, greedy):
    sample = functools.partial(
        generate, tiny_model, max_tokens=MAX_TOKENS, temperature=1.0, key=jax.random.key(5), keep_hidden=True
    )
    prompts = [*PROMPTS[:5], "hello", "hello", "hello"]
    first = sample(prompts, batch_size=BATCH)
    assert sample(prompts, batch_size=4).tokens == first.tokens
    assert sample([*prompts[:4], *["us"] * 4], batch_size=BATCH).tokens[:4] == first.tokens[:4]
    # Rows with one prompt draw apart from one another, and another key draws anew.
    assert len({tuple(first.tokens[i]) for i in (0, 5, 6, 7)}) == 4
    assert sample(prompts, batch_size=BATCH, key=jax.random.key(6)).tokens != first.tokens
    assert first.tokens[:5] != greedy.tokens[:5]
    # The hidden states that were kept are those that each token was drawn from.
    assert greedy.hidden is None
    assert first.hidden is not None
    assert first.hidden.shape == (8, MAX_TOKENS, 16)
    logits = tiny_model.decoder.apply({"params": tiny_model.params}, jnp.asarray(first.hidden), method=Decoder.logits)
    parts = tiny_model.tokenizer.chat_parts
    for row, prompt in enumerate(prompts[:5]):
        ids = [*parts.head, *tiny_model.tokenizer.encode(prompt), *parts.tail]
        for step in range(len(first.tokens[row])):
            expected = naive_logits(tiny_model, ids + first.tokens[row][:step])
            np.testing.assert_allclose(logits[row, step], expected, rtol=1e-3, atol=1e-3)


def test_a_low_temperature_is_greedy(tiny_model, greedy):
    run = functools.partial(generate, tiny_model, PROMPTS, max_tokens=MAX_TOKENS, batch_size=BATCH)
    assert run(temperature=1e-4, key=jax.random.key(0)).tokens == greedy.tokens


def test_sampled_tokens_follow_the_softmax(tiny_model):
    num, temperature = 4000, 1.5
    answers = generate(
        tiny_model, ["hello"] * num, max_tokens=1, temperature=temperature, key=jax.random.key(1), batch_size=num
    )
    counts = np.bincount([tokens[0] if tokens else 2 for tokens in answers.tokens], minlength=272)
    parts = tiny_model.tokenizer.chat_parts
    ids = [*parts.head, *tiny_model.tokenizer.encode("hello"), *parts.tail]
    probs = np.asarray(jax.nn.softmax(naive_logits(tiny_model, ids) / temperature), np.float64)
    order = np.argsort(-probs)
    common = order[:20]
    expected = np.append(probs[common], probs[order[20:]].sum()) * num
    observed = np.append(counts[common], counts[order[20:]].sum())
    # Chi-square with 20 degrees of freedom; 45.3 is its 99.9th percentile.
    assert np.sum((observed - expected) ** 2 / expected) < 45.3
    # The test would notice another temperature.
    other = np.asarray(jax.nn.softmax(naive_logits(tiny_model, ids)), np.float64)
    other = np.append(other[common], other[order[20:]].sum()) * num
    assert np.sum((observed - other) ** 2 / other) > 100


def test_answers_end_at_any_end_token(tiny_model, greedy):
    """At the first position, in the middle, at the last; the other rows go on."""
    ends = {greedy.tokens[6][0], greedy.tokens[4][-1]}
    answers = generate(with_eos(tiny_model, *ends), PROMPTS, max_tokens=MAX_TOKENS, batch_size=BATCH)
    lengths = []
    for tokens, text, finished, whole in zip(
        answers.tokens, answers.texts, answers.finished, greedy.tokens, strict=True
    ):
        lengths.append(next((i for i, token in enumerate(whole) if token in ends), MAX_TOKENS))
        assert tokens == whole[: lengths[-1]]
        assert text == tiny_model.tokenizer.decode(tokens).strip()
        assert finished == (lengths[-1] < MAX_TOKENS)
    assert {0, MAX_TOKENS - 2, MAX_TOKENS - 1, MAX_TOKENS} <= set(lengths)
    assert not any(greedy.finished)


def test_prefilled_answers_begin_as_told_and_continue_by_themselves(tiny_model):
    prefills = ["the", "Sure", "", "z" * MAX_TOKENS, "<|im_", " ", "é", ""]
    answers = generate(
        tiny_model, PROMPTS, max_tokens=MAX_TOKENS, prefills=prefills, adapter=PROMPT_ADAPTER, batch_size=BATCH
    )
    begins = tiny_model.tokenizer.encode_batch(prefills)
    assert {0, 2, 6} < {min(len(begin), MAX_TOKENS) for begin in begins}
    expected = [naive_answer(tiny_model, p, PROMPT_ADAPTER, b) for p, b in zip(PROMPTS, begins, strict=True)]
    assert answers.tokens == expected
    assert answers.texts[0].startswith("the")
    with pytest.raises(ValueError, match=f"A prefill has {MAX_TOKENS + 1} tokens, more than max_tokens={MAX_TOKENS}"):
        generate(tiny_model, ["us"], max_tokens=MAX_TOKENS, prefills=["z" * (MAX_TOKENS + 1)])


def test_empty_prefills_change_nothing(tiny_model, greedy):
    answers = generate(tiny_model, PROMPTS, max_tokens=MAX_TOKENS, prefills=[""] * 8, batch_size=BATCH)
    assert answers == greedy


def test_one_compilation_serves_a_bucket(tiny_model):
    """Texts of like lengths and last batches that are not full share programs; other answers read prompts alike."""
    programs = (decoding.read, decoding.begin, decoding.decode)
    for program in programs:
        program.clear_cache()  # other tests compile the same
    sizes = lambda: [program._cache_size() for program in programs]  # noqa: E731
    generate(tiny_model, ["hello"] * 4, max_tokens=3, batch_size=4)
    before = sizes()
    generate(tiny_model, ["hello", "us", "in"], max_tokens=3, batch_size=4)
    generate(tiny_model, ["", "er", "in", "user", "he", "w", "sy"], max_tokens=3, batch_size=4)
    assert sizes() == before
    generate(tiny_model, ["a longer prompt for the next bucket"] * 4, max_tokens=3, batch_size=4)
    assert sizes() == [number + 1 for number in before]
    generate(tiny_model, ["hello"] * 4, max_tokens=5, batch_size=4)
    assert sizes() == [before[0] + 1, before[1] + 2, before[2] + 2]


def test_finished_slots_are_filled_again_and_the_last_rows_go_on_alone(tiny_model, greedy, monkeypatch):
    """More rows than slots, of which some end at once: every row's answer is that of its own; in a cache of pieces."""
    monkeypatch.setattr(decoding, "PIECE", 1)
    monkeypatch.setattr(decoding, "LEAST_PIECE", 4)
    decoding.empty_slots.clear_cache()
    model = with_eos(tiny_model, greedy.tokens[6][0], greedy.tokens[0][1])
    prompts, seen = [*PROMPTS] * 6, []
    with_few = generate(model, prompts, max_tokens=MAX_TOKENS, batch_size=16, on_batch=lambda *done: seen.append(done))
    alone = generate(model, PROMPTS, max_tokens=MAX_TOKENS, batch_size=BATCH)
    assert with_few.tokens == alone.tokens * 6
    assert {len(tokens) for tokens in alone.tokens} >= {0, 1, MAX_TOKENS}
    # Answers are counted as they are finished, in more steps than there are batches.
    assert [total for _, total in seen] == [48] * len(seen)
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]
    assert len(seen) > 4
    assert seen[-1] == (48, 48)
    # Where all end at once, no rows go on.
    monkeypatch.setattr(generation, "take", None)
    assert generate(model, ["hello"] * 16, max_tokens=MAX_TOKENS, batch_size=16).tokens == [alone.tokens[0]] * 16


def test_a_failure_in_a_stream_ends_the_generation(tiny_model, monkeypatch):
    monkeypatch.setattr(generation, "fill", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        generate(tiny_model, PROMPTS, max_tokens=3, batch_size=4)


def test_progress_is_reported(tiny_model):
    seen = []
    generate(tiny_model, PROMPTS, max_tokens=MAX_TOKENS, batch_size=4, on_batch=lambda *done: seen.append(done))
    assert seen == [(4, 8), (8, 8)]


def test_bad_arguments(tiny_model):
    run = functools.partial(generate, tiny_model)
    with pytest.raises(ValueError, match="prompts is empty"):
        run([], max_tokens=3)
    with pytest.raises(ValueError, match="max_tokens=0"):
        run(["a"], max_tokens=0)
    with pytest.raises(ValueError, match=r"temperature=-1\.0"):
        run(["a"], max_tokens=3, temperature=-1.0)
    with pytest.raises(ValueError, match="needs key="):
        run(["a"], max_tokens=3, temperature=1.0)
    with pytest.raises(ValueError, match="1 prefills for 2 prompts"):
        run(["a", "b"], max_tokens=3, prefills=["x"])


def test_prompts_beyond_the_context_are_named_before_anything_runs(tiny_model, monkeypatch):
    monkeypatch.setattr(generation, "fill", lambda *_, **__: pytest.fail("generation was started"))
    head, tail = tiny_model.tokenizer.chat_parts.head, tiny_model.tokenizer.chat_parts.tail
    room = tiny_model.config.max_context - len(head) - len(tail)
    fits = "." * (room - 10)
    assert len(encode_prompts(tiny_model, [fits], max_tokens=10)[0]) == room - 10 + len(tail)
    with pytest.raises(ContextError, match=r"Prompt 1 \('\.{40}'\.\.\.\) needs 502 positions and its answer 11"):
        generate(tiny_model, ["a", fits], max_tokens=11)
    with pytest.raises(ContextError, match=r"Prompt 1 .* the context of tiny has 512"):
        generate(tiny_model, ["a", fits], max_tokens=10, adapter=PROMPT_ADAPTER)
    # The message names the model's own context, whatever the buckets are.
    config = dataclasses.replace(tiny_model.config, max_context=2 * BUCKETS[-1])
    long = dataclasses.replace(tiny_model, config=config)
    assert len(encode_prompts(long, ["." * BUCKETS[-1]], max_tokens=1)[0]) == BUCKETS[-1] + len(tail)
    with pytest.raises(ContextError, match=rf"Prompt 0 .* has {2 * BUCKETS[-1]}"):
        generate(long, ["." * 2 * BUCKETS[-1]], max_tokens=1)


def test_pieces_of_a_cache_divide_it(monkeypatch):
    assert decoding.piece_length(32, 128) == 32
    assert decoding.piece_length(1, 128) == 128
    assert decoding.piece_length(1000, 128) == decoding.LEAST_PIECE
    assert decoding.piece_length(32, 52) == 52  # No multiple of a piece: all at once.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert decoding.piece_length(32, 128) == 128


def test_bucket_length_is_the_smallest_that_holds_it():
    for length in range(BUCKETS[-1] + 1):
        assert bucket_length(length) == min(bucket for bucket in BUCKETS if bucket >= length)
    assert [bucket_length(length, (3, 7)) for length in (0, 3, 4, 7)] == [3, 3, 7, 7]
    assert PROMPT_BUCKETS[-1] == BUCKETS[-1]
    assert [bucket_length(length) for length in (8193, 16384, 16385)] == [16384, 16384, 24576]


def test_pad_tokens():
    tokens, where = pad_tokens([[1, 2, 3], [], [4]], pad_id=9, length=4)
    np.testing.assert_array_equal(tokens, [[1, 2, 3, 9], [9] * 4, [4, 9, 9, 9]])
    np.testing.assert_array_equal(where, tokens != 9)
    assert (tokens.dtype, where.dtype) == (np.int32, bool)
    assert pad_tokens([[1] * 9, [2]], pad_id=0)[0].shape == (2, 16)
    assert pad_tokens([], pad_id=0)[0].shape == (0, 8)


@pytest.mark.assets
def test_smollm2_answers_a_question(smollm2):
    answers = generate(smollm2, ["What is the capital of France?"], max_tokens=16)
    assert "Paris" in answers.texts[0]
    ids = smollm2.tokenizer.chat_parts.head, smollm2.tokenizer.encode("What is the capital of France?")
    tokens = jnp.array([[*ids[0], *ids[1], *smollm2.tokenizer.chat_parts.tail, *answers.tokens[0]]], jnp.int32)
    hidden = smollm2.decoder.apply({"params": smollm2.params}, tokens).hidden[:, -len(answers.tokens[0]) - 1 :]
    logits = smollm2.decoder.apply({"params": smollm2.params}, hidden, method=Decoder.logits)
    greedy = np.argmax(np.asarray(logits[0]), axis=-1)
    assert greedy[:-1].tolist() == answers.tokens[0]


def test_heads_of_chats_are_kept_with_the_model(tiny_model, monkeypatch):
    """As many as are said; not those of an adapter, whose vectors may change."""
    model, computed = dataclasses.replace(tiny_model), []
    monkeypatch.setattr(
        generation,
        "encode_shared_once",
        lambda decoder, params, adapter, head: computed.append(tuple(head)) or len(computed),
    )
    monkeypatch.setattr(generation, "MOST_HEADS", 2)
    asked = [[1], [1, 2], [1], [3], [1], [1, 2]]
    found = [generation._shared(model, None, head) for head in asked]
    assert computed == [(1,), (1, 2), (3,), (1, 2)]
    assert found == [1, 2, 1, 3, 1, 4]
    assert generation._shared(dataclasses.replace(model), None, [1]) == 5
    assert [generation._shared(model, PROMPT_ADAPTER, [1]) for _ in range(2)] == [6, 7]
