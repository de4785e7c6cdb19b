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
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from mgkeras.data.files import written_whole
from mgkeras.data.phantom_case import (
    BREAST_AXES,
    BREAST_CENTRE,
    Case,
    chest_wall,
    draw_case,
    relief,
    scan_grid,
    stream,
    truth_row,
)
from mgkeras.data.volume import Volume, oriented

FORMAT = 1  # of truth/phantom.json; to be raised wherever the same arguments come to make other voxels
TEXTURE = 0.6  # rim against core, 0 none to 1 strong; chosen on the no-mask model alone
FULL_CONTRAST = 0.45  # rim minus core at texture 1, in shares of the mean enhancement; more and the core misses 70 %
CORE = 0.65  # the core's radius in shares of the tumour's
NOISE = 9.0  # sigma of the Rician noise, where fat is 170
# T0 signal of a fat-suppressed T1-weighted scan, and early enhancement (T1 - T0) / T0
TISSUE = {"air": (0, 0), "fat": (170, 0.05), "gland": (300, 0.20), "skin": (250, 0.20), "muscle": (290, 0.20),
          "rib": (130, 0.10), "lung": (45, 0.20)}
VESSEL = (230, 2.4)  # brighter than any tumour, were it not thinner than a voxel
SPOT = (1300, 0.0)  # bright before contrast too, like an artefact: brighter than any tumour
VESSEL_RADIUS_MM = 0.9
KNOT_MM = 5.0  # of the random fields that gland and texture vary by
GAINS = {"north": 1.0, "south": 1.6}


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
            truth/SUBJECT.nii.gz (uint8 0/1, the grid of T1), truth/truth.csv (tumour size in voxels of the cube
            and in map cells, spot, geometry) and truth/phantom.json (the arguments, for :func:`with_spot`).
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
    for name in ("cohort.csv", "truth/phantom.json"):
        (out / name).unlink(missing_ok=True)  # an interrupted phantom has none, rather than one of mixed patients
    for folder in ("images", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    cohort, truth = [], []
    for index in range(subjects):
        case = draw_case(seed, index, shortcut)
        phases, mask, affine = scan(case, side, texture, stream(seed, 0, index, 1))
        row = {"subject": case.name}
        for phase, volume in phases.items():
            row[phase] = f"images/{case.name}_{phase}.nii.gz"
            _write(volume, affine, out / row[phase])
        _write(mask.astype(np.uint8), affine, out / "truth" / f"{case.name}.nii.gz")
        her2 = case.her2 if case.her2_known else ""
        cohort.append({**row, "site": case.site, "age": case.age, "recurrence": case.recurrence, "her2": her2})
        truth.append(truth_row(case, side, mask, affine))
        if progress:
            progress(index + 1, subjects)
    _write_table(out / "truth" / "truth.csv", truth)
    made_from = {"format": FORMAT, "seed": int(seed), "side": int(side), "shortcut": float(shortcut),
                 "texture": float(texture)}  # fmt: skip
    (out / "truth" / "phantom.json").write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    return _write_table(out / "cohort.csv", cohort)


def phantom_folder(early: Path) -> Path | None:
    """The phantom (the folder of its cohort.csv) that a subject's T1 file belongs to; None for any other file."""
    folder = early.parent.parent
    return folder if early.parent.name == "images" and (folder / "truth" / "phantom.json").is_file() else None


def has_spot(folder: str | Path) -> dict[str, bool] | None:
    """{subject: whether it has the spot} of a phantom; None for a folder that is none, or one of another format."""
    truth = Path(folder) / "truth"
    if not ((truth / "phantom.json").is_file() and (truth / "truth.csv").is_file()):
        return None
    if json.loads((truth / "phantom.json").read_text("utf-8"))["format"] != FORMAT:
        return None
    with (truth / "truth.csv").open(newline="", encoding="utf-8") as file:
        return {row["subject"]: row["spot"] == "1" for row in csv.DictReader(file)}


def with_spot(folder: str | Path, subject: str, spot: bool) -> Volume:
    """A phantom's subject scanned again, at T1, with the spot or without: all else is the same, noise included.

    Args:
        folder: of the phantom.
        subject: its name in cohort.csv.
        spot: whether the spot is there. As it was, the voxels are those of the file.

    Returns:
        T1 as volume.load_volume gives it: float32 in the file's units, RAS+.

    Raises:
        ValueError: for a folder that is no phantom of this format, or a subject that it does not hold.
    """
    import nibabel

    if subject not in (has_spot(folder) or {}):
        raise ValueError(f"expected a subject of a phantom that this version wrote. Received: {subject} in {folder}")
    made_from = json.loads((Path(folder) / "truth" / "phantom.json").read_text("utf-8"))
    seed, index = made_from["seed"], int(subject[1:])
    case = replace(draw_case(seed, index, made_from["shortcut"]), spot=bool(spot))
    phases, _, affine = scan(case, made_from["side"], made_from["texture"], stream(seed, 0, index, 1))
    image = nibabel.Nifti1Image.from_bytes(_image(phases["early"], affine).to_bytes())  # its affine rounded as a file's
    return oriented(image.get_fdata(dtype=np.float32), image.affine)


def scan(case: Case, side: int, texture: float, rng: np.random.Generator) -> tuple[dict, np.ndarray, np.ndarray]:
    """Scan a case.

    Returns:
        T0, T1, T2 by column name (int16, the file's axis order case.code, arbitrary scanner units >= 0), the tumours'
        mask (bool, same shape) and the affine (4, 4), voxel -> RAS+ mm.
    """
    shape, affine = scan_grid(case, side)
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
    wall = chest_wall(x, z)
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


def _write(volume: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """A NIfTI with no time and no name in its gzip header, so that the same voxels are the same bytes."""
    with written_whole(path) as part:
        part.write_bytes(gzip.compress(_image(volume, affine).to_bytes(), compresslevel=1, mtime=0))


def _image(volume: np.ndarray, affine: np.ndarray):
    """A volume as nibabel's Nifti1Image, in mm."""
    import nibabel

    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    return image


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
