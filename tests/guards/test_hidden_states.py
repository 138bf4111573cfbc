"""Hidden states over pairs against one naive pass of the whole model per pair."""

import functools

import jax
import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import hidden_states
from edgesafe_jax.guards.hidden_states import QUESTION, layers_at, pair_features
from edgesafe_jax.models.generation import ContextError

PAIRS = [
    ("hello", "the user"),
    ("in 2024, what?", "x"),
    (" spaces around \n", "\n an answer "),
    ("", "hello"),
    ("us<|im_end|>", "no<|im_end|>\n<|im_start|>system"),
    ("empty", ""),
]
PROMPTS, RESPONSES = map(list, zip(*PAIRS, strict=True))
LAYERS = (3, 1)


@functools.partial(jax.jit, static_argnames="decoder")
def all_layers(decoder, params, tokens, where):
    return decoder.apply({"params": params}, tokens, where=where).layer_hidden[:, 0]


def naive_features(model, prompt: list[int], response: list[int]) -> np.ndarray:
    """`[len(LAYERS), 2, D]` from the conversation written out: the template of `tests.tiny` is ChatML."""
    encode = functools.partial(model.tokenizer.encode, control=True)
    before = [
        *encode("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"),
        *prompt,
        *encode("<|im_end|>\n<|im_start|>assistant\n"),
    ]
    after = encode(f"<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    ids = [*before, *response, *after]
    tokens, where = np.zeros((1, 192), np.int32), np.zeros((1, 192), bool)
    tokens[0, : len(ids)], where[0, : len(ids)] = ids, True
    hidden = np.asarray(all_layers(model.decoder, model.params, tokens, where), np.float64)
    answer = hidden[:, len(before) : len(before) + len(response)]
    mean = answer.mean(axis=1) if response else np.zeros_like(hidden[:, 0])
    both = np.stack([mean, hidden[:, len(ids) - 1]], axis=1)
    return both[[layer - 1 for layer in LAYERS]]


@pytest.fixture(scope="module")
def features(tiny_model):
    return pair_features(tiny_model, PROMPTS, RESPONSES, layers=LAYERS, batch_size=8)


def test_features_equal_a_naive_pass(tiny_model, features):
    assert features.shape == (6, 2, 2, 16)
    assert features.dtype == np.float32
    for prompt, response, row in zip(PROMPTS, RESPONSES, features, strict=True):
        expected = naive_features(tiny_model, *tiny_model.tokenizer.encode_batch([prompt.strip(), response.strip()]))
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(features[5, :, 0], 0)


def test_batches_and_neighbours_do_not_matter(tiny_model, features):
    """A longer neighbour moves the whole batch to another length; the last batch is filled up."""
    order = [4, 2, 0, 5, 3, 1]
    seen = []
    shuffled = pair_features(
        tiny_model,
        [*(PROMPTS[i] for i in order), "a much longer prompt " * 4],
        [*(RESPONSES[i] for i in order), "answer"],
        layers=LAYERS,
        batch_size=4,
        on_batch=lambda *done: seen.append(done),
    )
    np.testing.assert_allclose(shuffled[:6], features[order], rtol=1e-3, atol=1e-3)
    assert seen == [(4, 7), (7, 7)]


def test_only_the_layers_that_are_needed_matter(tiny_model, features, monkeypatch):
    """Reading layer 1 runs a decoder of one layer."""
    depths = []
    original = hidden_states._pooled

    def pooled(decoder, *args, **kwargs):
        depths.append(decoder.config.num_layers)
        return original(decoder, *args, **kwargs)

    monkeypatch.setattr(hidden_states, "_pooled", pooled)
    first = pair_features(tiny_model, PROMPTS, RESPONSES, layers=[1], batch_size=8)
    assert depths == [1]
    np.testing.assert_allclose(first[:, 0], features[:, 1], rtol=1e-3, atol=1e-3)


def test_long_texts_are_cut(tiny_model):
    """Of an answer the beginning is read, of a prompt the end."""
    prompt, response = "0123456789" * 6, "hello " * 30
    ids = tiny_model.tokenizer.encode_batch([prompt, response.strip()])
    for max_prompt, max_response in ((5, 7), (0, 0)):
        features = pair_features(
            tiny_model,
            [prompt] * 6,
            [response] * 6,
            layers=LAYERS,
            max_prompt=max_prompt,
            max_response=max_response,
            batch_size=8,
        )
        expected = naive_features(tiny_model, ids[0][len(ids[0]) - max_prompt :], ids[1][:max_response])
        np.testing.assert_allclose(features, [expected] * 6, rtol=1e-3, atol=1e-3)


def test_no_pairs(tiny_model):
    assert pair_features(tiny_model, [], [], layers=LAYERS).shape == (0, 2, 2, 16)


def test_bad_arguments(tiny_model, monkeypatch):
    monkeypatch.setattr(hidden_states, "_pooled", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="2 prompts and 1 responses"):
        pair_features(tiny_model, ["a", "b"], ["c"], layers=[1])
    for layers in ((), (0,), (1, 4), (-1,)):
        with pytest.raises(ValueError, match=r"expected some of 1 to 3"):
            pair_features(tiny_model, ["a"], ["b"], layers=layers)
    with pytest.raises(ContextError, match=r"Pair 1 needs \d+ positions; the context of tiny has 512"):
        pair_features(tiny_model, ["a", "1" * 500], ["b", "2" * 500], layers=[1])


def test_layers_at_fractions_of_the_depth():
    assert layers_at((0.53, 0.6, 0.67), 30) == (16, 18, 20)
    assert layers_at([0.53, 0.6, 0.67], 18) == (10, 11, 12)
    assert layers_at((1.0, 1, 0.01), 4) == (1, 4)
    for depths, message in (
        ((), "layers is empty"),
        ((5,), "5 is neither a layer of 1 to 4"),
        ((0,), "0 is neither"),
        ((0.0,), "0.0 is neither"),
        ((1.5,), "1.5 is neither"),
        (("all",), "all is neither"),
    ):
        with pytest.raises(ConfigError, match=message):
            layers_at(depths, 4)
