"""What can be wrong with one subject's files, found by opening each of them once, and how it is told.

Every check hands back findings in plain words and never raises, so that one bad file hides no other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mgkeras.data.shift import block_mean, estimate_shift, factors
from mgkeras.data.volume import ExamError, Volume, load_volume, same_space
from mgkeras.errors import few

ERROR, WARNING = "error", "warning"
SAFE_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._+-]{0,98}[A-Za-z0-9_+-])?")
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file of Windows has these names
FEWEST_SLICES, MANY_SLICES = 4, 8  # of the early phase: fewer are refused, and told of
MANY_VALUES = 1000  # of a mask; an image given as one has many more
DARKER = 0.02  # of the tissue's brightness; a scanner's drift between two phases is less
FAINTEST = 0.1  # of the tissue's brightness; enhancement is more in some part of it
OVER_LOSS = 1.5  # times the loss of what gets darker: noise and drift make as much darker as brighter
SMALLEST_SHIFT_MM = 1.0  # shifts up to this, or to half a voxel, are not worth a warning
LONGEST = 2000  # characters of a problem that are shown: a cell may hold a book


class Checked(NamedTuple):
    """What is wrong with a subject's files, and of the early phase voxel_digest and the voxels along its shortest axis.

    ``digest`` and ``slices`` are None where the early phase cannot be read.
    """

    findings: list[Finding]
    digest: str | None
    slices: int | None


class Finding(NamedTuple):
    """What is wrong in the file of a column, what was expected there, and how bad it is: 'error' or 'warning'."""

    column: str
    expected: str
    found: str
    severity: str = ERROR


@dataclass(frozen=True)
class Problem:
    """What is wrong, where. Row 1 is the header or the table as a whole, and its subject is empty then."""

    row: int
    subject: str
    column: str
    expected: str
    found: str
    severity: str = ERROR  # 'error' or 'warning'

    def __str__(self) -> str:
        where = f"line {self.row}" + (f", subject {self.subject}" if self.subject else "")
        where += f", column {self.column}" if self.column else ""
        text = " ".join(f"{self.severity}: {where}: expected {self.expected}. Received: {self.found}".split())
        shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)  # a cell may hold a terminal's commands


def check_name(name: str) -> list[Finding]:
    """Findings on a subject's name, which names the files that are written for the subject."""
    if SAFE_NAME.fullmatch(name) and not DEVICE_NAME.fullmatch(name):
        return []
    expected = "a name that can name files: letters, digits and . _ + - inside, 100 characters at most"
    return [Finding("subject", expected, repr(name[:101]) if name else "an empty cell")]


def as_name(text: str) -> str:
    """A text as a subject's name: what is no ASCII letter, digit or . + - becomes _, and goes at either end."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.-+")


def checked_exam(files: dict[str, Path], *, allow_thin: bool = False) -> Checked:
    """Everything that is wrong with a subject's files, read whole, at most two of them in memory at a time.

    Errors: an early phase of fewer than FEWEST_SLICES voxels along an axis (a warning with ``allow_thin``), a missing,
    unreadable or truncated file, not 3D, NaN or infinite voxels, a constant volume, another space than ``early``'s, a
    mask of more than 0 and one positive value. Warnings: an empty mask or one that covers everything, pre and early in
    one file, nothing that enhances, and the pre and early phases likely exchanged or shifted.

    Args:
        files: paths by column: early, and optionally pre, late and mask.
    """
    findings: list[Finding] = []
    first: tuple[str, Volume] | None = None
    digest = slices = None
    for column in ("early", "pre", "late", "mask"):
        if column not in files:
            continue
        volume = _load(column, files[column], findings)
        if volume is None:
            continue
        findings += check_mask(volume.data) if column == "mask" else check_voxels(column, volume.data)
        if column == "early":
            digest, slices = voxel_digest(volume.data), min(volume.data.shape)
            findings += _thin(volume.data.shape, WARNING if allow_thin else ERROR)
        if first is None:
            first = (column, volume)
            continue
        difference = same_space(first[1], volume)
        if difference:
            findings.append(Finding(column, f"the space of {first[0]}", difference))
        elif column == "pre":
            told = check_motion(volume, first[1]) + check_order(volume, first[1])
            findings += told or check_enhancement(volume, first[1])
    if "pre" in files and files["pre"] == files.get("early"):
        findings.append(Finding("pre", "another file than early, or nothing enhances", str(files["pre"]), WARNING))
    return Checked(findings, digest, slices)


def _thin(shape: tuple[int, ...], severity: str) -> list[Finding]:
    if min(shape) >= FEWEST_SLICES:
        return []
    expected = f"{FEWEST_SLICES} slices or more, in which a 3D network can see something; --allow-thin takes fewer"
    return [Finding("early", expected, f"a volume of {' x '.join(map(str, shape))} voxels", severity)]


def few_slices(slices: Mapping[str, int | None]) -> list[Finding]:
    """A warning where subjects, {name: voxels along the early phase's shortest axis}, have fewer than MANY_SLICES; one
    for all."""
    thin = {name: count for name, count in slices.items() if count is not None and FEWEST_SLICES <= count < MANY_SLICES}
    if not thin:
        return []
    found = f"{min(thin.values())} to {max(thin.values())} in {len(thin)} of {len(slices)} subjects: {few(thin)}"
    return [
        Finding("early", f"{MANY_SLICES} slices or more, or a 3D network sees little of the third axis", found, WARNING)
    ]


def voxel_digest(data: np.ndarray) -> str:
    """Hex digest of a volume (x, y, z) float32 in RAS+: the same for the same voxels, whatever the file's layout."""
    digest = hashlib.blake2b(repr(data.shape).encode(), digest_size=16)
    for place in range(data.shape[2]):
        digest.update(data[..., place].tobytes(order="F"))
    return digest.hexdigest()


def check_voxels(column: str, data: np.ndarray) -> list[Finding]:
    """Findings on the voxels of an image (x, y, z): all must be finite, not all the same, and some above 0."""
    finite = np.isfinite(data)
    if not finite.all():
        nan = int(np.isnan(data).sum())
        found = f"{nan} NaN and {data.size - int(finite.sum()) - nan} infinite of {data.size} voxels"
        return [Finding(column, "finite voxels", found)]
    low, high = data.min(), data.max()
    if low == high:
        return [Finding(column, "voxels that differ", f"{low:g} in every voxel")]
    return [] if high > 0 else [Finding(column, "voxels above 0", f"values from {low:g} to {high:g}")]


def check_mask(data: np.ndarray) -> list[Finding]:
    """Findings on the voxels of a mask (x, y, z): 0, and one positive value whichever."""
    if not np.isfinite(data).all():
        return check_voxels("mask", data)
    high = data.max()
    if high < 0 or not all(((slab == 0) | (slab == high)).all() for slab in _slabs(data)):
        return [Finding("mask", "a binary mask: 0 and one positive value", _listed_values(data))]
    if high == 0:
        return [Finding("mask", "a tumour", "an empty mask: 0 in every voxel", WARNING)]
    if data.min() == high:
        return [Finding("mask", "a tumour in the volume", f"{high:g} in every voxel", WARNING)]
    return []


def _listed_values(data: np.ndarray) -> str:
    """The values of (x, y, z), counted no further than to MANY_VALUES and the smallest five of those named."""
    values = np.empty(0, data.dtype)
    for slab in _slabs(data):
        values = np.union1d(values, slab)
        if values.size > MANY_VALUES:
            return f"more than {MANY_VALUES} values, among them {', '.join(f'{value:g}' for value in values[:5])}"
    shown = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if values.size > 5 else "")
    return f"{values.size} value{'s' * (values.size > 1)}: {shown}"


def _slabs(data: np.ndarray) -> np.ndarray:
    """(x, y, z) so that going through its first axis goes through memory; a slab costs little to compare."""
    return np.moveaxis(data, int(np.argmax(np.abs(data.strides))), 0)


def check_motion(pre: Volume, early: Volume) -> list[Finding]:
    """A warning where the early phase is likely shifted against the pre phase by over 1 mm and over half a voxel along
    some axis."""
    shift = estimate_shift(pre, early)
    if shift is None or (np.abs(shift) <= np.maximum(SMALLEST_SHIFT_MM, early.zooms / 2)).all():
        return []
    parts = ", ".join(f"{mm:+.1f}" for mm in shift)
    found = f"a likely shift (motion) of {np.linalg.norm(shift):.1f} mm ({parts} along the axes R, A, S)"
    return [Finding("early", "the early phase where the pre phase is", found, WARNING)]


def check_order(pre: Volume, early: Volume) -> list[Finding]:
    """A warning where the early phase is darker than the pre phase in tissue: contrast medium makes nothing darker, but
    exchanged phases do.

    Both must tell so: the median change, and the larger of the changes at either end, which enhancement makes and a
    weaker gain does not.
    """
    change = _change(pre, early)
    if change is None:
        return []
    least, middle, most = np.quantile(change, (0.01, 0.5, 0.99))
    if middle >= -DARKER or most > -least:
        return []
    found = f"tissue {-middle:.0%} darker in the early phase than in the pre phase (median): exchanged phases?"
    return [Finding("early", "the early phase after contrast, brighter than the pre phase", found, WARNING)]


def check_enhancement(pre: Volume, early: Volume) -> list[Finding]:
    """A warning where nothing in the tissue gets brighter from the pre phase to the early phase, as in two phases
    before contrast arrives.

    Both volumes are smoothed, so that noise enhances nothing; equal volumes are told elsewhere.
    """
    change = _change(pre, early, smoothed=True)
    if change is None or np.array_equal(pre.data, early.data):
        return []
    least, most = np.quantile(change, (0.001, 0.999)) - np.median(change)
    if most > FAINTEST and most > -OVER_LOSS * least:
        return []
    found = (
        f"at most {most:.0%} more than the tissue's median change: is the early phase a phase before contrast arrives?"
    )
    return [
        Finding(
            "early",
            f"something that enhances by more than {FAINTEST:.0%} from the pre phase to the early phase",
            found,
            WARNING,
        )
    ]


def _change(pre: Volume, early: Volume, smoothed: bool = False) -> np.ndarray | None:
    """early - pre in tissue, averaged over blocks, in shares of the pre phase's median there: (n,); None where there is
    no telling."""
    a, b = (block_mean(volume.data, factors(volume.data.shape)) for volume in (pre, early))
    if smoothed:
        a, b = (ndimage.uniform_filter(data, 3) for data in (a, b))
    tissue = a + b > (a + b).mean()
    if not (np.isfinite(a).all() and np.isfinite(b).all() and tissue.any() and np.median(a[tissue]) > 0):
        return None
    return (b - a)[tissue] / np.median(a[tissue])


def _load(column: str, path: Path, findings: list[Finding]) -> Volume | None:
    """The file's volume, or None and a finding."""
    expected = "a readable NIfTI file of one 3D volume"
    try:
        return load_volume(path)
    except ExamError as error:
        expected, found = (error.expected, str(error.received)) if error.expected else (expected, str(error))
    except Exception as error:  # a broken header can make a reader fail anywhere, and the other files still count
        found = f"{path}, which fails with {type(error).__name__}: {error}"
    findings.append(Finding(column, expected, found))
    return None
