"""What a phantom's patient is made of: labels, tumours, vessels and traps, drawn in mm from a seed.

Coordinates are RAS+ mm from the middle of the field of view, as in phantom_scan.py, which scans what is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.spatial.distance import cdist

from mgkeras.phantom import traps

FIELD_OF_VIEW_MM = 96.0
CELL_VOXELS = 8  # a map's cell after three pools, in voxels of the cube
SPOT_GAP_MM = 18.0  # from the tumour's farthest reach to the spot's edge, at least
LOBE = 0.45  # height of a lobe in shares of the radius
BREAST_CENTRE = np.array([0.0, -32.0, 0.0])  # the base of the half ellipsoid, on the chest wall
BREAST_AXES = np.array([43.0, 72.0, 43.0])
VIEWS = {"north": (("LPS", 2), ("LAS", 2)), "south": (("PSR", 2), ("RSA", 0))}  # axis order, which axis counts slices
NORTH_SLICES = 1.3  # in shares of the in-plane spacing
SHARES = {"spot": 3} | {trap: 10 + place for place, trap in enumerate(traps.TRAPS) if trap != "spot"}  # see _share


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
    traps: dict[str, bool]  # of those that the phantom has: whether it is on
    spot_centre: np.ndarray  # (3,) mm, drawn for those without a spot too
    spot_radius: float
    spot_gap: float
    near_centre: np.ndarray  # (3,) mm, drawn for everybody too
    near_radius: float
    near_gap: float
    vessels: tuple[np.ndarray, ...]  # each (n, 3) mm, a point every half mm or closer
    enhancement: float  # the tumour's mean, (early - pre) / pre
    tumour_t0: float
    view: int  # which of the site's views
    code: str  # the file's axis order
    slice_axis: int
    thickness: float  # in shares of the in-plane spacing
    turn: np.ndarray  # (3, 3) rotation of the grid against the patient
    place: np.ndarray  # (3,) mm, the field of view's middle in the scanner


def draw_case(
    seed: int, index: int, has: Iterable[str] = (), agreement: float = 0.95, size_with_label: float = 0.0
) -> Case:
    """Draw subject `index`: labels and traps in even shares over every few subjects, the rest at random.

    Args:
        seed, index: of the phantom and the subject.
        has: the phantom's traps. They move no other random number: the same patient is drawn with and without them.
        agreement: the probability that a trap is on exactly where recurrence is 1, each trap for itself.
        size_with_label: see make_phantom.
    """
    rng = stream(seed, 0, index, 0)
    hidden = _share(seed, index, 1, 4)
    recurrence, her2 = int(hidden < 0.45), int(_share(seed, index, 2, 4) < 0.42)
    on = {trap: (_share(seed, index, SHARES[trap], 20) < agreement) == bool(recurrence) for trap in traps.in_order(has)}
    tied = _share(seed, index, 7, 20) < size_with_label
    tumours, spot_centre, spot_radius, gap = _draw_places(
        rng, her2, two=_share(seed, index, 4, 20) < 0.15, rank=1 - hidden if tied else None
    )
    near_centre, near_radius, near_gap = _draw_near(stream(seed, 0, index, 2), tumours)
    view = int(rng.integers(2))
    angle = rng.uniform(4, 10) * rng.choice([-1, 1]) if _share(seed, index, 5, 4) < 0.5 else 0.0
    case = Case(
        name=f"P{index:04d}",
        site="",
        age=int(rng.integers(28, 76)),
        recurrence=recurrence,
        her2=her2,
        her2_known=bool(_share(seed, index, 6, 20) >= 0.05),
        tumours=tumours,
        traps=on,
        spot_centre=spot_centre,
        spot_radius=spot_radius,
        spot_gap=gap,
        near_centre=near_centre,
        near_radius=near_radius,
        near_gap=near_gap,
        vessels=_draw_vessels(rng, tumours),
        enhancement=rng.uniform(1.4, 1.8),
        tumour_t0=rng.uniform(240, 290),
        view=view,
        code="",
        slice_axis=0,
        thickness=1.0,
        turn=_rotation(_unit(rng), np.radians(angle)),
        place=rng.uniform(-60, 60, 3).round(1),
    )
    return at_site(case, "south" if on.get("site", _share(seed, index, 0, 4) >= 0.5) else "north")


def at_site(case: Case, site: str) -> Case:
    """The same patient at another site's scanner."""
    code, slice_axis = VIEWS[site][case.view]
    thickness = {"north": NORTH_SLICES, "south": traps.SOUTH_SLICES}[site]
    return replace(case, site=site, code=code, slice_axis=slice_axis, thickness=thickness)


def with_state(case: Case, trap: str, on: bool) -> Case:
    """The same patient with a trap on or off."""
    case = replace(case, traps={**case.traps, trap: bool(on)})
    return at_site(case, "south" if on else "north") if trap == "site" else case


def _draw_places(
    rng: np.random.Generator, her2: int, two: bool, rank: float | None
) -> tuple[tuple[Tumour, ...], np.ndarray, float, float]:
    """Tumours within the breast and apart, and a place for the spot far from them: drawn anew until all hold."""
    diameters: tuple[float, ...]
    diameters = (rng.uniform(18, 21), rng.uniform(12, 16)) if two else (rng.uniform(18, 28),)
    if rank is not None:
        diameters = _sizes()[min(int(rank * len(_sizes())), len(_sizes()) - 1)]
    tumours = [_draw_tumour(rng, diameter / 2, her2) for diameter in diameters]
    radius = rng.uniform(5, 7)
    for _ in range(10_000):
        centres = rng.uniform((-26, -14, -26), (26, 22, 26), (len(tumours), 3))
        reach = np.array([tumour.reach for tumour in tumours])
        fits = (((centres - BREAST_CENTRE) / (BREAST_AXES - reach[:, None] - 3)) ** 2).sum(1) < 1
        fits &= centres[:, 1] > -29 + reach + 3
        x, z = rng.uniform(-30, 30, 2)
        spot = np.array([x, chest_wall(x, z) - 4, z])
        gap = float((np.linalg.norm(centres - spot, axis=1) - reach).min() - radius)
        apart = len(tumours) == 1 or np.linalg.norm(centres[0] - centres[1]) > reach.sum() + 3
        if fits.all() and apart and gap >= SPOT_GAP_MM:
            placed = (Tumour(c, t.radius, t.axes, t.lobes, t.reach) for c, t in zip(centres, tumours, strict=True))
            return tuple(placed), spot, radius, gap
    raise AssertionError("no room for the tumours and the spot: the phantom's constants contradict each other")


@cache
def _sizes() -> tuple[tuple[float, ...], ...]:
    """The tumours' diameters of 2000 patients that stand for all, in the order of their volume."""
    ten, thirty, many = ((np.arange(n) + 0.5) / n for n in (10, 30, 1700))
    single, double = [(18 + 10 * a,) for a in many], [(18 + 3 * a, 12 + 4 * b) for a in ten for b in thirty]
    return tuple(sorted([*single, *double], key=lambda diameters: sum(d**3 for d in diameters)))


def _draw_near(rng: np.random.Generator, tumours: tuple[Tumour, ...]) -> tuple[np.ndarray, float, float]:
    """A ball in the breast just beside the first tumour: centre, radius and its gap to any tumour's surface, mm."""
    radius, gap = rng.uniform(*traps.NEAR_RADII_MM), rng.uniform(*traps.NEAR_GAPS_MM)
    first, surface = tumours[0], np.concatenate([_surface(tumour) for tumour in tumours])
    for _ in range(1000):
        toward = _unit(rng)
        ball = first.axes @ toward
        edge = first.radius * relief(ball[None] / np.linalg.norm(ball), first.lobes)[0] / np.linalg.norm(ball)
        path = first.centre + (edge + np.arange(radius + gap, 4 * (radius + gap), 0.1))[:, None] * toward  # (n, 3)
        for step in (10, 1):  # coarsely, then finely where it is first clear
            clear = cdist(path[::step], surface).min(1) >= radius + gap
            at = step * int(np.argmax(clear))
            path = path[max(at - step, 0) : at + 1]
        centre = path[-1]
        within = (((centre - BREAST_CENTRE) / (BREAST_AXES - radius - 2)) ** 2).sum() < 1
        if clear.any() and within and centre[1] > chest_wall(centre[0], centre[2]) + radius:
            return centre, radius, float(cdist(centre[None], surface).min() - radius)
    raise AssertionError("no room for a ball near the tumour: the phantom's constants contradict each other")


def _surface(tumour: Tumour) -> np.ndarray:
    """(600, 3) points of a tumour's surface, mm."""
    ball = _sphere() * (tumour.radius * relief(_sphere(), tumour.lobes))[:, None]
    return tumour.centre + ball @ np.linalg.inv(tumour.axes).T


def _draw_tumour(rng: np.random.Generator, radius: float, her2: int) -> Tumour:
    """A tumour's shape, at no place yet."""
    stretch = np.exp(rng.uniform(-0.12, 0.12, 3))
    axes = np.diag(np.cbrt(stretch.prod()) / stretch) @ _rotation(_unit(rng), rng.uniform(0, np.pi))
    lobes = _sphere(7) @ _rotation(_unit(rng), rng.uniform(0, np.pi)) if her2 else np.zeros((0, 3))
    farthest = (relief(_sphere(), lobes) / np.linalg.norm(_sphere() @ axes.T, axis=1)).max()
    return Tumour(np.zeros(3), radius, axes, lobes, float(radius * max(farthest, 1)))


def _draw_vessels(rng: np.random.Generator, tumours: tuple[Tumour, ...]) -> tuple[np.ndarray, ...]:
    """Up to five bent tubes from the chest wall to the front, apart: where they crossed they would not be thin.

    They pass the tumours at 5 mm or more, but for one that feeds the tumour in one subject of six.
    """
    wanted = rng.integers(3, 6)
    vessels: list[np.ndarray] = []
    feeding = rng.random() < 1 / 6
    for _ in range(200):
        (x0, z0), (x2, z2) = rng.uniform(-34, 34, (2, 2))
        stops = np.array(
            [
                [x0, -26, z0],
                [*rng.uniform((-40, -10), (40, 30))] + [rng.uniform(-40, 40)],
                [x2 * 0.6, rng.uniform(5, 24), z2 * 0.6],
            ]
        )
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


def scan_grid(case: Case, side: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine (4, 4) of a scan: the case's axis order, thick slices, turned, its middle at case.place."""
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


def truth_row(case: Case, side: int, mask: np.ndarray, affine: np.ndarray) -> dict:
    """A case's row of truth.csv, given the mask and affine it was scanned with."""
    voxels = 2 * case.tumours[0].radius / (FIELD_OF_VIEW_MM / side)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    gaps = {trap: gap for trap, gap in (("spot", case.spot_gap), ("near", case.near_gap)) if trap in case.traps}
    return {
        "subject": case.name,
        "tumours": len(case.tumours),
        "volume_mm3": round(float(mask.sum() * zooms.prod()), 1),
        "diameter_mm": round(2 * case.tumours[0].radius, 1),
        "diameter_voxels": round(voxels, 1),
        "diameter_cells": round(voxels / CELL_VOXELS, 2),
        "cell_voxels": CELL_VOXELS,
        **{trap: int(on) for trap, on in case.traps.items()},
        **{f"{trap}_gap_mm": round(gap, 1) if case.traps[trap] else "" for trap, gap in gaps.items()},
        "axes": case.code,
        "oblique_degrees": round(float(np.degrees(np.arccos(min(1, (np.trace(case.turn) - 1) / 2)))), 1),
        "her2": case.her2,
    }


def chest_wall(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """y of the chest wall's front, mm: the chest is round from side to side."""
    return -29 - 0.006 * x**2 - 0.001 * z**2


def relief(directions: np.ndarray, lobes: np.ndarray) -> np.ndarray:
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


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) rotation about a unit vector (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _unit(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def stream(seed: int, *key: int) -> np.random.Generator:
    """The random numbers of one purpose: the same seed and key, the same numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _share(seed: int, index: int, what: int, block: int) -> float:
    """A number in [0, 1) for a subject that fills [0, 1) evenly over every `block` subjects."""
    rng = stream(seed, 1, what, index // block)
    return float((rng.permutation(block)[index % block] + rng.random(block)[index % block]) / block)
