"""A synthetic cohort: breast DCE-MR exams as NIfTI files whose outcomes are known to be readable, and from where.

Every length is in mm and belongs to the patient, not to the grid: one breast in a field of view of 96 mm, a tumour 18
to 28 mm across (the smaller of two: 12 to 16). ``side`` only says how finely it is scanned: 96 / side mm in plane,
slices 1.3 to 1.5 times as thick. A network whose maps have side / 8 cells a side (three pools) sees a cell as 8 voxels
of the cube, so at side 48 (voxels of 2 mm, cells of 16 mm) a tumour is 9 to 14 voxels or 1.1 to 1.75 cells across.

What the labels are written in:
    recurrence: the tumour's texture. 1 is a bright rim around a darker core, 0 is homogeneous. Size and mean
        enhancement follow one distribution, so neither gives the label away (unless ``size_with_label`` ties size).
    her2: the tumour's shape, 1 lobulated and 0 smooth (and washout from the early phase to the late phase, which the
        early phase alone does not show).
    age, site: nothing. The site is the scanner's geometry and gain: north axial, south sagittal.
What a network should not look at is in a phantom on demand (``traps``): each goes with recurrence as often as
``agreement`` says.
    spot: a bright ball at the chest wall, far from the tumour.
    marker: a bright block in the air, in a corner, as if burnt in.
    near: a bright ball just outside the tumour, 6 to 8 mm from its surface.
    bias: the coil's gain grows from left to right where it is on, from right to left where it is off.
    noise: the noise's level, in all phases.
    enhancement: the enhancement of everything but tumour and vessels, at the early and late phases.
    site: the scanner, south where it is on and north where it is off.

The patient is drawn in phantom_case.py and scanned in phantom_scan.py; traps.py says how strong the traps are.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mgkeras.data.io import written_whole
from mgkeras.data.nifti import image_of
from mgkeras.data.table import write_lines
from mgkeras.data.volume import Volume, oriented
from mgkeras.errors import InputError
from mgkeras.phantom.case import Case, draw_case, stream, truth_row, with_state
from mgkeras.phantom.scan import scan
from mgkeras.phantom.traps import in_order

FORMAT = 2  # of truth/phantom.json; to be raised wherever the same arguments come to make other voxels
TEXTURE = 0.6  # rim against core, 0 none to 1 strong; chosen on the no-mask model alone
RANGES = {
    "subjects": (1, 9999),
    "side": (16, 512),
    "seed": (0, 2**32),
    "agreement": (0, 1),
    "texture": (0, 1),
    "size_with_label": (0, 1),
}


def make_phantom(
    out: str | Path,
    subjects: int = 100,
    side: int = 48,
    seed: int = 0,
    *,
    traps: Iterable[str] = (),
    agreement: float = 0.95,
    texture: float = TEXTURE,
    size_with_label: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic cohort. The same arguments write the same bytes; a subject depends on seed and index only.

    Args:
        out: folder to write to: cohort.csv, images/SUBJECT_{pre,early,late}.nii.gz (int16), and beside the cohort
            truth/SUBJECT.nii.gz (uint8 0/1, the grid of the early phase), truth/truth.csv (tumour size in voxels of the
            cube and in map cells, each trap, geometry) and truth/phantom.json (the arguments, for
            :func:`phases_with_trap`).
        subjects: how many.
        side: voxels along the longest side of an exam; 16 or more.
        seed: another seed, other patients.
        traps: which of settings.TRAPS the cohort has, in any order.
        agreement: probability that a trap is on exactly where `recurrence` is 1; each trap agrees for itself. 0.95 is
            a trap, 0.5 harmless.
        texture: contrast of rim against core, 0 (none) to 1 (strong).
        size_with_label: R, the share of patients whose tumours' volume has the rank of a hidden number that the label
            is cut from (recurrence is 1 in its upper 45 %); the others' volume is drawn without it. So R is Spearman's
            correlation of volume and hidden number, and 2 AUC - 1 of volume and recurrence: 0 tells nothing, at 1
            every tumour of the one class is larger than all of the other. Sizes as such follow the same distribution
            (with it, at 1 nearly all who have two tumours, whose volume is middling, have recurrence 0).
        progress: called with (subjects done, subjects) after each.

    Returns:
        The path of cohort.csv.

    Raises:
        ValueError: for an argument out of range, or a trap that there is not.
        FileExistsError: if `out` holds a cohort.csv that is not a phantom's.
    """
    out = Path(out)
    made_from: dict[str, Any] = {
        "format": FORMAT,
        "seed": int(seed),
        "side": int(side),
        "traps": in_order(traps),
        "agreement": float(agreement),
        "texture": float(texture),
        "size_with_label": float(size_with_label),
    }
    _check(subjects=subjects, **{name: made_from[name] for name in RANGES if name != "subjects"})
    _clear(out)
    cohort, truth = [], []
    for index in range(subjects):
        case = _drawn(made_from, index)
        phases, mask, affine = _scanned(made_from, case)
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
    (out / "truth" / "phantom.json").write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    return _write_table(out / "cohort.csv", cohort)


def _clear(out: Path) -> None:
    """Folders for a phantom, and no trace that says an earlier one were whole."""
    if (out / "cohort.csv").exists() and not (out / "truth" / "truth.csv").exists():
        raise FileExistsError(
            f"a phantom is written only over a phantom. Received: {out / 'cohort.csv'}, which is "
            "another cohort. Name a new folder."
        )
    for name in ("cohort.csv", "truth/phantom.json"):
        (out / name).unlink(missing_ok=True)  # an interrupted phantom has none, rather than one of mixed patients
    for folder in ("images", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)


def _drawn(made_from: Mapping[str, Any], index: int) -> Case:
    """A subject of the phantom that was made from these arguments."""
    return draw_case(made_from["seed"], index, made_from["traps"], made_from["agreement"], made_from["size_with_label"])


def _scanned(made_from: Mapping[str, Any], case: Case) -> tuple[dict, np.ndarray, np.ndarray]:
    """What scan makes of a case, with the noise that the subject of that name has."""
    return scan(case, made_from["side"], made_from["texture"], stream(made_from["seed"], 0, int(case.name[1:]), 1))


def phantom_folder(early: Path) -> Path | None:
    """The phantom (the folder of its cohort.csv) that a subject's early file belongs to; None for any other file."""
    folder = early.parent.parent
    return folder if early.parent.name == "images" and (folder / "truth" / "phantom.json").is_file() else None


def _made_from(folder: str | Path) -> dict[str, Any] | None:
    """The arguments of a phantom; None for a folder that is none, or one of another format."""
    truth = Path(folder) / "truth"
    if not ((truth / "phantom.json").is_file() and (truth / "truth.csv").is_file()):
        return None
    made_from = json.loads((truth / "phantom.json").read_text("utf-8"))
    return made_from if made_from["format"] == FORMAT else None


def phantom_traps(folder: str | Path) -> dict[str, dict[str, bool]] | None:
    """{trap: {subject: whether it is on}} of the traps that a phantom was made with.

    None for a folder that is no phantom, or one of another format.
    """
    made_from = _made_from(folder)
    if made_from is None:
        return None
    rows = _truth(folder)
    return {trap: {row["subject"]: row[trap] == "1" for row in rows} for trap in made_from["traps"]}


def _truth(folder: str | Path) -> list[dict[str, str]]:
    """The rows of truth.csv."""
    with (Path(folder) / "truth" / "truth.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def phases_with_trap(folder: str | Path, subject: str, trap: str, on: bool) -> dict[str, Volume]:
    """A phantom's subject scanned again with a trap on or off: all else is the same, noise included.

    The site is another grid: there the noise has the same level, and other values.

    Args:
        folder: of the phantom.
        subject: its name in cohort.csv.
        trap: one of settings.TRAPS, also one that the phantom was not made with.
        on: whether it is on. As it was, the voxels are those of the file.

    Returns:
        Its phases by their columns, as volume.load_volume gives them: float32 in the file's units, RAS+.

    Raises:
        ValueError: for a folder that is no phantom of this format, a subject that it does not hold, or a trap that
            there is not.
    """
    (trap,), made_from = in_order([trap]), _made_from(folder)
    if made_from is None or subject not in [row["subject"] for row in _truth(folder)]:
        raise InputError(f"expected a subject of a phantom that this version wrote. Received: {subject} in {folder}")
    phases, _, affine = _scanned(made_from, with_state(_drawn(made_from, int(subject[1:])), trap, on))
    images = {  # their affines rounded as a file's
        name: nib.Nifti1Image.from_bytes(image_of(volume, affine).to_bytes()) for name, volume in phases.items()
    }
    return {name: oriented(image.get_fdata(dtype=np.float32), image.affine) for name, image in images.items()}


def _write(volume: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """A NIfTI with no time and no name in its gzip header, so that the same voxels are the same bytes."""
    with written_whole(path) as part:
        part.write_bytes(gzip.compress(image_of(volume, affine).to_bytes(), compresslevel=1, mtime=0))


def _write_table(path: Path, rows: list[dict]) -> Path:
    write_lines(path, [list(rows[0]), *([str(value) for value in row.values()] for row in rows)])
    return path


def _check(**values: float) -> None:
    for name, value in values.items():
        low, high = RANGES[name]
        if not low <= value <= high:
            raise InputError(f"{name} of a phantom must be {low} to {high}. Received: {value!r}")
