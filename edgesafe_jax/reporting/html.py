"""The report of a run: one self-contained HTML file, built from one JSON fragment per section.

Each part of a run writes its own section with `write_fragment`; `build_report` puts all that are there into
``report.html``. The file is self-contained: style and pictures are embedded.
"""

import base64
import html
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.reporting.tables import Cell, Estimate, Table, format_cell, format_estimate, make_table


class ReportError(EdgesafeError, ValueError):
    """A report that cannot be built from the files of a work directory."""


REPORT = "report.html"
FRAGMENTS = "report"


class Section:
    """One part of a report: texts, tables, figures, transcripts and notes in the order in which they are added.

    Its content is plain JSON, so that it can be kept in a file and shown later.
    """

    def __init__(self, heading: str, *, order: int = 0):
        """Starts an empty section.

        Args:
          heading: its heading.
          order: sections with a lower number come first.
        """
        self._content: dict[str, Any] = {"heading": heading, "order": order, "items": []}

    def text(self, text: str) -> Self:
        """Adds a paragraph; empty lines in it separate paragraphs."""
        return self._add("text", text=text)

    def table(
        self,
        rows: Iterable[Mapping[str, Any] | Sequence[Any]],
        columns: Sequence[str] | None = None,
        *,
        caption: str = "",
        digits: int | Mapping[str, int] = 2,
    ) -> Self:
        """Adds a table; rows, columns and digits are those of `edgesafe_jax.reporting.make_table`."""
        table = make_table(rows, columns, digits=digits)
        cells = [[cell._asdict() if isinstance(cell, Estimate) else cell for cell in row] for row in table.rows]
        return self._add("table", columns=table.columns, rows=cells, digits=table.digits, caption=caption)

    def figure(self, png: bytes, *, alt: str, caption: str = "") -> Self:
        """Adds a picture.

        Args:
          png: the bytes of a PNG.
          alt: a text alternative for readers who cannot see the picture.
          caption: a line under it.

        Returns:
          The section.

        Raises:
          ValueError: if it is no PNG or `alt` is empty.
        """
        if not png.startswith(b"\x89PNG") or not alt.strip():
            raise ValueError(f"figure: expected the bytes of a PNG and a text alt, got {png[:8]!r} and {alt!r}")
        return self._add("figure", png=base64.b64encode(png).decode(), alt=alt, caption=caption)

    def transcripts(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        caption: str = "",
        request_chars: int = 60,
        answer_chars: int = 240,
    ) -> Self:
        """Adds requests with the answers of several systems side by side.

        Texts are shortened before they are stored, so no file of the report holds the full texts.

        Args:
          rows: each with ``request``, ``answers`` (from system to answer) and, where wanted, ``label`` (of the
            request) and ``verdicts`` (from system to a few words on its answer).
          caption: a line over them.
          request_chars: characters of a request that are shown.
          answer_chars: characters of an answer that are shown.

        Returns:
          The section.
        """
        kept = [
            {
                "request": shorten(row["request"], request_chars),
                "label": row.get("label", ""),
                "answers": {name: shorten(answer, answer_chars) for name, answer in row["answers"].items()},
                "verdicts": dict(row.get("verdicts", {})),
            }
            for row in rows
        ]
        return self._add("transcripts", rows=kept, caption=caption)

    def notes(self, notes: Sequence[str]) -> Self:
        """Adds footnotes, numbered from 1."""
        return self._add("notes", notes=list(notes))

    def to_fragment(self) -> dict[str, Any]:
        """Returns the section as plain JSON types."""
        return json.loads(json.dumps(self._content))

    def _add(self, kind: str, **content: Any) -> Self:
        self._content["items"].append({"kind": kind, **content})
        return self


class Report:
    """A report made of sections.

    Example:
      >>> report = Report("A run")
      >>> _ = report.section("alignment", "Alignment").table([{"model": "base", "refused": 0.06}])
      >>> "<td>base</td>" in report.to_html()
      True
    """

    def __init__(self, title: str, *, subtitle: str = ""):
        """Starts an empty report.

        Args:
          title: the title.
          subtitle: a line under it.
        """
        self._title = title
        self._subtitle = subtitle
        self._sections: dict[str, Section] = {}

    def section(self, name: str, heading: str | None = None, *, order: int = 0) -> Section:
        """Adds a section and returns it, to be filled; one of the same name is replaced.

        Args:
          name: its name in addresses, of letters, digits, ``_`` and ``-``.
          heading: its heading; None takes the name.
          order: sections with a lower number come first.

        Returns:
          The empty section.
        """
        self._sections[_checked_name(name)] = Section(heading or name, order=order)
        return self._sections[name]

    def to_html(self) -> str:
        """Returns the whole file."""
        fragments = {name: section.to_fragment() for name, section in self._sections.items()}
        return _page(self._title, self._subtitle, fragments)


def write_fragment(workdir: str | os.PathLike[str], section: str, fragment: Section | Mapping[str, Any]) -> Path:
    """Writes one section of the report into the work directory; an earlier one of that name is replaced.

    Args:
      workdir: the run's directory.
      section: the section's name, of letters, digits, ``_`` and ``-``.
      fragment: a section or what `Section.to_fragment` gave.

    Returns:
      The file, ``report/<section>.json``.

    Raises:
      ValueError: if the name has other characters or the fragment cannot be shown.
    """
    content = fragment.to_fragment() if isinstance(fragment, Section) else dict(fragment)
    file = Path(workdir) / FRAGMENTS / f"{_checked_name(section)}.json"
    _fragment_html(section, content)  # Raises now rather than when the report is built.
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(content, indent=1))
    return file


def build_report(workdir: str | os.PathLike[str], title: str, *, subtitle: str = "") -> Path:
    """Builds ``report.html`` from the sections that the work directory holds.

    Args:
      workdir: the run's directory.
      title: the title.
      subtitle: a line under it.

    Returns:
      The file.

    Raises:
      ReportError: if there is no section or one cannot be read.
    """
    files = sorted((Path(workdir) / FRAGMENTS).glob("*.json"))
    if not files:
        raise ReportError(f"{workdir} has no sections of a report: write one with write_fragment first")
    fragments = {}
    for file in files:
        try:
            fragments[file.stem] = json.loads(file.read_text(encoding="utf-8"))
            _fragment_html(file.stem, fragments[file.stem])
        except ValueError as error:
            raise ReportError(
                f"{file} is no section of a report ({error}): delete it and run that part again"
            ) from error
    report = Path(workdir) / REPORT
    write_file(report, _page(title, subtitle, fragments))
    return report


def shorten(text: str, num_chars: int) -> str:
    """Returns a text on one line, cut at a word to at most `num_chars` characters.

    Characters that steer the display (controls, changes of direction) are left out.

    Args:
      text: the text.
      num_chars: characters at most, the final ``…`` included.

    Returns:
      The shortened text.

    Example:
      >>> shorten("one two  three", 9)
      'one two…'
    """
    text = " ".join(_printable(text).split())
    if len(text) <= num_chars:
        return text
    cut = text[: max(num_chars - 1, 0)]
    words = cut.rsplit(" ", 1)[0] if text[len(cut)] != " " and " " in cut else cut
    return (words if len(words) >= num_chars // 2 else cut).rstrip() + "…"


def _printable(text: str) -> str:
    def keep(char: str) -> bool:
        # Joiners (ZWJ, ZWNJ) are format characters too, and words and emoji need them.
        return char.isspace() or char in "\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co")

    return "".join(char for char in text if keep(char))


def _checked_name(name: str) -> str:
    if not name or not all(char.isascii() and (char.isalnum() or char in "_-") for char in name):
        raise ValueError(f"section {name!r}: expected a name of letters, digits, '_' and '-'")
    return name


def write_file(file: Path, text: str) -> None:
    """Writes a text file atomically; its directory exists."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _escape(text: str) -> str:
    return html.escape(_printable(str(text)))


def _page(title: str, subtitle: str, fragments: Mapping[str, Mapping[str, Any]]) -> str:
    ordered = sorted(fragments.items(), key=lambda item: (item[1].get("order", 0), item[0]))
    links = "".join(f'<a href="#{name}">{_escape(fragment["heading"])}</a>' for name, fragment in ordered)
    return _PAGE.format(
        title=_escape(title),
        subtitle=f'<p class="subtitle">{_escape(subtitle)}</p>' if subtitle else "",
        links=f"<nav>{links}</nav>" if len(ordered) > 1 else "",
        style=_STYLE,
        sections="\n".join(_fragment_html(name, fragment) for name, fragment in ordered),
    )


def _fragment_html(name: str, fragment: Mapping[str, Any]) -> str:
    try:
        items = "\n".join(_ITEMS[item["kind"]](item) for item in fragment["items"])
        return f'<section id="{name}">\n<h2>{_escape(fragment["heading"])}</h2>\n{items}\n</section>'
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"section {name!r} is not as Section.to_fragment makes it: {error!r}") from error


def _text_html(item: Mapping[str, Any]) -> str:
    paragraphs = [part for part in item["text"].split("\n\n") if part.strip()]
    return "\n".join(f"<p>{_escape(part)}</p>" for part in paragraphs)


def _table_html(item: Mapping[str, Any]) -> str:
    rows = tuple(tuple(Estimate(**cell) if isinstance(cell, Mapping) else cell for cell in row) for row in item["rows"])
    table = Table(tuple(item["columns"]), rows, tuple(item["digits"]))
    kinds = [' class="number"' if right else "" for right in table.numeric()]
    head = "".join(f"<th{kind}>{_escape(name)}</th>" for name, kind in zip(table.columns, kinds, strict=True))
    body = []
    for row in rows:
        cells = zip(row, table.digits, kinds, strict=True)
        body.append("".join(f"<td{kind}>{_cell_html(cell, digits)}</td>" for cell, digits, kind in cells))
    caption = f"<caption>{_escape(item['caption'])}</caption>" if item["caption"] else ""
    lines = "\n".join(f"<tr>{line}</tr>" for line in body)
    return (
        f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )


def _cell_html(cell: Cell, digits: int) -> str:
    if isinstance(cell, Estimate):
        value, interval = map(_escape, format_estimate(cell, digits=digits))
        return f'{value} <span class="interval">{interval}</span>'
    return _escape(format_cell(cell, digits=digits))


def _figure_html(item: Mapping[str, Any]) -> str:
    caption = f"<figcaption>{_escape(item['caption'])}</figcaption>" if item["caption"] else ""
    source = f"data:image/png;base64,{_escape(item['png'])}"
    # The width is in bytes 16 to 19 of a PNG; two thirds of it are sharp on ordinary and on dense screens.
    width = int.from_bytes(base64.b64decode(item["png"][:32])[16:20], "big") * 2 // 3
    return f'<figure><img src="{source}" width="{width}" alt="{_escape(item["alt"])}">{caption}</figure>'


def _transcripts_html(item: Mapping[str, Any]) -> str:
    parts = [f'<p class="caption">{_escape(item["caption"])}</p>'] if item["caption"] else []
    for row in item["rows"]:
        label = f' <span class="label">{_escape(row["label"])}</span>' if row["label"] else ""
        answers = []
        for name, answer in row["answers"].items():
            verdict = row["verdicts"].get(name)
            badge = f' <span class="label">{_escape(verdict)}</span>' if verdict else ""
            shown = f'<bdi dir="auto">{_escape(answer)}</bdi>' if answer else '<em class="empty">no text</em>'
            answers.append(f"<div><h4>{_escape(name)}{badge}</h4><p>{shown}</p></div>")
        parts.append(
            f'<article><h3><bdi dir="auto">{_escape(row["request"])}</bdi>{label}</h3>'
            f'<div class="answers">{"".join(answers)}</div></article>'
        )
    return "\n".join(parts)


def _notes_html(item: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{_escape(note)}</li>" for note in item["notes"])
    return f'<ol class="notes">{notes}</ol>'


_ITEMS = {
    "text": _text_html,
    "table": _table_html,
    "figure": _figure_html,
    "transcripts": _transcripts_html,
    "notes": _notes_html,
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --faint: #5b6570; --line: #d9dee3; --page: #ffffff;
  --card: #f5f7f9; --accent: #0b63a5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --faint: #9aa5b0; --line: #37404a;
  --page: #14181c; --card: #1d2329; --accent: #6db3ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; }
.subtitle, .caption, caption, figcaption, .notes { color: var(--faint); font-size: .92rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin-top: 1rem; }
a { color: var(--accent); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .94rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; border-bottom-width: 2px; }
th.number, td.number { text-align: right; padding: .4rem 0 .4rem 1.2rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
th.number { white-space: normal; }
td { overflow-wrap: break-word; }
td:first-child { min-width: 8rem; }
.interval { color: var(--faint); font-size: .88em; }
figure { margin: 1.25rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: .4rem;
  border: 1px solid var(--line); padding: .4rem; }
@media (prefers-color-scheme: dark) { img { filter: brightness(.9); } }
figcaption { margin-top: .4rem; max-width: 46rem; }
article { margin: 1rem 0; padding: .75rem 1rem 1rem; background: var(--card); border-radius: .4rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .75rem 1.5rem; }
.answers > div { border-left: 3px solid var(--line); padding-left: .75rem; min-width: 0; }
h4 { font-size: .85rem; margin: 0; color: var(--faint); font-weight: 600; }
.answers p { margin: .2rem 0 0; font-size: .92rem; overflow-wrap: anywhere; }
.label { display: inline-block; padding: 0 .5rem; border: 1px solid var(--line); border-radius: 1rem;
  color: var(--faint); font-size: .8rem; font-weight: 400; }
.empty { color: var(--faint); }
.notes { padding-left: 1.25rem; max-width: 46rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{subtitle}{links}</header>
{sections}
</main>
</body>
</html>
"""
