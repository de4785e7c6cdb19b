"""Which files of a BIDS subject are its dynamic phases, in which order, and when each was acquired."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import nibabel as nib
import numpy as np

from mgkeras.data.io import written_whole
from mgkeras.data.nifti import BEST_RATIO, MOST_VOXELS, UNREADABLE, image_of
from mgkeras.data.table import TableError, read_lines
from mgkeras.importers.enhancement import enhancement_curve
from mgkeras.importers.found import LeftOut, SourceError
from mgkeras.importers.listing import stem

DAY, LARGEST_SIDECAR = 86400.0, 10_000_000
TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SHORTEST_STEP = 0.5  # s from volume to volume; a shorter time is a pulse's repetition, not a volume's
BROKEN = (*UNREADABLE, nib.filebasedimages.ImageFileError)  # what nibabel raises, for 4D files


@dataclass(frozen=True)
class Scan:
    """A file: its entities and suffix in lower case, shape and affine as in its header.

    ``step`` is the seconds from volume to volume that the header tells, None where it tells none.
    """

    path: Path
    entities: dict[str, str]
    suffix: str
    shape: tuple[int, ...]
    affine: np.ndarray
    step: float | None = None

    @property
    def volumes(self) -> int:
        """How many the file holds."""
        return self.shape[3] if len(self.shape) == 4 else 1


class Phase(NamedTuple):
    """A volume of a file, ``place`` None where it is the only one; ``seconds`` on the clock or from the first."""

    path: Path
    place: int | None
    seconds: float | None


def entities_of(name: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a file's name, in lower case: 'sub-1_run-2_T1w.nii.gz' -> {sub: 1, run: 2}, 't1w'."""
    parts = stem(Path(name.casefold())).split("_")
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    return entities, "" if "-" in parts[-1] else parts[-1]


def scan_of(path: Path) -> Scan:
    """A file's name and header.

    Raises:
        SourceError: it cannot be read, or claims more than a file of its size can hold.
    """
    try:
        image = _loaded(path)
        shape = tuple(map(int, image.shape))
        size = math.prod(shape) * image.get_data_dtype().itemsize
        if size > BEST_RATIO * path.stat().st_size or math.prod(shape[:3]) > MOST_VOXELS:
            raise SourceError(f"{path.name} claims the shape {shape}, more than it can hold")
        return Scan(path, *entities_of(path.name), shape, image.affine, _header_step(image.header))
    except BROKEN as error:
        raise SourceError(f"{path.name} cannot be read: {error}") from None


def _loaded(path: Path) -> nib.Nifti1Image:
    # read, not mapped: a map of a file that is cut off ends the process
    return cast(
        nib.Nifti1Image, nib.load(path, mmap=False)
    )  # what nibabel makes of a file by its name is of no narrower type


def _header_step(header: Any) -> float | None:
    """pixdim[4] in seconds, None without a unit of time: programs write 1 there for want of a value."""
    unit = TIME_UNITS.get(header.get_xyzt_units()[1]) if hasattr(header, "get_xyzt_units") else None
    return None if unit is None else float(header["pixdim"][4]) * unit


def curve_of(phases: Sequence[Phase]) -> np.ndarray:
    """The mean signal of what enhances, by phase, see enhancement.enhancement_curve.

    Raises:
        SourceError: a file that cannot be read, or phases in which nothing enhances.
    """
    try:
        images = {phase.path: _loaded(phase.path) for phase in phases}
        return enhancement_curve(
            np.asarray(
                (images[phase.path] if phase.place is None else images[phase.path].slicer[..., phase.place]).dataobj,
                np.float32,
            ).reshape(images[phase.path].shape[:3])
            for phase in phases
        )
    except BROKEN as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"a phase cannot be read: {error}") from None


def write_volume(path: Path, index: int, out: Path) -> Path:
    """Writes one volume of a 4D file on the file's own grid, through a temporary name and a rename; returns ``out``.

    Raises:
        SourceError: the file cannot be read, to its end if it is packed, where its checksum is.
    """
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as stream:
                while stream.read(1 << 22):
                    pass
        image = _loaded(path)
        data = np.asarray(image.slicer[..., index].dataobj, np.float32)  # (i, j, k)
        qform, sform = (int(image.header[f"{kind}_code"]) for kind in ("qform", "sform"))
        written = image_of(data, image.affine, (qform, sform))
    except BROKEN as error:
        raise SourceError(f"{path.name} cannot be read: {error}") from None
    with written_whole(out) as part:
        nib.save(written, part)
    return out


def dynamic_series(scans: Sequence[Scan]) -> list[Scan]:
    """The files of the one dynamic series.

    A T1w without ce- belongs to a series with it if it lies on the same grid: it is the scan before contrast then.

    Raises:
        SourceError: no series of two volumes or more, or several.
    """
    groups: defaultdict[tuple, list[Scan]] = defaultdict(list)
    for scan in scans:
        rest = {name: text for name, text in scan.entities.items() if name not in ("ce", "run", "echo")}
        groups[scan.suffix, tuple(sorted(rest.items()))].append(scan)
    dynamic = []
    for (suffix, _), group in groups.items():
        after = [scan for scan in group if "ce" in scan.entities]
        if suffix == "t1w":
            group = after and [scan for scan in group if "ce" in scan.entities or _same_grid(scan, after[0])]
            if len(plain := [scan for scan in group if "ce" not in scan.entities]) > 1:
                raise SourceError(f"several T1w without ce-: {_names(plain)}")
        dynamic.append(group)
    most = max((sum(scan.volumes for scan in group) for group in dynamic), default=0)
    best = [group for group in dynamic if sum(scan.volumes for scan in group) == most]
    if most < 2:
        raise SourceError("no dynamic series: no dce, and no T1w with ce- in two phases or more")
    if len(best) > 1:
        names = _names(group[0] for group in best)
        raise SourceError(f"several dynamic series: {names} ...; use `mgkeras import folder`")
    return best[0]


def _same_grid(scan: Scan, other: Scan) -> bool:
    return scan.shape[:3] == other.shape[:3] and np.allclose(scan.affine, other.affine, atol=0.01)


def _names(scans: Iterable[Scan]) -> str:
    return ", ".join(scan.path.name for scan in scans)


def phases_of(name: str, series: Sequence[Scan], visit: Path) -> tuple[list[Phase], list[LeftOut]]:
    """A series' volumes in the order of time, and what is to be told of sidecars that cannot be read.

    Args:
        name: the subject.
        series: of dynamic_series.
        visit: the folder whose scans.tsv tells times that no sidecar does.

    Raises:
        SourceError: neither times nor names tell the order.
    """
    sidecars = {scan.path: sidecar_of(scan.path) for scan in series}
    reasons = [LeftOut(name, reason, "times of the phases") for _, reason in sidecars.values() if reason]
    listed = _scans_table(visit)
    clock = {scan.path: _clock(sidecars[scan.path][0].get("AcquisitionTime")) for scan in series}
    clock = {path: listed.get(path.name) if seconds is None else seconds for path, seconds in clock.items()}
    known = {path: seconds for path, seconds in clock.items() if seconds is not None}
    if len(known) == len(clock) and max(known.values()) - min(known.values()) > DAY / 2:  # past midnight
        known = {path: seconds + DAY * (seconds < DAY / 2) for path, seconds in known.items()}
    if len(set(known.values())) == len(series):
        ordered = sorted(series, key=lambda scan: known[scan.path])
    else:
        ordered = sorted(series, key=_rank)
        twice = [b for a, b in pairwise(ordered) if _rank(a) == _rank(b)]
        if twice:
            raise SourceError(f"phases of which no run- or echo- tells the order: {_names(ordered)}")
        known = {} if len(series) > 1 else dict.fromkeys(clock, 0.0)
    phases = []
    for scan in ordered:
        began, starts = known.get(scan.path), _starts(sidecars[scan.path][0], scan.volumes, scan.step)
        phases += [
            Phase(
                scan.path,
                index if len(scan.shape) == 4 and scan.volumes > 1 else None,
                None if began is None or starts is None else began + starts[index],
            )
            for index in range(scan.volumes)
        ]
    return phases, reasons


def _rank(scan: Scan) -> tuple:
    return "ce" in scan.entities, *(
        (int(text) if (text := scan.entities.get(name, "0")).isdigit() else 0) for name in ("run", "echo")
    )


def sidecar_of(path: Path) -> tuple[dict[str, Any], str]:
    """What the JSON file beside an image says, {} if there is none; why it cannot be read, or ''."""
    sidecar = path.with_name(stem(path) + ".json")
    if not sidecar.is_file():
        return {}, ""
    try:
        found = json.loads(sidecar.read_text("utf-8-sig")) if sidecar.stat().st_size <= LARGEST_SIDECAR else None
    except (OSError, ValueError, RecursionError):
        found = None
    return (found, "") if isinstance(found, dict) else ({}, f"{sidecar.name} is no JSON object")


def _scans_table(visit: Path) -> dict[str, float | None]:
    """{name of a file: seconds of the day} from the session's scans.tsv."""
    tables = [path for path in visit.iterdir() if path.name.lower().endswith("_scans.tsv")]
    try:
        lines = [cells for _, cells in read_lines(tables[0])] if len(tables) == 1 else [[]]
    except TableError:
        return {}
    if not {"filename", "acq_time"} <= set(lines[0]):
        return {}
    name, time = lines[0].index("filename"), lines[0].index("acq_time")
    return {cells[name].rpartition("/")[2]: _clock(cells[time]) for cells in lines[1:] if len(cells) > max(name, time)}


def _clock(value: Any) -> float | None:
    """Seconds of the day of '09:30:15.5', '093015.5' or a date and time; None for anything else."""
    match = re.search(r"(?:^|T|\s)(\d{2}):?(\d{2}):?(\d{2}(?:\.\d*)?)Z?$", str(value))
    return None if match is None else 3600.0 * int(match[1]) + 60 * int(match[2]) + float(match[3])


def _starts(sidecar: dict[str, Any], count: int, header_step: float | None) -> list[float] | None:
    """Seconds from a file's first volume to each; None where neither its sidecar nor its header tells."""
    if count == 1:
        return [0.0]
    for key in ("FrameTimesStart", "VolumeTiming"):
        times = sidecar.get(key)
        if isinstance(times, list) and len(times) == count and all(isinstance(time, int | float) for time in times):
            return [float(time) - float(times[0]) for time in times]
    steps = (sidecar.get("RepetitionTimePreparation"), sidecar.get("RepetitionTime"), header_step)
    usable = [
        step
        for step in steps
        if isinstance(step, int | float) and not isinstance(step, bool) and SHORTEST_STEP <= step < DAY
    ]
    return [round(index * float(usable[0]), 3) for index in range(count)] if usable else None
