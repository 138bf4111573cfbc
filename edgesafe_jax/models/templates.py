"""Chat templates: rendered as transformers renders them, but independent of the day."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
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
    try:
        return _compile(template).render({"tools": None, "documents": None, **variables})
    except TokenizerError:
        raise
    except Exception as error:  # a template is a program, which can fail in any way
        raise TokenizerError(f"The chat template cannot be rendered ({type(error).__name__}: {error}).") from error


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, which marks an assistant's text in templates and changes nothing in it."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=64)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda fmt: "26 Jul 2024"  # fixed: a prompt must not depend on the day
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` with the options and the order of arguments that transformers gives it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TokenizerError(f"The chat template refuses these messages: {message}")
