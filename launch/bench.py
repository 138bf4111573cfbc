r"""Benchmarks: `python -m launch.bench --suite=NAME [--workdir=DIR]`, with a name of `SUITES`.

`planner_learned` and `planner_brax` are batches of problems; `large` is a 1B model, for accelerators; `scaling`
compiles a 1B and an 8B model for 8 and 256 simulated devices; `all` runs those with peers and prints ratios alone.
`XLA_FLAGS=--xla_cpu_max_isa=AVX2` limits the instructions that XLA compiles to, not those of the library kernels with
which it multiplies matrices.

Each suite separates compilation from running, waits for the device, and prints ratios against a peer that is measured
in the same run, the two in turn. Peers that are not installed are left out. Tests never measure time.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from edgesafe_jax.benchmarks import (
    align,
    batches,
    everything,
    generation,
    guards,
    kills,
    large,
    offline_rl,
    planner,
    scaling,
)
from edgesafe_jax.benchmarks.harness import machine
from edgesafe_jax.benchmarks.offline_rl_peers import PEERS
from edgesafe_jax.exporting import device
from edgesafe_jax.reporting import make_table
from edgesafe_jax.training import check_folder, write_json, write_summary
from . import errors, peers

SUITES: dict[str, Callable[[], dict[str, Any]]] = {
    "align": functools.partial(align.run, peers.align_peers),
    "device": device.run,
    "generation": functools.partial(generation.run, peers.generation_peers),
    "guards": functools.partial(guards.run, peers.guard_peer),
    "kills": functools.partial(kills.run, (f"{__package__}.train", "--config=align_soft_prompt:runlocal")),
    "large": large.run,
    "offline_rl": functools.partial(offline_rl.run, PEERS),
    "planner": planner.run,
    "planner_learned": batches.run_learned,
    "planner_brax": batches.run_brax,
    "scaling": scaling.run,
}
"""The suites by name: from nothing to `rows` (a table), `values` (flat numbers) and perhaps `figures` (PNGs)."""
SUITES["all"] = lambda: everything.run({name: SUITES[name] for name in everything.SUITES})


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_string("suite", "align", "Which benchmarks to run.")
    flags.DEFINE_string("workdir", None, "Where bench_SUITE.json and summary.json go; default nowhere.")


def main(argv: list[str]) -> None:
    """Runs a suite and prints its table."""
    with errors.reported():
        given = flags.FLAGS
        suite = errors.lookup(SUITES, given.suite, "--suite")
        if given.workdir is not None:
            check_folder(given.workdir, "--workdir")
        about = machine()
        print("  ".join(f"{name}={value}" for name, value in about.items()))
        result = suite()
        figures = result.pop("figures", {})
        print(make_table(result["rows"], digits=3).to_text())
        if given.workdir:
            workdir = Path(given.workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / f"bench_{given.suite}.json", {"machine": about, **result})
            write_summary(workdir, f"bench_{given.suite}", result["values"])
            for name, png in figures.items():
                (workdir / f"bench_{given.suite}_{name}.png").write_bytes(png)


if __name__ == "__main__":
    errors.start(define_flags, main)
