"""The program that renders chat templates in a process of its own, started by `edgesafe_jax.models.templates`.

A template comes with a model file and is a program: loops without end, or texts that take all memory, end this process
and not that of the user. It imports Jinja alone. Each line of its input is a request, each line of its output a reply.
"""

import functools
import json
import signal
import sys
from typing import Any


def bound(seconds: float, memory: int) -> None:
    """Lets the operating system end this process when a request takes more processor time, and refuse it more memory.

    Args:
      seconds: of processor time until the next call.
      memory: bytes, of the whole process.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles its signal: the process ends
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


class RefusalError(Exception):
    """A template refuses the messages."""


@functools.lru_cache(maxsize=64)
def compile_template(template: str) -> Any:
    """Compiles a template as transformers does, but independent of the day."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """The block `{% generation %}`, which marks an assistant's text in templates and changes nothing in it."""

        tags = {"generation"}  # noqa: RUF012  (jinja's own way to declare it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda fmt: "26 Jul 2024"  # fixed: a prompt must not depend on the day
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def render(template: str, variables: dict[str, Any], longest: int) -> dict[str, str]:
    """Renders a template.

    Args:
      template: the template.
      variables: what it is given.
      longest: most characters of the text.

    Returns:
      The reply: a text, or a refusal, or an error.
    """
    parts, size = [], 0
    try:
        for part in compile_template(template).generate(variables):
            size += len(part)
            if size > longest:
                return {"error": f"the text has more than {longest:,} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except RefusalError as error:
        return {"refusal": str(error)[:1000]}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except Exception as error:  # a template is a program, which can fail in any way
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` with the options and the order of arguments that transformers gives it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> None:
    raise RefusalError(message)


def serve() -> None:
    """Answers requests until there are no more."""
    sys.path[:] = json.loads(sys.stdin.readline())  # those of the process that asks, in place of this file's folder
    for line in sys.stdin:
        request = json.loads(line)
        bound(request["seconds"], request["memory"])
        reply = render(request["template"], request["variables"], request["longest"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()
