"""Chat templates: rendered as transformers renders them, but independent of the day and within bounds.

A template comes with a model file and is a program. Jinja's sandbox keeps it from the objects of the process; a process
of its own, `template_worker`, bounds its time and its memory. That process is started by the first template and ends
with the one that asks.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models import template_worker
from edgesafe_jax.models.piped import end_piped, start_piped

SECONDS = 5.0
"""Processor time of one rendering; a usual one takes less than a millisecond."""

WAITING_SECONDS = 120.0
"""Time of one rendering on the clock, however busy the machine is."""

MEMORY = 2**30
"""Bytes of the process that renders."""

LONGEST = 20_000_000
"""Characters of a chat."""


class TokenizerError(EdgesafeError, ValueError):
    """A tokenizer that cannot be read, or text that it cannot take."""


def render_template(template: str, variables: Mapping[str, Any]) -> str:
    """Renders a chat template.

    Args:
      template: the template of the model.
      variables: `messages`, `add_generation_prompt` and what else the template reads; plain data.

    Returns:
      The text of the chat.

    Raises:
      TokenizerError: the template refuses the messages, it cannot be rendered, or it takes too long, too much memory,
        or makes too much text.
    """
    limits = {"seconds": SECONDS, "memory": MEMORY, "longest": LONGEST}
    try:
        request = json.dumps(
            {"template": template, "variables": {"tools": None, "documents": None, **variables}, **limits}
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise TokenizerError(
            f"The chat template is given something that is no plain data ({error}): expected texts, numbers, lists and "
            "mappings."
        ) from error
    reply = _WORKER.ask(request)
    if "refusal" in reply:
        raise TokenizerError(f"The chat template refuses these messages: {reply['refusal']}")
    if "error" in reply:
        raise TokenizerError(
            f"The chat template cannot be rendered ({reply['error']}): use another one (config.chat_template), or "
            "correct it."
        )
    return reply["text"]


class _Worker:
    """The process that renders."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: str) -> dict[str, str]:
        """Sends a request and returns the reply; of a process that ended, an error."""
        with self._lock:
            process = self._running()
            timer = threading.Timer(WAITING_SECONDS, process.kill)
            timer.daemon = True
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{request}\n")
                process.stdin.flush()
                reply = process.stdout.readline()
                if reply:
                    return json.loads(reply)
            except (OSError, ValueError):
                pass
            finally:
                timer.cancel()
            status = self.close()
            if status is not None and -status == getattr(signal, "SIGPROF", 0):
                return {"error": f"it takes more than {SECONDS:g} seconds"}
            return {"error": "the process that renders it was ended: it takes too long or too much memory"}

    def close(self) -> int | None:
        """Ends the process; returns its exit status."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        return end_piped(process, 1)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.close()
        self._process = start_piped([sys.executable, str(Path(template_worker.__file__))])
        self._owner = os.getpid()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([path for path in sys.path if isinstance(path, str)]) + "\n")
        atexit.register(self.close)
        return self._process


_WORKER = _Worker()
