"""Reports of a run: tables, figures, the HTML report, and files of measured results."""

from edgesafe_jax.reporting.curves import curves, pose_animation, pose_strip
from edgesafe_jax.reporting.html import Report, ReportError, Section, build_report, shorten, write_fragment
from edgesafe_jax.reporting.maps import grid_maps, lines, point_map
from edgesafe_jax.reporting.plots import (
    Point,
    bars,
    loss_curve,
    reliability_diagram,
    safety_usefulness,
    side_by_side,
    verdict_reliability,
)
from edgesafe_jax.reporting.tables import Estimate, Table, format_cell, make_table

__all__ = [
    "Estimate",
    "Point",
    "Report",
    "ReportError",
    "Section",
    "Table",
    "bars",
    "build_report",
    "curves",
    "format_cell",
    "grid_maps",
    "lines",
    "loss_curve",
    "make_table",
    "point_map",
    "pose_animation",
    "pose_strip",
    "reliability_diagram",
    "safety_usefulness",
    "shorten",
    "side_by_side",
    "verdict_reliability",
    "write_fragment",
]
