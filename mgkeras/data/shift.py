"""By how much one phase of an exam lies beside another, and the averages over blocks that phases are compared by."""

from __future__ import annotations

import numpy as np
from scipy.signal import windows

from mgkeras.data.volume import Volume

LONGEST_SIDE = 64  # voxels an axis to which volumes are averaged before two are compared
BLUR = 1.0  # standard deviation, in those voxels, of the peak that a shift makes
CLEAR_PEAK = 8.0  # a peak this many standard deviations high is no accident: noise of 64^3 voxels reaches 5


def estimate_shift(pre: Volume, early: Volume) -> np.ndarray | None:
    """(3,) mm along the grid's axes by which the early phase's anatomy lies farther than the pre phase's, by phase
    correlation.

    What enhances changes an edge's height, not its place: so edges are compared, of the logarithm of the intensities,
    and each frequency counts by its phase alone. Good to a tenth of an averaged voxel for small shifts, and up to a
    third of it too short for long ones. None where there is no telling: too few voxels, voxels that are not finite, or
    no peak that stands out of the noise.

    Args:
        pre, early: on the same grid, (x, y, z), any unit.

    Reference: Kuglin CD, Hines DC. The phase correlation image alignment method. Proc. IEEE Int. Conf. Cybernetics
    and Society, 1975.
    """
    blocks = factors(pre.data.shape)
    edges = [_edges(block_mean(volume.data, blocks)) for volume in (pre, early)]
    if edges[0] is None or edges[1] is None:
        return None
    shape = edges[0].shape
    cross = np.conj(np.fft.rfftn(edges[0])) * np.fft.rfftn(edges[1])
    frequencies = [np.fft.fftfreq(n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    squares = sum(np.square(f) for f in np.meshgrid(*frequencies, indexing="ij", sparse=True))
    weight = np.exp(-2 * np.square(np.pi * BLUR) * squares)  # so that the peak is a Gaussian of width BLUR
    surface = np.fft.irfftn(weight * cross / np.maximum(np.abs(cross), 1e-12 * np.abs(cross).max()), shape)
    peak = tuple(int(p) for p in np.unravel_index(surface.argmax(), shape))
    if surface[peak] < CLEAR_PEAK * surface.std():
        return None
    cells = [
        _gaussian_peak(np.take(surface, [p - 1, p, p + 1], axis, mode="wrap"), peak, axis)
        for axis, p in enumerate(peak)
    ]
    wrapped = [cell - n if cell > n / 2 else cell for cell, n in zip(cells, shape, strict=True)]
    return np.array(wrapped) * blocks * pre.zooms


def _edges(data: np.ndarray) -> np.ndarray | None:
    """The gradient's magnitude of the log intensities, its mean removed, faded out toward the volume's faces."""
    if min(data.shape) < 8 or not np.isfinite(data).all() or data.min() == data.max():
        return None
    data = data - data.min()
    level = data[data > data.mean()].mean()
    logs = np.log(0.1 + data / level)  # the 0.1 keeps the noise of air from having edges
    edges = np.sqrt(sum(np.square(slope) for slope in np.gradient(logs)))
    edges -= edges.mean()
    for axis, n in enumerate(edges.shape):
        fade = windows.tukey(n, 0.5)
        edges *= fade.reshape([-1 if i == axis else 1 for i in range(3)])
    return edges


def factors(shape: tuple[int, ...]) -> list[int]:
    """Voxels an axis of (x, y, z) that block_mean averages to one, so that no side is longer than LONGEST_SIDE."""
    return [-(-n // LONGEST_SIDE) for n in shape]


def block_mean(data: np.ndarray, blocks: list[int]) -> np.ndarray:
    """(x, y, z) averaged over blocks of so many voxels an axis; what is left over at the end of an axis is cut off."""
    for axis, factor in enumerate(blocks):
        n = data.shape[axis] // factor
        kept = data.take(range(n * factor), axis) if n * factor < data.shape[axis] else data
        data = kept.reshape(*kept.shape[:axis], n, factor, *kept.shape[axis + 1 :]).mean(axis + 1)
    return data


def _gaussian_peak(lines: np.ndarray, peak: tuple[int, ...], axis: int) -> float:
    """The peak's place along an axis, to a part of a cell: a Gaussian through three values is a parabola of logs."""
    index = tuple(slice(None) if i == axis else p for i, p in enumerate(peak))
    below, top, above = np.log(np.maximum(lines[index], 1e-6 * lines[index].max()))
    bend = below - 2 * top + above
    return peak[axis] + (0.5 * (below - above) / bend if bend < 0 else 0.0)
