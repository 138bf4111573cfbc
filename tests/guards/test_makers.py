"""Makers of paraphrases: their ways keep the content, are functions of the text alone, and name what is missing."""

import random
import re

import numpy as np
import pytest

from edgesafe_jax.guards.makers import MAKERS, REGISTERS, MakerError, base
from edgesafe_jax.guards.paraphrases import Paraphrase, ParaphraseError, SetCounts, make_sets
from edgesafe_jax.guards.sources import SOURCES, ParaphraseSettings, batched_source, make_sources, style_source

TEXT = "I can't help with that, but here's a list: 1. Buy 3 locks. 2. Don't organize the neighbors' \"keys\" -- ever."
PACKAGES = {"typo": ("typo",), "nlpaug": ("nlpaug",), "conventions": ("breame", "contractions", "inflect", "titlecase")}


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def maker(name):
    for package in (*PACKAGES.get(name, ()), *(("smartypants", "homoglyphs") if name == "conventions" else ())):
        pytest.importorskip(package)
    return MAKERS[name]()


def test_registers_keep_every_word_in_its_order():
    assert len(REGISTERS) >= 12
    for name, way in REGISTERS.items():
        kept = iter(words(way(TEXT)))
        assert all(word in kept for word in words(TEXT)), name
        assert way(TEXT) == way(TEXT) != TEXT
        assert way("No").strip()


def test_a_number_stays_with_the_item_of_a_list_that_it_begins():
    assert REGISTERS["mail"]("See: 1. Wash. 2. Dry well.") == "> See: 1. Wash.\n> 2. Dry well."
    assert REGISTERS["messages"]("One. Two!") == "(1/2) One.\n(2/2) Two!"
    assert REGISTERS["telegram"]("Come, quickly. It burns!") == "COME QUICKLY STOP IT BURNS STOP"


def test_what_draws_from_global_generators_becomes_a_function_of_the_text():
    drawn = base.seeded("a", lambda text: f"{text} {random.random()} {np.random.rand()}")  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.Random(3).random(), np.random.RandomState(3).rand()
    assert drawn("x") == drawn("x")
    assert drawn("x").split()[1:] != drawn("y").split()[1:]
    assert drawn("x") != base.seeded("b", lambda text: f"{text} {random.random()} {np.random.rand()}")("x")  # noqa: NPY002
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_a_package_that_is_not_installed_is_named_with_its_extra():
    with pytest.raises(MakerError, match=r"'mine' needs the package no_such_package.*edgesafe-jax\[paraphrases\]"):
        base.engine("no_such_package.part", "mine")


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_ways_of_other_authors_change_little_and_the_same_each_time(name):
    ways = maker(name)
    changed = {way: change(TEXT) for way, change in ways.items()}
    assert changed == {way: change(TEXT) for way, change in maker(name).items()}
    for way, text in changed.items():
        assert (text != TEXT) == (way != "american"), way
        assert 0.9 < len(text) / len(TEXT) < 1.2, way
    # All but few characters are where they were: whatever was typed wrongly can still be read.
    common = [len(set(words(text)) & set(words(TEXT))) / len(set(words(TEXT))) for text in changed.values()]
    assert min(common) >= 0.25
    if name == "conventions":
        assert "organise the neighbours" in changed["british"]
        assert changed["expanded"].startswith("I cannot help with that, but here is")
        assert "Buy three locks" in changed["counted"]
        assert "“keys”" in changed["typeset"]
        assert ways["american"]("The Colour.") == "The Color."
        assert not changed["lookalike"].isascii()


def test_makers_are_sources_of_which_ways_are_drawn():
    assert set(MAKERS) < set(SOURCES)
    settings = ParaphraseSettings(sources=("register",), num_ways=3)
    [source] = make_sources(settings, measured=True, model=lambda: None)
    [found] = source([TEXT])
    assert {p.source for p in found} == {"register"}
    assert len({p.style for p in found}) == 3
    assert make_sources(settings, measured=False, model=lambda: None)[0]([TEXT]) == [found]
    [every] = make_sources(ParaphraseSettings(sources=("register",), num_ways=None), measured=True, model=lambda: None)[
        0
    ]([TEXT])
    assert {p.style for p in every} == set(REGISTERS)


def test_ways_that_change_nothing_or_everything_are_named_and_counted():
    ways = {"same": str, "shorter": lambda text: "w", "other": lambda text: "zzz " + text, "good": lambda t: t + " b"}

    def encode(texts):
        return np.array([[0.0, 1.0] if text.startswith("zzz") else [1.0, 0.0] for text in texts])

    sets, counts = make_sets(["q", "r"], ["a b c", "d e f"], sources=[style_source(ways, name="mine")], encode=encode)
    assert [[p.style for p in s.paraphrases] for s in sets] == [["good"], ["good"]]
    assert counts.unchanged == ("mine/same",)
    assert counts.lost == ("mine/shorter", "mine/other")
    assert counts.ways["mine/other"] == {"candidates": 2, "meaning": 2}
    assert counts.total == {"candidates": 8, "kept": 2, "identical": 2, "length": 2, "meaning": 2}
    assert SetCounts({}).total["candidates"] == 0


@pytest.mark.parametrize(
    ("changed", "got"), [(["a"], "1 of them"), (["a", "b", "c"], "3 of them"), ("ab", "one text"), ([1, 2], "2 of")]
)
def test_a_way_that_returns_another_number_of_texts_is_refused(changed, got):
    assert batched_source({"up": lambda texts: [t.upper() for t in texts]}, name="mine")(["a", "b"]) == [
        [Paraphrase("A", "mine", "up")],
        [Paraphrase("B", "mine", "up")],
    ]
    with pytest.raises(ParaphraseError, match=f"The way mine/bad was given 2 texts and returned {got}"):
        batched_source({"bad": lambda texts: changed}, name="mine")(["a", "b"])
