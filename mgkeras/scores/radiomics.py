"""The radiomics baseline: the early phase and a tumour mask in; 53 numbers a subject and their cross-fitted regression
out.

The features are numpyradiomics', the extra ``[radiomics]``: pure Python, 46 MB beside TensorFlow, Python 3.10 to 3.13,
and equal to pyradiomics (whose own release pip does not build) to eleven digits on pyradiomics' own case breast1, but
for what AXES and the Glossary say. On other masks the surface may differ, since it is of scikit-image's mesh:
SurfaceArea of pyradiomics' cases brain1 and brain2 is 0.48 % and 0.39 % off, and SurfaceVolumeRatio and Sphericity,
which are made of it, as much. fastrad agrees as well, but brings PyTorch's 5.6 GB and needs Python 3.11; mirp brings
ITK's 2 GB and lacks more.

Glossary:
    feature: named and defined as in pyradiomics, original_CLASS_NAME; computed on the grid it is given, not resampled.
    maximum 2D diameters: left out, since the library measures the whole tumour's shadow on a plane, where pyradiomics
        takes the largest of the slices; both change with the patient's position.
    GLCM: how often two grey levels are neighbours, symmetric, for each of 13 directions at a distance of one voxel;
        a feature is the mean over the directions.
    undefined: None, never NaN; the regression then takes the median of the training subjects.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from mgkeras.data.volume import normalise
from mgkeras.errors import InputError, MgkerasError
from mgkeras.scores.baselines import cross_fitted, of_subjects
from mgkeras.scores.held_out import HeldOut
from mgkeras.scores.summary import number
from mgkeras.settings import VolumeSettings

FIRST_ORDER = (
    "10Percentile",
    "90Percentile",
    "Energy",
    "Entropy",
    "InterquartileRange",
    "Kurtosis",
    "Maximum",
    "Mean",
    "MeanAbsoluteDeviation",
    "Median",
    "Minimum",
    "Range",
    "RobustMeanAbsoluteDeviation",
    "RootMeanSquared",
    "Skewness",
    "TotalEnergy",
    "Uniformity",
    "Variance",
)
SHAPE = (
    "Elongation",
    "Flatness",
    "LeastAxisLength",
    "MajorAxisLength",
    "Maximum3DDiameter",
    "MeshVolume",
    "MinorAxisLength",
    "Sphericity",
    "SurfaceArea",
    "SurfaceVolumeRatio",
    "VoxelVolume",
)
GLCM = (
    "Autocorrelation",
    "ClusterProminence",
    "ClusterShade",
    "ClusterTendency",
    "Contrast",
    "Correlation",
    "DifferenceAverage",
    "DifferenceEntropy",
    "DifferenceVariance",
    "Id",
    "Idm",
    "Idmn",
    "Idn",
    "Imc1",
    "Imc2",
    "InverseVariance",
    "JointAverage",
    "JointEnergy",
    "JointEntropy",
    "MCC",
    "MaximumProbability",
    "SumAverage",
    "SumEntropy",
    "SumSquares",
)
AXES = ("LeastAxisLength", "MajorAxisLength", "MinorAxisLength")  # by n - 1 voxels in the library, n in pyradiomics
FEATURES = tuple(
    f"original_{kind}_{name}"
    for kind, names in (("firstorder", FIRST_ORDER), ("shape", SHAPE), ("glcm", GLCM))
    for name in names
)
STRENGTH = 0.03  # ours, C of the ridge penalty: with about as many correlated columns as subjects, in simulated cohorts
# of 60 and 115, its AUC was within 0.01 of the best of 0.003 to 1, and C chosen in the training folds was no better
FEWEST = 2  # voxels of a mask that is measured; pyradiomics refuses single voxels too


class RadiomicsError(MgkerasError, RuntimeError):
    """The radiomics library is missing; the message says what to install."""


@dataclass(frozen=True)
class Extraction:
    """How the early phase is scaled and cut into grey levels before it is measured.

    Scanner units are arbitrary, so the early phase is measured in units of its bright tissue. Levels are then of fixed
        width: a
    fixed count between the tumour's own extremes would blow up an even tumour's noise to look like a mottled one.

    Attributes:
        ceiling: the early phase is divided by its bright level and clipped to [0, ceiling], as in volume.normalise,
            which also bounds the number of levels; None takes the early phase as it is.
        bin_width: of a grey level, in units of the early phase that is measured; the edges are multiples of it.
        bin_count: this many equal levels between the tumour's extremes, instead of bin_width.
        shift: added to the early phase in Energy, TotalEnergy and RootMeanSquared.
    """

    ceiling: float | None = VolumeSettings().intensity_ceiling
    bin_width: float = 0.1  # ours, because it cuts [0, 4] into 40 levels; pyradiomics advises 16 to 128
    bin_count: int | None = None
    shift: float = 0.0


DEFAULT = Extraction()


def features(
    early: np.ndarray, mask: np.ndarray, zooms: ArrayLike, extraction: Extraction = DEFAULT
) -> dict[str, float | None]:
    """First-order, shape and GLCM features of the early phase within the tumour.

    A mask of under FEWEST voxels has no feature at all. Skewness and Kurtosis are None where the early phase is
    constant in the mask; GLCM features are so there too, and where no two voxels of the mask touch.

    Args:
        early: (x, y, z) RAS+, finite, any units; with ``ceiling=None`` already comparable between subjects.
        mask: (x, y, z) bool, on the early phase's grid.
        zooms: (3,) mm.
        extraction: scale and grey levels.

    Returns:
        {name of FEATURES: float or None}, lengths in mm.

    Raises:
        RadiomicsError: the library is not installed.
        ExamError: a volume without bright voxels, where the early phase is to be scaled.
        ValueError: the early phase and mask of different shapes, or a voxel of the mask that is not finite.
    """
    library = _library()
    mask = np.asarray(mask, bool)
    if mask.ndim != 3 or np.shape(early) != mask.shape:
        raise InputError(
            f"expected the early phase and mask on one 3D grid. Received: {np.shape(early)} and {mask.shape}"
        )
    if np.count_nonzero(mask) < FEWEST:
        return dict.fromkeys(FEATURES)
    scaled = early if extraction.ceiling is None else normalise(np.asarray(early, np.float32), extraction.ceiling)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]  # the scale needs the whole volume, the features do not
    found = _measured(library, np.asarray(scaled[box], np.float64), mask[box], np.asarray(zooms, float), extraction)
    return {name: float(found[name]) if np.isfinite(found[name]) else None for name in FEATURES}


def baseline(like: HeldOut, rows: Sequence[Mapping[str, Any]]) -> HeldOut:
    """Ridge logistic regression on all FEATURES, in the networks' own folds.

    Args:
        like: subjects, labels and folds.
        rows: ``subject`` and every name of FEATURES each; None or '' where undefined. More subjects do no harm.

    Raises:
        ValueError: a subject without a row, or a feature that is absent or no finite number.
    """
    found = of_subjects(like, rows, "radiomics features of every held-out subject")
    design = np.array([[_cell(row, name) for name in FEATURES] for row in found])  # (n, 53)
    note = (
        f"regularised logistic regression on {len(FEATURES)} features of the early phase in the mask: "
        f"{len(FIRST_ORDER)} first-order, {len(SHAPE)} shape, {len(GLCM)} GLCM"
    )
    gaps = int(np.isnan(design).any(axis=1).sum())
    if gaps:
        note += f"; {gaps} of {len(design)} have undefined features and get the training median there"
    return cross_fitted("radiomics", like, design, note, STRENGTH)


def _library() -> ModuleType:
    try:
        import numpyradiomics
    except ImportError as error:
        raise RadiomicsError(
            f"expected the library numpyradiomics, by pip install 'mgkeras[radiomics]'. Received: {error}"
        ) from error
    return numpyradiomics


def _measured(
    library: ModuleType, early: np.ndarray, mask: np.ndarray, zooms: np.ndarray, extraction: Extraction
) -> dict[str, float]:
    """{name: value} of at least FEATURES, NaN where undefined; early (x, y, z) float64 and mask within the mask's
    box."""
    inside = early[mask]
    wrong = np.count_nonzero(~np.isfinite(inside))
    if wrong:
        raise InputError(
            f"expected finite voxels of the early phase in the mask. Received: {wrong} voxels that are NaN or infinite"
        )
    levels = {"binWidth": extraction.bin_width, "binCount": extraction.bin_count}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the moments of a constant, which become None
        first = library.firstorder(
            early, mask, voxelVolume=float(np.prod(zooms)), voxelArrayShift=extraction.shift, extend=False, **levels
        )
        shape = library.shape(mask, tuple(zooms), extend=False)  # no feature kept depends on the axes' order
    smaller = np.sqrt(1 - 1 / inside.size)
    shape |= {name: shape[name] * smaller for name in AXES}
    texture = (
        library.glcm(early, mask, **levels) if np.ptp(inside) > 0 and _touches(mask) else dict.fromkeys(GLCM, np.nan)
    )
    classes = {"firstorder": first, "shape": shape, "glcm": texture}
    return {f"original_{kind}_{name}": value for kind, values in classes.items() for name, value in values.items()}


def _touches(mask: np.ndarray) -> bool:
    """Whether two voxels of a mask (x, y, z) share a face, an edge or a corner."""
    return ndimage.label(mask, np.ones((3, 3, 3)))[1] < np.count_nonzero(mask)


def _cell(row: Mapping[str, Any], name: str) -> float:
    """A feature of a row as a float, NaN where it is undefined."""
    try:
        value = number(row[name])
    except (KeyError, TypeError, ValueError):
        value = np.inf
    if value is not None and not np.isfinite(value):
        raise InputError(
            f"subject {row['subject']}: {name} must be a finite number, or empty where undefined. "
            f"Received: {row.get(name, 'no such column')!r}"
        )
    return np.nan if value is None else value
