"""One exam in the cache: an HDF5 file whose image and mask are contiguous and uncompressed, read through memory maps.

So each is one run of bytes at a known offset, mapped instead of asked of h5py for every volume (which starves a GPU).
Checksums of the voxels and of everything else are compared when a file is opened.
"""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
import resource
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mgkeras.errors import MgkerasError

NAMES = ("image", "mask")
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # files that this process may have open; -1 for no limit
MAPPED = 4096 if DESCRIPTORS < 0 else min(4096, DESCRIPTORS // 4)  # ours, because each map keeps a file open


class CacheError(MgkerasError, RuntimeError):
    """The cache cannot be written or read on: the message says what it needs."""


@dataclass(frozen=True, eq=False)
class ExamFile:
    """A checked file.

    Attributes:
        path: where it is.
        size: bytes.
        places: (offset, shape, type) of image (stored, side, side, side) float16 and of mask, the same shape, uint8.
        voxel_mm: edge of a cube voxel, mm.
        report: the mask report, see tumour.TumourMask.
    """

    path: Path
    size: int
    places: Mapping[str, tuple[int, tuple[int, ...], np.dtype]]
    voxel_mm: float
    report: dict[str, Any]

    def array(self, name: str) -> np.ndarray:
        """The image, or the mask as bool, mapped and read-only.

        Raises:
            CacheError: the file was removed, or cut off: to read beyond its end would end the process.
        """
        try:
            mapped, arrays = _opened(self)
            now = mapped.size()
        except (OSError, ValueError) as error:  # ValueError of a file that is too short to map
            raise self._changed(error) from None
        if now < self.size:
            raise self._changed(f"{now} of {self.size} bytes")
        return arrays[name]

    def check(self) -> None:
        """Raises CacheError where the file was removed or cut off since it was opened."""
        try:
            now = self.path.stat().st_size
        except OSError as error:
            raise self._changed(error) from None
        if now < self.size:
            raise self._changed(f"{now} of {self.size} bytes")

    def _changed(self, received: object) -> CacheError:
        return CacheError(
            f"expected {self.path} to stay as it is while it is used. Received: {received}; the same command again "
            "makes it anew"
        )


@functools.lru_cache(MAPPED)
def _opened(exam: ExamFile) -> tuple[mmap.mmap, dict[str, np.ndarray]]:
    """An exam's file as a map, and its arrays as views of it."""
    with open(exam.path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {
        name: np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)
        for name, (offset, shape, dtype) in exam.places.items()
    }
    return mapped, {**arrays, "mask": arrays["mask"].view(bool)}


class ExamArray:
    """Image or mask of all exams, (n, stored, side, side, side), each read from its own file when it is asked for.

    Indexed as an array: a single exam is a view of its map, several are copied. At most MAPPED files are kept open.
    """

    def __init__(self, files: Sequence[ExamFile], name: str) -> None:
        _, shape, dtype = files[0].places[name]
        self.files, self.name = tuple(files), name
        self.shape, self.dtype = (len(files), *shape), np.dtype(bool) if name == "mask" else dtype

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Any) -> np.ndarray:
        row, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(row, (int, np.integer)):
            return self.files[row].array(self.name)[tuple(rest)]
        return np.stack([self[one][tuple(rest)] for one in np.arange(len(self))[row]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def write_exam(path: Path, name: str, image: np.ndarray, mask: np.ndarray, voxel_mm: float, report: dict) -> None:
    """Writes an exam that is to have this name; ``path`` may be there already.

    Raises:
        OSError, RuntimeError: h5py raises both where the disk is full.
    """
    with h5py.File(path, "w", locking=False) as file:
        _reserve(path, image.nbytes + mask.nbytes + (1 << 14))
        for key, values in zip(NAMES, (image, mask), strict=True):
            file[key] = values
        about = {"voxel_mm": float(voxel_mm), "report": report, "voxels": _checksum(image, mask)}
        about = json.loads(json.dumps(about))  # as it will be read
        places = [(values.shape, values.dtype) for values in (image, mask)]
        file.attrs["about"] = json.dumps(about | {"checksum": _checksum_of(name, about, places)})


def open_exam(path: Path) -> ExamFile | None:
    """The exam at ``path``; None where it is missing, truncated, of another name, or not what was written. Reads all of
    it."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            places = {name: (file[name].id.get_offset(), file[name].shape, file[name].dtype) for name in NAMES}
            about = json.loads(file.attrs["about"])
        if about["checksum"] != _checksum_of(path.stem, about, [places[name][1:] for name in NAMES]):
            return None
        found = ExamFile(path, path.stat().st_size, places, about["voxel_mm"], about["report"])
        image, mask = (found.array(name) for name in NAMES)
        return found if _checksum(image, mask.view(np.uint8)) == about["voxels"] else None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        return None


def _reserve(path: Path, size: int) -> None:
    """Takes so many bytes of the disk for an open file, or raises OSError; h5py ends the process where it is full."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _checksum(image: np.ndarray, mask: np.ndarray) -> int:
    """CRC-32 of an exam as it is stored; it notices every flipped bit and reads GB in a second."""
    return zlib.crc32(mask.data, zlib.crc32(image.data))


def _checksum_of(name: str, about: dict, places: Sequence[tuple]) -> int:
    """CRC-32 of everything but the voxels: the name, voxel size, mask report, checksum of the voxels, shapes, types."""
    told = [name, *(about[key] for key in ("voxel_mm", "report", "voxels"))]
    told += [f"{shape} {dtype.str}" for shape, dtype in places]
    return zlib.crc32(json.dumps(told).encode())
