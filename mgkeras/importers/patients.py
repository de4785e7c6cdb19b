"""Patients' pseudonyms, the table that keeps them, and what a table of labels tells without telling who it is.

The table of pseudonyms stays with the user. A pseudonym is a number, not a hash: hospital numbers are so few that a
hash of one is found by trying them all.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mgkeras.data.checks import check_name
from mgkeras.data.io import written_whole
from mgkeras.importers.found import Found, SourceError, Twice, told_if
from mgkeras.importers.participants import join, number_of, read_participants
from mgkeras.importers.tables import read_table
from mgkeras.importers.workbook import plain

PSEUDONYM, PATIENT = "pseudonym", "patient_id"
DATE = re.compile(r"(19|20)\d\d(-\d\d?-\d\d?([ T].*)?|\d{4})|\d{1,2}[./-]\d{1,2}[./-](\d\d|(19|20)\d\d)")
IDENTIFYING = re.compile(
    r"\b((patient |first |last |sur|family |given )?name|id|birth|dob|date|address|phone|mrn|"
    r"accession|insurance|ssn|e ?mail|zip|postal|pseudonym)\b"
)
QUOTED = re.compile(r"""(?<= )(['"]).*\1""", re.DOTALL)  # a cell, in a reason


def pseudonyms(patients: Iterable[str], keep_map: Path | None = None) -> dict[str, str]:
    """{patient: pseudonym}: S0001, S0002, ... in the order of the sorted identifiers.

    Args:
        patients: identifiers.
        keep_map: a table of the columns pseudonym and patient_id. Where it exists its pseudonyms hold, and patients
            that it lacks get the next numbers; it is written anew with them, readable by its owner only, all its other
            columns as they were.

    Raises:
        SourceError: a table of other columns, an empty cell in these two, or one of them twice; an Excel file.
    """
    if keep_map and keep_map.suffix.lower() == ".xlsx":
        raise SourceError(f"expected a csv file for the table of pseudonyms. Received: {keep_map}")
    kept, columns, rows = _read_map(keep_map) if keep_map and keep_map.exists() else ({}, [PSEUDONYM, PATIENT], [])
    last = max((int(name[1:]) for name in kept.values() if re.fullmatch(r"S\d{1,9}", name)), default=0)
    fresh = sorted(set(patients) - kept.keys())
    named = {patient: f"S{number:04d}" for number, patient in enumerate(fresh, last + 1)}
    if keep_map:
        rows = rows + [
            [{plain(PSEUDONYM): name, plain(PATIENT): patient}.get(plain(column), "") for column in columns]
            for patient, name in named.items()
        ]
        _write_map(keep_map, columns, rows)
    return kept | named


def patients_of_names(keep_map: Path) -> dict[str, str]:
    """{pseudonym: patient} of the table of pseudonyms.

    Raises:
        SourceError: as of pseudonyms.
    """
    return {name: patient for patient, name in _read_map(keep_map)[0].items()}


def _read_map(path: Path) -> tuple[dict[str, str], list[str], list[list[str]]]:
    try:
        table = read_table(path)
        pairs = table.fields({PSEUDONYM: (), PATIENT: ()})
    except SourceError:  # whose words may be cells of the table
        raise SourceError(
            f"{path}: expected a table of the columns {PSEUDONYM} and {PATIENT}, such as an earlier call "
            "writes. Received: another file"
        ) from None
    kept: dict[str, str] = {}
    taken: set[str] = set()
    for number, pair in enumerate(pairs, 1):
        name, patient = pair[PSEUDONYM], pair[PATIENT]
        if not patient or check_name(name) or patient in kept or name.casefold() in taken:
            raise SourceError(
                f"{path}: expected each patient_id and each pseudonym once, and pseudonyms that can name "
                f"files. Received: something else in subject {number}"
            )
        kept[patient] = name
        taken.add(name.casefold())
    return kept, list(table.columns), [list(row) for row in table.rows]


def _write_map(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with written_whole(path.resolve()) as part:
        with os.fdopen(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="", encoding="utf-8"
        ) as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def join_labels(
    found: Found,
    names: Mapping[str, str],
    path: Path,
    *,
    outcomes: Sequence[str] = (),
    covariates: Sequence[str] | None = None,
) -> Found:
    """What was found under pseudonyms, with what a table of labels knows; no cell that tells who a patient is travels.

    Args:
        found: exams and what is left out, under pseudonyms.
        names: pseudonyms by patient.
        path: a row a patient, named by the identifier in the DICOM files or by the pseudonym.
        outcomes, covariates: columns, see participants.read_participants. Columns of dates, names and identifiers are
            not carried over, named here or not.

    Raises:
        SourceError: no table, a column that it lacks, a patient twice, or not one of the patients that were found.
    """
    table, dropped = _harmless(path, outcomes, covariates, names)
    rows = {row.name.casefold() for row in table.exams}
    by_pseudonym = sum(name.casefold() in rows for name in names.values())
    by_patient = sum(patient.casefold() in rows for patient in names)
    back = {name: name if by_pseudonym > by_patient else patient for patient, name in names.items()}
    forth = {own: name for name, own in back.items()}
    own = replace(
        found,
        exams=tuple(replace(exam, name=back[exam.name]) for exam in found.exams),
        left_out=tuple(replace(exam, name=back[exam.name]) for exam in found.left_out),
    )
    joined = join(own, table)
    unknown = sum(exam.name not in forth for exam in joined.left_out)
    if found.exams and unknown == len(table.exams):
        raise SourceError(
            f"{path}: expected a row a patient, by the identifier in the DICOM files or by the "
            "pseudonym. Received: none of the patients that were found"
        )
    notes = told_if(
        (unknown, f"Rows of {path.name} whose patients have no DICOM files here: {unknown}."),
        (
            dropped,
            f"Columns of {path.name} not carried over, since they look like dates, names or identifiers: "
            f"{', '.join(dropped)}.",
        ),
    )
    return replace(
        joined,
        exams=tuple(replace(exam, name=forth[exam.name]) for exam in joined.exams),
        left_out=tuple(
            replace(exam, name=forth[exam.name], reason=QUOTED.sub("...", exam.reason))
            for exam in joined.left_out
            if exam.name in forth
        ),
        notes=(*joined.notes, *notes),
    )


def _harmless(
    path: Path, outcomes: Sequence[str], covariates: Sequence[str] | None, names: Mapping[str, str]
) -> tuple[Found, list[str]]:
    """The table with those columns that do not tell who a patient is, and the names of the others."""
    try:
        table = read_participants(path, outcomes=outcomes, covariates=covariates)
        columns = list(dict.fromkeys(name for row in table.exams for name in row.covariates))
        cells = {name: [row.covariates[name] for row in table.exams] for name in columns}
        cells |= {"site": [row.site for row in table.exams], "scanner": [row.scanner for row in table.exams]}
        patients = {name.casefold(): patient for patient, name in names.items()}
        own = [(row.name, patients.get(row.name.casefold(), row.name)) for row in table.exams]
        dropped = [name for name, texts in cells.items() if _tells(name, texts, own, names)]
        table = read_participants(path, outcomes=outcomes, covariates=[name for name in columns if name not in dropped])
        exams = tuple(
            replace(
                row,
                site="" if "site" in dropped else row.site,
                scanner="" if "scanner" in dropped else row.scanner,
            )
            for row in table.exams
        )
        return replace(table, exams=exams), dropped
    except Twice:
        raise SourceError(f"{path}: expected each patient once. Received: one in several rows") from None


def _tells(column: str, cells: Sequence[str], own: Sequence[tuple[str, str]], patients: Iterable[str]) -> bool:
    """Whether a column's name or cells look like dates, names or identifiers.

    Args:
        cells: of all rows.
        own: by which names the patient of each row goes.
        patients: every patient's identifier. Short ones may occur by chance, as an age: then not in every row.
    """
    if IDENTIFYING.search(re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).casefold())):
        return True
    everything = "\n".join(cells).casefold()
    long = {name.casefold() for name in (*patients, *(name for names in own for name in names)) if len(name) > 4}
    if any(name in everything for name in long) or any(map(DATE.fullmatch, cells)):
        return True
    told = [(number_of(text), map(number_of, names)) for text, names in zip(cells, own, strict=True) if text]
    return bool(told) and all(text in names for text, names in told)
