"""The contact sheet: every subject's mask at one glance, so that a wrong one is seen before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import contourpy
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mgkeras.data.volume import Volume
from mgkeras.evaluation.figures import OUTLINE, largest_slice

SHOWN_AT_MOST = 120  # tiles on a sheet; more are too small to read
COLUMNS = 10
TILE_PIXELS = 192  # a tile's longer side holds no more: a sheet of 120 exams stays small
TILE_INCHES = 1.75
WARNING_COLOUR = "#D55E00"  # Okabe and Ito's vermilion, apart from black for the colour-blind too


@dataclass(frozen=True, eq=False)
class Tile:
    """One subject on the sheet.

    Attributes:
        name: the subject.
        image: (rows, columns) uint8, row 0 on top, or None where the exam could not be read.
        outline: (rows, columns) bool, the mask in the same slice.
        size_mm: height and width of the slice.
        caption: what stands below the name, such as the tumour's volume.
        warning: '' for none; its first word is shown on the sheet.
    """

    name: str
    image: np.ndarray | None
    outline: np.ndarray | None
    size_mm: tuple[float, float]
    caption: str
    warning: str = ""


@dataclass(frozen=True)
class Plane:
    """A slice: ``index`` along the cut ``axis``; the axes that run ``across`` the picture and ``upward`` in it."""

    axis: int
    across: int
    upward: int
    index: int


def plane_of(t1: Volume, mask: np.ndarray | None) -> Plane:
    """The slice in which the mask is largest, the middle one for an empty mask or None.

    The slice is cut in the plane it was scanned in, across the axis of the thickest voxels (of equals the axial one).

    Args:
        t1: RAS+.
        mask: (x, y, z) bool on T1's grid.
    """
    axis = int(max((2, 0, 1), key=lambda candidate: round(float(t1.zooms[candidate]), 3)))
    index = t1.data.shape[axis] // 2 if mask is None else largest_slice(mask, axis)
    return Plane(axis, *(other for other in range(3) if other != axis), index)


def upright(picture: np.ndarray) -> np.ndarray:
    """(across, upward) as (rows downward, columns) in radiological view.

    The patient's right, and in sagittal slices the front, is at the picture's left.
    """
    return picture[::-1, ::-1].T


def cut_of(data: np.ndarray, plane: Plane) -> np.ndarray:
    """The slice of an (x, y, z) array as :func:`upright` turns it; a view, for np.take would copy the array."""
    return upright(np.moveaxis(data, plane.axis, 0)[plane.index])


def size_mm(t1: Volume, plane: Plane) -> tuple[float, float]:
    """Height and width of a slice."""
    height, width = (float(t1.data.shape[axis] * t1.zooms[axis]) for axis in (plane.upward, plane.across))
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
    return contourpy.contour_generator(x, y, edged).lines(0.5)


def tile_of(name: str, t1: Volume, mask: np.ndarray, caption: str, warning: str = "") -> Tile:
    """T1 and the mask in the slice of :func:`plane_of`, as :func:`upright` turns it.

    Args:
        t1: RAS+, any units.
        mask: (x, y, z) bool on T1's grid.
    """
    plane = plane_of(t1, mask)
    step = [-(-t1.data.shape[axis] // TILE_PIXELS) for axis in (plane.upward, plane.across)]
    image, outline = (cut_of(data, plane)[:: step[0], :: step[1]] for data in (t1.data, mask))
    image = np.nan_to_num(image, posinf=0.0, neginf=0.0)  # (rows downward, columns)
    top = max(float(np.percentile(image, 99.5)), 1e-6)
    shown = (np.clip(image / top, 0, 1) * 255).astype(np.uint8)
    return Tile(name, shown, np.ascontiguousarray(outline), size_mm(t1, plane), caption, warning)


def contact_sheet(out_path: str | Path, tiles: Sequence[Tile], *, title: str = "", dpi: int = 110) -> Path:
    """Draw the tiles on one sheet, warnings marked; written through a temporary name and a rename.

    Of more than SHOWN_AT_MOST those with a warning come first, then the first without; the title says so.

    Args:
        out_path: .png.
        tiles: one a subject, drawn in this order.
    """
    shown = _chosen(tiles)
    if len(shown) < len(tiles):
        title += f" ({len(shown)} of {len(tiles)} shown, those with a warning first)"
    columns = max(1, min(COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    width = max(TILE_INCHES * columns, 6.0)
    figure = Figure(figsize=(width, (TILE_INCHES + 0.45) * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, tile in zip(grid, shown, strict=False):
        _draw(axes, tile)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    out_path = Path(out_path)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_path.with_name(f".{os.getpid()}-{out_path.name}")
    FigureCanvasAgg(figure)
    figure.savefig(temporary, dpi=dpi, facecolor="white", format="png")
    os.replace(temporary, out_path)
    return out_path


def _chosen(tiles: Sequence[Tile]) -> list[Tile]:
    order = sorted(range(len(tiles)), key=lambda index: (not tiles[index].warning, index))[:SHOWN_AT_MOST]
    return [tiles[index] for index in sorted(order)]


def _draw(axes: Axes, tile: Tile) -> None:
    height, width = tile.size_mm
    if tile.image is None:
        axes.text(0.5, 0.5, "not read", transform=axes.transAxes, ha="center", va="center", fontsize=8)
    else:
        extent = (0, width, height, 0)
        axes.imshow(tile.image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
        for line in outline_of(tile.outline):
            axes.plot(*(line * (width, height)).T, color=OUTLINE, linewidth=1.2)
        axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set(xticks=[], yticks=[])
    colour = WARNING_COLOUR if tile.warning else "black"
    mark = f"\n! {tile.warning.partition(':')[0]}" if tile.warning else ""
    name = tile.name if len(tile.name) <= 22 else tile.name[:21] + "…"
    axes.set_title(f"{name}\n{tile.caption}{mark}", fontsize=7, loc="left", color=colour)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.0 if tile.warning else 0.5)
