"""Packaged jailbreak templates, each with one of the requests in its place."""

from collections.abc import Sequence

from edgesafe_jax import corpora
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.safety.attacks.attempt import Attempt, Target
from edgesafe_jax.typing import PRNGKey

MAX_CHARS = 1500
"""Longest prompt; about half of the templates are longer and are left out."""


def make_jailbreaks(key: PRNGKey, target: Target, requests: Sequence[Prompt]) -> list[Attempt]:
    """Puts each request into a template; all templates are used before one is used again."""
    del key, target
    templates = corpora.jailbreak_templates(max_chars=MAX_CHARS)
    if not templates:
        raise ConfigError(f"No jailbreak template has at most {MAX_CHARS} characters.")
    return [
        Attempt(request, corpora.fill_template(templates[number % len(templates)], request.text))
        for number, request in enumerate(requests)
    ]
