"""Figures of planning: curves with intervals, and poses of a figure side by side or one after another."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pose: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Ends of segments `[L, 2, 3]` and their radii `[L]` in metres, as from `edgesafe_jax.planning.figure_segments`."""


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


def pose_strip(poses: Sequence[Pose], *, captions: Sequence[str] = (), title: str = "") -> bytes:
    """Draws poses of a figure side by side, from the side: x to the right, z up, the same scale for all.

    The view stands still, so that a figure that moves is seen to; where it would be too wide (a runner), each pose is
    centred on its own mean x and the ground has a mark at every metre. The line at z = 0 is the ground.

    Args:
      poses: of each moment.
      captions: over each pose.
      title: over the figure.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are no poses, or not as many captions.
    """
    _check_poses(poses, captions)
    view = _view(poses)
    width = 9.6 / len(poses)
    height = min(width * (view.top - view.bottom) / (2 * view.reach), 4.0)
    figure = _figure(9.6, height + 0.7)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    for number, (axes, pose) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(poses))), poses, strict=True)):
        _draw_pose(axes, pose, view, width)
        axes.axis("off")
        if captions:
            axes.set_title(captions[number], fontsize=8, parse_math=False)
    return _png(figure)


def pose_animation(poses: Sequence[Pose], *, frame_seconds: float = 0.1, captions: Sequence[str] = ()) -> bytes:
    """Draws poses of a figure one after another, as `pose_strip` does.

    Args:
      poses: of each frame.
      frame_seconds: how long a frame is shown; GIFs count in hundredths of a second.
      captions: over each frame.

    Returns:
      A GIF that repeats.

    Raises:
      ValueError: if there are no poses, not as many captions, or frames shorter than 0.02 s (which viewers ignore).
    """
    from PIL import Image

    _check_poses(poses, captions)
    if not frame_seconds >= 0.02:
        raise ValueError(f"frame_seconds={frame_seconds}: expected at least 0.02")
    view = _view(poses)
    width = 3.2
    height = min(width * (view.top - view.bottom) / (2 * view.reach), 4.0)
    figure = _figure(width, height + 0.7)
    figure.set_layout_engine("none")  # so that the axes are at the same place in all frames
    axes = figure.add_axes((0.0, 0.45 / (height + 0.7), 1.0, height / (height + 0.7)))
    frames = []
    for number, pose in enumerate(poses):
        axes.clear()
        _draw_pose(axes, pose, view, width)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.set_title(captions[number] if captions else "", fontsize=8, parse_math=False)
        axes.set_xlabel("m", fontsize=7)
        frames.append(Image.open(io.BytesIO(_png(figure))).convert("RGB").quantize(16, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    milliseconds = round(1000 * frame_seconds)
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def _check_poses(poses: Sequence[Pose], captions: Sequence[str]) -> None:
    if not poses or (captions and len(captions) != len(poses)):
        raise ValueError(f"{len(poses)} poses, {len(captions)} captions: expected some poses and a caption for each")


class _View(NamedTuple):
    """What is seen of each pose: x around its centre, and the lowest and highest z."""

    centre: float | None  # None follows the figure
    reach: float
    bottom: float
    top: float


_MOST_WIDTHS = 6.0
"""A figure that moves through more than so many times its own width is followed; else the view stands still."""


def _view(poses: Sequence[Pose]) -> _View:
    """Returns the view that holds every pose."""
    sides = max(float(np.abs(ends[..., 0] - np.mean(ends[..., 0])).max()) for ends, _ in poses)
    places = np.concatenate([ends[..., 0].ravel() for ends, _ in poses])
    heights = np.concatenate([ends[..., 2].ravel() for ends, _ in poses])
    left, right = float(places.min()), float(places.max())
    bottom, top = min(float(heights.min()), 0.0) - 0.1, float(heights.max()) + 0.2
    if right - left <= _MOST_WIDTHS * max(2 * sides, 0.5):
        return _View((left + right) / 2, 1.1 * max((right - left) / 2, 0.1), bottom, top)
    return _View(None, 1.1 * max(sides, 0.1), bottom, top)


def _draw_pose(axes: "Axes", pose: Pose, view: _View, width: float) -> None:
    """Draws a pose and the ground, with a mark at every metre where the figure is followed."""
    ends, radii = pose
    centre = float(np.mean(ends[..., 0])) if view.centre is None else view.centre
    reach = view.reach
    axes.set_xlim(centre - reach, centre + reach)
    axes.set_ylim(view.bottom, view.top)
    axes.set_aspect("equal")
    axes.axhline(0.0, color=_FAINT, linewidth=1.0)
    marks = range(math.ceil(centre - reach), math.floor(centre + reach) + 1)
    for metre in marks if view.centre is None else ():
        axes.plot([metre, metre], [-0.06, 0.0], color=_FAINT, linewidth=1.0)
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
