"""What the downloads of The Cancer Imaging Archive have in common: a folder a patient, and phases that become files."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mgkeras.importers.found import LeftOut, SourceError
from mgkeras.importers.labels import Label, number
from mgkeras.importers.phases import choose_phases
from mgkeras.importers.series import Phase, Series, convert, scan
from mgkeras.importers.tables import EXTRA

NO_FOLDER = "no folder of this patient"
NO_SERIES = "its folder holds no MR images of this patient"


def patient_folders(source: Path, pattern: str) -> dict[int, list[Path]]:
    """The patients' folders by the number in their name, at whatever depth below the source.

    Args:
        source: a patient may have several folders in it, one in each part of a download.
        pattern: a regular expression of the folders' whole names, upper and lower case alike, whose first group is the
            number. What lies in a patient's folder is not searched for others.
    """
    found: dict[int, list[Path]] = defaultdict(list)
    for folder, names, _ in os.walk(source):
        theirs = {name: match for name in sorted(names) if (match := re.fullmatch(pattern, name, re.IGNORECASE))}
        for name, match in theirs.items():
            found[int(match[1])].append(Path(folder) / name)
        names[:] = sorted(set(names) - theirs.keys())
    return dict(found)


def number_in(text: str, pattern: str) -> int | None:
    """The number that the pattern's first group finds in a whole text; None for a text of another form."""
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
    return int(match[1]) if match else None


def mr_series(folders: Iterable[Path], patient: int, pattern: str, extra: Sequence[str] = ()) -> list[Series]:
    """The MR series in a patient's folders, without those whose header names another patient.

    Args:
        folders: of the patient; what lies in two of them counts once.
        patient: the number in the folders' names.
        pattern: of PatientID, as :func:`patient_folders` takes it; a header without PatientID passes.
        extra: keywords of further header texts.
    """
    found: dict[tuple, Series] = {}
    for series in (one for folder in folders for one in scan(folder, extra=extra)):
        if series.modality in ("MR", "") and number_in(series.patient_id, pattern) in (patient, None):
            first = series.files[0]
            kind = series.uid, series.image_type, series.echo, first.rows, first.columns, first.orientation
            images = {(one.uid, one.frame): one for part in (found.get(kind, series), series) for one in part.files}
            found[kind] = replace(series, files=tuple(images.values()))
    return list(found.values())


def write_phases(phases: Sequence[Phase], name: str, nifti: Path, early: float, late: float) -> dict[str, Path]:
    """Converts the phases that an exam needs to NIFTI/NAME_pre.nii.gz, NAME_early.nii.gz and NAME_late.nii.gz.

    Args:
        phases: of one exam, in the order of time.
        name: of the subject.
        nifti: the folder to write to.
        early, late: seconds after the first phase that T1 and T2 should have.

    Returns:
        Paths by column: pre, early and, where a phase follows early, late.

    Raises:
        SourceError: fewer than two phases, or a phase that cannot be converted.
    """
    times = [phase.seconds for phase in phases]
    chosen = choose_phases(len(phases), None if None in times else times, early=early, late=late)
    if chosen is None:
        raise SourceError("its dynamic series holds one phase only")
    places = {column: place for column, place in chosen._asdict().items() if place is not None}
    return {column: convert(phases[place], nifti / f"{name}_{column}.nii.gz") for column, place in places.items()}


def reason(error: SourceError) -> str:
    """Why one exam is left out, from the error that it met.

    Raises:
        SourceError: the same, if it is about a program that is not installed and so about every exam.
    """
    if EXTRA in str(error):
        raise error
    return str(error)


def nameless(rows: Iterable[Mapping[str, str]]) -> list[LeftOut]:
    """The rows that have no ``id`` but something else; a formula that was never computed is such an ID."""
    return [LeftOut("(no name)", "a row without an ID") for row in rows if not row["id"] and any(row.values())]


def days(text: str) -> float | None:
    """A cell as a finite number; None where it is missing or holds none, such as Excel's #REF!."""
    try:
        value = number(text)
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def plain(text: str) -> str:
    """A cell's number as text without a superfluous .0; '' where it holds none."""
    value = days(text)
    return "" if value is None else f"{value:g}"


def unknown(name: str, labels: Mapping[str, Label]) -> list[LeftOut]:
    """Of a subject's labels those that are not known, with their reasons."""
    return [LeftOut(name, label.reason or "", of=outcome) for outcome, label in labels.items() if not label.value]
