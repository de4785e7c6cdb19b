"""Where a map looks: one subject's class activation map against its tumour mask.

Glossary:
    cube: (side, side, side) voxels in RAS+ order, isotropic, ``voxel_mm`` a side.
    cam: (g, g, g) the predicted class's decision map on its own grid, in log-odds; g divides side (g = side is a map on
        the cube). Its absolute value is what is scored: a decision is made of the evidence for a class and of that
        against it, and of two classes each has the other's map with the sign turned. See :func:`centred`.
    attention: (g, g, g) the map in [0, 1] that the Dice term sees.
    touched: the cells of the map's grid with at least one mask voxel.
    mass: the absolute map's sum. On the map's own grid a perfect map puts all of it in touched cells (1.0); voxel by
        voxel after enlarging even the pooled mask itself spills over the tumour's edge, so that score comes with a
        ceiling.
    undefined: None. With an empty mask every score; with a dead map (0 everywhere) every score of the map.
        Nothing is ever 0/0; summary.run_summary counts the undefined subjects.

Sources: mass is relevance mass accuracy (Arras 2022), equal to the energy-based pointing game (Score-CAM); rank
accuracy from the same paper; ``peak_in_mask`` is the pointing game (Zhang 2018).
"""

from __future__ import annotations

import numpy as np

from mgkeras.data.context import dilated
from mgkeras.data.volume import along_axes, axis_weights
from mgkeras.errors import InputError
from mgkeras.runs import checked

MAP = checked.MAP
THRESHOLDS = (0.25, 0.5, 0.75)  # ours: shares of the map's maximum at which Dice and IoU are given
RING_MM = 10.0  # reporting.md: the peritumoral ring
TOLERANCE_MM = 10.0  # ours, because it is the ring's width: how far from the tumour a peak still counts as a hit
OWN_GRID = (
    "mass_in_mask",
    "mass_chance",
    "mass_enrichment",
    "peak_in_mask",
    "peak_distance_mm",
    "peak_within_10mm",
    "soft_dice",
    "mass_for_class",
)
VOXELWISE = (
    "mass_voxelwise",
    "mass_voxelwise_chance",
    "mass_voxelwise_ceiling",
    "rank_accuracy",
    "mass_in_ring",
    "dice_25",
    "iou_25",
    "dice_50",
    "iou_50",
    "dice_75",
    "iou_75",
    "dice_otsu",
    "iou_otsu",
)
Scores = dict[str, "float | None"]


def centred(maps: np.ndarray) -> np.ndarray:
    """The decision map of each class: class maps (..., K), literally, -> (..., K), any sign, summing to 0 over K.

    As models.cam.centred: a vector added to all output columns changes every class map, no probability, and not this.
    """
    return maps - maps.mean(axis=-1, keepdims=True)


def enlarge(cells: np.ndarray, side: int) -> np.ndarray:
    """A (g, g, g) map on the cube: (side, side, side) float32, linear between cell centres, edges clamped.

    The mean is kept where g divides side. Values stay within the map's range.
    """
    return along_axes(cells, [axis_weights(n, side / n, side, 1.0) for n in cells.shape])


def pool(cube: np.ndarray, grid: int) -> np.ndarray:
    """A (side, side, side) cube averaged over cells: (grid, grid, grid) float64, in [0, 1] for a mask.

    Raises:
        ValueError: where grid does not divide side, or the array is no cube.
    """
    side = cube.shape[0]
    if cube.shape != (side,) * 3 or side % grid:
        raise InputError(f"expected a cube whose side is a multiple of {grid}. Received: shape {cube.shape}")
    cell = side // grid
    return cube.reshape(grid, cell, grid, cell, grid, cell).mean(axis=(1, 3, 5), dtype=np.float64)


def share(part: np.ndarray, weights: np.ndarray) -> float | None:
    """Share of the weights' sum inside a bool array of the same shape; None where the sum is 0."""
    total = weights.sum(dtype=np.float64)
    return float(weights[part].sum(dtype=np.float64) / total) if total > 0 else None


def soft_dice(attention: np.ndarray, mask: np.ndarray) -> float | None:
    """2 sum(A M) / (sum(A) + sum(M)) on the map's grid, as the training loss has it.

    Args:
        attention: (g, g, g) in [0, 1].
        mask: (side, side, side) bool; average-pooled to (g, g, g) and scaled to a maximum of 1. None if it is empty.
    """
    return _soft_dice(attention, pool(mask, attention.shape[0])) if mask.any() else None


def _soft_dice(attention: np.ndarray, pooled: np.ndarray) -> float:
    """The same of a mask that is pooled already: (g, g, g), not empty."""
    scaled = pooled / pooled.max()
    return float(2 * (attention * scaled).sum() / (attention.sum() + scaled.sum()))


def rank_accuracy(values: np.ndarray, mask: np.ndarray) -> float | None:
    """Share of the K highest voxels that lie in the mask of K voxels; ties at the limit count by their share inside.

    Args:
        values: any shape, the map. mask: the same shape, bool. None if it is empty.
    """
    size = int(mask.sum())
    if not size:
        return None
    limit = np.partition(values.ravel(), -size)[-size]
    above, tied = values > limit, values == limit
    return float(((above & mask).sum() + (size - above.sum()) * tied[mask].sum() / tied.sum()) / size)


def overlap(binary: np.ndarray, mask: np.ndarray) -> tuple[float | None, float | None]:
    """(Dice, IoU) of two bool arrays; (None, None) where both are empty."""
    both, total = int((binary & mask).sum()), int(binary.sum()) + int(mask.sum())
    return (2 * both / total, both / (total - both)) if total else (None, None)


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float | None:
    """The threshold that parts values into two classes of largest between-class variance (Otsu 1979, histogram).

    None where all values are equal.
    """
    if values.min() == values.max():
        return None
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, first = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    parted = (below > 0) & (above > 0)  # some bin is: the lowest value is in the first one, the highest in the last
    below, above, first = below[parted], above[parted], first[parted]
    between = below * above * (first / below - (counts @ centres - first) / above) ** 2
    return float(edges[1:][parted][between.argmax()])


def ring(mask: np.ndarray, voxel_mm: float, width_mm: float = RING_MM) -> np.ndarray:
    """Voxels outside the mask within ``width_mm`` of one of its voxels (centre to centre): bool, the mask's shape."""
    return dilated(mask, voxel_mm, width_mm) & ~np.asarray(mask, bool)


def peak_distance_mm(cam: np.ndarray, mask: np.ndarray, voxel_mm: float) -> float | None:
    """Millimetres from the centre of a map's highest cell to the nearest mask voxel's box, 0 inside one.

    Of several equal peaks the mean. None for an empty mask or a map without a cell above 0.
    """
    if not mask.any() or not cam.max() > 0:
        return None
    cell = mask.shape[0] / cam.shape[0]
    voxels = np.argwhere(mask)  # (m, 3)
    peaks = (np.argwhere(cam == cam.max()) + 0.5) * cell - 0.5  # (k, 3) in voxel indices
    nearest = [(np.maximum(np.abs(voxels - peak) - 0.5, 0) ** 2).sum(axis=1).min() for peak in peaks]
    return float(np.sqrt(nearest).mean() * voxel_mm)


def attention_scores(
    cam: np.ndarray, attention: np.ndarray, mask: np.ndarray, voxel_mm: float, body: np.ndarray | None = None
) -> Scores:
    """Every score of one subject's map against its tumour mask, for one row of a table.

    Args:
        cam: (g, g, g) decision map of the predicted class, RAS+ order, any range; g must divide side.
        attention: (g, g, g) in [0, 1], the map that the Dice term sees; only ``soft_dice`` is of it.
        mask: (side, side, side) bool, the tumour on the cube.
        voxel_mm: edge of a cube voxel, mm.
        body: (side, side, side) bool, tissue as against air, from context.body_of; without it ``mass_outside_body`` and
            ``mass_chance_body`` are left out, with an empty one they are undefined.

    Returns:
        On the map's own grid: ``mass_in_mask``, ``mass_chance`` (share of touched cells: what a map without knowledge
        expects of mass_in_mask and of peak_in_mask), ``mass_enrichment`` (their ratio), ``peak_in_mask`` (0 or 1;
        among equal peaks the share in touched cells), ``peak_distance_mm``, ``peak_within_10mm`` (0 or 1),
        ``soft_dice``, ``mass_for_class`` (mass in the mask of the map's positive part alone, the evidence for what was
        predicted). Voxel by voxel after enlarging: ``mass_voxelwise``, ``mass_voxelwise_chance``,
        ``mass_voxelwise_ceiling`` (the pooled mask's own score), ``rank_accuracy`` (chance is mass_voxelwise_chance),
        ``mass_in_ring``, ``mass_outside_body``, ``dice_25 iou_25 dice_50 iou_50 dice_75 iou_75`` (at shares of the
        maximum), ``dice_otsu iou_otsu``. ``mass_chance_body``: the share of touched cells among those with tissue, what
        a map expects that knows the body and nothing else.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    cam, attention, mask = np.asarray(cam, np.float64), np.asarray(attention, np.float64), np.asarray(mask, bool)
    own_grid = own_grid_scores(cam, attention, mask, voxel_mm)
    _check_body(body, mask)
    if not mask.any():
        return own_grid | _undefined(VOXELWISE, body)
    found = own_grid | _voxelwise(np.abs(cam), mask, voxel_mm, body)
    return found if body is None else found | {"mass_chance_body": chance_in_body(mask, body, cam.shape[0])}


def chance_in_body(mask: np.ndarray, body: np.ndarray, grid: int) -> float | None:
    """Share of touched cells among the (grid, grid, grid) cells with a voxel of the body; None where either is empty.

    mask and body are (side, side, side) bool.
    """
    cells = pool(body, grid) > 0
    return float((pool(mask, grid) > 0)[cells].mean()) if mask.any() and cells.any() else None


def mass_of_image(image: np.ndarray, mask: np.ndarray, grid: int) -> float | None:
    """Mass in the tumour of a map that only copies the early phase: each of the (grid, grid, grid) cells its mean
    brightness.

    image is (side, side, side) in [0, ceiling], mask the same shape, bool; None where it is empty.
    """
    return share(pool(mask, grid) > 0, pool(np.asarray(image, np.float64), grid)) if mask.any() else None


def own_grid_scores(cam: np.ndarray, attention: np.ndarray, mask: np.ndarray, voxel_mm: float) -> Scores:
    """The scores of OWN_GRID alone, which are quick; arguments, values and errors as in :func:`attention_scores`."""
    cam, attention, mask = np.asarray(cam, np.float64), np.asarray(attention, np.float64), np.asarray(mask, bool)
    _check_shapes(cam, attention, mask)
    if not mask.any():
        return dict.fromkeys(OWN_GRID)
    pooled = pool(mask, cam.shape[0])
    touched = pooled > 0
    strength = np.abs(cam)
    chance, mass = float(touched.mean()), share(touched, strength)
    distance = peak_distance_mm(strength, mask, voxel_mm)
    return {
        "mass_in_mask": mass,
        "mass_chance": chance,
        "mass_enrichment": None if mass is None else mass / chance,
        "peak_in_mask": float(touched[strength == strength.max()].mean()) if strength.max() > 0 else None,
        "peak_distance_mm": distance,
        "peak_within_10mm": None if distance is None else float(distance <= TOLERANCE_MM),
        "soft_dice": _soft_dice(attention, pooled),
        "mass_for_class": share(touched, np.maximum(cam, 0.0)),
    }


def _voxelwise(positive: np.ndarray, mask: np.ndarray, voxel_mm: float, body: np.ndarray | None) -> Scores:
    side = mask.shape[0]
    found = _undefined(VOXELWISE, body)
    found["mass_voxelwise_chance"] = float(mask.mean())
    found["mass_voxelwise_ceiling"] = share(mask, enlarge(pool(mask, positive.shape[0]), side))
    if not positive.max() > 0:
        return found
    large = enlarge(positive / positive.max(), side)  # (side, side, side) in [0, 1]
    found["mass_voxelwise"] = share(mask, large)
    found["rank_accuracy"] = rank_accuracy(large, mask)
    found["mass_in_ring"] = share(ring(mask, voxel_mm), large)
    if body is not None and np.any(body):
        found["mass_outside_body"] = share(~np.asarray(body, bool), large)
    limits = {f"{100 * part:.0f}": part * large.max() for part in THRESHOLDS} | {"otsu": otsu_threshold(large)}
    for name, limit in limits.items():
        found[f"dice_{name}"], found[f"iou_{name}"] = (None, None) if limit is None else overlap(large >= limit, mask)
    return found


def _undefined(names: tuple[str, ...], body: np.ndarray | None) -> Scores:
    return dict.fromkeys(names + ("mass_outside_body", "mass_chance_body") * (body is not None))


def _check_shapes(cam: np.ndarray, attention: np.ndarray, mask: np.ndarray) -> None:
    grid, side = cam.shape[0], mask.shape[0]
    if cam.shape != (grid,) * 3 or attention.shape != cam.shape or mask.shape != (side,) * 3 or side % grid:
        raise InputError(
            "expected cam and attention (g, g, g) and mask (side, side, side), side a multiple of g. "
            f"Received: {cam.shape}, {attention.shape}, {mask.shape}"
        )
    if not (np.isfinite(cam).all() and np.isfinite(attention).all()):
        raise InputError("expected a finite map. Received: NaN or infinity; the model diverged")


def _check_body(body: np.ndarray | None, mask: np.ndarray) -> None:
    if body is not None and np.shape(body) != mask.shape:
        raise InputError(f"expected a body mask of the tumour mask's shape {mask.shape}. Received: {np.shape(body)}")
