"""A slice as a notebook draws it: radiological view, in mm, the outline where the mask is."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from mgkeras.figures.slices import show_slice


@pytest.mark.parametrize(
    ("plane", "cut", "shape", "sides"),
    [("axial", 2, (4, 5), "RL"), ("coronal", 1, (4, 6), "RL"), ("sagittal", 0, (5, 6), "AP")],
)
def test_a_slice_stands_as_a_radiologist_looks_at_it(plane, cut, shape, sides):
    volume = np.random.default_rng(0).normal(size=(4, 5, 6))
    zooms = (1.0, 2.0, 3.0)
    axes = Figure().subplots()
    picture = show_slice(axes, volume, zooms, 2, plane, bar="units")
    drawn = np.asarray(picture.get_array())
    rows, columns = shape[1], shape[0]
    for row in range(rows):  # row 0 is the head or the front, column 0 the patient's right or front
        for column in range(columns):
            place = [columns - 1 - column, rows - 1 - row]
            place.insert(cut, 2)
            assert drawn[row, column] == volume[tuple(place)]
    across, upward = (axis for axis in range(3) if axis != cut)
    assert picture.get_extent() == [0, volume.shape[across] * zooms[across], volume.shape[upward] * zooms[upward], 0]
    assert axes.get_xlabel()[0] == sides[0] and axes.get_xlabel()[-1] == sides[1]


def test_an_outline_goes_round_the_mask_in_mm():
    mask = np.zeros((8, 8, 8), bool)
    mask[2:5, 1:4, 3] = True
    axes = Figure().subplots()
    show_slice(axes, mask.astype(float), (2.0, 2.0, 2.0), 3, outlines=[(mask, "red")])
    points = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    assert points.min(axis=0) == pytest.approx([6, 8], abs=1e-6)  # x 2..4 of 8 is drawn from the right: 16 - 10 = 6
    assert points.max(axis=0) == pytest.approx([12, 14], abs=1e-6)
