"""Keyword guards, the baselines of every other guard.

* `refusal_keywords`: a response without the words of a refusal is unsafe, the usual measure of jailbreak success (Zou
  et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models", arXiv 2307.15043, section 3);
* `KeywordGuard`: a list of words with weights, fitted on labelled answers.

Both judge the response alone.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from edgesafe_jax.guards.heads import Head, fit_head, head_logits
from edgesafe_jax.guards.scoring import unsafe_of_log_odds
from edgesafe_jax.guards.verdicts import check_pairs, judged_text
from edgesafe_jax.metrics.refusal import refused_by_pattern


def refusal_keywords(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """P(unsafe) of N pairs, `[N]`: 0 where the words of a refusal stand at the start of the response, else 1."""
    _, responses = check_pairs(prompts, responses)
    return np.array([0.0 if refused_by_pattern(judged_text(response)) else 1.0 for response in responses])


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


@dataclasses.dataclass(frozen=True)
class KeywordGuard:
    """A weighted list of words: callable as (prompts, responses) -> P(unsafe).

    Attributes:
      words: M words in lower case.
      head: over their presence, `[M]` zeros and ones.
    """

    words: tuple[str, ...] = dataclasses.field(repr=False)
    head: Head = dataclasses.field(repr=False)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        _, responses = check_pairs(prompts, responses)
        if not responses:
            return np.zeros(0)
        present = _presence(self.words, [judged_text(response) for response in responses])
        return unsafe_of_log_odds(head_logits(self.head, jnp.asarray(present)))


def _presence(words: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    found = [_words(text) for text in texts]
    return np.array([[word in each for word in words] for each in found], np.float32).reshape(len(texts), len(words))


def fit_keywords(
    responses: Sequence[str], labels: np.ndarray, *, num_words: int = 500, min_count: int = 5, l2: float = 1.0
) -> KeywordGuard:
    """Fits a keyword guard by logistic regression on the presence of the most frequent words.

    Args:
      responses: N answers.
      labels: `[N]`, 1 is unsafe.
      num_words: most words of the list; in as many answers as any other.
      min_count: fewest answers that a word stands in.
      l2: weight of the penalty, see `fit_head`.

    Returns:
      The guard.

    Raises:
      ValueError: no word is frequent enough, or see `fit_head`.
    """
    count = collections.Counter(word for text in responses for word in sorted(_words(text)))
    words = tuple(word for word, number in count.most_common(num_words) if number >= min_count)
    if not words:
        raise ValueError(f"No word stands in {min_count} of the {len(responses)} answers: lower min_count.")
    return KeywordGuard(words, fit_head(_presence(words, responses), np.asarray(labels, np.float64), l2=l2))
