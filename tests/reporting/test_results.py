"""Results files: what is read, what is refused, and the page and table made of them."""

import dataclasses
import json

import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.reporting import results

CONTENT = {
    "title": "Rolls of a die",
    "room": "planning",
    "command": "python -m roll",
    "commit": "abc1234",
    "date": "2026-01-31",
    "device": "CPU, 2 cores",
    "versions": {"jax": "0.10.2"},
    "notes": ["The die is fair."],
    "headlines": [
        {"text": "mean of a roll", "name": "dice/fair/mean", "baseline": "loaded", "against": "dice/loaded/mean"}
    ],
    "numbers": [
        {"name": "dice/fair/mean", "value": 3.5, "low": 3.25, "high": 3.75, "n": 600},
        {"name": "dice/loaded/mean", "value": 5.0},
        {"name": "dice/loaded/sixes", "value": 0.1234, "high": 0.2},
        {"name": "coin/any/heads", "value": 4.5, "low": 4, "high": 9.9, "open": "low"},
        {"name": "rolls", "value": 134515},
    ],
}


def changed(**fields):
    return {**CONTENT, **fields}


def without(name):
    return {key: value for key, value in CONTENT.items() if key != name}


def numbers(**fields):
    return changed(numbers=[{**CONTENT["numbers"][0], **fields}], headlines=[])


def write(folder, content, name="dice.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_written_file_is_read_back_with_each_number_on_its_line(tmp_path):
    result = results.read_result(write(tmp_path, CONTENT))
    copy = tmp_path / "copy.json"
    results.write_result(copy, result)
    assert results.read_result(copy) == result
    lines = copy.read_text().splitlines()
    assert sum('"value"' in line for line in lines) == len(CONTENT["numbers"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("title"), "the field 'title' is missing"),
        (without("numbers"), "the field 'numbers' is missing"),
        (without("commit"), "the field 'commit' is missing"),
        (without("versions"), "the field 'versions' is missing"),
        (changed(titel="x"), "field='titel'.*Did you mean 'title'"),
        (changed(room="planing"), "room='planing'.*Did you mean 'planning'"),
        (changed(title=3), "title 3: expected a text"),
        (changed(title=""), 'title "": expected a text'),
        (changed(commit=7), "commit 7: expected a text or null"),
        (changed(date="31.1.2026"), "date.*expected a date such as"),
        (changed(date="20260131"), "date.*expected a date such as"),
        (changed(versions=["jax"]), "versions.*from package to version"),
        (changed(notes="one"), "notes.*expected a list of texts"),
        (changed(numbers={}), "numbers {}: expected a list"),
        (changed(numbers=[], headlines=[]), "expected at least one number"),
        (changed(numbers=[3], headlines=[]), r"numbers\[0\] is a int: expected an object"),
        (changed(numbers=CONTENT["numbers"] * 2), "dice/fair/mean.*each name once"),
        (changed(headlines=[{"text": "x", "name": "dice/fair/maen"}]), "Did you mean 'dice/fair/mean'"),
        (changed(headlines=[{"name": "dice/fair/mean"}]), r"headlines\[0\]: the field 'text' is missing"),
        (changed(headlines=[{"text": 1, "name": "dice/fair/mean"}]), r"headlines\[0\].text 1: expected a text"),
        (numbers(name=""), r"numbers\[0\].name"),
        (numbers(name="a//b"), r"numbers\[0\].name"),
        (numbers(value=None), "value of 'dice/fair/mean' null: expected a finite number"),
        (numbers(value="3.5"), "value of 'dice/fair/mean' \"3.5\": expected a finite number"),
        (numbers(value=True), "expected a finite number"),
        (numbers(value=float("nan")), "NaN: expected a finite number"),
        (numbers(high=float("inf")), "Infinity: expected a finite number or null"),
        (numbers(low=9), "low of 'dice/fair/mean' 9: expected at most high=3.75"),
        (numbers(n=0), "n of 'dice/fair/mean' 0: expected a positive whole number"),
        (numbers(n=2.5), "expected a positive whole number"),
        (numbers(n=True), "expected a positive whole number"),
        (numbers(open="left"), "expected low, high, both or null"),
        (numbers(low=None, open="low"), "expected an end that is given"),
        (numbers(lo=3), "field='lo'.*Did you mean 'low'"),
        ([], "is a list: expected an object"),
        ("{", "is not JSON"),
    ],
)
def test_a_bad_file_is_one_message_that_names_the_file(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match=message) as caught:
        results.read_result(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.json is a directory: expected a results file"):
        results.read_result(tmp_path / "folder.json")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        results.read_result(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="has no results files"):
        results.read_results(tmp_path / "none")


def test_writing_refuses_what_would_not_be_read(tmp_path):
    result = dataclasses.replace(results.parse_result(CONTENT, "here"), numbers=(results.Number("other", 1.0),))
    with pytest.raises(ConfigError, match="dice/fair/mean"):
        results.write_result(tmp_path / "dice.json", result)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_number_is_refused_with_the_closest_match():
    result = results.parse_result(CONTENT, "here")
    with pytest.raises(ConfigError, match="Did you mean 'dice/loaded/sixes'"):
        result.number("dice/loaded/sixs")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (results.Number("x", 0.96, 0.93, 0.98), "0.96 [0.93, 0.98]"),
        (results.Number("x", 1.0, 0.97, 1.0), "1.00 [0.97, 1.00]"),
        (results.Number("x", 4.5, 4, 9.9, open="low"), "4.5 [<4.0, 9.9]"),
        (results.Number("x", 33, 30, 40, open="high"), "33 [30, >40]"),
        (results.Number("x", 37, 16, 40, open="both"), "37 [<16, >40]"),
        (results.Number("x", 0.007, high=0.017), "0.007 (at most 0.017)"),
        (results.Number("x", 0.28, low=0.25), "0.28 (at least 0.25)"),
        (results.Number("x", 196700), "196,700"),
        (results.Number("x", 1157.26, 1047.1, 1254.0), "1,157 [1,047, 1,254]"),
        (results.Number("x", 0.0004, 0.0002, 0.0006), "0.0004 [0.0002, 0.0006]"),
        (results.Number("x", 0.95822784), "0.958"),
        (results.Number("x", 1.5e-6), "1.5e-06"),
        (results.Number("x", 0), "0"),
        (results.Number("x", 0.0), "0.00"),
        (results.Number("x", 1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
    ],
)
def test_a_number_is_shown_with_as_many_decimals_as_its_ends(number, text):
    assert number.text() == text


def test_the_page_has_command_origin_tables_and_notes():
    page = results.results_page({"dice": results.parse_result(CONTENT, "here")})
    assert "## Planning\n\n### Rolls of a die\n\n```\npython -m roll\n```" in page
    assert "`dice.json`; 2026-01-31, commit abc1234; CPU, 2 cores; jax 0.10.2." in page
    assert "| fair | 600 | 3.50 [3.25, 3.75] | - |" in page
    assert "| loaded | - | 5.0 | 0.123 (at most 0.200) |" in page
    assert "coin:\n\n|  | heads |" in page
    assert "| rolls | 134,515 |" in page
    assert page.endswith("- The die is fair.\n")


def test_rows_that_share_no_column_are_in_tables_of_their_own():
    many = [{"name": name, "value": 1} for name in ("t/a/x", "t/b/y", "t/c/x", "t/d/z", "t/e/y")]
    page = results.results_page({"d": results.parse_result(changed(numbers=many, headlines=[]), "here")})
    tables = [part for part in page.split("\n\n") if part.startswith("|  |")]
    rows = [[line.split("|")[1].strip() for line in table.splitlines()[2:]] for table in tables]
    assert rows == [["a", "c"], ["b", "e"], ["d"]]


def test_the_table_of_headlines_has_number_and_baseline():
    table = results.headline_table({"dice": results.parse_result(CONTENT, "here")})
    assert table.splitlines()[2] == "| Planning | mean of a roll | 3.50 [3.25, 3.75] | loaded: 5.0 |"
    with pytest.raises(ConfigError, match="no results file has a headline"):
        results.headline_table({"dice": results.parse_result(changed(headlines=[]), "here")})


def test_more_headlines_than_the_table_may_hold_are_refused(tmp_path):
    write(tmp_path, changed(headlines=CONTENT["headlines"] * 13))
    with pytest.raises(ConfigError, match="13 headlines: expected at most 12"):
        results.read_results(tmp_path)


def test_results_are_ordered_by_room_and_name(tmp_path):
    for name, room in (("b", "safety"), ("c", "planning"), ("a", "planning")):
        write(tmp_path, changed(room=room), f"{name}.json")
    assert list(results.read_results(tmp_path)) == ["b", "a", "c"]


def test_the_table_stands_between_the_markers():
    text = f"before {results.BEGIN}\nold\n{results.END} after"
    new = results.insert_table(text, "| new |", "README.md")
    assert new == f"before {results.BEGIN}\n| new |\n{results.END} after"
    assert results.insert_table(new, "| new |", "README.md") == new


@pytest.mark.parametrize(
    "text",
    [
        "",
        results.BEGIN,
        f"{results.END}{results.BEGIN}",
        f"{results.BEGIN * 2}{results.END}",
        f"{results.BEGIN}{results.END * 2}",
    ],
)
def test_markers_that_are_not_there_once_are_refused(text):
    with pytest.raises(ConfigError, match=r"README\.md: expected the markers"):
        results.insert_table(text, "", "README.md")


def test_a_summary_becomes_numbers_with_their_ends():
    summary = {"a/rate": 0.5, "a/rate_low": 0.25, "a/rate_high": 0.75, "a/loss": None, "a/steps_low": 3}
    assert results.numbers_from_summary(summary) == (
        results.Number("a/rate", 0.5, 0.25, 0.75),
        results.Number("a/steps_low", 3),
    )


def test_the_environment_says_device_and_versions(tmp_path):
    found = results.environment(tmp_path, packages=("jax",))
    assert found["commit"] is None
    assert found["device"].startswith("CPU, ")
    assert found["isa"]
    assert list(found["versions"]) == ["jax"]
    results.parse_result({**CONTENT, **found}, "here")
