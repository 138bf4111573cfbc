"""Verifiable instructions: IFEval's own requests from a user's file, or requests built by rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.corpora import Instructed, Records, forms
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.metrics import VERIFIERS, follows
from edgesafe_jax.models.generation import generate
from edgesafe_jax.safety.usefulness.measure import Measure, Reading

INSTRUCTIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("Do not use any commas.", "punctuation:no_comma", {}),
    ("Write in lower case only.", "change_case:english_lowercase", {}),
    ("Write in CAPITAL LETTERS only.", "change_case:english_capital", {}),
    (
        "Use fewer than 40 words.",
        "length_constraints:number_words",
        {"num_words": 40, "relation": "less than"},
    ),
    (
        "Use at least 60 words.",
        "length_constraints:number_words",
        {"num_words": 60, "relation": "at least"},
    ),
    (
        "Use fewer than 4 sentences.",
        "length_constraints:number_sentences",
        {"num_sentences": 4, "relation": "less than"},
    ),
    (
        "Answer in exactly 3 bullet points (*).",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
    ),
    ("Begin with a title in double angle brackets, such as <<a title>>.", "detectable_format:title", {}),
    ("Put your whole answer in double quotation marks.", "startend:quotation", {}),
    ("End with the phrase: Good luck!", "startend:end_checker", {"end_phrase": "Good luck!"}),
    ("Use the words “first” and “careful”.", "keywords:existence", {"keywords": ["first", "careful"]}),
    ("Do not use the word “make”.", "keywords:forbidden_words", {"forbidden_words": ["make"]}),
    (
        "End with a postscript that begins with P.S.",
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
    ),
    (
        "Highlight at least 2 phrases with asterisks, such as *a phrase*.",
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
    ),
    ("Answer in JSON.", "detectable_format:json_format", {}),
)
"""Instructions in words, each with its verifier."""


def built_requests() -> list[Instructed]:
    """Returns requests with one instruction each: everyday goals with the instructions in turn."""
    rows = []
    for number, act in enumerate(forms.everyday_acts()):
        words, name, arguments = INSTRUCTIONS[number % len(INSTRUCTIONS)]
        rows.append(Instructed(f"Explain how to {act}. {words}", ((name, arguments),), "built"))
    return rows


def _items(files: Mapping[str, Records]) -> Sequence[Instructed]:
    if "ifeval" not in files:
        return built_requests()
    rows = [row for row in files["ifeval"] if isinstance(row, Instructed)]
    verifiable = [row for row in rows if all(name in VERIFIERS for name, _ in row.instructions)]
    if not verifiable:
        raise ConfigError(f"None of the {len(rows)} requests has instructions of {', '.join(VERIFIERS)} alone.")
    return verifiable


def score_instructions(reading: Reading, items: Sequence[Instructed]) -> dict[str, np.ndarray]:
    """Answers requests greedily and verifies the answers.

    Args:
      reading: who answers.
      items: N requests.

    Returns:
      `prompt_strict` and `prompt_loose`, `[N]`: whether all instructions of a request are followed; and
      `instruction_strict`, the fraction of them that are.
    """
    texts = [item.text for item in items]
    answers = generate(
        reading.model,
        texts,
        max_tokens=reading.max_tokens,
        adapter=reading.adapter,
        batch_size=32,
        on_batch=reading.on_batch,
    )
    strict, loose = (
        [
            [follows(answer, name, arguments, loose=kind) for name, arguments in item.instructions]
            for answer, item in zip(answers.texts, items, strict=True)
        ]
        for kind in (False, True)
    )
    return {
        "prompt_strict": np.array([all(found) for found in strict], float),
        "prompt_loose": np.array([all(found) for found in loose], float),
        "instruction_strict": np.array([np.mean(found) for found in strict], float),
    }


MEASURE = Measure(
    _items,
    score_instructions,
    {
        "prompt_strict": "requests all of whose instructions are followed",
        "prompt_loose": "the same, loosely verified",
        "instruction_strict": "instructions followed",
    },
)
