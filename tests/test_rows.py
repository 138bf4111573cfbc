"""A user's own texts from JSON lines."""

import json

import pytest

from edgesafe_jax.corpora import CorpusError, MissingCorpusError
from edgesafe_jax.corpora.rows import read_rows


def write(tmp_path, text):
    file = tmp_path / "mine.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def read(file, **options):
    return [(prompt.chat, prompt.category) for prompt in read_rows(file, **options)]


def test_a_chat_is_a_prompt_as_a_text_is(tmp_path):
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}]
    rows = [{"prompt": chat}, {"prompt": "a"}, {"prompt": chat}, {"prompt": chat[1:]}]
    file = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    assert read(file) == [(chat, "answer"), ("a", "answer")]


def test_texts_and_labels_are_read_in_order_and_a_repeated_text_counts_once(tmp_path):
    file = write(tmp_path, '\ufeff{"q": " a ", "topic": "x"}\n\n{"q": "b"}\n{"q": "a", "topic": "y"}\n')
    assert read(file, column="q", label_column="topic") == [("a", "x"), ("b", "answer")]
    assert read(file, column="q") == [("a", "answer"), ("b", "answer")]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"text": "a", "topic": "x"}', {}, "has no column 'prompt': the keys of its first row are text, topic"),
        ('{"prompt": "a"}', {"label_column": "topic"}, "has no column 'topic': the keys of its first row are prompt"),
        ("{}", {}, "has no column 'prompt': the keys of its first row are none"),
        ('{"prompt": "a"}\n{"text": "b"}', {}, "line 2: prompt is None: expected a text"),
        ('{"prompt": "  "}', {}, "line 1: prompt is '  '"),
        ('{"prompt": "a", "t": 3}', {"label_column": "t"}, "line 1: t is 3: expected a text, or none"),
        ('{"prompt": [{"role": "user"}]}', {}, "line 1, prompt: expected a chat"),
        (
            '{"prompt": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}',
            {},
            "the last the user's",
        ),
        ('{"prompt": [{"role": "user", "content": " "}]}', {}, "line 1: prompt is ' '"),
        ("[1]", {}, "line 1: expected a JSON object, got list"),
        ("{", {}, "line 1: not valid JSON"),
        (b"\xff{}", {}, "line 1: not UTF-8 text"),
        ("\n", {}, "has no rows"),
    ],
)
def test_a_bad_file_is_named_with_the_line(tmp_path, text, options, message):
    with pytest.raises(CorpusError, match=message):
        read_rows(write(tmp_path, text), **options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingCorpusError, match=r"There is no file .*none\.jsonl"):
        read_rows(tmp_path / "none.jsonl")
