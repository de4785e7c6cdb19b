"""A cohort on real anatomy, for the tests: a real breast, real tumours' shapes, enhancement that was measured.

- Breast: the I-SPY1 volume, a pre-contrast sagittal exam, is everybody's pre phase; crop, side, gain and noise differ.
- Shape: the largest component of one of two I-SPY2 masks, smoothed, mirrored and scaled to 15 to 30 mm.
- Enhancement: of the 5 x 3 voxels of the QIN breast exam, two minutes after the contrast arrives. A tumour with
  recurrence has the strongest voxel's at its rim and the weakest's in its core, another has the median all over.

Arrays are in the file's order, (left-right, superior to inferior, anterior to posterior), unless said otherwise.
"""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage, signal

SHARED = Path(os.environ.get("MGKERAS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
BREAST = "ispy1_1001/pre.nii.gz"
TUMOURS = ("ACRIN-6698-102212", "ISPY2-550421")
CURVES = "qin_breast/QINBreast001-phantom.nrrd"
SHAPE = (48, 96, 96)
ZOOMS = (2.0, 1.4, 1.4)  # mm; the breast's nominal spacing, every two by two in plane averaged
LARGEST = 192  # the voxels in plane that a crop takes, before averaging
STRANDS = 2.0  # mm of the real tumour, which is some 75 mm long
NOISE = 3.0  # standard deviation, in the units of the 8-bit volume, whose bright tissue has 100 to 200
TISSUE = 60.0  # in the same units: gland is brighter, suppressed fat and muscle are darker
AIR = 25.0  # in the same units: twice what air's noise has
SKIN = 5.0  # mm of the breast's outside where no tumour lies
POSTERIOR = 160  # voxels in plane: what lies further back is chest wall


def missing(shared: Path = SHARED) -> str:
    """Why the cohort cannot be made here; empty if it can."""
    files = [BREAST, CURVES, "ispy2/metadata.csv", *(f"ispy2/{name}_spy2_vis1_mask.nii.gz" for name in TUMOURS)]
    absent = [file for file in files if not (shared / file).exists()]
    return f"no {', '.join(absent)} in {shared}: set MGKERAS_SHARED_DATA" if absent else ""


def make_anatomy(out: Path, subjects: int = 20, seed: int = 0, shared: Path = SHARED) -> Path:
    """Write the exams, their true masks (out/truth, not named by the table) and cohort.csv, whose path is returned."""
    breast = np.asarray(nib.load(shared / BREAST).dataobj, np.float32)
    shapes = [tumour_shape(shared, name) for name in TUMOURS]
    enhancement = measured_enhancement(shared / CURVES)
    (out / "truth").mkdir(parents=True)
    rows = []
    for number in range(subjects):
        rng = np.random.default_rng([seed, number])
        name, label = f"real{number + 1:02d}", number % 2
        # the two labels take either shape equally often
        pre, early, truth = _exam(rng, breast, shapes[number // 2 % 2], enhancement, label)
        for kind, array in (("pre", pre), ("early", early), ("truth/", truth)):
            path = out / (f"truth/{name}.nii.gz" if kind == "truth/" else f"{name}-{kind}.nii.gz")
            _write(path, array)
        rows.append((name, f"{name}-pre.nii.gz", f"{name}-early.nii.gz", label))
    with open(out / "cohort.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("subject", "pre", "early", "recurrence"), *rows])
    return out / "cohort.csv"


def tumour_shape(shared: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The box of a mask's largest component, bool, and its voxel sizes in mm, which only the table knows.

    The masks are thresholded enhancement, full of strands and holes of a voxel, which no grid of ours could hold once
    the shape is scaled down: it is smoothed by STRANDS mm first.
    """
    mask = np.asarray(nib.load(shared / f"ispy2/{name}_spy2_vis1_mask.nii.gz").dataobj) == 1
    with open(shared / "ispy2/metadata.csv", encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["pid"] == name)
    zooms = [float(row[key]) for key in ("slice_thick", "xy_spacing", "xy_spacing")]
    soft = ndimage.gaussian_filter(mask.astype(np.float32), STRANDS / np.array(zooms))
    return largest_component(soft > 0.5), np.array(zooms)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The box around a mask's largest component, bool, without the others."""
    labels, _ = ndimage.label(mask)
    largest = 1 + np.bincount(labels.ravel())[1:].argmax()
    return labels[ndimage.find_objects(labels)[largest - 1]] == largest


def measured_enhancement(path: Path, wait_s: float = 120.0) -> np.ndarray:
    """(early - pre) / pre of each voxel of a dynamic NRRD (frames first), ``wait_s`` after arrival; sorted."""
    header, data = path.read_bytes().split(b"\n\n", 1)
    pairs = (
        line.replace(":=", ": ", 1).split(": ", 1)
        for line in header.decode("ascii").splitlines()
        if ":" in line and not line.startswith("#")
    )
    fields = dict(pairs)
    sizes = [int(size) for size in fields["sizes"].split()]
    assert (fields["type"], fields["endian"]) == ("unsigned short", "little"), fields
    raw = gzip.decompress(data) if fields["encoding"] == "gzip" else data
    frames = np.frombuffer(raw, "<u2").reshape(sizes, order="F").reshape(sizes[0], -1).astype(float)  # (t, voxels)
    seconds = np.array(fields["MultiVolume.FrameLabels"].split(","), float) / 1000
    arrival = np.diff(frames.mean(axis=1)).argmax()  # the last frame before the steepest rise
    early = np.searchsorted(seconds, seconds[arrival] + wait_s)
    pre = frames[:arrival].mean(axis=0)
    return np.sort((frames[early] - pre) / pre)


def _exam(
    rng: np.random.Generator, breast: np.ndarray, shape: tuple[np.ndarray, np.ndarray], measured: np.ndarray, label: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pre and early phases (SHAPE, int16, arbitrary units) and the true tumour (SHAPE, bool) of one subject."""
    first = rng.integers((2, 44, 20), (13, 65, 41))  # the crop's corner; a few voxels this way or that
    window = tuple(slice(start, start + size) for start, size in zip(first, (SHAPE[0], LARGEST, LARGEST), strict=True))
    pre = breast[window].reshape(SHAPE[0], SHAPE[1], 2, SHAPE[2], 2).mean(axis=(2, 4))
    smoothed = ndimage.gaussian_filter(pre, 1)
    body = np.pad(smoothed > AIR, 1)
    gland = (smoothed > TISSUE) & (ndimage.distance_transform_edt(body, sampling=ZOOMS)[1:-1, 1:-1, 1:-1] > SKIN)
    gland[..., (POSTERIOR - first[2]) // 2 :] = False
    if rng.random() < 0.5:  # the other breast
        pre, gland = pre[::-1], gland[::-1]
    truth = _place(rng, _scaled(rng, *shape), gland)
    depth = ndimage.distance_transform_edt(np.pad(truth, 1), sampling=ZOOMS)[1:-1, 1:-1, 1:-1]
    rim = depth <= max(3.0, 0.4 * depth.max())
    inside = np.where(rim, measured[-1], measured[0]) if label else np.median(measured)
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), 6)
    elsewhere = 0.15 + 0.05 * smooth / np.abs(smooth).max()  # 10 to 20 %
    early = pre * (1 + np.where(truth, inside, elsewhere))
    gain = rng.uniform(2, 20)
    pre, early = (gain * np.abs(exam + rng.normal(0, NOISE, SHAPE)) for exam in (pre, early))
    return pre.round().astype(np.int16), early.round().astype(np.int16), truth


def _scaled(rng: np.random.Generator, shape: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """A shape, mirrored at random and scaled until its longest side is 15 to 30 mm: a bool box on a grid of ZOOMS."""
    shape = np.pad(np.flip(shape, np.flatnonzero(rng.random(3) < 0.5)), 2)
    wanted = rng.uniform(16, 29)  # mm; a voxel less than the bounds
    factor = wanted / ((np.array(shape.shape) - 4) * zooms).max()
    for _ in range(4):  # thin ends do not survive: what counts is the outcome's length
        step = np.array(ZOOMS) / (zooms * factor)  # voxels of the shape in one of ours
        size = tuple(np.ceil(np.array(shape.shape) / step).astype(int))
        soft = ndimage.gaussian_filter(shape.astype(np.float32), step / 4)
        box = largest_component(ndimage.affine_transform(soft, step, (step - 1) / 2, size, order=1) > 0.5)
        length = (np.array(box.shape) * ZOOMS).max()
        if abs(length - wanted) <= 1:
            break
        factor *= wanted / length
    assert 15 <= length <= 30, f"a tumour of {length:.1f} mm"
    return box


def _place(rng: np.random.Generator, tumour: np.ndarray, gland: np.ndarray) -> np.ndarray:
    """A tumour (bool box) somewhere in the gland (SHAPE bool): where 95 % of it lie in, or as much as can."""
    inside = signal.fftconvolve(gland.astype(np.float32), tumour[::-1, ::-1, ::-1].astype(np.float32), "valid")
    places = np.argwhere(inside >= min(0.95 * tumour.sum(), inside.max() - 0.5))
    corner = places[rng.integers(len(places))]
    truth = np.zeros(gland.shape, bool)
    truth[tuple(slice(start, start + size) for start, size in zip(corner, tumour.shape, strict=True))] = tumour
    return truth


def _write(path: Path, array: np.ndarray) -> None:
    """As sagittal exams are stored: the second axis runs down and the third back."""
    affine = np.zeros((4, 4))
    affine[[0, 2, 1, 3], [0, 1, 2, 3]] = (ZOOMS[0], -ZOOMS[1], -ZOOMS[2], 1)
    affine[:3, 3] = (-47.0, 70.0, 66.5)
    image = nib.Nifti1Image(array.astype(np.uint8) if array.dtype == bool else array, affine)
    image.header.set_xyzt_units(xyz="mm")
    nib.save(image, path)
