"""From a NIfTI file to a cube of isotropic voxels, and from a map on the cube back to the patient's own grid.

Glossary:
    RAS+: axis order in which index 0 grows toward the patient's right, index 1 anterior, index 2 superior.
    grid: a shape and an affine; the affine maps voxel indices (i, j, k) to scanner millimetres.
    cube: ``side``^3 isotropic voxels along the grid's own axes (an oblique scan gives an oblique cube: nothing is
        turned or sheared), centred on the field of view or on a box in it.
    map: an array on g^3 cells that divide the same cube, for example 16^3 cells on a cube of 128^3 voxels.

Every resampling here is separable: one matrix an axis (:func:`axis_weights`). The same matrices run in NumPy here
and inside a served graph, so the two agree.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from mgkeras.data.io import written_whole
from mgkeras.data.nifti import ExamError, image_of, read_grid, read_nifti

DESCRIP_BYTES = 79  # of a NIfTI header, and a 0
CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])  # nibabel's orientation of an array that is RAS+ already


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image in RAS+ axis order: data (x, y, z) float32 in the file's units, affine (4, 4) voxel -> mm."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def zooms(self) -> np.ndarray:
        """(3,) voxel sizes in mm along the three axes."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True)
class CubeFrame:
    """Where a cube lies on a RAS+ source grid.

    Attributes:
        shape: (3,) voxels of the source grid.
        zooms: (3,) voxel sizes of the source grid, mm.
        side: voxels along an edge of the cube.
        voxel_mm: edge of a cube voxel, mm.
        centre_mm: (3,) the cube's centre minus the field of view's centre, along the grid's axes, mm.
    """

    shape: tuple[int, int, int]
    zooms: tuple[float, float, float]
    side: int
    voxel_mm: float
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def edge_mm(self) -> float:
        """The cube's edge: the longest of the field of view, or of mask-only's box."""
        return self.side * self.voxel_mm

    def affine(self, source: np.ndarray) -> np.ndarray:
        """(4, 4) cube voxel -> mm, given the source grid's affine (4, 4)."""
        scale = self.voxel_mm / np.asarray(self.zooms)
        first = (np.asarray(self.shape) - 1) / 2 + np.asarray(self.centre_mm) / self.zooms - scale * (self.side - 1) / 2
        step = np.diag([*scale, 1.0])
        step[:3, 3] = first
        return source @ step


def load_volume(path: str | os.PathLike) -> Volume:
    """Reads a NIfTI file whole, reoriented to RAS+ (axes are permuted and flipped, never interpolated).

    Args:
        path: a .nii or .nii.gz file of one 3D volume (further axes of length 1 are dropped).

    Returns:
        Volume: data (x, y, z) float32, with the file's slope and intercept applied.

    Raises:
        ExamError: missing, unreadable or truncated file, one that is not what its header claims, not 3D, or an affine
            that is not a grid of right angles.
    """
    data, grid = read_nifti(path)
    return oriented(data, grid.affine)


def oriented(data: np.ndarray, affine: np.ndarray) -> Volume:
    """A file's voxels (i, j, k) float32 and affine, in RAS+ axis order: a view, permuted and flipped."""
    orientation = nib.io_orientation(affine)
    turned = affine @ nib.orientations.inv_ornt_aff(orientation, data.shape)
    return Volume(nib.apply_orientation(data, orientation), turned)  # (x, y, z)


def turned_back(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """An (x, y, z) RAS+ array in the axis order (i, j, k) of a grid with this affine; the inverse of oriented."""
    return nib.apply_orientation(data, nib.orientations.ornt_transform(CANONICAL, nib.io_orientation(affine)))


def same_space(a: Volume, b: Volume, tolerance_mm: float = 0.1) -> str | None:
    """None where two volumes lie on the same grid, else a sentence that says how they differ.

    The corners of the two grids may differ by ``tolerance_mm``, since real headers differ in the last digits.
    """
    if a.data.shape != b.data.shape:
        return f"shape {b.data.shape} against {a.data.shape}"
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.data.shape])).reshape(3, -1)  # (3, 8)
    corners = np.vstack([corners, np.ones((1, 8))])
    apart = np.linalg.norm(((a.affine - b.affine) @ corners)[:3], axis=0).max()
    return f"corners {apart:.2f} mm apart" if apart > tolerance_mm else None


def load_like(what: str, path: str | os.PathLike, early: Volume, subject: str) -> Volume:
    """Another file of a subject, for the messages called ``what``, on the early phase's grid.

    Raises:
        ExamError: a file that cannot be used, or one that is not in the early phase's space.
    """
    volume = load_volume(path)
    if difference := same_space(early, volume):
        raise ExamError(
            f"subject {subject}: expected {what} on the early phase's grid. Received: {difference}, in {path}"
        )
    return volume


def frame_of(shape: tuple[int, ...], zooms: np.ndarray, side: int) -> CubeFrame:
    """The cube of ``side``^3 voxels that holds a whole field of view of ``shape`` voxels of ``zooms`` mm."""
    extent = np.asarray(shape) * np.asarray(zooms)
    (a, b, c), (x, y, z) = map(int, shape), map(float, zooms)
    return CubeFrame((a, b, c), (x, y, z), side, float(extent.max() / side))


def box_frame(mask: np.ndarray, zooms: np.ndarray, side: int, margin_mm: float) -> CubeFrame:
    """The cube of ``side``^3 voxels around a mask's bounding box and a margin; the whole field of view if it is empty.

    The cube's edge is the box's longest edge, so that the tumour keeps its proportions.

    Args:
        mask: (x, y, z) bool, RAS+.
        zooms: (3,) mm.
        side: voxels along the cube's edge.
        margin_mm: added on each side of the box.
    """
    whole = frame_of(mask.shape, zooms, side)
    if not mask.any():
        return whole
    corners = np.array([(axis.min(), axis.max() + 1) for axis in np.nonzero(mask)])  # (3, 2) voxel edges
    edge = ((corners[:, 1] - corners[:, 0]) * zooms).max() + 2 * margin_mm
    centre = (corners.mean(axis=1) - np.array(mask.shape) / 2) * zooms
    x, y, z = map(float, centre)
    return CubeFrame(whole.shape, whole.zooms, side, float(edge / side), (x, y, z))


def axis_weights(n_in: int, zoom_in: float, n_out: int, zoom_out: float, offset: float = 0.0) -> np.ndarray:
    """The matrix that resamples one axis: linear interpolation upward, a triangle filter downward.

    Args:
        n_in, zoom_in: samples and their spacing (mm) of the axis that is read.
        n_out, zoom_out: samples and spacing (mm) of the axis that is written.
        offset: centre of the written axis minus centre of the read one, mm.

    Returns:
        (n_out, n_in) float32; rows sum to 1, or to 0 where the sample lies outside the read axis's voxels. A constant
        stays constant up to the edge.
    """
    read = (np.arange(n_in) - (n_in - 1) / 2) * zoom_in
    written = (np.arange(n_out) - (n_out - 1) / 2) * zoom_out + offset
    reach = max(zoom_in, zoom_out)
    weights = np.maximum(0.0, 1.0 - np.abs(written[:, None] - read[None, :]) / reach)  # (n_out, n_in)
    inside = np.abs(written) <= n_in * zoom_in / 2 + 1e-6 * zoom_in
    total = weights.sum(axis=1)
    return np.where((inside & (total > 0))[:, None], weights / np.where(total > 0, total, 1)[:, None], 0).astype("f4")


def along_axes(array: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """Applies one (n_out, n_in) matrix to each of the three axes of an (x, y, z) array; float32."""
    for axis, matrix in enumerate(matrices):
        array = np.moveaxis(np.tensordot(matrix, array, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(array, dtype=np.float32)


def to_cube(data: np.ndarray, frame: CubeFrame, background: float = 0.0) -> np.ndarray:
    """An (x, y, z) array on the source grid, resampled to the frame's (side, side, side) cube, float32.

    Nothing is stretched; what lies outside the field of view gets ``background``.
    """
    resampled = along_axes(np.asarray(data, np.float32) - background, _to_cube_weights(frame))
    return resampled + np.float32(background)


def _to_cube_weights(frame: CubeFrame) -> list[np.ndarray]:
    return [
        axis_weights(n, zoom, frame.side, frame.voxel_mm, centre)
        for n, zoom, centre in zip(frame.shape, frame.zooms, frame.centre_mm, strict=True)
    ]


def mask_to_cube(mask: np.ndarray, frame: CubeFrame) -> np.ndarray:
    """An (x, y, z) bool mask as a (side, side, side) bool cube, by the same matrices as the image.

    A cube voxel belongs to the mask where half of its neighbourhood does. A component that would vanish by that rule
    keeps the cube voxels its own voxels fall into, so no tumour inside the cube is lost, however small.
    """
    cube = to_cube(mask, frame) >= 0.5
    labels, count = ndimage.label(mask)
    if count == 0:
        return cube
    voxels = np.argwhere(labels)  # (m, 3)
    position = (voxels - (np.array(frame.shape) - 1) / 2) * frame.zooms - frame.centre_mm
    index = np.rint(position / frame.voxel_mm + (frame.side - 1) / 2).astype(int)  # (m, 3)
    inside = ((index >= 0) & (index < frame.side)).all(axis=1)
    index, component = index[inside], labels[tuple(voxels[inside].T)]
    seen = np.zeros(count + 1, bool)
    seen[component[cube[tuple(index.T)]]] = True
    cube[tuple(index[~seen[component]].T)] = True
    return cube


def from_cube(cells: np.ndarray, frame: CubeFrame) -> np.ndarray:
    """A map of (g, g, g) cells dividing the frame's cube, on the source grid: (x, y, z) float32.

    Linear between the cells' centres, constant from the outermost centre to the cube's edge, 0 outside the cube.
    """
    cell_mm = frame.edge_mm / cells.shape[0]
    return along_axes(
        cells,
        [
            axis_weights(cells.shape[axis], cell_mm, n, zoom, -centre)
            for axis, (n, zoom, centre) in enumerate(zip(frame.shape, frame.zooms, frame.centre_mm, strict=True))
        ],
    )


def normalise(early: np.ndarray, ceiling: float) -> np.ndarray:
    """Intensities in units of the bright tissue's mean: float32 in [0, ceiling].

    Two means (see unit_of) and a clip: scanner scale drops out, and a served graph can do the same without sorting.

    Raises:
        ExamError: for a constant volume or one with no positive voxel.
    """
    return np.clip(early / unit_of(early), 0.0, ceiling).astype(np.float32)


def unit_of(early: np.ndarray) -> np.float32:
    """The mean of the bright voxels, those above the volume's mean, which leaves out air; in the early phase's units.

    Raises:
        ExamError: for a constant volume or one with no positive voxel.
    """
    bright = early[early > early.mean(dtype=np.float64)]
    level = bright.mean(dtype=np.float64) if bright.size else 0.0
    if not level > 0:
        raise ExamError(expected="a volume with bright voxels", received=f"values from {early.min()} to {early.max()}")
    return np.float32(level)


def save_like(
    reference: str | os.PathLike,
    data: np.ndarray,
    path: str | os.PathLike,
    *,
    about: str = "",
    window: tuple[float, float] | None = None,
) -> Path:
    """Writes an (x, y, z) RAS+ array as NIfTI on another file's own grid: its axis order, affine and codes.

    Args:
        reference: the NIfTI file whose grid is taken.
        data: (x, y, z), RAS+ order, as long as the reference's axes in that order; its dtype is kept, bool as uint8.
        path: written through a temporary name and a rename.
        about: what it is, for the header's descrip, which holds 79 bytes.
        window: what viewers are to draw as darkest and brightest, for the header's cal_min and cal_max.
    """
    grid = read_grid(reference)
    array = turned_back(data.astype(np.uint8) if data.dtype == bool else data, grid.affine)
    if array.shape != grid.shape:
        raise ExamError(expected=f"an array on the grid of {reference}, {grid.shape}", received=f"{array.shape}")
    written = image_of(array, grid.affine, grid.codes)
    written.header["descrip"] = about.encode("ascii", "replace")[:DESCRIP_BYTES]
    if window:
        written.header["cal_min"], written.header["cal_max"] = window
    path = Path(path)
    with written_whole(path) as part:
        nib.save(written, part)
    return path
