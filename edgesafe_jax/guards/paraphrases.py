"""Sets of paraphrases of one answer, from several independent sources, filtered by meaning.

A guard that judges the meaning of an answer gives all members of a set one verdict. A source turns N texts into
candidates; `make_sets` keeps those that are close to the original in meaning (cosine of sentence embeddings) and length
and are neither the original nor one another. The guard itself never decides what is kept: a filter by its own score
would remove the very flips that are to be measured.

Pinneri and Louizos, "Guarding the Meaning: Self-Supervised Training for Semantic Robustness in Guard Models", arXiv
2511.10665: paraphrases are of the response, the prompt is context. The paraphrasers and the filter are this project's.
"""

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgesafe_jax.assets import write_atomically
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import PRNGKey

Encode: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""From N texts to unit vectors `[N, D]`."""


class ParaphraseError(EdgesafeError, ValueError):
    """A file of paraphrase sets that cannot be read, or a set that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Paraphrase:
    """One rewording and where it comes from.

    Attributes:
      text: the rewording.
      source: what made it, such as "style", "wordnet", "llm" or a user's own name.
      style: which of the source's ways.
    """

    text: str
    source: str
    style: str


@dataclasses.dataclass(frozen=True)
class ParaphraseSet:
    """An answer and its paraphrases.

    Attributes:
      prompt: what was asked; the same for all members.
      original: the answer as it was given.
      paraphrases: rewordings of it; may be empty.
      label: 1 where people call the original unsafe, 0 where safe, None where nobody has. Never trained on.
    """

    prompt: str
    original: str
    paraphrases: tuple[Paraphrase, ...]
    label: float | None = None

    @property
    def texts(self) -> list[str]:
        """The original and then its paraphrases."""
        return [self.original, *(p.text for p in self.paraphrases)]


Source: TypeAlias = Callable[[Sequence[str]], list[list[Paraphrase]]]
"""From N texts to N lists of candidates; any callable will do, a back-translation for instance."""


# Styles and registers -------------------------------------------------------------------------------------------------

_CONTRACTIONS = (
    ("can't", "cannot"),
    ("won't", "will not"),
    ("don't", "do not"),
    ("doesn't", "does not"),
    ("didn't", "did not"),
    ("isn't", "is not"),
    ("aren't", "are not"),
    ("wasn't", "was not"),
    ("shouldn't", "should not"),
    ("wouldn't", "would not"),
    ("couldn't", "could not"),
    ("I'm", "I am"),
    ("I've", "I have"),
    ("I'll", "I will"),
    ("it's", "it is"),
    ("that's", "that is"),
    ("you're", "you are"),
    ("you'll", "you will"),
    ("they're", "they are"),
    ("we're", "we are"),
    ("there's", "there is"),
    ("let's", "let us"),
)
_MARK = re.compile(r"^(?:[-*•]|[0-9]+[.)])(?:\s+|$)")
_SHORT_FORMS = (
    ("you", "u"),
    ("are", "r"),
    ("your", "ur"),
    ("because", "bc"),
    ("please", "pls"),
    ("thanks", "thx"),
    ("to be honest", "tbh"),
    ("people", "ppl"),
    ("without", "w/o"),
    ("with", "w/"),
    ("and", "&"),
    ("before", "b4"),
    ("something", "smth"),
)
_ELEVATED = (
    ("I can't", "I am unable to"),
    ("I cannot", "I am unable to"),
    ("I'm sorry", "I apologise"),
    ("I am sorry", "I regret to say"),
    ("need to", "have to"),
    ("want to", "wish to"),
    ("make sure", "ensure"),
    ("get rid of", "dispose of"),
    ("find out", "discover"),
    ("think about", "consider"),
    ("look for", "search for"),
    ("talk to", "speak with"),
    ("a lot of", "a great deal of"),
    ("for example", "for instance"),
    ("help you", "assist you"),
    ("give you", "provide you with"),
    ("tell you", "inform you"),
    ("using", "by means of"),
    ("buy", "purchase"),
    ("start", "begin"),
    ("choose", "select"),
    ("try to", "attempt to"),
    ("many", "numerous"),
    ("enough", "sufficient"),
    ("maybe", "perhaps"),
    ("also", "additionally"),
    ("if", "in the event that"),
    ("because", "since"),
    ("illegal", "unlawful"),
    ("important", "essential"),
    ("dangerous", "hazardous"),
    ("kids", "children"),
    ("boss", "superior"),
    ("job", "occupation"),
)
_OPENINGS = (
    "In short:",
    "Good question.",
    "Thank you for asking.",
    "Let me be frank.",
    "I have thought about this.",
    "Here is what I would say.",
    "Somebody asked me this before, and I told them the following.",
    "This is only my opinion.",
    "You asked, so here it is.",
    "The answer depends on whom you ask, but I would put it this way.",
    "A friend of mine once wrote this down for me.",
    "Reply from the help desk:",
    "From my notes:",
    "My first thought was this.",
    "Quick answer from my phone.",
    "P.S.",
)
_CLOSINGS = (
    "I hope this helps.",
    "Does that answer what you wanted to know?",
    "That is my view.",
    "Let me know what you think.",
    "Take care!",
    "Sent from my phone.",
    "There is not much more to say.",
    "Feel free to write again.",
    "I will leave it at that.",
    "Have a nice day.",
    "End of message.",
    "Cheers, and good luck.",
    "(Edited for spelling.)",
    "Anyway, back to work for me.",
    "What do the others here say?",
    "You have been very patient.",
)
_ASIDES = ("basically", "honestly", "you know", "like I said", "well")


def _replace_words(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Replaces whole words, with the capital of the first letter kept."""
    for old, new in pairs:
        text = re.sub(
            rf"\b{re.escape(old)}\b",
            lambda m, new=new: new[0].upper() + new[1:] if m.group(0)[0].isupper() else new,
            text,
            flags=re.IGNORECASE,
        )
    return text


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _lower_first(text: str) -> str:
    """Lowers the first letter, unless the first word is "I" or looks like a name or an abbreviation."""
    head = text.split(maxsplit=1)[0] if text.split() else ""
    return text if re.match(r"I\b", head) or head[1:] != head[1:].lower() else text[:1].lower() + text[1:]


def _formal(text: str) -> str:
    return "With regard to your question, the following may be stated. " + _replace_words(text, _CONTRACTIONS)


def _casual(text: str) -> str:
    contracted = _replace_words(text.replace("’", "'"), [(full, short) for short, full in _CONTRACTIONS])
    sentences = _sentences(contracted)
    spoken = [f"{_ASIDES[i % len(_ASIDES)]}, {_lower_first(s)}" if i % 2 else s for i, s in enumerate(sentences)]
    return "OK so, " + _lower_first(" ".join(spoken))


def _items(text: str) -> list[str]:
    items = [_MARK.sub("", sentence).strip() for sentence in _sentences(text)]
    return [item for item in items if item]


def _bulleted(text: str) -> str:
    return "\n".join(f"- {item}" for item in _items(text))


def _numbered(text: str) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(_items(text), 1))


def _hedged(text: str) -> str:
    return f"As far as I know, {_lower_first(text)} I may be wrong on details."


def _typed(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text.lower().replace("'", "").replace("’", "").replace(",", "")).rstrip(".!")


def _chat(text: str) -> str:
    return _replace_words(text.lower(), _SHORT_FORMS).rstrip(".!")


def _slips(text: str) -> str:
    """Every sixth longer word loses a letter, has it twice, or has it and the next one swapped, in turn."""
    count = itertools.count()

    def slip(match: re.Match[str]) -> str:
        word, number = match.group(0), next(count)
        if number % 6:
            return word
        at = len(word) // 2
        start, here, following, end = word[:at], word[at], word[at + 1], word[at + 2 :]
        return start + (following, here + here + following, following + here)[number // 6 % 3] + end

    return re.sub(r"[A-Za-z]{5,}", slip, text)


def _terse(text: str) -> str:
    shorter = re.sub(r"\b(?:the|an?|very|really|just|quite)\s+(?=\w)", "", text, flags=re.IGNORECASE)
    return re.sub(r"(?:^|(?<=[.!?]\s))[a-z]", lambda match: match.group(0).upper(), shorter)


def _drawn(text: str, opening: bool, closing: bool) -> str:
    """The text between an opening and a closing that are drawn for it."""
    rng = random.Random(text)
    before, after = rng.choice(_OPENINGS), rng.choice(_CLOSINGS)
    return f"{before} " * opening + text + f" {after}" * closing


def _framed(before: str, after: str = "") -> Callable[[str], str]:
    return lambda text: f"{before}{text}{after}"


STYLES: Mapping[str, Callable[[str], str]] = {
    "formal": _formal,
    "casual": _casual,
    "bulleted": _bulleted,
    "numbered": _numbered,
    "hedged": _hedged,
    "quoted": _framed("My answer is this: “", "”"),
    "typed": _typed,
    "chat": _chat,
    "slips": _slips,
    "terse": _terse,
    "elevated": lambda text: _replace_words(text, _ELEVATED),
    "headed": _framed("## Answer\n\n", "\n\n---"),
    "opened": lambda text: _drawn(text, opening=True, closing=False),
    "closed": lambda text: _drawn(text, opening=False, closing=True),
    "enclosed": lambda text: _drawn(text, opening=True, closing=True),
    "forum": _framed("Posting this here in case somebody needs it. ", " Hope that helps!"),
    "letter": _framed("Hello,\n\nthank you for your message. ", "\n\nKind regards"),
    "memo": _framed("Note to self. ", " (Look at this again next week.)"),
    "lecture": _framed(
        "Let us go through this together, one thing at a time. ", " That is the whole of it. Any questions so far?"
    ),
    "news": _framed("Good evening, and here is the main story of the day. ", " We will keep you informed."),
}
"""Ways of saying the same: what changes is register, layout, spelling and framing, never a claim."""


# Edits ----------------------------------------------------------------------------------------------------------------

_JOINTS = ("Now,", "And", "Also,", "Then again,", "To go on,", "Besides,", "What is more,")


def _shuffled(text: str) -> str:
    """The sentences in another order; a text of one sentence as it is."""
    items = _items(text)
    order = random.Random(text).sample(items, len(items))
    return " ".join(order if order != items else items[::-1])


def _shortened(text: str) -> str:
    """Leaves one sentence out where there are three and more, never the first."""
    items = _items(text)
    if len(items) < 3:
        return text
    left_out = random.Random(text).randrange(1, len(items))
    return " ".join(item for number, item in enumerate(items) if number != left_out)


def _stretched(text: str) -> str:
    """Every sentence but the first begins with a joint."""
    rng = random.Random(text)
    first, *rest = _items(text) or [text]
    return " ".join([first, *(f"{rng.choice(_JOINTS)} {_lower_first(item)}" for item in rest)])


def _joined(text: str) -> str:
    """All sentences in one."""
    first, *rest = [item.rstrip(".!") for item in _items(text)] or [text]
    return ", and ".join([first, *(_lower_first(item) for item in rest)]) + "."


def _misspelt(text: str) -> str:
    """A letter in every fifth of the words of four letters and more, drawn at random, becomes another one."""
    rng = random.Random(text)

    def miss(match: re.Match[str]) -> str:
        word = match.group(0)
        if rng.random() > 0.2:
            return word
        at = rng.randrange(1, len(word))
        return word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") * rng.randrange(2) + word[at + 1 :]

    return re.sub(r"[A-Za-z]{4,}", miss, text)


EDITS: Mapping[str, Callable[[str], str]] = {
    "shuffled": _shuffled,
    "shortened": _shortened,
    "stretched": _stretched,
    "joined": _joined,
    "misspelt": _misspelt,
    "unpunctuated": lambda text: re.sub(r"\s+", " ", re.sub(r"[^\w\s'’]", " ", text)).strip(),
    "shouted": str.upper,
}
"""Rough changes of a text: order, omission, joints, spelling, punctuation, case. Not how people rewrite, but unlike the
styles: what a guard learns from them is not tied to a frame or a register."""


def style_source(
    styles: Mapping[str, Callable[[str], str]] = STYLES,
    *,
    num_styles: int | None = None,
    seed: int = 0,
    name: str = "style",
) -> Source:
    """Makes the source of style and register templates.

    Args:
      styles: functions of a text by name; `STYLES`, `EDITS` or a user's own.
      num_styles: how many styles each text is put in, drawn at random: more styles in as many texts. Default all.
      seed: of the draw.
      name: of the source.

    Returns:
      A source that gives one candidate per style.

    Raises:
      ValueError: fewer than one style per text, or more than there are.

    Example:
      >>> source = style_source({"shouted": str.upper})
      >>> source(["No."])[0][0].text
      'NO.'
    """
    num = len(styles) if num_styles is None else num_styles
    if not 1 <= num <= len(styles):
        raise ValueError(f"num_styles={num_styles}: expected 1 to {len(styles)}, the number of styles.")

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        drawn = [set(random.Random(f"{seed}/{text}").sample(list(styles), num)) for text in texts]
        return [
            [Paraphrase(f(text), name, style) for style, f in styles.items() if style in chosen]
            for text, chosen in zip(texts, drawn, strict=True)
        ]

    return source


def composed_source(
    styles: Mapping[str, Callable[[str], str]], *, num_variants: int, depth: int = 3, seed: int = 0
) -> Source:
    """Makes the source that puts a text in several styles, one after the other.

    Args:
      styles: functions of a text by name.
      num_variants: candidates per text; each draws its own styles.
      depth: most styles of a candidate; two at least.
      seed: of the draws.

    Returns:
      A source.

    Raises:
      ValueError: no variants, or fewer styles than `depth`, or a depth below two.

    Example:
      >>> source = composed_source({"shouted": str.upper, "called": "{}!".format}, num_variants=1, depth=2)
      >>> source(["No"])[0][0].text
      'NO!'
    """
    if num_variants < 1 or not 2 <= depth <= len(styles):
        raise ValueError(
            f"num_variants={num_variants}, depth={depth}: expected at least 1, and 2 to {len(styles)}, the number of "
            "styles."
        )

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        made = []
        for text in texts:
            rng = random.Random(f"{seed}/composed/{text}")
            made.append([])
            for _ in range(num_variants):
                changed = text
                for style in rng.sample(list(styles), rng.randint(2, depth)):
                    changed = styles[style](changed)
                made[-1].append(Paraphrase(changed, "composed", "composed"))
        return made

    return source


# The language model itself --------------------------------------------------------------------------------------------

REWRITES: Mapping[str, str] = {
    "reworded": "Rewrite this text in other words. Keep its meaning and its length. Answer with the new text only.",
    "simpler": "Say the same as this text in simpler words. Keep its meaning. Answer with the new text only.",
}
"""What a language model is asked, by the name of the style."""

_PREAMBLE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok)?[,.!:]?\s*"
    r"(?:here(?:'s| is| are)|this is|the (?:new|rewritten|revised))[^:\n]{0,80}:\s*",
    re.IGNORECASE,
)


def llm_source(
    model: LanguageModel,
    key: PRNGKey,
    *,
    rewrites: Mapping[str, str] = REWRITES,
    max_tokens: int = 96,
    temperature: float = 0.7,
    batch_size: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
) -> Source:
    """Makes the source that asks a language model to rewrite.

    Args:
      model: the language model.
      key: random key of the sampling.
      rewrites: instructions by the name of the style.
      max_tokens: longest rewriting, in tokens; one that is cut off there is no candidate.
      temperature: of the sampling; 0 is greedy.
      batch_size: rows that run at once.
      on_batch: called with (texts done, texts in total) of each style.

    Returns:
      A source that gives at most one candidate per instruction.
    """

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        candidates: list[list[Paraphrase]] = [[] for _ in texts]
        for style, instruction in rewrites.items():
            answers = generate(
                model,
                [f"{instruction}\n\n{text}" for text in texts],
                max_tokens=max_tokens,
                temperature=temperature,
                key=key,
                batch_size=batch_size,
                on_batch=on_batch,
            )
            for index, (text, finished) in enumerate(zip(answers.texts, answers.finished, strict=True)):
                if finished:
                    clean = _PREAMBLE.sub("", text.strip()).strip().strip('"“”').strip()
                    candidates[index].append(Paraphrase(clean, "llm", style))
        return candidates

    return source


# Filter ---------------------------------------------------------------------------------------------------------------


def make_sets(
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    sources: Sequence[Source],
    encode: Encode,
    labels: Sequence[float] | None = None,
    min_cosine: float = 0.75,
    length_ratio: tuple[float, float] = (0.5, 2.0),
) -> tuple[list[ParaphraseSet], dict[str, int]]:
    """Makes paraphrase sets and filters them by meaning, length and identity.

    A candidate c of an original x is kept if `cos(e(x), e(c)) >= min_cosine`, its number of words is within
    `length_ratio` times that of x, and after lowering case and dropping punctuation and spacing at the ends it is
    neither x nor a candidate kept before.

    Args:
      prompts: N texts, the context.
      responses: N answers to paraphrase.
      sources: who paraphrases.
      encode: a sentence encoder; it is not the guard.
      labels: N labels that the sets are to carry, 1 is unsafe.
      min_cosine: smallest cosine of the embeddings.
      length_ratio: smallest and largest ratio of the numbers of words.

    Returns:
      N sets, and how many candidates there were, were kept and were dropped, by reason: `candidates`, `kept`,
      `meaning`, `length`, `identical`.

    Raises:
      ValueError: inputs of different length, an empty response, or a source that returns another number of lists.
    """
    if len(prompts) != len(responses) or (labels is not None and len(labels) != len(responses)):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} responses: expected as many of each (and of labels)."
        )
    if empty := [i for i, text in enumerate(responses) if not text.strip()]:
        raise ValueError(f"Response {empty[0]} is empty: there is nothing to paraphrase. Leave the pair out.")
    candidates: list[list[Paraphrase]] = [[] for _ in responses]
    for source in sources:
        made = source(responses)
        if len(made) != len(responses):
            raise ValueError(f"A source returned {len(made)} lists for {len(responses)} texts: expected one each.")
        for index, found in enumerate(made):
            candidates[index] += found
    originals = np.asarray(encode(responses), np.float64)
    flat = [p.text for found in candidates for p in found]
    vectors = np.asarray(encode(flat), np.float64) if flat else np.zeros((0, originals.shape[1]))
    counts = {"candidates": len(flat), "kept": 0, "meaning": 0, "length": 0, "identical": 0}
    sets, at = [], 0
    for index, found in enumerate(candidates):
        cosines = vectors[at : at + len(found)] @ originals[index]
        at += len(found)
        kept: list[Paraphrase] = []
        seen = {_bare(responses[index])}
        for candidate, cosine in zip(found, cosines, strict=True):
            ratio = len(candidate.text.split()) / len(responses[index].split())
            if _bare(candidate.text) in seen:
                counts["identical"] += 1
            elif not length_ratio[0] <= ratio <= length_ratio[1]:
                counts["length"] += 1
            elif not cosine >= min_cosine:
                counts["meaning"] += 1
            else:
                counts["kept"] += 1
                seen.add(_bare(candidate.text))
                kept.append(candidate)
        label = None if labels is None else float(labels[index])
        sets.append(ParaphraseSet(prompts[index], responses[index], tuple(kept), label))
    return sets, counts


def _bare(text: str) -> str:
    """A text without case, outer punctuation and repeated space."""
    return re.sub(r"\s+", " ", text.lower()).strip(" \t\n.,;:!?\"'“”‘’-")


def select(
    sets: Sequence[ParaphraseSet],
    *,
    sources: Collection[str] | None = None,
    styles: Collection[str] | None = None,
    without_sources: Collection[str] = (),
    without_styles: Collection[str] = (),
) -> list[ParaphraseSet]:
    """Keeps paraphrases of some sources and styles; the originals stay.

    Args:
      sets: N sets.
      sources: sources to keep; default all.
      styles: styles to keep; default all.
      without_sources: sources to leave out.
      without_styles: styles to leave out.

    Returns:
      N sets, some of which may have no paraphrase left.
    """

    def wanted(p: Paraphrase) -> bool:
        inside = (sources is None or p.source in sources) and (styles is None or p.style in styles)
        return inside and p.source not in without_sources and p.style not in without_styles

    return [dataclasses.replace(s, paraphrases=tuple(p for p in s.paraphrases if wanted(p))) for s in sets]


def excerpt(text: str, max_words: int) -> str:
    """Returns the first whole sentences of a text, up to a number of words; at least the beginning of the first.

    Args:
      text: the text.
      max_words: most words that are kept.

    Returns:
      The beginning of the text, on one line.

    Example:
      >>> excerpt("One two. Three four. Five.", 4)
      'One two. Three four.'
    """
    kept: list[str] = []
    for sentence in _sentences(text):
        words = sentence.split()
        if len(kept) + len(words) > max_words:
            break
        kept += words
    return " ".join(kept or text.split()[:max_words])


# On disk --------------------------------------------------------------------------------------------------------------


def write_sets(path: str | Path, sets: Sequence[ParaphraseSet], about: Mapping[str, Any]) -> None:
    """Writes sets as JSON lines, with a sidecar `NAME.json` that says how they were made.

    Args:
      path: the `.jsonl` file.
      sets: the sets.
      about: JSON-able provenance: models, seeds, thresholds, counts of the filter.
    """
    path = Path(path)
    lines = [json.dumps(dataclasses.asdict(s), ensure_ascii=False) + "\n" for s in sets]
    write_atomically(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))
    text = json.dumps(dict(about), indent=2, sort_keys=True) + "\n"
    write_atomically(path.with_suffix(".json"), lambda part: part.write_text(text, encoding="utf-8"))


def read_sets(path: str | Path) -> list[ParaphraseSet]:
    """Reads sets from JSON lines: a user's own, or those that `write_sets` wrote.

    Each line has `prompt`, `original` and `paraphrases`, a list of texts or of objects with `text`, `source` and
    `style`; and, where known, `label` (1 unsafe, 0 safe).

    Args:
      path: the file.

    Returns:
      The sets, in the order of the lines.

    Raises:
      ParaphraseError: no sets, or a line that is not one; the message gives its number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParaphraseError(f"{path} cannot be read ({error}).") from error
    sets = [_parse_set(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not sets:
        raise ParaphraseError(f"{path} holds no sets: expected one JSON object a line.")
    return sets


def _parse_set(line: str, where: str) -> ParaphraseSet:
    try:
        row = json.loads(line)
        found = tuple(
            Paraphrase(p, "user", "user")
            if isinstance(p, str)
            else Paraphrase(p["text"], p.get("source", "user"), p.get("style", "user"))
            for p in row["paraphrases"]
        )
        made = ParaphraseSet(row["prompt"], row["original"], found, row.get("label"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParaphraseError(
            f"{where} is no paraphrase set ({type(error).__name__}: {error}): expected an object with prompt, original "
            "and paraphrases."
        ) from error
    if not all(isinstance(text, str) and text.strip() for text in (made.prompt, *made.texts)):
        raise ParaphraseError(f"{where} has an empty text: expected a prompt, an original and paraphrases with words.")
    if made.label is not None and made.label not in (0, 1):
        raise ParaphraseError(f"{where} has the label {made.label!r}: expected 0 (safe), 1 (unsafe) or none.")
    return made
