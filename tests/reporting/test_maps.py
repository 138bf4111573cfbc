"""Figures of places are pictures, depend on their data and refuse nothing to draw."""

import numpy as np
import pytest

from edgesafe_jax.reporting import Estimate, grid_maps, lines, point_map

BOX = {"low": (0.0, 0.0), "high": (1.0, 1.0)}


def test_pictures_depend_on_what_they_show():
    points = np.random.default_rng(0).uniform(size=(50, 2))
    pictures = [
        point_map({"a": points}, **BOX),
        point_map({"a": points, "b": 1 - points}, **BOX),
        point_map({"a": points}, **BOX, walls=[((0.5, 0.2), (0.5, 1.0))]),
        grid_maps({"share": np.eye(4)}, **BOX),
        grid_maps({"share": np.eye(4), "other": np.full((4, 4), np.nan)}, **BOX, title="two"),
        lines([1, 2], {"a": [0.5, None], "b": [Estimate(0.5, 0.4, 0.6), 0.2]}, xlabel="x", ylabel="y", log_x=True),
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == len(pictures)
    assert point_map({"a": points}, **BOX) == pictures[0]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: point_map({}, **BOX), "no points"),
        (lambda: grid_maps({}, **BOX), "no grids"),
        (lambda: lines([1], {}, xlabel="x", ylabel="y"), "no lines"),
        (lambda: lines([1, 2], {"a": [1.0]}, xlabel="x", ylabel="y"), "'a' has 1 values for 2 places"),
    ],
)
def test_nothing_to_draw_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
