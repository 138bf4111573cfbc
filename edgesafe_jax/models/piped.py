"""A program in a process of its own, which is asked and replies in lines over pipes, and ends when its input closes."""

import contextlib
import subprocess
from collections.abc import Mapping, Sequence


def start_piped(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts a program.

    Args:
      command: program and arguments.
      environment: its environment; None for that of this process.

    Returns:
      The process, with pipes to its input and from its output; what it writes to standard error is dropped.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def end_piped(process: subprocess.Popen[str], patience: float) -> int:
    """Ends a program: its pipes are closed, and it is killed where it does not end by itself.

    Args:
      process: of `start_piped`.
      patience: seconds that it is given.

    Returns:
      Its exit status.
    """
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
