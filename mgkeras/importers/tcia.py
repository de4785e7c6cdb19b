"""What the downloads of The Cancer Imaging Archive have in common: a folder a patient, and phases that become files."""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mgkeras.data.nifti import read_nifti
from mgkeras.importers.conversion import convert
from mgkeras.importers.enhancement import enhancement_curve
from mgkeras.importers.found import LeftOut, SourceError, Twice
from mgkeras.importers.labels import number_or_none
from mgkeras.importers.phases import PhaseRule, Taken, phases_by_column, runs_of
from mgkeras.importers.series import Phase, Series, scan
from mgkeras.importers.tables import unique


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


def numbered_rows(
    rows: Sequence[dict[str, str]], pattern: str, form: str, path: Path
) -> tuple[dict[int, dict[str, str]], list[LeftOut]]:
    """A table's rows by the patient's number, and those whose ``id`` has none.

    Args:
        rows: fields, one of which is ``id``.
        pattern: a regular expression of the whole ID, whose first group is the number.
        form: what an ID of another form is not, for the reason.
        path: of the table.

    Raises:
        SourceError: two rows of one patient.
    """
    found: dict[int, dict[str, str]] = {}
    left_out = [LeftOut("(no name)", "a row without an ID") for row in rows if not row["id"] and any(row.values())]
    for row in unique(rows, "id", path):
        patient = number_in(row["id"], pattern)
        if patient is None:
            left_out.append(LeftOut(repr(row["id"]), f"its ID is {form}"))
        elif patient in found:
            raise Twice(f"{path}: expected each subject once. Received: {row['id']} twice")
        else:
            found[patient] = row
    return found, left_out


def mr_series(folders: Sequence[Path], patient: int, pattern: str, extra: Sequence[str] = ()) -> list[Series]:
    """The MR series in a patient's folders, without those whose header names another patient.

    Args:
        folders: of the patient; what lies in two of them counts once.
        patient: the number in the folders' names.
        pattern: of PatientID, as :func:`patient_folders` takes it; a header without PatientID passes.
        extra: keywords of further header texts.

    Raises:
        SourceError: no folder, or no such series.
    """
    if not folders:
        raise SourceError("no folder of this patient")
    found: dict[tuple, Series] = {}
    for series in (series for folder in folders for series in scan(folder, extra)):
        if series.modality in ("MR", "") and number_in(series.patient_id, pattern) in (patient, None):
            first = series.files[0]
            kind = series.uid, series.image_type, series.echo, first.rows, first.columns, first.orientation
            images = {
                (image.uid, image.frame): image for part in (found.get(kind, series), series) for image in part.files
            }
            found[kind] = replace(series, files=tuple(images.values()))
    if not found:
        raise SourceError("its folder holds no MR images of this patient")
    return list(found.values())


def write_phases(phases: Sequence[Phase], name: str, nifti: Path, rule: PhaseRule) -> Taken[Path]:
    """Converts the phases that an exam needs to NIFTI/NAME_pre.nii.gz, NAME_early.nii.gz and NAME_late.nii.gz.

    Args:
        phases: of one exam, in the order of time.
        name: of the subject.
        nifti: the folder to write to.
        rule: by what the early and late phases are chosen.

    Returns:
        Taken: paths by column: pre, early and, where a phase follows early, late; and when they were acquired.

    Raises:
        SourceError: fewer than two phases, phases that the rule cannot choose, or one that cannot be converted.
    """
    listed = runs_of([f"series {phase.number} ({len(phase.slices)} slices each)" for phase in phases])
    seconds = [phase.seconds for phase in phases]
    taken = phases_by_column(phases, seconds, rule=rule, curve=lambda: _curve(phases), listed=listed)
    if not taken.phases:
        raise SourceError("its dynamic series holds one phase only")
    files = {column: convert(phase, nifti / f"{name}_{column}.nii.gz") for column, phase in taken.phases.items()}
    return Taken(files, taken.when)


def _curve(phases: Sequence[Phase]) -> np.ndarray:
    """The mean signal of what enhances, by phase; every phase is converted for it, into a folder that goes again."""
    with tempfile.TemporaryDirectory() as folder:
        paths = (convert(phase, Path(folder) / f"{n}.nii.gz") for n, phase in enumerate(phases))
        return enhancement_curve(read_nifti(path)[0] for path in paths)


def short_number(text: str) -> str:
    """A cell's number as text without a superfluous .0; '' where it holds none."""
    value = number_or_none(text)
    return "" if value is None else f"{value:g}"
