"""The HDF5 cache: every subject's cube and mask, three stored volumes each, read through memory maps.

The file is plain HDF5 with contiguous, uncompressed datasets, so each is one run of bytes at a known offset and
:func:`open_cache` maps it instead of asking h5py for every volume (which starves a GPU). Its name is the fingerprint
of what it was made from: the files' contents, the settings, this format's version.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
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


class CacheError(MgkerasError, RuntimeError):
    """The cache cannot be written: the message says what it needs."""


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
    """

    path: Path
    subjects: tuple[str, ...]
    image: np.ndarray
    mask: np.ndarray
    voxel_mm: np.ndarray
    reports: tuple[dict, ...]


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


def cached(subjects: Sequence[Subject], settings: Settings, folder: Path, progress: Progress | None = None) -> Cache:
    """The cache of these subjects, built if there is none that fits.

    A second process that asks for the same cache waits for the first to build it. As many subjects as there are cores
    (WORKERS at most) are in memory at a time.

    Raises:
        CacheError: not enough room on the disk.
        ExamError: a subject's files cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = fingerprint(subjects, settings)
    path = folder / f"{key}.h5"
    with _locked(folder / f"{key}.lock"):
        if (cache := open_cache(path, key)) is None:
            for left in folder.glob(f".{key}.*.part"):  # of a process that was killed: it held the lock
                left.unlink()
            _build(path, key, subjects, settings, progress)
            cache = open_cache(path, key)
    if cache is None:
        raise CacheError(f"expected a readable cache after building it. Received: {path}; is its disk failing?")
    return cache


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_cache(path: Path, key: str) -> Cache | None:
    """The cache at ``path``, or None where it is missing, truncated, half written or of another fingerprint."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs["fingerprint"] != key or not file.attrs["complete"]:
                return None
            places = {
                name: (file[name].id.get_offset(), file[name].shape, file[name].dtype) for name in ("image", "mask")
            }
            voxel_mm, about = file["voxel_mm"][:], json.loads(file.attrs["about"])
        maps = {name: np.memmap(path, dtype, "r", offset, shape) for name, (offset, shape, dtype) in places.items()}
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return Cache(
        path, tuple(about["subjects"]), maps["image"], maps["mask"].view(bool), voxel_mm, tuple(about["reports"])
    )


def _build(path: Path, key: str, subjects: Sequence[Subject], settings: Settings, progress: Progress | None) -> None:
    needed, free = estimated_bytes(len(subjects), settings), shutil.disk_usage(path.parent).free
    if needed > free:
        raise CacheError(
            f"the cache of {len(subjects)} subjects at {settings.volume.side}^3 needs {needed / 1e9:.2f} GB in "
            f"{path.parent}. Received: {free / 1e9:.2f} GB free. Make room, name another --cache, or a smaller --side."
        )
    temporary = path.with_name(f".{key}.{os.getpid()}.part")
    try:
        with h5py.File(temporary, "w") as file:
            _fill(file, subjects, settings, progress)
            file.attrs["fingerprint"] = key
            file.attrs["complete"] = True
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py raises both where the disk is full
        raise CacheError(f"the cache could not be written to {path.parent}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(file: h5py.File, subjects: Sequence[Subject], settings: Settings, progress: Progress | None) -> None:
    side, stored = settings.volume.side, _stored_count(settings)
    shape = (len(subjects), stored, side, side, side)
    image, mask = file.create_dataset("image", shape, "f2"), file.create_dataset("mask", shape, "u1")
    voxel_mm = file.create_dataset("voxel_mm", (len(subjects),), "f8")
    reports, workers = [], min(os.cpu_count() or 1, WORKERS)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(subjects), workers):  # so that no more exams are in memory than are worked at
            part = subjects[start : start + workers]
            for row, found in enumerate(pool.map(partial(_prepared, settings=settings), part), start):
                image[row], mask[row], voxel_mm[row], report = found
                reports.append(report)
                if progress:
                    progress(row + 1, len(subjects))
    file.attrs["about"] = json.dumps({"subjects": [subject.name for subject in subjects], "reports": reports})


def _prepared(subject: Subject, settings: Settings) -> tuple[np.ndarray, np.ndarray, float, dict]:
    """One subject's stored images and masks (stored, side, side, side), voxel_mm and mask report."""
    stored, degrees = _stored_count(settings), settings.training.turn_degrees
    t1, tumour = subject_mask(subject, settings.mask)
    try:
        cube, inside, frame = exam_cube(t1, tumour.mask, settings)
    except ExamError as error:
        raise ExamError(f"subject {subject.name}: {error}") from None
    images = stored_volumes(cube, degrees, settings.volume.background)[:stored]
    return images, stored_volumes(inside, degrees)[:stored], frame.voxel_mm, tumour.report
