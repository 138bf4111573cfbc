"""Compilation, kept between processes, counted and said at the end; and traces of what takes the time."""

import atexit
import contextlib
import dataclasses
import functools
import logging
import os
from typing import Any

import jax

_log = logging.getLogger(__name__)

_COMPILED = "/jax/core/compile/backend_compile_duration"  # recorded for programs from the cache folder too
_READ = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Compilations:
    """Counts the programs that this process compiles, from `start` to `stop`.

    Attributes:
      num_programs: programs that were needed.
      num_read: those of them that an earlier process had compiled.
      seconds: of compiling and reading.

    Example:
      >>> counted = Compilations().start()
      >>> jax.jit(lambda x: x + 3).lower(1.0).compile()(1.0).item()
      4.0
      >>> counted.stop().num_programs >= 1
      True
    """

    num_programs: int = 0
    num_read: int = 0
    seconds: float = 0.0

    def start(self) -> "Compilations":
        """Begins to count."""
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def stop(self) -> "Compilations":
        """Ends the count."""
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)
        return self

    def _on_duration(self, event: str, duration_secs: float, **about: Any) -> None:
        del about
        if event == _COMPILED:
            self.num_programs += 1
            self.seconds += duration_secs

    def _on_event(self, event: str, **about: Any) -> None:
        del about
        self.num_read += event == _READ

    def __str__(self) -> str:
        """One line for people."""
        compiled = self.num_programs - self.num_read
        return f"{compiled} programs compiled and {self.num_read} read from the cache folder in {self.seconds:.0f} s"


@functools.cache
def keep_compiled(folder: str | os.PathLike[str]) -> Compilations:
    """Keeps every compiled program in a folder and says at the end of the process how many were compiled.

    JAX's own settings come first: with JAX_COMPILATION_CACHE_DIR another folder is used, with
    JAX_ENABLE_COMPILATION_CACHE=false none.

    Args:
      folder: of the programs.

    Returns:
      The count, which goes on; the same one when it is called again.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
        # Small programs too: there are hundreds of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    counted = Compilations().start()
    atexit.register(lambda: _log.info("%s", counted) if counted.num_programs else None)
    return counted


def profiled(folder: str | os.PathLike[str] | None) -> contextlib.AbstractContextManager[Any]:
    """Writes a trace of a block, `plugins/profile/TIME/perfetto_trace.json.gz` and files for TensorBoard.

    Args:
      folder: of the trace; None writes none.
    """
    if folder is None:
        return contextlib.nullcontext()
    return jax.profiler.trace(folder, create_perfetto_trace=True)
