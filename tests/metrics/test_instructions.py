"""Verifiers of instructions: for each one responses that follow it and some that do not."""

import doctest

import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.metrics import VERIFIERS, follows, instructions, last_number

TWO = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}
CASES = {
    "keywords:existence": ({"keywords": ["sea", "ship"]}, ["A Ship at sea."], ["A ship.", "Seaship."]),
    "keywords:frequency": (
        {"keyword": "sea", "frequency": 2, "relation": "at least"},
        ["Sea, sea."],
        ["The sea and the seas."],
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["sea"]}, ["Seal."], ["The Sea."]),
    "keywords:letter_frequency": (
        {"letter": "q", "let_frequency": 2, "let_relation": "less than"},
        ["quiet"],
        ["Quick quiet"],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "less than"},
        ["One here. "],
        ["One. Two!", "One\nTwo"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***"],
        ["a\n\nb", "a\n***\n***\nb", "***\n***"],
    ),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, ["One, two three"], ["one two"]),
    "length_constraints:nth_paragraph_first_word": (
        TWO,
        ["First.\n\nthen that."],
        ["Then.\n\nFirst.", "Then", "a\n\nb\n\nc"],
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[name] at [place]"], ["[name] at []"]),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, ["Bye.\nP. S. More."], ["The P.S. is", "PS more"]),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["Here:\n* a\n- b"],
        ["* a", "* a\n* b\n- c"],
    ),
    "detectable_format:constrained_response": ({}, ["My answer is no."], ["No."]),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and **two**"],
        ["**one**", "* one\n* two"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1", "SECTION a SECTION b"],
    ),
    "detectable_format:json_format": ({}, ['{"a": 1}', '```json\n{"a": [1]}\n```'], ["{a: 1}", 'Here: {"a": 1}']),
    "detectable_format:title": ({}, ["<<On ships>>\nText"], ["<< >>", "<On ships>"]),
    "combination:two_responses": ({}, ["a\n******\nb"], ["a", "a******a", "a******b******c"]),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it. "}, ["say it. It."], ["It. Say it."]),
    "startend:end_checker": ({"end_phrase": "Any more?"}, ['Yes. any more? "'], ["Any more? Yes."]),
    "startend:quotation": ({}, ['"All of it." '], ['"', 'Half "of it"']),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["BIG and A ship"],
        ["Big SHIP"],
    ),
    "change_case:english_capital": ({}, ["ALL OF IT, 2!"], ["ALL OF it"]),
    "change_case:english_lowercase": ({}, ["all of it, 2!"], ["All of it"]),
    "punctuation:no_comma": ({}, ["None."], ["One, two"]),
}


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_verifier_tells_following_from_not(name):
    arguments, good, bad = CASES[name]
    assert [text for text in good if not follows(text, name, arguments)] == []
    assert [text for text in bad if follows(text, name, arguments)] == []
    assert not follows(" \n", name, arguments)  # nothing was said


def test_loosely_the_first_and_last_lines_and_asterisks_do_not_count():
    for text in ("Sure, here:\nsmall words", "small words\nYours, Bot", "Sure:\nsmall words\nYours, Bot"):
        assert not follows(text, "change_case:english_lowercase", {})
        assert follows(text, "change_case:english_lowercase", {}, loose=True)
    assert follows('**"quoted"**', "startend:quotation", {}, loose=True)
    assert not follows("Small\nWords\nHere\nToo", "change_case:english_lowercase", {}, loose=True)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("punctuation:no_coma", {}, "Did you mean 'punctuation:no_comma'"),
        ("language:response_language", {"language": "de"}, "expected one of"),
        ("punctuation:no_comma", {"number": 3}, "number"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "about"}, "about"),
    ],
)
def test_an_instruction_that_cannot_be_verified_is_an_error(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        follows("text", name, arguments)


@pytest.mark.parametrize(
    ("text", "number"),
    [("#### 1,200", "1200"), ("$3.50", "3.5"), ("from 2 to -7.", "-7"), ("40%", "40"), ("none", None), ("7.0", "7")],
)
def test_the_last_number(text, number):
    assert last_number(text) == number


def test_the_examples_run():
    assert doctest.testmod(instructions).failed == 0
