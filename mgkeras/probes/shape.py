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

import numpy as np

from mgkeras.scores.baselines import cross_fitted, of_subjects
from mgkeras.scores.held_out import HeldOut
from mgkeras.scores.summary import number

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
