import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edgesafe_jax.reporting import Estimate, Point, bars, loss_curve, reliability_diagram, safety_usefulness
from edgesafe_jax.reporting.plots import PALETTE, _errors, _smooth, place_labels


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def share(png: bytes, colour: str) -> float:
    """The share of the picture that has (about) a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels(png) - wanted).max(axis=-1) < 12).mean())


def test_smooth_is_the_mean_over_a_centred_window():
    values = np.array([1.0, 2.0, 6.0, np.nan, 4.0])
    np.testing.assert_allclose(_smooth(values, 3), [1.5, 3.0, 4.0, 5.0, 4.0])
    np.testing.assert_array_equal(_smooth(values, 1), values)
    np.testing.assert_allclose(_smooth(np.full(7, 2.0), 4), 2.0)


def test_loss_curve_draws_both_lines_and_survives_gaps():
    steps = np.arange(40)
    losses = [None if step == 7 else 1 / (1 + step) for step in steps]
    for log_scale in (False, True):
        png = loss_curve(steps, losses, title="a $ and a _b^", log_scale=log_scale)
        assert share(png, PALETTE[0]) > 0.001
        assert share(png, "#ffffff") > 0.5
    assert loss_curve([3], [1.0]).startswith(b"\x89PNG")
    for bad in ([], [np.nan] * 40, [1.0]):
        with pytest.raises(ValueError, match="expected one loss per step"):
            loss_curve(steps, bad)


def test_same_data_same_bytes():
    assert loss_curve([0, 1], [2.0, 1.0]) == loss_curve([0, 1], [2.0, 1.0])


def test_no_global_state_of_matplotlib_is_used():
    code = (
        "import sys, edgesafe_jax.reporting as r\n"
        "assert 'matplotlib' not in sys.modules\n"
        "r.loss_curve([0, 1], [2.0, 1.0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_scatter_draws_every_point_in_its_own_colour():
    points = [
        Point("base", Estimate(0.0, 0.0, 0.02), 0.06),
        Point("student", 0.13, Estimate(0.93, 0.88, 0.96)),
        Point("system $x", 0.11, 0.95),
    ]
    png = safety_usefulness(points)
    assert all(share(png, colour) > 1e-4 for colour in PALETTE[:3])
    assert share(png, PALETTE[3]) == 0
    assert safety_usefulness(points[:1], xlim=(0, 1), ylim=None).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no points"):
        safety_usefulness([])
    with pytest.raises(ValueError, match="bad: cannot draw nan"):
        safety_usefulness([Point("bad", 0.5, float("nan"))])


def overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_labels_cover_neither_each_other_nor_a_point_nor_an_obstacle():
    generator = np.random.default_rng(0)
    for _ in range(20):
        cluster = generator.uniform(280, 360, size=(7, 2))
        anchors = [(float(x), float(y)) for x, y in cluster]
        sizes = [(float(width), 14.0) for width in generator.uniform(30, 90, size=7)]
        obstacles = [(200.0, 330.0, 420.0, 334.0)]
        frame = (0.0, 0.0, 640.0, 480.0)
        places = place_labels(anchors, sizes, frame, gap=9.0, obstacles=obstacles)
        boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, sizes, strict=True)]
        dots = [(x, y, x, y) for x, y in anchors]
        assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
        assert not any(overlap(box, other) for box in boxes for other in dots + obstacles)
        assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 640 and box[3] <= 480 for box in boxes)


def test_a_lone_label_lies_right_of_its_point_and_left_at_the_right_edge():
    frame = (0.0, 0.0, 100.0, 100.0)
    assert place_labels([(50.0, 50.0)], [(20.0, 10.0)], frame, gap=5.0) == [(55.0, 45.0)]
    assert place_labels([(95.0, 50.0)], [(20.0, 10.0)], frame, gap=5.0) == [(70.0, 45.0)]
    # No place at all: beside its point nevertheless.
    assert place_labels([(50.0, 50.0)], [(200.0, 10.0)], frame, gap=5.0) == [(55.0, 45.0)]


def test_bars_are_as_long_as_their_values():
    png = bars({"one": {"a": 0.25, "b": Estimate(0.75, 0.7, 0.8)}, "two": {"a": 0.5, "b": None}}, limits=(0, 1))
    blue, orange = share(png, PALETTE[0]), share(png, PALETTE[1])
    assert blue == pytest.approx(orange, rel=0.1)  # 0.25 + 0.5 against 0.75; each has a key in the legend.
    assert share(bars({"one": {"a": 0.5}}), PALETTE[1]) == 0
    with pytest.raises(ValueError, match="no bars"):
        bars({"one": {}})


def test_error_bars_are_never_negative_and_absent_without_an_interval():
    errors = _errors([Estimate(0.5, 0.4, 0.7), Estimate(0.5, 0.5, 0.5), Estimate(0.5, 0.6, 0.7)])
    np.testing.assert_allclose(errors, [[0.1, np.nan, 0.0], [0.2, np.nan, 0.2]])


def test_reliability_diagram_leaves_out_empty_bins():
    arguments = {"confidence": [0.1, 0.5, 0.9], "accuracy": [0.2, np.nan, 0.8], "count": [10, 0, 30]}
    without = {name: [values[0], values[2]] for name, values in arguments.items()}
    assert share(reliability_diagram(**arguments), PALETTE[0]) == share(reliability_diagram(**without), PALETTE[0])
    with pytest.raises(ValueError, match="at least one case"):
        reliability_diagram(confidence=[0.5], accuracy=[0.5], count=[0])
    with pytest.raises(ValueError, match=r"confidence \(2,\), accuracy \(1,\)"):
        reliability_diagram(confidence=[0.5, 0.6], accuracy=[0.5], count=[1])
