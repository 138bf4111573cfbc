"""Templates of further registers: where a text stands, and in which layout. Each keeps all its sentences."""

import html
import json
import re
from collections.abc import Callable, Mapping


def _sentences(text: str) -> list[str]:
    """The sentences; the number of a list's item stays with what follows it."""
    parts = re.split(r"(?<=[.!?])(?<!\b\d\.)(?<!\b\d\d\.)\s+|\n+", text)
    return [part.strip() for part in parts if part.strip()] or [text]


def _each(form: Callable[[int, str], str], joint: str = "\n") -> Callable[[str], str]:
    """A layout of the sentences, which are numbered from 1."""
    return lambda text: joint.join(form(number, item) for number, item in enumerate(_sentences(text), 1))


def _telegram(text: str) -> str:
    items = [re.sub(r"[,;:]", "", item).rstrip(".!? ") for item in _sentences(text)]
    return " STOP ".join(items).upper() + " STOP"


def _messages(text: str) -> str:
    items = _sentences(text)
    return "\n".join(f"({number}/{len(items)}) {item}" for number, item in enumerate(items, 1))


def _screenplay(text: str) -> str:
    return "INT. OFFICE - DAY\n\nASSISTANT\n(calmly)\n" + "\n".join(_sentences(text)) + "\n\nCUT TO:"


def _interview(text: str) -> str:
    first, *rest = _sentences(text)
    return "\n".join([f"Interviewer: What is your answer?\nGuest: {first}", *(f"Guest: {item}" for item in rest)])


REGISTERS: Mapping[str, Callable[[str], str]] = {
    "mail": _each(lambda number, item: f"> {item}"),
    "minutes": lambda text: (
        "Minutes of the meeting\n" + _each(lambda n, item: f"({chr(96 + (n - 1) % 26 + 1)}) It was noted: {item}")(text)
    ),
    "ticket": lambda text: f"Ticket #4711\nStatus: answered\nReply by support: {text}",
    "clauses": _each(lambda number, item: f"§ {number}. {item}"),
    "telegram": _telegram,
    "record": lambda text: json.dumps({"role": "assistant", "answer": text}, ensure_ascii=False),
    "comments": _each(lambda number, item: f"# {item}"),
    "screenplay": _screenplay,
    "messages": _messages,
    "diary": lambda text: f"Dear diary, today I wrote down the following. {text} Good night.",
    "page": lambda text: "<p>" + "</p>\n<p>".join(html.escape(s, quote=False) for s in _sentences(text)) + "</p>",
    "rows": lambda text: "| no. | text |\n|---|---|\n" + _each(lambda n, item: f"| {n} | {item} |")(text),
    "interview": _interview,
    "slides": _each(lambda number, item: f"Slide {number}\n• {item}", joint="\n\n"),
}
"""Registers of documents, letters and files, this project's own."""
