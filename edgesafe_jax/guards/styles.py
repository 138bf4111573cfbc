"""Rewriting by rules: styles, registers and rough edits, as functions of a text by name."""

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence

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


def without_contractions(text: str) -> str:
    """Writes contractions out; typographic apostrophes count too."""
    return _replace_words(text.replace("’", "'"), _CONTRACTIONS)


def without_short_forms(text: str) -> str:
    """Writes the short forms of chats out, such as "u" for "you"."""
    for full, short in _SHORT_FORMS:
        text = re.sub(rf"(?<![\w/]){re.escape(short)}(?![\w/.])", full, text)
    return text


def split_sentences(text: str) -> list[str]:
    """Splits a text behind full stops, exclamation and question marks, and at line breaks."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+", text) if part.strip()]


_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Han characters
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\s{_NO_SPACES}]+")


def words_of(text: str) -> list[re.Match[str]]:
    """Finds the words of a text: between spaces, and each character of a script that is written without them.

    Example:
      >>> [word.group() for word in words_of("one, two 三四")]
      ['one,', 'two', '三', '四']
    """
    return list(_WORD.finditer(text))


def _lower_first(text: str) -> str:
    """Lowers the first letter, unless the first word is "I" or looks like a name or an abbreviation."""
    head = text.split(maxsplit=1)[0] if text.split() else ""
    return text if re.match(r"I\b", head) or head[1:] != head[1:].lower() else text[:1].lower() + text[1:]


def _formal(text: str) -> str:
    return "With regard to your question, the following may be stated. " + _replace_words(text, _CONTRACTIONS)


def _casual(text: str) -> str:
    contracted = _replace_words(text.replace("’", "'"), [(full, short) for short, full in _CONTRACTIONS])
    sentences = split_sentences(contracted)
    spoken = [f"{_ASIDES[i % len(_ASIDES)]}, {_lower_first(s)}" if i % 2 else s for i, s in enumerate(sentences)]
    return "OK so, " + _lower_first(" ".join(spoken))


def _items(text: str) -> list[str]:
    items = [_MARK.sub("", sentence).strip() for sentence in split_sentences(text)]
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
"""Styles: they change register, layout, spelling and framing of a text, never a claim."""


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
"""Rough changes of a text: order, omission, joints, spelling, punctuation, case. People do not rewrite like
this, but a guard that is trained on them learns more than frames and registers."""
