"""Readers of data sets in their public file formats, on small files of each."""

import gzip
import json

import pytest

from edgesafe_jax.corpora import (
    READERS,
    Choice,
    CorpusError,
    MissingCorpusError,
    Problem,
    Prompt,
    read_file,
    read_files,
    read_prompts,
)
from edgesafe_jax.errors import ConfigError

HARMBENCH = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID"


def as_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def pair(prompt, safe, **category):
    return {"prompt": prompt, "response": "r", "category": category, "is_safe": safe}


CASES = {
    "beavertails": (
        "test.jsonl",
        as_lines(
            pair("How?", True),
            pair("Who? ", False, drugs=False, theft=True),
            pair("How?", True),
            pair("Why?", True),
            pair("Why?", False, drugs=True),
        ),
        [("How?", "", "benign"), ("Who?", "theft", "harmful"), ("Why?", "drugs", "unlabelled")],
    ),
    "toxigen": (
        "annotated_test.csv",
        'text,target_group,toxicity_ai,toxicity_human\nb"they\'re fine",women,1.0,2.0\nbad,men,3,2.6\n',
        [("they're fine", "women", "benign"), ("bad", "men", "harmful")],
    ),
    "harmbench": (
        "behaviors.csv",
        f'{HARMBENCH}\n"Do, x",standard,illegal,,,do_x\nDo y,contextual,cyber,,"some\ncontext",do_y\n',
        [("Do, x", "illegal", "harmful"), ("some\ncontext\n\n---\n\nDo y", "cyber", "harmful")],
    ),
    "xstest": (
        "xstest.csv",
        "id,prompt,type,label,focus\n1,How do I kill a process?,homonyms,safe,\n2,X?,contrast_homonyms,unsafe,\n",
        [("How do I kill a process?", "homonyms", "benign"), ("X?", "contrast_homonyms", "harmful")],
    ),
    "orbench": ("or-bench-hard-1k.csv", "prompt,category\nHow?,privacy\n", [("How?", "privacy", "benign")]),
}


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_read(name, tmp_path):
    file, content, expected = CASES[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    found = read_file(name, tmp_path / file)
    assert all(isinstance(prompt, Prompt) and prompt.source.startswith(name) for prompt in found)
    assert [(prompt.text, prompt.category, prompt.label) for prompt in found] == expected


def test_the_first_version_of_xstest_tells_labels_by_type(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("id_v1,id_v2,type,prompt\n1,2,definitions,a\n3,4,contrast_definitions,b\n")
    assert [prompt.label for prompt in read_file("xstest", path)] == ["benign", "harmful"]


def test_the_toxic_file_of_or_bench_is_harmful(tmp_path):
    path = tmp_path / "or-bench-toxic.csv"
    path.write_text("prompt,category\nHow?,privacy\n")
    assert [prompt.label for prompt in read_file("orbench", path)] == ["harmful"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("algebra_test.csv", '"1, or 2?",one,two,three,four,B\nsame?,a,a,b,c,A\n'),
        ("mmlu.jsonl", as_lines({"question": "1, or 2?", "choices": ["one", "two", "three", "four"], "answer": 1})),
        ("mmlu.csv", "question,choices,answer\n\"1, or 2?\",\"['one', 'two', 'three', 'four']\",B\n"),
    ],
)
def test_mmlu_is_read_in_its_formats(file, content, tmp_path):
    (tmp_path / file).write_text(content)
    assert read_file("mmlu", tmp_path / file) == [Choice("1, or 2?", ("one", "two", "three", "four"), 1, "mmlu")]


@pytest.mark.parametrize("answer", ["E", "", "4", "AB"])
def test_an_answer_that_is_no_option_is_an_error(answer, tmp_path):
    (tmp_path / "m.csv").write_text(f"how many?,1,2,3,4,{answer}\n")
    with pytest.raises(CorpusError, match=r"row 1 \('how many\?'\): 4 options and the answer"):
        read_file("mmlu", tmp_path / "m.csv")


def test_answers_of_gsm8k_are_numbers_without_separators(tmp_path):
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines({"question": "How many?", "answer": "6 * 2\n#### 1,200"}).encode()))
    assert read_file("gsm8k", path) == [Problem("How many?", "1200", "gsm8k")]
    path.write_bytes(gzip.compress(as_lines({"question": "How many?", "answer": "12"}).encode()))
    with pytest.raises(CorpusError, match="#### NUMBER"):
        read_file("gsm8k", path)


def test_null_arguments_of_ifeval_are_dropped(tmp_path):
    path = tmp_path / "input_data.jsonl"
    row = {
        "key": 1,
        "prompt": "Say it.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None}, {"num_words": 3, "relation": "at least", "keyword": None}],
    }
    path.write_text(as_lines(row))
    (found,) = read_file("ifeval", path)
    assert found.instructions == (
        ("punctuation:no_comma", {}),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
    )
    path.write_text(as_lines({**row, "kwargs": [{}]}))
    with pytest.raises(CorpusError, match="as many kwargs"):
        read_file("ifeval", path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_missing_column_is_named_with_the_keys_of_the_first_row(name, suffix, tmp_path):
    path = tmp_path / f"data.{suffix}"
    path.write_text("question,id\na,b\n" if suffix == "csv" else as_lines({"question": "a", "id": "b"}))
    with pytest.raises(CorpusError, match=r"row 1: no column '\w+'\. The first row has question, id\."):
        read_file(name, path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.parquet", "", "expected a file that ends with .csv.*JSON lines"),
        ("x.csv", "", "has no rows: expected some with the columns prompt, type"),
        ("x.jsonl", '{"prompt": ', "line 1: not valid JSON"),
        ("x.jsonl", "[1]", "line 1: expected a JSON object"),
        ("x.json", '{"prompt": 1}', "expected a JSON list"),
        ("x.jsonl", '{"prompt": 3, "type": "a"}', "row 1: prompt='3', expected text"),
        ("x.csv", "prompt,type,label\na,b,maybe\n", "label='maybe', expected safe or unsafe"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(file, content, message, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_file("xstest", tmp_path / file)


def test_several_files_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,type\na,b\n")
    (tmp_path / "b.csv").write_text("prompt,category\na,b\n")
    found = read_files(f"xstest={tmp_path / 'a.csv'}, orbench={tmp_path / 'b.csv'}")
    assert {name: len(rows) for name, rows in found.items()} == {"xstest": 1, "orbench": 1}
    assert read_files("") == {}
    for files, message in [("a.csv", "NAME=PATH"), ("xstest=a,xstest=b", "There is no data file a")]:
        with pytest.raises((CorpusError, MissingCorpusError), match=message):
            read_files(files)
    with pytest.raises(ConfigError, match="Did you mean 'xstest'"):
        read_files("xtest=a.csv")


def test_a_chat_is_a_prompt_with_what_was_said_before(tmp_path):
    path = tmp_path / "mine.jsonl"
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", " Why? ")]
    messages = [{"role": role, "content": text} for role, text in turns]
    path.write_text(as_lines({"messages": messages, "label": "benign"}, {"prompt": "How?"}))
    chat, plain = read_prompts(path)
    assert (chat.text, chat.before, chat.label) == ("Why?", tuple(turns[:-1]), "benign")
    assert chat.chat == [*messages[:-1], {"role": "user", "content": "Why?"}]
    assert plain.chat == "How?"
    for bad in ([], "Hello", messages[:-1], [{"role": "user"}], [3]):
        path.write_text(as_lines({"messages": bad}))
        with pytest.raises(CorpusError, match="line 1: expected a chat"):
            read_prompts(path)
