"""The canonical form of a text: what a reader skips over is taken out before a guard reads the text.

Letters that look like Latin ones, invisible characters, typographic marks, the marks of lists, quotations, tables and
pages, a case that a whole text is written in, contractions and the short forms of chats. No sentence is taken out: what
frames an answer stays. Spelling mistakes stay too.
"""

import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from edgesafe_jax.guards.styles import without_contractions, without_short_forms
from edgesafe_jax.guards.verdicts import Guard, check_pairs, judged_text

_LOOKALIKES: Mapping[str, str] = dict(
    zip(
        "аеорсухіјѕһԁԛԝҽАВЕКМНОРСТХІЈЅԌαορνικΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
        "aeopcyxijshdqweABEKMHOPCTXIJSGaopvikABEZHIKMNOPTYX",
        strict=True,
    )
)
"""Cyrillic and Greek letters and the Latin ones of the same shape (Unicode's confusables, UTS 39)."""

_TYPOGRAPHIC = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " ", "•": "-"}
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_TAG = re.compile(r"</?(?:p|br|div|span|li|ul|ol|h[1-6]|b|i|em|strong)\s*/?>", re.IGNORECASE)
_MARK = re.compile(
    r"^\s*(?:>|\#+|[-*+]\s|\|?\s*\d*\s*\|(?:[-|: ]+$)?|§\s*\d+\.?|\(?(?:\d{1,2}|[a-z]|\d{1,2}/\d{1,2})[.)]|-{3,}$)\s*",
    re.MULTILINE,
)


def canonical_form(text: str) -> str:
    r"""Returns the canonical form of a text.

    Args:
      text: the text.

    Returns:
      The form, on one line; the text itself where nothing would be left.

    Example:
      >>> canonical_form("1. I CAN'T HELP.\n2. IT IS ILLEGAL.")
      'I cannot help. It is illegal.'
    """
    form = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _values(text)))
    form = re.sub(r"\w+", lambda match: _latin(match.group()), form).translate(_TYPOGRAPHIC)
    form = _TAG.sub("\n", html.unescape(form))
    previous = None
    while previous != form:  # marks may stand one behind the other
        previous, form = form, _MARK.sub("", form)
    form = re.sub(r"\s*\|\s*(?=\n|$)", "", form)
    form = re.sub(r"\*\*|__|`+", "", form)
    form = _cased(" ".join(form.split()))
    return without_contractions(without_short_forms(form)) or text


def judged_form(response: str) -> str:
    """Returns the canonical form of the part of a response that is judged.

    An answer that would begin with reasoning in its canonical form alone, escaped `<think>` tags for instance, could
    hide itself in it: such an answer is judged as it stands.

    Args:
      response: the response.

    Returns:
      The form, see `canonical_form` and `judged_text`.

    Example:
      >>> judged_form("<think>Hm.</think> - **No.**")
      'No.'
      >>> judged_form("&lt;think&gt;Mix both.&lt;/think&gt; No.")
      '&lt;think&gt;Mix both.&lt;/think&gt; No.'
    """
    text = judged_text(response)
    form = canonical_form(text)
    return form if judged_text(form) == form else text


def on_canonical_form(guard: Guard) -> Guard:
    """Makes a guard that judges the canonical form of each response, see `judged_form`."""

    def judge(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        prompts, responses = check_pairs(prompts, responses)
        return np.asarray(guard(prompts, [judged_form(response) for response in responses]))

    return judge


def _values(text: str) -> str:
    """The values of a JSON object that are several words long; any other text as it is."""
    try:
        record = json.loads(text) if text.lstrip().startswith("{") else None
    except ValueError:
        return text
    values = record.values() if isinstance(record, dict) else ()
    return "\n".join(value for value in values if isinstance(value, str) and len(value.split()) > 2) or text


def _latin(word: str) -> str:
    """A word with its lookalikes as Latin letters; a word of another script alone stays as it is."""
    if word.isascii():
        return word
    changed = "".join(_LOOKALIKES.get(letter, letter) for letter in word)
    return changed if changed.isascii() else word


def _cased(text: str) -> str:
    """Lowers a text in capitals or in the case of a title, and gives sentences their capitals."""
    letters = [letter for letter in text if letter.isalpha()]
    words = [word for word in re.findall(r"[A-Za-z']+", text) if len(word) > 3]
    capitals = sum(letter.isupper() for letter in letters)
    titled = sum(word[0].isupper() for word in words)
    whole = len(letters) > 3 and (capitals > 0.7 * len(letters) or (len(words) > 3 and titled > 0.7 * len(words)))
    if whole:
        text = text.lower()
    if whole or not capitals:
        text = re.sub(r"(?:^|(?<=[.!?] ))[a-z]", lambda match: match.group().upper(), text)
        text = re.sub(r"\bi(?=\b(?!\.))", "I", text)
    return text
