"""The harness of all benchmarks: runs in turn, waiting for the device, medians, ratios, and the machine they ran on."""

import contextlib
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeVar

import jax
import numpy as np

from edgesafe_jax import metrics

NUM_RUNS = 7
PACKAGES = ("jax", "jaxlib", "numpy", "mujoco", "torch", "transformers", "xllamacpp", "d3rlpy", "colorednoise")
Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of the runs of one candidate.

    Attributes:
      first: wall time of the first call, which compiles.
      wall: wall time of each later run.
      processor: processor time of each, summed over threads.
      result: what the first call returned.
    """

    first: float
    wall: list[float]
    processor: list[float]
    result: Any = None

    @property
    def median(self) -> float:
        """The median wall time."""
        return statistics.median(self.wall)

    @property
    def median_processor(self) -> float:
        """The median processor time."""
        return statistics.median(self.processor)

    def columns(self) -> Row:
        """Columns of a table."""
        wall = {"median (s)": self.median, "min (s)": min(self.wall), "max (s)": max(self.wall)}
        return {"first call (s)": self.first, **wall}


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """Calls a function, waits for the device and returns wall seconds, processor seconds and the result."""
    begun, used = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(run())
    return time.perf_counter() - begun, time.process_time() - used, result


def in_turn(
    runs: Mapping[Name, Callable[[], Any]], *, num_runs: int = NUM_RUNS, alternate: bool = False
) -> dict[Name, Times]:
    """Times functions that take turns, so that other work on the machine slows all of them.

    Args:
      runs: from name to the function; each is called once before, which is its first call.
      num_runs: runs of each.
      alternate: whether the order is reversed every other time.

    Returns:
      The times by name.
    """
    times = {}
    for name, run in runs.items():
        first, _, result = timed(run)
        times[name] = Times(first, [], [], result)
    for number in range(num_runs):
        for name in list(runs)[:: -1 if alternate and number % 2 == 0 else 1]:
            wall, processor, _ = timed(runs[name])
            times[name].wall.append(wall)
            times[name].processor.append(processor)
    return times


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Returns the median ratio of runs that followed one another."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def ratio_interval(times: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> metrics.Interval:
    """Returns the median ratio of runs that followed one another, with a bootstrap interval over the runs."""
    return metrics.bootstrap_interval(
        np.asarray(times) / np.asarray(others), statistic=lambda drawn: float(np.median(drawn)), num_samples=1000
    )


def on_accelerator() -> bool:
    """Says whether jax computes on something else than the CPU."""
    return jax.default_backend() != "cpu"


def key_of(name: str) -> str:
    """Returns a candidate's name as part of the name of a number."""
    return name.replace(" ", "_").replace(",", "")


def same_columns(rows: Iterable[Row]) -> list[Row]:
    """Returns rows that all have the columns of all of them, for a table."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def machine() -> dict[str, Any]:
    """Returns what a benchmark was measured on: the device, the processor, its load and the versions of packages."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),) * 3
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "device": str(jax.devices()[0]),
        "num_devices": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "platform": platform.machine(),
        "isa": _isa(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load_before": load[0],
        **versions,
    }


def _isa() -> str:
    """The widest vector instructions of the processor, where the system tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = {flag for line in file if line.startswith("flags") for flag in line.split()}
    except OSError:
        return "unknown"
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "avx")
    return next((name for name in known if name in found), "unknown")
