"""Which prompts an alignment is trained on and which it is measured on; no prompt is in both."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.guards.contrast import contrast_prompts, is_plain

GROUPS = ("harmful", "sensitive", "plain")
"""Kinds of prompts: harmful requests, benign ones near harmful topics, everyday ones."""


@dataclasses.dataclass(frozen=True)
class EvaluationSizes:
    """How many prompts of each evaluation set are used; None takes all of it.

    Attributes:
      strongreject: harmful requests, 313 in all.
      harmbench: standard behaviours of HarmBench, 200 in all.
      jailbreaks: StrongREJECT requests inside in-the-wild jailbreaks.
      sensitive: sensitive but benign prompts, 150 in all.
      plain: questions of NQ-open that are kept out of training, 600 in all.
    """

    strongreject: int | None = None
    harmbench: int | None = None
    jailbreaks: int | None = 100
    sensitive: int | None = None
    plain: int | None = 200


def _sample(prompts: Iterable[Prompt], num: int | None, seed: int) -> list[Prompt]:
    """Takes `num` prompts in a random order that depends on the seed and the texts alone; None takes all in order."""
    prompts = list(prompts)
    if num is None or num >= len(prompts):
        return prompts
    return random.Random(seed).sample(prompts, num)


def _split_questions() -> tuple[list[Prompt], list[Prompt]]:
    """Splits the plain questions, in a fixed random order, into those that are kept out of training and the rest."""
    questions = corpora.questions(as_sentences=True)
    random.Random(0).shuffle(questions)
    return questions[:1000], questions[1000:]


def _held_out_questions(num: int | None) -> list[Prompt]:
    """Of the questions kept out of training, those that no guard is trained on (`examples.plain_of`: 200 to 599)."""
    reserved, _ = _split_questions()
    return [*reserved[:200], *reserved[600:]][:num]


def evaluation_prompts(sizes: EvaluationSizes | None = None, *, seed: int = 0) -> dict[str, list[Prompt]]:
    """Returns the evaluation sets by name.

    Args:
      sizes: how many of each; a size of 0 leaves the set out.
      seed: of the choice where not all are taken.

    Returns:
      Prompts by set: strongreject, harmbench, jailbreaks (harmful), sensitive, plain (benign).
    """
    sizes = sizes or EvaluationSizes()
    strongreject = corpora.strongreject()
    jailbreaks: list[Prompt] = []
    if sizes.jailbreaks != 0:
        num = 100 if sizes.jailbreaks is None else sizes.jailbreaks
        jailbreaks = corpora.jailbreak_prompts(strongreject, num=num, max_chars=1000, seed=seed)
    sets = {
        "strongreject": _sample(strongreject, sizes.strongreject, seed),
        "harmbench": _sample(corpora.harmbench("standard"), sizes.harmbench, seed),
        "jailbreaks": jailbreaks,
        "sensitive": _sample(corpora.sensitive_benign(), sizes.sensitive, seed),
        "plain": _held_out_questions(sizes.plain),
    }
    return {name: prompts for name, prompts in sets.items() if prompts}


HARMFUL_SETS = ("strongreject", "harmbench", "jailbreaks")
BENIGN_SETS = ("sensitive", "plain")


def training_prompts(
    *,
    num_harmful: int | None,
    num_sensitive: int | None,
    num_plain: int | None,
    seed: int = 0,
    fits: Callable[[str], bool] | None = None,
) -> tuple[dict[str, list[Prompt]], int]:
    """Returns the training prompts by group, without any that overlaps an evaluation set.

    Harmful: AdvBench, the harmful halves of the contrast pairs, and of Do-Not-Answer the classes that are requests for
    harm. Sensitive: contrast prompts with benign intents. Plain: everyday prompts and questions of NQ-open.

    Args:
      num_harmful: how many, None for all.
      num_sensitive: how many, None for all.
      num_plain: how many, None for all.
      seed: of the choice.
      fits: which texts may be chosen, such as those of some length; None for all.

    Returns:
      Prompts by group, and how many were removed because they overlap an evaluation prompt.
    """
    contrast = contrast_prompts()
    requests = [
        p
        for p in corpora.do_not_answer()
        if p.category in ("malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive")
    ]
    reserved, questions = _split_questions()
    groups = {
        "harmful": [*(p for p in contrast if p.label == "harmful"), *corpora.advbench(), *requests],
        "sensitive": [p for p in contrast if p.label == "benign" and not is_plain(p)],
        "plain": [*(p for p in contrast if is_plain(p)), *questions],
    }
    evaluated = evaluation_prompts(EvaluationSizes(jailbreaks=0, plain=0)).values()
    held_out = [*reserved, *(p for prompts in evaluated for p in prompts)]
    wanted = {"harmful": num_harmful, "sensitive": num_sensitive, "plain": num_plain}
    removed = 0
    chosen: dict[str, list[Prompt]] = {}
    for name, prompts in groups.items():
        kept, dropped = corpora.remove_overlap(prompts, held_out)
        removed += len(dropped)
        distinct = [p for p in _distinct(kept) if fits is None or fits(p.text)]
        chosen[name] = _sample(distinct, wanted[name], seed)
    return chosen, removed


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({corpora.normalise(p.text): p for p in reversed(prompts)}.values())[::-1]
