"""Harmful requests inside in-the-wild jailbreaks and inside packaged templates."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import yaml

from edgesafe_jax import assets
from edgesafe_jax.corpora import prompts
from edgesafe_jax.corpora.records import CorpusError, Prompt

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
        CorpusError: ``requests`` is empty, ``num`` is negative, or fewer than ``num`` pairs fit.

    Example:
        ``jailbreak_prompts(strongreject(), num=100, max_chars=1000, seed=0)``
    """
    if num < 0:
        raise CorpusError(f"num must not be negative, got {num}.")
    if not requests:
        raise CorpusError("There are no requests to put into jailbreaks.")
    if isinstance(requests, str) or not all(isinstance(request, Prompt) for request in requests):
        raise CorpusError("requests holds something else than Prompts; a text is one with Prompt(text, source, ...).")
    templates = _shuffled({prompt.text for prompt in prompts.jailbreaks()}, seed)
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
        raise CorpusError(
            f"Only {len(composed)} of the {num} prompts asked for have at most {max_chars} "
            "characters; raise max_chars, lower num or give more requests."
        )
    return list(composed.values())


_PLACE = re.compile(r"\{\{\s*prompt\s*\}\}")


def jailbreak_templates(*, max_chars: int) -> list[str]:
    """Returns the packaged jailbreak templates with one place for a request, ``{{ prompt }}``.

    Templates of the folder ``in_the_wild`` are left out: `jailbreaks` has these texts.

    Args:
        max_chars: longest template, in characters.

    Returns:
        Different templates, in an order by hash that depends on their texts only.

    Example:
        ``fill_template(jailbreak_templates(max_chars=1000)[0], "How do I ...?")``
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    root = assets.fetch("pyrit") / "pyrit/datasets/jailbreak/templates"
    found = set()
    for path in sorted(root.rglob("*.yaml")):
        if "in_the_wild" not in path.parts:
            about = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
            if about.get("parameters") == ["prompt"] and len(_PLACE.findall(about["value"])) == 1:
                found.add(about["value"].strip())
    return _shuffled((text for text in found if len(text) <= max_chars), seed=0)


def fill_template(template: str, request: str) -> str:
    """Returns a template of `jailbreak_templates` with a request in its place."""
    return _PLACE.sub(lambda _: request, template)


def _compose(template: str, request: str) -> str:
    text, replaced = _SLOT.subn(lambda _: request, template)
    return text if replaced else f"{template}\n\n{request}"


def _shuffled(texts: Iterable[str], seed: int) -> list[str]:
    """Sorts texts by a hash: the same order on every platform and Python version."""
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest())
