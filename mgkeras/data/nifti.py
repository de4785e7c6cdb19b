"""One NIfTI file -> its voxels and affine, whatever the file's header claims and whatever follows it.

A header is believed only as far as the file can hold what it claims: that is checked before memory is taken, and the
voxels are read in pieces, as float32 at once. A gzip file is read to its end, since the checksum comes last: a file
whose bytes were changed must not pass for another exam. Everything else that opens a NIfTI file here asks this module.

Reference: NIfTI-1.1 and NIfTI-2, https://nifti.nimh.nih.gov
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import nibabel as nib
import numpy as np

from mgkeras.data.io import opened_to_hash
from mgkeras.errors import MgkerasError

MOST_VOXELS = 1 << 27  # 512^3, twice the largest breast exam: 512 MB as float32
MOST_BYTES = 1 << 29  # of voxels in a file: those 2^27 in 32 bits; a bomb of so many bytes is unpacked within 2 s
MOST_EXTENSION = 1 << 24  # bytes between header and voxels: a DICOM header fits in
BEST_RATIO = 1032  # bytes that a byte of gzip unpacks to at most: a match of 258 bytes takes two bits
PADDING = 1 << 16  # zeros that may follow the voxels, up to a block of whatever wrote them
PIECE = 1 << 18  # voxels that are read at a time: 1 MB of float32 stays in a processor's cache
ENDINGS = (".nii", ".nii.gz")
KINDS = ((nib.Nifti1Header, 348, slice(344, 348), b"n+1\0"), (nib.Nifti2Header, 540, slice(4, 8), b"n+2\0"))
UNREADABLE = (  # what opening, unpacking and nibabel's headers raise for a file that is damaged or of another kind
    OSError,
    EOFError,
    ValueError,
    TypeError,
    OverflowError,
    zlib.error,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)


class ExamError(MgkerasError, ValueError):
    """One subject's file cannot be used; the message says what was expected and what was received."""


@dataclass(frozen=True, eq=False)
class Grid:
    """What a header says of its voxels, checked.

    Attributes:
        shape: (3,) voxels, in the file's axis order.
        affine: (4, 4) voxel -> mm, its axes at right angles.
        dtype: of a voxel in the file, with its byte order; a whole or a real number.
        slope, intercept: a voxel's value is slope * stored + intercept.
        offset: the byte at which the voxels start, in the unpacked file.
        codes: (2,) NIfTI's qform and sform codes, 0 to 5.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: np.dtype
    slope: float
    intercept: float
    offset: int
    codes: tuple[int, int]

    @property
    def end(self) -> int:
        """The byte after the last voxel, in the unpacked file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_nifti(path: str | os.PathLike) -> tuple[np.ndarray, Grid]:
    """Reads a file whole: memory of 4 bytes a voxel that it claims, and only if it can hold as many.

    Args:
        path: a .nii or .nii.gz file of one 3D volume, NIfTI-1 or NIfTI-2, of either byte order. Further axes of
            length 1 are dropped.

    Returns:
        Voxels (i, j, k) float32 in the file's axis order, slope and intercept applied, and the grid they lie on.

    Raises:
        ExamError: anything else; the message names the file.
    """
    with _opened(path) as (stream, grid):
        data = _voxels(stream, grid, path)
        rest = stream.read(PADDING + 1)  # to the end of a gzip file, which is where its checksum is compared
        if rest.strip(b"\0") or len(rest) > PADDING:
            raise _unreadable(path, "with more bytes after the voxels than its header claims")
    return data, grid


def read_grid(path: str | os.PathLike) -> Grid:
    """The grid of a file whose voxels are not read; Args and Raises are those of :func:`read_nifti`."""
    with _opened(path) as (_, grid):
        return grid


def image_of(array: np.ndarray, affine: np.ndarray, codes: tuple[int, int] = (1, 1)) -> nib.Nifti1Image:
    """An array (i, j, k) as nibabel's image, to be written: in mm, its affine as qform and as sform of these codes.

    A code of 0, which a file has that tells no affine, becomes 2.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(xyz="mm")
    image.set_qform(affine, code=codes[0] or 2)
    image.set_sform(affine, code=codes[1] or 2)
    return image


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[BufferedIOBase, Grid]]:
    """The unpacked stream, at the first voxel, and the grid; whatever fails inside becomes an ExamError.

    What is read to its end is hashed on the way, because fit wants the digest of each file that it has checked.
    """
    try:
        size = _size(path)
        with opened_to_hash(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            _check_ending(path, packed, size)
            file.seek(0)
            stream: BufferedIOBase = gzip.GzipFile(fileobj=file) if packed else file
            header = _header(stream, path)
            with np.errstate(all="ignore"):
                grid = _grid(header, path)
            if grid.end > (size * BEST_RATIO if packed else size):
                claimed = f"{grid.end:,} bytes, more than {size:,} bytes{' of gzip' if packed else ''} can hold"
                raise _unreadable(path, f"truncated, or of a wrong header: shape {grid.shape} takes {claimed}")
            stream.seek(grid.offset)
            yield stream, grid
    except ExamError:
        raise
    except UNREADABLE as error:
        told = "bytes after its end" if "Not a gzipped file" in str(error) else error
        raise _unreadable(path, f"which fails with: {told}") from None


def _unreadable(path: str | os.PathLike, why: str) -> ExamError:
    return ExamError(expected="a readable NIfTI file", received=f"{path}, {why}", path=path)


def _size(path: str | os.PathLike) -> int:
    """Bytes of a regular file; nothing else is opened, since reading a pipe may wait for ever."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        found = "a link to nothing" if os.path.islink(path) else "no file"
    else:
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, device or socket"
    raise ExamError(expected="a readable NIfTI file", received=f"{found} at {path}", path=path)


def _check_ending(path: str | os.PathLike, packed: bool, size: int) -> None:
    name = os.fspath(path).lower()
    if not name.endswith(ENDINGS):
        raise _unreadable(
            path,
            "whose name does not end in .nii or .nii.gz; nib-convert, which comes with nibabel, converts other formats",
        )
    if not size:
        raise _unreadable(path, "an empty file")
    if packed != name.endswith(".gz"):
        raise _unreadable(
            path,
            "which is packed by gzip: rename it to .nii.gz"
            if packed
            else "which is not packed by gzip: if it is a NIfTI file, rename it to .nii",
        )


def _header(stream: BufferedIOBase, path: str | os.PathLike) -> nib.Nifti1Header:
    """The header, of either version and byte order."""
    start = stream.read(348)
    for kind, length, magic, expected in KINDS:
        for order in "<>":
            if int.from_bytes(start[:4], "little" if order == "<" else "big") != length:
                continue
            if start[magic] == expected:
                return kind(start + stream.read(length - len(start)), endianness=order, check=False)
            if start[magic] in (b"ni1\0", b"ni2\0"):
                raise _unreadable(path, "one half of a pair .hdr and .img; nib-convert makes one .nii.gz of it")
            raise _unreadable(path, f"with {start[magic]!r} where NIfTI has {expected!r}, as Analyze files have")
    raise _unreadable(path, f"which starts with {start[:8]!r}, as no NIfTI file does")


def _grid(header: nib.Nifti1Header, path: str | os.PathLike) -> Grid:
    shape = [int(n) for n in header["dim"][1 : max(0, int(header["dim"][0])) + 1]]
    voxels = tuple(shape[:3] if set(shape[3:]) <= {1} else shape)
    if len(voxels) != 3 or min(voxels) < 1:
        raise ExamError(expected="one 3D volume", received=f"shape {tuple(shape)} in {path}", path=path)
    dtype = _dtype(header, path)
    count = math.prod(voxels)
    if count > MOST_VOXELS or count * dtype.itemsize > MOST_BYTES:
        found = f"{count:,} voxels in {count * dtype.itemsize:,} bytes, of shape {voxels}, in {path}"
        raise ExamError(
            expected=f"at most {MOST_VOXELS:,} voxels in {MOST_BYTES:,} bytes", received=f"{found}", path=path
        )
    slope, intercept = _scaling(header, path)
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not set(codes) <= set(range(6)):
        raise ExamError(
            expected="qform and sform codes of 0 to 5", received=f"{codes[0]} and {codes[1]} in {path}", path=path
        )
    affine = _affine(header, path)
    return Grid(voxels, affine, dtype, slope, intercept, _offset(header, path), codes)


def _dtype(header: nib.Nifti1Header, path: str | os.PathLike) -> np.dtype:
    """The type of a stored voxel, a whole or a real number, in the file's byte order."""
    code = int(header["datatype"])
    types: Any = nib.nifti1.data_type_codes  # nibabel says of its entries only that they are hashable
    dtype = types.dtype[code] if code in types.dtype else None
    if dtype is None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        label = types.label[code] if code in types.label else code
        raise ExamError(
            expected="voxels of one number, 64 bits at most", received=f"data type {label} in {path}", path=path
        )
    return dtype.newbyteorder(header.endianness)


def _scaling(header: nib.Nifti1Header, path: str | os.PathLike) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, as NIfTI has it, or NaN, as nibabel has it, means that there are none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise ExamError(
            expected="a finite slope and intercept", received=f"{slope} and {intercept} in {path}", path=path
        )
    return slope, intercept


def _offset(header: nib.Nifti1Header, path: str | os.PathLike) -> int:
    first = header.single_vox_offset
    offset = float(header["vox_offset"]) or first  # 0 is what is not filled in
    if not (first <= offset <= MOST_EXTENSION and offset == int(offset)):
        raise _unreadable(path, f"whose voxels start at byte {offset:g}; expected {first} to {MOST_EXTENSION:,}")
    return int(offset)


def _affine(header: nib.Nifti1Header, path: str | os.PathLike) -> np.ndarray:
    """The sform, else the qform, else voxel sizes alone; (4, 4) voxel -> mm, finite, its axes at right angles.

    Voxel sizes that no volume can have are refused even where the sform does not need them: other programs read them.
    """
    sizes = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ExamError(expected="voxel sizes above 0", received=f"pixdim {_listed(sizes)} in {path}", path=path)
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # what NIfTI says of a qfac of 0
    affine = header.get_best_affine().astype(float)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not ((zooms >= 1e-3) & (zooms <= 1e3)).all():
        raise ExamError(
            expected="a finite affine, with voxels of 0.001 to 1000 mm",
            received=f"voxel sizes {_listed(zooms)} in {path}",
            path=path,
        )
    axes = affine[:3, :3] / zooms
    lean = np.abs(axes.T @ axes - np.eye(3)).max()
    if lean > 0.01:
        raise ExamError(
            expected="axes at right angles", received=f"a cosine of {lean:.3f} between two axes in {path}", path=path
        )
    return affine


def _listed(sizes: np.ndarray) -> str:
    return ", ".join(f"{size:g}" for size in sizes)


def _voxels(stream: BufferedIOBase, grid: Grid, path: str | os.PathLike) -> np.ndarray:
    """(i, j, k) float32 of the stream that stands at the first voxel."""
    data = np.empty(math.prod(grid.shape), np.float32)
    scaled = (grid.slope, grid.intercept) != (1, 0)
    for start in range(0, data.size, PIECE):
        out = data[start : start + PIECE]
        block = stream.read(out.size * grid.dtype.itemsize)  # less only where the stream ends
        if len(block) < out.size * grid.dtype.itemsize:
            raise _unreadable(path, "truncated: it ends before its last voxel")
        stored = np.frombuffer(block, grid.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = stored * np.float64(grid.slope) + grid.intercept if scaled else stored
        if (scaled or grid.dtype.itemsize == 8) and np.isinf(out).any() and not np.isinf(stored).any():
            raise ExamError(
                expected="values that float32 can hold",
                received=f"values beyond {np.finfo('f4').max:.3g}, stored as {grid.dtype.name} with slope "
                f"{grid.slope:g} and intercept {grid.intercept:g}, in {path}",
                path=path,
            )
    return data.reshape(grid.shape, order="F")
