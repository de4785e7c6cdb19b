"""The HDF5 cache: every subject's cube and mask, three stored volumes each, read through memory maps.

The file is plain HDF5 with contiguous, uncompressed datasets, so each is one run of bytes at a known offset and
:func:`open_cache` maps it instead of asking h5py for every volume (which starves a GPU). Its name is the fingerprint
of what it was made from: the files' contents, the settings, this format's version. Checksums of each exam's voxels and
of everything else are compared when it is opened; an exam that differs is made anew.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import math
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from mgkeras.data.augment import stored_volumes
from mgkeras.data.cohort import Subject
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import CubeFrame, ExamError, Volume, box_frame, frame_of, mask_to_cube, normalise, to_cube
from mgkeras.errors import MgkerasError
from mgkeras.settings import Settings

FORMAT = 1
WORKERS = 8  # ours, because a raw exam and its cubes take up to half a GB each while they are made
Progress = Callable[[int, int], None]
Tell = Callable[[str], None]


class CacheError(MgkerasError, RuntimeError):
    """The cache cannot be written or read on: the message says what it needs."""


@dataclass(frozen=True, eq=False)
class Cache:
    """An open cache, memory-mapped and read-only.

    Attributes:
        path: the HDF5 file.
        subjects: (n,) names, in the datasets' order.
        image: (n, stored, side, side, side) float16 in [0, ceiling]; stored is 3 (see augment.STORED), or 1 where
            nothing is augmented.
        mask: the same shape, bool.
        voxel_mm: (n,) edge of a cube voxel, mm.
        reports: (n,) the mask report of each subject, see tumour.TumourMask.
        checksums: (n,) CRC-32 of each subject's image and mask as they are stored.
        mapped: what image and mask are views of.
    """

    path: Path
    subjects: tuple[str, ...]
    image: np.ndarray
    mask: np.ndarray
    voxel_mm: np.ndarray
    reports: tuple[dict, ...]
    checksums: tuple[int, ...] = ()
    mapped: mmap.mmap | None = None

    def check(self) -> None:
        """Makes sure that the file is as long as what is mapped, for to read beyond its end ends the process.

        Raises:
            CacheError: it was cut off since it was opened.
        """
        if self.mapped is not None and self.mapped.size() < len(self.mapped):
            raise CacheError(
                f"expected {self.path} to stay as it is while it is used. Received: {self.mapped.size()} of "
                f"{len(self.mapped)} bytes; the same command again makes it anew"
            )


def exam_cube(t1: Volume, mask: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
    """What the network sees of one exam.

    Args:
        t1: early post-contrast volume, RAS+, any units.
        mask: (x, y, z) bool tumour mask on t1's grid; only the mask-only model's cube depends on it.
        settings: of the run.

    Returns:
        image (side, side, side) float32 in [0, ceiling], mask (side, side, side) bool, and where the cube lies.
    """
    side, background = settings.volume.side, settings.volume.background
    if settings.uses_box:
        frame = box_frame(mask, t1.zooms, side, settings.mask.box_margin_mm)
    else:
        frame = frame_of(t1.data.shape, t1.zooms, side)
    image = to_cube(normalise(t1.data, settings.volume.intensity_ceiling), frame, background)
    return image, mask_to_cube(mask, frame), frame


def file_digest(path: Path) -> str:
    """Hex digest of a file's bytes; a file that has not changed (size, time) is read once in a process."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, modified: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_digests(subject: Subject) -> dict[str, str | None]:
    """Digests of the files that a subject's cube is made of: early, and mask, or pre where there is no mask."""
    made_from = {"early": subject.early, "pre": None if subject.mask else subject.pre, "mask": subject.mask}
    return {name: file_digest(path) if path else None for name, path in made_from.items()}


def fingerprint(subjects: Sequence[Subject], settings: Settings) -> str:
    """24 hex digits that change with any file's contents, the subjects, the relevant settings and the format."""
    made_from = {
        "format": FORMAT,
        "volume": asdict(settings.volume),
        "mask": asdict(settings.mask),
        "box": settings.uses_box,
        "stored": _stored_count(settings),
        "turn": settings.training.turn_degrees,
        "subjects": [[subject.name, file_digests(subject)] for subject in subjects],
    }
    return hashlib.blake2b(json.dumps(made_from).encode(), digest_size=12).hexdigest()


def _stored_count(settings: Settings) -> int:
    return 3 if settings.training.augment == "paper" else 1


def estimated_bytes(subjects: int, settings: Settings) -> int:
    """Size of the cache file in bytes: float16 image and one-byte mask for each stored voxel."""
    return subjects * _stored_count(settings) * settings.volume.side**3 * 3 + (1 << 16)


def cached(
    subjects: Sequence[Subject],
    settings: Settings,
    folder: Path,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Cache:
    """The cache of these subjects, built if there is none that fits; exams whose voxels were changed are made anew.

    A second process that asks for the same cache waits for the first to build it. As many subjects as there are cores
    (WORKERS at most) are in memory at a time.

    Args:
        subjects, settings: what it is made of.
        folder: where caches are kept.
        progress: called with (done, of) for each exam that is made.
        tell: gets a line where a cache that was there is not used as it is.

    Raises:
        CacheError: not enough room on the disk.
        ExamError: a subject's files cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = fingerprint(subjects, settings)
    path = folder / f"{key}.h5"
    with _locked(folder / f"{key}.lock"):
        cache = open_cache(path, key)
        rows = changed_exams(cache) if cache else range(len(subjects))
        if rows:
            if tell and path.exists():
                names = ", ".join(subjects[row].name for row in rows[:10]) + " ..." * (len(rows) > 10)
                what = (
                    f"{len(rows)} exams changed on the disk ({names})" if cache else "damaged, or of an earlier version"
                )
                tell(f"cache {path}: {what}; made anew")
            for left in folder.glob(f".{key}.*.part"):  # of a process that was killed: it held the lock
                left.unlink()
            _build(path, key, subjects, settings, progress, cache, rows)
            cache = open_cache(path, key)
            rows = changed_exams(cache) if cache else rows
    if cache is None or rows:
        raise CacheError(f"expected a readable cache after building it. Received: {path}; is its disk failing?")
    return cache


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_cache(path: Path, key: str) -> Cache | None:
    """The cache at ``path``; None where it is missing, truncated, half written, of another fingerprint, or anything in
    it but voxels (see changed_exams) is not what was written."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs["fingerprint"] != key or not file.attrs["complete"]:
                return None
            places = {
                name: (file[name].id.get_offset(), file[name].shape, file[name].dtype) for name in ("image", "mask")
            }
            voxel_mm, about = file["voxel_mm"][:], json.loads(file.attrs["about"])
        if about["checksum"] != _checksum_of(about, voxel_mm, [places[name][1:] for name in places]):
            return None
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        image, mask = (
            np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)
            for offset, shape, dtype in places.values()
        )
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return None
    names, reports, checksums = (tuple(about[name]) for name in ("subjects", "reports", "checksums"))
    return Cache(path, names, image, mask.view(bool), voxel_mm, reports, checksums, mapped)


def changed_exams(cache: Cache) -> list[int]:
    """The rows whose voxels are no longer those that were written; reads all of them."""
    with ThreadPoolExecutor() as pool:
        now = pool.map(_checksum, cache.image, cache.mask.view(np.uint8))
        return [row for row, (was, found) in enumerate(zip(cache.checksums, now, strict=True)) if was != found]


def _checksum(image: np.ndarray, mask: np.ndarray) -> int:
    """CRC-32 of an exam as it is stored; it notices every flipped bit and reads GB in a second."""
    return zlib.crc32(mask.data, zlib.crc32(image.data))


def _checksum_of(about: dict, voxel_mm: np.ndarray, places: Sequence[tuple]) -> int:
    """CRC-32 of everything but the voxels: names, mask reports, checksums, voxel sizes, shapes and types."""
    told = [about[name] for name in ("subjects", "reports", "checksums")]
    told += [[f"{shape} {dtype.str}" for shape, dtype in places], voxel_mm.tolist()]
    return zlib.crc32(json.dumps(told).encode())


def _build(
    path: Path,
    key: str,
    subjects: Sequence[Subject],
    settings: Settings,
    progress: Progress | None,
    before: Cache | None,
    rows: Sequence[int],
) -> None:
    """Writes the file with these rows made anew, the others from ``before``."""
    needed, free = estimated_bytes(len(subjects), settings), shutil.disk_usage(path.parent).free
    if needed > free:
        raise CacheError(
            f"the cache of {len(subjects)} subjects at {settings.volume.side}^3 needs {needed / 1e9:.2f} GB in "
            f"{path.parent}. Received: {free / 1e9:.2f} GB free. Make room, name another --cache, or a smaller --side."
        )
    temporary = path.with_name(f".{key}.{os.getpid()}.part")
    try:
        if before:
            shutil.copyfile(before.path, temporary)
        with h5py.File(temporary, "r+" if before else "w") as file:
            _reserve(temporary, needed)
            _fill(file, subjects, settings, progress, before, rows)
            file.attrs["fingerprint"] = key
            file.attrs["complete"] = True
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py raises both where the disk is full
        raise CacheError(f"the cache could not be written to {path.parent}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """Takes so many bytes of the disk for an open file, or raises OSError; h5py ends the process where it is full."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _fill(
    file: h5py.File,
    subjects: Sequence[Subject],
    settings: Settings,
    progress: Progress | None,
    before: Cache | None,
    rows: Sequence[int],
) -> None:
    side, stored, count = settings.volume.side, _stored_count(settings), len(subjects)
    if before is None:
        file.create_dataset("image", (count, stored, side, side, side), "f2")
        file.create_dataset("mask", (count, stored, side, side, side), "u1")
        file.create_dataset("voxel_mm", (count,), "f8")
    image, mask, voxel_mm = file["image"], file["mask"], file["voxel_mm"]
    reports = list(before.reports) if before else [{}] * count
    checksums, workers = list(before.checksums) if before else [0] * count, min(os.cpu_count() or 1, WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(rows), workers):  # so that no more exams are in memory than are worked at
            part = rows[start : start + workers]
            made = pool.map(partial(_prepared, settings=settings), [subjects[row] for row in part])
            for done, (row, found) in enumerate(zip(part, made, strict=True), start + 1):
                image[row], mask[row], voxel_mm[row], reports[row] = found
                checksums[row] = _checksum(*found[:2])
                if progress:
                    progress(done, len(rows))
    about = {"subjects": [subject.name for subject in subjects], "reports": reports, "checksums": checksums}
    about = json.loads(json.dumps(about))  # as it will be read
    places = [(one.shape, one.dtype) for one in (image, mask)]
    file.attrs["about"] = json.dumps(about | {"checksum": _checksum_of(about, voxel_mm[:], places)})


def _prepared(subject: Subject, settings: Settings) -> tuple[np.ndarray, np.ndarray, float, dict]:
    """One subject's stored images float16 and masks uint8 (stored, side, side, side), voxel_mm and mask report."""
    stored, degrees = _stored_count(settings), settings.training.turn_degrees
    t1, tumour = subject_mask(subject, settings.mask)
    try:
        cube, inside, frame = exam_cube(t1, tumour.mask, settings)
    except ExamError as error:
        raise ExamError(f"subject {subject.name}: {error}") from None
    images = stored_volumes(cube, degrees, settings.volume.background)[:stored].astype("<f2")
    if not np.isfinite(images).all():
        raise ExamError(f"subject {subject.name}: expected finite voxels in its cube. Received: NaN or infinity")
    masks = stored_volumes(inside, degrees)[:stored].astype(np.uint8)
    return np.ascontiguousarray(images), np.ascontiguousarray(masks), frame.voxel_mm, tumour.report
