"""The same request in other words, by the rules of `guards.styles`."""

import hashlib
from collections.abc import Sequence

from edgesafe_jax.corpora import Prompt
from edgesafe_jax.guards.styles import STYLES
from edgesafe_jax.safety.attacks.attempt import Attempt, Target
from edgesafe_jax.typing import PRNGKey

NAMES = ("casual", "chat", "slips", "terse", "elevated", "forum", "letter")
"""The styles that suit a request; each request is put into one of them, by the hash of its text."""


def make_rewordings(key: PRNGKey, target: Target, requests: Sequence[Prompt]) -> list[Attempt]:
    """Rewords each request in one style."""
    del key, target
    attempts = []
    for request in requests:
        name = NAMES[hashlib.sha256(request.text.encode()).digest()[0] % len(NAMES)]
        attempts.append(Attempt(request, STYLES[name](request.text)))
    return attempts
