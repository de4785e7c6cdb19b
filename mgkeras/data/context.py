"""What stands around a tumour, changed: another patient's tissue, a blur or noise; and the tumour itself taken away.

Training with it teaches a network to decide from the tumour; asking with it shows what a decision rests on. Everything
here is NumPy on one cube, and cheap where it can be: only the box around a mask is worked on.

Glossary:
    cube: (side, side, side) in [0, ceiling], RAS+ order, voxels of ``voxel_mm`` mm a side. Masks have its shape, bool.
        A cube of several phases, (side, side, side, channels), may stand for it: all channels are changed alike.
    kept: the mask dilated by a ball of dilation_mm, the tumour and its rim: what stays of a patient.
    filled: a hole closed with the tissue around it, a Gaussian mean of what lies outside of it. Unlike a blur it takes
        nothing from inside, neither the tumour's brightness nor its volume; that there is a hole still shows.
    transplant: one patient's kept tumour in another patient's exam, whose own tumour is filled.
    coverage: the share of one patient's kept voxels where another patient has tissue and not air.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
from scipy import ndimage

from mgkeras.data.phases import first_channel, over
from mgkeras.data.volume import along_axes
from mgkeras.settings import GuidanceSettings

Patch = tuple[tuple[slice, ...], np.ndarray]
LEAST = 1e-4  # ours: a weight below it is no tissue to take a mean of
REACH = 3.0  # ours, because a Gaussian ends at three sigma for all that shows
BODY_SHARE = 1 / 3  # ours, because on real exams it parts the air's noise (a fifth) from suppressed fat; see body_of
BLOCK = 256  # masks at a time, so that memory does not grow with their number
COARSE = 24  # ours: voxels a side on which coverage is told; whether there is tissue needs no more
COVERED = 0.9  # ours, because a tumour that hangs in the air gives itself away
PLACES = 200  # ours: random places that are tried for a hole elsewhere
CANDIDATES = 256  # ours, because who may stand around whom is a table that else grows with the square of the cohort
FEWEST = 4  # ours: partners that a subject has at least, the best covered ones where fewer reach COVERED


def dilated(mask: np.ndarray, voxel_mm: float, mm: float) -> np.ndarray:
    """A mask and every voxel within ``mm`` of one of its voxels, centre to centre: bool, the mask's shape."""
    found, box = np.array(mask, bool), _box(mask, mm / voxel_mm)
    if box:
        found[box] = ndimage.distance_transform_edt(~found[box]) * voxel_mm <= mm + 1e-9
    return found


def kept(mask: np.ndarray, voxel_mm: float, settings: GuidanceSettings) -> np.ndarray:
    """The mask dilated by the run's dilation_mm."""
    return dilated(mask, voxel_mm, settings.dilation_mm)


def filled(image: np.ndarray, hole: np.ndarray, sigma: float) -> np.ndarray:
    """An image (x, y, z) float whose hole (bool) holds the Gaussian mean, of sigma voxels, of what lies outside it.

    Where nothing outside lies within REACH sigma, it holds the mean of the outside nearby; a hole that is everything
    stays as it is. The result is float32.
    """
    found = np.array(image, np.float32)
    if made := patch(image, hole, sigma):
        found[made[0]] = made[1]
    return found


def patch(image: np.ndarray, hole: np.ndarray, sigma: float) -> Patch | None:
    """What :func:`filled` changes: the hole's bounding box, and the filled image there (float32); None for no hole."""
    box, around = _box(hole, 0), _box(hole, REACH * sigma)
    if box is None or around is None:
        return None
    inside, near = hole[around], np.asarray(image[around], np.float32)
    inner = tuple(slice(b.start - a.start, b.stop - a.start) for a, b in zip(around, box, strict=True))
    if inside.all():
        return box, near[inner]
    outside = over((~inside).astype(np.float32), near)
    weight, value = (
        ndimage.gaussian_filter(part, _in_space(sigma, part), mode="constant", truncate=REACH)[inner]
        for part in (outside, near * outside)
    )
    closed = np.where(weight > LEAST, value / np.maximum(weight, LEAST), near[~inside].mean(axis=0))
    return box, np.where(over(inside[inner], near), closed, near[inner]).astype(np.float32)


def _in_space(sigma: float, image: np.ndarray) -> tuple[float, ...]:
    """Sigma along each axis of an image: channels are not mixed."""
    return (sigma, sigma, sigma, 0.0)[: image.ndim]


def transplanted(
    image: np.ndarray, keep: np.ndarray, other: np.ndarray, other_hole: np.ndarray, sigma: float
) -> np.ndarray:
    """``image`` where ``keep``, elsewhere the cube ``other`` with its ``other_hole`` filled; float32.

    The two masks have one shape, and so have the two cubes. An empty ``keep`` gives the image back: there is
    no tumour to transplant.
    """
    if not keep.any():
        return np.asarray(image, np.float32)
    closed = filled(np.asarray(other, np.float32), other_hole, sigma)
    return np.where(over(keep, image), image, closed).astype(np.float32)


def softly_transplanted(
    image: np.ndarray, keep: np.ndarray, other: np.ndarray, other_hole: np.ndarray, sigma: float, seam: float
) -> np.ndarray:
    """Another way to transplant, which no training uses: a soft seam, and the other tumour blurred instead of filled.

    As :func:`transplanted`, but the two exams pass into each other by a Gaussian of ``seam`` voxels over the edge of
    ``keep``: half and half on it. 80 % of the way takes 2.56 seam.
    """
    if not keep.any():
        return np.asarray(image, np.float32)
    weight = over(ndimage.gaussian_filter(keep.astype(np.float32), seam, mode="nearest"), image)
    tissue = blurred_inside(np.asarray(other, np.float32), other_hole, sigma)
    return (weight * image + (1 - weight) * tissue).astype(np.float32)


def elsewhere(hole: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A hole of a tumour's shape where no tumour is: (side, side, side) bool, None where no place was found.

    The mirrored place (x turned round about the cube's middle), where that does not overlap the hole and at least
    COVERED of it is body. Else the shape as it is, moved to the first of PLACES random voxels of the body (its middle
    is put there) where the same holds and nothing of it leaves the cube.

    Args:
        hole: (side, side, side) bool, RAS+, as from :func:`kept`.
        body: the same shape, from :func:`body_of`.
        rng: of the random places.
    """
    mirrored = hole[::-1]
    if not hole.any() or not body.any():
        return None
    if not (mirrored & hole).any() and body[mirrored].mean() >= COVERED:
        return mirrored
    voxels, rooms = np.argwhere(hole), np.argwhere(body)
    middle = (voxels.min(axis=0) + voxels.max(axis=0)) // 2
    for place in rooms[rng.integers(len(rooms), size=PLACES)]:
        moved = voxels - middle + place
        if (moved < 0).any() or (moved >= hole.shape[0]).any():
            continue
        at = tuple(moved.T)
        if not hole[at].any() and body[at].mean() >= COVERED:
            found = np.zeros_like(hole)
            found[at] = True
            return found
    return None


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """A cube blurred everywhere by a Gaussian of sigma voxels that is cut off, and made to sum to 1, at the edges."""
    distance = np.arange(image.shape[0])[:, None] - np.arange(image.shape[0])[None, :]
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return along_axes(np.asarray(image, np.float32), [(weights / weights.sum(1, keepdims=True)).astype(np.float32)] * 3)


def blurred_outside(image: np.ndarray, keep: np.ndarray, sigma: float) -> np.ndarray:
    """The image where ``keep``, elsewhere its blur; with an empty ``keep`` the image as it is."""
    return np.where(over(keep, image), image, blurred(image, sigma)) if keep.any() else np.asarray(image, np.float32)


def blurred_inside(image: np.ndarray, hole: np.ndarray, sigma: float) -> np.ndarray:
    """The blur of the image where ``hole``, elsewhere the image."""
    return np.where(over(hole, image), blurred(image, sigma), image) if hole.any() else np.asarray(image, np.float32)


def shuffled_outside(image: np.ndarray, keep: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image where ``keep``, elsewhere its own voxels in random order: noise of the same histogram."""
    found = np.array(image, np.float32)
    if keep.any():
        found[~keep] = rng.permutation(found[~keep])
    return found


def body_of(image: np.ndarray) -> np.ndarray:
    """Tissue as against air: (side, side, side) bool, the largest component of what is bright, its cavities filled.

    Bright is what exceeds BODY_SHARE of the bright voxels' mean (those above the mean, as in volume.normalise) once
    the image is smoothed; voxels of exactly 0, with which a cube is filled up beyond the field of view, have no say in
    that mean. Dark fat and lungs are body where tissue encloses them, in space or in a slice of any of the three
    directions. What this cannot tell: noise as bright as fat beside a coil counts as body where it touches it, a chest
    wall as dark as noise as air.

    Args:
        image: (side, side, side) in [0, ceiling], RAS+, of any scale; all False where all values are equal. Of several
            channels the first tells; where that is a subtraction, what enhances is the body.
    """
    image = first_channel(image)
    if image.min() == image.max() or image.max() <= 0:
        return np.zeros(image.shape, bool)
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), 1.0)
    seen = smooth[image > 0]
    limit = BODY_SHARE * seen[seen >= seen.mean(dtype=np.float64)].mean(dtype=np.float64)
    labels, _ = ndimage.label(smooth > limit)
    body = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    whole, found = ndimage.generate_binary_structure(3, 1), body.copy()
    for flat in (None, 0, 1, 2):
        plane = whole.copy()
        if flat is not None:
            np.moveaxis(plane, flat, 0)[[0, 2]] = False  # no neighbour in the next slice
        found |= ndimage.binary_fill_holes(body, plane)
    return found


def coverage(images: Iterable[np.ndarray], keeps: Iterable[np.ndarray]) -> np.ndarray:
    """(n, m) float in [0, 1]: at [i, j] the share of subject i's kept voxels where subject j has tissue.

    Args:
        images, keeps: m cubes of one shape, and what is kept of n such, one at a time. 1 where nothing is kept.
    """
    bodies = np.array([_coarse(np.asarray(image, np.float32)) for image in images])
    bodies = np.array([body_of(body) for body in bodies]).reshape(len(bodies), -1).astype(np.float32)  # (m, cells)
    found, keeps = [], iter(keeps)
    while part := [_coarse(np.asarray(keep, np.float32)).ravel() for keep in islice(keeps, BLOCK)]:
        places = np.array(part)  # (BLOCK or fewer, cells)
        total = places.sum(1, keepdims=True)
        found.append(np.where(total > 0, places @ bodies.T / np.maximum(total, 1e-9), 1.0))
    return np.concatenate(found)


def partners(covered: np.ndarray, own: np.ndarray | None = None) -> list[np.ndarray]:
    """For each subject the others whose body covers its tumour's place, from :func:`coverage`, by their columns.

    All that reach COVERED; where those are fewer than FEWEST, the best covered ones. [] only for a single subject.

    Args:
        covered: (n, m).
        own: (n,) the column of each subject itself, -1 where it has none; 0 to n - 1 where None.
    """
    found = []
    for row, shares in zip(np.arange(len(covered)) if own is None else own, covered, strict=True):
        others = np.flatnonzero(np.arange(len(shares)) != row)
        good = others[shares[others] >= COVERED]
        best = others[np.argsort(-shares[others], kind="stable")][:FEWEST]
        found.append(good if len(good) >= FEWEST else np.sort(best))
    return found


def drawn_candidates(count: int, seed: int) -> np.ndarray:
    """Which of so many subjects may stand around a tumour: (m,) int, ascending; of more than CANDIDATES so many."""
    if count <= CANDIDATES:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, CANDIDATES, replace=False))


def columns_of(chosen: np.ndarray, count: int) -> np.ndarray:
    """(count,) int: the column of each subject in a table whose columns are the chosen ones, -1 where it has none."""
    own = np.full(count, -1)
    own[chosen] = np.arange(len(chosen))
    return own


def balanced_partners(
    labels: np.ndarray, covered: np.ndarray, seed: int = 0, chosen: np.ndarray | None = None
) -> np.ndarray:
    """(n,) int: one partner a subject, so that the partner's label says nothing of the subject's.

    Within each class of the subjects, partners of class 0 and 1 come in the cohort's own shares (largest remainder), so
    that a perfect reader of the subjects' tumours has an AUC of 0.5 for the partners' labels but for rounding. Among
    those of the wanted class the choice is random, of those that :func:`partners` names where there are any.

    Args:
        labels: (n,) 0/1. covered: (n, m) from :func:`coverage`. seed: of the choice.
        chosen: (m,) the subjects that may be partners; all where None.
    """
    rng, found = np.random.default_rng(seed), np.zeros(len(labels), int)
    chosen = np.arange(len(labels)) if chosen is None else chosen
    own, theirs = columns_of(chosen, len(labels)), labels[chosen]
    allowed, share = partners(covered, own), float(np.mean(labels))
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        wanted = np.arange(len(rows)) < round(share * len(rows))
        for row, want in zip(rows, wanted, strict=True):
            others = np.flatnonzero((theirs == want) & (chosen != row))
            near = np.intersect1d(others, allowed[row])
            choice = near if len(near) else others if len(others) else np.flatnonzero(chosen != row)
            found[row] = chosen[rng.choice(choice)] if len(choice) else row
    return found


def _coarse(cube: np.ndarray) -> np.ndarray:
    """A cube's first channel averaged over blocks to COARSE voxels a side, or to the side's largest divisor below."""
    cube, side = first_channel(cube), cube.shape[0]
    grid = max(n for n in range(1, min(COARSE, side) + 1) if side % n == 0)
    block = side // grid
    return cube.reshape(grid, block, grid, block, grid, block).mean(axis=(1, 3, 5))


def _box(mask: np.ndarray, reach: float) -> tuple[slice, ...] | None:
    """The slices of a mask's bounding box and ``reach`` voxels around it; None for an empty mask."""
    if not mask.any():
        return None
    steps = int(np.ceil(reach)) + 1
    spans = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(
        slice(max(span[0] - steps, 0), min(span[-1] + steps + 1, side))
        for span, side in zip(spans, mask.shape, strict=True)
    )
