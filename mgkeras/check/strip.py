"""A subject's row of the check sheet: the pre phase, the early phase, their difference and its projection, side by side
in one small JPEG."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import contourpy
import numpy as np
from PIL import Image

from mgkeras.data.volume import ExamError, Volume, load_volume, same_space
from mgkeras.figures.figure3 import MARKS, largest_slice, upright

PANELS = ("pre", "early", "early − pre", "all slices")
GAP = 4  # pixels between two panels
SIZES = ((384, 88), (320, 85), (256, 82), (256, 70), (192, 75), (192, 62), (160, 60), (128, 55), (96, 40), (64, 30))
OUTLINE_PIXELS = 192  # the longer side of a mask that is outlined holds no more, so that outlines stay small
FEWEST = 128  # pixels of a picture's longer side, however coarse the scan: JPEG blurs smaller ones
BELOW = 0.25  # of the difference's scale lies below 0, so that what became darker is seen
LEAST = 0.25  # of the early phase's scale that the difference's has, so that noise alone stays dark


@dataclass(frozen=True)
class Strip:
    """Four pictures of one subject.

    Attributes:
        jpeg: the file, grey.
        width, height: its pixels.
        lefts: where each panel begins, in pixels, and ``panel`` their common width.
        paths: the mask's outlines as an SVG path each, in pixels; '' where a panel has none.
        marks: what lies at a panel's left and right: R and L, or A and P.
        caption: size and spacing of the volume, and the mask's volume.
    """

    jpeg: bytes
    width: int
    height: int
    panel: int
    lefts: tuple[int, ...]
    paths: tuple[str, ...]
    marks: tuple[str, str]
    caption: str


@dataclass(frozen=True)
class Plane:
    """A slice: ``index`` along the cut ``axis``; the axes that run ``across`` the picture and ``upward`` in it."""

    axis: int
    across: int
    upward: int
    index: int


def plane_of(early: Volume, mask: np.ndarray | None) -> Plane:
    """The slice in which the mask is largest, the middle one for an empty mask or None.

    The slice is cut in the plane it was scanned in, across the axis of the thickest voxels (of equals the axial one).

    Args:
        early: RAS+.
        mask: (x, y, z) bool on the early phase's grid.
    """
    axis = int(max((2, 0, 1), key=lambda candidate: round(float(early.zooms[candidate]), 3)))
    index = early.data.shape[axis] // 2 if mask is None else largest_slice(mask, axis)
    across, upward = (other for other in range(3) if other != axis)
    return Plane(axis, across, upward, index)


def cut_of(data: np.ndarray, plane: Plane) -> np.ndarray:
    """The slice of an (x, y, z) array as :func:`upright` turns it; a view, for np.take would copy the array."""
    return upright(np.moveaxis(data, plane.axis, 0)[plane.index])


def size_mm(early: Volume, plane: Plane) -> tuple[float, float]:
    """Height and width of a slice."""
    height, width = (float(early.data.shape[axis] * early.zooms[axis]) for axis in (plane.upward, plane.across))
    return height, width


def outline_of(mask: np.ndarray) -> list[np.ndarray]:
    """Closed lines around a mask's parts and holes, each (n, 2) of x and y in shares of the width and the height.

    Args:
        mask: (rows, columns) bool. An empty or a full one has no outline.
    """
    if not mask.any() or mask.all():
        return []
    edged = np.pad(mask.astype(float), 1)  # so that a mask at the border has a closed outline
    x, y = ((np.arange(n + 2) - 0.5) / n for n in (mask.shape[1], mask.shape[0]))
    # of every type of lines that there is, the default is a list of arrays
    return cast(list[np.ndarray], contourpy.contour_generator(x, y, edged).lines(0.5))


def on_grid(path: Path | None, early: Volume) -> Volume | None:
    """A file's volume; None where there is no file, it cannot be read or it is not on the early phase's grid."""
    try:
        volume = None if path is None else load_volume(path)
    except ExamError:
        return None
    return None if volume is None or same_space(early, volume) else volume


def strip_of(pre: Volume | None, early: Volume, mask: np.ndarray | None, room: int) -> Strip:
    """Draws the slice in which the mask is largest (the middle one without a mask), as plane_of cuts it.

    The pre and early phases have the same grey scale, and so have the difference and its projection, the largest of all
    slices; theirs begins a quarter below 0. The outline of the mask is on every panel but the pre phase, on the last
    that of its projection.

    Args:
        pre: on the early phase's grid, or None, which leaves all but the early phase dark.
        early: RAS+, any units.
        mask: (x, y, z) bool on the early phase's grid, or None.
        room: bytes that the picture may take; its size and quality are chosen for that.
    """
    plane = plane_of(early, mask)
    top = _top(cut_of(early.data, plane), 99.5)
    panels = [None, _grey(cut_of(early.data, plane), 0.0, top), None, None]
    if pre is not None:
        difference = cut_of(early.data, plane) - cut_of(pre.data, plane)
        projected = upright(_projection(pre.data, early.data, plane.axis))
        panels[0] = _grey(cut_of(pre.data, plane), 0.0, top)
        high = max(_top(projected, 99.8), LEAST * top)
        panels[2:] = [_grey(picture, -BELOW * high, high) for picture in (difference, projected)]
    jpeg, panel, height = _encoded(panels, size_mm(early, plane), room)
    lefts = tuple(place * (panel + GAP) for place in range(len(PANELS)))
    outlines = ("", "", "", "")
    if mask is not None:
        cut = _path(cut_of(mask, plane), panel, height)
        widest = _path(upright(np.asarray(mask.any(plane.axis))), panel, height)
        outlines = ("", cut, *((cut, widest) if pre is not None else ("", "")))
    return Strip(jpeg, lefts[-1] + panel, height, panel, lefts, outlines, MARKS[plane.across], _caption(early, mask))


def _projection(pre: np.ndarray, early: np.ndarray, axis: int) -> np.ndarray:
    """(across, upward), the largest early - pre along an axis; a slice at a time, since a volume more may not fit."""
    slices = zip(np.moveaxis(pre, axis, 0), np.moveaxis(early, axis, 0), strict=True)  # views
    return functools.reduce(np.fmax, (after - before for before, after in slices))


def _top(picture: np.ndarray, percent: float) -> float:
    return max(float(np.percentile(np.nan_to_num(picture, posinf=0.0, neginf=0.0), percent)), 1e-6)


def _grey(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """(rows, columns) uint8, ``low`` black and ``high`` white."""
    finite = np.nan_to_num(picture, posinf=high, neginf=low)
    return (np.clip((finite - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _encoded(panels: list[np.ndarray | None], size: tuple[float, float], room: int) -> tuple[bytes, int, int]:
    """The largest and best JPEG within ``room`` bytes (the smallest of SIZES if none is); a panel's width, height."""
    native = max(max(panel.shape) for panel in panels if panel is not None)
    tried = None
    for longest, quality in SIZES:
        scale = min(longest, max(native, FEWEST)) / max(size)
        height, width = (max(8, round(side * scale)) for side in size)
        if (width, height, quality) == tried:
            continue
        tried = width, height, quality
        sheet = Image.new("L", (len(panels) * (width + GAP) - GAP, height))
        for place, panel in enumerate(panels):
            if panel is not None:
                picture = Image.fromarray(np.ascontiguousarray(panel)).resize((width, height), Image.Resampling.BOX)
                sheet.paste(picture, (place * (width + GAP), 0))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= room:
            break
    return file.getvalue(), width, height


def _path(mask: np.ndarray, width: int, height: int) -> str:
    """The outline of a (rows, columns) mask as an SVG path in pixels of a panel."""
    step = [-(-n // OUTLINE_PIXELS) for n in mask.shape]
    parts = []
    for line in outline_of(mask[:: step[0], :: step[1]]):
        points = np.round(line * (width, height), 1)
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points[:-1]) + "Z")
    return "".join(parts)


def _caption(early: Volume, mask: np.ndarray | None) -> str:
    shape = " × ".join(str(n) for n in early.data.shape)
    zooms = " × ".join(f"{zoom:.3g}" for zoom in early.zooms)
    volume = "no mask drawn" if mask is None else f"mask {mask.sum() * early.zooms.prod():,.0f} mm³"
    return f"{shape} voxels of {zooms} mm (x, y, z); {volume}"
