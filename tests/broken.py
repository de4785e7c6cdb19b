"""A corpus of NIfTI files that cannot be used, each with the words that its error must have; and odd files that can."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (12, 10, 8)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])
AFFINE[:3, 3] = 11, 12, -13
DIM, DATATYPE, PIXDIM, OFFSET, SLOPE, QFORM, QUATERN, SROW, MAGIC = 40, 70, 76, 108, 112, 252, 256, 280, 344
Damage = Callable[[Path], object]


def voxels() -> np.ndarray:
    """(12, 10, 8) int16, every voxel another value above 0."""
    return np.random.default_rng(7).permutation(np.arange(1, np.prod(SHAPE) + 1)).reshape(SHAPE).astype(np.int16)


def nifti(data: np.ndarray | None = None, kind: type = nib.Nifti1Image) -> bytes:
    """A good file, unpacked."""
    return kind(voxels() if data is None else data, AFFINE).to_bytes()


def patched(*changes: tuple[int, str, tuple], content: bytes | None = None) -> bytes:
    """A good file with other values at some bytes: (position, struct's format, values)."""
    changed = bytearray(content or nifti())
    for position, form, values in changes:
        struct.pack_into(form, changed, position, *values)
    return bytes(changed)


def written(content: bytes) -> Damage:
    """What writes a content, packed where the file's name says so."""
    return lambda path: path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def header(*changes: tuple[int, str, tuple]) -> Damage:
    """What writes a good file but for these values of its header."""
    return written(patched(*changes))


def only_sizes(*sizes: float) -> Damage:
    """A file without qform and sform: its grid is made of voxel sizes."""
    return header((QFORM, "<2h", (0, 0)), (PIXDIM, f"<{1 + len(sizes)}f", (1, *sizes)))


def packed_zeros(start: bytes, count: int, checked: bool = True) -> bytes:
    """A gzip file of ``start`` and ``count`` zeros (a multiple of 2^20), made quickly, its checksum right or not."""
    squeeze, zeros = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(1 << 20)
    first = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(zeros) + squeeze.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(start)
    for _ in range((count >> 20) * checked):
        crc = zlib.crc32(zeros, crc)
    end = squeeze.flush() + struct.pack("<2L", crc, (len(start) + count) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first + block * (count >> 20) + end


def zeros_of(shape: tuple[int, ...], dtype: type, checked: bool = True) -> Damage:
    """A small gzip file of a large volume that holds nothing but 0; its header tells the truth."""
    dtype = np.dtype(dtype)
    start = nib.Nifti1Image(np.zeros((1, 1, 1), dtype), AFFINE).to_bytes()[:352]
    start = patched((DIM + 2, "<3h", shape), content=start)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return lambda path: path.write_bytes(packed_zeros(start, count, checked))


def zeros_after(count: int) -> Damage:
    """A good file that goes on and on."""
    return lambda path: path.write_bytes(packed_zeros(nifti(), count, checked=False))


def flipped(place: int, level: int = 6) -> Damage:
    """A gzip file with one bit changed; at level 0 it holds the voxels as they are, and only the checksum knows."""

    def damage(path: Path) -> None:
        content = bytearray(gzip.compress(nifti(), level))
        content[place] ^= 4
        path.write_bytes(content)

    return damage


def packed_and(more: bytes) -> Damage:
    """A good gzip file and what follows it."""
    return lambda path: path.write_bytes(gzip.compress(nifti()) + more)


def link_to(target: str) -> Damage:
    return lambda path: path.symlink_to(target)


def saved(image: nib.spatialimages.SpatialImage) -> Damage:
    return lambda path: nib.save(image, path)


def workbook(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")


def pipe(path: Path) -> None:
    os.mkfifo(path)


BAD: dict[str, tuple[str, Damage, str]] = {  # subject -> file's name, how it is made, words of the error
    "missing": ("x.nii.gz", lambda path: None, "no file at"),
    "under-a-file": ("x.nii.gz/y.nii.gz", lambda path: path.parent.write_bytes(b""), "no file at"),
    "folder": ("x.nii.gz", Path.mkdir, "a folder at"),
    "dangling": ("x.nii.gz", link_to("nowhere.nii.gz"), "a link to nothing at"),
    "circle": ("x.nii.gz", link_to("x.nii.gz"), "symbolic links"),
    "circle-folder": ("loop/x.nii.gz", lambda path: path.parent.symlink_to("loop"), "symbolic links"),
    "pipe": ("x.nii.gz", pipe, "a pipe, device or socket at"),
    "zero-device": ("x.nii", link_to("/dev/zero"), "a pipe, device or socket at"),
    "long-name": ("n" * 300 + ".nii", lambda path: None, "too long"),
    "empty": ("x.nii", written(b""), "an empty file"),
    "empty-gz": ("x.nii.gz", lambda path: path.write_bytes(b""), "an empty file"),
    "empty-inside": ("x.nii.gz", written(b""), "starts with b''"),
    "text": ("x.nii", written(b"no image at all"), "starts with b'no image'"),
    "text-gz": ("x.nii.gz", written(b"no image at all"), "starts with b'no image'"),
    "text-as-gz": ("x.nii.gz", lambda path: path.write_text("no image"), "not packed by gzip"),
    "gz-as-nii": ("x.nii", lambda path: path.write_bytes(gzip.compress(nifti())), "rename it to .nii.gz"),
    "nii-as-gz": ("x.nii.gz", lambda path: path.write_bytes(nifti()), "rename it to .nii"),
    "excel": ("x.nii.gz", workbook, "not packed by gzip"),
    "mgh": ("x.mgz", saved(nib.MGHImage(voxels(), AFFINE)), "does not end in .nii"),
    "mgh-inside": ("x.nii", written(nib.MGHImage(voxels(), AFFINE).to_bytes()), "as no NIfTI file does"),
    "analyze": ("x.img", saved(nib.AnalyzeImage(voxels(), AFFINE)), "does not end in .nii"),
    "pair": ("x.img", saved(nib.Nifti1Pair(voxels(), AFFINE)), "does not end in .nii"),
    "analyze-header": ("x.nii", header((MAGIC, "4s", (b"",))), "as Analyze files have"),
    "pair-header": ("x.nii", header((MAGIC, "4s", (b"ni1",))), "one half of a pair"),
    "magic": ("x.nii.gz", header((MAGIC, "4s", (b"n+9",))), "has b'n[+]1"),
    "header-length": ("x.nii", header((0, "<i", (347,))), "as no NIfTI file does"),
    "half-header": ("x.nii", written(nifti()[:200]), "where NIfTI has"),
    "half-header-2": ("x.nii", written(nifti(kind=nib.Nifti2Image)[:400]), "fails with"),
    "truncated": ("x.nii", written(nifti()[:-1]), "truncated"),
    "truncated-gz": ("x.nii.gz", lambda path: path.write_bytes(gzip.compress(nifti())[:-900]), "fails with"),
    "no-checksum": ("x.nii.gz", lambda path: path.write_bytes(gzip.compress(nifti())[:-8]), "fails with"),
    "truncated-inside": ("x.nii.gz", written(nifti()[:-1]), "truncated: it ends before its last voxel"),
    "checksum": ("x.nii.gz", flipped(-1000, level=0), "CRC"),
    "length": ("x.nii.gz", flipped(-2), "fails with"),
    "flipped": ("x.nii.gz", flipped(700), "fails with"),
    "garbage": ("x.nii", written(nifti() + b"garbage"), "more bytes after the voxels"),
    "garbage-gz": ("x.nii.gz", packed_and(b"garbage"), "bytes after its end"),
    "garbage-inside": ("x.nii.gz", written(nifti() + b"garbage"), "more bytes after the voxels"),
    "shorter-axis": ("x.nii", header((DIM + 2, "<3h", (12, 10, 7))), "more bytes after the voxels"),
    "bomb-after": ("x.nii.gz", zeros_after(1 << 32), "more bytes after the voxels"),
    "bomb": ("x.nii.gz", zeros_of((512, 512, 512), np.float32), "0 in every voxel"),
    "bomb-64": ("x.nii.gz", zeros_of((512, 512, 256), np.float64), "0 in every voxel"),
    "bomb-8": ("x.nii.gz", zeros_of((512, 512, 512), np.uint8), "0 in every voxel"),
    "bomb-too-large": ("x.nii.gz", zeros_of((1024, 512, 512), np.uint8, False), "at most 134,217,728 voxels"),
    "bomb-too-long": ("x.nii.gz", zeros_of((512, 512, 512), np.float64, False), "in 1,073,741,824 bytes"),
    "1e9-voxels": ("x.nii.gz", header((DIM + 2, "<3h", (1000, 1000, 1000))), "1,000,000,000 voxels"),
    "32767-cubed": ("x.nii", header((DIM + 2, "<3h", (32767,) * 3)), "35,181,150,961,663 voxels"),
    "claims-more": ("x.nii.gz", header((DIM + 2, "<3h", (500, 500, 500))), "more than [0-9,]+ bytes of gzip can hold"),
    "2-to-the-62": (
        "x.nii.gz",
        written(patched((24, "<3q", (2**62,) * 3), content=nifti(kind=nib.Nifti2Image))),
        "at most 134,217,728 voxels",
    ),
    "negative-axis": ("x.nii.gz", header((DIM + 2, "<3h", (-12, 10, 8))), "shape [(]-12, 10, 8[)]"),
    "empty-axis": ("x.nii.gz", header((DIM + 2, "<3h", (12, 0, 8))), "shape [(]12, 0, 8[)]"),
    "no-axes": ("x.nii.gz", header((DIM, "<h", (0,))), "one 3D volume"),
    "minus-axes": ("x.nii.gz", header((DIM, "<h", (-3,))), "one 3D volume"),
    "4d": ("x.nii.gz", written(nifti(np.stack([voxels()] * 2, -1))), "shape [(]12, 10, 8, 2[)]"),
    "2d": ("x.nii.gz", written(nifti(voxels()[..., 0])), "shape [(]12, 10[)]"),
    "vectors": ("x.nii.gz", written(nifti(voxels().reshape(12, 10, 1, 1, 8))), "shape [(]12, 10, 1, 1, 8[)]"),
    "rgb": ("x.nii.gz", written(nifti(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))), "data type RGB"),
    "complex": ("x.nii.gz", written(nifti(voxels().astype(np.complex64))), "data type complex64"),
    "longdouble": ("x.nii.gz", header((DATATYPE, "<h", (1536,))), "data type"),
    "binary-type": ("x.nii.gz", header((DATATYPE, "<h", (1,))), "data type binary"),
    "unknown-type": ("x.nii.gz", header((DATATYPE, "<h", (9999,))), "9999"),
    "negative-zoom": ("x.nii.gz", only_sizes(2, -2, 3), "voxel sizes above 0.*pixdim 2, -2, 3"),
    "zero-zoom": ("x.nii.gz", only_sizes(2, 2, 0), "pixdim 2, 2, 0"),
    "nan-zoom": ("x.nii.gz", only_sizes(2, np.nan, 3), "pixdim 2, nan, 3"),
    "huge-zoom": ("x.nii.gz", only_sizes(2, 2, 1e30), "0.001 to 1000 mm"),
    "zero-zoom-sform": ("x.nii.gz", header((PIXDIM + 4, "<3f", (0, 0, 0))), "pixdim 0, 0, 0"),
    "nan-affine": ("x.nii.gz", header((SROW, "<f", (np.nan,))), "finite affine"),
    "nan-origin": ("x.nii.gz", header((SROW + 12, "<f", (np.nan,))), "finite affine"),
    "infinite-affine": ("x.nii.gz", header((SROW, "<f", (np.inf,))), "finite affine"),
    "flat-affine": ("x.nii.gz", header((SROW, "<f", (0,))), "voxel sizes 0, 2, 3"),
    "sheared": ("x.nii.gz", header((SROW + 4, "<f", (0.5,))), "right angles"),
    "quaternion": ("x.nii.gz", header((QFORM, "<2h3f", (1, 0, 1, 1, 1))), "fails with"),
    "transform-code": ("x.nii.gz", header((QFORM, "<2h", (1, 700))), "1 and 700"),
    "slope-infinite": ("x.nii.gz", header((SLOPE, "<2f", (np.inf, 0))), "finite slope"),
    "intercept-nan": ("x.nii.gz", header((SLOPE, "<2f", (2, np.nan))), "finite slope"),
    "slope-huge": ("x.nii.gz", header((SLOPE, "<2f", (3e38, 0))), "that float32 can hold"),
    "float64-huge": ("x.nii.gz", written(nifti(voxels() * 1e300)), "that float32 can hold"),
    "offset-huge": ("x.nii.gz", header((OFFSET, "<f", (1e30,))), "start at byte 1e[+]30"),
    "offset-nan": ("x.nii.gz", header((OFFSET, "<f", (np.nan,))), "start at byte nan"),
    "offset-low": ("x.nii.gz", header((OFFSET, "<f", (12,))), "start at byte 12"),
    "offset-part": ("x.nii.gz", header((OFFSET, "<f", (352.5,))), "start at byte 352.5"),
    "offset-end": ("x.nii.gz", header((OFFSET, "<f", (1e6,))), "ends before its last voxel|can hold"),
    "not-finite": ("x.nii.gz", written(nifti(np.full(SHAPE, np.nan, np.float32))), "960 NaN"),
    "constant": ("x.nii.gz", written(nifti(np.full(SHAPE, 7, np.int16))), "7 in every voxel"),
    "dark": ("x.nii.gz", written(nifti(-voxels())), "to -1"),
}
UNUSABLE_VOXELS = {"bomb", "bomb-64", "bomb-8", "not-finite", "constant", "dark"}  # load well; checks.py refuses them


def with_extension() -> bytes:
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made by hand" * 50))
    return image.to_bytes()


def big_endian(dtype: str, kind: type = nib.Nifti1Image) -> bytes:
    """A file of the other byte order."""
    stream, first = io.BytesIO(), kind(voxels().astype(dtype), AFFINE).header
    swapped = first.as_byteswapped(">")
    swapped.set_data_offset(first.single_vox_offset)
    swapped.write_to(stream)
    stream.write(bytes(first.single_vox_offset - stream.tell()))
    return stream.getvalue() + voxels().astype(">" + dtype).tobytes(order="F")


def in_members(path: Path) -> None:
    """As bgzip packs: several gzip files, one after the other."""
    content = nifti()
    path.write_bytes(b"".join(gzip.compress(content[start : start + 500]) for start in range(0, len(content), 500)))


def linked(path: Path) -> None:
    path.with_name("y").write_bytes(gzip.compress(nifti()))
    path.symlink_to("y")


GOOD: dict[str, tuple[str, Damage]] = {
    "plain": ("x.nii", written(nifti())),
    "packed": ("x.nii.gz", written(nifti())),
    "upper-case": ("X.NII.GZ", lambda path: path.write_bytes(gzip.compress(nifti()))),
    "big-endian": ("x.nii", written(big_endian("i2"))),
    "big-endian-f8": ("x.nii.gz", written(big_endian("f8"))),
    "big-endian-2": ("x.nii.gz", written(big_endian("f4", nib.Nifti2Image))),
    "nifti-2": ("x.nii.gz", written(nifti(kind=nib.Nifti2Image))),
    "extension": ("x.nii.gz", written(with_extension())),
    "members": ("x.nii.gz", in_members),
    "padded": ("x.nii", written(nifti() + bytes(4096))),
    "padded-gz": ("x.nii.gz", packed_and(bytes(512))),
    "slope-0": ("x.nii", header((SLOPE, "<2f", (0, 5)))),
    "slope-nan": ("x.nii", header((SLOPE, "<2f", (np.nan, np.nan)))),
    "offset-0": ("x.nii", header((OFFSET, "<f", (0,)))),
    "qfac-0": ("x.nii", header((PIXDIM, "<f", (0,)), (QFORM, "<2h", (1, 2)))),
    "fifth-axis": ("x.nii", written(nifti(voxels()[..., None, None]))),
    "int64": ("x.nii", written(nib.Nifti1Image(voxels().astype(np.int64), AFFINE, dtype=np.int64).to_bytes())),
    "linked": ("x.nii.gz", linked),
}


def make_bad(folder: Path) -> dict[str, Path]:
    """Every broken file in a folder of its own, by the subject's name."""
    files = {}
    for name, (file, damage, _) in BAD.items():
        (folder / name).mkdir(parents=True)
        files[name] = folder / name / file
        damage(files[name])
    return files
