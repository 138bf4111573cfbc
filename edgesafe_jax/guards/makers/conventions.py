"""Conventions of writing, each by a package of its own: spelling systems, contractions, numbers, case, letters."""

import random
import re

from edgesafe_jax.guards.makers.base import Ways, engine

_MAKER = "conventions"


def convention_ways() -> Ways:
    """Returns the ways of several small packages.

    `british`, `american`: spelling, by `breame`; `expanded`: no contractions, by `contractions`; `counted`: whole
    numbers as words, by `inflect`; `titled`: the capitals of a title, by `titlecase`; `typeset`: curly quotes and
    dashes, by `smartypants`; `lookalike`: one letter in eight as a Cyrillic one of the same shape, by `homoglyphs`.

    Raises:
      MakerError: one of the packages is not installed.
    """
    spelling = engine("breame.data.spelling_constants", _MAKER)
    expand = engine("contractions", _MAKER).fix
    number = engine("inflect", _MAKER).engine()
    title = engine("titlecase", _MAKER).titlecase
    punctuation = engine("smartypants", _MAKER)
    shapes = engine("homoglyphs", _MAKER).Homoglyphs(categories=("LATIN", "COMMON", "CYRILLIC"))
    cyrillic = {
        letter: [other for other in shapes.get_combinations(letter) if "\u0400" <= other <= "\u04ff"]
        for letter in "aceiopsxyABCEHIKMOPTX"
    }

    def words(text: str, table: dict[str, str]) -> str:
        def spelt(match: re.Match[str]) -> str:
            found = match.group()
            other = table.get(found.lower(), found)
            return other.upper() if found.isupper() else other.capitalize() if found[0].isupper() else other

        return re.sub(r"[A-Za-z]+", lambda m: spelt(m) if m.group().lower() in table else m.group(), text)

    def counted(text: str) -> str:
        return re.sub(r"(?<![\w.,])\d{1,4}(?![\w%]|[.,]\d)", lambda m: str(number.number_to_words(m.group())), text)

    def typeset(text: str) -> str:
        attributes = punctuation.Attr
        return punctuation.smartypants(text, attributes.q | attributes.D | attributes.e | attributes.u)

    def lookalike(text: str) -> str:
        rng = random.Random(text)
        return "".join(rng.choice(c) if (c := cyrillic.get(x)) and rng.random() < 0.25 else x for x in text)

    return {
        "british": lambda text: words(text, spelling.AMERICAN_ENGLISH_SPELLINGS),
        "american": lambda text: words(text, spelling.BRITISH_ENGLISH_SPELLINGS),
        "expanded": expand,
        "counted": counted,
        "titled": title,
        "typeset": typeset,
        "lookalike": lookalike,
    }
