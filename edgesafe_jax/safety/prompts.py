"""Training and evaluation prompts of an alignment; no prompt is in both."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.errors import COUNT, check_ranges, lookup
from edgesafe_jax.guards import examples
from edgesafe_jax.guards.contrast import contrast_prompts, is_plain

PROMPT_KINDS = ("harmful", "sensitive", "plain")
"""Kinds of training prompts: harmful requests, benign ones near harmful topics, everyday ones."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The division of the prompt sets between training and evaluation.

    Attributes:
      num_reserved_questions: questions of NQ-open, the first of a fixed random order, that are kept out of training;
        those on which no guard is trained are the evaluation set "plain".
      jailbreak_chars: longest prompt of an in-the-wild jailbreak, in characters.
      seed: of the choice where not all are taken.
    """

    num_reserved_questions: int
    jailbreak_chars: int
    seed: int = 0


def _sample(prompts: Iterable[Prompt], num: int | None, seed: int) -> list[Prompt]:
    """Takes `num` prompts in a random order that depends on the seed and the texts alone; None takes all in order."""
    prompts = list(prompts)
    if num is None or num >= len(prompts):
        return prompts
    return random.Random(seed).sample(prompts, num)


def _split_questions(num_reserved: int) -> tuple[list[Prompt], list[Prompt]]:
    """Splits the plain questions, in a fixed random order, into those that are kept out of training and the rest."""
    questions = corpora.questions(as_sentences=True)
    random.Random(0).shuffle(questions)
    return questions[:num_reserved], questions[num_reserved:]


def _held_out_questions(num: int | None, split: Split) -> list[Prompt]:
    """Of the questions kept out of training, those that no guard is trained on."""
    reserved, _ = _split_questions(split.num_reserved_questions)
    of_guards = {p.text for role in ("teacher", "judge") for p in examples.plain_of(role, len(reserved))}
    return [p for p in reserved if p.text not in of_guards][:num]


def _jailbreaks(num: int | None, split: Split) -> list[Prompt]:
    """StrongREJECT requests inside in-the-wild jailbreaks, each request in at most one."""
    requests = corpora.strongreject()
    num = len(requests) if num is None else num
    return corpora.jailbreak_prompts(requests, num=num, max_chars=split.jailbreak_chars, seed=split.seed)


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One set of prompts on which an aligned model is measured.

    Attributes:
      title: in tables.
      harmful: whether its prompts are harmful requests; otherwise refusing them is over-refusal.
      load: from a number of prompts (None for all) and the split to the prompts.
      disjoint: whether training prompts that overlap it are left out by comparing texts.
    """

    title: str
    harmful: bool
    load: Callable[[int | None, Split], list[Prompt]]
    disjoint: bool = True


EVALUATION_SETS: dict[str, EvaluationSet] = {
    "strongreject": EvaluationSet("StrongREJECT", True, lambda num, s: _sample(corpora.strongreject(), num, s.seed)),
    "harmbench": EvaluationSet(
        "HarmBench standard", True, lambda num, s: _sample(corpora.harmbench("standard"), num, s.seed)
    ),
    "jailbreaks": EvaluationSet("in-the-wild jailbreaks", True, _jailbreaks, disjoint=False),
    "sensitive": EvaluationSet(
        "sensitive benign", False, lambda num, s: _sample(corpora.sensitive_benign(), num, s.seed)
    ),
    "plain": EvaluationSet("plain questions", False, _held_out_questions, disjoint=False),
}
"""The evaluation sets. One entry adds a set; training prompts that overlap it are left out."""


def evaluation_prompts(sizes: Mapping[str, int | None], split: Split) -> dict[str, list[Prompt]]:
    """Returns the evaluation sets by name.

    Args:
      sizes: how many prompts of each set; None for all, 0 for none.
      split: what they are taken from.

    Returns:
      Prompts by set, in the order of `EVALUATION_SETS`; a set that is not named, or empty, is left out.

    Raises:
      ConfigError: an unknown set, or a negative size.
    """
    for name in sizes:
        lookup(EVALUATION_SETS, name, "evaluation set")
    check_ranges(sizes, dict.fromkeys(sizes, COUNT), prefix="the size of ")
    sets = {name: each.load(sizes[name], split) for name, each in EVALUATION_SETS.items() if sizes.get(name, 0) != 0}
    return {name: prompts for name, prompts in sets.items() if prompts}


def training_prompts(
    *,
    num_harmful: int | None,
    num_sensitive: int | None,
    num_plain: int | None,
    split: Split,
    fits: Callable[[str], bool] | None = None,
) -> tuple[dict[str, list[Prompt]], int]:
    """Returns the training prompts by group, without any that overlaps an evaluation set.

    Harmful: AdvBench, the harmful halves of the contrast pairs, and of Do-Not-Answer the classes that are requests for
    harm. Sensitive: contrast prompts with benign intents. Plain: everyday prompts and questions of NQ-open.

    Args:
      num_harmful: how many, None for all.
      num_sensitive: how many, None for all.
      num_plain: how many, None for all.
      split: what is kept out of training, and the seed of the choice.
      fits: which texts may be chosen, such as those of some length; None for all.

    Returns:
      Prompts by group, and how many were removed because they overlap an evaluation prompt.

    Raises:
      ConfigError: a negative number.
    """
    wanted = {"harmful": num_harmful, "sensitive": num_sensitive, "plain": num_plain}
    check_ranges(wanted, dict.fromkeys(wanted, COUNT), prefix="num_")
    contrast = contrast_prompts()
    requests = [
        p
        for p in corpora.do_not_answer()
        if p.category in ("malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive")
    ]
    reserved, questions = _split_questions(split.num_reserved_questions)
    groups = {
        "harmful": [*(p for p in contrast if p.label == "harmful"), *corpora.advbench(), *requests],
        "sensitive": [p for p in contrast if p.label == "benign" and not is_plain(p)],
        "plain": [*(p for p in contrast if is_plain(p)), *questions],
    }
    evaluated = evaluation_prompts(
        {name: None for name, each in EVALUATION_SETS.items() if each.disjoint}, split
    ).values()
    held_out = [*reserved, *(p for prompts in evaluated for p in prompts)]
    removed = 0
    chosen: dict[str, list[Prompt]] = {}
    for name, prompts in groups.items():
        kept, dropped = corpora.remove_overlap(prompts, held_out)
        removed += len(dropped)
        distinct = [p for p in _distinct(kept) if fits is None or fits(p.text)]
        chosen[name] = _sample(distinct, wanted[name], split.seed)
    return chosen, removed


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({corpora.normalise(p.text): p for p in reversed(prompts)}.values())[::-1]
