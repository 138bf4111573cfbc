"""Training and evaluation prompts of an alignment; no prompt is in both.

Two halves. Choices (learning rates, objectives, stopping) are made on `half="selection"`, which is the default. The
sets of the other half, `half="final"`, were set aside before anything was chosen on them: they are read only by
request, once, for a final table. The sets that earlier versions of this project were developed on (`looked_at`) belong
to the selection whole. A prompt of either half that overlaps a training prompt, or a set that was looked at, is left
out of the half; in turn `training_prompts` leaves out whatever overlaps a set of either half.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Half, Prompt, forms, take_half
from edgesafe_jax.corpora.everyday import everyday_questions
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
      half: which half of the evaluation sets is read: "selection", or "final" for the table that is made once.
    """

    num_reserved_questions: int
    jailbreak_chars: int
    seed: int = 0
    half: Half = "selection"

    def __post_init__(self):
        lookup(dict.fromkeys(get_args(Half)), self.half, "split")


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


@functools.cache
def _used() -> tuple[Prompt, ...]:
    """Every packaged prompt that may be trained on, and those of the sets that were looked at."""
    return (
        *contrast_prompts(),
        *corpora.advbench(),
        *corpora.do_not_answer(),
        *corpora.questions(as_sentences=True),
        *corpora.strongreject(),
        *corpora.harmbench("standard"),
        *corpora.sensitive_benign(),
    )


def _halved(read: Callable[[Half], list[Prompt]], label: corpora.Label) -> Callable[[int | None, Split], list[Prompt]]:
    """Makes the `load` of one side of a set with two halves: its prompts that overlap nothing that is used."""

    @functools.cache
    def fresh(half: Half) -> tuple[Prompt, ...]:
        return tuple(corpora.remove_overlap([p for p in read(half) if p.label == label], _used())[0])

    return lambda num, split: _sample(fresh(split.half), num, split.seed)


def _matched(half: Half) -> list[Prompt]:
    """The matched pairs of a half; both sides of a pair are in one half."""
    pairs = corpora.matched_pairs()
    partner = {b.text: a.text for a, b in zip(pairs[0::2], pairs[1::2], strict=True)}
    return take_half(pairs, half, key=lambda p: partner.get(p.text, p.text))


def _past(half: Half) -> list[Prompt]:
    return take_half([*forms.past_requests(), *forms.past_goals()], half)


def _yes_no(half: Half) -> list[Prompt]:
    return take_half(forms.yes_no_questions(), half)


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One set of prompts on which an aligned model is measured.

    Attributes:
      title: in tables.
      harmful: whether its prompts are harmful requests; otherwise refusing them is over-refusal.
      load: from a number of prompts (None for all) and the split to the prompts.
      disjoint: whether training prompts that overlap it are left out by comparing texts.
      looked_at: whether earlier choices were made on all of it, so that it has no final half.
    """

    title: str
    harmful: bool
    load: Callable[[int | None, Split], list[Prompt]]
    disjoint: bool = True
    looked_at: bool = False


EVALUATION_SETS: dict[str, EvaluationSet] = {
    "strongreject": EvaluationSet(
        "StrongREJECT", True, lambda num, s: _sample(corpora.strongreject(), num, s.seed), looked_at=True
    ),
    "harmbench": EvaluationSet(
        "HarmBench standard", True, lambda num, s: _sample(corpora.harmbench("standard"), num, s.seed), looked_at=True
    ),
    "jailbreaks": EvaluationSet("in-the-wild jailbreaks", True, _jailbreaks, disjoint=False, looked_at=True),
    "sensitive": EvaluationSet(
        "sensitive benign", False, lambda num, s: _sample(corpora.sensitive_benign(), num, s.seed), looked_at=True
    ),
    "plain": EvaluationSet("plain questions", False, _held_out_questions, disjoint=False, looked_at=True),
    "matched_harmful": EvaluationSet("matched pairs, harmful", True, _halved(_matched, "harmful")),
    "matched_benign": EvaluationSet("matched pairs, benign", False, _halved(_matched, "benign")),
    "indirect_harmful": EvaluationSet("indirect wording, harmful", True, _halved(forms.indirect_pairs, "harmful")),
    "indirect_benign": EvaluationSet("indirect wording, benign", False, _halved(forms.indirect_pairs, "benign")),
    "past_harmful": EvaluationSet("how it was done, harmful", True, _halved(_past, "harmful")),
    "past_benign": EvaluationSet("how it was done, benign", False, _halved(_past, "benign")),
    "yes_no": EvaluationSet("yes-or-no questions", False, _halved(_yes_no, "benign")),
}
"""The evaluation sets. One entry adds a set; training prompts that overlap it are left out."""


def evaluation_prompts(sizes: Mapping[str, int | None], split: Split) -> dict[str, list[Prompt]]:
    """Returns the evaluation sets by name.

    Args:
      sizes: how many prompts of each set; None for all, 0 for none.
      split: what they are taken from; of its `half` alone.

    Returns:
      Prompts by set, in the order of `EVALUATION_SETS`; a set that is not named, or empty, is left out. In the final
      half the sets that were looked at are empty.

    Raises:
      ConfigError: an unknown set, or a negative size.
    """
    for name in sizes:
        lookup(EVALUATION_SETS, name, "evaluation set")
    check_ranges(sizes, dict.fromkeys(sizes, COUNT), prefix="the size of ")
    sets = {
        name: each.load(sizes[name], split)
        for name, each in EVALUATION_SETS.items()
        if sizes.get(name, 0) != 0 and not (each.looked_at and split.half == "final")
    }
    return {name: prompts for name, prompts in sets.items() if prompts}


def file_prompts(files: Mapping[str, corpora.Records]) -> dict[str, list[Prompt]]:
    """Returns a user's prompts as evaluation sets: `NAME_harmful`, `NAME_benign` and `NAME_unlabelled`.

    Args:
      files: records by the name of the data set, of `corpora.read_files`; those that are no prompts are left out.

    Returns:
      Prompts by set, in the order of the files; no set is empty.
    """
    sets: dict[str, list[Prompt]] = {}
    for name, records in files.items():
        for record in records:
            if isinstance(record, Prompt):
                sets.setdefault(f"{name}_{record.label}", []).append(record)
    return sets


def kept_out_of_training(split: Split) -> list[Prompt]:
    """Every prompt that training must not see: the questions kept out, and both halves of the evaluation sets.

    Args:
      split: its numbers; its `half` does not matter.

    Returns:
      Prompts; what overlaps one of them is no training prompt, see `corpora.remove_overlap`.
    """
    names = {name: None for name, each in EVALUATION_SETS.items() if each.disjoint}
    reserved, _ = _split_questions(split.num_reserved_questions)
    halves = [evaluation_prompts(names, dataclasses.replace(split, half=half)) for half in get_args(Half)]
    return [*reserved, *(p for sets in halves for prompts in sets.values() for p in prompts)]


def training_prompts(
    *,
    num_harmful: int | None,
    num_sensitive: int | None,
    num_plain: int | None,
    split: Split,
    num_forms: int | None = 0,
    num_everyday: int | None = 0,
    fits: Callable[[str], bool] | None = None,
) -> tuple[dict[str, list[Prompt]], int]:
    """Returns the training prompts by group, without any that overlaps an evaluation set of either half.

    Harmful: AdvBench, the harmful halves of the contrast pairs, and of Do-Not-Answer the classes that are requests for
    harm. Sensitive: contrast prompts with benign intents. Plain: everyday prompts and questions of NQ-open.

    Args:
      num_harmful: how many, None for all.
      num_sensitive: how many, None for all.
      num_plain: how many, None for all.
      num_forms: how many of each group are there once more in another form, see `corpora.forms.reworded`; None for all.
      num_everyday: questions about everyday acts among the plain prompts, see `corpora.everyday`; None for all.
      split: what is kept out of training, and the seed of the choice.
      fits: which texts may be chosen, such as those of some length; None for all.

    Returns:
      Prompts by group, and how many were removed because they overlap an evaluation prompt.

    Raises:
      ConfigError: a negative number.
    """
    wanted = {"harmful": num_harmful, "sensitive": num_sensitive, "plain": num_plain}
    wanted |= {"forms": num_forms, "everyday": num_everyday}
    check_ranges(wanted, dict.fromkeys(wanted, COUNT), prefix="num_")
    contrast = contrast_prompts()
    requests = [
        p
        for p in corpora.do_not_answer()
        if p.category in ("malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive")
    ]
    _, questions = _split_questions(split.num_reserved_questions)
    groups = {
        "harmful": [*(p for p in contrast if p.label == "harmful"), *corpora.advbench(), *requests],
        "sensitive": [p for p in contrast if p.label == "benign" and not is_plain(p)],
        "plain": [*(p for p in contrast if is_plain(p)), *questions],
    }
    held_out = kept_out_of_training(split)
    removed = 0
    chosen: dict[str, list[Prompt]] = {}
    for name, prompts in groups.items():
        kept, dropped = corpora.remove_overlap(prompts, held_out)
        removed += len(dropped)
        distinct = [p for p in _distinct(kept) if fits is None or fits(p.text)]
        chosen[name] = _sample(distinct, wanted[name], split.seed)
        if name == "plain" and num_everyday != 0:
            kept, dropped = corpora.remove_overlap(everyday_questions(), held_out)
            removed += len(dropped)
            chosen[name] += _sample([p for p in kept if fits is None or fits(p.text)], num_everyday, split.seed)
        if num_forms != 0:
            shuffled = random.Random(split.seed).sample(chosen[name], len(chosen[name]))
            kept, dropped = corpora.remove_overlap(forms.reworded(shuffled), held_out)
            removed += len(dropped)
            chosen[name] += [p for p in kept if fits is None or fits(p.text)][:num_forms]
    return chosen, removed


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({corpora.normalise(p.text): p for p in reversed(prompts)}.values())[::-1]
