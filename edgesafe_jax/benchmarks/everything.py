"""Several suites in one run: every performance figure that is stated of this library, as a ratio to a peer.

The table has the ratios alone; the numbers of each suite are kept under its name. Suites follow one another, so that
none slows another, and each takes turns with its own peers.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.metrics import Interval

_log = logging.getLogger(__name__)

SUITES = ("align", "generation", "guards", "offline_rl", "planner")
"""The suites with peers that run on any machine."""


def ratios(values: Mapping[str, float]) -> dict[str, Interval]:
    """The numbers that compare two times, by name: `NAME_over_PEER` and `ratio`, with their intervals."""
    compared = [name for name in values if "_over_" in (last := name.split("/")[-1]) or last.endswith("ratio")]
    named = [name for name in compared if not name.endswith(("_low", "_high"))]
    nan = float("nan")
    return {
        name: Interval(values[name], values.get(f"{name}_low", nan), values.get(f"{name}_high", nan), confidence=0.95)
        for name in named
    }


def run(suites: Mapping[str, Callable[[], Mapping[str, Any]]]) -> dict[str, Any]:
    """Runs suites one after another.

    Args:
      suites: by name, from nothing to `rows` and `values`.

    Returns:
      Rows of a table, the ratios of all suites; flat numbers, those of each suite under its name.

    Raises:
      ConfigError: there are no suites.
    """
    if not suites:
        raise ConfigError("suites is empty: expected at least one.")
    rows: list[dict[str, Any]] = []
    values: dict[str, float] = {}
    for number, (name, suite) in enumerate(suites.items(), start=1):
        _log.info(f"suite {number} of {len(suites)}: {name}")
        begun = time.monotonic()
        found = suite()["values"]
        rows += [{"suite": name, "ratio": ratio, "value": value} for ratio, value in ratios(found).items()]
        values |= {f"{name}/{key}": value for key, value in found.items()}
        values[f"{name}/suite_seconds"] = time.monotonic() - begun
    return {"rows": rows, "values": values}
