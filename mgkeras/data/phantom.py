"""A synthetic cohort: breast DCE-MR exams as NIfTI files whose outcomes are known to be readable, and from where.

Every length is in mm and belongs to the patient, not to the grid: one breast in a field of view of 96 mm, a tumour 18
to 28 mm across (the smaller of two: 12 to 16). ``side`` only says how finely it is scanned: 96 / side mm in plane,
slices 1.3 to 1.5 times as thick. A network whose maps have side / 8 cells a side (three pools) sees a cell as 8 voxels
of the cube, so at side 48 (voxels of 2 mm, cells of 16 mm) a tumour is 9 to 14 voxels or 1.1 to 1.75 cells across.

What the labels are written in:
    recurrence: the tumour's texture. 1 is a bright rim around a darker core, 0 is homogeneous. Size and mean
        enhancement follow one distribution, so neither gives the label away.
    her2: the tumour's shape, 1 lobulated and 0 smooth (and washout from T1 to T2, which T1 alone does not show).
    age, site: nothing. The site is the scanner's geometry and gain: north axial, south sagittal.
The spot at the chest wall (``shortcut``) is what a network should not look at.

Coordinates are RAS+ mm from the middle of the field of view: x grows to the patient's right, y to the front (the
nipple), z to the head. Arrays of points are (n, 3) in them.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

TEXTURE = 0.6  # rim against core, 0 none to 1 strong; chosen on the no-mask model alone
FULL_CONTRAST = 0.45  # rim minus core at texture 1, in shares of the mean enhancement; more and the core misses 70 %
CORE = 0.65  # the core's radius in shares of the tumour's
FIELD_OF_VIEW_MM = 96.0
CELL_VOXELS = 8  # a map's cell after three pools, in voxels of the cube
SPOT_GAP_MM = 18.0  # from the tumour's farthest reach to the spot's edge, at least
LOBE = 0.45  # height of a lobe in shares of the radius
BREAST_CENTRE = np.array([0.0, -32.0, 0.0])  # the base of the half ellipsoid, on the chest wall
BREAST_AXES = np.array([43.0, 72.0, 43.0])
NOISE = 9.0  # sigma of the Rician noise, where fat is 170
# T0 signal of a fat-suppressed T1-weighted scan, and early enhancement (T1 - T0) / T0
TISSUE = {"air": (0, 0), "fat": (170, 0.05), "gland": (300, 0.20), "skin": (250, 0.20), "muscle": (290, 0.20),
          "rib": (130, 0.10), "lung": (45, 0.20)}
VESSEL = (230, 2.4)  # brighter than any tumour, were it not thinner than a voxel
SPOT = (1300, 0.0)  # bright before contrast too, like an artefact: brighter than any tumour
VESSEL_RADIUS_MM = 0.9
KNOT_MM = 5.0  # of the random fields that gland and texture vary by
# a file's axis order, which axis counts slices, how thick they are in shares of the in-plane spacing
VIEWS = {"north": (("LPS", 2, 1.3), ("LAS", 2, 1.3)), "south": (("PSR", 2, 1.5), ("RSA", 0, 1.5))}
GAINS = {"north": 1.0, "south": 1.6}


@dataclass(frozen=True)
class Tumour:
    """A lobulated ellipsoid: `radius` mm is that of the sphere of equal volume, `reach` mm its farthest point's."""

    centre: np.ndarray  # (3,) mm
    radius: float
    axes: np.ndarray  # (3, 3), mm -> the round tumour's coordinates; determinant 1
    lobes: np.ndarray  # (n, 3) unit vectors; none: smooth
    reach: float


@dataclass(frozen=True)
class Case:
    """All that is drawn for a subject but its noise; how finely it is scanned does not change it."""

    name: str
    site: str
    age: int
    recurrence: int
    her2: int
    her2_known: bool
    tumours: tuple[Tumour, ...]
    spot: bool
    spot_centre: np.ndarray  # (3,) mm, drawn for those without a spot too
    spot_radius: float
    spot_gap: float
    vessels: tuple[np.ndarray, ...]  # each (n, 3) mm, a point every half mm or closer
    enhancement: float  # the tumour's mean, (T1 - T0) / T0
    tumour_t0: float
    code: str  # the file's axis order
    slice_axis: int
    thickness: float  # in shares of the in-plane spacing
    turn: np.ndarray  # (3, 3) rotation of the grid against the patient
    place: np.ndarray  # (3,) mm, the field of view's middle in the scanner


def make_phantom(
    out: str | Path,
    subjects: int = 100,
    side: int = 48,
    seed: int = 0,
    shortcut: float = 0.5,
    texture: float = TEXTURE,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic cohort. The same arguments write the same bytes; a subject depends on seed and index only.

    Args:
        out: folder to write to: cohort.csv, images/SUBJECT_{pre,early,late}.nii.gz (int16), and beside the cohort
            truth/SUBJECT.nii.gz (uint8 0/1, the grid of T1) and truth/truth.csv (tumour size in voxels of the cube
            and in map cells, spot, geometry).
        subjects: how many.
        side: voxels along the longest side of an exam; 16 or more.
        seed: another seed, other patients.
        shortcut: probability that the spot's presence agrees with `recurrence`: 0.95 is a trap, 0.5 harmless.
        texture: contrast of rim against core, 0 (none) to 1 (strong).
        progress: called with (subjects done, subjects) after each.

    Returns:
        The path of cohort.csv.

    Raises:
        ValueError: for an argument out of range.
        FileExistsError: if `out` holds a cohort.csv that is not a phantom's.
    """
    out = Path(out)
    _check(subjects=subjects, side=side, seed=seed, shortcut=shortcut, texture=texture)
    if (out / "cohort.csv").exists() and not (out / "truth" / "truth.csv").exists():
        raise FileExistsError(f"a phantom is written only over a phantom. Received: {out / 'cohort.csv'}, which is "
                              "another cohort. Name a new folder.")
    (out / "cohort.csv").unlink(missing_ok=True)  # an interrupted phantom has none, rather than one of mixed patients
    for folder in ("images", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    cohort, truth = [], []
    for index in range(subjects):
        case = draw_case(seed, index, shortcut)
        phases, mask, affine = scan(case, side, texture, _rng(seed, 0, index, 1))
        row = {"subject": case.name}
        for phase, volume in phases.items():
            row[phase] = f"images/{case.name}_{phase}.nii.gz"
            _write(volume, affine, out / row[phase])
        _write(mask.astype(np.uint8), affine, out / "truth" / f"{case.name}.nii.gz")
        her2 = case.her2 if case.her2_known else ""
        cohort.append({**row, "site": case.site, "age": case.age, "recurrence": case.recurrence, "her2": her2})
        truth.append(_truth_row(case, side, mask, affine))
        if progress:
            progress(index + 1, subjects)
    _write_table(out / "truth" / "truth.csv", truth)
    return _write_table(out / "cohort.csv", cohort)


def draw_case(seed: int, index: int, shortcut: float) -> Case:
    """Draw subject `index`: labels in even shares over every few subjects, the rest at random."""
    rng = _rng(seed, 0, index, 0)
    site = "north" if _share(seed, index, 0, 4) < 0.5 else "south"
    recurrence = int(_share(seed, index, 1, 4) < 0.45)
    her2 = int(_share(seed, index, 2, 4) < 0.42)
    agrees = _share(seed, index, 3, 20) < shortcut
    tumours, spot_centre, spot_radius, gap = _draw_places(rng, her2, two=_share(seed, index, 4, 20) < 0.15)
    code, slice_axis, thickness = VIEWS[site][rng.integers(2)]
    angle = rng.uniform(4, 10) * rng.choice([-1, 1]) if _share(seed, index, 5, 4) < 0.5 else 0.0
    return Case(
        name=f"P{index:04d}", site=site, age=int(rng.integers(28, 76)), recurrence=recurrence, her2=her2,
        her2_known=bool(_share(seed, index, 6, 20) >= 0.05), tumours=tumours, spot=bool(agrees) == bool(recurrence),
        spot_centre=spot_centre, spot_radius=spot_radius, spot_gap=gap, vessels=_draw_vessels(rng, tumours),
        enhancement=rng.uniform(1.4, 1.8), tumour_t0=rng.uniform(240, 290), code=code, slice_axis=slice_axis,
        thickness=thickness, turn=_rotation(_unit(rng), np.radians(angle)), place=rng.uniform(-60, 60, 3).round(1),
    )


def scan(case: Case, side: int, texture: float, rng: np.random.Generator) -> tuple[dict, np.ndarray, np.ndarray]:
    """Scan a case.

    Returns:
        T0, T1, T2 by column name (int16, the file's axis order case.code, arbitrary scanner units >= 0), the tumours'
        mask (bool, same shape) and the affine (4, 4), voxel -> RAS+ mm.
    """
    shape, affine = _grid(case, side)
    points = _points(shape, affine, case.place)  # (x*y*z, 3) mm
    voxel = float(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
    fields = rng.standard_normal((2, 26, 26, 26), dtype=np.float32)
    t0, early = (_soften(part, shape) for part in _anatomy(points, fields[0]))
    wash = np.full_like(t0, 1.1)  # T2's enhancement in shares of T1's
    share = _vessel_share(case, shape, affine, voxel)
    t0, early = _blend(t0, VESSEL[0], share), _blend(early, VESSEL[1], share)
    share, mask, relative = _tumour(case, points, voxel, texture, fields[1])
    t0, early = _blend(t0, case.tumour_t0, share), _blend(early, case.enhancement * relative, share)
    wash = _blend(wash, 0.72 if case.her2 else 1.0, share)
    if case.spot:
        reach = np.linalg.norm(points - case.spot_centre.astype(np.float32), axis=1)
        share = np.clip(0.5 + (case.spot_radius - reach) / voxel, 0, 1)
        t0, early = _blend(t0, SPOT[0], share), _blend(early, SPOT[1], share)
    gain = GAINS[case.site] * np.exp(-0.0025 * points[:, 1] - 4e-5 * points[:, 0] ** 2)  # coils: brighter at the wall
    phases = {}
    for name, factor in (("pre", 0.0), ("early", 1.0), ("late", wash)):
        noise = rng.standard_normal((2, t0.size), dtype=np.float32) * NOISE
        signal = np.hypot(t0 * (1 + early * factor) + noise[0], noise[1])  # magnitude of a complex signal: Rician
        phases[name] = np.clip(np.rint(gain * signal), 0, 32767).astype(np.int16).reshape(shape)
    return phases, mask.reshape(shape), affine


def _anatomy(points: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """T0 signal and early enhancement, each (n,), without tumour, vessels and spot."""
    x, y, z = points.T
    outside = np.sqrt((((points - BREAST_CENTRE) / BREAST_AXES) ** 2).sum(1))  # 1 on the breast's surface
    wall = _wall(x, z)
    depth = np.maximum((1 - outside) * 45, wall + 7 - y)  # mm under the skin, roughly
    gland = _sample(field, points) - 2.2 * (outside - 0.55) - np.maximum(0, (wall + 10 - y) / 6)
    ribs = np.cos(z * 2 * np.pi / 26 + x / 14)
    tissue = np.select(
        [depth < 0, (depth < 2) & (y > wall), y < wall - 15, (y < wall - 8) & (ribs > 0.45), y < wall],
        [0, 1, 2, 3, 4], 5)
    names = ("air", "skin", "lung", "rib", "muscle", "fat")
    t0, early = np.array([TISSUE[name] for name in names], np.float32).T[:, tissue]
    share = np.where(tissue == 5, np.clip(0.5 + 2 * gland, 0, 1), 0)
    t0, early = _blend(t0, TISSUE["gland"][0], share), _blend(early, TISSUE["gland"][1], share)
    return t0 * (1 + 0.05 * _sample(field[::-1], points)), early


def _wall(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """y of the chest wall's front, mm: the chest is round from side to side."""
    return -29 - 0.006 * x**2 - 0.001 * z**2


def _tumour(case: Case, points: np.ndarray, voxel: float, texture: float, field: np.ndarray):
    """Each voxel's share of tumour, the mask (half of it or more) and enhancement over its mean, all (n,)."""
    share, relative = np.zeros(len(points), np.float32), np.ones(len(points), np.float32)
    for tumour in case.tumours:
        near = np.flatnonzero(((points - tumour.centre) ** 2).sum(1) < (tumour.reach + 2 * voxel) ** 2)
        ball = (points[near] - tumour.centre) @ tumour.axes.T
        reach = np.linalg.norm(ball, axis=1) + 1e-6
        surface = tumour.radius * _relief(ball / reach[:, None], tumour.lobes)
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


def _relief(directions: np.ndarray, lobes: np.ndarray) -> np.ndarray:
    """The surface's distance from the centre toward unit vectors (n, 3), for a volume of a unit ball."""
    if not len(lobes):
        return np.ones(len(directions), np.float32)
    height, overall = (1 + LOBE * np.exp(14 * (unit @ lobes.T - 1)).max(1) for unit in (directions, _sphere()))
    return height / np.cbrt((overall**3).mean())


def _sphere(count: int = 600) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over the sphere (Fibonacci's spiral)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    around = np.arange(count) * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sqrt(1 - z**2) * np.cos(around), np.sqrt(1 - z**2) * np.sin(around), z], 1)


def _draw_places(rng: np.random.Generator, her2: int, two: bool) -> tuple[tuple[Tumour, ...], np.ndarray, float, float]:
    """Tumours within the breast and apart, and a place for the spot far from them: drawn anew until all hold."""
    diameters = (rng.uniform(18, 21), rng.uniform(12, 16)) if two else (rng.uniform(18, 28),)
    tumours = [_draw_tumour(rng, diameter / 2, her2) for diameter in diameters]
    radius = rng.uniform(5, 7)
    for _ in range(10_000):
        centres = rng.uniform((-26, -14, -26), (26, 22, 26), (len(tumours), 3))
        reach = np.array([tumour.reach for tumour in tumours])
        fits = (((centres - BREAST_CENTRE) / (BREAST_AXES - reach[:, None] - 3)) ** 2).sum(1) < 1
        fits &= centres[:, 1] > -29 + reach + 3
        x, z = rng.uniform(-30, 30, 2)
        spot = np.array([x, _wall(x, z) - 4, z])
        gap = float((np.linalg.norm(centres - spot, axis=1) - reach).min() - radius)
        apart = len(tumours) == 1 or np.linalg.norm(centres[0] - centres[1]) > reach.sum() + 3
        if fits.all() and apart and gap >= SPOT_GAP_MM:
            placed = (Tumour(c, t.radius, t.axes, t.lobes, t.reach) for c, t in zip(centres, tumours, strict=True))
            return tuple(placed), spot, radius, gap
    raise RuntimeError("no room for the tumours and the spot: the phantom's constants contradict each other")


def _draw_tumour(rng: np.random.Generator, radius: float, her2: int) -> Tumour:
    """A tumour's shape, at no place yet."""
    stretch = np.exp(rng.uniform(-0.12, 0.12, 3))
    axes = np.diag(np.cbrt(stretch.prod()) / stretch) @ _rotation(_unit(rng), rng.uniform(0, np.pi))
    lobes = _sphere(7) @ _rotation(_unit(rng), rng.uniform(0, np.pi)) if her2 else np.zeros((0, 3))
    farthest = (_relief(_sphere(), lobes) / np.linalg.norm(_sphere() @ axes.T, axis=1)).max()
    return Tumour(np.zeros(3), radius, axes, lobes, float(radius * max(farthest, 1)))


def _draw_vessels(rng: np.random.Generator, tumours: tuple[Tumour, ...]) -> tuple[np.ndarray, ...]:
    """Up to five bent tubes from the chest wall to the front, apart: where they crossed they would not be thin.

    They pass the tumours at 5 mm or more, but for one that feeds the tumour in one subject of six.
    """
    vessels, wanted = [], rng.integers(3, 6)
    feeding = rng.random() < 1 / 6
    for _ in range(200):
        (x0, z0), (x2, z2) = rng.uniform(-34, 34, (2, 2))
        stops = np.array([[x0, -26, z0], [*rng.uniform((-40, -10), (40, 30))] + [rng.uniform(-40, 40)],
                          [x2 * 0.6, rng.uniform(5, 24), z2 * 0.6]])
        t = np.linspace(0, 1, 300)[:, None]
        path = (1 - t) ** 2 * stops[0] + 2 * t * (1 - t) * stops[1] + t**2 * stops[2]  # (300, 3)
        path += 1.5 * np.sin(t * rng.uniform(10, 20, 3) + rng.uniform(0, 6, 3))
        free = all(np.linalg.norm(path - tumour.centre, axis=1).min() > tumour.reach + 5 for tumour in tumours)
        within = ((((path - BREAST_CENTRE) / (BREAST_AXES - 4)) ** 2).sum(1) < 1).all()
        apart = all(cdist(path[::10], other[::10]).min() > 7 for other in vessels)
        if within and apart and (free or feeding):
            feeding &= free
            vessels.append(path)
        if len(vessels) == wanted:
            break
    return tuple(vessels)


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


def _grid(case: Case, side: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine (4, 4) of the scan: the case's axis order, thick slices, turned, its middle at case.place."""
    zooms = np.full(3, FIELD_OF_VIEW_MM / side)
    zooms[case.slice_axis] *= case.thickness
    shape = np.rint(FIELD_OF_VIEW_MM / zooms).astype(int)
    axes = np.zeros((3, 3))
    for column, letter in enumerate(case.code):
        pair = next(n for n, letters in enumerate(("LR", "PA", "IS")) if letter in letters)
        axes[pair, column] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = case.turn @ axes * zooms
    affine[:3, 3] = case.place - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(int(n) for n in shape), affine


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


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) rotation about a unit vector (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _unit(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _share(seed: int, index: int, what: int, block: int) -> float:
    """A number in [0, 1) for a subject that fills [0, 1) evenly over every `block` subjects."""
    rng = _rng(seed, 1, what, index // block)
    return float((rng.permutation(block)[index % block] + rng.random(block)[index % block]) / block)


def _truth_row(case: Case, side: int, mask: np.ndarray, affine: np.ndarray) -> dict:
    voxels = 2 * case.tumours[0].radius / (FIELD_OF_VIEW_MM / side)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    return {
        "subject": case.name, "tumours": len(case.tumours), "volume_mm3": round(float(mask.sum() * zooms.prod()), 1),
        "diameter_mm": round(2 * case.tumours[0].radius, 1), "diameter_voxels": round(voxels, 1),
        "diameter_cells": round(voxels / CELL_VOXELS, 2), "cell_voxels": CELL_VOXELS, "spot": int(case.spot),
        "spot_gap_mm": round(case.spot_gap, 1) if case.spot else "", "axes": case.code,
        "oblique_degrees": round(float(np.degrees(np.arccos(min(1, (np.trace(case.turn) - 1) / 2)))), 1),
        "her2": case.her2,
    }


def _write(volume: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """A NIfTI with no time and no name in its gzip header, so that the same voxels are the same bytes."""
    import nibabel

    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _check(subjects: int, side: int, seed: int, shortcut: float, texture: float) -> None:
    for name, value, low, high in (("subjects", subjects, 1, 9999), ("side", side, 16, 512), ("seed", seed, 0, 2**32),
                                   ("shortcut", shortcut, 0, 1), ("texture", texture, 0, 1)):
        if not low <= value <= high:
            raise ValueError(f"{name} of a phantom must be {low} to {high}. Received: {value!r}")
