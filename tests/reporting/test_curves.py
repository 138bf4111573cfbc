"""Curves with intervals and strips of poses, as PNGs; poses that move, as a GIF."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from edgesafe_jax.metrics import Interval
from edgesafe_jax.reporting import curves, pose_animation, pose_strip


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
    near, far = pose_strip([pose(1.0), pose(0.5)]), pose_strip([pose(1.0, 40.0), pose(0.5, 40.0)])
    assert size(near)[0] == 1536
    assert near == far
    assert near != pose_strip([pose(1.0), pose(0.9)])
    # A figure that moves is seen to, near by in a view that stands still, far away by the marks on the ground.
    assert pose_strip([pose(1.0), pose(1.0, 0.5)]) != pose_strip([pose(1.0), pose(1.0)])
    assert pose_strip([pose(1.0), pose(1.0, 40.5)]) != pose_strip([pose(1.0), pose(1.0, 40.0)])


def test_an_animation_has_a_frame_for_each_pose_and_the_poses_differ():
    gif = Image.open(io.BytesIO(pose_animation([pose(1.0), pose(0.6), pose(0.2)], frame_seconds=0.05)))
    assert gif.format == "GIF"
    assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (3, 50, 0)
    frames = [np.asarray(frame.convert("RGB"), np.int32) for frame in ImageSequence.Iterator(gif)]
    blue = [np.sum((frame[..., 2] > 120) & (frame[..., 0] < 90)) for frame in frames]
    assert blue[0] > blue[1] > blue[2] > 100  # the post of the figure becomes shorter


def test_the_view_of_an_animation_follows_the_figure():
    gif = Image.open(io.BytesIO(pose_animation([pose(1.0), pose(1.0, 3.0)])))
    first, second = (np.asarray(frame.convert("RGB"), np.int32) for frame in ImageSequence.Iterator(gif))
    changed = np.flatnonzero(np.abs(first - second).max(axis=(1, 2)) > 60)
    assert changed.min() > 0.75 * len(first)  # only the scale under the ground


@pytest.mark.parametrize("draw", [pose_strip, pose_animation])
@pytest.mark.parametrize(("poses", "captions"), [([], []), ([pose(1.0)], ["a", "b"])])
def test_poses_without_or_with_too_many_captions(draw, poses, captions):
    with pytest.raises(ValueError, match="expected some poses and a caption for each"):
        draw(poses, captions=captions)


def test_frames_that_are_too_short():
    with pytest.raises(ValueError, match=r"frame_seconds=0\.01: expected at least 0\.02"):
        pose_animation([pose(1.0)], frame_seconds=0.01)
