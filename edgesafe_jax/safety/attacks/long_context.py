"""A long harmless text in front of the request."""

import itertools
from collections.abc import Sequence

from edgesafe_jax.corpora import Prompt, forms
from edgesafe_jax.safety.attacks.attempt import Attempt, Target
from edgesafe_jax.typing import PRNGKey

NUM_CHARS = 2000
"""Least length of the text, in characters; about 450 tokens."""


def make_long_context(key: PRNGKey, target: Target, requests: Sequence[Prompt]) -> list[Attempt]:
    """Puts encyclopedic passages in front of each request, other ones each time."""
    del key, target
    passages = itertools.cycle(forms.passages())
    attempts = []
    for request in requests:
        text = ""
        while len(text) < NUM_CHARS:
            text += next(passages) + "\n\n"
        attempts.append(Attempt(request, f"{text}{request.text}"))
    return attempts
