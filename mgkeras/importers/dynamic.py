"""Which of a study's series are the dynamic ones: 3D T1-weighted, on the same grid, at two or more times."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mgkeras.importers.dicom_header import Series, Slice
from mgkeras.importers.found import SourceError
from mgkeras.importers.series import SAME_MM, Phase, alike, near, phases_of, same_grid, split

FEWEST_PLACES = 4  # fewer slices are a localizer or a picture of numbers
LONGEST_REPETITION = 100.0  # ms; spoiled gradient echoes, which are T1-weighted, have 3 to 30
LONGEST_ECHO = 15.0  # ms; theirs is 1 to 8
SAME_SHARE = 0.05  # of repetition and echo times, in which series of one dynamic scan differ by rounding only
COMPUTED = re.compile(
    r"(?<![a-z])(sub\w*|ser|pe(?!\s*=)|mips?|mpr|reformat\w*|wash[ _-]?(in|out)\w*|ttp|kinetic\w*|"
    r"maps?|adc|loc\w*|scout|survey)(?![a-z])",
    re.IGNORECASE,
)
RULE = (
    "the dynamic series are those of MR images that are 3D and T1-weighted (repetition time of at most "
    f"{LONGEST_REPETITION:g} ms, echo time of at most {LONGEST_ECHO:g} ms, no echo planar imaging), neither derived "
    "nor localizers by image type or description, and on one grid at two or more times; of several grids the one of "
    "most phases"
)


class NoDynamicSeries(SourceError):
    """A study without any."""


def dynamic_phases(study: Sequence[Series], pattern: str | None = None) -> tuple[Phase, ...]:
    """The phases, two or more, of a study's dynamic series.

    Args:
        study: all its series.
        pattern: a regular expression to be found, upper and lower case alike, in "DESCRIPTION PROTOCOL IMAGE\\TYPE"
            of the dynamic series. It replaces the rules on the kind of images and on equal repetition time, echo time,
            flip angle and scan options; that of the grid stays.

    Raises:
        NoDynamicSeries: no series, or no two phases on one grid.
        SourceError: slices are missing, or it is doubtful which series are meant. The message is a reason.
    """
    taken = [scan for scan in study if not why_not(scan, pattern)]
    whole, broken = [], []
    for scan in taken:
        try:
            whole.append((scan, split(scan)))
        except SourceError as error:
            broken.append((scan, str(error)))
    groups: list[list[tuple[Series, list[tuple[Slice, ...]]]]] = []
    for scan, parts in whole:
        group = next((group for group in groups if same_grid(group[0][1][0], parts[0])), None)
        groups.append([(scan, parts)]) if group is None else group.append((scan, parts))
    for group in groups:
        group[:] = _one_contrast(group)
    counts = [sum(len(parts) for _, parts in group) for group in groups]
    most = max(counts, default=0)
    if most < 2:
        if broken:
            raise SourceError(broken[0][1])
        raise NoDynamicSeries("no dynamic series" if pattern is None else "no dynamic series of that description")
    if counts.count(most) > 1:
        raise SourceError("several grids have the same number of phases: name the dynamic series by --series")
    group = groups[counts.index(most)]
    _check_complete(group[0][1][0], [parts[0] for other in groups if other is not group for _, parts in other])
    if reasons := [reason for scan, reason in broken if alike(scan.files[0], group[0][1][0][0])]:
        raise SourceError(reasons[0])
    if pattern is None and not all(_same_sequence(group[0][0], scan) for scan, _ in group):
        raise SourceError(
            "series on the same grid differ in repetition time, echo time, flip angle or scan options: "
            "name the dynamic ones by --series"
        )
    return phases_of([scan for scan, _ in group])


def why_not(series: Series, pattern: str | None = None) -> str:
    """Why a series is none of the dynamic ones, whatever its grid; '' where it may be one."""
    if series.modality != "MR":
        return "other modalities"
    if pattern is not None:
        text = f"{series.description} {series.protocol} {chr(92).join(series.image_type)}"
        return "" if re.search(pattern, text, re.IGNORECASE) else "another description than --series names"
    kind = {word.upper() for word in series.image_type}
    if (
        "LOCALIZER" in kind
        or kind & {"DERIVED", "SECONDARY", "SUBTRACTION", "SUB", "MIP", "PROJECTION IMAGE"}
        or (COMPUTED.search(series.description))
    ):
        return "localizers and derived images"
    slow = (series.repetition or 0) > LONGEST_REPETITION or (series.echo or 0) > LONGEST_ECHO
    if slow or series.dimensions.upper() == "2D" or "EP" in series.sequence:
        return "not 3D or not T1-weighted"
    return "fewer than four slices" if series.places < FEWEST_PLACES else ""


def _one_contrast(group: list[tuple[Series, list[tuple[Slice, ...]]]]) -> list[tuple[Series, list[tuple[Slice, ...]]]]:
    """Series on one grid, of which those that show the same times in several ways (water and fat) are told apart.

    Raises:
        SourceError: several image types or series of the same times, none of them water alone.
    """
    times = Counter(time for scan, parts in group for time in {_time(part) for part in parts})
    if max(times.values()) == 1:
        return group
    water = [(scan, parts) for scan, parts in group if {"W", "WATER"} & {word.upper() for word in scan.image_type}]
    if water and len(water) < len(group):
        return _one_contrast(water)
    kinds = {(scan.image_type, scan.echo) for scan, _ in group}
    if len(kinds) > 1:
        raise SourceError("several image types of the same times: name one by --series, which sees the image type too")
    if (
        max(Counter((_time(part), min(s.content or 0 for s in part)) for _, parts in group for part in parts).values())
        > 1
    ):
        raise SourceError("several series of the same times: name the dynamic ones by --series")
    return group


def _time(phase: Sequence[Slice]) -> tuple:
    """What tells a phase's time from another's."""
    names = ("acquisition", "trigger", "temporal")
    times = tuple(
        min((getattr(image, name) for image in phase if getattr(image, name) is not None), default=None)
        for name in names
    )
    return (*times, min(image.content or 0 for image in phase) if times[0] is None else None)


def _same_sequence(a: Series, b: Series) -> bool:
    return (
        near(a.repetition, b.repetition, SAME_SHARE)
        and near(a.echo, b.echo, SAME_SHARE)
        and near(a.flip, b.flip, SAME_SHARE)
        and a.options == b.options
    )


def _check_complete(grid: Sequence[Slice], others: Sequence[Sequence[Slice]]) -> None:
    """Another series whose slices are a part of the grid's, or the other way round, is a phase that lacks slices."""
    for other in others:
        few, many = sorted((grid, other), key=len)
        if alike(few[0], many[0]):
            there = np.array([image.position for image in many])
            apart = [np.abs(there - image.position).max(axis=1).min() for image in few]
            if max(apart) < SAME_MM:
                raise SourceError("slices are missing: phases of different numbers of slices")
