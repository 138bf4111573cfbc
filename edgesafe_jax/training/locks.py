"""One process at a time writes a work directory.

The lock is the operating system's (``flock``) on ``.lock`` in the directory: it ends with the process, however that
ends, so a killed run leaves no stale lock. ``.owner.json`` beside it says who holds it, for the message of a second
process. Reading needs no lock.
"""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import filelock

from edgesafe_jax.assets import write_atomically

LOCK = ".lock"
OWNER = ".owner.json"
PATIENCE = 1.0
"""Seconds that a second process waits: a run that is just ending lets go within them."""

_held: dict[tuple[int, int], filelock.BaseFileLock] = {}
_guard = threading.Lock()


def acquire(workdir: Path) -> str | None:
    """Takes the lock of a directory for this process, which keeps it until `release` or its end.

    Args:
      workdir: an existing directory.

    Returns:
      None when this process has the lock, also from an earlier call; otherwise a description of the process that has
      it.
    """
    file = workdir / LOCK
    with _guard:
        if _identity(file) in _held:
            return None
        lock = filelock.FileLock(file, thread_local=False)
        try:
            lock.acquire(timeout=PATIENCE)
        except filelock.Timeout:
            return describe_owner(workdir)
        identity = _identity(file)
        if identity is not None:
            _held[identity] = lock
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv)[:200],
    }
    write_atomically(workdir / OWNER, lambda part: part.write_text(json.dumps(owner), encoding="utf-8"))
    return None


def release(workdir: Path) -> None:
    """Gives the lock of a directory back; does nothing where this process does not hold it."""
    with _guard:
        identity = _identity(workdir / LOCK)
        lock = None if identity is None else _held.pop(identity, None)
    if lock is not None:
        lock.release()


def describe_owner(workdir: Path) -> str:
    """Describes the process that took the lock last."""
    try:
        owner: dict[str, Any] = json.loads((workdir / OWNER).read_text(encoding="utf-8"))
        return "process {pid} on host {host} since {since} ({command})".format_map(owner)
    except (OSError, ValueError, KeyError):
        return "another process"


def _identity(file: Path) -> tuple[int, int] | None:
    """The file behind a name; it stays the same when the directory is moved."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
