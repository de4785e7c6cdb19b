"""The tumour's mask from its contrast: what enhances strongly, is bulky, and stands out of what enhances weakly.

The way of a mask (:func:`tumour_mask`):
    1. percent enhancement (early - pre) / pre above a noise floor; what enhances by more than the gate stays;
    2. components that are small or thin go: noise and vessels;
    3. fuzzy C-means on what is left; the strongest cluster is the tumour, unless the clusters are not really apart,
       as when everything left is tumour: then they all are;
    4. a weaker core that the strongest cluster surrounds comes back, holes are filled, and step 2 once more.
Vessels go before the clustering because they often enhance more than the tumour and would be its strongest cluster.

A mask is (x, y, z) bool in RAS+ order on the early phase's own grid. Components are connected by faces, everywhere
here.

Reference: Liu et al. 2021 (see settings.py) subtract the pre phase from the early phase, keep what enhances by more
    than 70 % and segment by
fuzzy C-means: Bezdek JC, Ehrlich R, Full W. FCM: the fuzzy c-means clustering algorithm. Comput Geosci 10, 1984.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import skfuzzy
from scipy import ndimage

from mgkeras.data.checks import ERROR, check_mask
from mgkeras.data.cohort import Subject
from mgkeras.data.volume import ExamError, Volume, load_like, load_volume, same_space
from mgkeras.settings import MaskSettings, Settings

CLUSTERED_AT_MOST = 100_000  # voxels that find the centres; a million take 4 s and give the same ones
SEPARATION = 4.0  # centres nearer than this many within-cluster deviations are one cluster: halving an even spread
# of values gives 3.5, halving a Gaussian 2.6, so a gap in between is what more than 4 means
LARGEST_SHARE = 0.2  # of the tissue: a tumour that fills more of the field of view is implausible
MANY_COMPONENTS = 5  # more than this many separate tumours are implausible


@dataclass(frozen=True, eq=False)
class TumourMask:
    """A mask and what there is to say about it.

    Attributes:
        mask: (x, y, z) bool, RAS+, on the early phase's grid.
        report: source ('given' or 'fcm'), volume_mm3, components, fraction_gated (gated voxels among those above the
            noise floor; None where no gate was used), clusters_apart (1, or 0 where fuzzy C-means left nothing out, its
            clusters being one; None where nothing was clustered) and warning ('' for none).
    """

    mask: np.ndarray
    report: dict[str, Any]


def check_some_mask(reports: Iterable[Mapping[str, Any]], settings: Settings) -> None:
    """Makes sure that a model that is to be guided to tumours has one.

    Args:
        reports: of every subject, see TumourMask.
        settings: of the run.

    Raises:
        ExamError: a guided or a mask-only model, and no mask that is not empty.
    """
    guided = settings.guidance.lambda_dice > 0 or settings.uses_box
    if guided and not any(report["volume_mm3"] > 0 for report in reports):
        raise ExamError(
            f"a {settings.model} model needs tumours to look at: expected a mask that is not empty in one subject or "
            "more. Received: none. Look at the check sheet of `mgkeras mask`, correct the masks, and name another "
            "--out; or fit --model no-mask"
        )


def subject_mask(subject: Subject, settings: MaskSettings) -> tuple[Volume, TumourMask]:
    """The early phase of a subject and its mask: the one that the cohort names, else one made from the pre and early
    phases.

    A subject with neither a mask nor a pre phase gets an empty mask with a warning.

    Raises:
        ExamError: a file that cannot be used, or one that is not in the early phase's space.
    """
    early = load_volume(subject.early_file)
    if subject.mask is not None:
        given = load_like("mask", subject.mask, early, subject.name)
        for finding in check_mask(given.data):
            if finding.severity == ERROR:
                raise ExamError(
                    f"subject {subject.name}: expected {finding.expected} in {subject.mask}. Received: {finding.found}"
                )
        mask = given.data > 0
        return early, TumourMask(mask, given_report(mask, early.zooms))
    if subject.pre is None:
        empty = np.zeros(early.data.shape, bool)
        return early, TumourMask(
            empty, _report(empty, early.zooms, "fcm", None, ["empty: neither a mask nor a pre phase is given"])
        )
    return early, tumour_mask(load_like("pre", subject.pre, early, subject.name), early, settings)


def tumour_mask(pre: Volume, early: Volume, settings: MaskSettings) -> TumourMask:
    """The mask of what enhances like a tumour; empty, with a warning, where nothing does.

    The pre and early phases may hold anything (zero, negative, constant or NaN voxels): what cannot be measured is not
    tumour. Multiplying both by one positive number does not change the mask.

    Args:
        pre, early: before and early after contrast, on the same grid, (x, y, z) RAS+, in the scanner's units.

    Raises:
        ExamError: if the two are not on the same grid.
    """
    difference = same_space(early, pre)
    if difference:
        raise ExamError(f"expected pre on the early phase's grid. Received: {difference}")
    floor = settings.noise_floor * bright_level(early.data)
    enhancement = percent_enhancement(pre.data, early.data, floor)
    gated = enhancement > settings.enhancement
    tissue = int((early.data > floor).sum())
    mask, warnings, apart = np.zeros(gated.shape, bool), [], None
    box = bounding_box(gated)
    if box is not None:  # everything below sees only the box of what is gated
        mask[box], left_out, apart = _strong_and_bulky(enhancement[box], gated[box], early.zooms, settings)
        warnings = _left_out(left_out, early.zooms)
    warnings = _plausibility(mask, tissue, int(gated.sum()), settings) + warnings
    fraction = round(float(gated.sum()) / tissue, 5) if tissue else 0.0
    return TumourMask(mask, _report(mask, early.zooms, "fcm", fraction, warnings, apart))


def _strong_and_bulky(
    enhancement: np.ndarray, gated: np.ndarray, zooms: np.ndarray, settings: MaskSettings
) -> tuple[np.ndarray, np.ndarray, bool | None]:
    """Steps 2 to 4 within a box (x, y, z): the mask, and the bulky components that enhance too weakly to be in it.

    The third value is whether the clusters are apart, so that the clustering leaves anything out; None where nothing
    was clustered.
    """
    bulky = keep_bulky(gated, zooms, settings.smallest_mm3, settings.thinnest_mm)
    if not bulky.any():
        return bulky, bulky, None
    # the logarithm of early / pre: a dark voxel's huge ratio must not become a cluster of its own
    strong = strongest_cluster(np.log1p(enhancement[bulky]), settings.clusters, settings.fuzziness)
    mask = bulky.copy()
    mask[bulky] = strong
    if not strong.all():
        mask = keep_large(mask, zooms, settings.smallest_mm3)  # else scattered noise would count as a surround
        mask = close_gaps(mask, zooms, settings.thinnest_mm) & bulky
    mask = keep_bulky(fill_holes(mask), zooms, settings.smallest_mm3, settings.thinnest_mm)
    components, count = ndimage.label(bulky)
    touched = np.bincount(components[mask], minlength=count + 1) > 0
    return mask, bulky & ~touched[components], not strong.all()


def bright_level(early: np.ndarray) -> float:
    """The mean of the voxels above the mean, in the early phase's units, as in volume.normalise; 0 where nothing is
    bright."""
    finite = early[np.isfinite(early)]
    bright = finite[finite > finite.mean(dtype=np.float64)] if finite.size else finite
    return max(0.0, float(bright.mean(dtype=np.float64))) if bright.size else 0.0


def percent_enhancement(pre: np.ndarray, early: np.ndarray, floor: float) -> np.ndarray:
    """(early - pre) / pre as a share (1 is 100 %), float32, never NaN or infinite.

    Voxels of the early phase at or below the floor, and those that are not finite, get 0. The pre phase counts as the
    floor where it is
    darker: that understates what cannot be measured, and neither zero nor negative voxels divide.

    Args:
        pre, early: same shape, same units, any axis order.
        floor: in the same units; 0 or more.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        base = np.maximum(pre, np.float32(floor), dtype=np.float32)
        measured = np.isfinite(pre) & np.isfinite(early) & (early > floor) & (base > 0)
        enhancement = np.zeros(np.shape(early), np.float32)
        np.divide(early - base, base, out=enhancement, where=measured)
    return np.nan_to_num(enhancement, copy=False)


def strongest_cluster(values: np.ndarray, clusters: int, fuzziness: float) -> np.ndarray:
    """Which values belong to the fuzzy C-means cluster of the largest centre, or to one not apart from it.

    The start is the values' quantiles, so the outcome depends on the values alone. From the largest centre downward,
    a cluster joins its stronger neighbour where their centres are within SEPARATION deviations.

    Args:
        values: (n,) finite.
        clusters: C, 1 or more.
        fuzziness: the exponent m, above 1.

    Returns:
        (n,) bool; all True for one cluster, or for values that are all the same.
    """
    if clusters < 2 or values.size <= clusters or np.ptp(values) == 0:
        return np.ones(values.shape, bool)
    sample = values[:: -(-values.size // CLUSTERED_AT_MOST)].astype(np.float64)
    rank = np.argsort(np.argsort(sample, kind="stable"), kind="stable")
    start = np.eye(clusters)[:, rank * clusters // sample.size]  # (C, s) equal shares, the weakest first
    tolerance = 1e-4 * np.sqrt(sample.size)  # cmeans compares the norm of all memberships' changes
    centres = skfuzzy.cmeans(sample[None], clusters, fuzziness, tolerance, 200, init=start)[0]  # (C, 1)
    centres = np.sort(centres, axis=0)
    even = np.full((clusters, values.size), 1 / clusters)
    membership = skfuzzy.cmeans_predict(values[None], centres, fuzziness, tolerance, 1, init=even)[0]  # (C, n)
    cluster = membership.argmax(axis=0)
    deviation = np.sqrt(np.mean((values - centres[cluster, 0]) ** 2))
    gaps = np.diff(centres[:, 0])  # (C - 1,), from the weakest up
    apart = np.flatnonzero(gaps > SEPARATION * deviation)
    return cluster > (apart[-1] if apart.size else -1)


def keep_large(mask: np.ndarray, zooms: np.ndarray, smallest_mm3: float) -> np.ndarray:
    """The components of a mask (x, y, z) of at least this volume."""
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) * float(np.prod(zooms)) >= smallest_mm3
    large[0] = False
    return large[labels]


def keep_bulky(mask: np.ndarray, zooms: np.ndarray, smallest_mm3: float, thinnest_mm: float) -> np.ndarray:
    """What is neither small nor thin of a mask (x, y, z): an opening in mm, then a voxel's growth back into the mask.

    The growth gives back the corners that an opening rounds off, and no more: a vessel that touches a tumour goes.
    """
    element = ellipsoid(thinnest_mm, zooms)
    labels, _ = ndimage.label(keep_large(mask, zooms, smallest_mm3))
    kept = np.zeros(mask.shape, bool)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        component = np.pad(labels[box] == number, 1)
        opened = ndimage.binary_opening(component, element)
        grown = ndimage.binary_dilation(opened) & component
        kept[box] |= grown[1:-1, 1:-1, 1:-1]
    return keep_large(kept, zooms, smallest_mm3)


def ellipsoid(width_mm: float, zooms: np.ndarray) -> np.ndarray:
    """A ball of this diameter or the next larger one in whole voxels: bool, (nx, ny, nz).

    Where voxels are wider than the ball it has two of them in plane all the same: what is one voxel wide there cannot
    be told from a vessel. Across thick slices it has one, since a small tumour may lie in a single slice.
    """
    zooms = np.asarray(zooms)
    count = np.maximum(1, np.ceil(width_mm / zooms - 1e-3)).astype(int)
    if width_mm > 0:
        count = np.where(zooms <= np.median(zooms) * 1.001, np.maximum(count, 2), count)
    offsets = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / (n / 2) for n in count), indexing="ij")
    return sum(np.square(offset) for offset in offsets) <= 1


def close_gaps(mask: np.ndarray, zooms: np.ndarray, reach_mm: float) -> np.ndarray:
    """A mask (x, y, z) with gaps up to twice the reach bridged, and what is then enclosed filled."""
    box = bounding_box(mask)
    if box is None:
        return mask
    pad = [(int(np.ceil(reach_mm / zoom)) + 1,) * 2 for zoom in zooms]
    near = ndimage.distance_transform_edt(~np.pad(mask[box], pad), sampling=zooms) <= reach_mm
    closed = ndimage.distance_transform_edt(near, sampling=zooms) > reach_mm
    inner = tuple(slice(width, -width) for width, _ in pad)
    filled = mask.copy()
    filled[box] |= fill_holes(closed)[inner]
    return filled


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask (x, y, z) and the voxels that it encloses: background that does not reach the array's faces."""
    background, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (background != background[0, 0, 0])[1:-1, 1:-1, 1:-1]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The slices of the smallest box around a mask (x, y, z), or None where it is empty."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else None


def given_report(mask: np.ndarray, zooms: np.ndarray) -> dict[str, Any]:
    """The report of a mask (x, y, z) bool that somebody else made."""
    return _report(mask, zooms, "given", None, [] if mask.any() else ["empty: the given mask has no voxel"])


def _report(
    mask: np.ndarray,
    zooms: np.ndarray,
    source: str,
    fraction: float | None,
    warnings: list[str],
    apart: bool | None = None,
) -> dict[str, Any]:
    components = int(ndimage.label(mask)[1])
    volume = round(float(mask.sum() * np.prod(zooms)), 1)
    return {
        "source": source,
        "volume_mm3": volume,
        "components": components,
        "fraction_gated": fraction,
        "clusters_apart": None if apart is None else int(apart),
        "warning": "; ".join(warnings),
    }


def _left_out(weaker: np.ndarray, zooms: np.ndarray) -> list[str]:
    """A weaker lesion, or the tumour itself where the heart or a large vessel is stronger: a person must tell."""
    count, volume = ndimage.label(weaker)[1], weaker.sum() * np.prod(zooms)
    return [f"choice: {count} weaker bulky component{'s' * (count > 1)}, {volume:.0f} mm3, left out"] if count else []


def _plausibility(mask: np.ndarray, tissue: int, gated: int, settings: MaskSettings) -> list[str]:
    """What a person should look at: an empty mask, or one that no tumour is likely to have."""
    if not mask.any():
        if not gated:
            return [f"empty: no voxel enhances by more than {settings.enhancement:.0%}"]
        return [f"empty: of {gated} voxels above the gate none is in a bulky, strong component"]
    components = ndimage.label(mask)[1]
    cut = any(face.any() for axis in range(3) for face in (mask.take(0, axis), mask.take(-1, axis)))
    warnings = (
        (mask.sum() > LARGEST_SHARE * tissue, f"large: {mask.sum() / tissue:.0%} of the tissue"),
        (components > MANY_COMPONENTS, f"scattered: {components} components"),
        (cut, "cut: touches the border of the field of view"),
    )
    return [text for true, text in warnings if true]
