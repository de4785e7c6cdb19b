"""A phantom's patient scanned: tissue, vessels, tumour and traps as three int16 volumes.

Coordinates are RAS+ mm from the middle of the field of view, as in phantom_case.py. Arrays of points are (n, 3) in
them; (n,) arrays hold a value a voxel, in the file's axis order.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mgkeras.phantom import traps
from mgkeras.phantom.case import (
    BREAST_AXES,
    BREAST_CENTRE,
    Case,
    chest_wall,
    relief,
    scan_grid,
)

FULL_CONTRAST = 0.45  # rim minus core at texture 1, in shares of the mean enhancement; more and the core misses 70 %
CORE = 0.65  # the core's radius in shares of the tumour's
NOISE = 9.0  # sigma of the Rician noise, where fat is 170
# pre signal of a fat-suppressed T1-weighted scan, and early enhancement (early - pre) / pre
TISSUE = {
    "air": (0, 0),
    "fat": (170, 0.05),
    "gland": (300, 0.20),
    "skin": (250, 0.20),
    "muscle": (290, 0.20),
    "rib": (130, 0.10),
    "lung": (45, 0.20),
}
VESSEL = (230, 2.4)  # brighter than any tumour, were it not thinner than a voxel
VESSEL_RADIUS_MM = 0.9
KNOT_MM = 5.0  # of the random fields that gland and texture vary by
GAINS = {"north": 1.0, "south": 1.6}
NORTH_FALLOFF = 0.0025  # the gain's fall from the chest wall to the front, 1/mm


def scan(case: Case, side: int, texture: float, rng: np.random.Generator) -> tuple[dict, np.ndarray, np.ndarray]:
    """Scan a case.

    Returns:
        pre, early, late by column name (int16, the file's axis order case.code, arbitrary scanner units >= 0), the
        tumours' mask (bool, same shape) and the affine (4, 4), voxel -> RAS+ mm.
    """
    shape, affine = scan_grid(case, side)
    points = _points(shape, affine, case.place)  # (x*y*z, 3) mm
    voxel = float(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
    fields = rng.standard_normal((2, 26, 26, 26), dtype=np.float32)
    pre, early = (_soften(part, shape) for part in _anatomy(points, fields[0]))
    tumour, mask, relative = _tumour(case, points, voxel, texture, fields[1])
    early = np.where(mask, early, early * np.float32(traps.tissue_factor(case)))
    share = _vessel_share(case, shape, affine, voxel)
    pre, early = _blend(pre, VESSEL[0], share), _blend(early, VESSEL[1], share)
    pre, early = _blend(pre, case.tumour_t0, tumour), _blend(early, case.enhancement * relative, tumour)
    wash = _blend(np.full_like(pre, 1.1), 0.72 if case.her2 else 1.0, tumour)  # late's enhancement over early's
    for centre, radius in traps.balls(case):
        reach = np.linalg.norm(points - centre.astype(np.float32), axis=1)
        share = np.clip(0.5 + (radius - reach) / voxel, 0, 1)
        pre, early = _blend(pre, traps.BALL[0], share), _blend(early, traps.BALL[1], share)
    signals = {"pre": pre, "early": pre * (1 + early), "late": pre * (1 + early * wash)}
    phases = {name: _received(case, signal, points, rng).reshape(shape) for name, signal in signals.items()}
    if case.traps.get("marker"):
        for volume in phases.values():
            volume[traps.marker_block(case, shape, affine)] = round(GAINS[case.site] * traps.MARKER)
    return phases, mask.reshape(shape), affine


def _received(case: Case, signal: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A signal (n,) as the scanner has it, int16: the magnitude of a noisy complex signal (Rician), times the gain."""
    noise = rng.standard_normal((2, signal.size), dtype=np.float32) * (NOISE * traps.noise_factor(case))
    falloff = {"north": NORTH_FALLOFF, "south": traps.SOUTH_FALLOFF}[case.site]
    gain = GAINS[case.site] * np.exp(-falloff * points[:, 1] - 4e-5 * points[:, 0] ** 2)  # coils: brighter at the wall
    gain = gain * traps.bias(case, points)
    return np.clip(np.rint(gain * np.hypot(signal + noise[0], noise[1])), 0, 32767).astype(np.int16)


def _anatomy(points: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signal before contrast and early enhancement, each (n,), without tumour, vessels and traps."""
    x, y, z = points.T
    outside = np.sqrt((((points - BREAST_CENTRE) / BREAST_AXES) ** 2).sum(1))  # 1 on the breast's surface
    wall = chest_wall(x, z)
    depth = np.maximum((1 - outside) * 45, wall + 7 - y)  # mm under the skin, roughly
    gland = _sample(field, points) - 2.2 * (outside - 0.55) - np.maximum(0, (wall + 10 - y) / 6)
    ribs = np.cos(z * 2 * np.pi / 26 + x / 14)
    tissue = np.select(
        [depth < 0, (depth < 2) & (y > wall), y < wall - 15, (y < wall - 8) & (ribs > 0.45), y < wall],
        [0, 1, 2, 3, 4],
        5,
    )
    names = ("air", "skin", "lung", "rib", "muscle", "fat")
    pre, early = np.array([TISSUE[name] for name in names], np.float32).T[:, tissue]
    share = np.where(tissue == 5, np.clip(0.5 + 2 * gland, 0, 1), 0)
    pre, early = _blend(pre, TISSUE["gland"][0], share), _blend(early, TISSUE["gland"][1], share)
    return pre * (1 + 0.05 * _sample(field[::-1], points)), early


def _tumour(case: Case, points: np.ndarray, voxel: float, texture: float, field: np.ndarray):
    """Each voxel's share of tumour, the mask (half of it or more) and enhancement over its mean, all (n,)."""
    share, relative = np.zeros(len(points), np.float32), np.ones(len(points), np.float32)
    for tumour in case.tumours:
        near = np.flatnonzero(((points - tumour.centre) ** 2).sum(1) < (tumour.reach + 2 * voxel) ** 2)
        ball = (points[near] - tumour.centre) @ tumour.axes.T
        reach = np.linalg.norm(ball, axis=1) + 1e-6
        surface = tumour.radius * relief(ball / reach[:, None], tumour.lobes)
        here = np.clip(0.5 + (surface - reach) / (voxel / 2), 0, 1)
        rim = np.clip(0.5 + (reach - CORE * surface) / voxel, 0, 1)  # 0 in the core, 1 in the rim
        pattern = 0.06 * np.clip(_sample(field, points[near]), -2, 2)
        if case.recurrence:
            pattern += texture * FULL_CONTRAST * rim
        weight = here * (here >= 0.5)
        pattern -= (pattern * weight).sum() / max(weight.sum(), 1e-6)
        relative[near] = np.where(here > 0, 1 + pattern, relative[near])
        share[near] = np.maximum(share[near], here)
    return share, share >= 0.5, relative


def _vessel_share(case: Case, shape: tuple[int, ...], affine: np.ndarray, voxel: float) -> np.ndarray:
    """Each voxel's share of vessel, (x*y*z,): tubes, fainter where a voxel is larger than they are."""
    share = np.zeros(shape, np.float32)
    path = np.concatenate([*case.vessels, np.zeros((0, 3))]) + case.place
    index = (path - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T  # (n, 3) voxels
    radius = VESSEL_RADIUS_MM
    wide = max(radius, voxel / 2) + voxel / 2
    reach = np.ceil(wide / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    around = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1).reshape(-1, 3)
    near = np.rint(index).astype(int)[:, None] + around  # (n, k, 3)
    distance = np.linalg.norm((near - index[:, None]) @ affine[:3, :3].T, axis=2)
    value = min(1.0, np.pi * radius**2 / voxel**2) * np.clip((wide - distance) / voxel, 0, 1)
    inside = ((near >= 0) & (near < shape)).all(2)
    np.maximum.at(share, tuple(near[inside].T), value[inside].astype(np.float32))
    return share.ravel()


def _points(shape: tuple[int, ...], affine: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(x*y*z, 3) float32: the voxels' centres in the patient, mm."""
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)  # (3, x*y*z)
    return (index.T @ affine[:3, :3].T + (affine[:3, 3] - place)).astype(np.float32)


def _sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A random field of unit knots (26, 26, 26), KNOT_MM apart, read smoothly at points (n, 3): about unit spread."""
    return 3 * ndimage.map_coordinates(field, points.T / KNOT_MM + 12.5, order=3, mode="nearest", prefilter=False)


def _soften(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What a voxel's neighbours add to it in a scanner; (x*y*z,) to (x*y*z,)."""
    return ndimage.gaussian_filter(volume.reshape(shape), 0.45, truncate=3).ravel()


def _blend(below: np.ndarray, above, share: np.ndarray) -> np.ndarray:
    return below + share * (above - below)
