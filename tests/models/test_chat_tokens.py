"""Chats encoded as a whole: the tokens of transformers' `apply_chat_template`, family by family."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from edgesafe_jax.models.templates import TokenizerError, render_template
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.models.tokenizer_files import tokenizer_from_directory, tokenizer_from_gguf
from tests.models.test_tokenization import gguf_metadata
from tests.tiny import CHATML, byte_pair_vocabulary, make_tiny_tokenizer

INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
WORDS = ["hello", "the", "user", "Sure", "is", "it"]
TEXTS = ["hello", "the user", "é ü", "2+2=?", "日本", "a\nb", "", "'s it?", "Sure, hello!"]


def word_pieces(specials, space="▁"):
    """A byte-pair vocabulary with bytes to fall back on, whose merges spell a few words with a space in front."""
    merges, tokens = [], [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [space, *map(chr, range(33, 127))]
    for word in [*(space + word for word in WORDS), *WORDS]:
        left = word[0]
        for letter in word[1:]:
            if left + letter not in tokens:
                merges.append((left, letter))
                tokens.append(left + letter)
            left += letter
    vocab = {token: i for i, token in enumerate(tokens)}
    return models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=specials[0], fuse_unk=True)


def metaspace(scheme, specials=("<unk>", "<s>", "</s>")):
    tokenizer = tokenizers.Tokenizer(word_pieces(specials))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in specials])
    return tokenizer


def prepended(specials=("<unk>", "<s>", "</s>")):
    tokenizer = tokenizers.Tokenizer(word_pieces(specials))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in specials])
    return tokenizer


def gemma():
    specials = ("<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = tokenizers.Tokenizer(word_pieces(specials))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in specials])
    return tokenizer


def byte_level(added=(), **flags):
    tokens, merges = byte_pair_vocabulary()
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges])
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False, **flags) for t in (*tokens[:3], *added)]
    )
    return tokenizer


def unigram(specials=("<unk>", "<s>", "</s>")):
    pieces = [(piece, 0.0) for piece in specials]
    pieces += [("▁" + word, -2.0) for word in WORDS] + [("▁", -3.0), *((chr(i), -5.0) for i in range(33, 127))]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in specials])
    return tokenizer


def words():
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *WORDS]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    return tokenizer


HEADER_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "mistral": (lambda: metaspace("first"), INST, "<s>", "</s>"),
    "mistral_control": (
        lambda: metaspace("first", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")), INST, "<s>", "</s>"
    ),
    "metaspace_always": (lambda: metaspace("always"), INST, "<s>", "</s>"),
    "llama2": (prepended, INST, "<s>", "</s>"),
    "unigram": (unigram, INST, "<s>", "</s>"),
    "word_level": (words, INST, "<s>", "</s>"),
    "llama3": (lambda: byte_level(HEADER_TOKENS), HEADERS, "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2": (byte_level, CHATML, "", "<|im_end|>"),
    "swallowed_spaces": (lambda: byte_level(rstrip=True, lstrip=True), CHATML, "", "<|im_end|>"),
    "gemma2": (gemma, GEMMA, "<bos>", "<eos>"),
}  # fmt: skip


def both(family, **changes):
    """A family's tokenizer here and in transformers."""
    transformers = pytest.importorskip("transformers")
    make, template, bos, eos = FAMILIES[family]
    tokenizer = make()
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, **({"bos_token": bos} if bos else {})
    )
    theirs.chat_template = template
    ours = ChatTokenizer(
        tokenizer, chat_template=template, eos_ids=[tokenizer.token_to_id(eos)], pad_id=0, bos_token=bos, eos_token=eos,
        **changes,
    )  # fmt: skip
    return ours, theirs


def their_ids(tokenizer, messages, **options):
    found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return list(found)


def user(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_encoded_in_pieces_is_the_chat_encoded_whole(family):
    ours, theirs = both(family)
    rows = ours.encode_prompts(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        whole = their_ids(theirs, user(text), add_generation_prompt=True)
        assert [*ours.chat_parts.head, *row] == whole
    assert ours.chat_parts.head  # what all rows share is not empty


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_prefills_continue_the_chat_as_the_template_writes_it(family):
    ours, theirs = both(family)
    answers = [text for text in TEXTS if text]
    for answer, ids in zip(answers, ours.encode_answers(answers), strict=True):
        whole = their_ids(theirs, [*user("hello"), {"role": "assistant", "content": answer}])
        prompt = [*ours.chat_parts.head, *ours.encode_prompts(["hello"])[0]]
        assert [*prompt, *ids, ours.end_id] == whole[: len(prompt) + len(ids) + 1]


def test_golden_ids():
    ours, _ = both("word_level")
    assert [*ours.chat_parts.head, *ours.encode_prompts(["hello the user"])[0]] == [1, 3, 5, 6, 7, 4]
    ours, _ = both("mistral")
    vocab = json.loads(ours.to_json())["model"]["vocab"]
    spelled = ["<s>", "[", "I", "N", "S", "T", "]", "▁hello", "▁the", "▁", "[", "/", "I", "N", "S", "T", "]"]
    assert [*ours.chat_parts.head, *ours.encode_prompts(["hello the"])[0]] == [vocab[token] for token in spelled]
    assert ours.encode_answers(["hello the"]) == [[vocab["▁hello"], vocab["▁the"]]]
    ours, _ = both("llama2")
    spelled = ["<s>", "▁", "[", "I", "N", "S", "T", "]", "▁hello", "▁", "[", "/", "I", "N", "S", "T", "]"]
    assert [*ours.chat_parts.head, *ours.encode_prompts(["hello"])[0]] == [vocab[token] for token in spelled]


@pytest.mark.parametrize("family", FAMILIES)
def test_control_strings_of_a_user_or_an_answer_are_only_characters(family):
    ours, _ = both(family)
    control = {ours._tokenizer.token_to_id(text) for text in ours.control_strings}
    control -= {ours._tokenizer.token_to_id("<unk>")}  # what a vocabulary of words makes of everything else
    template = sum(token in control for token in [*ours.chat_parts.head, *ours.encode_prompts(["x"])[0]])
    for text in ours.control_strings:
        if text == "<unk>":
            continue
        attack = f"hello{text} {text}\n{text}"
        chat = [*ours.chat_parts.head, *ours.encode_prompts([attack])[0]]
        assert sum(token in control for token in chat) == template
        for ids in (ours.encode(attack), ours.encode_answers([attack])[0]):
            assert not control & set(ids)


def test_the_tokens_of_a_text_are_those_that_hold_its_characters():
    ours, _ = both("mistral")
    [filled] = ours.encode_filled(["<s>[INST] ", " [/INST] ", "</s>"], [["hello", "the é"]])
    vocab = json.loads(ours.to_json())["model"]["vocab"]
    (first, second), ids = filled.spans, filled.ids
    assert ids[slice(*first)] == [vocab["▁hello"]]
    assert ids[slice(*second)] == [vocab["▁the"], vocab["▁"], vocab["<0xC3>"], vocab["<0xA9>"]]
    assert ids[-1] == 2
    [empty] = ours.encode_filled(["<s>[INST] ", " [/INST]"], [[""]])
    assert empty.spans[0][0] == empty.spans[0][1]


# Which token closes a turn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "end"), [("gemma2", 5), ("mistral", 2), ("qwen2", 2), ("llama3", None)])
def test_a_turn_ends_with_the_token_that_the_template_puts_there(family, end):
    ours, _ = both(family)
    end = ours._tokenizer.token_to_id("<|eot_id|>") if end is None else end
    assert ours.end_id == end
    assert ours.end_id in ours.eos_ids


def test_a_directory_with_several_ends(tmp_path):
    (tmp_path / "tokenizer.json").write_text(gemma().to_str(), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<eos>", "bos_token": "<bos>", "chat_template": GEMMA}), encoding="utf-8"
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 4]}', encoding="utf-8")
    tokenizer = tokenizer_from_directory(tmp_path)
    assert (tokenizer.end_id, tokenizer.eos_ids) == (5, (1, 2, 4, 5))


def test_gguf_names_the_ends_of_a_turn_and_of_a_message():
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fields = {"ggml.eot_token_id": 1, "ggml.eom_token_id": 0, "chat_template": template}
    tokenizer = tokenizer_from_gguf(gguf_metadata(**fields))
    assert (tokenizer.eos_ids, tokenizer.end_id) == ((0, 1, 2), 2)


@pytest.mark.parametrize("template", ["", "{{ messages[0]['content'] }}", "{{ raise_exception('one turn only') }}"])
def test_a_template_without_an_end_leaves_the_declared_one(template):
    tokenizer = ChatTokenizer(byte_level(), chat_template=template, eos_ids=[2, 0], pad_id=0, eos_token="<|im_end|>")
    assert (tokenizer.end_id, tokenizer.eos_ids) == (2, (0, 2))


def test_user_defined_gguf_tokens_are_text_as_in_a_directory():
    tokens, _ = byte_pair_vocabulary()
    tokens = [*tokens, "<answer>", "</answer>"]
    types = [3] * 3 + [1] * (len(tokens) - 5) + [4, 4]
    tokenizer = tokenizer_from_gguf(gguf_metadata(**{"ggml.tokens": tokens, "ggml.token_type": types}))
    text = "<answer>hello</answer>"
    assert tokenizer.encode(text)[0] == tokens.index("<answer>")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "<answer>" not in tokenizer.control_strings


# Templates -----------------------------------------------------------------------------------------------------------

THINKING = CHATML + "{% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}"


def test_template_variables_are_part_of_the_tokenizer():
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = THINKING
    quiet = tokenizer.with_variables({"enable_thinking": False})
    assert quiet.render_chat(user("x")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.render_chat(user("x")).endswith("assistant\n")
    assert quiet.hash != tokenizer.hash  # an adapter is bound to the prompts that it was trained on
    assert tokenizer.with_variables(None) is tokenizer
    assert quiet.chat_parts.tail[: len(tokenizer.chat_parts.tail)] == tokenizer.chat_parts.tail
    assert quiet.encode_answers(["hello"]) == [quiet.encode("hello")]
    with pytest.raises(TokenizerError, match="template_variables sets 'messages'"):
        tokenizer.with_variables({"messages": []})


VALUE = {"b": [1, {"é": None}], "a": "<x>"}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}|{% endfor %}",
        "{%- for m in messages -%}{%- generation -%} {{ m['content'] }} {%- endgeneration -%}{%- endfor -%}",
        "{{ value | tojson }}",
        "{{ value | tojson(indent=2) }}",
        "{{ value | tojson(sort_keys=True) }}",
        "{{ value | tojson(indent=1, sort_keys=true, separators=(',', ':')) }}",
        "{{ value | tojson(true) }}",
        "{{ value | tojson(ensure_ascii=false, indent=4) }}",
        "{{ [1, 'é'] | tojson }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% if tools %}t{% endif %}{% if documents is not none %}d{% endif %}{{ messages | length }}",
    ],
)
def test_templates_render_as_in_transformers(template):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level())
    messages = [*user("é"), {"role": "assistant", "content": "x"}]
    expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, value=VALUE)
    variables = {"messages": messages, "add_generation_prompt": False, "value": VALUE}
    assert render_template(template, variables) == expected


@pytest.mark.parametrize(
    "template",
    ["{{ value | tojson }}", "{{ value | tojson(1, 2, 3, 4, 5) }}", "{{ 1 + '1' }}", "{{ raise_exception() }}",
     "{{ ''.join(5) }}", "{% unknown %}", "{% generation %}"],
)  # fmt: skip
def test_what_fails_in_a_template_is_one_error(template):
    with pytest.raises(TokenizerError, match="chat template"):
        render_template(template, {"messages": user("x"), "value": object()})


# Messages ------------------------------------------------------------------------------------------------------------


def test_half_a_surrogate_pair_is_named(tiny_tokenizer):
    calls = [
        lambda: tiny_tokenizer.encode("ab\ud83d"),
        lambda: tiny_tokenizer.encode_batch(["a", "ab\ud83d"]),
        lambda: tiny_tokenizer.encode_prompts(["ab\ud83d"]),
        lambda: tiny_tokenizer.encode_answers(["ab\ud83d"]),
        lambda: tiny_tokenizer.encode("ab\ud83d", control=True),
    ]
    for call in calls:
        with pytest.raises(TokenizerError, match=r"half of a surrogate pair at character 2"):
            call()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("contents", ['{"eos_token_id": 2', "[]"])
def test_a_damaged_settings_file_is_named(tmp_path, name, contents):
    (tmp_path / "tokenizer.json").write_text(make_tiny_tokenizer().to_json(), encoding="utf-8")
    (tmp_path / name).write_text(contents, encoding="utf-8")
    with pytest.raises(TokenizerError, match=rf"{name.replace('.', '[.]')} (is damaged|holds a list)"):
        tokenizer_from_directory(tmp_path)
