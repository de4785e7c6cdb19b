"""What can be predicted from the mask's shape and place alone: no brightness, no texture, no tissue.

What is blurred or filled inside a mask still shows the mask's outline, and a map or a decision may go with it; so a
network is set against this baseline too.

Glossary:
    surface: mm2, of the voxels' own faces, which is 1.5 times a smooth ball's.
    compactness: 36 pi volume^2 / surface^3, 1 for a smooth ball, 0.3 for one of voxels, less for anything else.
    extent: of the mask's box along R, A, S, mm. centre: of mass, in shares of the cube's edge, 0 to 1 along R, A, S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mgkeras.data.cache import Cache
from mgkeras.data.cohort import Subject
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import frame_of, mask_to_cube
from mgkeras.scores.baselines import cross_fitted, of_subjects
from mgkeras.scores.held_out import HeldOut
from mgkeras.scores.summary import number
from mgkeras.settings import Settings

NAME = "mask shape"
LOGARITHMS = ("volume_mm3", "surface_mm2")  # whose logarithm the regression gets
FEATURES = (*LOGARITHMS, "compactness", *(f"extent_{axis}_mm" for axis in "ras"), *(f"centre_{axis}" for axis in "ras"))
Rows = Sequence[Mapping[str, str]]


def shape_features(mask: np.ndarray, voxel_mm: float) -> dict[str, float | None]:
    """FEATURES of a (side, side, side) bool mask, RAS+, on a cube of voxels of voxel_mm mm; all None where it is empty.

    The cube must be that of the whole field of view: in a box around the tumour every centre is the middle.
    """
    if not mask.any():
        return dict.fromkeys(FEATURES)
    volume = float(mask.sum()) * voxel_mm**3
    padded = np.pad(mask, 1).astype(np.int8)
    surface = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in range(3)) * voxel_mm**2
    voxels = np.argwhere(mask)  # (m, 3)
    extent = (voxels.max(axis=0) - voxels.min(axis=0) + 1) * voxel_mm
    centre = (voxels.mean(axis=0) + 0.5) / mask.shape[0]
    values = (volume, surface, 36 * np.pi * volume**2 / surface**3, *extent, *centre)
    return {name: float(value) for name, value in zip(FEATURES, values, strict=True)}


def shape_rows(cache: Cache, subjects: Sequence[Subject], settings: Settings) -> list[dict[str, Any]]:
    """A row a subject of RUN/probes/shapes.csv, in the cache's order: ``subject`` and FEATURES of its mask on the whole
    exam's cube.

    A cache of boxes does not hold that cube, so that the masks are then made again.
    """

    def mask_of(row: int) -> tuple[np.ndarray, float]:
        if not settings.uses_box:
            return np.asarray(cache.mask[row, 0]), float(cache.voxel_mm[row])
        early, tumour = subject_mask(subjects[row], settings.mask)
        frame = frame_of(early.data.shape, early.zooms, settings.volume.side)
        return mask_to_cube(tumour.mask, frame), frame.voxel_mm

    def shaped(row: int) -> dict[str, Any]:
        return {"subject": cache.subjects[row], **shape_features(*mask_of(row))}

    with ThreadPoolExecutor() as workers:
        return list(workers.map(shaped, range(len(subjects))))


def baseline(like: HeldOut, rows: Rows) -> HeldOut:
    """Logistic regression (ridge) on FEATURES, standardised, cross-fitted in the network's folds.

    Args:
        like: subjects, labels and folds.
        rows: of RUN/probes/shapes.csv, a subject each.

    Raises:
        ValueError: a subject without a row.
    """
    found = of_subjects(like, rows, "a row for every held-out subject in probes/shapes.csv")
    cells = [[number(row.get(name)) for name in FEATURES] for row in found]
    design = np.array(cells, np.float64)  # None is NaN: the training median
    logs = [FEATURES.index(name) for name in LOGARITHMS]
    design[:, logs] = np.log(design[:, logs])
    empty = int(np.isnan(design[:, 0]).sum())
    note = (
        "regularised logistic regression on the mask alone: log volume, log surface, compactness, its box's three "
        "edges, its centre in the exam"
    )
    note += f"; {empty} of {len(design)} have an empty mask and get the training medians" if empty else ""
    return cross_fitted(NAME, like, design, note)
