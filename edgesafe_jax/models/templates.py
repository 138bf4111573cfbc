"""Chat templates: rendered as transformers renders them, but independent of the day."""

import json
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.sandbox

from edgesafe_jax.errors import EdgesafeError


class TokenizerError(EdgesafeError, ValueError):
    """A tokenizer that cannot be read, or text that it cannot take."""


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """Renders a chat template.

    Args:
      template: the template of the model.
      variables: `messages`, `add_generation_prompt` and what else the template reads.

    Returns:
      The text of the chat.

    Raises:
      TokenizerError: the template refuses the messages, or it cannot be rendered.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda fmt: "26 Jul 2024"  # fixed: a prompt must not depend on the day
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(template).render(tools=None, **variables)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"The chat template cannot be rendered ({type(error).__name__}: {error}).") from error


def _refuse(message: str) -> None:
    raise TokenizerError(f"The chat template refuses these messages: {message}")
