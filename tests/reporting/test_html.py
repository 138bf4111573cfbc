import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from edgesafe_jax.reporting import Estimate, Report, Section, build_report, shorten, write_fragment

VOID = {"meta", "img", "br", "link"}


def make_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 60), "#0072b2").save(buffer, format="png")
    return buffer.getvalue()


class Checker(HTMLParser):
    """Checks that tags nest, and collects them with their attributes and texts."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def full_section() -> Section:
    section = Section("Alignment & more", order=1)
    section.text("First.\n\nSecond.")
    section.table([{"model": "base", "refused": Estimate(0.91, 0.88, 0.94), "n": 1000}], caption="Rates.")
    section.figure(make_png(), alt="loss falling", caption="Loss.")
    row = {"request": "How?", "answers": {"base": "So.", "student": ""}, "label": "benign", "verdicts": {"base": "ok"}}
    section.transcripts([row], caption="Answers.")
    return section.notes(["A note."])


def test_page_nests_and_needs_nothing_from_elsewhere():
    report = Report("A run", subtitle="Under it")
    report._sections["alignment"] = full_section()
    page = report.to_html()
    checker = Checker(page)
    for name, attributes in checker.tags:
        assert name not in ("script", "link", "iframe")
        assert not any(attribute.startswith("on") for attribute in attributes)
        for attribute in ("src", "href"):
            assert attributes.get(attribute, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?:|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    expected = ["A run", "Under it", "Alignment & more", "First.", "Second.", "Rates.", "0.91", "[0.88, 0.94]", "1,000"]
    expected += ["Loss.", "Answers.", "How?", "benign", "base", "ok", "So.", "student", "no text", "A note."]
    remaining = iter(checker.texts)
    assert all(text in remaining for text in expected), "in this order"


def test_numbers_are_set_to_the_right_under_their_heads():
    report = Report("A run")
    report.section("a").table([("x", 0.5, "y"), ("z", None, "w")], ["name", "share", "text"])
    cells = [
        (name, attributes.get("class")) for name, attributes in Checker(report.to_html()).tags if name in ("th", "td")
    ]
    assert cells == [(tag, kind) for tag in ("th", "td", "td") for kind in (None, "number", None)]


def test_figures_are_whole_and_have_a_text():
    png = make_png()
    report = Report("A run")
    report.section("a").figure(png, alt='a "quoted" curve')
    [image] = [attributes for name, attributes in Checker(report.to_html()).tags if name == "img"]
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == png
    assert image["alt"] == 'a "quoted" curve'
    assert image["width"] == "64"
    for bad, alt in ((b"JFIF", "x"), (png, " ")):
        with pytest.raises(ValueError, match="expected the bytes of a PNG and a text alt"):
            report.section("a").figure(bad, alt=alt)


def test_texts_cannot_become_markup_or_steer_the_display():
    evil = '<script>alert(1)</script><img src=x onerror="y">\u202e\x00\x1b[2J\ud800'
    report = Report(evil, subtitle=evil)
    section = report.section("a", evil)
    section.text(evil).notes([evil]).table([{evil: evil}], caption=evil)
    section.figure(make_png(), alt=evil, caption=evil)
    rows = [{"request": evil, "answers": {evil: evil}, "label": evil, "verdicts": {evil: evil}}]
    section.transcripts(rows, caption=evil, request_chars=500)
    report.section("b")  # So that the headings are linked too.
    page = report.to_html()
    page.encode()
    names = [name for name, _ in Checker(page).tags]
    assert "script" not in names
    assert names.count("img") == 1
    assert not set("\u202e\x00\x1b") & set(page)


def test_transcripts_are_shortened_before_they_are_kept():
    secret = "word " * 100 + "SECRET"
    row = {"request": secret, "answers": {"base": secret}}
    fragment = Section("A").transcripts([row], request_chars=30, answer_chars=50).to_fragment()
    assert "SECRET" not in json.dumps(fragment)
    [kept] = fragment["items"][0]["rows"]
    assert len(kept["request"]) <= 30
    assert len(kept["answers"]["base"]) <= 50


@pytest.mark.parametrize(
    ("text", "num_chars", "expected"),
    [
        ("short", 5, "short"),
        ("two  lines\nhere ", 20, "two lines here"),
        ("one two three", 12, "one two…"),
        ("one two three", 8, "one two…"),
        ("one two three", 7, "one…"),
        ("abcdefghij", 4, "abc…"),
        ("ab cdefghijklmnop", 9, "ab cdefg…"),
        ("a\u202eb\x07c\u200dd", 9, "abc\u200dd"),
        ("", 3, ""),
    ],
)
def test_shorten(text, num_chars, expected):
    assert shorten(text, num_chars) == expected
    assert len(expected) <= num_chars


def test_sections_of_several_parts_compose_into_one_file(tmp_path):
    write_fragment(tmp_path, "guards", Section("Guards", order=2).text("old"))
    write_fragment(tmp_path, "planning", Section("Planning", order=3).text("plan"))
    first = build_report(tmp_path, "Quickstart", subtitle="two parts").read_text()
    write_fragment(tmp_path, "alignment", full_section().to_fragment())
    write_fragment(tmp_path, "guards", Section("Guards", order=2).text("new"))
    report = build_report(tmp_path, "Quickstart")
    assert report == tmp_path / "report.html"
    page = report.read_text()
    assert "old" in first
    assert "old" not in page
    ids = [attributes["id"] for name, attributes in Checker(page).tags if name == "section"]
    assert ids == ["alignment", "guards", "planning"]
    links = [attributes["href"] for name, attributes in Checker(page).tags if name == "a"]
    assert links == [f"#{name}" for name in ids]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report.html"]
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_a_kept_section_shows_as_the_section_itself(tmp_path):
    report = Report("A run")
    report._sections["a"] = full_section()
    write_fragment(tmp_path, "a", full_section())
    assert build_report(tmp_path, "A run").read_text() == report.to_html()


def test_bad_fragments_are_named(tmp_path):
    with pytest.raises(ValueError, match="has no sections of a report"):
        build_report(tmp_path, "A run")
    for name in ("", "../a", "a b", "ä"):
        with pytest.raises(ValueError, match="expected a name of letters"):
            write_fragment(tmp_path, name, Section("A"))
        with pytest.raises(ValueError, match="expected a name of letters"):
            Report("A run").section(name)
    for fragment in ({}, {"heading": "A", "items": [{"kind": "video"}]}, {"heading": "A", "items": [{"kind": "text"}]}):
        with pytest.raises(ValueError, match="section 'a' is not as Section"):
            write_fragment(tmp_path, "a", fragment)
    write_fragment(tmp_path, "a", Section("A"))
    for content in ('{"heading": ', "{}", "[]"):
        (tmp_path / "report" / "a.json").write_text(content)
        with pytest.raises(ValueError, match=r"report/a\.json is no section .* delete it"):
            build_report(tmp_path, "A run")
