"""Refusals in the middle of an answer: the beginnings of unsafe answers behind which the student turns back.

A refusal that is only ever trained as the first thing that is said is lost once an answer has begun (Qi et al., "Safety
Alignment Should Be Made More Than Just a Few Tokens Deep", arXiv 2406.05946, section 4). The guard has judged the whole
answer of the base model, so its verdict holds for whatever begins like that answer: behind the beginning of an unsafe
one the system refuses, and behind that of a safe one it goes on. Trained on the first alone, a student turns back
within harmless answers too.
"""

from collections.abc import Sequence

import numpy as np

from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.safety.attacks.prefill import OPENING
from edgesafe_jax.safety.teacher import TeacherData

LONGEST = 10
"""Tokens of the longest beginning."""


def prefixes(
    tokenizer: ChatTokenizer, data: TeacherData, prompts: np.ndarray, *, fraction: float, seed: Sequence[int]
) -> list[list[int]]:
    """Draws the beginnings of the base model's own unsafe answers.

    An answer that begins with the words of `attacks.prefill.OPENING` is left out: the evaluation attacks with them.

    Args:
      tokenizer: of the model.
      data: with prompts, answers and verdicts.
      prompts: `[B]`, the number of each row's prompt; -1 for a row that gets no beginning.
      fraction: probability with which a row gets one, if the answer to its prompt is unsafe.
      seed: of the draws: the same numbers give the same beginnings.

    Returns:
      B token rows, 1 to `LONGEST` tokens each, the number drawn uniformly; empty for rows without one.
    """
    rng = np.random.default_rng([*seed, 13])
    drawn, counts = rng.random(len(prompts)) < fraction, rng.integers(1, LONGEST + 1, len(prompts))
    found: list[list[int]] = []
    for number, use, count in zip(prompts, drawn, counts, strict=True):
        unsafe = use and number >= 0 and data.refusal_prob[number] >= 0.5
        answer = [token for token in data.answers[number] if token not in tokenizer.eos_ids] if unsafe else []
        if _is_prefilled(tokenizer.decode(answer[: 2 * LONGEST])):
            answer = []
        found.append(answer[:count])
    return found


def continued(data: TeacherData, rows: np.ndarray, *, fraction: float, seed: Sequence[int]) -> np.ndarray:
    """Draws within which answers of the teacher the student goes on, and behind how many tokens.

    Args:
      data: with answers.
      rows: `[B]`, numbers of rows; -1 for a row of padding.
      fraction: probability with which a row that is an answer is continued.
      seed: of the draws: the same numbers give the same ones.

    Returns:
      `[B]`, numbers drawn uniformly from 1 to `LONGEST`, at most one less than the answer has; 0 for the other rows.
    """
    rng = np.random.default_rng([*seed, 17])
    drawn, counts = rng.random(len(rows)) < fraction, rng.integers(1, LONGEST + 1, len(rows))
    lengths = np.array([len(data.outcomes[row]) if row >= 0 and not data.is_refusal[row] else 1 for row in rows], int)
    return np.where(drawn, np.minimum(counts, lengths - 1), 0)


def _is_prefilled(text: str) -> bool:
    """Whether an answer begins with the words of `OPENING`, however they are written."""
    attack = _words(OPENING)
    return _words(text)[: len(attack)] == attack


def _words(text: str) -> list[str]:
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace()).split()
