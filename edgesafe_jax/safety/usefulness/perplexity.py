"""Likelihood of ordinary prose: the second half of an encyclopedic passage, when asked to continue the first.

It is measured where the adapter acts, in an answer; exp of the mean is the perplexity.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from edgesafe_jax.corpora import Records, forms
from edgesafe_jax.models.scoring import answer_log_probs
from edgesafe_jax.safety.usefulness.measure import Measure, Reading

QUESTION = "Continue this text:\n\n{beginning}"


def halves_of(passage: str) -> tuple[str, str]:
    """Splits a text at the space nearest to its middle."""
    middle = len(passage) // 2
    spaces = [i for i, letter in enumerate(passage) if letter == " "]
    at = min(spaces, key=lambda i: abs(i - middle), default=middle)
    return passage[:at].strip(), passage[at:].strip()


def _items(files: Mapping[str, Records]) -> Sequence[tuple[str, str]]:
    del files
    return [halves for halves in map(halves_of, forms.passages()) if all(halves)]


def score_passages(reading: Reading, items: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Reads passages; `nats` `[N]` is the negative log-likelihood per token of each second half."""
    total, count = answer_log_probs(
        reading.model,
        [QUESTION.format(beginning=first) for first, _ in items],
        [second for _, second in items],
        adapter=reading.adapter,
        on_batch=reading.on_batch,
    )
    return {"nats": -total / count}


MEASURE = Measure(_items, score_passages, {"nats": "ordinary prose, nats per token (lower is better)"})
