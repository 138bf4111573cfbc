"""Figures as PNG bytes, drawn without any global state of matplotlib.

The palette is that of Okabe and Ito, which is safe for the common kinds of colour blindness; series also differ in
marker or position.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgesafe_jax.metrics import equal_width_bins
from edgesafe_jax.reporting.tables import Estimate, to_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "osD^vP*"
_DPI = 160
_INK = "#222222"
_FAINT = "#888888"


class Point(NamedTuple):
    """A named point of a scatter plot.

    Attributes:
      name: its label.
      x: a number or an interval.
      y: a number or an interval.
    """

    name: str
    x: Any
    y: Any


def loss_curve(
    steps: Sequence[float],
    losses: Sequence[float | None] | np.ndarray,
    *,
    window: int | None = None,
    title: str = "",
    label: str = "loss",
    log_scale: bool = False,
) -> bytes:
    """Draws a loss over the steps, with a smoothed line over the raw one.

    The smoothed line is the mean over a centred window, shortened at both ends; values that are not finite are
    left out.

    Args:
      steps: the steps `[N]`.
      losses: the losses `[N]`; None or NaN is a gap.
      window: steps in the window; None takes a twentieth of them.
      title: over the figure.
      label: of the vertical axis.
      log_scale: whether that axis is logarithmic.

    Returns:
      A PNG.

    Raises:
      ValueError: if the lengths differ or no loss is finite.
    """
    values = np.array([np.nan if loss is None else loss for loss in losses], np.float64)
    if len(values) != len(steps) or not np.isfinite(values).any():
        raise ValueError(
            f"{len(steps)} steps, {len(values)} losses, {np.isfinite(values).sum()} of them finite: "
            "expected one loss per step and at least one that is finite"
        )
    figure, axes = _axes(6.4, 3.6, title, "step", label)
    smooth = _smooth(values, window or max(1, len(values) // 20))
    axes.plot(steps, values, color=PALETTE[5], linewidth=0.9, alpha=0.6, label="each step")
    axes.plot(steps, smooth, color=PALETTE[0], linewidth=2.0, label="smoothed")
    if log_scale:
        axes.set_yscale("log")
    elif np.nanmin(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def safety_usefulness(
    points: Sequence[Point],
    *,
    xlabel: str = "over-refusal of benign requests",
    ylabel: str = "refusal of harmful requests",
    title: str = "",
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = (0.0, 1.0),
) -> bytes:
    """Draws systems as named points, over-refusal on x and refusal of harm on y, with error bars.

    Args:
      points: the systems; names and numbers or intervals.
      xlabel: of the horizontal axis.
      ylabel: of the vertical axis.
      title: over the figure.
      xlim: ends of the horizontal axis; None fits it to the points.
      ylim: ends of the vertical axis; None fits it to the points.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are no points, or one has a coordinate that is not finite.
    """
    if not points:
        raise ValueError("no points to draw")
    figure, axes = _axes(6.4, 4.8, title, xlabel, ylabel)
    estimates = [(_estimate(point.x, point.name), _estimate(point.y, point.name)) for point in points]
    for number, (x, y) in enumerate(estimates):
        axes.errorbar(
            x.value,
            y.value,
            xerr=_errors([x]),
            yerr=_errors([y]),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=PALETTE[number % len(PALETTE)],
            markersize=8,
            elinewidth=1.2,
            capsize=3,
        )
    for set_limits, wanted, ends in (
        (axes.set_xlim, xlim, [end for x, _ in estimates for end in x]),
        (axes.set_ylim, ylim, [end for _, y in estimates for end in y]),
    ):
        low, high = wanted or (min(ends), max(ends))
        margin = (0.03 if wanted else 0.1) * (high - low or 1.0)
        set_limits(low - margin, high + margin)
    _label_points(figure, axes, [point.name for point in points], estimates)
    return _png(figure)


def bars(
    values: Mapping[str, Mapping[str, Any]],
    *,
    xlabel: str = "",
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> bytes:
    """Draws horizontal bars in groups, with intervals.

    Args:
      values: from group (a line of the figure) to series (a colour) to a number, an interval or None for no bar.
      xlabel: of the axis of values.
      title: over the figure.
      limits: of the axis of values.

    Returns:
      A PNG.

    Raises:
      ValueError: if there is nothing to draw.
    """
    series = list(dict.fromkeys(name for group in values.values() for name in group))
    if not series:
        raise ValueError("no bars to draw")
    figure, axes = _axes(6.4, 1.3 + len(values) * (0.25 + 0.22 * len(series)), title, xlabel, "")
    thickness = 0.8 / len(series)
    for number, name in enumerate(series):
        found = [
            (line - 0.4 + (number + 0.5) * thickness, _estimate(group[name], f"{name} of {group_name}"))
            for line, (group_name, group) in enumerate(values.items())
            if to_cell(group.get(name)) is not None
        ]
        estimates = [estimate for _, estimate in found]
        axes.barh(
            [place for place, _ in found],
            [estimate.value for estimate in estimates],
            height=0.9 * thickness,
            color=PALETTE[number % len(PALETTE)],
            label=name,
            xerr=_errors(estimates),
            error_kw={"ecolor": _INK, "elinewidth": 1.2, "capsize": 2.5},
        )
    axes.set_yticks(range(len(values)), list(values), parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    if limits is not None:
        axes.set_xlim(*limits)
    if len(series) > 1:
        # Under the figure, where it hides no bar.
        figure.legend(loc="outside lower center", ncols=min(len(series), 4), frameon=False, fontsize=9)
    return _png(figure)


def reliability_diagram(
    *,
    confidence: Sequence[float] | np.ndarray,
    accuracy: Sequence[float] | np.ndarray,
    count: Sequence[int] | np.ndarray,
    title: str = "",
    xlabel: str = "predicted probability",
    ylabel: str = "observed frequency",
) -> bytes:
    """Draws observed frequencies over predicted probabilities, with the number of cases in each bin below.

    Args:
      confidence: mean prediction of each bin `[N]`.
      accuracy: observed frequency in each bin `[N]`.
      count: cases in each bin `[N]`; empty bins are left out.
      title: over the figure.
      xlabel: of the horizontal axis.
      ylabel: of the vertical axis.

    Returns:
      A PNG.

    Raises:
      ValueError: if the lengths differ or all bins are empty.
    """
    confidence, accuracy, count = (np.asarray(values, np.float64) for values in (confidence, accuracy, count))
    if not (confidence.shape == accuracy.shape == count.shape and confidence.ndim == 1) or not (count > 0).any():
        raise ValueError(
            f"confidence {confidence.shape}, accuracy {accuracy.shape}, count {count.shape}: expected one "
            "of each per bin and at least one case"
        )
    full = count > 0
    figure = _figure(4.6, 5.2)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _plain(axes, title, "", ylabel)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1.2, linestyle="--", label="perfectly calibrated")
    axes.plot(confidence[full], accuracy[full], marker="o", color=PALETTE[0], linewidth=1.8, label="observed")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    below.bar(confidence[full], count[full], width=0.6 / len(count), color=PALETTE[5])
    _plain(below, "", xlabel, "cases")
    return _png(figure)


def verdict_reliability(*, unsafe_prob: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> bytes:
    """Draws the reliability diagram of a guard: the frequency of human labels "unsafe" over P(unsafe).

    Args:
      unsafe_prob: the guard's probabilities `[N]`.
      labels: 1 where people say unsafe `[N]`.
      num_bins: bins of equal width.

    Returns:
      A PNG.
    """
    bins = equal_width_bins(unsafe_prob, num_bins)
    count = np.bincount(bins, minlength=num_bins)
    each = np.maximum(count, 1)
    return reliability_diagram(
        confidence=np.bincount(bins, weights=unsafe_prob, minlength=num_bins) / each,
        accuracy=np.bincount(bins, weights=labels, minlength=num_bins) / each,
        count=count,
        xlabel="P(unsafe)",
        ylabel="fraction that people call unsafe",
    )


def side_by_side(pictures: Sequence[bytes]) -> bytes:
    """Joins pictures into one row, aligned at the top.

    Args:
      pictures: PNGs, from left to right.

    Returns:
      A PNG.

    Raises:
      ValueError: if there are none.
    """
    from PIL import Image

    if not pictures:
        raise ValueError("no pictures to put side by side")
    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    size = (sum(image.width for image in images), max(image.height for image in images))
    whole = Image.new("RGB", size, "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width
    buffer = io.BytesIO()
    whole.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    """Makes an empty figure; inches."""
    # Imported here, because matplotlib looks for fonts and settings on the disk when it is imported.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(width: float, height: float, title: str, xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    """Makes a figure with one pair of axes."""
    figure = _figure(width, height)
    axes = figure.add_subplot()
    _plain(axes, title, xlabel, ylabel)
    return figure, axes


def _plain(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    """Gives axes the look of all figures here; a dollar sign in a text is a dollar sign."""
    if title:
        axes.set_title(title, fontsize=12, color=_INK, loc="left", parse_math=False)
    axes.set_xlabel(xlabel, fontsize=10, color=_INK, parse_math=False)
    axes.set_ylabel(ylabel, fontsize=10, color=_INK, parse_math=False)
    axes.tick_params(labelsize=9, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color="#dddddd", linewidth=0.7)


def _line_style(number: int, *, marked: bool = True) -> dict[str, Any]:
    """Colour and marker of a line, dashed where the colours begin again."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": _MARKERS[number % len(_MARKERS)] if marked else None,
        "linestyle": "-" if number < len(PALETTE) else "--",
    }


def _name_lines(axes: "Axes", num_lines: int) -> None:
    """Names the lines: among them, or beside the axes where they are many."""
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if num_lines > 5 else {}
    axes.legend(frameon=False, fontsize=9, **beside)


def _log_places(axes: "Axes", places: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic, with the places of the points as its ticks where they are few."""
    axes.set_xscale("log")
    if len(places) <= 8:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xticks([], minor=True)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without the name of the software, the same data gives the same bytes with each version of it.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


class _Drawn(NamedTuple):
    """A point and the ends of its error bar, which has no length where there is no interval."""

    value: float
    low: float
    high: float


def _estimate(value: Any, name: str) -> _Drawn:
    cell = to_cell(value)
    if cell is None or isinstance(cell, str):
        raise ValueError(f"{name}: cannot draw {value!r}, expected a finite number or an interval")
    if not isinstance(cell, Estimate):
        return _Drawn(cell, cell, cell)
    if cell.low is None or cell.high is None:
        return _Drawn(cell.value, cell.value, cell.value)
    return _Drawn(cell.value, cell.low, cell.high)


def _errors(estimates: Sequence[_Drawn]) -> np.ndarray:
    """Returns how far the ends are from the values, `[2, N]`; NaN, for no bar, where there is no interval."""
    ends = np.array([(each.value - each.low, each.high - each.value) for each in estimates]).reshape(-1, 2).T
    return np.where(np.any(ends != 0, axis=0), np.maximum(ends, 0.0), np.nan)


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Returns means over a centred window, leaving out what is not finite."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    half = window // 2

    def total(numbers: np.ndarray) -> np.ndarray:
        return np.convolve(numbers, kernel)[half : half + len(numbers)]

    counts = total(finite.astype(np.float64))
    sums = total(np.where(finite, values, 0.0))
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5)


def _label_points(
    figure: "Figure", axes: "Axes", names: Sequence[str], estimates: Sequence[tuple[_Drawn, _Drawn]]
) -> None:
    """Writes names beside points so that they cover neither each other nor a point nor its error bars."""
    texts = [axes.text(0.0, 0.0, name, fontsize=9, color=_INK, parse_math=False, va="bottom") for name in names]
    figure.draw_without_rendering()  # Sets the layout, so that sizes in pixels are known.
    sizes = [(box.width, box.height) for box in (text.get_window_extent() for text in texts)]
    anchors, crosses = [], []
    for x, y in estimates:
        corners = axes.transData.transform([(x.value, y.value), (x.low, y.low), (x.high, y.high)])
        (centre_x, centre_y), (left, low), (right, high) = corners.tolist()
        anchors.append((centre_x, centre_y))
        thin = 0.02 * _DPI
        crosses += [
            (left - thin, centre_y - thin, right + thin, centre_y + thin),
            (centre_x - thin, low - thin, centre_x + thin, high + thin),
        ]
    frame = axes.get_window_extent()
    places = place_labels(anchors, sizes, (frame.x0, frame.y0, frame.x1, frame.y1), gap=0.09 * _DPI, obstacles=crosses)
    to_data = axes.transData.inverted()
    for text, place, anchor, size in zip(texts, places, anchors, sizes, strict=True):
        left, low = to_data.transform(place)
        text.set_position((float(left), float(low)))
        nearest = np.clip(anchor, place, np.add(place, size))
        if np.hypot(*(nearest - anchor)) > 0.15 * _DPI:  # A line leads to a label that had to go far.
            ends = to_data.transform([anchor, nearest])
            axes.plot(*ends.T, color=_FAINT, linewidth=0.8, zorder=1)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: tuple[float, float, float, float],
    *,
    gap: float,
    obstacles: Sequence[tuple[float, float, float, float]] = (),
) -> list[tuple[float, float]]:
    """Places labels beside their points, one after the other, each at the nearest free place.

    Args:
      anchors: the points, `(x, y)`.
      sizes: of the labels, `(width, height)`.
      frame: where labels may lie, `(left, bottom, right, top)`.
      gap: between a point and its label, and around each point.
      obstacles: boxes that no label may cover, `(left, bottom, right, top)`.

    Returns:
      The lower left corner of each label. A label for which there is no free place lies right of its point.
    """
    taken = [*obstacles, *((x - gap / 2, y - gap / 2, x + gap / 2, y + gap / 2) for x, y in anchors)]
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]

    def is_free(box: tuple[float, float, float, float]) -> bool:
        left, low, right, top = box
        inside = frame[0] <= left and frame[1] <= low and right <= frame[2] and top <= frame[3]
        return inside and not any(left < r and x < right and low < t and y < top for x, y, r, t in taken)

    places = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        boxes = []
        for ring in range(16):
            reach = gap * (1 + ring)
            for across, up in directions:
                left = x + across * (reach + width / 2) - width / 2
                low = y + up * (reach + height / 2) - height / 2
                boxes.append((left, low, left + width, low + height))
        box = next(filter(is_free, boxes), boxes[0])
        places.append(box[:2])
        taken.append(box)
    return places
