"""Figures of a plane: points, grids of fractions, and lines over a quantity."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.reporting.plots import (
    PALETTE,
    _axes,
    _estimate,
    _figure,
    _line_style,
    _log_places,
    _name_lines,
    _plain,
    _png,
)

Segment = tuple[tuple[float, float], tuple[float, float]]
"""The two ends of a wall."""


def point_map(
    groups: Mapping[str, np.ndarray],
    *,
    low: Sequence[float],
    high: Sequence[float],
    walls: Sequence[Segment] = (),
    title: str = "",
) -> bytes:
    """Draws groups of points in a plane, each in its own colour, with walls as thick lines.

    Args:
      groups: from name to points `[N, 2]`; later ones lie on top.
      low: `[2]` lower corner of the plane.
      high: `[2]` upper corner.
      walls: segments that are drawn.
      title: over the figure.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are no groups.
    """
    if not groups:
        raise ValueError("no points to draw: expected at least one group")
    figure, axes = _axes(6.4, 5.2, title, "x", "y")
    figure.set_layout_engine("compressed")  # of axes that keep their aspect
    for number, (name, points) in enumerate(groups.items()):
        places = np.asarray(points, np.float64).reshape(-1, 2)
        axes.scatter(*places.T, s=5, color=PALETTE[number % len(PALETTE)], alpha=0.6, linewidths=0, label=name)
    for start, end in walls:
        axes.plot(*np.array([start, end]).T, color="black", linewidth=4)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, markerscale=3)
    return _png(figure)


def grid_maps(
    grids: Mapping[str, np.ndarray], *, low: Sequence[float], high: Sequence[float], title: str = ""
) -> bytes:
    """Draws grids of numbers in [0, 1] side by side on one colour scale; NaN stays white.

    Args:
      grids: from name to `[X, Y]`, first index along x.
      low: `[2]` lower corner of the plane.
      high: `[2]` upper corner.
      title: over the figure.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are no grids.
    """
    if not grids:
        raise ValueError("no grids to draw: expected at least one")
    figure = _figure(3.4 * len(grids) + 0.6, 3.6)
    panels = [figure.add_subplot(1, len(grids), number + 1) for number in range(len(grids))]
    if title:
        figure.suptitle(title, fontsize=12)
    image = None
    for axes, (name, grid) in zip(panels, grids.items(), strict=True):
        _plain(axes, name, "x", "y")
        image = axes.imshow(
            np.asarray(grid).T,
            origin="lower",
            extent=(low[0], high[0], low[1], high[1]),
            vmin=0.0,
            vmax=1.0,
            cmap="viridis",
            interpolation="nearest",
        )
        axes.grid(visible=False)
    assert image is not None  # there is at least one grid
    figure.colorbar(image, ax=panels, shrink=0.8)
    return _png(figure)


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[Any]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    ylim: tuple[float, float] | None = (0.0, 1.0),
) -> bytes:
    """Draws lines over a quantity, with bars where the values are intervals.

    Args:
      x: `[N]`.
      series: from name to N numbers or intervals; None leaves a gap.
      xlabel: of the horizontal axis.
      ylabel: of the vertical axis.
      title: over the figure.
      log_x: whether the horizontal axis is logarithmic.
      ylim: ends of the vertical axis; None fits it to the values.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are no series, or one has another length than `x`.
    """
    if not series:
        raise ValueError("no lines to draw: expected at least one series")
    figure, axes = _axes(6.4, 3.8, title, xlabel, ylabel)
    for number, (name, values) in enumerate(series.items()):
        if len(values) != len(x):
            raise ValueError(f"series {name!r} has {len(values)} values for {len(x)} places: expected as many")
        kept = [(place, _estimate(value, name)) for place, value in zip(x, values, strict=True) if value is not None]
        axes.errorbar(
            [place for place, _ in kept],
            [each.value for _, each in kept],
            yerr=np.array([(each.value - each.low, each.high - each.value) for _, each in kept]).reshape(-1, 2).T,
            **_line_style(number),
            markersize=5,
            capsize=2.5,
            label=name,
        )
    if log_x:
        _log_places(axes, x)
    if ylim is not None:
        margin = 0.03 * (ylim[1] - ylim[0])
        axes.set_ylim(ylim[0] - margin, ylim[1] + margin)
    _name_lines(axes, len(series))
    return _png(figure)
