"""Curves with intervals and strips of poses, as PNGs."""

import numpy as np
import pytest

from edgesafe_jax.metrics import Interval
from edgesafe_jax.reporting import curves, pose_strip


def size(png):
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_curves_are_drawn_with_and_without_intervals():
    series = {"a": [(1.0, 2.0), (10.0, Interval(3.0, 2.5, 3.5, 0.95))], "b": [(1.0, 1.0)]}
    png = curves(series, xlabel="x", ylabel="y", log_x=True)
    assert size(png) == (1024, 672)
    assert png == curves(series, xlabel="x", ylabel="y", log_x=True)
    assert png != curves({"a": series["a"]}, xlabel="x", ylabel="y", log_x=True)


@pytest.mark.parametrize("series", [{}, {"a": []}])
def test_no_curves(series):
    with pytest.raises(ValueError, match="no curves"):
        curves(series, xlabel="x", ylabel="y")


def test_a_curve_that_is_not_finite():
    with pytest.raises(ValueError, match=r"a at 2\.0"):
        curves({"a": [(2.0, float("nan"))]}, xlabel="x", ylabel="y")


def pose(height, x=0.0):
    return np.array([[[x, 0.0, 0.0], [x, 0.0, height]], [[x, 0.0, height], [x + 0.3, 0.0, height]]]), np.full(2, 0.05)


def test_poses_are_drawn_side_by_side_wherever_the_figure_is():
    near, far = pose_strip([pose(1.0), pose(0.5)]), pose_strip([pose(1.0, 40.0), pose(0.5, 80.0)])
    assert size(near)[0] == 1536
    assert near == far
    assert near != pose_strip([pose(1.0), pose(0.9)])


@pytest.mark.parametrize(("poses", "captions"), [([], []), ([pose(1.0)], ["a", "b"])])
def test_poses_without_or_with_too_many_captions(poses, captions):
    with pytest.raises(ValueError, match="expected some poses and a caption for each"):
        pose_strip(poses, captions=captions)
