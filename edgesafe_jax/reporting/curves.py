"""Figures of planning: curves with intervals, and poses of a figure side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgesafe_jax.reporting.plots import (
    _FAINT,
    PALETTE,
    _axes,
    _errors,
    _estimate,
    _figure,
    _line_style,
    _log_places,
    _name_lines,
    _png,
)


def curves(
    series: Mapping[str, Sequence[tuple[float, Any]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
) -> bytes:
    """Draws named curves, with error bars where their values are intervals.

    Args:
      series: from name to points (x, number or interval), in the order of x.
      xlabel: of the horizontal axis.
      ylabel: of the vertical axis.
      title: over the figure.
      log_x: whether the horizontal axis is logarithmic.
      log_y: whether the vertical one is.
      markers: whether each point is marked.

    Returns:
      A PNG.

    Raises:
      ValueError: if there is nothing to draw, or a value is not finite.
    """
    if not any(series.values()):
        raise ValueError("no curves to draw")
    figure, axes = _axes(6.4, 4.2, title, xlabel, ylabel)
    for number, (name, points) in enumerate(series.items()):
        estimates = [_estimate(value, f"{name} at {x}") for x, value in points]
        axes.errorbar(
            [x for x, _ in points],
            [estimate.value for estimate in estimates],
            yerr=_errors(estimates),
            label=name,
            **_line_style(number, marked=markers),
            linewidth=1.8,
            capsize=3,
        )
    if log_x:
        _log_places(axes, sorted({float(x) for points in series.values() for x, _ in points}))
    if log_y:
        axes.set_yscale("log")
    _name_lines(axes, len(series))
    return _png(figure)


def pose_strip(
    poses: Sequence[tuple[np.ndarray, np.ndarray]], *, captions: Sequence[str] = (), title: str = ""
) -> bytes:
    """Draws poses of a figure side by side, from the side: x to the right, z up, the same scale for all.

    Each pose is centred on its own mean x; the line at z = 0 is the ground.

    Args:
      poses: of each moment, ends of segments `[L, 2, 3]` and their radii `[L]` in metres, as from
        `edgesafe_jax.planning.figure_segments`.
      captions: under each pose.
      title: over the figure.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are no poses, or not as many captions.
    """
    if not poses or (captions and len(captions) != len(poses)):
        raise ValueError(f"{len(poses)} poses, {len(captions)} captions: expected some poses and a caption for each")
    centred = [ends - [np.mean(ends[..., 0]), 0.0, 0.0] for ends, _ in poses]
    points = np.concatenate([ends.reshape(-1, 3) for ends in centred])
    reach = 1.1 * max(float(np.abs(points[:, 0]).max()), 0.1)
    bottom, top = min(float(points[:, 2].min()), 0.0) - 0.1, float(points[:, 2].max()) + 0.2
    width = 9.6 / len(poses)
    height = min(width * (top - bottom) / (2 * reach), 4.0)
    figure = _figure(9.6, height + 0.7)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    for number, (axes, ends, (_, radii)) in enumerate(
        zip(np.atleast_1d(figure.subplots(1, len(poses))), centred, poses, strict=True)
    ):
        axes.set_xlim(-reach, reach)
        axes.set_ylim(bottom, top)
        axes.set_aspect("equal")
        axes.axis("off")
        axes.axhline(0.0, color=_FAINT, linewidth=1.0)
        points_per_metre = 72 * width / (2 * reach)
        for (one, other), radius in zip(ends, radii, strict=True):
            axes.plot(
                [one[0], other[0]],
                [one[2], other[2]],
                color=PALETTE[0],
                linewidth=max(1.0, min(2 * radius * points_per_metre, 12.0)),
                solid_capstyle="round",
                marker="o",
                markersize=max(1.0, min(1.6 * radius * points_per_metre, 9.0)),
                alpha=0.85,
            )
        if captions:
            axes.set_title(captions[number], fontsize=8, parse_math=False)
    return _png(figure)
