"""A slice of a volume in millimetres, for notebooks: drawn on axes that the caller has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from mgkeras.figures.figure3 import MARKS, PLANES, upright


def show_slice(
    axes: Axes,
    volume: np.ndarray,
    zooms: Sequence[float],
    index: int,
    plane: str = "axial",
    *,
    outlines: Sequence[tuple[np.ndarray, str]] = (),
    bar: str = "",
    **options: Any,
) -> AxesImage:
    """Draws a slice in radiological view, with the outlines of masks.

    Args:
        axes: to draw on.
        volume: (x, y, z), RAS+, any units.
        zooms: (3,) mm, edges of a voxel.
        index: of the slice, along the axis that the plane cuts.
        plane: 'axial', 'coronal' or 'sagittal'.
        outlines: (mask on the same grid, colour) of each; figure3.OUTLINE is the usual one for a tumour.
        bar: what the colour bar says; '' for none.
        options: of imshow; an array ``alpha`` is a slice as it is drawn, from figure3.upright.
    """
    cut, across, upward = PLANES[plane]
    size = tuple(volume.shape[axis] * float(zooms[axis]) for axis in (across, upward))
    shown = upright(np.take(volume, index, cut))
    picture = axes.imshow(shown, extent=(0, size[0], size[1], 0), **options)
    x, y = ((np.arange(count) + 0.5) * mm / count for count, mm in zip(shown.shape[::-1], size, strict=True))
    for mask, colour in outlines:
        axes.contour(x, y, upright(np.take(mask, index, cut)), levels=[0.5], colors=[colour], linewidths=1.2)
    left, right = MARKS[across]
    axes.set(xlabel=f"{left}   \u2190   mm   \u2192   {right}", ylabel="mm")
    if bar:
        axes.figure.colorbar(picture, ax=axes, label=bar, shrink=0.8)
    return picture
