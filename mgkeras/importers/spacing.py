"""NIfTI files whose header does not know the spacing -> copies that do, their voxels untouched.

Affines are (4, 4), voxel -> RAS+ mm. A header of 1 x 1 x 1 mm is what an array gets that was saved without geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from mgkeras.data.io import written_whole
from mgkeras.data.nifti import ExamError, Grid, image_of, read_grid, read_nifti
from mgkeras.importers.found import SourceError
from mgkeras.importers.listing import stem

CLOSE = 0.01  # relative; spacings that differ by less are the same, rounded
AXES = ("LR", "PA", "IS")


class Spacing(NamedTuple):
    """mm. ``gap`` is from slice to slice; ``thickness``, a slice's own, stands in where the gap is not known."""

    in_plane: float
    gap: float | None
    thickness: float | None


def directions(axes: str | None) -> np.ndarray | None:
    """(3, 3) of which column j is the unit vector, RAS+, along which an array's axis j grows.

    Args:
        axes: a letter an axis, such as 'SPL': upward, backward, to the left. None gives None.

    Raises:
        SourceError: anything else.
    """
    if axes is None:
        return None
    letters = axes.upper()
    places = [next((place for place, pair in enumerate(AXES) if letter in pair), -1) for letter in letters]
    if sorted(places) != [0, 1, 2]:
        raise SourceError(f"expected axes as three letters, one each of L or R, P or A, I or S. Received: {axes!r}")
    turned = np.zeros((3, 3))
    for axis, (letter, place) in enumerate(zip(letters, places, strict=True)):
        turned[place, axis] = 1 if letter in "RAS" else -1
    return turned


def slice_axis(shape: Sequence[int], slices: float | None = None) -> int:
    """Which axis of an array (3,) counts slices: the one of ``slices`` voxels, else the one unlike the two others.

    Where neither tells, the first, as in arrays made of a stack of images.
    """
    fitting = [axis for axis, length in enumerate(shape) if length == slices]
    unlike = [axis for axis, length in enumerate(shape) if list(shape).count(length) == 1]
    return next((axes[0] for axes in (fitting, unlike) if len(axes) == 1), 0)


def is_unit(grid: Grid) -> bool:
    """Whether a header says 1 x 1 x 1 mm."""
    return bool(np.allclose(_zooms(grid), 1, rtol=0, atol=1e-4))


def agrees(grid: Grid, spacing: Spacing | None, slices: float | None = None) -> bool:
    """Whether a header has this spacing; of None, which nobody knows, it has.

    A header that is right in plane is believed between slices where only their thickness is known: they may overlap.
    """
    if spacing is None:
        return True
    near = np.isclose(_zooms(grid), _along_axes(grid, spacing, slices), rtol=CLOSE, atol=0)
    if spacing.gap is None and not is_unit(grid):
        near[slice_axis(grid.shape, slices)] = True
    return bool(near.all())


def affine_with(
    grid: Grid, spacing: Spacing | None, slices: float | None = None, turned: np.ndarray | None = None
) -> np.ndarray:
    """The grid's affine with this spacing and these directions; of each that is None, and the origin, the header's."""
    zooms = _zooms(grid) if spacing is None or agrees(grid, spacing, slices) else _along_axes(grid, spacing, slices)
    affine = grid.affine.copy()
    affine[:3, :3] = (affine[:3, :3] / _zooms(grid) if turned is None else turned) * zooms
    return affine


def write_copy(path: Path, affine: np.ndarray, folder: Path) -> Path:
    """A NIfTI file copied to a folder with this affine, whole or not at all; what an earlier call finished stays.

    Whole numbers from 0 to 65535 are written in 8 or 16 bits, everything else as float32.

    Raises:
        ExamError: a file that cannot be read.
    """
    copy = folder / f"{stem(path)}.nii.gz"
    if copy.exists() and _is_finished(copy, path, affine):
        return copy
    data, _ = read_nifti(path)
    low, high = (data.min(), data.max()) if np.isfinite(data).all() and (data == np.rint(data)).all() else (-1, -1)
    image = image_of(data.astype("f4" if low < 0 or high > 65535 else "u1" if high < 256 else "u2"), affine)
    with written_whole(copy) as part:
        nib.save(image, part)
    return copy


def _is_finished(copy: Path, path: Path, affine: np.ndarray) -> bool:
    """Whether a copy is younger than its original and has its shape and this affine."""
    if copy.stat().st_mtime < path.stat().st_mtime:
        return False
    try:
        grid = read_grid(copy)
    except ExamError:
        return False
    return grid.shape == read_grid(path).shape and bool(np.allclose(grid.affine, affine, atol=1e-3))


def _along_axes(grid: Grid, spacing: Spacing, slices: float | None) -> np.ndarray:
    zooms = np.full(3, spacing.in_plane)
    zooms[slice_axis(grid.shape, slices)] = spacing.thickness if spacing.gap is None else spacing.gap
    return zooms


def _zooms(grid: Grid) -> np.ndarray:
    return np.linalg.norm(grid.affine[:3, :3], axis=0)
