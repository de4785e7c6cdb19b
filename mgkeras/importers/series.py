"""DICOM headers -> series -> phases.

Glossary:
    phase: the slices of one volume at one time; a dynamic series holds several, or several series hold one each.
    place: a slice's position along the slices' normal, mm.

No message of this module names a patient, a date or a path below the folder that is read.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np

from mgkeras.importers.dicom_header import Series, Slice, pydicom_or_error, read_header
from mgkeras.importers.found import SourceError

SAME_MM = 0.1  # places and positions nearer than this are one
SAME_COSINE = 1e-3
DAY = 86400.0  # s
SHORTEST_CONTENT = 3.0  # s between phases; content times nearer together say when files were written
UNEVEN = 0.2  # distances of neighbouring places may differ by this share before a slice is missing


@dataclass(frozen=True)
class Headers:
    """What a folder tree holds: its series, files that are no DICOM images, and copies of an image that was read."""

    series: tuple[Series, ...]
    skipped: int
    duplicates: int


@dataclass(frozen=True)
class Phase:
    """The slices of one volume at one time.

    Attributes:
        slices: in the order of their places.
        seconds: since the first phase of the exam, None where the headers do not tell.
        description: SeriesDescription.
        number: SeriesNumber.
    """

    slices: tuple[Slice, ...]
    seconds: float | None
    description: str
    number: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """The slices' files; an enhanced file occurs once a frame."""
        return tuple(image.path for image in self.slices)


def scan(folder: Path, extra: Sequence[str] = ()) -> list[Series]:
    """The series of all DICOM files below a folder, whatever their names; see :func:`read_headers`."""
    return list(read_headers(folder, extra=extra).series)


def read_headers(folder: Path, progress: Callable[[int], None] | None = None, extra: Sequence[str] = ()) -> Headers:
    """Reads the headers, never the voxels, of all files below a folder.

    Args:
        folder: searched with all folders in it; links to folders are not followed.
        progress: called with the number of files read so far, after each.
        extra: keywords of further texts, such as 'ClinicalTrialTimePointID', for Series.extra.

    Returns:
        Headers: the series sorted by patient, study, number and UID.

    Raises:
        SourceError: no such folder, pydicom is missing, or DICOM has no such keyword.
    """
    if not folder.is_dir():
        raise SourceError(f"expected a folder of DICOM files. Received: {folder}")
    pydicom = pydicom_or_error()
    if unknown := [name for name in extra if pydicom.datadict.tag_for_keyword(name) is None]:
        raise SourceError(f"expected keywords of DICOM, such as InstitutionName. Received: {', '.join(unknown)}")
    images, count, skipped = [], 0, 0
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            found = read_header(path, extra) if path.is_file() else []
            images += found
            count, skipped = count + 1, skipped + (not found)
            if progress:
                progress(count)
    single = _without_copies(images)
    series = sorted(
        _gathered(single),
        key=lambda scan: (
            scan.patient_id,
            scan.study_uid,
            scan.number or 0,
            scan.uid,
            scan.image_type,
            scan.files[0].uid,
        ),
    )
    return Headers(tuple(series), skipped, len(images) - len(single))


def phases_of(series: Sequence[Series]) -> tuple[Phase, ...]:
    """The phases of one exam's dynamic series in the order of time, never of file names.

    One series may hold several phases, several series one or more each. The slices at a place are ranked by
    acquisition time; where it is the same, by trigger time, temporal position, content time, acquisition number and
    instance number, the first that differs. Content times a few seconds apart say when files were written, and count
    neither for the order nor as times. Times more than half a day apart lie on both sides of midnight. Phases of
    several series are ordered likewise, by the series number before the acquisition number; where acquisition times
    are missing, by content time before trigger time.

    Args:
        series: the dynamic ones of one exam; the choice is the caller's.

    Raises:
        SourceError: no series, slices without position, several grids, places that some or all phases lack, phases
            that overlap in time or that nothing tells apart. The message is a reason to leave the exam out.
    """
    if not series:
        raise SourceError("no series")
    series = _past_midnight(series)
    phases = [(scan.number or 0, scan.uid, scan.description, part) for scan in series for part in split(scan)]
    first = phases[0][3]
    if any(not same_grid(first, part) for *_, part in phases):
        raise SourceError("phases lie on different grids")
    slices = [image for *_, part in phases for image in part]
    restarts = len({scan.uid for scan in series}) > 1 and not _known(slices, "acquisition")  # trigger times do, then
    names: tuple[str, ...]
    names = ("content", "trigger", "temporal") if restarts else ("acquisition", "trigger", "temporal", "content")
    names = tuple(name for name in names if _known(slices, name))
    if "content" in names and _are_written_times([_first_written([part for *_, part in phases])]):
        names = tuple(name for name in names if name != "content")

    def order(phase: tuple[int, str, str, tuple[Slice, ...]]) -> tuple:
        number, uid, _, part = phase
        earliest = min(tuple(getattr(image, name) for name in names) for image in part)
        return (
            *earliest,
            number,
            uid,
            min(image.acquisition_number or 0 for image in part),
            min(image.instance or 0 for image in part),
        )

    phases.sort(key=order)
    seconds = _seconds([part for *_, part in phases], content_only=restarts)
    if None in seconds and len(series) == 1 and series[0].step:
        seconds = [round(n * series[0].step, 3) for n in range(len(phases))]
    return tuple(Phase(part, when, text, number) for (number, _, text, part), when in zip(phases, seconds, strict=True))


def same_grid(a: Sequence[Slice], b: Sequence[Slice]) -> bool:
    """Whether the slices of two phases, in the order of their places, lie on the same grid."""
    return len(a) == len(b) and all(
        alike(image, other) and np.abs(np.subtract(image.position, other.position)).max() < SAME_MM
        for image, other in zip(a, b, strict=True)
    )


def _without_copies(images: Iterable[Series]) -> list[Series]:
    """Series of one slice each, less those whose UID and frame occurred before; in an order without file names."""

    def order(scan: Series) -> tuple:
        image = scan.files[0]
        return (scan.patient_id, scan.study_uid, scan.uid, image.instance or 0, image.uid, image.frame or 0, image.path)

    kept: dict[tuple, Series] = {}
    for scan in sorted(images, key=order):
        image = scan.files[0]
        kept.setdefault((scan.patient_id, image.uid or image.path, image.frame), scan)
    return list(kept.values())


def _gathered(images: Iterable[Series]) -> list[Series]:
    """Series of one slice each -> Series of all slices that show the same thing."""
    groups: dict[tuple, list[list[Series]]] = defaultdict(list)
    for scan in images:
        stacks = groups[scan.patient_id, scan.study_uid, scan.uid, scan.modality, scan.image_type]
        for stack in stacks:
            if alike(stack[0].files[0], scan.files[0]) and near(stack[0].echo, scan.echo, 0.05):
                stack.append(scan)
                break
        else:
            stacks.append([scan])
    return [
        replace(stack[0], files=tuple(scan.files[0] for scan in stack))
        for stacks in groups.values()
        for stack in stacks
    ]


def near(a: float | None, b: float | None, share: float) -> bool:
    """Whether two values are the same within a share of the larger; None is near None alone."""
    return a == b if a is None or b is None else abs(a - b) <= share * max(abs(a), abs(b))


def alike(a: Slice, b: Slice) -> bool:
    """Whether two slices have the same matrix, spacing and orientation."""
    if (a.rows, a.columns, len(a.orientation), len(a.spacing), len(a.position)) != (
        b.rows,
        b.columns,
        len(b.orientation),
        len(b.spacing),
        len(b.position),
    ):
        return False
    far = np.abs(np.subtract(a.orientation, b.orientation)).max(initial=0) > SAME_COSINE
    return not far and np.allclose(a.spacing, b.spacing, rtol=0.01)


def places(slices: Sequence[Slice]) -> list[float]:
    """Each slice's position along the normal of the first, mm.

    Raises:
        SourceError: slices without orientation or position.
    """
    if not all(image.orientation and image.position and image.spacing for image in slices):
        raise SourceError("slices without position, orientation or pixel spacing")
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    return [float(np.dot(normal, image.position)) for image in slices]


def split(series: Series) -> list[tuple[Slice, ...]]:
    """The phases of one series, each in the order of places."""
    (series,) = _past_midnight([series])
    where = places(series.files)
    order = sorted(range(len(where)), key=where.__getitem__)
    starts = [0, *(n for n in range(1, len(order)) if where[order[n]] - where[order[n - 1]] > SAME_MM), len(order)]
    stacks = [[series.files[at] for at in order[a:b]] for a, b in pairwise(starts)]
    steps = np.diff([where[order[n]] for n in starts[:-1]])
    if len(steps) and steps.max() > (1 + UNEVEN) * np.median(steps):
        raise SourceError("slices are missing: a gap between neighbours")
    if len({len(stack) for stack in stacks}) > 1:
        raise SourceError("slices are missing: phases of different numbers of slices")
    names = [
        name
        for name in ("acquisition", "trigger", "temporal", "content", "acquisition_number", "instance")
        if _known(series.files, name)
    ]
    if "content" in names and _are_written_times(stacks):
        names.remove("content")
    for stack in stacks:
        stack.sort(key=lambda image: tuple(getattr(image, name) for name in names))
        if any(all(getattr(a, name) == getattr(b, name) for name in names) for a, b in pairwise(stack)):
            raise SourceError("slices at the same place that no time and no number tells apart")
    phases = list(zip(*stacks, strict=True))
    _check_apart(phases, names)
    return phases


def _check_apart(phases: Sequence[tuple[Slice, ...]], names: Sequence[str]) -> None:
    """Phases that were ranked place by place must follow one another in the first time that differs between them."""
    marks = [{image.temporal for image in phase} for phase in phases]
    if len(set().union(*marks)) == len(phases) and any(len(mark) > 1 for mark in marks):
        raise SourceError("temporal positions and times contradict each other")
    for name in names:
        times = np.array([[getattr(image, name) for image in phase] for phase in phases])  # (phases, places)
        if (times != times[0]).any():
            if name in ("acquisition", "trigger") and (times.max(axis=1)[:-1] > times.min(axis=1)[1:]).any():
                raise SourceError("phases overlap in time")
            return


def _past_midnight(series: Sequence[Series]) -> list[Series]:
    """Series of one exam whose times of the day, where they lie more than half a day apart, go on past midnight."""
    for name in ("acquisition", "content"):
        times = [value for scan in series for part in scan.files if (value := getattr(part, name)) is not None]
        if times and max(times) - min(times) > DAY / 2:
            series = [
                replace(scan, files=tuple(_later(part, name, max(times) - DAY / 2) for part in scan.files))
                for scan in series
            ]
    return list(series)


def _later(part: Slice, name: str, before: float) -> Slice:
    """A slice a day later, if the time of this name lies before a moment."""
    value = getattr(part, name)
    return part if value is None or value >= before else replace(part, **{name: value + DAY})


def _first_written(phases: Sequence[Sequence[Slice]]) -> list[Slice]:
    """Of each phase the slice of the earliest content time."""
    return [min(phase, key=attrgetter("content")) for phase in phases]


def _are_written_times(stacks: Sequence[Sequence[Slice]]) -> bool:
    """Whether content times, of the slices at each place, lie too near together to be times of phases."""
    gaps = [b - a for stack in stacks for a, b in pairwise(sorted(map(attrgetter("content"), stack)))]
    return bool(gaps) and float(np.median(gaps)) < SHORTEST_CONTENT


def _known(slices: Iterable[Slice], name: str) -> bool:
    return all(getattr(image, name) is not None for image in slices)


def _seconds(phases: Sequence[tuple[Slice, ...]], content_only: bool) -> list[float | None]:
    """Since the first phase, by the first of acquisition, acquisition and trigger, and content that keeps rising."""
    slices = [image for phase in phases for image in phase]
    first = {
        name: [min(getattr(image, name) for image in phase) for phase in phases]
        for name in ("acquisition", "trigger", "content")
        if _known(slices, name)
    }
    known = [first["acquisition"]] if "acquisition" in first else []
    if "trigger" in first and not content_only:
        base = first.get("acquisition", [0.0] * len(phases))
        start = {value: min(t for t, b in zip(first["trigger"], base, strict=True) if b == value) for value in base}
        known.append([b + (t - start[b]) / 1000 for t, b in zip(first["trigger"], base, strict=True)])
    if "content" in first and not _are_written_times([_first_written(phases)]):
        known.append(first["content"])
    for values in known:
        if all(b > a for a, b in pairwise(values)):
            return [round(value - values[0], 3) for value in values]
    return [None] * len(phases)
