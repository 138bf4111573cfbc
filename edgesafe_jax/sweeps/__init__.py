"""Sweeps: a matrix of runs, made from one base config, run, resumed, chosen from and reported.

A cell is an ordinary work directory. `make_axes` and `expand` make the cells, `run_sweep` runs what is missing of them,
`write_report` compares them. Nothing here knows what a cell does: `launch.sweep` gives the function that runs one.
"""

from edgesafe_jax.sweeps.launchers import Launcher, as_jobs, in_processes, in_this_process, parse_options
from edgesafe_jax.sweeps.matrix import Axis, Cell, Level, expand, make_axes
from edgesafe_jax.sweeps.report import ReportSettings, write_report
from edgesafe_jax.sweeps.runs import RunCell, Work, read_results, run_cells
from edgesafe_jax.sweeps.selection import Selection
from edgesafe_jax.sweeps.sweep import Sweep, make_sweep, run_sweep

__all__ = [
    "Axis",
    "Cell",
    "Launcher",
    "Level",
    "ReportSettings",
    "RunCell",
    "Selection",
    "Sweep",
    "Work",
    "as_jobs",
    "expand",
    "in_processes",
    "in_this_process",
    "make_axes",
    "make_sweep",
    "parse_options",
    "read_results",
    "run_cells",
    "run_sweep",
    "write_report",
]
