r"""Compares the cells of a sweep: the frontier, the search, curves, costs, as HTML, CSV and LaTeX.

    python -m launch.report DIR

Cells that are not finished are left out, so that a running sweep can be looked at.
"""

from pathlib import Path
from typing import Any

from absl import flags

from edgesafe_jax import sweeps
from edgesafe_jax.training.workdir import read_config
from . import errors, startup, sweep

OPERANDS = 1  # the work directory of a sweep


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_string("title", "A sweep", "Title of the report.")


def main(argv: list[str]) -> None:
    """Writes the report."""
    startup.configure()
    with errors.reported():
        root = Path(argv[1])
        config = read_config(root)
        found = sweep.read_sweep(config)
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config["report"].items()}
        tables = sweeps.write_report(found, root, sweeps.ReportSettings(**given), title=flags.FLAGS.title)
        for caption, table in tables.items():
            print(f"{caption}\n{table.to_text()}\n")
        print(f"report: {root / 'report.html'}, tables: {root / 'tables'}")


if __name__ == "__main__":
    errors.start(define_flags, main, operands=OPERANDS)
