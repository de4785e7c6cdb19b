"""One exam in the cache: an HDF5 file whose image and mask are contiguous and uncompressed.

So each volume is one run of bytes at a known offset, read at once instead of asked of h5py (which starves a GPU). It is
read, not mapped, because a map of a file that somebody cuts off ends the process. A checksum of the whole file is
compared when it is opened, before HDF5 reads anything of it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mgkeras.data.sealed import intact, sealed
from mgkeras.errors import MgkerasError

NAMES = ("image", "mask")
DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # files that this process may have open; -1 for no limit
KEPT_OPEN = 4096 if DESCRIPTORS < 0 else min(4096, DESCRIPTORS // 4)  # ours, because a program opens others too


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

    def array(self, name: str, stored: int | None = None) -> np.ndarray:
        """The image, or the mask as bool, (stored, *cube_shape); or one of the stored volumes. An array of its own.

        Raises:
            CacheError: the file was removed or cut off, or its disk fails.
        """
        offset, shape, dtype = self.places[name]
        if stored is not None:
            shape = shape[1:]
            offset += range(self.places[name][1][0])[stored] * math.prod(shape) * dtype.itemsize
        found = np.empty(shape, dtype)
        content, done = found.reshape(-1).view(np.uint8).data, 0
        try:
            file = _opened(self)  # kept until the end, lest another thread close it and its number name another file
            if (now := os.fstat(file.number).st_size) < self.size:
                raise self._changed(f"{now} of {self.size} bytes")
            while done < found.nbytes:
                if not (count := os.preadv(file.number, [content[done:]], offset + done)):
                    raise self._changed(f"{offset + done} of {self.size} bytes")
                done += count
        except OSError as error:
            raise self._changed(error) from None
        return found.view(bool) if name == "mask" else found

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


class _Descriptor:
    """An open file, closed when it is no longer used."""

    number = -1

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@functools.lru_cache(KEPT_OPEN)
def _opened(exam: ExamFile) -> _Descriptor:
    return _Descriptor(exam.path)


class ExamArray:
    """Image or mask of all exams, (n, stored, side, side, side), each read from its own file when it is asked for.

    Indexed as an array; what it gives are arrays of their own. At most KEPT_OPEN files are kept open.
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
            return self._exam(self.files[row], rest)
        return np.stack([self._exam(self.files[place], rest) for place in np.arange(len(self))[row]])

    def _exam(self, file: ExamFile, rest: Sequence[Any]) -> np.ndarray:
        if rest and isinstance(rest[0], (int, np.integer)):  # the other stored volumes are not read
            return file.array(self.name, int(rest[0]))[tuple(rest[1:])]
        return file.array(self.name)[tuple(rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def write_exam(path: Path, name: str, image: np.ndarray, mask: np.ndarray, voxel_mm: float, report: dict) -> None:
    """Writes an exam that is to have this name; ``path`` may be there already.

    Raises:
        OSError: where the disk is full.
    """
    about = json.dumps({"voxel_mm": float(voxel_mm), "report": report})
    path.write_bytes(sealed(dict(zip(NAMES, (image, mask), strict=True)), {"about": about}, name))


def open_exam(path: Path) -> ExamFile | None:
    """The exam at ``path``; None where it is missing, truncated, of another name, or not what was written. Reads all of
    it."""
    try:
        if not intact(path, path.stem):
            return None
        with h5py.File(path, "r", locking=False) as file:
            places = {name: (file[name].id.get_offset(), file[name].shape, file[name].dtype) for name in NAMES}
            about = json.loads(file.attrs["about"])
        return ExamFile(path, path.stat().st_size, places, about["voxel_mm"], about["report"])
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        return None
