import doctest

import pytest

from edgesafe_jax.assets import AssetError
from edgesafe_jax.guards import wordnet as module
from edgesafe_jax.guards.wordnet import WordNet, inflect, load_wordnet, synonyms, wordnet_source

# Offsets name senses: 1 buy/purchase-like verbs, 2 big/large, 3 a second sense of large, 4 car/automobile.
SMALL = WordNet(
    senses={
        ("verb", "purchase"): (1,),
        ("verb", "acquire"): (1, 5),
        ("verb", "procure"): (6, 1),
        ("adj", "large"): (2, 3),
        ("adj", "big"): (2,),
        ("adj", "huge"): (7,),
        ("noun", "automobile"): (4,),
        ("noun", "car"): (4,),
        ("noun", "machine"): (4,),
        ("noun", "motorcar"): (4,),
        ("noun", "play"): (8,),
        ("verb", "play"): (9,),
        ("noun", "game"): (8,),
    },
    words={
        ("verb", 1): ("purchase", "acquire", "procure", "buy"),
        ("adj", 2): ("large", "big"),
        ("noun", 4): ("automobile", "car", "machine", "motorcar"),
        ("noun", 8): ("play", "game"),
        ("adj", 7): ("huge",),
    },
    attested=frozenset(
        {("verb", "acquire"), ("verb", "procure"), ("verb", "purchase"), ("adj", "big"), ("noun", "car"),
         ("noun", "automobile"), ("noun", "machine"), ("noun", "game")}
    ),
)  # fmt: skip


def test_examples_run():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("lemma", "ending", "form"),
    [
        ("harm", "s", "harms"), ("watch", "s", "watches"), ("carry", "s", "carries"), ("play", "s", "plays"),
        ("use", "ed", "used"), ("try", "ed", "tried"), ("harm", "ed", "harmed"), ("stay", "ed", "stayed"),
        ("use", "ing", "using"), ("agree", "ing", "agreeing"), ("harm", "ing", "harming"), ("harm", "", "harm"),
    ],
)  # fmt: skip
def test_regular_forms(lemma, ending, form):
    assert inflect(lemma, ending) == form


def test_synonyms_pass_the_checks_of_sense_and_inflection():
    assert synonyms(SMALL, "purchase") == ["acquire"]  # procure has another first sense, buy is irregular
    assert synonyms(SMALL, "purchases") == ["acquires"]
    assert synonyms(SMALL, "purchased") == ["acquired"]
    assert synonyms(SMALL, "purchasing") == ["acquiring"]
    assert synonyms(SMALL, "large") == ["big"]
    assert synonyms(SMALL, "automobiles") == ["cars", "machines"]  # motorcar is not attested


@pytest.mark.parametrize("word", ["play", "huge", "unknown", "large" * 2])
def test_words_with_two_readings_or_without_synonyms_stay(word):
    assert synonyms(SMALL, word) == []


def test_too_many_senses():
    assert synonyms(SMALL, "large", max_senses=1) == []


def test_replacement_keeps_case_and_mends_the_article():
    source = wordnet_source(SMALL, num_variants=1, rate=1.0)
    made = source(["Automobiles are large. An automobile is huge."])[0][0]
    assert made.source == "wordnet"
    assert made.text.split()[0] in ("Cars", "Machines")
    assert "are big." in made.text
    assert ". A car is" in made.text or ". A machine is" in made.text


def test_names_are_left_alone():
    assert wordnet_source(SMALL)(["Ask Mr Large about it."]) == [[]]


def test_the_same_seed_gives_the_same_variants():
    text = ["A large automobile was purchased by a large firm."]
    first = wordnet_source(SMALL, seed=1)(text)
    assert first == wordnet_source(SMALL, seed=1)(text)
    assert [p.style for p in first[0]] == ["synonyms_0", "synonyms_1"]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"rate=0, num_variants=2"):
        wordnet_source(SMALL, rate=0)
    with pytest.raises(ValueError, match="num_variants=0"):
        wordnet_source(SMALL, num_variants=0)
    with pytest.raises(AssetError, match="does not hold WordNet's database"):
        load_wordnet(tmp_path)


def test_the_database_files_are_read(tmp_path):
    """Lines as wndb(5) lays them out, behind two lines of licence."""
    index = {"noun": "car n 2 3 @ ~ + 2 1 00000010 00000020  \n", "verb": "", "adj": "", "adv": ""}
    data = {
        "noun": "00000010 06 n 02 car 0 motor_car 0 000 | gloss\n00000020 06 n 01 car 1 001 @ 00000010 n 0000 | g\n",
        "adj": "00000030 00 s 01 galore(ip) 0 000 | gloss\n",
    }
    for part in module.PARTS:
        head = "  1 licence\n  2 licence\n"
        (tmp_path / f"index.{part}").write_text(head + index[part])
        (tmp_path / f"data.{part}").write_text(head + data.get(part, ""))
    found = load_wordnet(tmp_path)
    assert found.senses == {("noun", "car"): (10, 20)}
    assert found.words[("noun", 10)] == ("car", "motor_car")
    assert found.words[("adj", 30)] == ("galore",)
    assert found.attested == {("noun", "car")}


@pytest.mark.assets
def test_the_real_database():
    found = load_wordnet()
    assert len(found.senses) > 80_000
    assert "precisely" in synonyms(found, "exactly")
    assert synonyms(found, "might") == []  # a function word, though a noun of that form exists
