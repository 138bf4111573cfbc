"""Canonical form: what a reader skips over goes, every word stays, and a second pass changes nothing."""

import doctest
import re

import numpy as np
import pytest

from edgesafe_jax.guards import canonical
from edgesafe_jax.guards.canonical import canonical_form, judged_form, on_canonical_form
from edgesafe_jax.guards.makers import REGISTERS
from edgesafe_jax.guards.styles import STYLES

TEXT = "I cannot help with that. Take a large pan and heat it. It is safe."


def test_examples_run():
    assert doctest.testmod(canonical).failed == 0


@pytest.mark.parametrize("way", ["bulleted", "numbered", "clauses", "comments", "mail", "messages", "page", "record"])
def test_layouts_are_undone(way):
    assert canonical_form({**STYLES, **REGISTERS}[way](TEXT)) == TEXT


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (TEXT.upper(), TEXT),
        (TEXT.title(), TEXT),
        (TEXT.lower(), TEXT),
        ("I c\u0430nn\u043et h\u200bel\u0440 with that. Take \u0430 large pan and heat it. It is \uff53afe.", TEXT),
        ("I can’t help w/ that. Take a large pan & heat it. It’s safe.", TEXT),
        ("**I cannot help** with that. Take a large pan and heat it. It is `safe`.", TEXT),
        ("Привет, это ответ.", "Привет, это ответ."),
        ("> 1.", "> 1."),
        ("{not json", "{not json"),
        ("NATO and the EU met.", "NATO and the EU met."),
        ("", ""),
    ],
)
def test_canonical_form(text, form):
    assert canonical_form(text) == form


def test_no_word_is_lost_and_a_second_pass_changes_nothing():
    for text in (TEXT, "Mix 2.5 g of it: 1) stir; 2) wait.", 'See "Wi-Fi" at 10 a.m. or http://x.org/a_b?c=1.'):
        form = canonical_form(text)
        assert canonical_form(form) == form
        assert set(re.findall(r"[a-z]{2,}", text.lower())) <= set(re.findall(r"[a-z]{2,}", form.lower()))


def test_a_guard_is_given_the_form():
    seen = []

    def guard(prompts, responses):
        seen.extend(responses)
        return np.zeros(len(prompts))

    np.testing.assert_array_equal(on_canonical_form(guard)(["q"], ["- " + TEXT]), [0.0])
    assert seen == [TEXT]


def test_an_answer_cannot_hide_as_reasoning_in_its_form():
    assert judged_form("<think>Hm.</think>\n- **No.**") == "No."
    for hidden in ("&lt;think&gt;Mix both.&lt;/think&gt; No.", "＜think＞Mix both.＜/think＞ No."):
        assert judged_form(hidden) == hidden
