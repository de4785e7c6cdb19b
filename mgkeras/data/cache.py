"""The cache: every exam's cube and mask, three stored volumes each, in a file of its own; cohorts and runs share them.

An exam's file is named by what it was made from: the files' contents, the settings, this format's version. What is
missing, damaged or changed on the disk is made; who asks for the same exams meanwhile makes others or waits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mgkeras.data.augment import stored_volumes
from mgkeras.data.cohort import Subject
from mgkeras.data.exam_file import CacheError as CacheError
from mgkeras.data.exam_file import ExamArray, ExamFile, open_exam, write_exam
from mgkeras.data.in_use import hold
from mgkeras.data.io import claimed, digest_of
from mgkeras.data.phases import channels_of, check_phases, cube_shape, files_of, load_others
from mgkeras.data.tumour import subject_mask
from mgkeras.data.volume import CubeFrame, ExamError, Volume, box_frame, frame_of, mask_to_cube, to_cube
from mgkeras.errors import few
from mgkeras.settings import Settings, VolumeSettings

FORMAT = 2
WORKERS = 8  # ours, because a raw exam and its cubes take up to half a GB each while they are made
EXAMS = "exams"  # folder of the exams' files in that of the cache
EARLY_ALONE = VolumeSettings()
Progress = Callable[[int, int], None]
Tell = Callable[[str], None]
Elsewhere = Callable[[Sequence[Subject], Settings, Path], Iterator[int]]  # makes exams, tells how many are done


@dataclass(frozen=True, eq=False)
class Cache:
    """The exams of some subjects, open and read-only. Another process may be handed it.

    Attributes:
        folder: where the files are.
        subjects: (n,) names, in the order of all else.
        image: (n, stored, side, side, side) float16 in [0, ceiling]; stored is 3 (see augment.STORED), or 1 where
            nothing is augmented. Of several phases (n, stored, side, side, side, channels), see phases.py.
        mask: (n, stored, side, side, side) bool.
        voxel_mm: (n,) edge of a cube voxel, mm.
        reports: (n,) the mask report of each subject, see tumour.TumourMask.
    """

    folder: Path
    subjects: tuple[str, ...]
    image: ExamArray | np.ndarray
    mask: ExamArray | np.ndarray
    voxel_mm: np.ndarray
    reports: tuple[dict, ...]

    def check(self) -> None:
        """Raises CacheError where a file was removed or cut off since it was opened; who reads its voxels is told."""
        for file in self.image.files if isinstance(self.image, ExamArray) else ():
            file.check()


def exam_cube(
    early: Volume, mask: np.ndarray, settings: Settings, others: Mapping[str, Volume] | None = None
) -> tuple[np.ndarray, np.ndarray, CubeFrame]:
    """What the network sees of one exam.

    Args:
        early: early post-contrast volume, RAS+, any units.
        mask: (x, y, z) bool tumour mask on the early phase's grid; only the mask-only model's cube depends on it.
        settings: of the run.
        others: the phases beside early of which a run's channels are made, on its grid, from phases.load_others.

    Returns:
        image float32 of the shape phases.cube_shape, in [0, ceiling] but for a subtraction, see
        phases.channels_of; mask (side, side, side) bool, and where the cube lies.

    Raises:
        ExamError: as phases.channels_of.
    """
    side, background = settings.volume.side, settings.volume.background
    if settings.uses_box:
        frame = box_frame(mask, early.zooms, side, settings.mask.box_margin_mm)
    else:
        frame = frame_of(early.data.shape, early.zooms, side)
    cubes = [to_cube(channel, frame, background) for channel in channels_of(early, others or {}, settings.volume)]
    image = np.stack(cubes, axis=-1) if len(cubes) > 1 else cubes[0]
    return image, mask_to_cube(mask, frame), frame


def file_digest(path: Path) -> str:
    """Hex digest of an exam's file, see io.digest_of."""
    return digest_of(path, "blake2b")


def file_digests(subject: Subject, volume: VolumeSettings = EARLY_ALONE) -> dict[str, str | None]:
    """Digests of the files that a subject's cube is made of: early and mask, pre where there is no mask, and phases.

    Raises:
        ExamError: as phases.check_phases.
    """
    check_phases(subject, volume)
    unread = subject.mask and "pre" not in files_of(volume)
    made_from = {"early": subject.early, "pre": None if unread else subject.pre, "mask": subject.mask}
    if "late" in files_of(volume):
        made_from["late"] = subject.late
    return {name: file_digest(path) if path else None for name, path in made_from.items()}


def exam_path(subject: Subject, settings: Settings, folder: Path) -> Path:
    """The file of a subject's exam in the cache at ``folder``, there or not; an absolute path, for other processes."""
    return folder.absolute() / EXAMS / f"{exam_name(file_digests(subject, settings.volume), settings)}.h5"


def exam_name(digests: Mapping[str, Any], settings: Settings) -> str:
    """The cube's side, FORMAT, and 24 hex digits that change with the files' contents and the relevant settings.

    Args:
        digests: from file_digests.
    """
    made_from = {
        "format": FORMAT,
        "volume": asdict(settings.volume),
        "mask": asdict(settings.mask),
        "box": settings.uses_box,
        "stored": _stored_count(settings),
        "turn": settings.training.turn_degrees,
        "files": digests,
    }
    digest = hashlib.blake2b(json.dumps(made_from, sort_keys=True).encode(), digest_size=12).hexdigest()
    return f"{settings.volume.side}-v{FORMAT}-{digest}"


def _stored_count(settings: Settings) -> int:
    return 3 if settings.training.augment == "paper" else 1


def estimated_bytes(subjects: int, settings: Settings) -> int:
    """Size of so many exams' files in bytes: float16 channels and one-byte mask for each stored voxel."""
    each = 2 * math.prod(cube_shape(settings.volume)) + settings.volume.side**3
    return subjects * (_stored_count(settings) * each + (1 << 14))


def cached(
    subjects: Sequence[Subject],
    settings: Settings,
    folder: Path,
    progress: Progress | None = None,
    tell: Tell | None = None,
    elsewhere: Elsewhere | None = None,
) -> Cache:
    """The exams of these subjects from the cache; those that are not there, or were changed on the disk, are made.

    Of several processes that ask for the same exams each makes others; then they wait for each other. As many subjects
    as there are cores (WORKERS at most) are in memory at a time.

    Args:
        subjects, settings: what it is made of.
        folder: where exams are kept, for all runs.
        progress: called with (done, of) for each exam that was missing.
        tell: gets a line where an exam that was there is not used.
        elsewhere: makes the missing exams, as the workers of a cluster do; what it leaves is made here.

    Raises:
        CacheError: not enough room on the disk.
        ExamError: a subject's files cannot be used.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, WORKERS)) as pool, ExitStack() as held:
        paths = list(pool.map(lambda subject: exam_path(subject, settings, folder), subjects))
        wanted = dict(zip(paths, subjects, strict=True))  # subjects of the same bytes share an exam
        found = dict(zip(wanted, pool.map(open_exam, wanted), strict=True))
        missing = [path for path in wanted if found[path] is None]
        for path in wanted.keys() - missing:
            with suppress(OSError):
                os.utime(path)  # when it was last used, see cache_folder
        if tell and (changed := [wanted[path].name for path in missing if path.exists()]):
            tell(f"cache {folder}: {len(changed)} exams changed on the disk ({few(changed)}); made anew")
        _check_room(len(missing), settings, folder)
        held.callback(hold(folder, [path.stem for path in paths]))
        missing += [path for path in wanted.keys() - missing if not path.exists()]  # removed before they were held
        if elsewhere and missing:
            for done in elsewhere([wanted[path] for path in missing], settings, folder.absolute()):
                if progress:
                    progress(done, len(missing))
            found |= dict(zip(missing, pool.map(open_exam, missing), strict=True))
            missing = [path for path in missing if found[path] is None]
        found |= _made({path: wanted[path] for path in missing}, settings, folder, pool, progress)
        files = [file for path in paths if (file := found[path])]
        cache = Cache(
            folder,
            tuple(subject.name for subject in subjects),
            ExamArray(files, "image"),
            ExamArray(files, "mask"),
            np.array([file.voxel_mm for file in files]),
            tuple(file.report for file in files),
        )
        weakref.finalize(cache, held.pop_all().close)
        return cache


def _check_room(count: int, settings: Settings, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = estimated_bytes(count, settings), shutil.disk_usage(folder).free
    if needed > free:
        raise CacheError(
            f"the cache of {count} more exams at {settings.volume.side}^3 needs {needed / 1e9:.2f} GB in {folder}. "
            f"Received: {free / 1e9:.2f} GB free. Make room (`mgkeras cache` can), name another --cache, or a smaller "
            "--side."
        )


def _made(
    missing: Mapping[Path, Subject], settings: Settings, folder: Path, pool: Executor, progress: Progress | None
) -> dict[Path, ExamFile]:
    """Makes exams; those that another process is making are waited for at the end."""
    found: dict[Path, ExamFile] = {}
    for wait in (False, True):
        left = [path for path in missing if path not in found]
        make = partial(prepare_exam, settings=settings, folder=folder, wait=wait)
        for path, file in zip(left, pool.map(make, [missing[path] for path in left]), strict=True):
            if file:
                found[path] = file
                if progress:
                    progress(len(found), len(missing))
    return found


def prepare_exam(subject: Subject, settings: Settings, folder: Path, *, wait: bool = True) -> ExamFile | None:
    """A subject's exam in the cache at ``folder``, made if it is not there.

    Args:
        wait: for another process that is making it; None is returned otherwise.

    Raises:
        CacheError: the file cannot be written. ExamError: the subject's files cannot be used.
    """
    path = exam_path(subject, settings, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(path.with_name(f".{path.name}.part"), wait) as part:
        if part is None or (file := open_exam(path)):  # another process is making it, or has made it meanwhile
            return None if part is None else file
        made = _prepared(subject, settings)
        try:
            write_exam(part, path.stem, *made)
            os.replace(part, path)
        except OSError as error:
            raise CacheError(f"the cache could not be written to {path.parent}: {error}") from error
        if not (file := open_exam(path)):
            raise CacheError(f"expected a readable exam after writing it. Received: {path}; is its disk failing?")
        return file


def _prepared(subject: Subject, settings: Settings) -> tuple[np.ndarray, np.ndarray, float, dict]:
    """One subject's stored images float16 (stored, *cube_shape), masks uint8, voxel_mm and mask report."""
    stored, degrees = _stored_count(settings), settings.training.turn_degrees
    early, tumour = subject_mask(subject, settings.mask)
    others = load_others(subject, early, settings.volume)
    try:
        cube, inside, frame = exam_cube(early, tumour.mask, settings, others)
    except ExamError as error:
        raise ExamError(f"subject {subject.name}: {error}") from None
    images = stored_volumes(cube, degrees, settings.volume.background)[:stored].astype("<f2")
    if not np.isfinite(images).all():
        raise ExamError(f"subject {subject.name}: expected finite voxels in its cube. Received: NaN or infinity")
    masks = stored_volumes(inside, degrees)[:stored].astype(np.uint8)
    return np.ascontiguousarray(images), np.ascontiguousarray(masks), frame.voxel_mm, tumour.report
