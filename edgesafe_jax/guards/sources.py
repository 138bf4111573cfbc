"""Sources of paraphrases: callables from texts to candidates, and the table of the named ones.

A source is any callable from N texts to N lists of candidates. One more kind is one more entry of `SOURCES`; a further
maker of functions of a text is one more module of `edgesafe_jax.guards.makers`.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence

import jax

from edgesafe_jax.errors import lookup
from edgesafe_jax.guards.makers import MAKERS
from edgesafe_jax.guards.paraphrases import Paraphrase, ParaphraseError, Source
from edgesafe_jax.guards.styles import EDITS, STYLES
from edgesafe_jax.guards.wordnet import load_wordnet, wordnet_source
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import PRNGKey, ProgressFn


def style_source(
    styles: Mapping[str, Callable[[str], str]] = STYLES,
    *,
    num_styles: int | None = None,
    seed: int = 0,
    name: str = "style",
) -> Source:
    """Makes the source of style and register templates.

    Args:
      styles: functions of a text by name; `STYLES`, `EDITS` or a user's own.
      num_styles: how many styles each text is put in, drawn at random: more styles in as many texts. Default all.
      seed: of the draw.
      name: of the source.

    Returns:
      A source that gives one candidate per style.

    Raises:
      ValueError: fewer than one style per text, or more than there are.

    Example:
      >>> source = style_source({"shouted": str.upper})
      >>> source(["No."])[0][0].text
      'NO.'
    """
    num = len(styles) if num_styles is None else num_styles
    if not 1 <= num <= len(styles):
        raise ValueError(f"num_styles={num_styles}: expected 1 to {len(styles)}, the number of styles.")

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        drawn = [set(random.Random(f"{seed}/{text}").sample(list(styles), num)) for text in texts]
        return [
            [Paraphrase(f(text), name, style) for style, f in styles.items() if style in chosen]
            for text, chosen in zip(texts, drawn, strict=True)
        ]

    return source


def batched_source(ways: Mapping[str, Callable[[Sequence[str]], Sequence[str]]], *, name: str) -> Source:
    """Makes the source of functions of many texts at once: a translation there and back, a service.

    Args:
      ways: functions from N texts to N texts by the name of the way.
      name: of the source.

    Returns:
      A source that gives one candidate per way.

    Raises:
      ParaphraseError: when it is called: a way returned another number of texts, or something that is no text.

    Example:
      >>> source = batched_source({"shouted": lambda texts: [text.upper() for text in texts]}, name="mine")
      >>> source(["No."])[0][0].text
      'NO.'
    """

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        made: list[list[Paraphrase]] = [[] for _ in texts]
        for way, change in ways.items():
            changed = change(texts)
            if isinstance(changed, str) or len(changed) != len(texts) or not all(isinstance(t, str) for t in changed):
                got = "one text" if isinstance(changed, str) else f"{len(changed)} of them"
                raise ParaphraseError(
                    f"The way {name}/{way} was given {len(texts)} texts and returned {got}: expected a list with one "
                    "text for each."
                )
            for row, text in zip(made, changed, strict=True):
                row.append(Paraphrase(text, name, way))
        return made

    return source


def composed_source(
    styles: Mapping[str, Callable[[str], str]], *, num_variants: int, depth: int = 3, seed: int = 0
) -> Source:
    """Makes the source that puts a text in several styles, one after the other.

    Args:
      styles: functions of a text by name.
      num_variants: candidates per text; each draws its own styles.
      depth: most styles of a candidate; two at least.
      seed: of the draws.

    Returns:
      A source.

    Raises:
      ValueError: no variants, or fewer styles than `depth`, or a depth below two.

    Example:
      >>> source = composed_source({"shouted": str.upper, "called": "{}!".format}, num_variants=1, depth=2)
      >>> source(["No"])[0][0].text
      'NO!'
    """
    if num_variants < 1 or not 2 <= depth <= len(styles):
        raise ValueError(
            f"num_variants={num_variants}, depth={depth}: expected at least 1, and 2 to {len(styles)}, the number of "
            "styles."
        )

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        made = []
        for text in texts:
            rng = random.Random(f"{seed}/composed/{text}")
            made.append([])
            for _ in range(num_variants):
                changed = text
                for style in rng.sample(list(styles), rng.randint(2, depth)):
                    changed = styles[style](changed)
                made[-1].append(Paraphrase(changed, "composed", "composed"))
        return made

    return source


REWRITES: Mapping[str, str] = {
    "reworded": "Rewrite this text in other words. Keep its meaning and its length. Answer with the new text only.",
    "simpler": "Say the same as this text in simpler words. Keep its meaning. Answer with the new text only.",
}
"""Instructions to a language model, by the name of the style."""

_PREAMBLE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok)?[,.!:]?\s*"
    r"(?:here(?:'s| is| are)|this is|the (?:new|rewritten|revised))[^:\n]{0,80}:\s*",
    re.IGNORECASE,
)


def llm_source(
    key: PRNGKey,
    model: LanguageModel,
    *,
    rewrites: Mapping[str, str] = REWRITES,
    max_tokens: int = 96,
    temperature: float = 0.7,
    batch_size: int = 64,
    on_batch: ProgressFn | None = None,
) -> Source:
    """Makes the source that asks a language model to rewrite.

    Args:
      key: random key of the sampling.
      model: the language model.
      rewrites: instructions by the name of the style.
      max_tokens: longest rewriting, in tokens; one that is cut off there is no candidate.
      temperature: of the sampling; 0 is greedy.
      batch_size: rows that run at once.
      on_batch: called with (texts done, texts in total) of each style.

    Returns:
      A source that gives at most one candidate per instruction.
    """

    def source(texts: Sequence[str]) -> list[list[Paraphrase]]:
        candidates: list[list[Paraphrase]] = [[] for _ in texts]
        for style, instruction in rewrites.items():
            answers = generate(
                model,
                [f"{instruction}\n\n{text}" for text in texts],
                max_tokens=max_tokens,
                temperature=temperature,
                key=key,
                batch_size=batch_size,
                on_batch=on_batch,
            )
            for index, (text, finished) in enumerate(zip(answers.texts, answers.finished, strict=True)):
                if finished:
                    clean = _PREAMBLE.sub("", text.strip()).strip().strip('"“”').strip()
                    candidates[index].append(Paraphrase(clean, "llm", style))
        return candidates

    return source


@dataclasses.dataclass(frozen=True)
class ParaphraseSettings:
    """How the human-scored answers are paraphrased.

    Attributes:
      sources: names in `SOURCES`.
      held_out_sources: sources of which no paraphrase is trained on.
      held_out_styles: styles of which no paraphrase is trained on.
      left_out_styles: styles that are neither trained nor measured on.
      num_styles: styles drawn for each answer from those that are trained on; None for all.
      num_edits: edits drawn for each answer.
      num_ways: ways drawn for each answer from each maker of `edgesafe_jax.guards.makers`; None for all.
      num_composed: compositions of styles and edits for each answer.
      wordnet_rates: fractions of the replaceable words that are replaced; two variants each.
      max_tokens: longest rewriting by the language model, in tokens.
      max_words: longest original, in words: its first whole sentences.
      min_cosine: of the filter, see `make_sets`.
      length_ratio: of the filter, see `make_sets`.
      seed: of all draws.
    """

    sources: tuple[str, ...] = ("style",)
    held_out_sources: tuple[str, ...] = ()
    held_out_styles: tuple[str, ...] = ()
    left_out_styles: tuple[str, ...] = ()
    num_styles: int | None = None
    num_edits: int = 3
    num_ways: int | None = 4
    num_composed: int = 4
    wordnet_rates: tuple[float, ...] = (0.5,)
    max_tokens: int = 96
    max_words: int = 60
    min_cosine: float = 0.75
    length_ratio: tuple[float, float] = (0.5, 2.0)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SourceInputs:
    """Inputs of the entries of `SOURCES`.

    Attributes:
      settings: the numbers.
      seen: styles that are trained on.
      unseen: held-out styles; none where sets are made for training.
      model: returns the language model that rewrites.
      on_batch: called with (texts done, texts in total) by slow sources.
    """

    settings: ParaphraseSettings
    seen: Mapping[str, Callable[[str], str]]
    unseen: Mapping[str, Callable[[str], str]]
    model: Callable[[], LanguageModel]
    on_batch: ProgressFn | None = None


def _style_sources(inputs: SourceInputs) -> list[Source]:
    settings = inputs.settings
    made = [style_source(inputs.seen, num_styles=settings.num_styles, seed=settings.seed)]
    return [*made, style_source(inputs.unseen)] if inputs.unseen else made


def _wordnet_sources(inputs: SourceInputs) -> list[Source]:
    wordnet, seed = load_wordnet(), inputs.settings.seed
    rates = enumerate(inputs.settings.wordnet_rates)
    return [wordnet_source(wordnet, rate=rate, seed=seed + number) for number, rate in rates]


def _composed_sources(inputs: SourceInputs) -> list[Source]:
    settings = inputs.settings
    return [composed_source({**inputs.seen, **EDITS}, num_variants=settings.num_composed, seed=settings.seed)]


def _edit_sources(inputs: SourceInputs) -> list[Source]:
    return [style_source(EDITS, num_styles=inputs.settings.num_edits, seed=inputs.settings.seed, name="edit")]


def _llm_sources(inputs: SourceInputs) -> list[Source]:
    settings = inputs.settings
    key = jax.random.key(settings.seed)
    return [llm_source(key, inputs.model(), max_tokens=settings.max_tokens, on_batch=inputs.on_batch)]


def _maker_sources(inputs: SourceInputs, maker: str) -> list[Source]:
    ways, num = MAKERS[maker](), inputs.settings.num_ways
    return [style_source(ways, num_styles=num and min(num, len(ways)), seed=inputs.settings.seed, name=maker)]


SOURCES: Mapping[str, Callable[[SourceInputs], list[Source]]] = {
    "style": _style_sources,
    "wordnet": _wordnet_sources,
    "composed": _composed_sources,
    "edit": _edit_sources,
    "llm": _llm_sources,
    **{maker: functools.partial(_maker_sources, maker=maker) for maker in MAKERS},
}
"""The sources by name, makers included. Paraphrases made elsewhere, by back-translation
for instance, come in as JSON lines or through `batched_source`."""


def make_sources(
    settings: ParaphraseSettings,
    *,
    measured: bool,
    model: Callable[[], LanguageModel],
    on_batch: ProgressFn | None = None,
) -> list[Source]:
    """Makes the sources that the settings name.

    Args:
      settings: names and numbers.
      measured: whether the sets are measured on; held-out sources and styles are made for those only.
      model: returns the language model that rewrites; called if a source needs it.
      on_batch: called with (texts done, texts in total) by slow sources.

    Returns:
      The sources, in the order of `settings.sources`.

    Raises:
      ConfigError: a source that `SOURCES` does not have.
    """
    styles = {name: style for name, style in STYLES.items() if name not in settings.left_out_styles}
    unseen = {name: style for name, style in styles.items() if name in settings.held_out_styles}
    seen = {name: style for name, style in styles.items() if name not in unseen}
    inputs = SourceInputs(settings, seen, unseen if measured else {}, model, on_batch)
    makers = {name: lookup(SOURCES, name, "sources") for name in settings.sources}
    chosen = [make for name, make in makers.items() if measured or name not in settings.held_out_sources]
    return [source for make in chosen for source in make(inputs)]
