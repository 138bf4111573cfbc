"""What every reader of a model refuses, and that all of them run with 64-bit numbers."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.errors import ConfigError, EdgesafeError
from edgesafe_jax.models import (
    NonFiniteError,
    answer_log_probs,
    check_finite,
    first_token_margins,
    generate,
    kl_from_base,
)
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.finite import non_finite_leaves
from edgesafe_jax.models.loading import LanguageModel, with_precision
from edgesafe_jax.models.tokenization import ChatTokenizer

PROMPTS = ["hello", "the user", "in"]
ADAPTER = SoftPrompt(jax.random.normal(jax.random.key(3), (2, 16)))
READERS = {
    "generate": lambda model, texts, adapter, size: generate(
        model, texts, max_tokens=2, adapter=adapter, batch_size=size
    ),
    "generate_sampled": lambda model, texts, adapter, size: generate(
        model, texts, max_tokens=2, adapter=adapter, temperature=1.0, key=jax.random.key(0), batch_size=size
    ),
    "answer_log_probs": lambda model, texts, adapter, size: answer_log_probs(
        model, texts, ["the"] * len(texts), adapter=adapter, batch_size=size
    ),
    "first_token_margins": lambda model, texts, adapter, size: first_token_margins(
        model, texts, 5, adapter=adapter, batch_size=size
    ),
    "kl_from_base": lambda model, texts, adapter, size: kl_from_base(
        model, texts, [[5, 6]] * len(texts), adapter=adapter, batch_size=size
    ),
}
PLACES = ("final_norm/scale", "embedding", "layers/attention_norm/scale", "layers/mlp/up")


def broken(model, place, value=np.nan):
    """The model with one number replaced; in the embedding table it belongs to the token that begins every turn."""

    def change(path, leaf):
        name = "/".join(key.key for key in path)
        return leaf.at[(1,) if place == "embedding" else (0,)].set(value) if name == place else leaf

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(change, model.params))


@pytest.mark.parametrize("reader", READERS)
def test_a_number_that_is_not_finite_is_an_error_that_names_it(tiny_model, reader):
    read = READERS[reader]
    for place in PLACES:
        with pytest.raises(NonFiniteError, match=rf" 0 are not finite \(3 of 3 rows\)\. .*parameter {place}"):
            read(broken(tiny_model, place), PROMPTS, ADAPTER, 4)
    with pytest.raises(NonFiniteError, match="Not finite: adapter embeddings"):
        read(tiny_model, PROMPTS, ADAPTER.replace(embeddings=ADAPTER.embeddings.at[0, 0].set(np.inf)), 4)


def test_the_row_that_is_not_finite_is_named(tiny_model):
    """One NaN in the embedding of a letter that a single prompt has; the answers of the others do not matter."""
    letter = tiny_model.tokenizer.encode("Q")[0]
    table = tiny_model.params["embedding"].at[letter, 3].set(np.nan)
    model = dataclasses.replace(tiny_model, params={**tiny_model.params, "embedding": table})
    with pytest.raises(NonFiniteError, match=r"parameter embedding"):
        generate(model, ["hello", "Q"], max_tokens=2, batch_size=4)
    with pytest.raises(NonFiniteError, match=r"prompt 1 are not finite \(1 of 3 rows\)"):
        check_finite(np.array([[1.0, 2], [np.nan, 1], [0, 0]]), "The numbers of prompt")


def test_nothing_is_finite():
    check_finite(np.zeros((0, 3)), "The numbers of prompt")
    check_finite(np.zeros(0), "The numbers of prompt")


def test_what_overflows_on_the_way_is_said(tiny_model):
    def enlarge(path, leaf):
        return jnp.full_like(leaf, 3e38) if path[-1].key in ("up", "down", "gate") else leaf

    huge = jax.tree_util.tree_map_with_path(enlarge, tiny_model.params)
    with pytest.raises(NonFiniteError, match="are finite: a number overflowed on the way"):
        first_token_margins(dataclasses.replace(tiny_model, params=huge), PROMPTS, 5, adapter=ADAPTER, batch_size=4)


def test_packed_matrices_are_searched_too(tiny_model):
    low = with_precision(broken(tiny_model, "layers/mlp/up"), matmul_dtype=jnp.dtype(jnp.bfloat16))
    assert non_finite_leaves(low.params) == ["layers/mlp/up"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [-1, 0, 1.5, True])
def test_a_count_below_one_is_an_error(tiny_model, reader, size):
    with pytest.raises(ConfigError, match=f"batch_size={size}: expected at least 1"):
        READERS[reader](tiny_model, PROMPTS, ADAPTER, size)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("hello", "prompts='hello' is one string: expected a list of strings"),
        (["hello", 3], r"prompts\[1\] is a int: expected a string"),
        ([{"role": "user", "content": "hello"}], r"prompts\[0\] is a dict: expected a string"),
        (["hello\ud83d"], "half of a surrogate pair"),
    ],
)
def test_something_else_than_texts_is_an_error(tiny_model, reader, texts, message):
    with pytest.raises(EdgesafeError, match=message):
        READERS[reader](tiny_model, texts, ADAPTER, 4)


@pytest.mark.parametrize("reader", ["answer_log_probs", "kl_from_base"])
def test_a_chat_where_texts_belong_is_an_error(tiny_model, reader):
    with pytest.raises(EdgesafeError, match=r"prompts\[0\] is a list: expected a string"):
        READERS[reader](tiny_model, [[{"role": "user", "content": "hello"}]], ADAPTER, 4)


def test_other_arguments_of_the_wrong_kind(tiny_model):
    with pytest.raises(ConfigError, match="prefills='the' is one string"):
        generate(tiny_model, PROMPTS, max_tokens=2, prefills="the")
    with pytest.raises(ConfigError, match="answers='the' is one string"):
        answer_log_probs(tiny_model, PROMPTS, "the")
    with pytest.raises(ConfigError, match="answers are texts: expected token ids"):
        kl_from_base(tiny_model, PROMPTS, ["the"] * 3, adapter=ADAPTER)
    for token in (-1, tiny_model.config.vocab_size):
        with pytest.raises(ConfigError, match=f"token={token}: expected an id"):
            first_token_margins(tiny_model, PROMPTS, token)
    with pytest.raises(ConfigError, match="temperature=nan"):
        generate(tiny_model, PROMPTS, max_tokens=2, temperature=float("nan"))


def test_answers_keep_the_end_that_the_model_gave_them(tiny_model):
    plain = generate(tiny_model, PROMPTS, max_tokens=3, batch_size=4)
    first, second = (plain.tokens[i][1] for i in (0, 1))
    old = tiny_model.tokenizer
    tokenizer = ChatTokenizer(old._tokenizer, chat_template=old.chat_template, eos_ids=[first, second], pad_id=0)
    answers = generate(dataclasses.replace(tiny_model, tokenizer=tokenizer), PROMPTS, max_tokens=3, batch_size=4)
    assert answers.ends is not None
    assert [end is not None for end in answers.ends] == answers.finished
    for tokens, end, whole in zip(answers.tokens, answers.ends, plain.tokens, strict=True):
        assert [*tokens, *([] if end is None else [end])] == whole[: len(tokens) + (end is not None)]
    assert {first, second} & set(answers.ends)


def test_a_chat_that_begins_with_the_text_of_the_user(tiny_model):
    """Nothing is shared by the rows: no control token stands in front of the text."""
    old = tiny_model.tokenizer
    tokenizer = ChatTokenizer(old._tokenizer, chat_template="{{ messages[0]['content'] }}", eos_ids=[2], pad_id=0)
    model = dataclasses.replace(tiny_model, tokenizer=tokenizer)
    assert tokenizer.chat_parts.head == ()
    answers = generate(model, ["hello", "the user in"], max_tokens=3, batch_size=2)
    for prompt, tokens in zip(["hello", "the user in"], answers.tokens, strict=True):
        ids = jnp.array([[*tokenizer.encode(prompt), *tokens]], jnp.int32)
        variables = {"params": model.params}
        logits = model.decoder.apply(variables, model.decoder.apply(variables, ids).hidden, method=Decoder.logits)
        assert np.argmax(logits[0], axis=-1)[-1 - len(tokens) : -1].tolist() == tokens


@functools.cache
def results(x64: bool):
    from tests.tiny import make_tiny_model

    with jax.enable_x64(x64):
        model: LanguageModel = make_tiny_model()
        adapter = SoftPrompt(jnp.asarray(np.asarray(ADAPTER.embeddings)))
        return {name: read(model, PROMPTS, adapter, 4) for name, read in READERS.items()}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_runs_with_64_bit_numbers(reader):
    wide, plain = results(True)[reader], results(False)[reader]
    if reader.startswith("generate"):
        assert wide.tokens == plain.tokens
    else:
        chex.assert_trees_all_close(wide, plain, rtol=1e-4)
