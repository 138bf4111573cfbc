"""The contrast prompts written for the project: schema, counts, pairs and balance."""

import collections
import importlib.resources
import json
import re
import unicodedata
from typing import Any

import pytest

INTENTS = frozenset(
    {
        "definition",
        "fiction",
        "figurative",
        "harm",
        "help",
        "history",
        "law",
        "plain",
        "policy",
        "profession",
        "protection",
        "science",
        "task",
        "warning_signs",
    }
)
MAX_CHARACTERS = 300


@pytest.fixture(scope="module")
def lines() -> list[str]:
    path = importlib.resources.files("edgesafe_jax") / "guards" / "data" / "contrast_prompts.jsonl"
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def rows(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def normalise(text: str) -> str:
    """Lower case, compatibility forms folded, everything but letters and digits one space."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[^a-z0-9]+", " ", folded).strip()


def test_every_line_has_the_schema(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert set(row) == {"prompt", "topic", "intent", "label", "pair"}
        assert all(isinstance(row[key], str) for key in ("prompt", "topic", "intent", "label"))
        assert row["pair"] is None or type(row["pair"]) is int
        assert row["label"] in {"benign", "harmful"}
        assert row["intent"] in INTENTS


def test_label_intent_and_topic_agree(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert (row["label"] == "harmful") == (row["intent"] == "harm"), row["prompt"][:60]
        assert (row["topic"] == "everyday") == (row["intent"] == "plain"), row["prompt"][:60]
        if row["topic"] == "everyday":
            assert row["pair"] is None


def test_prompts_are_clean_and_short(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        prompt = row["prompt"]
        assert prompt == prompt.strip()
        assert 8 <= len(prompt) <= MAX_CHARACTERS, prompt[:60]
        assert prompt.isascii(), prompt[:60]
        assert prompt.isprintable(), prompt[:60]
        assert "  " not in prompt, prompt[:60]


def test_no_duplicates_after_normalisation(rows: list[dict[str, Any]]) -> None:
    counts = collections.Counter(normalise(row["prompt"]) for row in rows)
    assert [text[:60] for text, count in counts.items() if count > 1] == []


def test_normalise_folds_case_punctuation_and_forms() -> None:
    assert normalise("  What's  IT? ") == normalise("what s it")
    assert normalise("\uff21bc") == "abc"
    assert normalise("abc") != normalise("abd")


def test_counts(rows: list[dict[str, Any]]) -> None:
    everyday = [row for row in rows if row["topic"] == "everyday"]
    sensitive = [row for row in rows if row["topic"] != "everyday" and row["label"] == "benign"]
    harmful = [row for row in rows if row["label"] == "harmful"]
    assert len(sensitive) >= 900
    assert len(harmful) >= 250
    assert len(everyday) >= 250
    assert len(everyday) + len(sensitive) + len(harmful) == len(rows)


def test_every_topic_has_enough_benign_prompts_and_a_pair(rows: list[dict[str, Any]]) -> None:
    benign: collections.Counter[str] = collections.Counter()
    harmful: collections.Counter[str] = collections.Counter()
    for row in rows:
        (benign if row["label"] == "benign" else harmful)[row["topic"]] += 1
    sensitive = set(benign) - {"everyday"}
    assert len(sensitive) >= 60
    assert min(benign[topic] for topic in sensitive) >= 8
    # Prompts whose alarming words belong to no harmful topic stand alone.
    assert sensitive - set(harmful) == {"figurative"}
    assert min(harmful.values()) >= 2


def test_every_pair_is_one_harmful_and_one_benign_of_a_topic(rows: list[dict[str, Any]]) -> None:
    pairs: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        if row["pair"] is not None:
            pairs[row["pair"]].append(row)
    assert sorted(pairs) == list(range(len(pairs)))
    for number, members in pairs.items():
        assert sorted(row["label"] for row in members) == ["benign", "harmful"], number
        assert len({row["topic"] for row in members}) == 1, number
    assert all(row["pair"] is not None for row in rows if row["label"] == "harmful")


def test_pairs_share_words(rows: list[dict[str, Any]]) -> None:
    """A pair is contrast data only if its two prompts are worded alike."""
    words: dict[int, list[set[str]]] = collections.defaultdict(list)
    for row in rows:
        if row["pair"] is not None:
            words[row["pair"]].append(set(normalise(row["prompt"]).split()))
    shared = {number: first & second for number, (first, second) in words.items()}
    assert [number for number, both in shared.items() if len(both) < 2] == []
    jaccard = [len(first & second) / len(first | second) for first, second in words.values()]
    assert sum(jaccard) / len(jaccard) > 0.3


def test_form_does_not_tell_the_label(rows: list[dict[str, Any]]) -> None:
    """Questions and the usual opening words occur under both labels at similar rates."""
    by_label = {label: [row["prompt"] for row in rows if row["label"] == label] for label in ("benign", "harmful")}
    questions = {
        label: sum(prompt.endswith("?") for prompt in prompts) / len(prompts) for label, prompts in by_label.items()
    }
    assert abs(questions["benign"] - questions["harmful"]) < 0.2
    lengths = {label: sum(map(len, prompts)) / len(prompts) for label, prompts in by_label.items()}
    assert 0.75 < lengths["benign"] / lengths["harmful"] < 1.33
    # Openings that the harmful prompts use often are used at least as often by benign ones.
    first = {label: collections.Counter(prompt.split()[0] for prompt in prompts) for label, prompts in by_label.items()}
    for word, count in first["harmful"].items():
        if count >= 5:
            assert first["benign"][word] >= count, word


def test_order_carries_no_label(lines: list[str]) -> None:
    """The order of lines carries no label: both halves hold about the same share of harm."""
    half = len(lines) // 2
    shares = [
        sum(json.loads(line)["label"] == "harmful" for line in part) / len(part)
        for part in (lines[:half], lines[half:])
    ]
    assert abs(shares[0] - shares[1]) < 0.06
