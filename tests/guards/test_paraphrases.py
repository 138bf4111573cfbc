import dataclasses
import doctest
import json

import jax
import numpy as np
import pytest

from edgesafe_jax.guards import paraphrases, sources
from edgesafe_jax.guards.paraphrases import (
    Paraphrase,
    ParaphraseError,
    ParaphraseSet,
    excerpt,
    make_sets,
    read_sets,
    select,
    write_sets,
)
from edgesafe_jax.guards.sources import REWRITES, composed_source, llm_source, style_source
from edgesafe_jax.guards.styles import EDITS, STYLES
from edgesafe_jax.models.generation import Generation

TEXT = "Don't worry. It's fine, I think. We won't share it!"


def letters(texts):
    """A stand-in for a sentence encoder: unit vectors of letter counts."""
    counts = np.array([[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float) + 1e-9
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def fixed(*candidates, source="fixed"):
    return lambda texts: [[Paraphrase(c, source, f"style_{i}") for i, c in enumerate(candidates)] for _ in texts]


def test_examples_run():
    assert all(doctest.testmod(module).failed == 0 for module in (paraphrases, sources))


def test_styles_change_the_register_and_keep_the_words():
    made = {p.style: p.text for p in style_source()([TEXT])[0]}
    assert set(made) == set(STYLES)
    assert "Do not worry. It is fine, I think. We will not share it!" in made["formal"]
    assert made["bulleted"].splitlines() == ["- Don't worry.", "- It's fine, I think.", "- We won't share it!"]
    assert made["typed"] == "dont worry. its fine i think. we wont share it"
    assert TEXT in made["quoted"]
    assert TEXT in made["lecture"]
    assert made["casual"].startswith("OK so, don't worry.")
    assert made["numbered"].startswith("1. Don't worry.\n2. It's fine")
    assert made["letter"] == f"Hello,\n\nthank you for your message. {TEXT}\n\nKind regards"
    assert len(set(made.values())) >= len(STYLES) - 2  # this text has no article to leave out and no word to elevate


def test_styles_of_wording():
    text = "I'm sorry, but I cannot help you. If you want to talk to people about the problem, another friend helps."
    made = {p.style: p.text for p in style_source()([text])[0]}
    assert made["elevated"].startswith("I apologise, but I am unable to assist you. In the event that you wish to")
    assert made["chat"].startswith("i'm sorry, but i cannot help u. if u want to talk to ppl about")
    assert "about problem" in made["terse"]
    # The first and the seventh word of five letters and more.
    assert made["slips"] == text.replace("sorry", "sory").replace("friend", "frieend")


def test_as_many_styles_as_wanted_are_drawn_for_each_text():
    texts = [f"Text number {i}." for i in range(40)]
    drawn = [[p.style for p in found] for found in style_source(num_styles=3)(texts)]
    assert {len(set(found)) for found in drawn} == {3}
    assert {style for found in drawn for style in found} == set(STYLES)
    assert drawn[5:6] == [[p.style for p in style_source(num_styles=3)(texts[5:6])[0]]]  # whatever stands beside it
    assert drawn != [[p.style for p in found] for found in style_source(num_styles=3, seed=1)(texts)]
    for num in (0, len(STYLES) + 1):
        with pytest.raises(ValueError, match=f"num_styles={num}: expected 1 to {len(STYLES)}"):
            style_source(num_styles=num)


def test_a_bulleted_list_is_not_given_marks_twice():
    assert STYLES["bulleted"]("1. Wash.\n- Dry.") == "- Wash.\n- Dry."


def test_first_words_keep_their_capital_where_they_need_it():
    assert "I am" in STYLES["hedged"]("I am here.")
    assert "NASA" in STYLES["hedged"]("NASA did it.")
    assert STYLES["hedged"]("The end.").startswith("As far as I know, the end.")


def test_the_filter_drops_by_reason():
    original = "the cat sat on the mat"
    sets, counts = make_sets(
        ["q"],
        [original],
        sources=[
            fixed(
                "The cat sat on the mat!",  # identical but for case and punctuation
                "on the mat the cat sat",  # kept
                "On the mat, the cat sat",  # another spelling of what was kept: kept, its comma is inside
                "on the mat the cat sat.",  # identical to what was kept
                "zzz qqq xxx jjj www kkk",  # another meaning
                "the cat sat on the mat " * 4,  # too long
                "the cat",  # too short
            )
        ],
        encode=letters,
    )
    assert [p.text for p in sets[0].paraphrases] == ["on the mat the cat sat", "On the mat, the cat sat"]
    assert counts.total == {"candidates": 7, "kept": 2, "identical": 2, "meaning": 1, "length": 2}


def test_sets_carry_prompt_label_source_and_style():
    sets, _ = make_sets(
        ["q", "r"],
        ["one two three", "four five six"],
        sources=[fixed("two one three"), fixed("three one two", source="other")],
        encode=lambda texts: np.ones((len(texts), 1)),
        labels=[1.0, 0.0],
    )
    assert [(s.prompt, s.label) for s in sets] == [("q", 1.0), ("r", 0.0)]
    assert [(p.source, p.style) for p in sets[0].paraphrases] == [("fixed", "style_0"), ("other", "style_0")]
    assert sets[0].texts == ["one two three", "two one three", "three one two"]


def test_without_candidates_a_set_has_no_paraphrases():
    sets, counts = make_sets(["q"], ["one two"], sources=[lambda texts: [[] for _ in texts]], encode=letters)
    assert sets[0].paraphrases == ()
    assert counts.total["candidates"] == 0


def test_select_by_source_and_style():
    whole = ParaphraseSet(
        "q", "o", (Paraphrase("a", "style", "formal"), Paraphrase("b", "style", "lecture"), Paraphrase("c", "llm", "x"))
    )

    def texts(**wanted):
        return [p.text for p in select([whole], **wanted)[0].paraphrases]

    assert texts() == ["a", "b", "c"]
    assert texts(sources=("style",)) == ["a", "b"]
    assert texts(styles=("lecture",)) == ["b"]
    assert texts(without_sources=("llm",), without_styles=("lecture",)) == ["a"]
    assert select([whole], sources=())[0] == dataclasses.replace(whole, paraphrases=())


def test_excerpt_takes_whole_sentences_and_at_least_something():
    assert excerpt("A b c. D e. F.", 5) == "A b c. D e."
    assert excerpt("one two three four", 2) == "one two"
    assert excerpt("Line one.\n\nLine two.", 10) == "Line one. Line two."


# The language model as a source ---------------------------------------------------------------------------------------


def test_the_model_is_asked_and_its_preamble_and_unfinished_answers_are_dropped(tiny_model, monkeypatch):
    asked = []

    def answer(model, prompts, **options):
        asked.extend(prompts)
        return Generation([[]] * 2, ['Sure! Here is the rewritten text: "So it is."', "Cut off"], [True, False])

    monkeypatch.setattr(sources, "generate", answer)
    source = llm_source(jax.random.key(0), tiny_model, rewrites={"reworded": "Rewrite this."})
    found = source(["It is so.", "And then"])
    assert asked == ["Rewrite this.\n\nIt is so.", "Rewrite this.\n\nAnd then"]
    assert found == [[Paraphrase("So it is.", "llm", "reworded")], []]


def test_the_real_generation_runs(tiny_model):
    found = llm_source(jax.random.key(0), tiny_model, max_tokens=4, batch_size=2)(["hello", "the user"])
    assert len(found) == 2
    assert all(p.source == "llm" and p.style in REWRITES for each in found for p in each)


# On disk --------------------------------------------------------------------------------------------------------------


def test_sets_come_back_as_they_were(tmp_path):
    sets = [
        ParaphraseSet("q", "o", (Paraphrase("a “b”", "style", "formal"),), 1.0),
        ParaphraseSet("r", "p", (), None),
    ]
    write_sets(tmp_path / "sets.jsonl", sets, {"model": "m", "filter": {"kept": 1}})
    assert read_sets(tmp_path / "sets.jsonl") == sets
    assert json.loads((tmp_path / "sets.json").read_text()) == {"model": "m", "filter": {"kept": 1}}


def test_a_users_file_may_hold_plain_texts(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "q", "original": "o", "paraphrases": ["a", {"text": "b", "source": "me"}]}\n\n')
    assert read_sets(file)[0].paraphrases == (Paraphrase("a", "user", "user"), Paraphrase("b", "me", "user"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no sets"),
        ("not json", "line 1 is no paraphrase set"),
        ('["a"]', "line 1 is no paraphrase set"),
        ('{"prompt": "q", "original": "o"}', "KeyError: 'paraphrases'"),
        ('{"prompt": "q", "original": "o", "paraphrases": 3}', "is no paraphrase set"),
        ('{"prompt": "q", "original": "o", "paraphrases": [{"source": "x"}]}', "KeyError: 'text'"),
        ('{"prompt": "q", "original": " ", "paraphrases": []}', "has an empty text"),
        ('{"prompt": "q", "original": "o", "paraphrases": [""]}', "has an empty text"),
        ('{"prompt": "q", "original": "o", "paraphrases": [], "label": 0.5}', "label 0.5: expected 0"),
    ],
)
def test_bad_files(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(line)
    with pytest.raises(ParaphraseError, match=message):
        read_sets(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ParaphraseError, match="cannot be read"):
        read_sets(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["a b", "c d"]}, "1 prompts, 2 responses"),
        ({"labels": [1.0, 0.0]}, "as many of each"),
        ({"responses": ["  "]}, "Response 0 is empty"),
        ({"sources": [lambda texts: []]}, "returned 0 lists for 1 texts"),
    ],
)
def test_bad_input(change, message):
    arguments = {"prompts": ["q"], "responses": ["a b"], "sources": [fixed("b a")], "encode": letters}
    with pytest.raises(ValueError, match=message):
        make_sets(**{**arguments, **change})


def test_edits_are_drawn_by_the_text_alone():
    text = "One is here, boys. Two follows it. Three comes late."
    made = {name: edit(text) for name, edit in EDITS.items()}
    assert made == {name: edit(text) for name, edit in EDITS.items()}
    assert sorted(made["shuffled"].split()) == sorted(text.split())
    assert made["shuffled"] != text
    assert made["shortened"].startswith("One is here, boys.")
    assert len(made["shortened"].split()) < len(text.split())
    assert made["joined"] == "One is here, boys, and two follows it, and three comes late."
    assert made["unpunctuated"] == "One is here boys Two follows it Three comes late"
    assert made["stretched"].startswith("One is here, boys. ")
    assert made["misspelt"] != text
    assert all(isinstance(edit(""), str) for edit in EDITS.values())
    assert all(edit("One word").strip() for edit in EDITS.values())


def test_compositions_are_of_the_styles_given():
    styles = {"up": str.upper, "called": "{}!".format, "asked": "{}?".format}
    found = composed_source(styles, num_variants=8, depth=2)(["no", "yes"])
    assert [len(row) for row in found] == [8, 8]
    assert {p.text for p in found[0]} <= {"NO!", "NO?", "no!?", "no?!"}
    assert len({p.text for p in found[0]}) > 1
    assert found == composed_source(styles, num_variants=8, depth=2)(["no", "yes"])
    assert {(p.source, p.style) for p in found[0]} == {("composed", "composed")}
    for options in ({"num_variants": 0}, {"num_variants": 1, "depth": 4}, {"num_variants": 1, "depth": 1}):
        with pytest.raises(ValueError, match="expected at least 1, and 2 to 3"):
            composed_source(styles, **options)
