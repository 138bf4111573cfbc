"""Where the cells of a sweep run: in this process, in several on this machine, or as jobs of a cluster."""

import functools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from edgesafe_jax.errors import ConfigError, EdgesafeError
from edgesafe_jax.sweeps.matrix import Cell
from edgesafe_jax.sweeps.runs import LOGS, Work

POLL_SECONDS = 2.0
JOBS = "jobs"


class Launcher(Protocol):
    """Runs cells and returns when nothing of them is left to run; calls `on_change` now and then."""

    def __call__(self, work: Work, cells: Sequence[Cell], root: Path, on_change: Callable[[], None]) -> None:
        """Runs `work` on the cells under the folder of the sweep."""


def in_this_process(work: Work, cells: Sequence[Cell], root: Path, on_change: Callable[[], None]) -> None:
    """The launcher of one process, this one: programs that were compiled for one cell serve the next."""
    for cell in cells:
        on_change()
        work([cell], root)
    on_change()


def in_processes(num_processes: int) -> Launcher:
    """Makes the launcher of N processes on this machine, each with its part of the processor's cores.

    Args:
      num_processes: N.

    Returns:
      The launcher; the processes end with it.
    """
    return functools.partial(_run_processes, num_processes)


def _run_processes(
    num_processes: int, work: Work, cells: Sequence[Cell], root: Path, on_change: Callable[[], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    (root / LOGS).mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_child, args=(work, list(cells), root, number, num_processes), name=f"cells-{number}")
        for number in range(min(num_processes, len(cells)))
    ]
    with _sigterm_raises():
        try:
            for process in processes:
                process.start()
            while any(process.is_alive() for process in processes):
                time.sleep(POLL_SECONDS)
                on_change()
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
            for process in processes:
                process.join()
    if ended := [process for process in processes if process.exitcode]:
        raise EdgesafeError(
            f"{len(ended)} of {len(processes)} processes ended with status {ended[0].exitcode}: see "
            f"{root / LOGS}. The same command continues."
        )


def _child(work: Work, cells: Sequence[Cell], root: Path, number: int, num_processes: int) -> None:
    """Runs in a process of its own: takes its cores, sends its output to a file, works."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[number % len(cores) :: num_processes]) or {cores[number % len(cores)]})
    with (root / LOGS / f"process_{number}.log").open("a", buffering=1, encoding="utf-8") as log:
        sys.stdout.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        work(cells, root)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM end this process by SystemExit, so that what it started ends with it."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Reads `NAME=VALUE` options of a cluster; a value that is JSON is read as such.

    Raises:
      ConfigError: a text without "=".

    Example:
      >>> parse_options(["timeout_min=60", "slurm_partition=gpu"])
      {'timeout_min': 60, 'slurm_partition': 'gpu'}
    """
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--cluster_options={pair}: expected NAME=VALUE, separated by commas.")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def as_jobs(num_jobs: int, *, cluster: str = "slurm", options: Mapping[str, Any] | None = None) -> Launcher:
    """Makes the launcher of a job array, by submitit.

    Args:
      num_jobs: jobs, each of which takes cells until none is left.
      cluster: "slurm"; "local" runs the jobs as processes of this machine and "debug" in this one.
      options: parameters of `submitit.AutoExecutor.update_parameters`, such as `timeout_min` or `slurm_partition`.

    Returns:
      The launcher.

    Raises:
      ConfigError: submitit is not installed, there is no such cluster, or an option that it does not know.
    """
    # Its configuration of logging, made on import, closes the handlers of others.
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("Jobs need the package submitit: pip install 'edgesafe-jax[sweep]'.") from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            submitit.AutoExecutor(folder=folder, cluster=cluster).update_parameters(**dict(options or {}))
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise ConfigError(f"--cluster={cluster}, --cluster_options={dict(options or {})}: {error}") from error
    return functools.partial(_run_jobs, num_jobs, cluster, dict(options or {}))


def _run_jobs(
    num_jobs: int,
    cluster: str,
    options: Mapping[str, Any],
    work: Work,
    cells: Sequence[Cell],
    root: Path,
    on_change: Callable[[], None],
) -> None:
    import submitit

    executor = submitit.AutoExecutor(folder=root / JOBS, cluster=cluster)
    executor.update_parameters(name="edgesafe-sweep", **options)
    with executor.batch():
        jobs = [executor.submit(work, list(cells), root) for _ in range(min(num_jobs, len(cells)))]
    try:
        if cluster == "debug":
            for job in jobs:
                job.result()
        while not all(job.done() for job in jobs):
            time.sleep(POLL_SECONDS)
            on_change()
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    on_change()
    if failed := [job for job in jobs if job.exception() is not None]:
        raise EdgesafeError(
            f"{len(failed)} of {len(jobs)} jobs ended early: see {root / JOBS} ({failed[0].job_id}). The same command "
            "continues."
        )
